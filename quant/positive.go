package quant

import "github.com/loratool/loratool/internal/kernel"

// fitPositive finds a scale for values that are not negative, so that codes from 0 to top stand for
// scale·code: nine scales are tried by their weighted square error, then one code after the other is
// changed where that helps, in up to five rounds. It is the reference's make_qp_quants, which the types
// with sub-blocks use for scales and minima when there is importance.
//
// IQ2_XXS has a few negative values among its magnitudes. Their codes are negative at first and large in
// the rounds, because the reference stores them in bytes.
func fitPositive(codes []byte, x, w []float32, top int) float32 {
	var most float32
	for _, v := range x {
		if !(most > v) {
			most = v
		}
	}
	if most < 1e-15 {
		clear(codes[:len(x)])
		return 0
	}
	inverse := bestPositive(x, w, float32(top), most)
	var xl, ll float32
	for i, v := range x {
		code := min(int32(top), kernel.Near(float32(inverse*v)))
		codes[i] = byte(code)
		l := float32(code)
		xl += float32(float32(w[i]*v) * l)
		ll += float32(float32(w[i]*l) * l)
	}
	for range 5 {
		changed := false
		for i, v := range x {
			l := float32(codes[i])
			xl2 := xl - float32(float32(w[i]*v)*l)
			ll2 := ll - float32(float32(w[i]*l)*l)
			if !(xl2 > 0 && ll2 > 0) {
				continue
			}
			code := min(int32(top), kernel.Near(float32(v*ll2)/xl2))
			if code == int32(codes[i]) {
				continue
			}
			l = float32(code)
			xl2 += float32(float32(w[i]*v) * l)
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

// bestPositive is 1/scale of the candidate with the smallest error.
func bestPositive(x, w []float32, top, most float32) float32 {
	best := top / most
	scale := 1 / best
	var least float32
	for i, v := range x {
		e := v - float32(scale*float32(byte(kernel.Near(float32(best*v)))))
		least += float32(float32(w[i]*e) * e)
	}
	for s := -4; s <= 4; s++ {
		if s == 0 {
			continue
		}
		inverse := (float32(float32(0.1)*float32(s)) + top) / most
		scale := 1 / inverse
		var sum float32
		for i, v := range x {
			e := v - float32(scale*float32(min(int32(top), kernel.Near(float32(inverse*v)))))
			sum += float32(float32(w[i]*e) * e)
		}
		if sum < least {
			least, best = sum, inverse
		}
	}
	return best
}
