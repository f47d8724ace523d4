package lowrank

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/adapter"
)

// TestSingularValues compares with the decomposition of the whole matrix, and a diagonal with its values.
func TestSingularValues(t *testing.T) {
	diagonal := adapter.Product{Block: adapter.Block{Rows: 3, Cols: 3}, Rank: 3, Scale: 2, L: []float32{0, 1, 0, 3, 0, 0, 0, 0, 2}, R: []float32{1, 0, 0, 0, 1, 0, 0, 0, -1}}
	for i, want := range []float64{6, 4, 2} {
		if got := SingularValues(3, 3, []adapter.Product{diagonal}, 8)[i]; math.Abs(got-want) > 1e-12 {
			t.Errorf("value %d is %g, expected %g", i, got, want)
		}
	}
	random := rand.New(rand.NewPCG(3, 4))
	normal := func(n int64) []float32 {
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(random.NormFloat64())
		}
		return v
	}
	// Two terms, of which one changes a part of the matrix only, as that of a fused projection does.
	const rows, cols = 20, 14
	terms := []adapter.Product{
		{Block: adapter.Block{Rows: rows, Cols: cols}, Rank: 3, Scale: 0.5, L: normal(rows * 3), R: normal(3 * cols)},
		{Block: adapter.Block{RowOff: 6, ColOff: 2, Rows: 10, Cols: 12}, Rank: 2, Scale: -1.5, L: normal(20), R: normal(24)},
	}
	d := dense{rows: rows, cols: cols, v: make([]float32, rows*cols)}
	sum := make([]float64, rows*cols)
	for _, p := range terms {
		for i := range p.Rows {
			for k := range p.Rank {
				for j := range p.Cols {
					sum[(p.RowOff+i)*cols+p.ColOff+j] += float64(p.Scale) * float64(p.L[i*p.Rank+k]) * float64(p.R[k*p.Cols+j])
				}
			}
		}
	}
	d.v = narrow(sum)
	want := d.exact().s
	got := SingularValues(rows, cols, terms, 8)
	if len(got) != 5 {
		t.Fatalf("%d values", len(got))
	}
	for i, x := range got {
		if math.Abs(x-want[i]) > 1e-5*want[0] {
			t.Errorf("value %d is %g, expected %g", i, x, want[i])
		}
	}
	if v := SingularValues(rows, cols, terms, 4); v != nil {
		t.Errorf("rank 5 of at most 4: %v", v)
	}
}
