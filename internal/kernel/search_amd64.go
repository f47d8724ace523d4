//go:build !noasm

package kernel

// set is where the values of set s begin, in groups of size.
func set(l *Lanes, s, size int) *float32 { return &l[8*size*s] }

func transpose(dst *Lanes, src *[256]float32, size int) {
	if active < avx2 {
		transposeGo(dst, src, size)
		return
	}
	transposeAVX2(&dst[0], &src[0], size)
}

func squares(sums *PerGroup, g *Groups) {
	if active < avx2 {
		squaresGo(sums, g)
		return
	}
	for s := range g.Count() / 8 {
		squaresAVX2(&sums[8*s], set(&g.Values, s, g.size), g.size)
	}
}

func weightSums(sums *PerGroup, g *Groups) {
	if active < avx2 {
		weightSumsGo(sums, g)
		return
	}
	for s := range g.Count() / 8 {
		sumsAVX2(&sums[8*s], set(&g.Weights, s, g.size), g.size)
	}
}

func weighSquares(g *Groups) {
	if active < avx2 {
		weighSquaresGo(g)
		return
	}
	weighSquaresAVX2(&g.Weights[0], &g.Values[0], &g.Values[0], 32)
}

func weighMagnitudes(g *Groups, offsets *PerGroup) {
	if active < avx2 {
		weighMagnitudesGo(g, offsets)
		return
	}
	for s := range g.Count() / 8 {
		weighMagnitudesAVX2(set(&g.Weights, s, g.size), set(&g.Values, s, g.size), &offsets[8*s], g.size)
	}
}

func weighImportance(g *Groups, spreads *PerGroup) {
	if active < avx2 {
		weighImportanceGo(g, spreads)
		return
	}
	for s := range g.Count() / 8 {
		weighImportanceAVX2(set(&g.Weights, s, g.size), set(&g.Values, s, g.size), &spreads[8*s], g.size)
	}
}

func affine(a *Affine, g, h *Groups, fitG, fitH *AffineFit) {
	done := false
	switch {
	case active < avx2:
	case g.size == 32:
		done = a.searchSets(g, h, 0, 0, fitG, fitH)
	default:
		done = a.searchSets(g, g, 0, 1, fitG, fitG) && (h == g || a.searchSets(h, h, 0, 1, fitH, fitH))
	}
	if !done {
		affineGo(a, g, fitG)
		if h != g {
			affineGo(a, h, fitH)
		}
	}
}

// searchSets searches set s of g and set t of h, and reports whether the assembly could do it.
func (a *Affine) searchSets(g, h *Groups, s, t int, fitG, fitH *AffineFit) bool {
	n, x0, x1, w0, w1 := len(a.numerators), set(&g.Values, s, g.size), set(&h.Values, t, h.size), set(&g.Weights, s, g.size), set(&h.Weights, t, h.size)
	if a.absolute {
		return affineAbsoluteAVX2(x0, x1, w0, w1, &a.numerators[0], n, g.size, a.top, &fitG.Scales[8*s], &fitH.Scales[8*t])
	}
	return affineSquareAVX2(x0, x1, w0, w1, &a.numerators[0], n, g.size, a.top, &fitG.Scales[8*s], &fitH.Scales[8*t])
}

func symmetric(g *Groups, fit *SymmetricFit) {
	if active < avx2 {
		symmetricGo(g, fit)
		return
	}
	for s := range g.Count() / 8 {
		symmetricAVX2(set(&g.Values, s, g.size), set(&g.Weights, s, g.size), g.size, float32(fit.levels), &shifts[0], &fit.Scales[8*s])
	}
}

func descend(g *Groups, fit *SymmetricFit) {
	if active < avx2 {
		descendGo(g, fit)
		return
	}
	for s := range g.Count() / 8 {
		descendAVX2(set(&g.Values, s, g.size), set(&fit.codes, s, g.size), g.size, float32(fit.levels), &fit.Scales[8*s])
	}
}

func nonLinear(g *Groups, scales *PerGroup) {
	if active < avx2 {
		nonLinearGo(g, scales)
		return
	}
	for s := range g.Count() / 8 {
		nonLinearAVX2(set(&g.Values, s, g.size), set(&g.Weights, s, g.size), g.size, &nonLinearTries[0], &scales[8*s])
	}
}

func quantize(codes *[256]byte, x *[256]float32, size int, steps, offsets *PerGroup, low, high int32) {
	if active < avx2 {
		quantizeGo(codes, x, size, steps, offsets, low, high)
		return
	}
	if size == 32 {
		steps, offsets = steps.twice(), offsets.twice()
	}
	quantizeAVX2(&codes[0], &x[0], &steps[0], &offsets[0], low, high)
}

// twice repeats each of the first eight numbers.
func (p *PerGroup) twice() *PerGroup {
	var d PerGroup
	for j := range d {
		d[j] = p[j/2]
	}
	return &d
}

func magnitudeBits(x []float32) uint32 {
	n := vectorPart(len(x))
	if n == 0 {
		return magnitudeGo(x)
	}
	return max(magnitudeAVX2(&x[0], n/group), magnitudeGo(x[n:]))
}

func quickLeft(q Quick, dst []byte, src []float32, blocks int) int {
	if active < avx2 {
		return blocks
	}
	d, s := &dst[0], &src[0]
	switch q {
	case QuickQ8_0:
		return encodeQ8_0AVX2(d, s, blocks)
	case QuickQ4_0:
		return encodeQ4_0AVX2(d, s, blocks)
	case QuickQ5_0:
		return encodeQ5_0AVX2(d, s, blocks)
	case QuickQ4_1:
		return encodeQ4_1AVX2(d, s, blocks)
	case QuickQ5_1:
		return encodeQ5_1AVX2(d, s, blocks)
	case QuickMXFP4:
		return encodeMXFP4AVX2(d, s, blocks)
	}
	return encodeNVFP4AVX2(d, s, blocks)
}
