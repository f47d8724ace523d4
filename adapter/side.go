package adapter

import (
	"fmt"

	"github.com/loratool/loratool/finding"
)

// A Side is one matrix of a Kronecker product: Full, or B·A with A [r, cols] and B [rows, r].
type Side struct{ Full, A, B Factor }

// Shape is the matrix's numbers of rows and columns.
func (s Side) Shape() (rows, cols int64) {
	if s.Full.Present() {
		return s.Full.Rows, s.Full.Cols
	}
	return s.B.Rows, s.A.Cols
}

// Rank is the number of terms that Factors writes the matrix with.
func (s Side) Rank() int64 {
	rows, cols := s.Shape()
	if n := min(rows, cols); s.Full.Present() || n < s.A.Rows {
		return n
	}
	return s.A.Rows
}

// Dense reads the matrix. A product is summed in float64.
func (s Side) Dense() ([]float64, error) {
	if s.Full.Present() {
		v, err := load(s.Full)
		if err != nil {
			return nil, err
		}
		return widened(v), nil
	}
	if s.A.Rows != s.B.Cols {
		return nil, finding.Errorf("adapter.rank_mismatch", "", "the factors of a Kronecker product have different ranks").
			Expected(fmt.Sprintf("A [%d, %d], B [%d, %d]", s.A.Rows, s.A.Cols, s.B.Rows, s.B.Cols), "A [r, in], B [out, r]")
	}
	a, err := load(s.A)
	if err != nil {
		return nil, err
	}
	b, err := load(s.B)
	if err != nil {
		return nil, err
	}
	return multiply(widened(b), widened(a), s.B.Rows, s.A.Rows, s.A.Cols), nil
}

// Factors writes the matrix as B·A with Rank terms, exactly: its own factors, or itself times the identity.
func (s Side) Factors() (a, b Factor) {
	rows, cols := s.Shape()
	switch r := s.Rank(); {
	case !s.Full.Present() && r == s.A.Rows:
		return s.A, s.B
	case cols <= rows:
		return identity(cols), s.matrix()
	default:
		return s.matrix(), identity(rows)
	}
}

// matrix is the matrix as one factor.
func (s Side) matrix() Factor {
	if s.Full.Present() {
		return s.Full
	}
	rows, cols := s.Shape()
	return FromFunc(rows, cols, func() ([]float32, error) {
		v, err := s.Dense()
		return narrowed(v), err
	})
}

func identity(n int64) Factor {
	return FromFunc(n, n, func() ([]float32, error) {
		v := make([]float32, n*n)
		for i := range n {
			v[i*n+i] = 1
		}
		return v, nil
	})
}

// multiply is the n × m product of a matrix with k columns and one with k rows.
func multiply(l, r []float64, n, k, m int64) []float64 {
	out := make([]float64, n*m)
	for i := range n {
		row := out[i*m:][:m]
		for q := range k {
			x := l[i*k+q]
			for j, y := range r[q*m:][:m] {
				row[j] += float64(x * y)
			}
		}
	}
	return out
}

func widened(v []float32) []float64 {
	out := make([]float64, len(v))
	for i, x := range v {
		out[i] = float64(x)
	}
	return out
}

func narrowed(v []float64) []float32 {
	out := make([]float32, len(v))
	for i, x := range v {
		out[i] = float32(x)
	}
	return out
}
