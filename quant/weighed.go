package quant

import (
	"encoding/binary"

	"github.com/loratool/loratool/internal/kernel"
)

// The oldest types with importance. Their weights depend on the mean square of the whole row.

// toWeighedRows makes an encoder out of one that gets up to eight blocks of 32 of a row at once: their
// bytes, 256 values and importances, which are zeros where the row ends, and the mean square of the row.
func toWeighedRows(size int, encode func(b []byte, x, importance []float32, meanSquare float32) (finite bool)) rowEncoder {
	return func(dst []byte, src []float32, cols int, importance []float32) error {
		stride := cols / 32 * size
		for at := 0; at < len(src); at += cols {
			x := src[at : at+cols]
			if err := mustBeFinite(x, at); err != nil {
				return err
			}
			mean := sumSquares(x) / float32(cols)
			row := toBatches(32, size, 8, func(b []byte, x, importance []float32) bool {
				var last [2][256]float32
				return encode(b, fill(&last[0], x), fill(&last[1], importance), mean)
			})
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
	return weighSymmetric(b, 18, x, importance, meanSquare, 8, putHalves)
}

func weighQ5_0(b []byte, x, importance []float32, meanSquare float32) bool {
	return weighSymmetric(b, 22, x, importance, meanSquare, 16, putFiveBits)
}

func weighSymmetric(b []byte, size int, x, importance []float32, meanSquare float32, levels int, put func([]byte, *[32]byte)) bool {
	var g kernel.Groups
	var fit kernel.SymmetricFit
	g.Load(x, 32)
	g.WeighImportance(importance, everywhere(meanSquare))
	g.Symmetric(levels, &fit)
	finite := true
	for j := range len(b) / size {
		var codes [32]byte
		fit.Codes(codes[:], x[32*j:][:32], j)
		put(b[size*j+2:][:size-2], &codes)
		finite = putHalf(b[size*j:], fit.Scales[j]) && finite
	}
	return finite
}

func weighQ4_1(b []byte, x, importance []float32, meanSquare float32) bool {
	return weighAffine(b, 20, x, importance, meanSquare, weighed4, putHalves)
}

func weighQ5_1(b []byte, x, importance []float32, meanSquare float32) bool {
	return weighAffine(b, 24, x, importance, meanSquare, weighed5, putFiveBits)
}

func weighAffine(b []byte, size int, x, importance []float32, meanSquare float32, search *kernel.Affine, put func([]byte, *[32]byte)) bool {
	var g kernel.Groups
	var fit kernel.AffineFit
	g.Load(x, 32)
	g.WeighImportance(importance, everywhere(meanSquare))
	g.Affine(search, &fit)
	finite := true
	for j := range len(b) / size {
		var codes [32]byte
		fit.Codes(codes[:], x[32*j:][:32], j)
		put(b[size*j+4:][:size-4], &codes)
		okD, okMin := putHalf(b[size*j:], fit.Scales[j]), putHalf(b[size*j+2:], -fit.Depths[j])
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

// putFiveBits stores 32 codes of five bits: the fifth bits as one word, then the nibbles.
func putFiveBits(b []byte, codes *[32]byte) {
	var high uint32
	for i, c := range codes {
		high |= uint32(c>>4&1) << i
	}
	binary.LittleEndian.PutUint32(b, high)
	putHalves(b[4:], codes)
}
