package quant

import (
	"encoding/binary"

	"github.com/loratool/loratool/internal/kernel"
)

// IQ4_NL and IQ4_XS: four-bit codes of levels that lie denser around zero. IQ4_XS has super-blocks with
// six-bit scales, IQ4_NL does not.

func decodeIQ4_NL(y []float32, b []byte) { lookUp(y, b[2:18], half(b), &kernel.NonLinearLevels) }

func decodeIQ4_XS(y []float32, b []byte) {
	d, high, low, qs := half(b), binary.LittleEndian.Uint16(b[2:]), b[4:8], b[8:136]
	for g := range 8 {
		s := int(low[g/2]>>(g%2*4)&15) | int(high>>(2*g)&3)<<4
		lookUp(y[g*32:], qs[g*16:][:16], d*float32(s-32), &kernel.NonLinearLevels)
	}
}

// encodeIQ4_NL encodes up to eight blocks. importance may be nil.
func encodeIQ4_NL(b []byte, x, importance []float32) bool {
	var last [2][256]float32
	x, importance = fill(&last[0], x), fill(&last[1], importance)
	var g kernel.Groups
	g.Load(x, 32)
	if importance != nil {
		spreads := g.Squares()
		for j := range spreads {
			spreads[j] *= 2. / 32
		}
		g.WeighImportance(importance, &spreads)
	} else {
		g.WeighSquares()
	}
	var scales kernel.PerGroup
	g.NonLinear(&scales)
	finite := true
	for j := range len(b) / 18 {
		putNearest(b[18*j+2:][:16], x[32*j:][:32], inverse(scales[j]))
		finite = putHalf(b[18*j:], scales[j]) && finite
	}
	return finite
}

// fill adds zeros to values that are fewer than 256. Nil stays nil.
func fill(to *[256]float32, x []float32) []float32 {
	if x == nil || len(x) == 256 {
		return x
	}
	clear(to[copy(to[:], x):])
	return to[:]
}

func putNearest(b []byte, x []float32, id float32) {
	var codes [32]byte
	kernel.QuantizeNonLinear(codes[:], x, id)
	putHalves(b, &codes)
}

func encodeIQ4_XS(b []byte, x []float32) bool { return weighIQ4_XS(b, x, nil) }

func weighIQ4_XS(b []byte, x, importance []float32) bool {
	var g kernel.Groups
	g.Load(x, 32)
	if importance != nil {
		g.WeighImportance(importance, everywhere(sumSquares(x)*(2./256)))
	} else {
		g.WeighSquares()
	}
	var scales kernel.PerGroup
	g.NonLinear(&scales)
	d := -peak(scales[:8]) / 32
	finite := putHalf(b, d)
	id := inverse(d)
	clear(b[2:8])
	var high uint16
	for j := range 8 {
		l := max(-32, min(31, kernel.Near(float32(id*scales[j]))))
		putNearest(b[8+16*j:], x[32*j:][:32], inverse(float32(d*float32(l))))
		b[4+j/2] |= byte(l+32) & 15 << (j % 2 * 4)
		high |= uint16(l+32) >> 4 << (2 * j)
	}
	binary.LittleEndian.PutUint16(b[2:], high)
	return finite
}
