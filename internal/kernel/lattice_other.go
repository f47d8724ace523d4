//go:build !amd64 || noasm

package kernel

func latticeCodes(codes []uint32, x, ids []float32, dims int) { latticeCodesGo(codes, x, ids, dims) }

func latticeSums(xq, qq []float32, points []uint32, x, w []float32, dims int) {
	latticeSumsGo(xq, qq, points, x, w, dims)
}

func latticeNearest(list []uint32, x, w []float32, scale float32, levels *[8]float32) uint32 {
	return latticeNearestGo(list, x, w, scale, levels)
}

func filterAlike(*alikeTable) (Split, bool)   { return Split{}, false }
func filterHalves(*halvesTable) (Split, bool) { return Split{}, false }
