package quant

import (
	"encoding/binary"
	"math"
)

// The oldest types: blocks of 32 with one scale, and in the _1 types a minimum. Codes of four bits lie
// in split halves: element i in the low nibble of byte i, element 16+i in its high nibble.

func decodeQ4_0(y []float32, b []byte) {
	d := half(b)
	for i, q := range b[2:18] {
		y[i] = float32(int(q&15)-8) * d
		y[i+16] = float32(int(q>>4)-8) * d
	}
}

func encodeQ4_0(b []byte, x []float32) bool {
	_, top := largest(x)
	d := top / -8
	id := inverse(d)
	code := func(v float32) byte { return byte(min(15, truncate(float32(v*id)+8.5))) }
	for i := range 16 {
		b[2+i] = code(x[i]) | code(x[i+16])<<4
	}
	return putHalf(b, d)
}

func decodeQ4_1(y []float32, b []byte) {
	d, m := half(b), half(b[2:])
	for i, q := range b[4:20] {
		y[i] = float32(float32(q&15)*d) + m
		y[i+16] = float32(float32(q>>4)*d) + m
	}
}

func encodeQ4_1(b []byte, x []float32) bool {
	low, high := limits(x)
	d := (high - low) / 15
	id := inverse(d)
	code := func(v float32) byte { return byte(min(15, truncate(float32((v-low)*id)+0.5))) }
	for i := range 16 {
		b[4+i] = code(x[i]) | code(x[i+16])<<4
	}
	okD, okMin := putHalf(b, d), putHalf(b[2:], low)
	return okD && okMin
}

func decodeQ5_0(y []float32, b []byte) {
	d, qh := half(b), binary.LittleEndian.Uint32(b[2:])
	for i, q := range b[6:22] {
		y[i] = float32(int(q&15)+int(qh>>i&1)<<4-16) * d
		y[i+16] = float32(int(q>>4)+int(qh>>(i+16)&1)<<4-16) * d
	}
}

func encodeQ5_0(b []byte, x []float32) bool {
	_, top := largest(x)
	d := top / -16
	id := inverse(d)
	putFives(b[2:], x, func(v float32) byte { return byte(min(31, truncate(float32(v*id)+16.5))) })
	return putHalf(b, d)
}

func decodeQ5_1(y []float32, b []byte) {
	d, m, qh := half(b), half(b[2:]), binary.LittleEndian.Uint32(b[4:])
	for i, q := range b[8:24] {
		y[i] = float32(float32(uint32(q&15)|qh>>i&1<<4)*d) + m
		y[i+16] = float32(float32(uint32(q>>4)|qh>>(i+16)&1<<4)*d) + m
	}
}

func encodeQ5_1(b []byte, x []float32) bool {
	low, high := limits(x)
	d := (high - low) / 31
	id := inverse(d)
	putFives(b[4:], x, func(v float32) byte { return byte(truncate(float32((v-low)*id) + 0.5)) })
	okD, okMin := putHalf(b, d), putHalf(b[2:], low)
	return okD && okMin
}

// putFives stores 32 codes of five bits: the fifth bits as one word, then the nibbles.
func putFives(b []byte, x []float32, code func(float32) byte) {
	var qh uint32
	for i := range 16 {
		lo, hi := code(x[i]), code(x[i+16])
		b[4+i] = lo&15 | hi<<4
		qh |= uint32(lo>>4&1)<<i | uint32(hi>>4&1)<<(i+16)
	}
	binary.LittleEndian.PutUint32(b, qh)
}

func decodeQ8_0(y []float32, b []byte) {
	d := half(b)
	for i, q := range b[2:34] {
		y[i] = float32(int8(q)) * d
	}
}

func encodeQ8_0(b []byte, x []float32) bool {
	d := magnitude(x) / 127
	id := finiteInverse(d)
	for i, v := range x {
		b[2+i] = byte(roundAway(float32(v * id)))
	}
	return putHalf(b, d)
}

// decodeQ8_1 decodes what ggml keeps activations in. Between scale and codes lies the sum of the values.
func decodeQ8_1(y []float32, b []byte) {
	d := half(b)
	for i, q := range b[4:36] {
		y[i] = float32(int8(q)) * d
	}
}

// limits returns the smallest and the largest value.
func limits(x []float32) (low, high float32) {
	low, high = math.MaxFloat32, -math.MaxFloat32
	for _, v := range x {
		if v < low {
			low = v
		}
		if v > high {
			high = v
		}
	}
	return low, high
}
