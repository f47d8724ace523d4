package content_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/loratool/loratool/content"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

const tiny = "../testdata/tiny-llama/"

func saved(t *testing.T, b []byte) *onnx.Model {
	t.Helper()
	path := filepath.Join(t.TempDir(), "model.onnx")
	if err := os.WriteFile(path, b, 0o666); err != nil {
		t.Fatal(err)
	}
	m, err := onnx.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// TestExports finds every weight of two exporters' graphs, whose names are taken away, where the names say that
// it is.
func TestExports(t *testing.T) {
	weights, err := formats.Open(tiny + "base")
	if err != nil {
		t.Fatal(err)
	}
	defer weights.Close()
	for _, name := range []string{"base.onnx", "base-dynamo.onnx"} {
		b, err := os.ReadFile(tiny + name)
		if err != nil {
			t.Fatal(err)
		}
		named, m := merge.ONNXNames(saved(t, b)), saved(t, corpus.Nameless(t, b))
		if err := content.Match(m, weights); err != nil {
			t.Fatal(err)
		}
		r, n, byContent := merge.ONNXNames(m), 0, 0
		for _, x := range weights.Tensors() {
			module, _ := strings.CutSuffix(x.Name, ".weight")
			want, err := named.Find(module, "weight")
			if err != nil {
				t.Fatal(err)
			}
			got, err := r.Find(module, "weight")
			if err != nil || len(got) != 1 || got[0].Tensor != want[0].Tensor || got[0].Transposed != want[0].Transposed {
				t.Errorf("%s: %s is in %+v (%v), want %+v", name, module, got, err, want)
				continue
			}
			n++
			if got[0].Rule == "content" {
				byContent++
			}
		}
		if n != 21 || byContent != 15 {
			t.Errorf("%s: %d weights, %d of them by content", name, n, byContent)
		}
	}
}

// values is a model of float tensors in memory.
type values []tensor.Tensor

func (values) Path() string               { return "weights" }
func (values) Format() string             { return "safetensors" }
func (v values) Tensors() []tensor.Tensor { return v }

func encode(t *testing.T, d tensor.DType, v []float32) []byte {
	t.Helper()
	c, _ := quant.Of(d)
	b := make([]byte, len(v)*d.BlockBytes())
	if err := c.Encode(b, v); err != nil {
		t.Fatal(err)
	}
	return b
}

func weight(t *testing.T, name string, d tensor.DType, v []float32, rows, cols int64) tensor.Tensor {
	b := encode(t, d, v)
	return tensor.Tensor{Spec: tensor.Spec{Name: name, DType: d, Shape: tensor.Shape{rows, cols}}, Src: strings.NewReader(string(b)), Size: int64(len(b))}
}

func random(seed uint64, n int) []float32 {
	r := rand.New(rand.NewPCG(seed, 9))
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(r.NormFloat64())
	}
	return v
}

func turned(v []float32, rows, cols int) []float32 {
	w := make([]float32, len(v))
	for i := range rows {
		for j := range cols {
			w[j*rows+i] = v[i*cols+j]
		}
	}
	return w
}

func field(num protowire.Number, parts ...[]byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), slices.Concat(parts...))
}

func number(num protowire.Number, v int64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, num, protowire.VarintType), uint64(v))
}

// products is a graph x·W for each of some matrices [in, out], named w0, w1, …
func products(t *testing.T, all ...tensor.Tensor) *onnx.Model {
	var graph []byte
	for _, x := range all {
		b, err := x.Read()
		if err != nil {
			t.Fatal(err)
		}
		graph = append(graph, field(1, field(1, []byte("x")), field(1, []byte(x.Name)), field(2, []byte("y"+x.Name)), field(4, []byte("MatMul")))...)
		graph = append(graph, field(5, number(1, x.Shape[0]), number(1, x.Shape[1]), number(2, onnx.DataType(x.DType)), field(8, []byte(x.Name)), field(9, b))...)
	}
	return saved(t, slices.Concat(number(1, 8), field(7, graph), field(8, number(2, 17))))
}

func TestPlaces(t *testing.T) {
	const h = 24
	q, k, v, o := random(1, 32*h), random(2, 16*h), random(3, 16*h), random(4, h*h)
	qkv := turned(slices.Concat(q, k, v), 64, h)
	hf := func(d tensor.DType) values {
		return values{
			weight(t, "a.q_proj.weight", d, q, 32, h), weight(t, "a.k_proj.weight", d, k, 16, h), weight(t, "a.v_proj.weight", d, v, 16, h),
			weight(t, "a.o_proj.weight", d, o, h, h),
		}
	}
	doubled := slices.Clone(o)
	for i := range doubled {
		doubled[i] *= 2
	}
	place := func(name string, first, rows int64) naming.Place {
		return naming.Place{Tensor: name, Transposed: true, RowOffset: first, Rows: rows, Rule: "content"}
	}
	for _, c := range []struct {
		name    string
		weights values
		graph   []tensor.Tensor
		module  string
		want    naming.Place
		reason  string
	}{
		{"turned", hf(tensor.F32), []tensor.Tensor{weight(t, "w0", tensor.F32, turned(o, h, h), h, h)}, "a.o_proj", place("w0", 0, 0), ""},
		{"rounded to float16", hf(tensor.F32), []tensor.Tensor{weight(t, "w0", tensor.F16, turned(o, h, h), h, h)}, "a.o_proj", place("w0", 0, 0), ""},
		{"bfloat16 widened", hf(tensor.BF16), []tensor.Tensor{weight(t, "w0", tensor.F32, turned(float(t, tensor.BF16, o), h, h), h, h)}, "a.o_proj", place("w0", 0, 0), ""},
		{"rounded on the way", hf(tensor.F32), []tensor.Tensor{weight(t, "w0", tensor.F32, turned(float(t, tensor.BF16, o), h, h), h, h)}, "a.o_proj", place("w0", 0, 0), ""},
		{"packed, first", hf(tensor.F32), []tensor.Tensor{weight(t, "w0", tensor.F32, qkv, h, 64)}, "a.q_proj", place("w0", 0, 32), ""},
		{"packed, last, rounded", hf(tensor.F32), []tensor.Tensor{weight(t, "w0", tensor.F16, qkv, h, 64)}, "a.v_proj", place("w0", 48, 16), ""},
		{"other prefix", hf(tensor.F32), []tensor.Tensor{weight(t, "w0", tensor.F32, qkv, h, 64)}, "model.a.k_proj", place("w0", 32, 16), ""},
		{"twice", hf(tensor.F32), []tensor.Tensor{weight(t, "w0", tensor.F32, turned(o, h, h), h, h), weight(t, "w1", tensor.F32, turned(o, h, h), h, h)}, "a.o_proj", naming.Place{}, `more than one initializer holds its values: "w0", "w1"`},
		{"folded scale", hf(tensor.F32), []tensor.Tensor{weight(t, "w0", tensor.F32, turned(doubled, h, h), h, h)}, "a.o_proj", naming.Place{}, "no initializer holds its values"},
		{"one element differs", hf(tensor.F32), []tensor.Tensor{weight(t, "w0", tensor.F32, turned(append([]float32{9}, o[1:]...), h, h), h, h)}, "a.o_proj", naming.Place{}, "no initializer holds its values"},
	} {
		m := products(t, c.graph...)
		if err := content.Match(m, c.weights); err != nil {
			t.Fatal(err)
		}
		got, err := merge.ONNXNames(m).Find(c.module, "weight")
		if c.reason != "" {
			if err == nil || !strings.Contains(err.Error(), c.reason) {
				t.Errorf("%s: %+v, %v; want %q", c.name, got, err, c.reason)
			}
			continue
		}
		c.want.Uses = 1
		if err != nil || len(got) != 1 || got[0] != c.want {
			t.Errorf("%s: %+v, %v; want %+v", c.name, got, err, c.want)
		}
	}
	// A packed weight is one layer, called after what it packs.
	m := products(t, weight(t, "w0", tensor.F32, qkv, h, 64))
	if err := content.Match(m, hf(tensor.F32)); err != nil {
		t.Fatal(err)
	}
	if l := merge.ONNXNames(m).Layers(); len(l) != 1 || l[0].Module != "a.qkv_proj" {
		t.Errorf("layers %+v", l)
	}
	if f := finding.Of(content.Match(m, values{weight(t, "blk.0.attn_q", tensor.F32, q, 32, h)})); f == nil || f.Code != "base.unsupported" {
		t.Errorf("weights without modules: %v", f)
	}
}

// float rounds values to a type.
func float(t *testing.T, d tensor.DType, v []float32) []float32 {
	c, _ := quant.Of(d)
	w := make([]float32, len(v))
	c.Decode(w, encode(t, d, v))
	return w
}
