package kernel

// NonLinearLevels are the levels of the IQ4 types, denser around zero.
var NonLinearLevels = [16]float32{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}

// NearestNonLinear is the code of the level nearest to v: the upper one on a tie, 15 for NaN.
func NearestNonLinear(v float32) byte {
	switch {
	case v <= NonLinearLevels[0]:
		return 0
	case !(v < NonLinearLevels[15]):
		return 15
	}
	return nonLinearCodes[int(2*float64(v)+254)]
}

// nonLinearCodes are the codes of -127, -126.5, … The borders between levels are multiples of a half,
// so all numbers up to the next have the same code.
var nonLinearCodes = func() (codes [480]byte) {
	code := byte(0)
	for i := range codes {
		v := float32(i-254) / 2
		for code < 15 && v-NonLinearLevels[code] >= NonLinearLevels[code+1]-v {
			code++
		}
		codes[i] = code
	}
	return codes
}()

// NonLinear searches each group for the best of 16 scales: the one that maps the value of largest
// magnitude to 127, and 15 around the one that maps it to -127. It is the search of the reference's
// quantize_row_iq4_nl_impl with seven tries to a side. Groups of zeros and groups whose
// weights are zero have scale 0.
func (g *Groups) NonLinear(scales *PerGroup) { nonLinear(g, scales) }

func nonLinearGo(g *Groups, scales *PerGroup) {
	var bx, bw [32]float32
	for j := range g.Count() {
		x, w := g.group(j, &bx, &bw)
		scales[j] = nonLinearOne(x, w)
	}
}

func nonLinearOne(x, w []float32) float32 {
	top := peak(x)
	if abs(top) < smallest {
		return 0
	}
	fit := func(inverse float32) (xq, qq float32) {
		for i, v := range x {
			q := NonLinearLevels[NearestNonLinear(float32(inverse*v))]
			wq := float32(w[i] * q)
			xq += float32(wq * v)
			qq += float32(wq * q)
		}
		return xq, qq
	}
	xq, qq := fit(1 / (-top / NonLinearLevels[0]))
	var scale float32
	if qq > 0 {
		scale = xq / qq
	}
	best := float32(scale * xq)
	for _, n := range nonLinearTries {
		xq, qq = fit(n / top)
		if qq > 0 && float32(xq*xq) > float32(best*qq) {
			scale = xq / qq
			best = float32(scale * xq)
		}
	}
	return scale
}

var nonLinearTries = func() (n [15]float32) {
	for i := range n {
		n[i] = float32(i-7) + NonLinearLevels[0]
	}
	return n
}()

// QuantizeNonLinear gives each value the code of the level nearest to inverse·value.
func QuantizeNonLinear(codes []byte, x []float32, inverse float32) {
	for i, v := range x {
		codes[i] = NearestNonLinear(float32(inverse * v))
	}
}
