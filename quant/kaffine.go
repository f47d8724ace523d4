package quant

import (
	"encoding/binary"

	"github.com/loratool/loratool/internal/kernel"
)

// The encoders of Q2_K, Q4_K and Q5_K: each group has a scale and a minimum, and these are small
// multiples of the super-block's own.

// An affineType says how one of the three types does it.
type affineType struct {
	size, top  int     // values in a group, largest code
	scaleTop   float32 // largest scale and minimum
	spread     float32 // with importance: multiple of the mean square
	plain      *kernel.Affine
	importance *kernel.Affine
}

var (
	affineQ2 = affineType{16, 3, 15, 1, kernel.NewAffine(3, -0.5, 0.1, 15, true), kernel.NewAffine(3, -0.9, 0.05, 36, false)}
	affineQ4 = affineType{32, 15, 63, 2, kernel.NewAffine(15, -1, 0.1, 20, false), kernel.NewAffine(15, -0.9, 0.05, 36, false)}
	affineQ5 = affineType{32, 31, 63, 2, kernel.NewAffine(31, -0.5, 0.1, 15, false), kernel.NewAffine(31, -0.9, 0.05, 36, false)}
)

// An affineBlock is a super-block on its way: groups with their codes, scales and minima.
type affineBlock struct {
	groups       kernel.Groups
	fit          kernel.AffineFit
	scales, mins [16]byte
	d, dmin      float32
	codes        [256]byte
}

// search fills the fit, and the integer scales and minima with their steps, d and dmin.
func (a *affineBlock) search(t *affineType, x, importance []float32) {
	g := &a.groups
	g.Load(x, t.size)
	n := g.Count()
	if importance != nil {
		g.WeighImportance(importance, everywhere(float32(t.spread*sumSquares(x))/256))
		g.Affine(t.importance, &a.fit)
		w := g.WeightSums()
		a.d = fitPositive(a.scales[:], a.fit.Scales[:n], w[:n], int(t.scaleTop))
		a.dmin = fitPositive(a.mins[:], a.fit.Depths[:n], w[:n], int(t.scaleTop))
		return
	}
	var offsets kernel.PerGroup
	if t.size == 32 {
		offsets = g.Squares()
		for j, s := range offsets {
			offsets[j] = root(s / 32)
		}
	}
	g.WeighMagnitudes(&offsets)
	g.Affine(t.plain, &a.fit)
	a.d = steps(a.scales[:n], a.fit.Scales[:], t.scaleTop)
	a.dmin = steps(a.mins[:n], a.fit.Depths[:], t.scaleTop)
}

// steps makes integers of scales, and returns their unit. They are not limited.
func steps(codes []byte, scales []float32, top float32) float32 {
	var most, inverse float32
	for _, s := range scales[:len(codes)] {
		if s > most {
			most = s
		}
	}
	if most > 0 {
		inverse = top / most
	}
	for j := range codes {
		codes[j] = byte(kernel.Near(float32(inverse * scales[j])))
	}
	return most / top
}

// quantize finds the codes that go with the rounded scales. A group whose scale became zero keeps the
// codes of the search.
func (a *affineBlock) quantize(t *affineType, x []float32, d, dmin float32) {
	var scales, mins kernel.PerGroup
	n := a.groups.Count()
	for j := range n {
		scales[j], mins[j] = float32(d*float32(a.scales[j])), float32(dmin*float32(a.mins[j]))
	}
	kernel.Quantize(&a.codes, x, t.size, &scales, &mins, 0, t.top)
	for j, s := range scales[:n] {
		if s == 0 {
			at := j * t.size
			a.fit.Codes(a.codes[at:], x[at:][:t.size], j)
		}
	}
}

func encodeQ2_K(b []byte, x []float32) bool { return weighQ2_K(b, x, nil) }

func weighQ2_K(b []byte, x, importance []float32) bool {
	var a affineBlock
	a.search(&affineQ2, x, importance)
	okD, okMin := putHalf(b[80:], a.d), putHalf(b[82:], a.dmin)
	for j := range 16 {
		b[j] = a.scales[j] | a.mins[j]<<4
		a.scales[j], a.mins[j] = b[j]&15, b[j]>>4
	}
	a.quantize(&affineQ2, x, half(b[80:]), half(b[82:]))
	packTwos(b[16:80], &a.codes)
	return okD && okMin
}

// packTwos puts four codes of two bits into a byte, in halves of 128, as Q2_K and Q3_K have them.
func packTwos(b []byte, codes *[256]byte) {
	for h := range 2 {
		c := codes[128*h:][:128]
		for i := 0; i < 32; i += 8 {
			word(b[32*h+i:], eight(c[i:])|eight(c[32+i:])<<2|eight(c[64+i:])<<4|eight(c[96+i:])<<6)
		}
	}
}

// eight and word move eight bytes at a time. Where codes leave the upper bits of each byte free, they
// can be shifted together.
func eight(b []byte) uint64   { return binary.LittleEndian.Uint64(b) }
func word(b []byte, u uint64) { binary.LittleEndian.PutUint64(b, u) }

func encodeQ4_K(b []byte, x []float32) bool { return weighQ4_K(b, x, nil) }

func weighQ4_K(b []byte, x, importance []float32) bool {
	var a affineBlock
	finite := a.sixBits(&affineQ4, b, x, importance)
	packFours(b[16:144], &a.codes)
	return finite
}

func encodeQ5_K(b []byte, x []float32) bool { return weighQ5_K(b, x, nil) }

func weighQ5_K(b []byte, x, importance []float32) bool {
	var a affineBlock
	finite := a.sixBits(&affineQ5, b, x, importance)
	for i := 0; i < 32; i += 8 {
		var high uint64
		for g := range 8 {
			high |= eight(a.codes[32*g+i:]) >> 4 & 0x0101010101010101 << g
		}
		word(b[16+i:], high)
	}
	for i := 0; i < 256; i += 8 {
		word(a.codes[i:], eight(a.codes[i:])&0x0f0f0f0f0f0f0f0f)
	}
	packFours(b[48:176], &a.codes)
	return finite
}

// packFours puts the nibbles of groups 2p and 2p+1 together.
func packFours(b []byte, codes *[256]byte) {
	for p := range 4 {
		c := codes[64*p:][:64]
		for i := 0; i < 32; i += 8 {
			word(b[32*p+i:], eight(c[i:])|eight(c[32+i:])<<4)
		}
	}
}

// sixBits does what Q4_K and Q5_K have in common, and stores the first 16 bytes.
func (a *affineBlock) sixBits(t *affineType, b []byte, x, importance []float32) bool {
	a.search(t, x, importance)
	okD, okMin := putHalf(b, a.d), putHalf(b[2:], a.dmin)
	s := b[4:16]
	for j := range 8 {
		scale, low := min(63, a.scales[j]), min(63, a.mins[j])
		if j < 4 {
			s[j], s[j+4] = scale, low
		} else {
			s[j+4] = scale&15 | low&15<<4
			s[j-4] |= scale >> 4 << 6
			s[j] |= low >> 4 << 6
		}
	}
	for j := range 8 {
		a.scales[j], a.mins[j] = sixBits(s, j)
	}
	a.quantize(t, x, half(b), half(b[2:]))
	return okD && okMin
}

// sumSquares is the sum of squares, in order.
func sumSquares(x []float32) (sum float32) {
	for _, v := range x {
		sum += float32(v * v)
	}
	return sum
}

// everywhere is the same number for each group.
func everywhere(f float32) *kernel.PerGroup {
	var p kernel.PerGroup
	for j := range p {
		p[j] = f
	}
	return &p
}
