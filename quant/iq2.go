package quant

import "encoding/binary"

// A scale of a sub-block is stored as a number of four bits in units of the largest one, divided by 31.

func weighIQ2_XXS(b []byte, x, importance []float32) bool {
	clear(b)
	var scales [8]float32
	var indices, extra [8]uint32
	high, ok := snap2xxs.superBlock(scales[:], x, importance, 1, nil, func(i int, s *subBlock) {
		for k := range 4 {
			indices[i] |= s.point[k] >> 16 << (8 * k)
		}
		extra[i] = packSigns(&s.signs)
	})
	if !ok || high == 0 {
		return ok
	}
	d := high / 31
	id := 1 / d
	for i, scale := range scales {
		binary.LittleEndian.PutUint32(b[2+8*i:], indices[i])
		binary.LittleEndian.PutUint32(b[6+8*i:], extra[i]|uint32(scaleCode(id, scale, 15))<<28)
	}
	return putHalf(b, d)
}

// packSigns packs seven signs of each eight.
func packSigns(signs *[4]byte) (packed uint32) {
	for k, s := range signs {
		packed |= uint32(s&127) << (7 * k)
	}
	return packed
}

func weighIQ2_XS(b []byte, x, importance []float32) bool {
	clear(b)
	var scales [16]float32
	high, ok := snap2xs.superBlock(scales[:], x, importance, 1, nil, func(i int, s *subBlock) {
		for k := range 2 {
			binary.LittleEndian.PutUint16(b[2+4*i+2*k:], uint16(s.point[k]>>16)|uint16(s.signs[k]&127)<<9)
		}
	})
	if !ok || high == 0 {
		clear(b)
		return ok
	}
	d := high / 31
	putScaleCodes(b[66:74], scales[:], 1/d)
	return putHalf(b, d)
}

func encodeIQ2_S(b []byte, x []float32) bool { return weighIQ2_S(b, x, nil) }

func weighIQ2_S(b []byte, x, importance []float32) bool {
	clear(b)
	var scales [16]float32
	plain := func(w, x []float32, variance float32) {
		for i, v := range x {
			w[i] = float32(0.25*variance) + float32(v*v)
		}
	}
	high, ok := snap2s.superBlock(scales[:], x, importance, 2, plain, func(i int, s *subBlock) {
		for k := range 2 {
			at, index := 2*i+k, s.point[k]>>16
			b[2+at] = byte(index)
			b[34+at] = s.signs[k]
			b[66+at/4] |= byte(index >> 8 << (at % 4 * 2))
		}
	})
	if !ok || high == 0 {
		return ok
	}
	d := high / 31
	putScaleCodes(b[74:82], scales[:], 1/d)
	return putHalf(b, float32(d*0.9875))
}

// putScaleCodes stores two scales a byte, the first one in the low half.
func putScaleCodes(b []byte, scales []float32, id float32) {
	for i := range b {
		b[i] = scaleCode(id, scales[2*i], 15) | scaleCode(id, scales[2*i+1], 15)<<4
	}
}
