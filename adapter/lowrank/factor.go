package lowrank

import "math"

// A matrix is rows × cols values, row-major.
type matrix struct {
	rows, cols int
	v          []float64
}

func newMatrix(rows, cols int) matrix { return matrix{rows, cols, make([]float64, rows*cols)} }

func (m matrix) row(i int) []float64 { return m.v[i*m.cols:][:m.cols] }

func (m matrix) transpose() matrix {
	t := newMatrix(m.cols, m.rows)
	for i := range m.rows {
		for j, x := range m.row(i) {
			t.v[j*m.rows+i] = x
		}
	}
	return t
}

// times is m·n.
func (m matrix) times(n matrix) matrix {
	out := newMatrix(m.rows, n.cols)
	for i := range m.rows {
		to := out.row(i)
		for k, x := range m.row(i) {
			for j, y := range n.row(k) {
				to[j] += float64(x * y)
			}
		}
	}
	return out
}

func dot(x, y []float64) float64 {
	sum := 0.0
	for i, a := range x {
		sum += float64(a * y[i])
	}
	return sum
}

// orthonormal writes the rows of m as a combination of orthonormal rows: m = c·q. A row that depends on
// those before it gets a q of zeros. Gram–Schmidt is applied twice, which keeps the rows orthogonal to the
// last bits whatever the condition of m.
func orthonormal(m matrix) (q, c matrix) {
	q, c = matrix{m.rows, m.cols, append([]float64(nil), m.v...)}, newMatrix(m.rows, m.rows)
	for k := range m.rows {
		x := q.row(k)
		size := math.Sqrt(dot(x, x))
		for range 2 {
			for p := range k {
				y := q.row(p)
				d := dot(x, y)
				c.row(k)[p] += d
				for i := range x {
					x[i] -= float64(d * y[i])
				}
			}
		}
		norm := math.Sqrt(dot(x, x))
		if norm <= size*1e-14 {
			clear(x)
			continue
		}
		c.row(k)[k] = norm
		for i := range x {
			x[i] /= norm
		}
	}
	return q, c
}

// A spectrum is a singular value decomposition Σ s·u·vᵀ: u and v hold vectors as rows, s falls. The largest
// component of each u is positive.
type spectrum struct {
	u, v matrix
	s    []float64
}

// jacobi decomposes a square matrix by one-sided rotations of its rows.
func jacobi(m matrix) spectrum {
	n := m.rows
	// Rows of w become s·vᵀ, and m = uᵀ·w with the rotations gathered in u.
	w, u := matrix{n, n, append([]float64(nil), m.v...)}, newMatrix(n, n)
	for i := range n {
		u.row(i)[i] = 1
	}
	for range 60 {
		turned := false
		for p := range n {
			for q := p + 1; q < n; q++ {
				x, y := w.row(p), w.row(q)
				a, b, c := dot(x, x), dot(y, y), dot(x, y)
				if math.Abs(c) <= 1e-15*math.Sqrt(a*b) || c == 0 {
					continue
				}
				turned = true
				z := (b - a) / (2 * c)
				t := math.Copysign(1, z) / (math.Abs(z) + math.Sqrt(1+float64(z*z)))
				cs := 1 / math.Sqrt(1+float64(t*t))
				sn := cs * t
				rotate(x, y, cs, sn)
				rotate(u.row(p), u.row(q), cs, sn)
			}
		}
		if !turned {
			break
		}
	}
	s := spectrum{u: u, v: w, s: make([]float64, n)}
	for k := range n {
		x := w.row(k)
		s.s[k] = math.Sqrt(dot(x, x))
		for i := range x {
			if s.s[k] > 0 {
				x[i] /= s.s[k]
			}
		}
	}
	return s
}

func rotate(x, y []float64, c, s float64) {
	for i, a := range x {
		b := y[i]
		x[i] = float64(c*a) - float64(s*b)
		y[i] = float64(s*a) + float64(c*b)
	}
}
