package combination

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"

	"github.com/loratool/loratool/adapter"
)

// A prune is which elements are set to zero before tensors are added.
type prune int

const (
	nothing     prune = iota
	byMagnitude       // all but the largest
	atRandom          // each with the same probability; the others grow, so that the mean stays
)

// A mask says which of n elements DARE keeps. name tells tensors apart.
type mask func(name string, n int, density float64) []bool

// A side is the same tensor of several adapters: their A's, B's or differences.
type side struct {
	method
	name      string
	density   float64
	frequency bool
	mask      mask
}

// side is what is done to one side of the updates of a target, as u names it.
func (o Options) side(u *adapter.Update, name string, m method) side {
	draw := o.mask
	if draw == nil {
		draw = func(name string, n int, density float64) []bool { return drawn(o.Seed, name, n, density) }
	}
	density := o.Density
	if density <= 0 || density >= 1 {
		m.prune = nothing
	}
	return side{m, fmt.Sprintf("%s/%d/%s", u.Target, u.Expert, name), density, o.Frequency, draw}
}

// drawn keeps each element with probability density. What is kept depends on the seed and the name alone, not
// on the order in which tensors are drawn.
func drawn(seed uint64, name string, n int, density float64) []bool {
	h := fnv.New64a()
	h.Write([]byte(name))
	r := rand.NewPCG(seed, h.Sum64())
	limit := uint64(density * (1 << 53))
	keep := make([]bool, n)
	for i := range keep {
		keep[i] = r.Uint64()>>11 < limit
	}
	return keep
}

// merge prunes and adds tensors of one size, each times its weight. It overwrites them.
func (s *side) merge(ts [][]float32, weights []float64) []float32 {
	for i, t := range ts {
		switch s.prune {
		case byMagnitude:
			keepLargest(t, int(s.density*float64(len(t))))
		case atRandom:
			for j, keep := range s.mask(fmt.Sprintf("%s/%d", s.name, i), len(t), s.density) {
				if keep {
					t[j] = float32(float64(t[j]) / s.density)
				} else {
					t[j] = 0
				}
			}
		}
	}
	out := make([]float32, len(ts[0]))
	for j := range out {
		sum, count := 0.0, 0
		majority := s.disjoint && s.positive(ts, j)
		for i, t := range ts {
			x := float64(t[j])
			if s.disjoint && (x == 0 || x > 0 != majority) {
				continue
			}
			sum += float64(weights[i] * x)
			count++
		}
		if s.disjoint {
			sum /= float64(max(count, 1))
		}
		out[j] = float32(sum)
	}
	return out
}

// positive reports whether the majority of element j is positive; a tie is.
func (s *side) positive(ts [][]float32, j int) bool {
	sum := 0.0
	for _, t := range ts {
		x := float64(t[j])
		switch {
		case !s.frequency:
			sum += x
		case x > 0:
			sum++
		case x < 0:
			sum--
		}
	}
	return sum >= 0
}

// keepLargest sets all but the k elements of the largest magnitude to zero; of equal ones the first are kept.
func keepLargest(t []float32, k int) {
	sizes := make([]float32, len(t))
	for i, x := range t {
		sizes[i] = max(x, -x)
	}
	if k <= 0 {
		clear(t)
		return
	}
	slices.Sort(sizes)
	least := sizes[len(sizes)-k]
	equal := 0 // how many of the smallest size are kept
	for _, x := range sizes[len(sizes)-k:] {
		if x == least {
			equal++
		}
	}
	for i, x := range t {
		switch size := max(x, -x); {
		case size < least:
			t[i] = 0
		case size == least && equal == 0:
			t[i] = 0
		case size == least:
			equal--
		}
	}
}
