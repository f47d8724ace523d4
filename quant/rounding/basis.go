// Package rounding chooses codes of a quantized row so that a low-rank change of the row survives.
//
// Where weights lie on their grid and the change is smaller than half a step, rounding to the nearest code
// gives the old codes back. Matched rounding takes, of all codes near the changed row, those whose error is
// orthogonal to the directions of the change: what the change does to inputs in its own directions is kept,
// and what is left over is ordinary rounding noise.
package rounding

import "math"

// A Basis is an orthonormal basis of the directions of a change: of the rows of the A factors.
type Basis struct {
	cols, rank int
	q          []float32 // vector j of column k at k·rank+j
	norms      []float32 // per column, the sum of squares over the vectors
}

// NewBasis makes the basis of vectors, each of cols elements, by Gram-Schmidt in float64 and in the order
// given. Vectors that depend on earlier ones are dropped: those of which less than 1e-5 is left.
func NewBasis(vectors [][]float32, cols int) *Basis {
	var basis [][]float64
	for _, a := range vectors {
		v := make([]float64, cols)
		for k, x := range a {
			v[k] = float64(x)
		}
		before := product(v, v)
		for range 2 { // once is not enough where vectors are nearly parallel
			for _, w := range basis {
				d := product(v, w)
				for k := range v {
					v[k] -= float64(d * w[k])
				}
			}
		}
		after := product(v, v)
		if !(after > 1e-10*before) {
			continue
		}
		inverse := 1 / math.Sqrt(after)
		for k := range v {
			v[k] *= inverse
		}
		basis = append(basis, v)
	}
	b := &Basis{cols: cols, rank: len(basis), q: make([]float32, cols*len(basis)), norms: make([]float32, cols)}
	for k := range cols {
		for j, v := range basis {
			x := float32(v[k])
			b.q[k*b.rank+j] = x
			b.norms[k] += float32(x * x)
		}
	}
	return b
}

// Rank is the number of directions.
func (b *Basis) Rank() int { return b.rank }

// Factor is the factor by which to is from, apart from what both hold in the directions of the basis: that which
// brings from nearest to it. It is not a number where nothing is left of from.
func (b *Basis) Factor(from, to []float32) float32 {
	var square, product float64
	a, c := make([]float64, b.rank), make([]float64, b.rank)
	for k, x := range from {
		x, y := float64(x), float64(to[k])
		square += float64(x * x)
		product += float64(x * y)
		for j, q := range b.of(k) {
			a[j] += float64(x * float64(q))
			c[j] += float64(y * float64(q))
		}
	}
	whole := square
	for j := range a {
		square -= float64(a[j] * a[j])
		product -= float64(a[j] * c[j])
	}
	if !(square > 1e-6*whole) {
		return float32(math.NaN())
	}
	return float32(product / square)
}

// of is column k's part of the vectors.
func (b *Basis) of(k int) []float32 { return b.q[k*b.rank : (k+1)*b.rank] }

// product is the scalar product, in order.
func product(a, b []float64) (sum float64) {
	for k, x := range a {
		sum += float64(x * b[k])
	}
	return sum
}
