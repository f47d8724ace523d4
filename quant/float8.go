package quant

import (
	"math"

	"github.com/loratool/loratool/internal/kernel"
)

// A float8 is an 8-bit floating-point format with the values of its codes.
//
// Encoding rounds to nearest even and does not saturate: what is larger than the largest finite value
// after rounding becomes an infinity in E5M2 and NaN in the types without infinities, so that an
// overflow cannot pass for a weight. This is what torch did when it got these types, and ml_dtypes
// does; torch 2.15 and ONNX's Cast saturate E4M3 instead.
type float8 struct {
	kernel.Float8
	values [256]float32
}

var (
	e4m3     = newFloat8(kernel.Float8{Mantissa: 3, Bias: 7, Max: 0x7e, Overflow: 0x7f, NaN: 0x7f})
	e5m2     = newFloat8(kernel.Float8{Mantissa: 2, Bias: 15, Max: 0x7b, Overflow: 0x7c, NaN: 0x7f})
	e4m3fnuz = newFloat8(kernel.Float8{Mantissa: 3, Bias: 8, Max: 0x7f, Overflow: 0x80, NaN: 0x80, FNUZ: true})
	e5m2fnuz = newFloat8(kernel.Float8{Mantissa: 2, Bias: 16, Max: 0x7f, Overflow: 0x80, NaN: 0x80, FNUZ: true})
)

func newFloat8(format kernel.Float8) *float8 {
	f := float8{Float8: format.Ready()}
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
	case f.FNUZ && c == 0x80:
		return math.Float32frombits(0x7fc00000)
	case code > f.Max && byte(code) == f.Overflow && f.Overflow != f.NaN:
		return math.Float32frombits(sign | 0x7f800000)
	case code > f.Max:
		return math.Float32frombits(sign | 0x7fc00000)
	}
	fraction, exponent := code&(1<<f.Mantissa-1), int(code>>f.Mantissa)
	if exponent == 0 {
		exponent = 1
	} else {
		fraction |= 1 << f.Mantissa
	}
	magnitude := math.Ldexp(float64(fraction), exponent-f.Bias-f.Mantissa)
	return math.Float32frombits(sign | math.Float32bits(float32(magnitude)))
}

func (f *float8) decode(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = f.values[src[i]]
	}
}

func (f *float8) encode(dst []byte, src []float32) error {
	f.Encode(dst, src)
	return nil
}
