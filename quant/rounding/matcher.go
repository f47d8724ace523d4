package rounding

import "github.com/loratool/loratool/quant"

const (
	ascents  = 12  // dual steps; they leave a few per cent of the mismatch, which single codes settle
	mismatch = 1e4 // weight of |E·Q|² against |E|² when single codes are moved
	dither   = 0.5 // width of the random part of the rounding, in steps; below 1, so that values on the grid stay
	perRank  = 4   // single codes moved at most, for each direction
)

// A Matcher rounds rows of one matrix. It holds buffers, so it serves one goroutine.
type Matcher struct {
	basis         *Basis
	z, c, last    []float32 // multipliers, E·Q, and E·Q a step before
	errors, shift []float32
	best, trial   []int16
	lanes         *lanes // once there are several rows
}

// NewMatcher returns a matcher for changes in the directions of a basis.
func NewMatcher(b *Basis) *Matcher {
	return &Matcher{
		basis: b,
		z:     make([]float32, b.rank), c: make([]float32, b.rank), last: make([]float32, b.rank),
		errors: make([]float32, b.cols), shift: make([]float32, b.cols),
		best: make([]int16, b.cols), trial: make([]int16, b.cols),
	}
}

// Round replaces the codes of a row by those nearest to target, among the ones whose error is orthogonal to
// the basis as far as codes allow that. row is the row's number in its matrix, which the random part depends on;
// nothing else does. Codes whose step is zero stay. Grid and target are finite.
//
// For a fixed multiplier z, minimizing |E|² subject to E·Q = 0 separates by columns into the code nearest to
// target + Q·z, so that only z has to be searched for. It is, by steps along E·Q whose length grows while the
// direction lasts and shrinks when it turns. Then single codes are moved by one while that makes
// |E|² + 10⁴·|E·Q|² smaller. All sums run in the order of columns, and inside in the order of directions.
func (m *Matcher) Round(row int, g *quant.Grid, codes []int16, target []float32) {
	width := distance(g)
	for k, s := range g.Step {
		m.shift[k] = float32(random(row, k) * float32(width*max(s, -s)))
	}
	clear(m.z)
	least := m.nearest(g, codes, target)
	copy(m.best, m.trial)
	if least == 0 || m.basis.rank == 0 {
		copy(codes, m.best)
		return
	}
	eta := firstStep(g, m.basis, least)
	for i := range ascents {
		if i > 0 {
			if dot(m.c, m.last) > 0 {
				eta *= 1.6
			} else {
				eta *= 0.5
			}
		}
		copy(m.last, m.c)
		for j, c := range m.c {
			m.z[j] -= float32(eta * c)
		}
		if now := m.nearest(g, codes, target); now < least {
			least = now
			copy(m.best, m.trial)
		}
	}
	copy(codes, m.best)
	m.settle(g, codes, target)
}

// nearest sets trial to the codes nearest to target + shift + Q·z and c to E·Q of them, and returns |c|².
func (m *Matcher) nearest(g *quant.Grid, old []int16, target []float32) float32 {
	clear(m.c)
	z, c := m.z, m.c[:len(m.z)]
	for k, t := range target {
		q := m.basis.of(k)[:len(z)]
		shift := m.shift[k]
		for j, x := range q {
			shift += float32(x * z[j])
		}
		code := g.Nearest(k, t+shift, old[k])
		m.trial[k] = code
		e := g.Value(k, code) - t
		for j, x := range q {
			c[j] += float32(e * x)
		}
	}
	return dot(m.c, m.c)
}

// settle moves single codes to a neighbour, each time the one that gains most, the first of equals.
func (m *Matcher) settle(g *quant.Grid, codes []int16, target []float32) {
	b := m.basis
	clear(m.c)
	for k, t := range target {
		m.errors[k] = g.Value(k, codes[k]) - t
		for j, x := range b.of(k) {
			m.c[j] += float32(m.errors[k] * x)
		}
	}
	for range perRank * b.rank {
		var least, by float32
		column, to := -1, int16(0)
		for k := range target {
			s := g.Step[k]
			if s == 0 {
				continue
			}
			slope := 2 * (m.errors[k] + float32(mismatch*dot(m.c, b.of(k))))
			curve := 1 + float32(mismatch*b.norms[k])
			for _, next := range [2]int16{codes[k] - 1, codes[k] + 1} {
				if next < 0 || int(next) >= len(g.Levels) {
					continue
				}
				d := float32(s * (g.Levels[next] - g.Levels[codes[k]]))
				if gain := float32(d*slope) + float32(float32(d*d)*curve); gain < least {
					least, by, column, to = gain, d, k, next
				}
			}
		}
		if column < 0 {
			return
		}
		codes[column] = to
		m.errors[column] += by
		for j, x := range b.of(column) {
			m.c[j] += float32(by * x)
		}
	}
}

// random is the random part of the rounding of an element, in steps: evenly spread within ±dither/2.
func random(row, column int) float32 {
	x := uint64(row)<<32 + uint64(column) + 0x9e3779b97f4a7c15 // splitmix64
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	x ^= x >> 31
	return float32(dither * (float32(x>>40)/(1<<24) - 0.5))
}

// dot is the scalar product, in order.
func dot(a, b []float32) (sum float32) {
	b = b[:len(a)]
	for j, x := range a {
		sum += float32(x * b[j])
	}
	return sum
}
