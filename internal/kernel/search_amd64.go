//go:build amd64 && !noasm

package kernel

func transpose(dst *Lanes, src *[256]float32, size int) { transposeGo(dst, src, size) }
func squares(sums *PerGroup, g *Groups)                 { squaresGo(sums, g) }
func weightSums(sums *PerGroup, g *Groups)              { weightSumsGo(sums, g) }
func weighSquares(g *Groups)                            { weighSquaresGo(g) }
func weighMagnitudes(g *Groups, offsets *PerGroup)      { weighMagnitudesGo(g, offsets) }
func weighImportance(g *Groups, spreads *PerGroup)      { weighImportanceGo(g, spreads) }
func affine(g *Groups, a *Affine, fit *AffineFit)       { affineGo(g, a, fit) }
func symmetric(g *Groups, fit *SymmetricFit)            { symmetricGo(g, fit) }
func descend(g *Groups, fit *SymmetricFit)              { descendGo(g, fit) }
func nonLinear(g *Groups, scales *PerGroup)             { nonLinearGo(g, scales) }
func quantize(codes *[256]byte, x *[256]float32, size int, steps, offsets *PerGroup, low, high int32) {
	quantizeGo(codes, x, size, steps, offsets, low, high)
}
