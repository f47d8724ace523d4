package quant

import "encoding/binary"

func encodeIQ3_XXS(b []byte, x []float32) bool { return weighIQ3_XXS(b, x, nil) }

func weighIQ3_XXS(b []byte, x, importance []float32) bool {
	clear(b)
	var scales [8]float32
	var extra [8]uint32
	high, ok := snap3xxs.superBlock(scales[:], x, importance, 2, weighSquares, func(i int, s *subBlock) {
		for k, p := range s.point {
			b[2+8*i+k] = byte(p >> 16)
		}
		extra[i] = packSigns(&s.signs)
	})
	if !ok || high == 0 {
		clear(b)
		return ok
	}
	d := high / 31
	id := 1 / d
	for i, scale := range scales {
		binary.LittleEndian.PutUint32(b[66+4*i:], extra[i]|uint32(scaleCode(id, scale, 15))<<28)
	}
	return putHalf(b, float32(d*1.0125))
}

func encodeIQ3_S(b []byte, x []float32) bool { return weighIQ3_S(b, x, nil) }

// weighIQ3_S follows the reference where it errs: sub-blocks of zeros are left out of the low bits of
// the indices and of the signs, so the sub-blocks after them decode to wrong values. The high bits of
// the indices and the scales are where they belong.
func weighIQ3_S(b []byte, x, importance []float32) bool {
	clear(b)
	var scales [8]float32
	stored := 0
	high, ok := snap3s.superBlock(scales[:], x, importance, 2, weighSquares, func(i int, s *subBlock) {
		for k, p := range s.point {
			b[2+8*stored+k] = byte(p >> 16)
			b[66+i] |= byte(p >> 24 << k)
		}
		copy(b[74+4*stored:78+4*stored], s.signs[:])
		stored++
	})
	if !ok || high == 0 {
		return ok
	}
	d := high / 31
	putScaleCodes(b[106:110], scales[:], 1/d)
	return putHalf(b, float32(d*1.033))
}
