//go:build !amd64 || noasm

package kernel

func best() level { return portable }

func decodeF16(dst []float32, src []byte)  { decodeF16Go(dst, src) }
func decodeBF16(dst []float32, src []byte) { decodeBF16Go(dst, src) }
func encodeF16(dst []byte, src []float32)  { encodeF16Go(dst, src) }
func encodeBF16(dst []byte, src []float32) { encodeBF16Go(dst, src) }

func encodeFloat8(f *Float8, dst []byte, src []float32) { encodeFloat8Go(f, dst, src) }

func addPanels(w []float32, stride int, l, panels []float32, rank, rows, n int, scale float32) {
	addPanelsGo(w, stride, l, panels, rank, rows, n, scale)
}

func transpose(dst *Lanes, src *[256]float32, size int) { transposeGo(dst, src, size) }
func squares(sums *PerGroup, g *Groups)                 { squaresGo(sums, g) }
func weightSums(sums *PerGroup, g *Groups)              { weightSumsGo(sums, g) }
func weighSquares(g *Groups)                            { weighSquaresGo(g) }
func weighMagnitudes(g *Groups, offsets *PerGroup)      { weighMagnitudesGo(g, offsets) }
func weighImportance(g *Groups, spreads *PerGroup)      { weighImportanceGo(g, spreads) }
func symmetric(g *Groups, fit *SymmetricFit)            { symmetricGo(g, fit) }
func nonLinear(g *Groups, scales *PerGroup)             { nonLinearGo(g, scales) }
func quantize(codes *[256]byte, x *[256]float32, size int, steps, offsets *PerGroup, low, high int32) {
	quantizeGo(codes, x, size, steps, offsets, low, high)
}

func descend(g *Groups, fit *SymmetricFit) { descendGo(g, fit) }

func magnitudeBits(x []float32) uint32 { return magnitudeGo(x) }

func quickLeft(_ Quick, _ []byte, _ []float32, blocks int) int { return blocks }

func affine(a *Affine, g, h *Groups, fitG, fitH *AffineFit) {
	affineGo(a, g, fitG)
	if h != g {
		affineGo(a, h, fitH)
	}
}
