package kernel

import "math"

// A Float8 is an 8-bit floating-point format: a sign, an exponent, and a significand of Mantissa bits.
type Float8 struct {
	Mantissa int
	Bias     int
	Max      uint32 // code of the largest finite value
	Overflow byte   // code of what is larger, without sign
	NaN      byte   // code of NaN, without sign
	FNUZ     bool   // no infinities, no negative zero: its code is the only NaN

	rounding float8Rounding
	lanes    [10][8]uint32 // the constants of the assembly, in its order
}

// float8Rounding is what rounding to a format needs.
type float8Rounding struct {
	drop   uint32  // bits of the significand that go
	add    uint32  // half of the last place less one, and the exponent moved to the format's bias
	normal uint32  // the smallest normal value
	step   float32 // adding it rounds to its last place, which is worth the smallest subnormal
}

// Ready returns the format with what follows from its fields.
func (f Float8) Ready() Float8 {
	drop := uint32(23 - f.Mantissa)
	f.rounding = float8Rounding{
		drop: drop, add: 1<<(drop-1) - 1 - uint32(127-f.Bias)<<23, normal: uint32(128-f.Bias) << 23,
		step: math.Float32frombits((uint32(128-f.Bias) + drop) << 23),
	}
	keepsZero := uint32(0x80)
	if f.FNUZ {
		keepsZero = 0
	}
	for i, x := range []uint32{
		0x7fffffff, 0x7f800000, drop, f.rounding.add, f.rounding.normal, math.Float32bits(f.rounding.step),
		f.Max, uint32(f.Overflow), uint32(f.NaN), keepsZero,
	} {
		for lane := range f.lanes[i] {
			f.lanes[i][lane] = x
		}
	}
	return f
}

// Encode rounds float32 to nearest even without saturating. dst holds len(src) bytes.
func (f *Float8) Encode(dst []byte, src []float32) {
	mustFit(len(dst), len(src), 1)
	encodeFloat8(f, dst, src)
}

// encodeFloat8Go is the specification of the assembly.
func encodeFloat8Go(f *Float8, dst []byte, src []float32) {
	r := f.rounding
	for i, v := range src {
		u := math.Float32bits(v)
		sign, a := byte(u>>24)&0x80, u&0x7fffffff
		var code uint32
		switch {
		case a > 0x7f800000:
			dst[i] = sign | f.NaN
			continue
		case a < r.normal:
			code = math.Float32bits(math.Float32frombits(a)+r.step) - math.Float32bits(r.step)
		default:
			code = (a + r.add + a>>r.drop&1) >> r.drop
		}
		switch {
		case code > f.Max:
			dst[i] = sign | f.Overflow
		case code == 0 && f.FNUZ:
			dst[i] = 0
		default:
			dst[i] = sign | byte(code)
		}
	}
}
