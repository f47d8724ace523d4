package verify_test

import (
	"bytes"
	"context"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/internal/oracle"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/onnxruntime"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
	"github.com/loratool/loratool/verify"
)

// Models by hand, of protobuf fields.

func pbInt(n protowire.Number, v int64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, n, protowire.VarintType), uint64(v))
}

func pbBytes(n protowire.Number, parts ...[]byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, n, protowire.BytesType), bytes.Join(parts, nil))
}

func pbText(n protowire.Number, s string) []byte { return pbBytes(n, []byte(s)) }

func pbTensor(name string, dataType int64, raw []byte, dims ...int64) []byte {
	var b []byte
	for _, d := range dims {
		b = append(b, pbInt(1, d)...)
	}
	return pbBytes(5, b, pbInt(2, dataType), pbText(8, name), pbBytes(9, raw))
}

func pbAttr(name string, v int64) []byte {
	return pbBytes(5, pbText(1, name), pbInt(3, v), pbInt(20, 2))
}

func pbNode(op, name, in, out string, more ...[]byte) []byte {
	var b []byte
	for _, s := range strings.Split(in, " ") {
		b = append(b, pbText(1, strings.Trim(s, "-"))...)
	}
	for _, s := range strings.Split(out, " ") {
		b = append(b, pbText(2, s)...)
	}
	return pbBytes(1, b, pbText(3, name), pbText(4, op), bytes.Join(more, nil))
}

func pbValue(field protowire.Number, name string) []byte {
	shape := pbBytes(2, pbBytes(1, pbText(2, name+"0")), pbBytes(1, pbText(2, name+"1")))
	return pbBytes(field, pbText(1, name), pbBytes(2, pbBytes(1, pbInt(1, 1), shape)))
}

func randomBytes(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 4))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func randomScales(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 5))
	var b []byte
	for range n {
		b = protowire.AppendFixed32(b, math.Float32bits(0.01+0.01*r.Float32()))
	}
	return b
}

var inMicrosoft = pbText(7, "com.microsoft")

// packedGraphs are graphs y = x·W of a module a.q_proj, W stored in some scheme, in 32, out 6. turned: the
// stored weight is [in, out].
var packedGraphs = []struct {
	name   string
	turned bool
	noise  float64 // bound of the relative distance of what is stored from base + update
	bound  float64 // of that of ONNX Runtime's product from the one with the decoded weight
	graph  [][]byte
}{
	{"MatMulNBits", false, 0.12, 1e-5, [][]byte{
		pbNode("MatMulNBits", "/a/q_proj/MatMul_Q4", "x w s", "y", inMicrosoft, pbAttr("K", 32), pbAttr("N", 6), pbAttr("bits", 4), pbAttr("block_size", 16)),
		pbTensor("w", 2, randomBytes(1, 6*2*8), 6, 2, 8), pbTensor("s", 1, randomScales(1, 12), 12),
	}},
	{"MatMulNBits with zero points", false, 0.12, 1e-5, [][]byte{
		pbNode("MatMulNBits", "/a/q_proj/MatMul_Q4", "x w s z", "y", inMicrosoft, pbAttr("K", 32), pbAttr("N", 6), pbAttr("bits", 4), pbAttr("block_size", 16)),
		pbTensor("w", 2, randomBytes(2, 6*2*8), 6, 2, 8), pbTensor("s", 1, randomScales(2, 12), 12), pbTensor("z", 2, randomBytes(3, 6), 6, 1),
	}},
	{"MatMulNBits of 8 bits, padded", false, 0.01, 1e-5, [][]byte{
		pbNode("MatMulNBits", "/a/q_proj/MatMul_Q8", "x w s", "y", inMicrosoft, pbAttr("K", 32), pbAttr("N", 6), pbAttr("bits", 8), pbAttr("block_size", 64)),
		pbTensor("w", 2, randomBytes(4, 6*64), 6, 1, 64), pbTensor("s", 1, randomScales(4, 6), 6),
	}},
	{"int8 under one scale", false, 0.012, 1e-5, [][]byte{
		pbNode("DequantizeLinear", "d", "a.q_proj.weight_quantized s z", "w"), pbNode("Transpose", "t", "w", "wt"), pbNode("MatMul", "m", "x wt", "y"),
		pbTensor("a.q_proj.weight_quantized", 3, randomBytes(5, 192), 6, 32), pbTensor("s", 1, randomScales(5, 1)), pbTensor("z", 3, []byte{0}),
	}},
	{"int8 by columns", true, 0.01, 1e-5, [][]byte{
		pbNode("DequantizeLinear", "d", "a.q_proj.weight_quantized s", "w", pbAttr("axis", 1)), pbNode("MatMul", "m", "x w", "y"),
		pbTensor("a.q_proj.weight_quantized", 3, randomBytes(6, 192), 32, 6), pbTensor("s", 1, randomScales(6, 6), 6),
	}},
	{"int4 in blocks of rows", true, 0.12, 1e-5, [][]byte{
		pbNode("DequantizeLinear", "d", "a.q_proj.weight_DQ_Q4 s", "w", pbAttr("axis", 0), pbAttr("block_size", 16)), pbNode("MatMul", "m", "x w", "y"),
		pbTensor("a.q_proj.weight_DQ_Q4", 22, randomBytes(7, 96), 32, 6), pbTensor("s", 1, randomScales(7, 12), 2, 6),
	}},
	{"DynamicQuantizeMatMul", true, 0.01, 2e-2, [][]byte{
		pbNode("DynamicQuantizeMatMul", "/a/q_proj/MatMul_quant", "x w s z", "y", inMicrosoft),
		pbTensor("w", 2, randomBytes(8, 192), 32, 6), pbTensor("s", 1, randomScales(8, 6), 6), pbTensor("z", 2, randomBytes(9, 6), 6),
	}},
}

// untouchedLayer is another quantized layer, which no adapter changes: its codes are in int32_data.
func untouchedLayer() [][]byte {
	var codes []byte
	for _, c := range randomBytes(10, 6) {
		codes = protowire.AppendVarint(codes, uint64(c))
	}
	other := pbBytes(5, pbInt(1, 6), pbInt(1, 1), pbInt(2, 2), pbBytes(5, codes), pbText(8, "other"))
	return [][]byte{
		pbNode("DequantizeLinear", "d2", "other s2", "w2"), pbNode("MatMul", "m2", "y w2", "z2"), other, pbTensor("s2", 1, randomScales(11, 1)),
		pbValue(11, "x"), pbValue(12, "y"), pbValue(12, "z2"),
	}
}

func packedGraph(t *testing.T, graph [][]byte) string {
	t.Helper()
	b := bytes.Join([][]byte{pbInt(1, 10), pbText(2, "test"), pbBytes(7, append([][]byte{pbText(2, "g")}, append(graph, untouchedLayer()...)...)...),
		pbBytes(8, pbText(1, ""), pbInt(2, 21)), pbBytes(8, pbText(1, "com.microsoft"), pbInt(2, 1))}, nil)
	path := filepath.Join(t.TempDir(), "base.onnx")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func openDecoded(t *testing.T, path string) *formats.PackedGraph {
	t.Helper()
	m, err := formats.Open(path)
	if err == nil {
		m, err = formats.Decode(m)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	p, ok := m.(*formats.PackedGraph)
	if !ok {
		t.Fatalf("the model is %T", m)
	}
	return p
}

func exactly(t *testing.T, x tensor.Tensor) []float32 {
	t.Helper()
	b, err := x.Read()
	if err != nil {
		t.Fatal(err)
	}
	c, _ := quant.Of(x.DType)
	v := make([]float32, len(b)/x.DType.BlockBytes())
	c.Decode(v, b)
	return v
}

// lowRank is an adapter of rank 2 for a.q_proj, its factors of a size.
func lowRank(size float64) *adapter.Adapter {
	r := rand.New(rand.NewPCG(12, 13))
	normal := func(n int) []float32 {
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(size * r.NormFloat64())
		}
		return v
	}
	return &adapter.Adapter{Path: "made", Space: naming.HF, Updates: []adapter.Update{{
		Target: adapter.Target{Module: "a.q_proj", Param: "weight"}, Kind: adapter.LowRank, Layer: adapter.Linear, Rank: 2,
		A: adapter.FromValues(2, 32, normal(64)), B: adapter.FromValues(6, 2, normal(12)), Scale: adapter.Scale{Value: 1},
	}}}
}

// TestPackedGraphs merges into quantized layers of ONNX graphs: decode, add, encode as they are stored.
func TestPackedGraphs(t *testing.T) {
	rt := oracle.Try(t)
	for _, c := range packedGraphs {
		t.Run(c.name, func(t *testing.T) {
			base := openDecoded(t, packedGraph(t, c.graph))
			a := lowRank(1)
			plan, err := merge.NewPlan(base, []merge.Input{{Adapter: a, Scale: 1}}, merge.Options{Resolve: merge.Resolvers(base)})
			if err != nil {
				t.Fatal(err)
			}
			out := filepath.Join(t.TempDir(), "merged.onnx")
			l, err := plan.Layout(base, out, layout.Options{})
			if err != nil {
				t.Fatal(err)
			}
			w, err := layout.Create(out, l, false)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Abort()
			stats, err := merge.Run(context.Background(), plan, l, w, merge.RunOptions{})
			if err == nil {
				err = w.Commit()
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(stats) != 1 || stats[0].Retention < 0.95 || stats[0].Retention > 1.05 {
				t.Errorf("stats %+v", stats)
			}
			merged := openDecoded(t, out)
			sameButOne(t, base, merged)

			from, to := exactly(t, base.Weight(stats[0].Tensor).Exact), exactly(t, merged.Weight(stats[0].Tensor).Exact)
			down, _ := a.Updates[0].A.Load()
			up, _ := a.Updates[0].B.Load()
			var noise, norm float64
			for i := range from {
				o, k := i/32, i%32
				if c.turned {
					k, o = i/6, i%6
				}
				want := float64(from[i]) + float64(up[2*o])*float64(down[k]) + float64(up[2*o+1])*float64(down[32+k])
				noise, norm = noise+(float64(to[i])-want)*(float64(to[i])-want), norm+want*want
			}
			e := math.Sqrt(noise / norm)
			if e > c.noise {
				t.Errorf("the stored weight is %.4f away from base + update, want at most %.3f", e, c.noise)
			}
			t.Logf("%s: retention %.4f, noise %.4f", stats[0].Type, stats[0].Retention, e)
			r, err := verify.Merge(context.Background(), plan, merged, verify.MergeOptions{All: true, Runtime: rt, NoRuntime: "not wanted"})
			if err != nil || r.Verdict == verify.Reject {
				t.Errorf("check: %v, %v", err, r)
			}
			if rt != nil {
				product(t, rt, out, to, c.turned, c.bound)
			}
		})
	}
}

// sameButOne checks that all stored tensors but those of the updated weight are byte for byte the same.
func sameButOne(t *testing.T, base, merged *formats.PackedGraph) {
	t.Helper()
	differ := 0
	for i, x := range base.Model.Tensors() {
		y := merged.Model.Tensors()[i]
		a, err := x.Read()
		if err != nil {
			t.Fatal(err)
		}
		b, err := y.Read()
		if err != nil || x.Name != y.Name || x.DType != y.DType || !x.Shape.Equal(y.Shape) {
			t.Fatalf("%+v became %+v: %v", x.Spec, y.Spec, err)
		}
		if !bytes.Equal(a, b) {
			if differ++; x.Name == "other" || x.Name == "s2" {
				t.Errorf("%s has changed", x.Name)
			}
		}
	}
	if differ == 0 {
		t.Error("nothing has changed")
	}
	raw := func(m *formats.PackedGraph) []byte {
		b, err := os.ReadFile(m.Path())
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	untouched := bytes.Join(untouchedLayer(), nil)
	if !bytes.Contains(raw(base), untouched) || !bytes.Contains(raw(merged), untouched) {
		t.Error("the layer without an update is stored in other bytes")
	}
}

// product compares what ONNX Runtime computes with the decoded weight.
func product(t *testing.T, rt *onnxruntime.Runtime, path string, w []float32, turned bool, bound float64) {
	t.Helper()
	x := make([]float32, 4*32)
	for i := range x {
		x[i] = float32(i%11) - 5
	}
	ys, err := rt.Run(context.Background(), onnxruntime.Model{Path: path}, map[string]onnxruntime.Value{"x": onnxruntime.Floats(x, 4, 32)}, []string{"y"})
	if err != nil {
		t.Fatal(err)
	}
	var noise, norm float64
	for i := range 4 {
		for o := range 6 {
			var want float64
			for k := range 32 {
				at := 32*o + k
				if turned {
					at = 6*k + o
				}
				want += float64(x[32*i+k]) * float64(w[at])
			}
			d := float64(ys[0].F32[6*i+o]) - want
			noise, norm = noise+d*d, norm+want*want
		}
	}
	if e := math.Sqrt(noise / norm); !(e <= bound) {
		t.Errorf("ONNX Runtime's product is %.1e away from that with the decoded weight, want at most %.0e", e, bound)
	}
}

// TestPackedGraphsRefused is about quantized layers that are not written.
func TestPackedGraphsRefused(t *testing.T) {
	int16s := [][]byte{
		pbNode("DequantizeLinear", "d", "a.q_proj.weight_quantized s", "w"), pbNode("MatMul", "m", "x w", "y"),
		pbTensor("a.q_proj.weight_quantized", 5, randomBytes(1, 384), 32, 6), pbTensor("s", 1, randomScales(1, 1)),
	}
	sharedScale := [][]byte{
		pbNode("DequantizeLinear", "d", "a.q_proj.weight_quantized s2", "w"), pbNode("MatMul", "m", "x w", "y"),
		pbTensor("a.q_proj.weight_quantized", 3, randomBytes(5, 192), 32, 6),
	}
	for _, c := range []struct {
		name, code string
		graph      [][]byte
		opt        merge.Options
	}{
		{"codes of 16 bits", "merge.unsupported_type", int16s, merge.Options{}},
		{"refused", "merge.requantize", packedGraphs[0].graph, merge.Options{RefuseRequant: true}},
		{"another type", "merge.unsupported_type", packedGraphs[0].graph, merge.Options{DType: tensor.F32}},
		{"a scale that others read", "merge.unsupported_type", sharedScale, merge.Options{}},
	} {
		m, err := formats.Open(packedGraph(t, c.graph))
		if err == nil {
			m, err = formats.Decode(m)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		c.opt.Resolve = merge.Resolvers(m)
		_, err = merge.NewPlan(m, []merge.Input{{Adapter: lowRank(1), Scale: 1}}, c.opt)
		if f := finding.Of(err); f == nil || f.Code != c.code {
			t.Errorf("%s: %v, want %s", c.name, err, c.code)
		}
	}
}
