package quant

import (
	"encoding/binary"

	"github.com/loratool/loratool/internal/kernel"
)

// The oldest types with importance. Their weights depend on the mean square of the whole row.

// toWeighedRows makes an encoder out of one that gets up to sixteen blocks of 32 of a row at once:
// their bytes, values and importances, and the mean square of the row.
func toWeighedRows(size int, encode func(b []byte, x, importance []float32, meanSquare float32) (finite bool)) rowEncoder {
	return func(dst []byte, src []float32, cols int, importance []float32) error {
		stride := cols / 32 * size
		for at := 0; at < len(src); at += cols {
			x := src[at : at+cols]
			if err := mustBeFinite(x, at); err != nil {
				return err
			}
			mean := sumSquares(x) / float32(cols)
			row := toBatches(32, size, 16, func(b []byte, x, importance []float32) bool { return encode(b, x, importance, mean) })
			if err := row(dst[:stride], x, cols, importance); err != nil {
				return err
			}
			dst = dst[stride:]
		}
		return nil
	}
}

var weighed4, weighed5 = kernel.NewAffine(15, -0.9, 0.05, 36, false), kernel.NewAffine(31, -0.9, 0.05, 36, false)

func weighQ4_0(b []byte, x, importance []float32, meanSquare float32) bool {
	return weighSymmetric(b, 18, x, importance, meanSquare, 8)
}

func weighQ5_0(b []byte, x, importance []float32, meanSquare float32) bool {
	return weighSymmetric(b, 22, x, importance, meanSquare, 16)
}

// loadWeighed takes up to eight blocks.
func loadWeighed(g *kernel.Groups, x, importance []float32, meanSquare float32) {
	var last [2][256]float32
	n := min(256, len(x))
	g.Load(fill(&last[0], x[:n]), 32)
	g.WeighImportance(fill(&last[1], importance[:n]), everywhere(meanSquare))
}

func weighSymmetric(b []byte, size int, x, importance []float32, meanSquare float32, levels int) bool {
	finite := true
	for len(x) > 0 {
		var g kernel.Groups
		var fit kernel.SymmetricFit
		loadWeighed(&g, x, importance, meanSquare)
		g.Symmetric(levels, &fit)
		blocks := min(8, len(x)/32)
		for j := range blocks {
			var codes [32]byte
			fit.Codes(codes[:], x[32*j:][:32], j)
			putCodes(b[size*j+2:][:size-2], &codes)
			finite = putHalf(b[size*j:], fit.Scales[j]) && finite
		}
		b, x, importance = b[size*blocks:], x[32*blocks:], importance[32*blocks:]
	}
	return finite
}

func weighQ4_1(b []byte, x, importance []float32, meanSquare float32) bool {
	return weighAffine(b, 20, x, importance, meanSquare, weighed4)
}

func weighQ5_1(b []byte, x, importance []float32, meanSquare float32) bool {
	return weighAffine(b, 24, x, importance, meanSquare, weighed5)
}

func weighAffine(b []byte, size int, x, importance []float32, meanSquare float32, search *kernel.Affine) bool {
	var g [2]kernel.Groups
	var fit [2]kernel.AffineFit
	n := (len(x) + 255) / 256
	for i := range n {
		loadWeighed(&g[i], x[256*i:], importance[256*i:], meanSquare)
	}
	kernel.AffinePair(search, &g[0], &g[n-1], &fit[0], &fit[n-1])
	finite := true
	for j := range len(x) / 32 {
		var codes [32]byte
		f, k := &fit[j/8], j%8
		f.Codes(codes[:], x[32*j:][:32], k)
		putCodes(b[size*j+4:][:size-4], &codes)
		okD, okMin := putHalf(b[size*j:], f.Scales[k]), putHalf(b[size*j+2:], -f.Depths[k])
		finite = okD && okMin && finite
	}
	return finite
}

// putHalves stores 32 codes of four bits in split halves.
func putHalves(b []byte, codes *[32]byte) {
	const low = 0x0f0f0f0f0f0f0f0f
	word(b, eight(codes[:])&low|eight(codes[16:])&low<<4)
	word(b[8:], eight(codes[8:])&low|eight(codes[24:])&low<<4)
}

// putCodes stores 32 codes: of four bits in 16 bytes, or of five bits in 20, the fifth bits first.
func putCodes(b []byte, codes *[32]byte) {
	if len(b) == 20 {
		var high uint32
		for i, c := range codes {
			high |= uint32(c>>4&1) << i
		}
		binary.LittleEndian.PutUint32(b, high)
		b = b[4:]
	}
	putHalves(b, codes)
}
