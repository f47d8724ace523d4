// Package rotation makes the blocks and the orders of orthogonal adapters: OFT and BOFT as kohya, LyCORIS
// and PEFT write them. Matrices are n × n, row-major, in float64.
package rotation

import (
	"math"

	"github.com/loratool/loratool/finding"
)

// Skew is M − Mᵀ.
func Skew(m []float64, n int) []float64 {
	q := make([]float64, n*n)
	for i := range n {
		for j := range n {
			q[i*n+j] = m[i*n+j] - m[j*n+i]
		}
	}
	return q
}

// Packed is the skew matrix whose strict upper triangle holds the values, row by row.
func Packed(v []float64, n int) []float64 {
	q := make([]float64, n*n)
	k := 0
	for i := range n {
		for j := i + 1; j < n; j++ {
			q[i*n+j], q[j*n+i] = v[k], -v[k]
			k++
		}
	}
	return q
}

// Cayley is (I + Q)·(I − Q)⁻¹, a rotation for every skew Q. Other matrices may have none: then the error
// says so.
func Cayley(q []float64, n int) ([]float64, error) {
	// Both factors are functions of Q and commute, so the rotation solves (I − Q)·R = I + Q.
	left, r := make([]float64, n*n), make([]float64, n*n)
	for i, x := range q {
		left[i], r[i] = -x, x
	}
	for i := range n {
		left[i*n+i]++
		r[i*n+i]++
	}
	for c := range n {
		p := c
		for i := c + 1; i < n; i++ {
			if math.Abs(left[i*n+c]) > math.Abs(left[p*n+c]) {
				p = i
			}
		}
		pivot := left[p*n+c]
		if pivot == 0 || math.IsNaN(pivot) || math.IsInf(pivot, 0) {
			return nil, finding.Errorf("adapter.bad_rotation", "", "a block of %d × %d has no Cayley transform", n, n)
		}
		for j := range n {
			left[c*n+j], left[p*n+j] = left[p*n+j], left[c*n+j]
			r[c*n+j], r[p*n+j] = r[p*n+j], r[c*n+j]
		}
		for i := range n {
			f := left[i*n+c] / pivot
			if i == c || f == 0 {
				continue
			}
			for j := range n {
				left[i*n+j] -= float64(f * left[c*n+j])
				r[i*n+j] -= float64(f * r[c*n+j])
			}
		}
	}
	for i := range n {
		for j := range n {
			r[i*n+j] /= left[i*n+i]
		}
	}
	return r, nil
}

// Inverse is the Q that Cayley makes a rotation of: (R − I)·(R + I)⁻¹. A rotation by half a turn has none.
func Inverse(r []float64, n int) ([]float64, error) {
	// Cayley of −R is (I − R)·(I + R)⁻¹, which is −Q.
	m := make([]float64, n*n)
	for i, x := range r {
		m[i] = -x
	}
	q, err := Cayley(m, n)
	for i := range q {
		q[i] = -q[i]
	}
	return q, err
}

// Neumann is PEFT's polynomial in place of the inverse: I + 2Q + … + 2Qᵗ⁻² + Qᵗ⁻¹.
func Neumann(q []float64, n, terms int) []float64 {
	r, power := make([]float64, n*n), make([]float64, n*n)
	for i := range n {
		r[i*n+i], power[i*n+i] = 1, 1
	}
	for t := 1; t < terms; t++ {
		power = Multiply(power, q, n)
		f := 2.0
		if t == terms-1 && t > 1 {
			f = 1
		}
		for i, x := range power {
			r[i] += float64(f * x)
		}
	}
	return r
}

// Multiply is X·Y.
func Multiply(x, y []float64, n int) []float64 {
	out := make([]float64, n*n)
	for i := range n {
		for k := range n {
			a := x[i*n+k]
			for j := range n {
				out[i*n+j] += float64(a * y[k*n+j])
			}
		}
	}
	return out
}

// Transpose is Xᵀ.
func Transpose(x []float64, n int) []float64 {
	out := make([]float64, n*n)
	for i := range n {
		for j := range n {
			out[j*n+i] = x[i*n+j]
		}
	}
	return out
}

// Norm is the Frobenius norm.
func Norm(x []float64) float64 {
	sum := 0.0
	for _, v := range x {
		sum += float64(v * v)
	}
	return math.Sqrt(sum)
}

// Butterfly is the order of a stage of LyCORIS's BOFT over an axis of n with blocks of b: pairs at a
// distance of 2ˢ·b/2 come together. It is nil where they do not divide the axis.
func Butterfly(n, b int64, stage int) []int64 {
	if stage > 30 || b < 2 || b%2 != 0 {
		return nil
	}
	k := b / 2 << stage
	if n%(2*k) != 0 {
		return nil
	}
	order := make([]int64, 0, n)
	for c := int64(0); c < n; c += 2 * k {
		for i := range k {
			order = append(order, c+i, c+k+i)
		}
	}
	return order
}

// Chunks is the order in which a stage of PEFT's BOFT with several stages lines up an axis of n with blocks of
// b: within each stretch of 2ˢ blocks the chunks of b/2 with even numbers come first, then the odd ones. It is
// nil where they do not divide the axis.
func Chunks(n, b int64, stage int) []int64 {
	if stage > 30 || b < 2 || b%2 != 0 || n%(b<<stage) != 0 {
		return nil
	}
	order := make([]int64, 0, n)
	width, half := b<<stage, b/2
	for g := int64(0); g < n; g += width {
		for odd := range int64(2) {
			for c := odd * half; c < width; c += b {
				for i := range half {
					order = append(order, g+c+i)
				}
			}
		}
	}
	return order
}
