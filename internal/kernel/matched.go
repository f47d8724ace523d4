package kernel

import "math"

// MatchWidth is the number of floats that a Match has for each column: vectors of eight rows, of their
// targets, shifts, steps, offsets, codes and errors.
const MatchWidth = 6 * 8

// A Match is eight rows on the way through matched rounding (package quant/rounding), a lane each.
type Match struct {
	Rank    int
	Q       []float32 // the basis, Rank values for each column
	Curves  []float32 // for each column 1 + 10⁴·|q|²
	Columns []float32 // MatchWidth values for each column, a multiple of four columns
	Z, C    []float32 // multipliers and E·Q, eight values for each direction

	uniform  bool
	low, top float32
	table    [64]float32 // levels, borders above them, ways to the next level and to the one before
}

// CanMatch reports whether this machine has the vector form. There is no other here: what it does equals
// the rows' own rounding bit for bit.
func CanMatch() bool { return active >= avx2 }

// SetLevels sets the levels of the codes: consecutive integers, or at most 16 of any distance.
func (m *Match) SetLevels(levels []float32, uniform bool) {
	m.uniform, m.low, m.top = uniform, levels[0], float32(len(levels)-1)
	if uniform {
		return
	}
	copy(m.table[:16], levels)
	for i := range 16 {
		m.table[16+i] = float32(math.Inf(1))
		if i+1 < len(levels) {
			m.table[16+i] = float32(0.5 * (levels[i] + levels[i+1]))
			m.table[32+i] = levels[i+1] - levels[i]
			m.table[48+i+1] = levels[i] - levels[i+1]
		}
	}
}

// Nearest rounds all columns to the codes nearest to target + shift + Q·z, and sets codes, errors and C. Codes
// of columns whose step is zero mean nothing.
func (m *Match) Nearest() {
	clear(m.C)
	matchNearest(m)
}

// A Move is a change of one code by one.
type Move struct {
	Column int // -1 for none
	Up     bool
	By     float32 // what it adds to the value
}

// Best finds in each row the move that makes |E|² + 10⁴·|E·Q|² smallest, the first of equals; there is none
// where all make it greater.
func (m *Match) Best(moves *[8]Move) {
	var best matchBest
	matchMove(m, &best)
	for i := range moves {
		moves[i] = Move{Column: int(best.index[i] >> 1), Up: best.index[i]&1 == 1, By: best.by[i]}
	}
}

// matchBest is what the vector form finds: gains, changes, and twice the columns, plus 1 for upwards.
type matchBest struct {
	gain, by [8]float32
	index    [8]int32
}
