package quant

import "github.com/loratool/loratool/internal/kernel"

// magnitudeScale fits x to scale·l with l from 0 to top, as fitPositive does, but for values of which
// some may be negative: the reference stores a negative l in a byte, where it becomes a large positive
// one, and goes on from there.
func magnitudeScale(x, w []float32, top int) float32 {
	high := highest(x)
	if high < 1e-15 {
		return 0
	}
	id := bestMagnitude(x, w, float32(top), high)
	var codes [32]byte
	var xl, ll float32
	for i, v := range x {
		l := min(int32(top), kernel.Near(float32(id*v)))
		codes[i] = byte(l)
		xl += float32(float32(w[i]*v) * float32(l))
		ll += float32(float32(w[i]*float32(l)) * float32(l))
	}
	for range 5 {
		changed := false
		for i, v := range x {
			wx, l := float32(w[i]*v), float32(codes[i])
			xl2, ll2 := xl-float32(wx*l), ll-float32(float32(w[i]*l)*l)
			if !(xl2 > 0 && ll2 > 0) {
				continue
			}
			code := min(int32(top), kernel.Near(float32(v*ll2)/xl2))
			if code == int32(codes[i]) {
				continue
			}
			l = float32(code)
			xl2 += float32(wx * l)
			ll2 += float32(float32(w[i]*l) * l)
			if float32(float32(xl2*xl2)*ll) > float32(float32(xl*xl)*ll2) {
				codes[i], xl, ll, changed = byte(code), xl2, ll2, true
			}
		}
		if !changed {
			break
		}
	}
	if ll > 0 {
		return xl / ll
	}
	return 0
}

// bestMagnitude is 1/scale of the candidate with the smallest error.
func bestMagnitude(x, w []float32, top, high float32) float32 {
	best := top / high
	scale := 1 / best
	var least float32
	for i, v := range x {
		e := v - float32(scale*float32(byte(kernel.Near(float32(best*v)))))
		least += float32(float32(w[i]*e) * e)
	}
	for try := -4; try <= 4; try++ {
		if try == 0 {
			continue
		}
		id := (float32(0.1*float32(try)) + top) / high
		scale := 1 / id
		var sum float32
		for i, v := range x {
			e := v - float32(scale*float32(min(int32(top), kernel.Near(float32(id*v)))))
			sum += float32(float32(w[i]*e) * e)
		}
		if sum < least {
			least, best = sum, id
		}
	}
	return best
}
