package verify_test

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/oracle"
	"github.com/loratool/loratool/internal/trained"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/quant/onnxquant"
	"github.com/loratool/loratool/tensor"
	"github.com/loratool/loratool/verify"
)

// A linear is a weight of the trained model, [out, in].
type linear struct {
	module  string
	out, in int64
	w       []float32
}

func trainedLinears(t *testing.T) (all []linear) {
	t.Helper()
	specs, values := trained.Tensors(t)
	for i, s := range specs {
		if module, ok := strings.CutSuffix(s.Name, ".weight"); ok && strings.HasSuffix(module, "_proj") {
			all = append(all, linear{module, s.Shape[0], s.Shape[1], values[i]})
		}
	}
	return all
}

// turned is the weight [in, out].
func (l *linear) turned() []float32 {
	v := make([]float32, len(l.w))
	for i, x := range l.w {
		o, k := int64(i)/l.in, int64(i)%l.in
		v[k*l.out+o] = x
	}
	return v
}

// parts makes the tensors of a weight, of zeros.
type parts = func(kind string, d tensor.DType, shape ...int64) *tensor.Tensor

type opener interface {
	Open() (*onnxquant.Weight, error)
}

func nbits(bits, block int64, zeros bool) func(*linear, parts) ([][]byte, opener) {
	return func(l *linear, p parts) ([][]byte, opener) {
		name := "/" + strings.ReplaceAll(l.module, ".", "/") + "/MatMul_Q"
		blocks := l.in / block
		n := onnxquant.NBits{K: l.in, N: l.out, Bits: bits, Block: block, Codes: p("w", tensor.U8, l.out, blocks, block*bits/8), Scale: p("s", tensor.F32, l.out*blocks)}
		in := fmt.Sprintf("x%d %s %s", l.in, n.Codes.Name, n.Scale.Name)
		if zeros {
			n.Zero = p("z", tensor.U8, l.out, (blocks*bits+7)/8)
			in += " " + n.Zero.Name
		}
		return [][]byte{pbNode("MatMulNBits", name, in, l.module+".y", inMicrosoft,
			pbAttr("K", l.in), pbAttr("N", l.out), pbAttr("bits", bits), pbAttr("block_size", block))}, n
	}
}

func dequantized(codes tensor.DType, block int64, zeros bool) func(*linear, parts) ([][]byte, opener) {
	return func(l *linear, p parts) ([][]byte, opener) {
		axis, scales := int64(1), []int64{l.out}
		if block > 0 {
			axis, scales = 0, []int64{l.in / block, l.out}
		}
		n := onnxquant.Linear{Axis: axis, Block: block, Codes: p("weight_quantized", codes, l.in, l.out), Scale: p("s", tensor.F32, scales...)}
		in := n.Codes.Name + " " + n.Scale.Name
		if zeros {
			n.Zero = p("z", codes, scales...)
			in += " " + n.Zero.Name
		}
		attrs := [][]byte{pbAttr("axis", axis)}
		if block > 0 {
			attrs = append(attrs, pbAttr("block_size", block))
		}
		return [][]byte{pbNode("DequantizeLinear", l.module+".d", in, l.module+".f", attrs...),
			pbNode("MatMul", l.module+".m", fmt.Sprintf("x%d %s.f", l.in, l.module), l.module+".y")}, n
	}
}

func bnb4(nf4 bool) func(*linear, parts) ([][]byte, opener) {
	return func(l *linear, p parts) ([][]byte, opener) {
		n := onnxquant.Bnb4{K: l.in, N: l.out, Block: 64, NF4: nf4, Codes: p("w", tensor.U8, l.out*l.in/2), Absmax: p("s", tensor.F32, l.out*l.in/64)}
		kind := int64(0)
		if nf4 {
			kind = 1
		}
		name := "/" + strings.ReplaceAll(l.module, ".", "/") + "/MatMul_Bnb4"
		return [][]byte{pbNode("MatMulBnb4", name, fmt.Sprintf("x%d %s %s", l.in, n.Codes.Name, n.Absmax.Name), l.module+".y", inMicrosoft,
			pbAttr("K", l.in), pbAttr("N", l.out), pbAttr("block_size", 64), pbAttr("quant_type", kind))}, n
	}
}

// absmax are the scales that bitsandbytes gives blocks.
func absmax(w []float32, block int) []byte {
	v := make([]float32, len(w)/block)
	for i, x := range w {
		v[i/block] = max(v[i/block], max(x, -x))
	}
	b := make([]byte, 0, 4*len(v))
	for _, x := range v {
		u := math.Float32bits(x)
		b = append(b, byte(u), byte(u>>8), byte(u>>16), byte(u>>24))
	}
	return b
}

var graphSchemes = []struct {
	name    string
	nearest float64 // the nearest codes keep at most this, on average
	turned  bool
	node    func(*linear, parts) ([][]byte, opener)
}{
	{"MatMulNBits 4-bit, blocks of 32", 0.36, false, nbits(4, 32, false)},
	{"MatMulNBits 4-bit, blocks of 128", 0.2, false, nbits(4, 128, false)},
	{"MatMulNBits 4-bit with zero points", 0.5, false, nbits(4, 32, true)},
	{"MatMulNBits 2-bit with zero points", 0.1, false, nbits(2, 32, true)},
	{"MatMulNBits 8-bit", 1.1, false, nbits(8, 128, false)},
	{"int4 in blocks of rows", 0.36, true, dequantized(tensor.I4, 32, false)},
	{"uint4 in blocks of rows with zero points", 0.5, true, dequantized(tensor.U4, 64, true)},
	{"int8 by columns", 1.1, true, dequantized(tensor.I8, 0, false)},
	{"MatMulBnb4 NF4", 0.5, false, bnb4(true)},
	{"MatMulBnb4 FP4", 0.5, false, bnb4(false)},
}

// quantizedGraph is the trained model's linears as a graph of independent products.
func quantizedGraph(t *testing.T, ls []linear, turned bool, node func(*linear, parts) ([][]byte, opener)) string {
	t.Helper()
	var graph [][]byte
	for i := range ls {
		l := &ls[i]
		var made []*tensor.Tensor
		nodes, of := node(l, func(kind string, d tensor.DType, shape ...int64) *tensor.Tensor {
			x := tensor.Tensor{Spec: tensor.Spec{Name: l.module + "." + kind, DType: d, Shape: shape}}
			n, err := x.Spec.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			x.Src, x.Size = bytes.NewReader(make([]byte, n)), n
			made = append(made, &x)
			return &x
		})
		w := l.w
		if turned {
			w = l.turned()
		}
		if _, ok := of.(onnxquant.Bnb4); ok {
			made[1].Src = bytes.NewReader(absmax(w, 64))
		}
		store(t, of, made, w)
		graph = append(graph, nodes...)
		for _, x := range made {
			b, err := x.Read()
			if err != nil {
				t.Fatal(err)
			}
			kind := map[tensor.DType]int64{tensor.U8: 2, tensor.I8: 3, tensor.F32: 1, tensor.U4: 21, tensor.I4: 22}[x.DType]
			graph = append(graph, pbTensor(x.Name, kind, b, x.Shape...))
		}
		graph = append(graph, pbValue(12, l.module+".y"))
	}
	graph = append(graph, pbNode("Identity", "last", ls[0].module+".y", "y"), pbValue(11, "x256"), pbValue(11, "x768"))
	return packedGraph(t, graph)
}

// store encodes a weight into its tensors.
func store(t *testing.T, of opener, made []*tensor.Tensor, w []float32) {
	t.Helper()
	weight, err := of.Open()
	if err != nil {
		t.Fatal(err)
	}
	e, err := weight.Codes()
	if err != nil || e == nil {
		t.Fatalf("no encoding: %v", err)
	}
	rest := w
	if err := e.Measure(func() ([]float32, int64, error) { r := rest; rest = nil; return r, 0, nil }); err != nil {
		t.Fatal(err)
	}
	dst := make([][]byte, e.Parts())
	for i := range dst {
		_, n := e.Extent(i, 0, weight.Shape[0])
		dst[i] = make([]byte, n)
	}
	if err := e.Encode(dst, w, 0); err != nil {
		t.Fatal(err)
	}
	for i, b := range dst {
		made[i].Src = bytes.NewReader(b)
	}
}

// TestMatchGraphs merges a trained adapter into quantized graphs of its model's linears: it survives in each, and
// ONNX Runtime computes with it.
func TestMatchGraphs(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long with the race detector or an emulator")
	}
	ls := trainedLinears(t)
	a, err := dialect.Open(trained.Adapter(t), dialect.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	rt := oracle.Try(t)
	for _, c := range graphSchemes {
		t.Run(c.name, func(t *testing.T) {
			base := openDecoded(t, quantizedGraph(t, ls, c.turned, c.node))
			plan, stats, out := mergeGraph(t, base, merge.Input{Adapter: a, Scale: 1}, merge.RunOptions{})
			if len(stats) != 28 {
				t.Fatalf("%d modules", len(stats))
			}
			mean, worst, nearest, changed := 0.0, 1.0, 0.0, 0.0
			for _, s := range stats {
				mean += s.Retention / 28
				nearest += s.Nearest.Retention / 28
				changed += s.Changed / 28
				worst = min(worst, s.Retention)
			}
			t.Logf("α %.4f, worst %.4f; nearest %.4f; changed %.1f %%", mean, worst, nearest, 100*changed)
			if math.Abs(mean-1) > 0.02 || worst < 0.9 || nearest > c.nearest {
				t.Errorf("α %.4f, worst %.4f; nearest %.4f", mean, worst, nearest)
			}
			merged := openDecoded(t, out)
			r, err := verify.Merge(context.Background(), plan, merged, verify.MergeOptions{Modules: 4, Runtime: rt, NoRuntime: "not wanted"})
			if err != nil || r.Verdict == verify.Reject || r.Retention.Min < 0.9 {
				t.Errorf("check: %v, %+v", err, r)
			}
			if c.nearest > 1 {
				return
			}
			_, _, slabs := mergeGraph(t, base, merge.Input{Adapter: a, Scale: 1}, merge.RunOptions{Jobs: 3, MaxMemory: 1})
			_, _, nothing := mergeGraph(t, base, merge.Input{Adapter: a, Scale: 0}, merge.RunOptions{})
			if !sameTensors(t, out, slabs) {
				t.Error("the bytes depend on slabs and workers")
			}
			if !sameTensors(t, base.Path(), nothing) || sameTensors(t, base.Path(), out) {
				t.Error("nothing to add changed something, or the adapter did not")
			}
			if strings.HasPrefix(c.name, "MatMulNBits 4-bit, ") {
				keepsLoss(t, ls, base, merged, a)
			}
		})
	}
}

// keepsLoss lets the trained model read Python with the weights of a base, of that with the adapter beside it, and of
// the merge. Its weights are [out, in].
func keepsLoss(t *testing.T, ls []linear, base, merged *formats.PackedGraph, a *adapter.Adapter) {
	t.Helper()
	text, err := os.ReadFile(corpus.Path(t, "trained", "eval", "python.bin"))
	if err != nil {
		t.Fatal(err)
	}
	loss := func(m *formats.PackedGraph, beside bool) float64 {
		weights := trained.Weights(t)
		for i := range ls {
			l := &ls[i]
			w := exactly(t, m.Weight(l.module+".w").Exact)
			for _, u := range a.Updates {
				if u.Module != l.module || !beside {
					continue
				}
				down, _ := u.A.Load()
				up, _ := u.B.Load()
				kernel.NewLowRank(up, down, int(l.out), int(l.in), u.Rank, float32(u.Scale.Value)).Apply(w, int(l.in), 0, int(l.out))
			}
			weights[l.module+".weight"] = w
		}
		return trained.NewLlama(weights).Loss(text[:5*256], 256, 1)
	}
	without, beside, with := loss(base, false), loss(base, true), loss(merged, false)
	kept := (without - with) / (without - beside)
	t.Logf("loss %.4f, with the adapter beside it %.4f, matched %.4f (%.1f %%)", without, beside, with, 100*kept)
	if without-beside < 0.2 || kept < 0.97 {
		t.Errorf("the loss keeps %.3f of what the adapter does", kept)
	}
}

// mergeGraph merges by matched rounding.
func mergeGraph(t *testing.T, base *formats.PackedGraph, in merge.Input, run merge.RunOptions) (plan *merge.Plan, stats []merge.Stats, out string) {
	t.Helper()
	plan, err := merge.NewPlan(base, []merge.Input{in}, merge.Options{Resolve: merge.Resolvers(base), Requant: merge.RequantMatch})
	if err != nil {
		t.Fatal(err)
	}
	out, stats = carryOutBy(t, base, plan, run)
	return plan, stats, out
}

// sameTensors reports whether two models store the same bytes.
func sameTensors(t *testing.T, a, b string) bool {
	t.Helper()
	x, y := openDecoded(t, a).Model.Tensors(), openDecoded(t, b).Model.Tensors()
	for i := range x {
		p, err := x[i].Read()
		if err != nil {
			t.Fatal(err)
		}
		if q, err := y[i].Read(); err != nil || !bytes.Equal(p, q) {
			return false
		}
	}
	return len(x) == len(y)
}
