package merge_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/onnxruntime"
	"github.com/loratool/loratool/tensor"
)

// tinyAdapters are PEFT 0.18's adapters on the tiny llama, and where PEFT's own merge of each lies.
var tinyAdapters = []struct{ adapter, golden string }{
	{"adapter", "merged/model.safetensors"},
	{"adapters/rslora", "adapters/rslora/merged.safetensors"},
	{"adapters/dora", "adapters/dora/merged.safetensors"},
	{"adapters/patterns", "adapters/patterns/merged.safetensors"},
	{"adapters/modules-to-save", "adapters/modules-to-save/merged.safetensors"},
	{"adapters/embedding", "adapters/embedding/merged.safetensors"},
	{"adapters/embedding-saved", "adapters/embedding-saved/merged.safetensors"},
	{"adapters/trainable-tokens", "adapters/trainable-tokens/merged.safetensors"},
	{"adapters/bin", "adapters/bin/merged.safetensors"},
}

// TestTinyPEFT compares merges in bfloat16 with PEFT's: equal but for elements that lie on a rounding tie to
// within float32, of which PEFT's golden of 106816 values holds one (testdata/README.md).
func TestTinyPEFT(t *testing.T) {
	base := open(t, filepath.Join(tiny, "base"))
	for _, c := range tinyAdapters {
		t.Run(c.adapter, func(t *testing.T) {
			in := input(t, filepath.Join(tiny, c.adapter), 1, dialect.Options{})
			_, data, stats := merged(t, base, []merge.Input{in}, merge.Options{Compat: merge.CompatPEFT}, merge.RunOptions{})
			different, n := 0, 0
			for _, want := range open(t, filepath.Join(tiny, c.golden)).Tensors() {
				b, err := want.Read()
				if err != nil {
					t.Fatal(err)
				}
				for i := 0; i < len(b); i += 2 {
					if n++; !bytes.Equal(b[i:i+2], data[want.Name][i:i+2]) {
						different++
					}
				}
			}
			if different > 1 {
				t.Errorf("%d of %d values differ from PEFT's", different, n)
			}
			for _, s := range stats {
				if s.Retention < 0.99 || s.Retention > 1.01 {
					t.Errorf("%s: retention %g", s.Module, s.Retention)
				}
			}
		})
	}
}

// TestSameDelta merges one adapter into the same model in three formats, in float32, and checks that each
// module changes by the same ΔW in all of them, whatever the row order and orientation of its storage.
func TestSameDelta(t *testing.T) {
	want := delta(t, "base", "adapter")
	for _, c := range []struct{ base, adapter string }{
		{"base-f16.gguf", "adapter"}, {"base-f16.gguf", "adapter.gguf"}, {"base-q8_0.gguf", "adapter"},
		{"base.onnx", "adapter"}, {"base-dynamo.onnx", "adapter"},
	} {
		t.Run(c.base+"+"+c.adapter, func(t *testing.T) {
			got := delta(t, c.base, c.adapter)
			if len(got) != len(want) || len(want) != 14 {
				t.Fatalf("%d modules changed, %d in safetensors", len(got), len(want))
			}
			for module, w := range want {
				g := got[module]
				if len(g) != len(w) {
					t.Fatalf("%s: %d values, want %d", module, len(g), len(w))
				}
				for i := range w {
					if d := math.Abs(float64(g[i] - w[i])); d > 2e-8 { // a rounding of W, whose values reach 0.1
						t.Fatalf("%s: ΔW element %d is %g, in safetensors %g", module, i, g[i], w[i])
					}
				}
			}
		})
	}
}

// delta merges in float32 and returns each module's change in canonical order, [out, in].
func delta(t *testing.T, basePath, adapterPath string) map[string][]float32 {
	t.Helper()
	base := open(t, filepath.Join(tiny, basePath))
	in := input(t, filepath.Join(tiny, adapterPath), 1, dialect.Options{})
	plan, err := merge.NewPlan(base, []merge.Input{in}, merge.Options{Resolve: merge.Resolvers(base), DType: tensor.F32})
	if err != nil {
		t.Fatal(err)
	}
	_, data, _ := merged(t, base, []merge.Input{in}, merge.Options{DType: tensor.F32}, merge.RunOptions{})
	out := map[string][]float32{}
	for i := range plan.Tensors {
		o := &plan.Tensors[i]
		if len(o.Updates) == 0 {
			continue
		}
		src := o.Source()
		b, err := src.Read()
		if err != nil {
			t.Fatal(err)
		}
		w, m := floats(t, src.DType, b), floats(t, tensor.F32, data[o.Name])
		for j := range m {
			m[j] -= w[j]
		}
		module, place := o.Updates[0].Module, o.Places()[0]
		if base.Format() == "gguf" {
			module, place = fromGGUF(t, o.Name)
		}
		rows, cols := int(o.Shape[0]), int(o.Shape[1])
		canonical := make([]float32, len(m))
		for r := range rows {
			for c := range cols {
				at := int(place.Canonical(int64(r), int64(rows)))*cols + c
				if place.Transposed {
					at = c*rows + r
				}
				canonical[at] = m[r*cols+c]
			}
		}
		out[module] = canonical
	}
	return out
}

// fromGGUF is the module of a GGUF tensor of the tiny llama, and how the tensor holds its weight.
func fromGGUF(t *testing.T, name string) (string, naming.Place) {
	t.Helper()
	sources, err := naming.FromGGUF("llama", naming.HyperParameters{Layers: 2, Heads: 4, KVHeads: 2, HeadDim: 16}, name)
	if err != nil || len(sources) != 1 {
		t.Fatalf("%s: %v, %v", name, sources, err)
	}
	return sources[0].Module, sources[0].Place
}

// TestONNXLogits runs the merged ONNX models and compares their logits with those of PEFT's merge.
func TestONNXLogits(t *testing.T) {
	lib, err := onnxruntime.Locate("")
	if err != nil {
		t.Skip("needs the ONNX Runtime library (loratool runtime install): ", err)
	}
	rt, err := onnxruntime.Open(t.Context(), lib, onnxruntime.Options{Device: onnxruntime.Device(onnxruntime.CPU)})
	if err != nil {
		t.Skip("needs a build with ONNX Runtime: ", err)
	}
	var golden struct {
		IDs []int64 `json:"input_ids"`
	}
	corpus.ReadJSON(t, filepath.Join(tiny, "logits", "logits.json"), &golden)
	want, before := readF32(t, "merged-f32.f32"), readF32(t, "base.f32")
	for _, name := range []string{"base.onnx", "base-dynamo.onnx"} {
		t.Run(name, func(t *testing.T) {
			base := open(t, filepath.Join(tiny, name))
			in := input(t, filepath.Join(tiny, "adapter"), 1, dialect.Options{})
			plan, err := merge.NewPlan(base, []merge.Input{in}, merge.Options{Resolve: merge.Resolvers(base)})
			if err != nil {
				t.Fatal(err)
			}
			out := filepath.Join(t.TempDir(), "merged.onnx")
			writePlan(t, plan, base.(formats.Writable), out)
			inputs := map[string]onnxruntime.Value{"input_ids": onnxruntime.Ints(golden.IDs, 1, int64(len(golden.IDs)))}
			ys, err := rt.Run(t.Context(), onnxruntime.Model{Path: out}, inputs, []string{"logits"})
			if err != nil {
				t.Fatal(err)
			}
			if len(ys[0].F32) != len(want) {
				t.Fatalf("%d logits, want %d", len(ys[0].F32), len(want))
			}
			worst, effect := 0.0, 0.0
			for i, y := range ys[0].F32 {
				worst = max(worst, math.Abs(float64(y-want[i])))
				effect = max(effect, math.Abs(float64(want[i]-before[i])))
			}
			if worst > 1e-5 || effect < 0.1 {
				t.Errorf("logits differ by up to %.2g from PEFT's merge; the adapter moves them by up to %.2g", worst, effect)
			}
		})
	}
}

func readF32(t *testing.T, name string) []float32 {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(tiny, "logits", name))
	if err != nil {
		t.Fatal(err)
	}
	v := make([]float32, len(b)/4)
	for i := range v {
		v[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return v
}

// TestRunIsDeterministic checks that workers and slab sizes never change a byte.
func TestRunIsDeterministic(t *testing.T) {
	for _, base := range []string{"base", "base-q8_0.gguf", "base.onnx"} {
		for _, a := range []string{"adapter", "adapters/dora"} {
			m := open(t, filepath.Join(tiny, base))
			in := []merge.Input{input(t, filepath.Join(tiny, a), 0.5, dialect.Options{}), input(t, filepath.Join(tiny, "adapters", "rslora"), -1, dialect.Options{})}
			_, want, _ := merged(t, m, in, merge.Options{}, merge.RunOptions{Jobs: 1})
			for _, run := range []merge.RunOptions{{Jobs: 2}, {Jobs: 5, MaxMemory: 1}, {Jobs: 3, MaxMemory: 1 << 20}} {
				_, got, _ := merged(t, m, in, merge.Options{}, run)
				for name := range want {
					if !bytes.Equal(got[name], want[name]) {
						t.Errorf("%s + %s: %s depends on %+v", base, a, name, fmt.Sprint(run.Jobs, run.MaxMemory))
					}
				}
			}
		}
	}
}

// TestSubtract adds an adapter in float32, and subtracts it again.
func TestSubtract(t *testing.T) {
	base := open(t, filepath.Join(tiny, "base.onnx"))
	plus, minus := input(t, filepath.Join(tiny, "adapter"), 1, dialect.Options{}), input(t, filepath.Join(tiny, "adapter"), -1, dialect.Options{})
	_, data, _ := merged(t, base, []merge.Input{plus, minus}, merge.Options{}, merge.RunOptions{})
	for _, x := range base.Tensors() {
		if x.DType != tensor.F32 {
			continue
		}
		b, err := x.Read()
		if err != nil {
			t.Fatal(err)
		}
		if w := worst(floats(t, tensor.F32, data[x.Name]), floats(t, tensor.F32, b)); w > 1e-7 {
			t.Errorf("%s: adding and subtracting leaves %g", x.Name, w)
		}
	}
	zero := input(t, filepath.Join(tiny, "adapter"), 0, dialect.Options{})
	_, data, _ = merged(t, base, []merge.Input{zero}, merge.Options{}, merge.RunOptions{})
	for _, x := range base.Tensors() {
		if b, err := x.Read(); err != nil || !bytes.Equal(b, data[x.Name]) {
			t.Errorf("%s: scale 0 changed its bytes (%v)", x.Name, err)
		}
	}
}

// TestGGUFAdapterOnFolder merges the GGUF adapter into the Hugging Face folder: the bytes are those of the
// PEFT adapter it is the twin of.
func TestGGUFAdapterOnFolder(t *testing.T) {
	base := open(t, filepath.Join(tiny, "base"))
	_, want, _ := merged(t, base, []merge.Input{input(t, filepath.Join(tiny, "adapter"), 1, dialect.Options{})}, merge.Options{}, merge.RunOptions{})
	_, got, _ := merged(t, base, []merge.Input{input(t, filepath.Join(tiny, "adapter.gguf"), 1, dialect.Options{})}, merge.Options{}, merge.RunOptions{})
	for name := range want {
		if !bytes.Equal(got[name], want[name]) {
			t.Errorf("%s differs", name)
		}
	}
}
