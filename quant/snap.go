package quant

import "github.com/loratool/loratool/internal/kernel"

// The IQ2 and IQ3 types store signs apart and snap the magnitudes of 8 or 4 elements to a point of a
// grid. Level l of a coordinate stands for 2l+1 steps of the sub-block's scale.

// A snapper finds scale and points of the sub-blocks of one type.
type snapper struct {
	lattice *lattice
	size    int     // elements in a sub-block: 16 or 32
	even    bool    // an even number of each 8 elements is negative, the eighth sign is not stored
	least   float32 // a sub-block whose largest magnitude is below this is zero
	tries   int     // scales tried on either side of the one that maps the largest magnitude to the top level
	step    float32 // by how many steps they differ in what they map it to
	// bySearch: the largest magnitude comes from a search that may cut off values of little weight, and
	// all points are chosen anew for the best scale.
	bySearch bool
	// always: points are chosen anew even if all were on the grid, or no scale was accepted.
	always bool
}

var (
	snap2xxs = snapper{lattice: &lattice2xxs, size: 32, even: true, least: 1e-15, tries: 6, step: 0.1, bySearch: true}
	snap2xs  = snapper{lattice: &lattice2xs, size: 16, even: true, least: 1e-15, tries: 9, step: 0.1}
	snap2s   = snapper{lattice: &lattice2s, size: 16, least: 1e-8, tries: 9, step: 0.1}
	snap3xxs = snapper{lattice: &lattice3xxs, size: 32, even: true, least: 1e-8, tries: 15, step: 0.2}
	snap3s   = snapper{lattice: &lattice3s, size: 32, least: 1e-45, tries: 9, step: 0.2, always: true}
)

// A subBlock is what a snapper works on and what it finds.
type subBlock struct {
	x    [32]float32 // magnitudes; the smallest of 8 may be negative where signs are even
	w    [32]float32 // weights
	root [32]float32 // their square roots, which decide between neighbours

	signs [4]byte   // a bit for each element, set where it is negative
	point [8]uint32 // elements of the lattice
	scale float32   // not negative
}

// An outcome says how the search in a sub-block ended.
type outcome int

const (
	snapped outcome = iota
	empty           // all zero: nothing is stored
	lost            // costs overflow, no point can be chosen
)

// split separates signs and magnitudes of x and takes the roots of the weights.
func (s *snapper) split(b *subBlock, x []float32) {
	for i, w := range b.w[:s.size] {
		b.root[i] = root(w)
	}
	for k := range s.size / 8 {
		at := 8 * k
		var signs byte
		odd := false
		for j, v := range x[at : at+8] {
			b.x[at+j] = v
			if v < 0 {
				b.x[at+j] = -v
				signs |= 1 << j
				odd = !odd
			}
		}
		if s.even && odd {
			j := cheapest((*[8]float32)(x[at:]), (*[8]float32)(b.w[at:]))
			b.x[at+j] = -b.x[at+j]
			signs ^= 1 << j
		}
		b.signs[k] = signs
	}
}

// cheapest is the element whose sign matters least.
func cheapest(x, w *[8]float32) int {
	at, least := 0, float32(w[0]*x[0])*x[0]
	for j := 1; j < 8; j++ {
		if cost := float32(w[j]*x[j]) * x[j]; cost < least {
			at, least = j, cost
		}
	}
	return at
}

// tryouts are the results of trying several scales; lane is the try.
type tryouts struct {
	lanes   int
	ids     [32]float32 // inverse scales, the last one repeated up to a multiple of 8
	codes   [8 * 32]uint32
	points  [8 * 32]uint32
	offGrid [8]uint32 // for each group, a bit for each lane: its own point was not on the grid
	xq, qq  [32]float32
}

// run snaps all groups with the first n of the inverse scales, or only those groups of only; the others
// keep their points. It reports whether every group got a point.
func (t *tryouts) run(s *snapper, b *subBlock, n int, only uint32, scaleOf func(lane int) float32) bool {
	l := s.lattice
	lanes, groups := t.lanes, s.size/l.dims
	kernel.LatticeCodes(t.codes[:groups*lanes], b.x[:s.size], t.ids[:lanes], l.dims)
	for lane := range n {
		scale := scaleOf(lane)
		for g := range groups {
			at := g*lanes + lane
			if only>>g&1 == 0 {
				t.points[at] = b.point[g]
				continue
			}
			entry := l.entry[t.codes[at]]
			if entry >= 0 {
				t.points[at] = uint32(entry)
				continue
			}
			x, w := b.x[g*l.dims:][:l.dims], b.root[g*l.dims:][:l.dims]
			p := kernel.LatticeNearest(l.list(entry), x, w, scale, &oddLevels[l.dims/8])
			if p == kernel.NoPoint {
				return false
			}
			t.points[at] = p
			t.offGrid[g] |= 1 << lane
		}
	}
	kernel.LatticeSums(t.xq[:lanes], t.qq[:lanes], t.points[:groups*lanes], b.x[:s.size], b.w[:s.size], l.dims)
	return true
}

// oddLevels are what levels stand for, with 4 and with 8 coordinates.
var oddLevels = [2][8]float32{{1, 3, 5, 7, 9, 11, 13, 15}, {1, 3, 5, 7, 1, 3, 5, 7}}

// fit finds signs, points and scale for x, whose weights are set.
func (s *snapper) fit(b *subBlock, x []float32) outcome {
	s.split(b, x)
	top := float32(2*s.lattice.levels - 1)
	high := highest(b.x[:s.size])
	if high < s.least {
		return empty
	}
	b.scale = high / top
	if s.bySearch {
		var codes [32]byte
		b.scale = fitPositive(codes[:], b.x[:s.size], b.w[:s.size], s.lattice.levels+1)
		if high = float32(b.scale * float32(s.lattice.levels)); high <= 0 {
			return empty
		}
	}
	if !s.choose(b, high, top) {
		return lost
	}
	if b.scale < 0 {
		b.scale = -b.scale
		for k := range b.signs {
			b.signs[k] = ^b.signs[k]
		}
	}
	return snapped
}

// choose tries all scales, takes the best and then chooses points anew for that one.
func (s *snapper) choose(b *subBlock, high, top float32) bool {
	const all = 1<<8 - 1
	n := 2*s.tries + 1
	t := tryouts{lanes: (n + 7) / 8 * 8}
	for i := range t.ids[:t.lanes] {
		try := min(i, n-1) - s.tries
		t.ids[i] = (top + float32(float32(try)*s.step)) / high
	}
	if !t.run(s, b, n, all, func(lane int) float32 { return 1 / t.ids[lane] }) {
		return false
	}
	groups := s.size / s.lattice.dims
	var best float32
	accepted := -1
	for i := range n {
		if xq, qq := t.xq[i], t.qq[i]; qq > 0 && float32(xq*xq) > float32(best*qq) {
			b.scale = xq / qq
			best = float32(b.scale * xq)
			accepted = i
		}
	}
	var again uint32 // groups whose point is chosen anew
	for g := range groups {
		b.point[g] = uint32(s.lattice.entry[0])
		if accepted >= 0 {
			b.point[g] = t.points[g*t.lanes+accepted]
			again |= t.offGrid[g] >> accepted & 1 << g
		}
	}
	if s.bySearch || s.always && (accepted < 0 || again != 0) {
		again = all
	}
	if again == 0 || !(b.scale > 0) {
		return true
	}
	last := tryouts{lanes: 8}
	for i := range last.lanes {
		last.ids[i] = 1 / b.scale
	}
	if !last.run(s, b, 1, again, func(int) float32 { return b.scale }) {
		return false
	}
	for g := range groups {
		b.point[g] = last.points[g*last.lanes]
	}
	if last.qq[0] > 0 {
		b.scale = last.xq[0] / last.qq[0]
	}
	return true
}

func highest(x []float32) float32 {
	m := x[0]
	for _, v := range x[1:] {
		if v > m {
			m = v
		}
	}
	return m
}

// scaleCode is the number that stands for a scale in units of 1/id, where code c stands for 2c+1.
func scaleCode(id, scale float32, top int32) byte {
	return byte(min(max(kernel.Near(float32(0.5*(float32(id*scale)-1))), 0), top))
}

// superBlock encodes the sub-blocks of a super-block. The weights come from its importance and the mean
// square of its values, times spread, or without importance from plain. put stores what was found for
// sub-block i. The result is the largest scale, and false if there is a sub-block that cannot be stored.
func (s *snapper) superBlock(scales, x, importance []float32, spread float32, plain weigher, put func(i int, b *subBlock)) (float32, bool) {
	s.lattice.ready()
	variance := meanSquare(x, spread)
	var high float32
	var b subBlock
	for i := range scales {
		part := x[i*s.size:][:s.size]
		if importance == nil {
			plain(b.w[:s.size], part, variance)
		} else {
			weighLattice(b.w[:s.size], part, importance[i*s.size:], variance)
		}
		scales[i] = 0
		switch s.fit(&b, part) {
		case lost:
			return 0, false
		case empty:
			continue
		}
		scales[i] = b.scale
		high = max(high, b.scale)
		put(i, &b)
	}
	return high, true
}

// A weigher gives the weights of elements without importance.
type weigher func(w, x []float32, variance float32)

// meanSquare is that of a super-block, times spread.
func meanSquare(x []float32, spread float32) float32 {
	return float32(float32(spread*sumSquares(x)) / 256)
}

// weighLattice gives the weights of elements that matter as importance says.
func weighLattice(w, x, importance []float32, variance float32) {
	for i, v := range x {
		w[i] = float32(importance[i] * root(variance+float32(v*v)))
	}
}

// weighSquares gives the weights of IQ3 and IQ1_M without importance.
func weighSquares(w, x []float32, _ float32) {
	for i, v := range x {
		w[i] = float32(v * v)
	}
}
