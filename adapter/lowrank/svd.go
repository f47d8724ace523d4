package lowrank

import (
	"math"
	"math/rand/v2"
	"slices"

	"github.com/loratool/loratool/internal/kernel"
)

// ofProduct decomposes bᵀ·a, both r rows long: orthonormal rows for each, and the spectrum of the r × r core
// between them. It is exact, and the cost grows with the sides and the square of r only.
func ofProduct(b, a matrix) spectrum {
	qb, cb := orthonormal(b)
	qa, ca := orthonormal(a)
	// bᵀ·a = qbᵀ·(cbᵀ·ca)·qa
	core := jacobi(cb.transpose().times(ca))
	s := spectrum{s: core.s, u: core.u.times(qb), v: core.v.times(qa)}
	return s.sorted()
}

// sorted brings the values in falling order and fixes the signs.
func (s spectrum) sorted() spectrum {
	order := make([]int, len(s.s))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		switch {
		case s.s[a] > s.s[b]:
			return -1
		case s.s[a] < s.s[b]:
			return 1
		}
		return 0
	})
	out := spectrum{u: newMatrix(s.u.rows, s.u.cols), v: newMatrix(s.v.rows, s.v.cols), s: make([]float64, len(s.s))}
	for to, from := range order {
		out.s[to] = s.s[from]
		u, v := out.u.row(to), out.v.row(to)
		copy(u, s.u.row(from))
		copy(v, s.v.row(from))
		largest := 0.0
		for _, x := range u {
			if math.Abs(x) > math.Abs(largest) {
				largest = x
			}
		}
		if largest < 0 {
			for i := range u {
				u[i] = -u[i]
			}
			for i := range v {
				v[i] = -v[i]
			}
		}
	}
	return out
}

// A dense is a matrix held in float32.
type dense struct {
	rows, cols int
	v          []float32
}

// energy is the sum of the squares.
func (d dense) energy() float64 {
	sum := 0.0
	for _, x := range d.v {
		sum += float64(float64(x) * float64(x))
	}
	return sum
}

// leading finds the first k singular values and vectors, and a few more that are less exact: the range of
// the matrix is found by multiplying it with random vectors, twice more with itself, always the same ones.
// Where k is close to the smaller side, the decomposition is exact.
func (d dense) leading(k int) spectrum {
	const extra = 8
	if n := min(d.rows, d.cols); k+extra >= n {
		return d.exact()
	}
	k += extra
	random := rand.New(rand.NewPCG(0x10f2a7001, 0x5eed))
	start := make([]float32, d.cols*k)
	for i := range start {
		start[i] = float32(random.NormFloat64())
	}
	var q, z matrix
	for pass := range 3 {
		if pass > 0 {
			basis, _ := orthonormal(z)
			start = narrow(basis.transpose().v)
		}
		y := matrix{d.rows, k, widen(multiply(d.v, start, d.rows, d.cols, k))}
		q, _ = orthonormal(y.transpose())
		z = matrix{k, d.cols, widen(multiply(narrow(q.v), d.v, k, d.rows, d.cols))}
	}
	return ofProduct(q, z)
}

// exact decomposes the whole matrix, by way of the identity on its smaller side.
func (d dense) exact() spectrum {
	m := matrix{d.rows, d.cols, widen(d.v)}
	if d.rows > d.cols {
		return ofProduct(m.transpose(), one(d.cols))
	}
	return ofProduct(one(d.rows), m)
}

func one(n int) matrix {
	m := newMatrix(n, n)
	for i := range n {
		m.row(i)[i] = 1
	}
	return m
}

// multiply is the n × m product of a matrix with k columns and one with k rows, in float32.
func multiply(l, r []float32, n, k, m int) []float32 {
	out := make([]float32, n*m)
	kernel.NewLowRank(l, r, n, m, k, 1).Apply(out, m, 0, n)
	return out
}

func widen(v []float32) []float64 {
	out := make([]float64, len(v))
	for i, x := range v {
		out[i] = float64(x)
	}
	return out
}

func narrow(v []float64) []float32 {
	out := make([]float32, len(v))
	for i, x := range v {
		out[i] = float32(x)
	}
	return out
}
