package rounding

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

var all = []tensor.DType{tensor.Q4_0, tensor.Q4_1, tensor.Q5_0, tensor.Q5_1, tensor.Q8_0, tensor.Q2_K, tensor.Q3_K, tensor.Q4_K,
	tensor.Q5_K, tensor.Q6_K, tensor.IQ4_NL, tensor.IQ4_XS, tensor.MXFP4, tensor.NVFP4}

// The change arrives whole where the nearest codes lose it, and the error keeps away from its directions.
func TestChangeIsKept(t *testing.T) {
	for _, d := range all {
		for ratio, off := range map[float64]float64{0.003: 0.03, 0.01: 0.01, 0.03: 0.01} {
			r := newMatrix(t, d, 24, 1024, 8, ratio).match(upTo(24))
			t.Logf("%s at %g: α %.4f, nearest %.4f, noise %.4f, along %.2g", d, ratio, r.alpha, r.nearest, math.Sqrt(r.noise/r.scale), math.Sqrt(r.along))
			if math.Abs(r.alpha-1) > off {
				t.Errorf("%s at %g: α is %.4f", d, ratio, r.alpha)
			}
			fine := ratio >= 0.01
			if d == tensor.Q2_K {
				fine = ratio >= 0.03 // its steps are so wide that few codes change below
			}
			if fine && r.along > 0.05*0.05 {
				t.Errorf("%s at %g: |E·Q| is %.3f of |Δ·Q|", d, ratio, math.Sqrt(r.along))
			}
		}
	}
}

// Rows depend on their number and nothing else, and a row that does not change keeps its bytes.
func TestRowsAreIndependent(t *testing.T) {
	for _, d := range all {
		m := newMatrix(t, d, 12, 512, 4, 0.05)
		want := m.match(upTo(12)).data
		backwards := upTo(12)
		slices.Reverse(backwards)
		if got := m.match(backwards).data; !bytes.Equal(got, want) {
			t.Errorf("%s: the order of rows matters", d)
		}
		size := len(want) / 12
		if !bytes.Equal(want[size:2*size], m.data[size:2*size]) {
			t.Errorf("%s: a row without a change changed", d)
		}
		if bytes.Equal(want[:size], m.data[:size]) {
			t.Errorf("%s: nothing was merged", d)
		}
	}
}

func TestBasis(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	v := gauss(r, 64, 1)
	twice := gauss(r, 64, 0)
	for k := range v {
		twice[k] = 2 * v[k]
	}
	b := NewBasis([][]float32{v, make([]float32, 64), twice, gauss(r, 64, 1e-20)}, 64)
	if b.Rank() != 2 {
		t.Fatalf("rank %d, want 2", b.Rank())
	}
	for i := range 2 {
		for j := range 2 {
			var sum float64
			for k := range 64 {
				sum += float64(b.of(k)[i]) * float64(b.of(k)[j])
			}
			if want := float64(1 - (i ^ j)); math.Abs(sum-want) > 1e-6 {
				t.Errorf("vectors %d and %d: product %g", i, j, sum)
			}
		}
	}
	many := make([][]float32, 20)
	for i := range many {
		many[i] = gauss(r, 8, 1)
	}
	if got := NewBasis(many, 8).Rank(); got != 8 {
		t.Errorf("%d directions in 8 columns", got)
	}
}

// Odd grids: no step, subnormal and huge steps, saturated codes, more directions than a row can hold.
func TestOddRows(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	for _, d := range all {
		c, _ := quant.Of(d)
		n := d.BlockLen()
		for name, fill := range map[string]byte{"zeros": 0, "ones": 0x01, "mixed": 0x3a, "codes full": 0x7b} {
			data := bytes.Repeat([]byte{fill}, d.BlockBytes())
			var g quant.Grid
			codes := make([]int16, n)
			c.ReadGrid(&g, codes, data)
			target := make([]float32, n)
			for k := range target {
				target[k] = g.Value(k, codes[k])*1.1 + 1e-3*float32(r.NormFloat64())
			}
			old := slices.Clone(codes)
			many := make([][]float32, n)
			for i := range many {
				many[i] = gauss(r, n, 1)
			}
			for _, rank := range []int{0, 1, n} {
				copy(codes, old)
				NewMatcher(NewBasis(many[:rank], n)).Round(3, &g, codes, target)
				for k, code := range codes {
					if code < 0 || int(code) >= len(g.Levels) || g.Step[k] == 0 && code != old[k] {
						t.Fatalf("%s, %s, rank %d: code %d of element %d, was %d at step %g", d, name, rank, code, k, old[k], g.Step[k])
					}
				}
				if n > 64 {
					break // of many directions, small blocks say enough
				}
			}
		}
	}
}

func BenchmarkRound(b *testing.B) {
	for _, rank := range []int{8, 16, 32} {
		b.Run(fmt.Sprintf("4096 columns, rank %d", rank), func(b *testing.B) {
			const rows, cols = 8, 4096
			m := newMatrix(b, tensor.Q4_0, rows, cols, rank, 0.03)
			order := upTo(rows)
			b.SetBytes(4 * rows * cols)
			for b.Loop() {
				m.match(order)
			}
		})
	}
}
