package quant

import (
	"math"
)

// A float8 is an 8-bit floating-point format: a sign, an exponent, and a significand of mantissa bits.
//
// Encoding rounds to nearest even and does not saturate: what is larger than the largest finite value
// after rounding becomes an infinity in E5M2 and NaN in the types without infinities, so that an
// overflow cannot pass for a weight. This is what torch did when it got these types, and ml_dtypes
// does; torch 2.15 and ONNX's Cast saturate E4M3 instead.
type float8 struct {
	mantissa int
	bias     int
	max      uint32 // code of the largest finite value
	overflow byte   // code of what is larger, without sign
	nan      byte   // code of NaN, without sign
	fnuz     bool   // no infinities, no negative zero: its code is the only NaN

	values [256]float32
}

var (
	e4m3     = newFloat8(float8{mantissa: 3, bias: 7, max: 0x7e, overflow: 0x7f, nan: 0x7f})
	e5m2     = newFloat8(float8{mantissa: 2, bias: 15, max: 0x7b, overflow: 0x7c, nan: 0x7f})
	e4m3fnuz = newFloat8(float8{mantissa: 3, bias: 8, max: 0x7f, overflow: 0x80, nan: 0x80, fnuz: true})
	e5m2fnuz = newFloat8(float8{mantissa: 2, bias: 16, max: 0x7f, overflow: 0x80, nan: 0x80, fnuz: true})
)

func newFloat8(f float8) *float8 {
	for c := range f.values {
		f.values[c] = f.value(byte(c))
	}
	return &f
}

// value decodes one code. NaN keeps its sign and is quiet.
func (f *float8) value(c byte) float32 {
	sign := uint32(c&0x80) << 24
	code := uint32(c & 0x7f)
	switch {
	case f.fnuz && c == 0x80:
		return math.Float32frombits(0x7fc00000)
	case code > f.max && byte(code) == f.overflow && f.overflow != f.nan:
		return math.Float32frombits(sign | 0x7f800000)
	case code > f.max:
		return math.Float32frombits(sign | 0x7fc00000)
	}
	fraction, exponent := code&(1<<f.mantissa-1), int(code>>f.mantissa)
	if exponent == 0 {
		exponent = 1
	} else {
		fraction |= 1 << f.mantissa
	}
	magnitude := math.Ldexp(float64(fraction), exponent-f.bias-f.mantissa)
	return math.Float32frombits(sign | math.Float32bits(float32(magnitude)))
}

func (f *float8) decode(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = f.values[src[i]]
	}
}

func (f *float8) encode(dst []byte, src []float32) error {
	var (
		drop   = 23 - f.mantissa
		rebias = uint32(127-f.bias) << 23
		normal = uint32(128-f.bias) << 23 // the smallest normal value
		// Adding a power of two whose last place is worth the smallest subnormal rounds to it.
		step = math.Float32frombits(uint32(128-f.bias+drop) << 23)
	)
	for i, v := range src {
		u := math.Float32bits(v)
		sign, a := byte(u>>24)&0x80, u&0x7fffffff
		var code uint32
		switch {
		case a > 0x7f800000:
			dst[i] = sign | f.nan
			continue
		case a < normal:
			code = math.Float32bits(math.Float32frombits(a)+step) - math.Float32bits(step)
		default:
			code = (a - rebias + 1<<(drop-1) - 1 + a>>drop&1) >> drop
		}
		switch {
		case code > f.max:
			dst[i] = sign | f.overflow
		case code == 0 && f.fnuz:
			dst[i] = 0
		default:
			dst[i] = sign | byte(code)
		}
	}
	return nil
}
