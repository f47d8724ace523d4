package model_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/branch"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/internal/oracle"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/onnxruntime"
	"github.com/loratool/loratool/tensor"
	"github.com/loratool/loratool/verify"
	"github.com/loratool/loratool/verify/model"
)

const tiny = "../../testdata/tiny-llama/"

func open(t testing.TB, path string) *onnx.Model {
	t.Helper()
	m, err := onnx.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// made is an adapter of rank 3 for every layer of a model that can have a branch.
func made(t testing.TB, m *onnx.Model, size float32) *adapter.Adapter {
	t.Helper()
	p, err := branch.NewPlan(m, branch.Options{})
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	normal := func(n int64) []float32 {
		v := make([]float32, n)
		for i := range v {
			v[i] = size * float32(random.NormFloat64())
		}
		return v
	}
	a := &adapter.Adapter{Path: "made", Space: naming.HF}
	for _, l := range p.Layers {
		if strings.Contains(l.Module, "embeddings.word") {
			continue // a weight that the embedding reads, too
		}
		a.Updates = append(a.Updates, adapter.Update{
			Target: adapter.Target{Module: l.Module, Param: "weight"}, Kind: adapter.LowRank, Layer: adapter.Linear, Rank: 3,
			A: adapter.FromValues(3, l.In, normal(3*l.In)), B: adapter.FromValues(l.Out, 3, normal(3*l.Out)), Scale: adapter.Scale{Value: 1},
		})
	}
	return a
}

// merged merges an adapter into a model, quantized layers too, and returns the report that the checks by modules make.
func merged(t testing.TB, m *onnx.Model, a *adapter.Adapter, scale float64) (*onnx.Model, *verify.Report) {
	t.Helper()
	decoded := func(path string) formats.Writable {
		x, err := formats.Open(path)
		if err == nil {
			x, err = formats.Decode(x)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { x.Close() })
		return x.(formats.Writable)
	}
	base := decoded(m.Path())
	plan, err := merge.NewPlan(base, []merge.Input{{Adapter: a, Scale: scale}}, merge.Options{Resolve: merge.Resolvers(base)})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "merged.onnx")
	l, err := plan.Layout(base, path, layout.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := layout.Create(path, l, false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if _, err := merge.Run(t.Context(), plan, l, w, merge.RunOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	r, err := verify.Merge(t.Context(), plan, decoded(path), verify.MergeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return open(t, path), r
}

// check runs the whole-model check of base + a against a model, and returns its report.
func check(t testing.TB, rt *onnxruntime.Runtime, base, out *onnx.Model, a *adapter.Adapter, modules []verify.Module, how model.Making) *verify.Report {
	t.Helper()
	c, err := model.New(base, out, []merge.Input{{Adapter: a, Scale: 1}}, rt.Provider(), how)
	if err != nil {
		t.Fatal(err)
	}
	r := &verify.Report{Modules: modules}
	if err := c.Run(t.Context(), rt, r); err != nil {
		t.Fatal(err)
	}
	return r
}

func ints(t testing.TB, d tensor.DType, v []int64, shape ...int64) model.Array {
	t.Helper()
	a := model.Array{Spec: tensor.Spec{DType: tensor.I64, Shape: shape}}
	for _, x := range v {
		a.Data = protowire.AppendFixed64(a.Data, uint64(x))
	}
	a.DType = d
	return a
}

// TestWholeModels merges into models of five exporters, rightly and wrongly.
func TestWholeModels(t *testing.T) {
	rt := oracle.Runtime(t)
	for _, c := range []struct {
		path   string
		size   float32 // of the adapter's factors
		inputs []string
	}{
		{tiny + "base.onnx", 0.1, []string{"random below 256"}},
		{tiny + "base-dynamo.onnx", 0.1, []string{"random below 256"}},
		{"bert_toy_optimized.onnx", 0.1, []string{"random below 99", "all 0", "all 1"}},
		{"genai-tiny-random-gpt2-fp32-past.onnx", 0.1, []string{"random below 1000", "ascending", "all 1", "all 0", "all 0", "all 0", "all 0", "all 0"}},
		{"gpt2_past_one_layer.onnx", 0.1, []string{"random below 20", "all 0"}},
		{"zero_model.onnx", 0.1, []string{"normally distributed"}},
	} {
		t.Run(filepath.Base(c.path), func(t *testing.T) {
			path := c.path
			if !strings.Contains(path, "/") {
				path = corpus.Path(t, "onnx", "naming", path)
			}
			base := open(t, path)
			how := model.Making{Seed: 5}
			if strings.HasPrefix(filepath.Base(path), "zero") {
				how.Dims = map[string]int64{"input-0_dim0": 3, "input-0_dim1": 28 * 28}
			}
			a := made(t, base, c.size)
			out, modules := merged(t, base, a, 1)
			r := check(t, rt, base, out, a, modules.Modules, how)
			w := r.WholeModel
			var sources []string
			for _, in := range w.Inputs {
				sources = append(sources, in.Source)
			}
			if r.Verdict != verify.Accept || !w.Pass || w.Provider != "cpu" || w.Branches != len(a.Updates) || strings.Join(sources, "|") != strings.Join(c.inputs, "|") {
				t.Fatalf("%s: %+v, inputs %q", r.Verdict, w, sources)
			}
			effect, worst := 0.0, 0.0
			for _, o := range w.Outputs {
				effect, worst = max(effect, o.Effect), max(worst, o.RelError)
			}
			if effect < 1e-2 || worst > effect/10 {
				t.Errorf("effect %g, error %g", effect, worst)
			}
			t.Logf("effect %.2e, relative error %.1e of at most %.1e", effect, worst, w.Outputs[0].Limit)
			// The same again, wrong.
			for what, scale := range map[string]float64{"twice": 2, "half": 0.5, "subtracted": -1} {
				wrong, _ := merged(t, base, a, scale)
				r := check(t, rt, base, wrong, a, modules.Modules, how)
				if r.Verdict != verify.Reject || r.WholeModel.Pass || r.Findings[0].Code != "merge.whole_model" {
					t.Errorf("%s: %s %+v", what, r.Verdict, r.WholeModel)
				}
			}
			if r := check(t, rt, base, base, a, modules.Modules, how); r.Verdict != verify.Reject || !strings.Contains(r.Findings[0].Message, "is not there") {
				t.Errorf("not merged: %s %+v", r.Verdict, r.WholeModel)
			}
		})
	}
}

// TestNoEffect compares nothing with nothing.
func TestNoEffect(t *testing.T) {
	rt := oracle.Runtime(t)
	base := open(t, tiny+"base.onnx")
	a := made(t, base, 0)
	r := check(t, rt, base, base, a, nil, model.Making{})
	if r.Verdict != verify.Reject || r.WholeModel.Pass || r.Findings[0].Code != "merge.whole_model_no_effect" {
		t.Errorf("%s %+v", r.Verdict, r.Findings)
	}
}

// TestSameInputs makes the same values of the same seed, and others of another.
func TestSameInputs(t *testing.T) {
	rt := oracle.Runtime(t)
	base := open(t, tiny+"base.onnx")
	a := made(t, base, 0.1)
	out, modules := merged(t, base, a, 1)
	effect := func(seed uint64) float64 {
		return check(t, rt, base, out, a, modules.Modules, model.Making{Seed: seed}).WholeModel.Outputs[0].Effect
	}
	if effect(1) != effect(1) || effect(1) == effect(2) {
		t.Error("the inputs do not follow the seed")
	}
}

// TestOnGPU runs whole models on a GPU, where the products must be computed there.
func TestOnGPU(t *testing.T) {
	lib, err := onnxruntime.Locate("")
	if err != nil {
		t.Skipf("without ONNX Runtime: %v", err)
	}
	for _, d := range []onnxruntime.Provider{onnxruntime.CUDA, onnxruntime.WebGPU} {
		t.Run(string(d), func(t *testing.T) {
			exe, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			rt, err := onnxruntime.Open(t.Context(), lib, onnxruntime.Options{Device: onnxruntime.Device(d), Prober: onnxruntime.ChildProber(exe)})
			if err != nil {
				if os.Getenv("LORATOOL_GPU") == string(d) {
					t.Fatal("LORATOOL_GPU asks for the device: ", err)
				}
				t.Skip("no such device here: ", err)
			}
			for _, name := range []string{"base.onnx", "base-dynamo.onnx"} {
				base := open(t, tiny+name)
				a := made(t, base, 0.1)
				out, modules := merged(t, base, a, 1)
				w := check(t, rt, base, out, a, modules.Modules, model.Making{}).WholeModel
				if !w.Pass || w.Provider != string(d) || w.OnDevice < 3*len(a.Updates) {
					t.Errorf("%s: %+v", name, w)
				}
				t.Logf("%s: %d operators on the device, %d on the CPU, relative error %.1e, effect %.1e", name, w.OnDevice, w.OnCPU, w.Outputs[0].RelError, w.Outputs[0].Effect)
				if w := check(t, rt, base, base, a, modules.Modules, model.Making{}).WholeModel; w.Pass {
					t.Errorf("%s: not merged passes: %+v", name, w)
				}
			}
		})
	}
}

func TestMain(m *testing.M) {
	onnxruntime.ServeProbe() // a child that tries a provider ends here
	os.Exit(m.Run())
}

func code(err error) string {
	if f := finding.Of(err); f != nil {
		return f.Code
	}
	return ""
}

// TestGiven takes inputs from files, of the model's types and of others.
func TestGiven(t *testing.T) {
	rt := oracle.Runtime(t)
	base := open(t, tiny+"base.onnx")
	a := made(t, base, 0.1)
	out, modules := merged(t, base, a, 1)
	path := filepath.Join(t.TempDir(), "in.json")
	if err := os.WriteFile(path, []byte(`{"input_ids": [[1, 2, 3], [4, 5, 6]]}`), 0o666); err != nil {
		t.Fatal(err)
	}
	given, err := model.ReadInputs(path)
	if err != nil {
		t.Fatal(err)
	}
	r := check(t, rt, base, out, a, modules.Modules, model.Making{Given: given})
	if w := r.WholeModel; !w.Pass || w.Inputs[0].Source != "given" || len(w.Outputs[0].Shape) != 3 || w.Outputs[0].Shape[0] != 2 || w.Outputs[0].Shape[1] != 3 {
		t.Errorf("%+v", w)
	}
	refuse := func(want string, how model.Making) {
		t.Helper()
		if _, err := model.New(base, out, []merge.Input{{Adapter: a, Scale: 1}}, rt.Provider(), how); code(err) != want {
			t.Errorf("%v, expected %s", err, want)
		}
	}
	one := func(name string, a model.Array) model.Making {
		return model.Making{Given: map[string]model.Array{name: a}}
	}
	refuse("runtime.bad_input", one("nope", ints(t, tensor.I64, []int64{1}, 1, 1)))
	refuse("runtime.bad_input", one("input_ids", ints(t, tensor.I64, []int64{1}, 1)))
	refuse("runtime.bad_input", one("input_ids", ints(t, tensor.F64, []int64{1}, 1, 1)))
	refuse("runtime.bad_input", model.Making{Dims: map[string]int64{"nope": 3}})
	refuse("", model.Making{Dims: map[string]int64{"sequence": 3}})
	// A number beyond the vocabulary: the runtime's own message, in context.
	c, err := model.New(base, out, []merge.Input{{Adapter: a, Scale: 1}}, rt.Provider(), one("input_ids", ints(t, tensor.I64, []int64{1 << 20}, 1, 1)))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Run(t.Context(), rt, &verify.Report{}); code(err) != "runtime.model_refused" || !strings.Contains(err.Error(), "out of data bounds") {
		t.Errorf("%v", err)
	}
}

// TestNeedsInputs names the input whose shape nothing tells, and how to give it.
func TestNeedsInputs(t *testing.T) {
	base := open(t, corpus.Path(t, "onnx", "naming", "zero_model.onnx"))
	_, err := model.New(base, base, []merge.Input{{Adapter: made(t, base, 1), Scale: 1}}, onnxruntime.CPU, model.Making{})
	f := finding.Of(err)
	if code(err) != "runtime.input_needed" || !strings.Contains(f.Message, `"input-0"`) || !strings.Contains(f.Hint, "--dim input-0_dim0=N") {
		t.Errorf("%v, hint %v", err, f)
	}
}

// TestUnsupported refuses what a branch cannot express before anything runs.
func TestUnsupported(t *testing.T) {
	base := open(t, tiny+"base.onnx")
	a, err := dialect.Open(tiny+"adapters/dora", dialect.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	_, err = model.New(base, base, []merge.Input{{Adapter: a, Scale: 1}}, onnxruntime.CPU, model.Making{})
	if code(err) != "adapter.unsupported_feature" || !strings.Contains(finding.Of(err).Hint, "--whole-model") {
		t.Errorf("%v", err)
	}
}

// Models by hand, of protobuf fields.

func num(n protowire.Number, v int64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, n, protowire.VarintType), uint64(v))
}

func msg(n protowire.Number, parts ...[]byte) []byte {
	var b []byte
	for _, p := range parts {
		b = append(b, p...)
	}
	return protowire.AppendBytes(protowire.AppendTag(nil, n, protowire.BytesType), b)
}

func str(n protowire.Number, s string) []byte { return msg(n, []byte(s)) }

func normal(n int) []float64 {
	random := rand.New(rand.NewPCG(9, 9))
	v := make([]float64, n)
	for i := range v {
		v[i] = random.NormFloat64()
	}
	return v
}

func floats(n int) []byte {
	var b []byte
	for _, x := range normal(n) {
		b = protowire.AppendFixed32(b, math.Float32bits(float32(2*x)))
	}
	return b
}

// constantModel computes y = x·W with a constant x: a graph without inputs. y is of some type.
func constantModel(t *testing.T, external bool, to int64) string {
	t.Helper()
	dir := t.TempDir()
	weight := [][]byte{num(1, 6), num(1, 4), num(2, 1), str(8, "a.q_proj.weight")}
	if external {
		if err := os.WriteFile(filepath.Join(dir, "w.data"), floats(24), 0o666); err != nil {
			t.Fatal(err)
		}
		weight = append(weight, msg(13, str(1, "location"), str(2, "w.data")), num(14, 1))
	} else {
		weight = append(weight, msg(9, floats(24)))
	}
	graph := msg(7,
		msg(1, str(1, "x"), str(1, "a.q_proj.weight"), str(2, "p"), str(3, "/a/q_proj/MatMul"), str(4, "MatMul")),
		msg(1, str(1, "p"), str(2, "y"), str(4, "Cast"), msg(5, str(1, "to"), num(3, to), num(20, 2))),
		str(2, "g"), msg(5, weight...),
		msg(5, num(1, 3), num(1, 6), num(2, 1), str(8, "x"), msg(9, floats(18))),
		msg(12, str(1, "y"), msg(2, msg(1, num(1, to)))))
	path := filepath.Join(dir, "m.onnx")
	b := append(append(num(1, 8), graph...), msg(8, num(2, 17))...)
	if err := os.WriteFile(path, b, 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestConstantModels runs graphs without inputs, outputs of other types than float32, and external data beside the
// model and behind a link.
func TestConstantModels(t *testing.T) {
	rt := oracle.Runtime(t)
	for name, c := range map[string]struct {
		external, link bool
		to             int64
	}{
		"inline": {to: 1}, "external": {external: true, to: 1}, "linked": {external: true, link: true, to: 1},
		"float16": {to: 10, external: true}, "bfloat16": {to: 16}, "float64": {to: 11}, "int32": {to: 6},
	} {
		t.Run(name, func(t *testing.T) {
			path := constantModel(t, c.external, c.to)
			if c.link {
				dir := filepath.Dir(path)
				if err := os.Mkdir(filepath.Join(dir, "blobs"), 0o777); err != nil {
					t.Fatal(err)
				}
				if err := os.Rename(filepath.Join(dir, "w.data"), filepath.Join(dir, "blobs", "w")); err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(filepath.Join("blobs", "w"), filepath.Join(dir, "w.data")); err != nil {
					t.Skip(err)
				}
			}
			base := open(t, path)
			a := made(t, base, 1)
			out, modules := merged(t, base, a, 1)
			r := check(t, rt, base, out, a, modules.Modules, model.Making{})
			if r.Verdict != verify.Accept || len(r.WholeModel.Inputs) != 0 || r.WholeModel.Outputs[0].Effect < 0.1 {
				t.Errorf("%s %+v", r.Verdict, r.WholeModel)
			}
			if r := check(t, rt, base, base, a, modules.Modules, model.Making{}); r.Verdict != verify.Reject {
				t.Errorf("not merged: %s %+v", r.Verdict, r.WholeModel)
			}
		})
	}
}

// TestQuantizedLayers merges into layers of 4 bits, whose products may round their inputs to 8 bits: what the adapter
// does is still there, and its absence is seen.
func TestQuantizedLayers(t *testing.T) {
	rt := oracle.Runtime(t)
	const layers, n = 3, 64
	for _, accuracy := range []int64{0, 4} {
		t.Run(fmt.Sprintf("accuracy level %d", accuracy), func(t *testing.T) {
			random := rand.New(rand.NewPCG(5, 6))
			codes := make([]byte, n*n/2)
			for i := range codes {
				codes[i] = byte(random.Uint32())
			}
			var scales []byte
			for range n * n / 32 {
				scales = protowire.AppendFixed32(scales, math.Float32bits(0.02+0.02*random.Float32()))
			}
			attr := func(name string, v int64) []byte { return msg(5, str(1, name), num(3, v), num(20, 2)) }
			var parts [][]byte
			in := "x"
			for i := range layers {
				w, s, out := fmt.Sprintf("w%d", i), fmt.Sprintf("s%d", i), fmt.Sprintf("h%d", i)
				parts = append(parts, msg(1, str(1, in), str(1, w), str(1, s), str(2, out), str(3, fmt.Sprintf("/model/layers.%d/q_proj/MatMul_Q4", i)), str(4, "MatMulNBits"), str(7, "com.microsoft"),
					attr("K", n), attr("N", n), attr("bits", 4), attr("block_size", 32), attr("accuracy_level", accuracy)),
					msg(5, num(1, n), num(1, n/32), num(1, 16), num(2, 2), str(8, w), msg(9, codes)), msg(5, num(1, n*n/32), num(2, 1), str(8, s), msg(9, scales)))
				in = out
			}
			shape := msg(2, msg(1, str(2, "batch")), msg(1, str(2, "seq")), msg(1, num(1, n)))
			for field, name := range map[protowire.Number]string{11: "x", 12: in} {
				parts = append(parts, msg(field, str(1, name), msg(2, msg(1, num(1, 1), shape))))
			}
			path := filepath.Join(t.TempDir(), "m.onnx")
			b := append(num(1, 10), msg(7, append(parts, str(2, "g"))...)...)
			b = append(append(b, msg(8, num(2, 21))...), msg(8, str(1, "com.microsoft"), num(2, 1))...)
			if err := os.WriteFile(path, b, 0o666); err != nil {
				t.Fatal(err)
			}
			base := open(t, path)
			a := made(t, base, 0.2)
			out, modules := merged(t, base, a, 1)
			w := check(t, rt, base, out, a, modules.Modules, model.Making{}).WholeModel
			if o := w.Outputs[0]; !w.Pass || o.Effect < 0.1 || o.Why != "" {
				t.Errorf("%+v", w)
			}
			for what, scale := range map[string]float64{"twice": 2, "subtracted": -1} {
				wrong, _ := merged(t, base, a, scale)
				if w := check(t, rt, base, wrong, a, modules.Modules, model.Making{}).WholeModel; w.Pass {
					t.Errorf("%s: %+v", what, w.Outputs)
				}
			}
			if w := check(t, rt, base, base, a, modules.Modules, model.Making{}).WholeModel; w.Pass {
				t.Errorf("not merged: %+v", w.Outputs)
			}
		})
	}
}
