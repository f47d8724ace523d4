package verify_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/internal/oracle"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/onnxruntime"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/quant/recipe"
	"github.com/loratool/loratool/tensor"
	"github.com/loratool/loratool/verify"
)

// carryOut writes what a plan makes into a new file or folder.
func carryOut(t testing.TB, base formats.Writable, plan *merge.Plan) string {
	t.Helper()
	out, _ := carryOutBy(t, base, plan, merge.RunOptions{})
	return out
}

func carryOutBy(t testing.TB, base formats.Writable, plan *merge.Plan, run merge.RunOptions) (string, []merge.Stats) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "merged"+filepath.Ext(base.Path()))
	l, err := plan.Layout(base, out, layout.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := layout.Create(out, l, false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	stats, err := merge.Run(context.Background(), plan, l, w, run)
	if err == nil {
		err = w.Commit()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out, stats
}

// square is a trained adapter's updates of the square modules, so that a transposed one fits as well.
func square(t *testing.T) *adapter.Adapter {
	t.Helper()
	a, err := dialect.Open(filepath.Join(tiny, "adapter"), dialect.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	only := *a
	only.Updates = slices.Clone(a.Updates)
	only.Updates = slices.DeleteFunc(only.Updates, func(u adapter.Update) bool {
		return !strings.HasSuffix(u.Module, "q_proj") && !strings.HasSuffix(u.Module, "o_proj")
	})
	if len(only.Updates) != 4 {
		t.Fatalf("%d square modules", len(only.Updates))
	}
	return &only
}

// transposed changes every weight by the transpose of what it should be changed by: Aᵀ and Bᵀ change places.
func transposed(a *adapter.Adapter) *adapter.Adapter {
	w := *a
	w.Updates = slices.Clone(a.Updates)
	for i := range w.Updates {
		u := &w.Updates[i]
		u.A, u.B = u.B.Transpose(), u.A.Transpose()
	}
	return &w
}

// swapped gives each module the update of the next one of its kind.
func swapped(a *adapter.Adapter) *adapter.Adapter {
	w := *a
	w.Updates = slices.Clone(a.Updates)
	n := len(w.Updates)
	for i := range w.Updates {
		from := a.Updates[(i+n/2)%n]
		w.Updates[i].A, w.Updates[i].B, w.Updates[i].Scale = from.A, from.B, from.Scale
	}
	return &w
}

// A storage is a way to store a model, and how to merge into it.
type storage struct {
	name    string
	open    func(t *testing.T) formats.Writable
	swallow float64       // scale of an adapter that the type's rounding eats
	requant merge.Requant // for that
	// through is a type whose rounding the merged weights go through before they are stored in a finer one, as in a
	// merge that computes in it.
	through tensor.DType
}

// quantized is the model as GGUF of another type.
func quantized(t *testing.T, name string) formats.Writable {
	t.Helper()
	r, err := recipe.Of(name)
	if err != nil {
		t.Fatal(err)
	}
	base := open(t, filepath.Join(tiny, "base-f16.gguf"))
	plan, err := merge.NewPlan(base, nil, merge.Options{Quantize: &merge.Quantization{Recipe: r}})
	if err != nil {
		t.Fatal(err)
	}
	return open(t, carryOut(t, base, plan))
}

// packedSquare is a graph of two MatMulNBits layers of 64 × 64 in 4 bits, named as the model's q_proj are.
func packedSquare(t *testing.T) formats.Writable {
	t.Helper()
	var graph [][]byte
	in := "x"
	for i, kind := range []string{"q_proj", "o_proj", "q_proj", "o_proj"} {
		n := fmt.Sprintf("/model/layers.%d/self_attn/%s/MatMul_Q4", i/2, kind)
		w, s, out := fmt.Sprintf("weight%d", i), fmt.Sprintf("scales%d", i), fmt.Sprintf("out%d", i)
		if i == 3 {
			out = "y"
		}
		graph = append(graph,
			pbNode("MatMulNBits", n, in+" "+w+" "+s, out, inMicrosoft, pbAttr("K", 64), pbAttr("N", 64), pbAttr("bits", 4), pbAttr("block_size", 32)),
			pbTensor(w, 2, randomBytes(uint64(i+20), 64*2*16), 64, 2, 16), pbTensor(s, 1, randomScales(uint64(i+20), 128), 128))
		in = out
	}
	return openDecoded(t, packedGraph(t, graph))
}

func storages() []storage {
	at := func(name string) func(*testing.T) formats.Writable {
		return func(t *testing.T) formats.Writable { return open(t, filepath.Join(tiny, name)) }
	}
	return []storage{
		{name: "safetensors BF16", open: at("base"), swallow: 2e-3},
		{name: "GGUF F16", open: at("base-f16.gguf"), swallow: 5e-4},
		{name: "GGUF Q8_0", open: at("base-q8_0.gguf"), swallow: 3e-3, requant: merge.RequantNearest},
		{name: "GGUF Q4_0", open: func(t *testing.T) formats.Writable { return quantized(t, "Q4_0") }, swallow: 1e-2, requant: merge.RequantNearest},
		{name: "GGUF Q5_1", open: func(t *testing.T) formats.Writable { return quantized(t, "Q5_1") }, swallow: 1e-2, requant: merge.RequantNearest},
		{name: "ONNX F32", open: at("base.onnx"), swallow: 1e-3, through: tensor.BF16},
		{name: "ONNX MatMulNBits", open: packedSquare, swallow: 1e-2, requant: merge.RequantNearest},
	}
}

// TestWrongMerges makes every wrong merge in every kind of storage: the exact check and ONNX Runtime each find it, in
// every module, and say what it is; the right merge passes both.
func TestWrongMerges(t *testing.T) {
	rt := oracle.Try(t)
	for _, s := range storages() {
		t.Run(s.name, func(t *testing.T) {
			base := s.open(t)
			a := square(t)
			if s.name == "ONNX MatMulNBits" { // whose weights are larger
				a = stronger(a, 8)
			}
			plan := func(a *adapter.Adapter, scale float64, requant merge.Requant) *merge.Plan {
				p, err := merge.NewPlan(base, []merge.Input{{Adapter: a, Scale: scale}}, merge.Options{Resolve: merge.Resolvers(base), Requant: requant})
				if err != nil {
					t.Fatal(err)
				}
				return p
			}
			path := func(a *adapter.Adapter, scale float64) string { return carryOut(t, base, plan(a, scale, "")) }
			again := func() string { // base + adapter, and once more
				once, err := formats.Open(path(a, 1))
				if err == nil {
					once, err = formats.Decode(once)
				}
				if err != nil {
					t.Fatal(err)
				}
				defer once.Close()
				p, err := merge.NewPlan(once.(formats.Writable), []merge.Input{{Adapter: a, Scale: 1}}, merge.Options{Resolve: merge.Resolvers(once.(formats.Writable))})
				if err != nil {
					t.Fatal(err)
				}
				return carryOut(t, once.(formats.Writable), p)
			}
			right := plan(a, 1, "")
			for _, c := range []struct {
				what, path string
				want       *merge.Plan // what it should be
				code       string
				said       string // in the exact check's message
			}{
				{"right", path(a, 1), right, "", ""},
				{"not merged", base.Path(), right, "merge.not_merged", "the adapter is not in it"},
				{"twice", again(), right, "merge.equivalence", "merged twice"},
				{"wrong sign", path(a, -1), right, "merge.equivalence", "wrong sign"},
				{"alpha halved", path(a, 0.5), right, "merge.equivalence", "0.5"},
				{"alpha doubled", path(a, 2), right, "merge.equivalence", "merged twice, or with twice the scale"},
				{"transposed", path(transposed(a), 1), right, "merge.equivalence", "something else was added"},
				{"wrong module", path(swapped(a), 1), right, "merge.equivalence", "something else was added"},
				{"swallowed", s.swallowed(t, base, plan(a, s.swallow, s.requant)), plan(a, s.swallow, s.requant), "merge.retention_lost", ""},
			} {
				t.Run(c.what, func(t *testing.T) { wrong(t, rt, s, c.want, c.path, c.code, c.said) })
			}
		})
	}
}

// stronger is an adapter with a larger scale.
func stronger(a *adapter.Adapter, by float64) *adapter.Adapter {
	w := *a
	w.Updates = slices.Clone(a.Updates)
	for i := range w.Updates {
		w.Updates[i].Scale.Value *= by
	}
	return &w
}

// swallowed is a merge of which the rounding of a type has left little.
func (s storage) swallowed(t *testing.T, base formats.Writable, plan *merge.Plan) string {
	t.Helper()
	path := carryOut(t, base, plan)
	if s.through == tensor.Invalid {
		return path
	}
	m := open(t, path)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	updated := map[string]bool{}
	for i := range plan.Tensors {
		updated[plan.Tensors[i].Name] = len(plan.Tensors[i].Updates) > 0
	}
	for _, x := range m.Tensors() {
		if !updated[x.Name] {
			continue
		}
		v := exactly(t, x)
		coarse, _ := quant.Of(s.through)
		b := make([]byte, len(v)*s.through.BlockBytes())
		if err := coarse.Encode(b, v); err != nil {
			t.Fatal(err)
		}
		coarse.Decode(v, b)
		fine, _ := quant.Of(x.DType)
		b = make([]byte, x.Size)
		if err := fine.Encode(b, v); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(b, x.Off); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// wrong holds the two checks of a merge to what they should say.
func wrong(t *testing.T, rt *onnxruntime.Runtime, s storage, plan *merge.Plan, path, code, said string) {
	var merged merge.Base
	if strings.HasPrefix(s.name, "ONNX M") {
		merged = openDecoded(t, path)
	} else {
		merged = open(t, path)
	}
	r, err := verify.Merge(context.Background(), plan, merged, verify.MergeOptions{All: true, Runtime: rt, NoRuntime: "not wanted"})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Modules) != 4 {
		t.Fatalf("%d modules", len(r.Modules))
	}
	if code == "" {
		if r.Verdict == verify.Reject {
			t.Errorf("%s: %+v", r.Verdict, r.Findings)
		}
	} else if r.Verdict != verify.Reject || r.Findings[0].Code != code || !strings.Contains(r.Findings[0].Message, said) {
		t.Errorf("%s: %+v, expected %s", r.Verdict, r.Findings, code)
	}
	for _, m := range r.Modules {
		if m.Pass != (code == "") {
			t.Errorf("%s: pass %v: %s", m.Module, m.Pass, m.Why)
		}
		if rt == nil {
			continue
		}
		// The runtime's own answer, whatever the exact check says.
		if m.Runtime == nil || m.Runtime.Pass != (code == "") {
			t.Errorf("%s: the runtime says %+v", m.Module, m.Runtime)
		}
	}
	if rt == nil {
		t.Log("ONNX Runtime is not here: its answer is not tested")
	}
}
