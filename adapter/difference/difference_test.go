package difference

import (
	"bytes"
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/adapter/lowrank"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/internal/applied"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// ram is a model in memory.
type ram struct {
	path, format string
	tensors      []tensor.Tensor
}

func (r *ram) Path() string               { return r.path }
func (r *ram) Format() string             { return r.format }
func (r *ram) Tensors() []tensor.Tensor   { return r.tensors }
func (*ram) Findings() []finding.Finding  { return nil }
func (*ram) Close() error                 { return nil }
func model(tensors ...tensor.Tensor) *ram { return &ram{"m", "safetensors", tensors} }
func (r *ram) without(i int) formats.Model {
	return model(append(append([]tensor.Tensor{}, r.tensors[:i]...), r.tensors[i+1:]...)...)
}

// stored is a tensor of a type that f fills.
func stored(t *testing.T, name string, d tensor.DType, shape tensor.Shape, f func(i int) float32) tensor.Tensor {
	t.Helper()
	n, _ := shape.Elements()
	v := make([]float32, n)
	for i := range v {
		v[i] = f(i)
	}
	size, _ := d.Bytes(n)
	b := make([]byte, size)
	if d == tensor.I64 {
		for i, x := range v {
			binary.LittleEndian.PutUint64(b[8*i:], uint64(x))
		}
	} else if c, _ := quant.Of(d); c.Encode(b, v) != nil {
		t.Fatalf("%s does not hold the values of %s", d, name)
	}
	return tensor.Tensor{Spec: tensor.Spec{Name: name, DType: d, Shape: shape}, Src: bytes.NewReader(b), Size: size}
}

func weight(i int) float32 { return float32(math.Sin(float64(7*i + 1))) }

// product is element i of a matrix with cols columns and rank 1.
func product(i, cols int) float32 { return float32((1 + i/cols) * (2 + i%cols)) }

// TestKinds has every kind of tensor that may change: their updates, as factors where they are matrices.
func TestKinds(t *testing.T) {
	gpt2 := filepath.Join(t.TempDir(), "gpt2")
	if err := os.Mkdir(gpt2, 0o755); err != nil {
		t.Fatal(err)
	}
	config := `{"model_type":"gpt2","n_embd":4,"n_head":2,"n_layer":1}`
	if err := os.WriteFile(filepath.Join(gpt2, "config.json"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		shape tensor.Shape
		kind  adapter.Kind // before factoring
		layer adapter.Layer
		a, b  [2]int64 // shapes of the factors
	}{
		{"model.layers.0.mlp.up_proj.weight", tensor.Shape{4, 6}, adapter.Full, adapter.Linear, [2]int64{1, 6}, [2]int64{4, 1}},
		{"model.embed_tokens.weight", tensor.Shape{5, 3}, adapter.Full, adapter.Embedding, [2]int64{1, 5}, [2]int64{3, 1}},
		{"unet.conv_in.weight", tensor.Shape{4, 3, 2, 2}, adapter.Full, adapter.Conv, [2]int64{1, 12}, [2]int64{4, 1}},
		{"audio.conv1.weight", tensor.Shape{4, 3, 2}, adapter.Full, adapter.Conv, [2]int64{1, 6}, [2]int64{4, 1}},
		{"transformer.h.0.attn.c_attn.weight", tensor.Shape{4, 12}, adapter.Full, adapter.Linear, [2]int64{1, 4}, [2]int64{12, 1}},
		{"model.norm.weight", tensor.Shape{7}, adapter.Replace, "", [2]int64{}, [2]int64{}},
	} {
		cols := 1
		for _, n := range c.shape[1:] {
			cols *= int(n)
		}
		base := model(stored(t, c.name, tensor.F32, c.shape, weight), stored(t, "same.weight", tensor.F32, tensor.Shape{3, 3}, weight))
		base.path = gpt2
		tuned := model(stored(t, "same.weight", tensor.F32, tensor.Shape{3, 3}, weight), stored(t, c.name, tensor.F32, c.shape, func(i int) float32 { return weight(i) + product(i, cols) }))
		a, err := Of(t.Context(), base, tuned, Options{Jobs: 2})
		if err != nil {
			t.Fatal(err)
		}
		if len(a.Updates) != 1 || a.Updates[0].Kind != c.kind || a.Updates[0].Layer != c.layer || a.Updates[0].Target.String() != c.name || a.Space != naming.HF || a.BaseModel != "gpt2" {
			t.Fatalf("%s: %+v", c.name, a)
		}
		low, losses, err := lowrank.Convert(t.Context(), a, lowrank.Options{Limits: lowrank.Limits{Rank: 3}})
		if err != nil {
			t.Fatal(err)
		}
		u := &low.Updates[0]
		if c.kind == adapter.Replace {
			v, err := u.Value.Load()
			if err != nil || len(losses) != 0 || v[6] != weight(6)+product(6, 1) {
				t.Errorf("%s: %v, %v, %v", c.name, v, losses, err)
			}
			continue
		}
		// Rounding of the sums leaves a little beside the one singular value.
		if len(losses) != 1 || losses[0].Lost > 1e-12 || !u.Kernel.Equal(c.shape[2:]) {
			t.Errorf("%s: %+v, kernel %v", c.name, losses, u.Kernel)
		}
		low, _, _ = lowrank.Convert(t.Context(), a, lowrank.Options{Limits: lowrank.Limits{Rank: 1}})
		u = &low.Updates[0]
		if u.Layer != c.layer || u.A.Rows != c.a[0] || u.A.Cols != c.a[1] || u.B.Rows != c.b[0] || u.B.Cols != c.b[1] {
			t.Fatalf("%s: A [%d, %d], B [%d, %d] of %s", c.name, u.A.Rows, u.A.Cols, u.B.Rows, u.B.Cols, u.Layer)
		}
		fa, _ := u.A.Load()
		fb, _ := u.B.Load()
		for i := range int(c.shape[0]) {
			for j := range cols {
				row, col := i, j
				if c.layer == adapter.Embedding || strings.Contains(c.name, "c_attn") {
					row, col = j, i
				}
				if got, want := u.Scale.Value*float64(fb[row])*float64(fa[col]), float64(product(i*cols+j, cols)); math.Abs(got-want) > 1e-5*want {
					t.Errorf("%s [%d, %d]: got %v, want %v", c.name, i, j, got, want)
				}
			}
		}
	}
}

// TestRounded compares with a base of another type: what rounding explains has not changed.
func TestRounded(t *testing.T) {
	const name = "a.b.weight"
	shape := tensor.Shape{8, 64}
	base := model(stored(t, name, tensor.F32, shape, weight))
	for _, d := range []tensor.DType{tensor.BF16, tensor.F16, tensor.Q8_0} {
		for _, bump := range []float32{0, 0.5} {
			tuned := model(stored(t, name, d, shape, func(i int) float32 {
				if i == 511 {
					return weight(i) + bump
				}
				return weight(i)
			}))
			a, err := Of(t.Context(), base, tuned, Options{})
			if err != nil || len(a.Updates) != int(2*bump) {
				t.Errorf("%s, %v: %d updates, %v", d, bump, len(a.Updates), err)
			}
		}
	}
}

func TestRefused(t *testing.T) {
	w := func(name string, d tensor.DType, shape ...int64) tensor.Tensor {
		return stored(t, name, d, shape, weight)
	}
	changed := func(name string, d tensor.DType, shape ...int64) tensor.Tensor {
		return stored(t, name, d, shape, func(i int) float32 { return weight(i) + 1 })
	}
	onnx := model(w("a.weight", tensor.F32, 2, 2))
	onnx.format = "onnx"
	base := model(w("a.weight", tensor.F32, 2, 2), w("b.weight", tensor.F32, 2, 2))
	for want, pair := range map[string][2]formats.Model{
		"of different formats":  {onnx, base},
		"from onnx models":      {onnx, onnx},
		"the tuned model lacks": {base, base.without(1)},
		"that the base lacks":   {base.without(0), base},
		"the shapes differ":     {base, model(w("a.weight", tensor.F32, 2, 2), w("b.weight", tensor.F32, 2, 3))},
		"no floating-point":     {model(w("a.ids", tensor.I64, 1, 2)), model(changed("a.ids", tensor.I64, 1, 2))},
		"belongs to no module":  {model(w("logit", tensor.F32, 2, 2)), model(changed("logit", tensor.F32, 2, 2))},
		"stacked experts":       {model(w("mlp.experts.gate_up_proj", tensor.F32, 2, 2, 2)), model(changed("mlp.experts.gate_up_proj", tensor.F32, 2, 2, 2))},
		"types are not compar":  {model(w("a.weight", tensor.F32, 2, 2)), model(w("a.weight", tensor.I64, 2, 2))},
	} {
		_, err := Of(t.Context(), pair[0], pair[1], Options{})
		if f := finding.Of(err); f == nil || !strings.Contains(f.Message, want) {
			t.Errorf("%s: got %v", want, err)
		}
	}
	// What is excluded is not compared.
	opt := Options{Exclude: regexp.MustCompile(`^b\.`), Include: regexp.MustCompile(`weight$`)}
	if a, err := Of(t.Context(), base, base.without(1), opt); err != nil || len(a.Updates) != 0 || Bytes(base, opt) != 16 {
		t.Errorf("%+v, %v", a, err)
	}
}

// TestMerged takes apart a merge that PEFT made in bfloat16: at the adapter's rank its ΔW comes back but for
// the rounding of the merged weights.
func TestMerged(t *testing.T) {
	const tiny = "../../testdata/tiny-llama/"
	open := func(path string) formats.Model {
		m, err := formats.Open(tiny + path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close() })
		return m
	}
	a, err := Of(t.Context(), open("base"), open("merged"), Options{Jobs: 2})
	if err != nil {
		t.Fatal(err)
	}
	low, losses, err := lowrank.Convert(t.Context(), a, lowrank.Options{Limits: lowrank.Limits{Rank: 4}, Jobs: 2})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range losses {
		if l.Lost > 1e-3 {
			t.Errorf("%s", l)
		}
	}
	trained, err := dialect.Open(tiny+"adapter", dialect.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer trained.Close()
	if len(low.Updates) != len(trained.Updates) {
		t.Fatalf("%d updates, want %d", len(low.Updates), len(trained.Updates))
	}
	byModule := map[string]*adapter.Update{}
	for i := range trained.Updates {
		byModule[trained.Updates[i].Module] = &trained.Updates[i]
	}
	for i := range low.Updates {
		u := &low.Updates[i]
		got, want := applied.Product(t, u), applied.Product(t, byModule[u.Module])
		var off, whole float64
		for i, x := range want {
			off += (got[i] - x) * (got[i] - x)
			whole += x * x
		}
		if off > 1e-3*whole {
			t.Errorf("%s: %.2g of the squares differ", u.Module, off/whole)
		}
	}
}
