//go:build amd64 && !noasm

package kernel

func latticeCodes(codes []uint32, x, ids []float32, dims int) {
	switch {
	case active < avx2:
		latticeCodesGo(codes, x, ids, dims)
	case dims == 8:
		latticeCodes8AVX2(&codes[0], &x[0], &ids[0], len(x)/8, len(ids)/8)
	default:
		latticeCodes4AVX2(&codes[0], &x[0], &ids[0], len(x)/4, len(ids)/8)
	}
}

func latticeSums(xq, qq []float32, points []uint32, x, w []float32, dims int) {
	switch {
	case active < avx2:
		latticeSumsGo(xq, qq, points, x, w, dims)
	case dims == 8:
		latticeSums8AVX2(&xq[0], &qq[0], &points[0], &x[0], &w[0], len(x)/8, len(xq)/8)
	default:
		latticeSums4AVX2(&xq[0], &qq[0], &points[0], &x[0], &w[0], len(x)/4, len(xq)/8)
	}
}

func latticeNearest(list []uint32, x, w []float32, scale float32, levels *[8]float32) uint32 {
	switch {
	case active < avx2:
		return latticeNearestGo(list, x, w, scale, levels)
	case len(x) == 8:
		return latticeNearest8AVX2(&list[0], len(list)/8, &x[0], &w[0], scale, &levels[0])
	default:
		return latticeNearest4AVX2(&list[0], len(list)/8, &x[0], &w[0], scale, &levels[0])
	}
}
