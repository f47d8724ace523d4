package onnxquant

import (
	"math"

	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// A coding is how one code is stored: bits from the lowest of a byte on, several codes a byte where they
// fit, or two bytes little-endian.
type coding struct {
	bits   int64
	signed bool
	values []float32 // of codes that are no integers; nil otherwise

	highFirst bool // the first of two codes lies in the high half of a byte
}

var nibbles = []float32{0, 0.5, 1, 1.5, 2, 3, 4, 6, float32(math.Copysign(0, -1)), -0.5, -1, -1.5, -2, -3, -4, -6} // E2M1

// codingOf is the coding of an ONNX element type, false for types that weights are not quantized to.
func codingOf(d tensor.DType) (coding, bool) {
	switch d {
	case tensor.U2, tensor.I2:
		return coding{bits: 2, signed: d == tensor.I2}, true
	case tensor.U4, tensor.I4:
		return coding{bits: 4, signed: d == tensor.I4}, true
	case tensor.U8, tensor.I8:
		return coding{bits: 8, signed: d == tensor.I8}, true
	case tensor.U16, tensor.I16:
		return coding{bits: 16, signed: d == tensor.I16}, true
	case tensor.F4:
		return coding{bits: 4, values: nibbles}, true
	case tensor.F8E4M3, tensor.F8E5M2, tensor.F8E4M3FNUZ, tensor.F8E5M2FNUZ:
		codec, _ := quant.Of(d)
		c, v := make([]byte, 256), make([]float32, 256)
		for i := range c {
			c[i] = byte(i)
		}
		codec.Decode(v, c)
		return coding{bits: 8, values: v}, true
	}
	return coding{}, false
}

// code is code i of b, without its sign.
func (c *coding) code(b []byte, i int64) uint32 {
	switch c.bits {
	case 8:
		return uint32(b[i])
	case 16:
		return uint32(b[2*i]) | uint32(b[2*i+1])<<8
	}
	if c.highFirst {
		i ^= 1
	}
	at := i * c.bits
	return uint32(b[at/8]) >> (at % 8) & (1<<c.bits - 1)
}

// value is what code i of b stands for.
func (c *coding) value(b []byte, i int64) float32 {
	q := c.code(b, i)
	switch {
	case c.values != nil:
		return c.values[q]
	case c.signed:
		shift := 32 - c.bits
		return float32(int32(q<<shift) >> shift)
	}
	return float32(q)
}

// put stores code i in b, whose bits there are 0.
func (c *coding) put(b []byte, i int64, q int32) {
	switch c.bits {
	case 8:
		b[i] = byte(q)
		return
	case 16:
		b[2*i], b[2*i+1] = byte(q), byte(q>>8)
		return
	}
	at := i * c.bits
	b[at/8] |= byte(uint32(q)&(1<<c.bits-1)) << (at % 8)
}

// set stores code i in b, in place of what is there.
func (c *coding) set(b []byte, i int64, q uint32) {
	switch c.bits {
	case 8:
		b[i] = byte(q)
		return
	case 16:
		b[2*i], b[2*i+1] = byte(q), byte(q>>8)
		return
	}
	if c.highFirst {
		i ^= 1
	}
	at := i * c.bits
	mask := byte(1<<c.bits-1) << (at % 8)
	b[at/8] = b[at/8]&^mask | byte(q<<(at%8))&mask
}

// limits are the least and the largest integer.
func (c *coding) limits() (lo, hi int32) {
	if c.signed {
		return -1 << (c.bits - 1), 1<<(c.bits-1) - 1
	}
	return 0, 1<<c.bits - 1
}

// power is the value of a code of F8_E8M0.
func power(c byte) float32 {
	if c == 0xff {
		return float32(math.NaN())
	}
	return float32(math.Ldexp(1, int(c)-127))
}
