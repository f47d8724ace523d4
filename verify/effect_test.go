package verify

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/loratool/loratool/tensor"
)

func TestEffect(t *testing.T) {
	tests := []struct {
		ratio float64
		dtype tensor.DType
		want  string
	}{
		{0, tensor.F32, "adapter.no_effect"},
		{1e-40, tensor.F32, "adapter.no_effect"},
		{1e-7, tensor.F32, ""},
		{1e-6, tensor.F16, "adapter.no_effect"},
		{1e-4, tensor.F16, ""},
		{1e-4, tensor.BF16, "adapter.no_effect"},
		{1e-3, tensor.BF16, ""},
		{0.07, tensor.BF16, ""},
		{1.8, tensor.F32, ""},
		{4.1, tensor.F32, "adapter.magnitude"},
		{1e30, tensor.F32, "adapter.magnitude"},
	}
	for _, tt := range tests {
		got := ""
		if f := effect(tt.ratio, tt.dtype); f != nil {
			got = f.Code
		}
		if got != tt.want {
			t.Errorf("ratio %g of %s: %q, expected %q", tt.ratio, tt.dtype, got, tt.want)
		}
	}
}

func TestNotFinite(t *testing.T) {
	bits := func(n int, x uint64) []byte { return binary.LittleEndian.AppendUint64(nil, x)[:n] }
	for _, tt := range []struct {
		t    tensor.DType
		p    []byte
		want bool
	}{
		{tensor.F32, bits(4, uint64(math.Float32bits(math.MaxFloat32))), false},
		{tensor.F32, bits(4, 0xff800000), true},
		{tensor.F32, append(bits(4, 0), bits(4, 0x7fc00001)...), true},
		{tensor.F64, bits(8, math.Float64bits(math.MaxFloat64)), false},
		{tensor.F64, bits(8, math.Float64bits(math.NaN())), true},
		{tensor.F16, bits(2, 0x7bff), false},
		{tensor.F16, bits(2, 0xfc00), true},
		{tensor.BF16, bits(2, 0x7f7f), false},
		{tensor.BF16, bits(2, 0x7f80), true},
		{tensor.I32, bits(4, 0xffffffff), false},
	} {
		var s sorts
		if s.add(tt.t, tt.p); (s.odd > 0) != tt.want {
			t.Errorf("%s %x: %+v, expected %v", tt.t, tt.p, s, tt.want)
		}
	}
	var s sorts
	for _, x := range []uint64{0, 0x8000, 1, 0x83ff, 0x0400, 0x3c00} { // zeros, subnormals, the smallest normal, 1
		s.add(tensor.F16, bits(2, x))
	}
	if s != (sorts{normal: 2, subnormal: 2}) {
		t.Errorf("%+v", s)
	}
}

func TestOutliers(t *testing.T) {
	fits := func(ratios ...float64) (out []Fit) {
		for i, x := range ratios {
			out = append(out, Fit{Module: fmt.Sprintf("layers.%d.q_proj", i), Tensor: "t", Ratio: x})
		}
		return out
	}
	spread := []float64{0.01, 0.012, 0.008, 0.011, 0.02, 0.015, 0.009, 0.03, 0.007}
	for _, c := range []struct {
		ratios []float64
		want   int
	}{
		{spread, 0}, {append(slices.Clone(spread), 5), 1}, {append(slices.Clone(spread), 0.15), 0}, {append(slices.Clone(spread), 1e-6), 0}, {[]float64{0.01, 0.01, 5}, 0},
		{append(slices.Repeat([]float64{0.01}, 9), 0.02), 0}, {append(slices.Repeat([]float64{0.01}, 9), 1), 1}, {nil, 0},
	} {
		got := outliers("a", fits(c.ratios...))
		if len(got) != c.want || c.want == 1 && (got[0].Code != "numeric.delta_outlier" || got[0].Module != fmt.Sprintf("layers.%d.q_proj", len(c.ratios)-1)) {
			t.Errorf("%v: %+v, expected %d", c.ratios, got, c.want)
		}
	}
}

// TestStep compares with math.Nextafter, in float32 and float64, and with the definition for small types.
func TestStep(t *testing.T) {
	for _, x := range []float64{1, 1.5, -3, 0.02, 1e-30, 1e30, 65504, 6e-8, 0, 1e-310, 1e-320} {
		f64, f32 := gridOf(tensor.F64), gridOf(tensor.F32)
		if got, inverse := f64.step(x); got != math.Nextafter(math.Abs(x), math.Inf(1))-math.Abs(x) || got >= 0x1p-1000 && got*inverse != 1 {
			t.Errorf("F64 around %g: %g, inverse %g", x, got, inverse)
		}
		v := math.Abs(float64(float32(x)))
		if got, inverse := f32.step(v); got != float64(math.Nextafter32(float32(v), float32(math.Inf(1))))-v || got*inverse != 1 {
			t.Errorf("F32 around %g: %g, inverse %g", v, got, inverse)
		}
	}
	for x, want := range map[float64]float64{1: 0x1p-10, 1.99: 0x1p-10, 2: 0x1p-9, 0x1p-14: 0x1p-24, 0x1p-20: 0x1p-24, 0: 0x1p-24, -4: 0x1p-8} {
		if got, _ := gridOf(tensor.F16).step(x); got != want {
			t.Errorf("F16 around %g: %g, expected %g", x, got, want)
		}
	}
}
