package quant

import "github.com/loratool/loratool/internal/kernel"

// The encoders of Q3_K and Q6_K: each group has a scale, a small multiple of the super-block's own,
// and codes around zero.

// A symmetricBlock is a super-block on its way.
type symmetricBlock struct {
	groups kernel.Groups
	fit    kernel.SymmetricFit
	codes  [256]byte
}

// quantize finds the codes, raised by levels, that go with the rounded scales. A group whose scale
// became zero keeps the codes of the search.
func (s *symmetricBlock) quantize(x []float32, scales *kernel.PerGroup, levels int) {
	kernel.Quantize(&s.codes, x, 16, scales, &kernel.PerGroup{}, -levels, levels-1)
	for j, d := range scales {
		if d == 0 {
			s.fit.Codes(s.codes[16*j:], x[16*j:][:16], j)
		}
	}
}

func encodeQ3_K(b []byte, x []float32) bool {
	var s symmetricBlock
	s.groups.Load(x, 16)
	s.groups.Descend(4, &s.fit)
	var codes [16]byte
	var d float32
	if top := peak(s.fit.Scales[:]); top != 0 {
		inverse := -32 / top
		for j, scale := range s.fit.Scales {
			codes[j] = byte(max(-32, min(31, kernel.Near(float32(inverse*scale)))) + 32)
		}
		d = 1 / inverse
	}
	return s.packQ3(b, x, &codes, d)
}

func weighQ3_K(b []byte, x, importance []float32) bool {
	var s symmetricBlock
	s.groups.Load(x, 16)
	s.groups.WeighImportance(importance, everywhere(2*sumSquares(x)/256))
	s.groups.Symmetric(4, &s.fit)
	w := s.groups.WeightSums()
	d, inverse := kernel.SymmetricScale(s.fit.Scales[:], w[:], 32)
	var codes [16]byte
	if inverse != 0 {
		for j, scale := range s.fit.Scales {
			codes[j] = byte(max(-32, min(31, kernel.Near(float32(inverse*scale)))) + 32)
		}
	}
	return s.packQ3(b, x, &codes, d)
}

// packQ3 stores a block whose scales are d·(scales-32).
func (s *symmetricBlock) packQ3(b []byte, x []float32, scales *[16]byte, d float32) bool {
	finite := putHalf(b[108:], d)
	packed := b[96:108]
	clear(packed)
	d = half(b[108:])
	var steps kernel.PerGroup
	for j, l := range scales {
		packed[j%8] |= l & 15 << (j / 8 * 4)
		packed[8+j%4] |= l >> 4 << (j / 4 * 2)
		steps[j] = d * float32(int(l)-32)
	}
	s.quantize(x, &steps, 4)
	// The upper bit of all codes comes first, then the two lower ones.
	for i := 0; i < 32; i += 8 {
		var high uint64
		for g := range 8 {
			high |= eight(s.codes[32*g+i:]) >> 2 & 0x0101010101010101 << g
		}
		word(b[i:], high)
	}
	for i := 0; i < 256; i += 8 {
		word(s.codes[i:], eight(s.codes[i:])&0x0303030303030303)
	}
	packTwos(b[32:96], &s.codes)
	return finite
}

func encodeQ6_K(b []byte, x []float32) bool { return weighQ6_K(b, x, nil) }

func weighQ6_K(b []byte, x, importance []float32) bool {
	var s symmetricBlock
	s.groups.Load(x, 16)
	if importance != nil {
		s.groups.WeighPlain(importance)
	} else {
		s.groups.WeighSquares()
	}
	s.groups.Symmetric(32, &s.fit)
	top := peak(s.fit.Scales[:])
	if abs(top) < 1e-15 {
		clear(b)
		return true
	}
	inverse := -128 / top
	finite := putHalf(b[208:], 1/inverse)
	d := half(b[208:])
	var steps kernel.PerGroup
	for j, scale := range s.fit.Scales {
		l := int8(min(127, kernel.Near(float32(inverse*scale))))
		b[192+j] = byte(l)
		steps[j] = d * float32(l)
	}
	s.quantize(x, &steps, 32)
	const low, two = 0x0f0f0f0f0f0f0f0f, 0x0303030303030303
	for h := range 2 {
		c := s.codes[128*h:][:128]
		for i := 0; i < 32; i += 8 {
			c0, c1, c2, c3 := eight(c[i:]), eight(c[32+i:]), eight(c[64+i:]), eight(c[96+i:])
			word(b[64*h+i:], c0&low|c2&low<<4)
			word(b[64*h+32+i:], c1&low|c3&low<<4)
			word(b[128+32*h+i:], c0>>4&two|c1>>4&two<<2|c2>>4&two<<4|c3>>4&two<<6)
		}
	}
	return finite
}

// peak is the value of largest magnitude; the first one wins.
func peak(x []float32) float32 {
	_, top := largest(x)
	return top
}
