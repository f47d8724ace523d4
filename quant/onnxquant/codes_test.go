package onnxquant

import (
	"bytes"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/quant/scheme"
	"github.com/loratool/loratool/tensor"
)

// fill gives the parts of a weight random codes and zero points, and ordinary scales.
func fill(w *Weight, r *rand.Rand) {
	for i := range w.Parts {
		p := &w.Parts[i]
		b := make([]byte, p.Size)
		for k := range b {
			b[k] = byte(r.Uint32())
		}
		if p.DType.IsFloat() && p.DType.BlockBytes() > 1 {
			v := make([]float32, len(b)/p.DType.BlockBytes())
			for k := range v {
				v[k] = 0.01 + 0.01*r.Float32()
			}
			c, _ := quant.Of(p.DType)
			if err := c.Encode(b, v); err != nil {
				panic(err)
			}
		}
		p.Src = bytes.NewReader(b)
	}
}

// TestLines takes every layout apart by rows and by columns: what the grid says is what decoding says, codes that
// are put back change nothing, and other codes change the line alone.
func TestLines(t *testing.T) {
	all := slices.Clone(layouts)
	for _, nf4 := range []bool{false, true} {
		all = append(all, layouts[0])
		all[len(all)-1].name = map[bool]string{false: "FP4", true: "NF4"}[nf4]
		all[len(all)-1].of = func() opener {
			return Bnb4{K: 25, N: 6, Block: 16, NF4: nf4, Codes: empty("w", tensor.U8, 75), Absmax: empty("s", tensor.F16, 10)}
		}
	}
	for _, c := range all {
		t.Run(c.name, func(t *testing.T) {
			w, err := c.of().Open()
			if err != nil {
				t.Fatal(err)
			}
			fill(w, rand.New(rand.NewPCG(1, 2)))
			e, err := w.Codes()
			if err != nil || e == nil {
				t.Fatalf("no codes: %v", err)
			}
			parts := make([][]byte, len(w.Parts))
			for i := range parts {
				if parts[i], err = w.Parts[i].Read(); err != nil {
					t.Fatal(err)
				}
			}
			want := float32s(t, w.Tensor("w", true))
			for _, column := range []bool{false, true} {
				if _, ok := e.Span(column); !ok {
					if len(w.Shape) == 2 {
						t.Error("a matrix that cannot be taken apart")
					}
					continue
				}
				lines, n := w.rows, w.cols
				if column {
					lines, n = n, lines
				}
				for i := range lines {
					l := scheme.Line{Parts: parts, Number: i, Column: column}
					var g quant.Grid
					codes := make([]int16, n)
					if err := e.ReadGrid(&g, codes, l); err != nil {
						t.Fatal(err)
					}
					near := func(x, y float32, k int64) bool { return math.Abs(float64(x-y)) <= 1e-4*math.Abs(float64(g.Step[k])) }
					before := slices.Clone(parts[0])
					e.WriteCodes(l, codes)
					if !bytes.Equal(parts[0], before) {
						t.Fatalf("line %d: codes that were there change bytes", i)
					}
					other := slices.Clone(codes)
					for k := range other {
						other[k] = int16((int(other[k]) + 1) % len(g.Levels))
					}
					e.WriteCodes(l, other)
					w.Parts[0].Src = bytes.NewReader(parts[0])
					for at, x := range float32s(t, w.Tensor("w", true)) {
						line, k := int64(at)/w.cols, int64(at)%w.cols
						if column {
							line, k = k, line
						}
						switch {
						case line != i && x != want[at]:
							t.Fatalf("line %d changes element %d: %g, want %g", i, at, x, want[at])
						case line == i && !near(g.Value(int(k), codes[k]), want[at], k):
							t.Fatalf("line %d, element %d: the grid says %g, decoding %g", i, k, g.Value(int(k), codes[k]), want[at])
						case line == i && !near(g.Value(int(k), other[k]), x, k):
							t.Fatalf("line %d, element %d: %g, want %g", i, k, x, g.Value(int(k), other[k]))
						}
					}
					copy(parts[0], before)
					w.Parts[0].Src = bytes.NewReader(parts[0])
				}
			}
		})
	}
}
