package comparison

import (
	"bytes"
	"math"
	"slices"
	"testing"

	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// ram is a model in memory.
type ram []tensor.Tensor

func (ram) Path() string                { return "b" }
func (ram) Format() string              { return "safetensors" }
func (r ram) Tensors() []tensor.Tensor  { return r }
func (ram) Findings() []finding.Finding { return nil }
func (ram) Close() error                { return nil }

func floats(t *testing.T, name string, d tensor.DType, v ...float32) tensor.Tensor {
	t.Helper()
	size, _ := d.Bytes(int64(len(v)))
	b := make([]byte, size)
	c, _ := quant.Of(d)
	if err := c.Encode(b, v); err != nil {
		t.Fatal(err)
	}
	return raw(name, d, b, int64(len(v)))
}

func raw(name string, d tensor.DType, b []byte, shape ...int64) tensor.Tensor {
	return tensor.Tensor{Spec: tensor.Spec{Name: name, DType: d, Shape: shape}, Src: bytes.NewReader(b), Size: int64(len(b))}
}

// TestStates has every way in which tensors can relate, and what is measured of their values.
func TestStates(t *testing.T) {
	nan := float32(math.NaN())
	a := ram{
		floats(t, "equal", tensor.F32, 1, 2, nan), floats(t, "gone", tensor.F32, 1), floats(t, "shape", tensor.F32, 1, 2),
		floats(t, "rounded", tensor.F32, 1, 1+0x1p-20), floats(t, "values", tensor.F32, 3, 4, 0, 0), floats(t, "close", tensor.F32, 1, 1),
		floats(t, "zeros", tensor.F32, 0, 1), raw("ids", tensor.I64, make([]byte, 16), 2), floats(t, "nan", tensor.F32, 1, 2),
		raw("bits", tensor.U8, []byte{1}, 1), floats(t, "other type", tensor.F32, 1, 2),
	}
	b := ram{
		floats(t, "more", tensor.F16, 1), floats(t, "equal", tensor.F32, 1, 2, nan), floats(t, "shape", tensor.F32, 1, 2, 3),
		floats(t, "rounded", tensor.BF16, 1, 1), floats(t, "values", tensor.F32, 3, 4, 0, -0.5), floats(t, "close", tensor.F32, 1, 1.001),
		floats(t, "zeros", tensor.F32, float32(math.Copysign(0, -1)), 1), raw("ids", tensor.I64, append(make([]byte, 15), 1), 2),
		floats(t, "nan", tensor.F32, 1, nan), raw("bits", tensor.I8, []byte{1}, 1), floats(t, "other type", tensor.F16, 1, 3),
	}
	got, findings, err := Of(t.Context(), a, b, Options{Tolerance: 0.01, Jobs: 2})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]State{
		"equal": Equal, "gone": Missing, "shape": Shape, "rounded": Type, "values": Values, "close": Close, "zeros": Bytes, "ids": Bytes,
		"nan": Values, "bits": Type, "other type": Values, "more": Extra,
	}
	for _, x := range got {
		if x.State != want[x.Name] {
			t.Errorf("%s is %s, want %s", x.Name, x.State, want[x.Name])
		}
		switch x.Name {
		case "values":
			if x.MaxError != 0.5 || x.RelError != 0.1 || x.Changed != 0.25 {
				t.Errorf("%+v", x)
			}
		case "nan":
			if x.NonFinite != 1 || x.MaxError != 0 || x.Changed != 0.5 {
				t.Errorf("%+v", x)
			}
		}
	}
	if len(got) != len(want) || len(findings) != len(want)-2 || findings[0].Code != "diff.missing" || findings[0].Tensor != "gone" {
		t.Errorf("%d tensors, findings %v", len(got), findings)
	}
	if _, findings, _ = Of(t.Context(), a, a, Options{}); len(findings) != 0 {
		t.Errorf("a model differs from itself: %v", findings)
	}
}

// TestRetention measures PEFT's own merge: all of the adapter; and the base: none of it.
func TestRetention(t *testing.T) {
	const tiny = "../../testdata/tiny-llama/"
	base, err := formats.Open(tiny + "base")
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	merged, err := formats.Open(tiny + "merged")
	if err != nil {
		t.Fatal(err)
	}
	defer merged.Close()
	a, err := dialect.Open(tiny+"adapter", dialect.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	w := base.(formats.Writable)
	plan, err := merge.NewPlan(w, []merge.Input{{Adapter: a, Scale: 1}}, merge.Options{Resolve: merge.Resolvers(w)})
	if err != nil {
		t.Fatal(err)
	}
	for want, b := range map[float64]formats.Model{1: merged, 0: base} {
		got, _, err := Of(t.Context(), base, b, Options{Plan: plan})
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, x := range got {
			if x.Retention == nil {
				continue
			}
			if n++; math.Abs(*x.Retention-want) > 0.002 {
				t.Errorf("%s keeps %g, want %g", x.Name, *x.Retention, want)
			}
		}
		if n != 14 || !slices.ContainsFunc(got, func(x Tensor) bool { return x.State == Equal }) {
			t.Errorf("%d updated tensors", n)
		}
	}
}
