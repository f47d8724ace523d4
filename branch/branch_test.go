package branch_test

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/branch"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/internal/oracle"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/onnxruntime"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

const tiny = "../testdata/tiny-llama/"

func open(t testing.TB, path string) *onnx.Model {
	t.Helper()
	m, err := onnx.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// write carries a layout without items, or with those that fill writes, out.
func write(t testing.TB, path string, l *layout.Layout, fill func(w *layout.Writer) error) string {
	t.Helper()
	w, err := layout.Create(path, l, false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if fill != nil {
		err = fill(w)
	}
	if err == nil {
		err = w.Commit()
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func inject(t testing.TB, m *onnx.Model, opt branch.Options) (*branch.Plan, string) {
	t.Helper()
	p, err := branch.NewPlan(m, opt)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "injected.onnx")
	l, err := p.Layout(path, layout.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return p, write(t, path, l, nil)
}

func merged(t testing.TB, m *onnx.Model, inputs []merge.Input) string {
	t.Helper()
	plan, err := merge.NewPlan(m, inputs, merge.Options{Resolve: merge.Resolvers(m)})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "merged.onnx")
	l, err := plan.Layout(m, path, layout.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return write(t, path, l, func(w *layout.Writer) error {
		_, err := merge.Run(context.Background(), plan, l, w, merge.RunOptions{})
		return err
	})
}

type values = map[string]onnxruntime.Value

func outputs(m *onnx.Model) []string {
	var names []string
	for _, v := range m.Graph().Outputs {
		names = append(names, v.Name)
	}
	return names
}

// run returns all outputs one after the other.
func run(t testing.TB, rt *onnxruntime.Runtime, path string, out []string, in ...values) []float32 {
	t.Helper()
	all := values{}
	for _, v := range in {
		for k, x := range v {
			all[k] = x
		}
	}
	ys, err := rt.Run(context.Background(), onnxruntime.Model{Path: path}, all, out)
	if err != nil {
		t.Fatal(err)
	}
	var w []float32
	for _, y := range ys {
		w = append(w, y.F32...)
	}
	return w
}

// given are the parameters of an adapter as inputs of a run, as ONNX Runtime gives those of an adapter file.
func given(t testing.TB, p *branch.Plan, inputs []merge.Input) values {
	t.Helper()
	parameters, err := p.Parameters(inputs)
	if err != nil {
		t.Fatal(err)
	}
	v := values{}
	for _, x := range parameters {
		codec, _ := quant.Of(x.DType)
		f := make([]float32, len(x.Data)/x.DType.BlockBytes())
		codec.Decode(f, x.Data)
		v[x.Name] = onnxruntime.Floats(f, x.Shape...)
	}
	return v
}

func distance(a, b []float32) float64 {
	var d, n float64
	for i := range a {
		d += (float64(a[i]) - float64(b[i])) * (float64(a[i]) - float64(b[i]))
		n += float64(b[i]) * float64(b[i])
	}
	return math.Sqrt(d / n)
}

func sameBits(a, b []float32) error {
	if len(a) != len(b) || len(a) == 0 {
		return fmt.Errorf("%d values, want %d", len(a), len(b))
	}
	for i := range a {
		if math.Float32bits(a[i]) != math.Float32bits(b[i]) {
			return fmt.Errorf("value %d is %v, want %v", i, a[i], b[i])
		}
	}
	return nil
}

// compare runs a model with branches against the model it was made of, and against the merged one.
func compare(t *testing.T, rt *onnxruntime.Runtime, m *onnx.Model, inputs []merge.Input, in values, opt branch.Options) {
	t.Helper()
	p, path := inject(t, m, opt)
	out := outputs(m)
	base, without := run(t, rt, m.Path(), out, in), run(t, rt, path, out, in)
	if err := sameBits(without, base); err != nil {
		t.Errorf("without an adapter: %v", err)
	}
	with := run(t, rt, path, out, in, given(t, p, inputs))
	want := run(t, rt, merged(t, m, inputs), out, in)
	effect, d := distance(with, base), distance(with, want)
	if effect < 1e-3 || !(d <= 1e-5) {
		t.Errorf("with the adapter: distance %.2e from the merged model, %.2e from the base", d, effect)
	}
	t.Logf("effect %.2e, distance from the merged model %.1e", effect, d)
}

func TestTinyLlama(t *testing.T) {
	rt := oracle.Runtime(t)
	ids := onnxruntime.Ints([]int64{102, 117, 110, 99, 32, 65, 100, 100}, 1, 8)
	for _, name := range []string{"base.onnx", "base-dynamo.onnx"} {
		for _, a := range []string{"adapter", "adapters/patterns"} {
			for _, rank := range []int64{0, 1} {
				t.Run(fmt.Sprintf("%s/%s/%d", name, a, rank), func(t *testing.T) {
					x, err := dialect.Open(tiny+a, dialect.Options{})
					if err != nil {
						t.Fatal(err)
					}
					defer x.Close()
					compare(t, rt, open(t, tiny+name), []merge.Input{{Adapter: x, Scale: 1}}, values{"input_ids": ids}, branch.Options{Rank: rank})
				})
			}
		}
	}
}

// made is an adapter of a rank for every layer of a plan.
func made(p *branch.Plan, rank int64) []merge.Input {
	random := rand.New(rand.NewPCG(1, 2))
	normal := func(n int64) []float32 {
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(random.NormFloat64()) / 8
		}
		return v
	}
	a := &adapter.Adapter{Path: "made", Space: naming.HF}
	for _, l := range p.Layers {
		a.Updates = append(a.Updates, adapter.Update{
			Target: adapter.Target{Module: l.Module, Param: "weight"}, Kind: adapter.LowRank, Layer: adapter.Linear, Rank: int(rank),
			A: adapter.FromValues(rank, l.In, normal(rank*l.In)), B: adapter.FromValues(l.Out, rank, normal(rank*l.Out)), Scale: adapter.Scale{Value: 2},
		})
	}
	return []merge.Input{{Adapter: a, Scale: 0.5}}
}

// TestBert has layers in MatMul, with biases in fused operators.
func TestBert(t *testing.T) {
	rt := oracle.Runtime(t)
	m := open(t, corpus.Path(t, "onnx/naming/bert_toy_optimized.onnx"))
	opt := branch.Options{Include: regexp.MustCompile(`encoder|cls|pooler`)}
	p, err := branch.NewPlan(m, opt)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Layers) < 30 {
		t.Errorf("%d layers", len(p.Layers))
	}
	in := values{
		"input_ids":      onnxruntime.Ints([]int64{1, 5, 9, 42, 77, 3, 60, 2}, 1, 8),
		"token_type_ids": onnxruntime.Ints([]int64{0, 0, 0, 0, 1, 1, 1, 1}, 1, 8), "input_mask": onnxruntime.Ints([]int64{1, 1, 1, 1, 1, 1, 1, 1}, 1, 8),
	}
	compare(t, rt, m, made(p, 3), in, opt)
}

// Models by hand.

func num(n protowire.Number, v int64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, n, protowire.VarintType), uint64(v))
}

func str(n protowire.Number, parts ...[]byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, n, protowire.BytesType), bytes.Join(parts, nil))
}

func text(n protowire.Number, s string) []byte { return str(n, []byte(s)) }

func proto(name string, dataType int64, raw []byte, dims ...int64) []byte {
	var b []byte
	for _, d := range dims {
		b = append(b, num(1, d)...)
	}
	return str(5, b, num(2, dataType), text(8, name), str(9, raw))
}

func attr(name string, v int64) []byte { return str(5, text(1, name), num(3, v), num(20, 2)) }

func node(op, name, in, out string, more ...[]byte) []byte {
	var b []byte
	for _, s := range strings.Split(in, " ") {
		b = append(b, text(1, strings.Trim(s, "-"))...)
	}
	for _, s := range strings.Split(out, " ") {
		b = append(b, text(2, s)...)
	}
	return str(1, b, text(3, name), text(4, op), bytes.Join(more, nil))
}

func declared(field protowire.Number, name string, dataType int64, dims ...string) []byte {
	var shape []byte
	for _, d := range dims {
		shape = append(shape, str(1, text(2, d))...)
	}
	return str(field, text(1, name), str(2, str(1, num(1, dataType), str(2, shape))))
}

func model(graph ...[]byte) []byte {
	return bytes.Join([][]byte{num(1, 10), text(2, "test"), str(7, append([][]byte{text(2, "g")}, graph...)...), str(8, text(1, ""), num(2, 21)), str(8, text(1, "com.microsoft"), num(2, 1))}, nil)
}

func f32(v ...float32) []byte {
	var b []byte
	for _, x := range v {
		b = protowire.AppendFixed32(b, math.Float32bits(x))
	}
	return b
}

func random(n int, mask byte) []byte {
	r := rand.New(rand.NewPCG(3, 4))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32()) & mask
	}
	return b
}

func spread(n int) []float32 {
	r := rand.New(rand.NewPCG(7, 8))
	v := make([]float32, n)
	for i := range v {
		v[i] = 0.01 + 0.02*r.Float32()
	}
	return v
}

// TestQuantizedLayers adds branches to products with quantized weights, [in 32, out 6].
func TestQuantizedLayers(t *testing.T) {
	rt := oracle.Runtime(t)
	microsoft := text(7, "com.microsoft")
	for _, c := range []struct {
		name  string
		graph [][]byte
	}{
		{"MatMulNBits", [][]byte{
			node("MatMulNBits", "/a/q_proj/MatMul_Q4", "x w s", "y", microsoft, attr("K", 32), attr("N", 6), attr("bits", 4), attr("block_size", 16)),
			proto("w", 2, random(6*2*8, 0xff), 6, 2, 8), proto("s", 1, f32(spread(12)...), 12),
		}},
		{"DequantizeLinear", [][]byte{
			node("DequantizeLinear", "dq", "a.q_proj.weight_quantized s", "w"), node("Transpose", "t", "w", "wt"), node("MatMul", "m", "x wt", "y"),
			proto("a.q_proj.weight_quantized", 3, random(6*32, 0xff), 6, 32), proto("s", 1, f32(0.01), []int64{}...),
		}},
		{"MatMulInteger", [][]byte{
			node("DynamicQuantizeLinear", "d", "x", "xq xs xz"), node("MatMulInteger", "/a/q_proj/MatMul_quant", "xq w xz", "yi"),
			node("Cast", "c", "yi", "yc", attr("to", 1)), node("Mul", "s", "xs ws", "sw"), node("Mul", "m", "yc sw", "y"),
			proto("w", 3, random(32*6, 0x3f), 32, 6), proto("ws", 1, f32(0.01), 1),
		}},
		{"MatMulIntegerToFloat", [][]byte{
			node("DynamicQuantizeLinear", "d", "x", "xq xs xz"), node("MatMulIntegerToFloat", "/a/q_proj/MatMul_quant", "xq w xs ws xz", "y", microsoft),
			proto("w", 3, random(32*6, 0x3f), 32, 6), proto("ws", 1, f32(0.01), 1),
		}},
		{"DynamicQuantizeMatMul", [][]byte{
			node("DynamicQuantizeMatMul", "/a/q_proj/MatMul_quant", "x w ws", "y", microsoft),
			proto("w", 3, random(32*6, 0x3f), 32, 6), proto("ws", 1, f32(0.01), 1),
		}},
		{"Gemm", [][]byte{
			node("Gemm", "g", "x a.q_proj.weight b", "y", attr("transB", 1)),
			proto("a.q_proj.weight", 1, f32(spread(192)...), 6, 32), proto("b", 1, f32(1, 2, 3, 4, 5, 6), 6),
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "base.onnx")
			if err := os.WriteFile(path, model(append(c.graph, declared(11, "x", 1, "m", "k"), declared(12, "y", 1, "m", "n"))...), 0o600); err != nil {
				t.Fatal(err)
			}
			m := open(t, path)
			p, injected := inject(t, m, branch.Options{})
			want := branch.Layer{Module: "a.q_proj", A: "a.q_proj.lora_A.weight", B: "a.q_proj.lora_B.weight", In: 32, Out: 6, DType: tensor.F32}
			if len(p.Layers) != 1 || p.Layers[0] != want {
				t.Fatalf("layers %+v, %v", p.Layers, p.Findings)
			}
			x := make([]float32, 3*32)
			for i := range x {
				x[i] = float32(i%7) - 3
			}
			in := values{"x": onnxruntime.Floats(x, 3, 32)}
			base := run(t, rt, path, []string{"y"}, in)
			if err := sameBits(run(t, rt, injected, []string{"y"}, in), base); err != nil {
				t.Errorf("without an adapter: %v", err)
			}
			inputs := made(p, 2)
			with := run(t, rt, injected, []string{"y"}, in, given(t, p, inputs))
			u := inputs[0].Adapter.Updates[0]
			a, _ := u.A.Load()
			b, _ := u.B.Load()
			for i := range 3 {
				for j := range 6 {
					y := float64(base[i*6+j])
					for r := range 2 {
						var xa float64
						for k := range 32 {
							xa += float64(x[i*32+k]) * float64(a[r*32+k])
						}
						y += xa * float64(b[j*2+r]) // scale 2 × 0.5
					}
					if got := float64(with[i*6+j]); math.Abs(got-y) > 1e-5*(1+math.Abs(y)) {
						t.Errorf("output [%d, %d] is %v, want %v", i, j, got, y)
					}
				}
			}
		})
	}
}

// TestPacked gives one branch to q, k and v that lie in one weight.
func TestPacked(t *testing.T) {
	rt := oracle.Runtime(t)
	const name = "model.layers.0.attn.qkv_proj.MatMul.weight"
	path := filepath.Join(t.TempDir(), "base.onnx")
	graph := [][]byte{
		node("MatMul", "/model/layers.0/attn/qkv_proj/MatMul", "x "+name, "qkv"), node("Split", "s", "qkv sizes", "q k v", attr("axis", 1)),
		proto(name, 1, f32(spread(12*8)...), 12, 8), proto("sizes", 7, []byte{4, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0}, 3),
		declared(11, "x", 1, "m", "k"), declared(12, "q", 1, "m", "n"), declared(12, "k", 1, "m", "n2"), declared(12, "v", 1, "m", "n3"),
	}
	if err := os.WriteFile(path, model(graph...), 0o600); err != nil {
		t.Fatal(err)
	}
	m := open(t, path)
	a := &adapter.Adapter{Path: "made", Space: naming.HF}
	for i, c := range []struct {
		module    string
		rank, out int64
	}{{"q_proj", 2, 4}, {"v_proj", 1, 2}} {
		f := func(rows, cols int64) adapter.Factor {
			v := spread(int(rows * cols))
			for k := range v {
				v[k] *= float32(3*i + k + 1)
			}
			return adapter.FromValues(rows, cols, v)
		}
		a.Updates = append(a.Updates, adapter.Update{
			Target: adapter.Target{Module: "model.layers.0.self_attn." + c.module, Param: "weight"}, Kind: adapter.LowRank, Layer: adapter.Linear,
			Rank: int(c.rank), A: f(c.rank, 12), B: f(c.out, c.rank), Scale: adapter.Scale{Value: 1},
		})
	}
	x := spread(5 * 12)
	compare(t, rt, m, []merge.Input{{Adapter: a, Scale: 1}}, values{"x": onnxruntime.Floats(x, 5, 12)}, branch.Options{})
}

// TestUntouched checks that a model with branches differs from its base in nothing but the branches.
func TestUntouched(t *testing.T) {
	m := open(t, tiny+"base.onnx")
	p, path := inject(t, m, branch.Options{Include: regexp.MustCompile(`layers\.1\.mlp\.up_proj`)})
	if len(p.Layers) != 1 {
		t.Fatalf("%d layers", len(p.Layers))
	}
	got := open(t, path)
	initializers := len(m.Graph().Initializers)
	for i, want := range m.Tensors() {
		k := i
		if i >= initializers {
			k += 2 // the defaults come behind the other initializers
		}
		x := got.Tensors()[k]
		a, err := want.Read()
		if err != nil {
			t.Fatal(err)
		}
		// The numbers of nodes in the names of their constants are later ones now.
		b, err := x.Read()
		if err != nil || i < initializers && x.Name != want.Name || !bytes.Equal(a, b) {
			t.Errorf("%s differs: %v", want.Name, err)
		}
	}
	if n := len(got.Tensors()) - len(m.Tensors()); n != 2 {
		t.Errorf("%d more tensors, want 2", n)
	}
	if n := len(got.Graph().Nodes) - len(m.Graph().Nodes); n != 3 {
		t.Errorf("%d more nodes, want 3", n)
	}
	if len(got.Findings()) > 0 {
		t.Errorf("findings: %v", got.Findings())
	}
	var in []string
	for _, v := range got.Graph().Inputs[len(m.Graph().Inputs):] {
		in = append(in, fmt.Sprintf("%s %s %v", v.Name, v.DType, v.Dims))
	}
	want := "[model.layers.1.mlp.up_proj.lora_A.weight F32 [{64 } {-1 model.layers.1.mlp.up_proj.lora_A.rank}] model.layers.1.mlp.up_proj.lora_B.weight F32 [{-1 model.layers.1.mlp.up_proj.lora_A.rank} {128 }]]"
	if s := fmt.Sprint(in); s != want {
		t.Errorf("inputs %s, want %s", s, want)
	}
}

func TestRefused(t *testing.T) {
	m := open(t, tiny+"base.onnx")
	p, path := inject(t, m, branch.Options{})
	for a, code := range map[string]string{
		"adapters/dora": "adapter.unsupported_feature", "adapters/modules-to-save": "adapter.unsupported_feature", "adapters/embedding": "adapter.unsupported_feature",
	} {
		x, err := dialect.Open(tiny+a, dialect.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer x.Close()
		if _, err := p.Parameters([]merge.Input{{Adapter: x, Scale: 1}}); finding.Of(err) == nil || finding.Of(err).Code != code {
			t.Errorf("%s: %v, want %s", a, err, code)
		}
	}
	for code, change := range map[string]func(u *adapter.Update){
		"adapter.shape_mismatch": func(u *adapter.Update) { u.A = adapter.FromValues(2, 3, make([]float32, 6)) },
		"match.unmatched_target": func(u *adapter.Update) { u.Module = "model.layers.7.nothing" },
	} {
		in := made(p, 2)
		change(&in[0].Adapter.Updates[0])
		if _, err := p.Parameters(in); finding.Of(err) == nil || finding.Of(err).Code != code {
			t.Errorf("%v, want %s", err, code)
		}
	}
	again := open(t, path)
	q, err := branch.NewPlan(again, branch.Options{})
	if err == nil {
		_, err = q.Layout("o.onnx", layout.Options{})
	}
	if f := finding.Of(err); f == nil || f.Code != "output.duplicate_name" {
		t.Errorf("branches twice: %v", err)
	}
	if _, err := branch.NewPlan(m, branch.Options{Include: regexp.MustCompile("nothing")}); finding.Of(err) == nil || finding.Of(err).Code != "match.nothing_to_do" {
		t.Errorf("no layer: %v", err)
	}
}
