package kernel

// smallest is the magnitude below which the reference takes a group for zeros.
const smallest = 1e-15

// SymmetricFit is what a search without a minimum finds for each group: values are near Scales·code,
// codes from -levels to levels-1.
type SymmetricFit struct {
	Scales   PerGroup
	inverses PerGroup // 1/scale of the grid the codes were taken from; 0 for a group of zeros
	levels   int32
	codes    Lanes // of Descend: code + levels
	descent  bool
}

// Symmetric searches each group for the best of 19 scales around the one that maps the value of
// largest magnitude to -levels: the reference's make_qx_quants.
func (g *Groups) Symmetric(levels int, fit *SymmetricFit) {
	fit.levels, fit.descent = int32(levels), false
	symmetric(g, fit)
}

// Descend starts from the first of those scales and changes one code after the other where that helps,
// in up to five rounds: the reference's make_q3_quants. Weights are the squares of the values, whatever
// g says.
func (g *Groups) Descend(levels int, fit *SymmetricFit) {
	fit.levels, fit.descent = int32(levels), true
	descend(g, fit)
}

// Codes are the codes the search chose for group j, raised by levels. x are the group's values. All
// are zero in a group of zeros.
func (f *SymmetricFit) Codes(codes []byte, x []float32, j int) {
	switch {
	case f.descent:
		for i, at := 0, j/8*8*len(x)+j%8; i < len(x); i, at = i+1, at+8 {
			codes[i] = byte(int32(f.codes[at]))
		}
	case f.inverses[j] == 0:
		clear(codes[:len(x)])
	default:
		for i, v := range x {
			codes[i] = byte(f.levels + limited(float32(f.inverses[j]*v), f.levels))
		}
	}
}

// limited rounds and limits a code.
func limited(f float32, levels int32) int32 { return max(-levels, min(levels-1, Near(f))) }

// shifts are the numbers of steps the candidates differ from the first by.
var shifts = func() (s []float32) {
	for i := -9; i <= 9; i++ {
		if i != 0 {
			s = append(s, float32(0.1)*float32(i))
		}
	}
	return s
}()

// SymmetricScale is the search of Symmetric for one group of any size. The codes it chose are those of
// inverse·value; inverse is 0 for a group of zeros.
func SymmetricScale(x, w []float32, levels int) (scale, inverse float32) {
	top := peak(x)
	if abs(top) < smallest {
		return 0, 0
	}
	n := float32(levels)
	fit := func(inv float32) (xl, ll float32) {
		for i, v := range x {
			l := float32(limited(float32(inv*v), int32(levels)))
			xl += float32(float32(w[i]*v) * l)
			ll += float32(float32(w[i]*l) * l)
		}
		return xl, ll
	}
	inverse = -n / top
	xl, ll := fit(inverse)
	if ll != 0 {
		scale = xl / ll
	}
	best := float32(scale * xl)
	for _, s := range shifts {
		inv := -(n + s) / top
		xl, ll := fit(inv)
		if ll > 0 && float32(xl*xl) > float32(best*ll) {
			scale = xl / ll
			best = float32(scale * xl)
			inverse = inv
		}
	}
	return scale, inverse
}

// peak is the value of largest magnitude; the first one wins.
func peak(x []float32) (top float32) {
	for _, v := range x {
		if abs(v) > abs(top) {
			top = v
		}
	}
	return top
}

func symmetricGo(g *Groups, fit *SymmetricFit) {
	var bx, bw [32]float32
	for j := range g.Count() {
		x, w := g.group(j, &bx, &bw)
		fit.Scales[j], fit.inverses[j] = SymmetricScale(x, w, int(fit.levels))
	}
}

func descendGo(g *Groups, fit *SymmetricFit) {
	var bx, bw [32]float32
	var codes [32]int32
	for j := range g.Count() {
		x, _ := g.group(j, &bx, &bw)
		fit.Scales[j] = descendOne(x, &codes, fit.levels)
		for i, at := 0, g.at(j); i < g.size; i, at = i+1, at+8 {
			fit.codes[at] = float32(codes[i])
		}
	}
}

// descendOne leaves codes raised by levels, or zeros in a group of zeros.
func descendOne(x []float32, codes *[32]int32, levels int32) float32 {
	top := peak(x)
	if abs(top) < smallest {
		*codes = [32]int32{}
		return 0
	}
	inverse := -float32(levels) / top
	var xl, ll float32
	for i, v := range x {
		l := limited(float32(inverse*v), levels)
		codes[i] = l
		w := float32(v * v)
		xl += float32(float32(w*v) * float32(l))
		ll += float32(float32(w*float32(l)) * float32(l))
	}
	for range 5 {
		changed := false
		for i, v := range x {
			w, l := float32(v*v), float32(codes[i])
			xl2 := xl - float32(float32(w*v)*l)
			if !(xl2 > 0) {
				continue
			}
			ll2 := ll - float32(float32(w*l)*l)
			code := limited(float32(v*ll2)/xl2, levels)
			if code == codes[i] {
				continue
			}
			l = float32(code)
			xl2 += float32(float32(w*v) * l)
			ll2 += float32(float32(w*l) * l)
			if ll2 > 0 && float32(float32(xl2*xl2)*ll) > float32(float32(xl*xl)*ll2) {
				codes[i], xl, ll, changed = code, xl2, ll2, true
			}
		}
		if !changed {
			break
		}
	}
	for i := range x {
		codes[i] += levels
	}
	if ll > 0 {
		return xl / ll
	}
	return 0
}
