package quant

// Types of one and two bits: signs (Q1_0), three or four levels (Q2_0, TQ1_0, TQ2_0), one scale.

func decodeQ1_0(y []float32, b []byte) {
	d := half(b)
	for i := range y {
		y[i] = -d
		if b[2+i/8]>>(i%8)&1 == 1 {
			y[i] = d
		}
	}
}

func encodeQ1_0(b []byte, x []float32) bool {
	var sum float32
	clear(b)
	for i, v := range x {
		sum += abs(v)
		if v >= 0 {
			b[2+i/8] |= 1 << (i % 8)
		}
	}
	return putHalf(b, sum/float32(len(x)))
}

func decodeQ2_0(y []float32, b []byte) {
	d := half(b)
	for i := range y {
		y[i] = float32(int(b[2+i/4]>>(i%4*2)&3)-1) * d
	}
}

func encodeQ2_0(b []byte, x []float32) bool {
	d := magnitude(x)
	id := inverse(d)
	clear(b)
	if !isFinite(id) {
		return putHalf(b, d)
	}
	for i, v := range x {
		b[2+i/4] |= digit(v, id) << (i % 4 * 2)
	}
	return putHalf(b, d)
}

// digit is 0, 1 or 2 for values near -d, 0 and d, given 1/d.
func digit(v, id float32) byte { return byte(roundAway(float32(v*id)) + 1) }

func decodeTQ1_0(y []float32, b []byte) {
	d := half(b[52:])
	for i := range y {
		at, n := digitPlace(i)
		q := b[at] * powersOf3[n]
		y[i] = float32(int(uint16(q)*3>>8)-1) * d
	}
}

var powersOf3 = [...]byte{1, 3, 9, 27, 81}

// digitPlace says which byte of a TQ1_0 block holds element i, and as which digit: 32 and then 16
// bytes of five digits, and four bytes of four.
func digitPlace(i int) (at, n int) {
	switch {
	case i < 160:
		return i % 32, i / 32
	case i < 240:
		return 32 + (i-160)%16, (i - 160) / 16
	}
	return 48 + (i-240)%4, (i - 240) / 4
}

func encodeTQ1_0(b []byte, x []float32) bool {
	d := magnitude(x)
	id := finiteInverse(d)
	var numbers [52]int
	for i, v := range x {
		at, _ := digitPlace(i)
		numbers[at] = numbers[at]*3 + int(digit(v, id))
	}
	for at, n := range numbers {
		if at >= 48 {
			n *= 3 // the fifth digit is not used
		}
		b[at] = byte((n*256 + 242) / 243) // a fraction of 3^5, rounded up
	}
	return putHalf(b[52:], d)
}

func decodeTQ2_0(y []float32, b []byte) {
	d := half(b[64:])
	for i := range y {
		y[i] = float32(int(b[i/128*32+i%32]>>(i%128/32*2)&3)-1) * d
	}
}

func encodeTQ2_0(b []byte, x []float32) bool {
	d := magnitude(x)
	id := finiteInverse(d)
	clear(b)
	for i, v := range x {
		b[i/128*32+i%32] |= digit(v, id) << (i % 128 / 32 * 2)
	}
	return putHalf(b[64:], d)
}
