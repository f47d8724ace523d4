package kernel

// An Affine is a search for a scale and a minimum, which is never above zero, such that codes from 0
// to the top stand for scale·code + minimum. NewAffine makes one.
type Affine struct {
	top        float32
	numerators []float32 // of the candidates: number of steps between minimum and maximum
	absolute   bool      // errors count by magnitude, not by square
}

// NewAffine makes a search of codes 0…top which tries steps+1 grids: those with top + first + step·i
// steps in the range of the group. It is the reference's make_qkx2_quants and make_qkx3_quants.
func NewAffine(top int, first, step float32, steps int, absolute bool) *Affine {
	a := &Affine{top: float32(top), absolute: absolute}
	for i := range steps + 1 {
		a.numerators = append(a.numerators, first+float32(step*float32(i))+a.top)
	}
	return a
}

// AffineFit is what an Affine search finds for each group: values are near Scales·code - Depths.
type AffineFit struct {
	Scales, Depths PerGroup
	inverses, lows PerGroup // the grid the codes were taken from
	top            float32
}

// Affine searches each group.
func (g *Groups) Affine(a *Affine, fit *AffineFit) { AffinePair(a, g, g, fit, fit) }

// AffinePair searches the groups of two super-blocks with groups of the same size, which is faster
// than one after the other where they are of 32. Both may be the same.
func AffinePair(a *Affine, g, h *Groups, fitG, fitH *AffineFit) {
	fitG.top, fitH.top = a.top, a.top
	affine(a, g, h, fitG, fitH)
}

// Codes are the codes the search chose for values of group j.
func (f *AffineFit) Codes(codes []byte, x []float32, j int) {
	for i, v := range x {
		codes[i] = byte(max(0, min(int32(f.top), Near(float32(f.inverses[j]*(v-f.lows[j]))))))
	}
}

func affineGo(a *Affine, g *Groups, fit *AffineFit) {
	var bx, bw [32]float32
	for j := range g.Count() {
		x, w := g.group(j, &bx, &bw)
		fit.Scales[j], fit.Depths[j], fit.inverses[j], fit.lows[j] = a.search(x, w)
	}
}

// search goes through the candidates for one group. An accepted minimum takes the place of the old one
// at once, and the candidates after it start from there.
func (a *Affine) search(x, w []float32) (scale, depth, inverse, from float32) {
	low, high := x[0], x[0]
	sumW := w[0]
	sumX := float32(sumW * x[0])
	for i, v := range x[1:] {
		if v < low {
			low = v
		}
		if v > high {
			high = v
		}
		sumW += w[i+1]
		sumX += float32(w[i+1] * v)
	}
	if low > 0 {
		low = 0
	}
	if high <= low {
		return 0, -low, 0, 0
	}
	top := int32(a.top)
	inverse, from = a.top/(high-low), low
	scale = 1 / inverse
	best := a.err(x, w, scale, low, func(_ int, v float32) float32 {
		return float32(max(0, min(top, Near(float32(inverse*(v-from))))))
	})
	var codes [32]float32
	for _, n := range a.numerators {
		inv := n / (high - low)
		var sumL, sumL2, sumXL float32
		for i, v := range x {
			l := float32(max(0, min(top, Near(float32(inv*(v-low))))))
			codes[i] = l
			wl := float32(w[i] * l)
			sumL += wl
			sumL2 += float32(wl * l)
			sumXL += float32(wl * v)
		}
		d := float32(sumW*sumL2) - float32(sumL*sumL)
		if !(d > 0) {
			continue
		}
		s := (float32(sumW*sumXL) - float32(sumX*sumL)) / d
		m := (float32(sumL2*sumX) - float32(sumL*sumXL)) / d
		if m > 0 {
			s, m = sumXL/sumL2, 0
		}
		if e := a.err(x, w, s, m, func(i int, _ float32) float32 { return codes[i] }); e < best {
			best, inverse, from = e, inv, low
			scale, low = s, m
		}
	}
	return scale, -low, inverse, from
}

// err is the weighted error of a grid.
func (a *Affine) err(x, w []float32, scale, low float32, code func(int, float32) float32) (sum float32) {
	for i, v := range x {
		e := float32(scale*code(i, v)) + low - v
		if a.absolute {
			e = abs(e)
		} else {
			e *= e
		}
		sum += float32(w[i] * e)
	}
	return sum
}
