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

// load takes the values and gives them weights. importance may be nil.
func (a *affineBlock) load(t *affineType, x, importance []float32) {
	g := &a.groups
	g.Load(x, t.size)
	if importance != nil {
		g.WeighImportance(importance, everywhere(float32(t.spread*sumSquares(x))/256))
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
}

// search finds the fits of two super-blocks, which may be the same one.
func (t *affineType) search(a, b *affineBlock, weighed bool) {
	s := t.plain
	if weighed {
		s = t.importance
	}
	kernel.AffinePair(s, &a.groups, &b.groups, &a.fit, &b.fit)
}

// round makes integers of the scales and minima, with their units d and dmin.
func (a *affineBlock) round(t *affineType, weighed bool) {
	n := a.groups.Count()
	if weighed {
		w := a.groups.WeightSums()
		a.d = fitPositive(a.scales[:], a.fit.Scales[:n], w[:n], int(t.scaleTop))
		a.dmin = fitPositive(a.mins[:], a.fit.Depths[:n], w[:n], int(t.scaleTop))
		return
	}
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
	a.load(&affineQ2, x, importance)
	affineQ2.search(&a, &a, importance != nil)
	a.round(&affineQ2, importance != nil)
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

func encodeQ4_K(b []byte, x, importance []float32) bool { return affineQ4.encodePair(b, x, importance) }

func encodeQ5_K(b []byte, x, importance []float32) bool { return affineQ5.encodePair(b, x, importance) }

// packFives stores the fifth bits of all groups, then the nibbles.
func packFives(b []byte, codes *[256]byte) {
	for i := 0; i < 32; i += 8 {
		var high uint64
		for g := range 8 {
			high |= eight(codes[32*g+i:]) >> 4 & 0x0101010101010101 << g
		}
		word(b[i:], high)
	}
	for i := 0; i < 256; i += 8 {
		word(codes[i:], eight(codes[i:])&0x0f0f0f0f0f0f0f0f)
	}
	packFours(b[32:], codes)
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

// encodePair encodes one or two blocks of Q4_K or Q5_K.
func (t *affineType) encodePair(b []byte, x, importance []float32) bool {
	var pair [2]affineBlock
	n := len(x) / 256
	size := len(b) / n
	for i := range n {
		var w []float32
		if importance != nil {
			w = importance[256*i:][:256]
		}
		pair[i].load(t, x[256*i:][:256], w)
	}
	t.search(&pair[0], &pair[n-1], importance != nil)
	finite := true
	for i := range n {
		a, b := &pair[i], b[size*i:][:size]
		a.round(t, importance != nil)
		finite = a.putScales(t, b, x[256*i:][:256]) && finite
		if t == &affineQ5 {
			packFives(b[16:], &a.codes)
		} else {
			packFours(b[16:], &a.codes)
		}
	}
	return finite
}

// putScales stores the first 16 bytes of Q4_K and Q5_K, and finds the codes.
func (a *affineBlock) putScales(t *affineType, b []byte, x []float32) bool {
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
