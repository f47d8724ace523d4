package merge_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// ram is a base in memory.
type ram []tensor.Tensor

func (ram) Path() string               { return "ram" }
func (ram) Format() string             { return "safetensors" }
func (r ram) Tensors() []tensor.Tensor { return r }

// sink takes what is written and forgets it.
type sink struct{}

func (sink) WriteAt(int, []byte, int64) error { return nil }

// BenchmarkRun measures the engine without a disk: a 4096×4096 matrix, updated at rank 16 or only copied.
func BenchmarkRun(b *testing.B) {
	const n, rank = 4096, 16
	g := rand.New(rand.NewPCG(1, 1))
	values := func(count int, scale float64) []float32 {
		v := make([]float32, count)
		for i := range v {
			v[i] = float32(g.NormFloat64() * scale)
		}
		return v
	}
	w := values(n*n, 0.02)
	u := adapter.Update{
		Target: adapter.Target{Module: "m", Param: "weight"}, Kind: adapter.LowRank, Layer: adapter.Linear, Rank: rank,
		A: adapter.FromValues(rank, n, values(rank*n, 0.02)), B: adapter.FromValues(n, rank, values(n*rank, 0.02)),
		Scale: adapter.Scale{Value: 2},
	}
	for _, d := range []tensor.DType{tensor.BF16, tensor.F16, tensor.F32, tensor.Q8_0, tensor.Q4_0} {
		codec, _ := quant.Of(d)
		size, _ := d.Bytes(n * n)
		raw := make([]byte, size)
		if err := codec.Encode(raw, w); err != nil {
			b.Fatal(err)
		}
		base := ram{{Spec: tensor.Spec{Name: "m.weight", DType: d, Shape: tensor.Shape{n, n}}, Src: bytes.NewReader(raw), Size: size}}
		for _, updates := range [][]adapter.Update{{u}, nil} {
			name := "copy"
			if updates != nil {
				name = fmt.Sprintf("r=%d", rank)
			}
			b.Run(d.String()+"/"+name, func(b *testing.B) {
				opt := merge.Options{Resolve: merge.Resolvers(base)}
				var inputs []merge.Input
				if updates != nil {
					inputs = []merge.Input{{Adapter: &adapter.Adapter{Space: naming.HF, Updates: updates}, Scale: 1}}
				}
				plan, err := merge.NewPlan(base, inputs, opt)
				if err != nil {
					b.Fatal(err)
				}
				l := &layout.Layout{Items: []layout.Place{{Size: size}}}
				b.SetBytes(size)
				for b.Loop() {
					if _, err := merge.Run(context.Background(), plan, l, sink{}, merge.RunOptions{Jobs: 1}); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
