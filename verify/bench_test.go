package verify_test

import (
	"context"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/internal/oracle"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
	"github.com/loratool/loratool/verify"
)

// BenchmarkMerge4096 checks every row of one module of 4096 × 4096 in bfloat16 at rank 16, exactly and, where it is
// installed, with ONNX Runtime.
func BenchmarkMerge4096(b *testing.B) {
	const n, rank = 4096, 16
	spec := tensor.Spec{Name: "l.weight", DType: tensor.BF16, Shape: tensor.Shape{n, n}}
	path := filepath.Join(b.TempDir(), "base.safetensors")
	l, err := safetensors.NewLayout([]tensor.Spec{spec}, safetensors.Output{}, layout.Options{Name: "base.safetensors"})
	if err != nil {
		b.Fatal(err)
	}
	w, err := layout.Create(path, l, false)
	if err != nil {
		b.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	normal := func(n int, size float64) []float32 {
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(size * random.NormFloat64())
		}
		return v
	}
	codec, _ := quant.Of(tensor.BF16)
	data := make([]byte, 2*n*n)
	if err := codec.Encode(data, normal(n*n, 0.02)); err != nil {
		b.Fatal(err)
	}
	if err := w.WriteAt(0, data, 0); err != nil {
		b.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		b.Fatal(err)
	}
	base := open(b, path)
	a := &adapter.Adapter{Path: "made", Space: naming.HF, Updates: []adapter.Update{{
		Target: adapter.Target{Module: "l", Param: "weight"}, Kind: adapter.LowRank, Layer: adapter.Linear, Rank: rank,
		A: adapter.FromValues(rank, n, normal(rank*n, 0.01)), B: adapter.FromValues(n, rank, normal(rank*n, 0.01)), Scale: adapter.Scale{Value: 2},
	}}}
	plan, err := merge.NewPlan(base, []merge.Input{{Adapter: a, Scale: 1}}, merge.Options{Resolve: merge.Resolvers(base)})
	if err != nil {
		b.Fatal(err)
	}
	merged := open(b, carryOut(b, base, plan))
	rt := oracle.Try(b)
	b.SetBytes(2 * n * n)
	for b.Loop() {
		r, err := verify.Merge(context.Background(), plan, merged, verify.MergeOptions{All: true, Jobs: 1, Runtime: rt, NoRuntime: "not installed"})
		if err != nil || r.Verdict != verify.Accept {
			b.Fatal(err, r)
		}
	}
}
