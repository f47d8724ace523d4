package quant

import "math"

// Types whose four-bit codes are looked up in a table of 16 values: MXFP4 and NVFP4; IQ4 has its own file.

// twiceE2M1 are the values of a four-bit float (E2M1), times two. Code 8 is plain zero.
var twiceE2M1 = [16]float32{0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}

// lookUp decodes codes in split halves: the low nibbles come first, the high ones len(q) later.
func lookUp(y []float32, q []byte, scale float32, table *[16]float32) {
	for i, c := range q {
		y[i] = table[c&15] * scale
		y[i+len(q)] = table[c>>4] * scale
	}
}

func decodeMXFP4(y []float32, b []byte) { lookUp(y, b[1:17], halfPower(b[0]), &twiceE2M1) }

// halfPower is 2^(e-128), which is half of what the exponent byte of MXFP4 stands for.
func halfPower(e byte) float32 {
	if e < 2 {
		return math.Float32frombits(0x00200000 << e)
	}
	return math.Float32frombits(uint32(e-1) << 23)
}

func encodeMXFP4(b []byte, x []float32) bool {
	amax := magnitude(x)
	b[0] = 0
	if amax > 0 {
		// The logarithm is rounded to float32 first, so values just below a power of two count as it.
		b[0] = byte(int32(math.Floor(float64(float32(math.Log2(float64(amax)))))) - 2 + 127)
	}
	putFours(b[1:], x, halfPower(b[0]), amax)
	return true
}

func decodeNVFP4(y []float32, b []byte) {
	for s := range 4 {
		lookUp(y[16*s:], b[4+8*s:][:8], 0.5*ue4m3(b[s]), &twiceE2M1)
	}
}

func encodeNVFP4(b []byte, x []float32) bool {
	for s := range 4 {
		sub := x[16*s:][:16]
		amax := magnitude(sub)
		b[s] = toUE4M3(amax / 6)
		putFours(b[4+8*s:][:8], sub, 0.5*ue4m3(b[s]), amax)
	}
	return true
}

// putFours stores the codes of the nearest values, in split halves. The first of equals wins.
func putFours(b []byte, x []float32, scale, amax float32) {
	slow := scale < 0x1p-100 || amax > 0x1p10*scale
	var levels [8]float32
	for i := range levels {
		levels[i] = float32(twiceE2M1[i] * scale)
	}
	for i := range len(x) / 2 {
		low, high := x[i], x[i+len(x)/2]
		if slow {
			b[i] = nearestE2M1Slow(low, &levels) | nearestE2M1Slow(high, &levels)<<4
		} else {
			b[i] = nearestE2M1(low, &levels) | nearestE2M1(high, &levels)<<4
		}
	}
}

// nearestE2M1 finds the two levels around the magnitude of v. It needs levels that differ, and
// distances to them that do.
func nearestE2M1(v float32, levels *[8]float32) byte {
	m := math.Float32bits(v) &^ (1 << 31)
	var i uint32
	for _, l := range levels[1:] {
		i += (math.Float32bits(l) - 1 - m) >> 31 // 1 where the magnitude reaches the level
	}
	if size := math.Float32frombits(m); i < 7 && levels[i+1]-size < size-levels[i] {
		i++
	}
	if v < 0 && i > 0 {
		i += 8
	}
	return byte(i)
}

// nearestE2M1Slow compares all 16 distances, as the reference does: what matters where so many are
// equal that the order decides.
func nearestE2M1Slow(v float32, levels *[8]float32) byte {
	best, distance := 0, abs(v)
	for i := range 16 {
		l := levels[i&7]
		if i > 8 {
			l = -l
		}
		if e := abs(l - v); e < distance {
			best, distance = i, e
		}
	}
	return byte(best)
}

// ue4m3 is the value of the unsigned scale of NVFP4.
func ue4m3(c byte) float32 {
	if c == 0x7f {
		return 0
	}
	return e4m3.values[c&0x7f]
}

// toUE4M3 rounds a scale to NVFP4's, a half upwards. As in the reference, everything that rounds to 256
// or more becomes the largest scale, 448.
func toUE4M3(f float32) byte {
	u := math.Float32bits(f)
	exponent, fraction := int(u>>23)-127+7, u>>20&7
	switch {
	case !(f > 0):
		return 0
	case exponent <= 0:
		return byte(min(7, int(float32(f*512)+0.5)))
	case exponent >= 15:
		return 0x7e
	}
	fraction += u >> 19 & 1
	if fraction == 8 {
		fraction, exponent = 0, exponent+1
		if exponent >= 15 {
			return 0x7e
		}
	}
	return byte(exponent)<<3 | byte(fraction)
}
