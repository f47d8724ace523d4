package rounding

import (
	"math"

	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/quant"
)

// Lanes is the number of rows that RoundRows takes.
const Lanes = 8

// A Row is a row to be rounded, as Round takes it.
type Row struct {
	Number int
	Grid   *quant.Grid
	Codes  []int16
	Target []float32
}

// RoundRows rounds up to Lanes rows of one type: faster than one by one where the machine can do it, and the
// same.
func (m *Matcher) RoundRows(rows []Row) {
	if !kernel.CanMatch() || m.basis.rank == 0 || m.basis.cols%4 != 0 || len(rows) < 2 {
		for _, r := range rows {
			m.Round(r.Number, r.Grid, r.Codes, r.Target)
		}
		return
	}
	if m.lanes == nil {
		m.lanes = newLanes(m.basis)
	}
	m.lanes.round(rows)
}

// The vectors of a column in a kernel.Match.
const (
	target = 8 * iota
	shift
	step
	offset
	code
	err
)

// lanes are rows rounded together, and what is known of each.
type lanes struct {
	kernel.Match
	basis       *Basis
	last, bestZ []float32
	least, eta  [Lanes]float32
	done        [Lanes]bool
}

func newLanes(b *Basis) *lanes {
	l := &lanes{basis: b, last: make([]float32, Lanes*b.rank), bestZ: make([]float32, Lanes*b.rank)}
	l.Rank, l.Q = b.rank, b.q
	l.Z, l.C = make([]float32, Lanes*b.rank), make([]float32, Lanes*b.rank)
	l.Columns = make([]float32, kernel.MatchWidth*b.cols)
	l.Curves = make([]float32, b.cols)
	for k, n := range b.norms {
		l.Curves[k] = 1 + float32(mismatch*n)
	}
	return l
}

// load puts rows into lanes, a few columns at a time, so that what the lanes share stays in the cache. Lanes without
// a row have a step of zero, and nothing happens there.
func (l *lanes) load(rows []Row) {
	const tile = 32
	width := distance(rows[0].Grid)
	for first := 0; first < l.basis.cols; first += tile {
		end := min(first+tile, l.basis.cols)
		for i := range rows {
			r := &rows[i]
			steps, offs := r.Grid.Step[first:end], r.Grid.Off[first:end]
			for k, t := range r.Target[first:end] {
				c := l.Columns[kernel.MatchWidth*(first+k)+i:]
				s := steps[k]
				c[target], c[step], c[offset] = t, s, offs[k]
				c[shift] = float32(random(r.Number, first+k) * float32(width*max(s, -s)))
			}
		}
	}
}

// round is Matcher.Round for all lanes.
func (l *lanes) round(rows []Row) {
	clear(l.Columns)
	clear(l.Z)
	clear(l.bestZ)
	l.SetLevels(rows[0].Grid.Levels, rows[0].Grid.Uniform)
	l.load(rows)
	l.Nearest()
	for i := range Lanes {
		l.least[i] = l.dot(i, l.C)
		if l.done[i] = i >= len(rows) || l.least[i] == 0; !l.done[i] {
			l.eta[i] = firstStep(rows[i].Grid, l.basis, l.least[i])
		}
	}
	for n := range ascents {
		for i := range rows {
			if l.done[i] {
				continue
			}
			if n > 0 {
				if l.dot(i, l.last) > 0 {
					l.eta[i] *= 1.6
				} else {
					l.eta[i] *= 0.5
				}
			}
			for j := i; j < len(l.Z); j += Lanes {
				l.Z[j] -= float32(l.eta[i] * l.C[j])
			}
		}
		copy(l.last, l.C)
		l.Nearest()
		for i := range rows {
			if now := l.dot(i, l.C); !l.done[i] && now < l.least[i] {
				l.least[i] = now
				for j := i; j < len(l.Z); j += Lanes {
					l.bestZ[j] = l.Z[j]
				}
			}
		}
	}
	copy(l.Z, l.bestZ)
	l.Nearest()
	l.settle(len(rows))
	for i := range rows {
		for k, s := range rows[i].Grid.Step {
			if s != 0 {
				rows[i].Codes[k] = int16(l.Columns[kernel.MatchWidth*k+code+i])
			}
		}
	}
}

// dot is the scalar product of a lane of E·Q with another, in order.
func (l *lanes) dot(lane int, with []float32) (sum float32) {
	for j := lane; j < len(l.C); j += Lanes {
		sum += float32(l.C[j] * with[j])
	}
	return sum
}

// settle is Matcher.settle for all lanes.
func (l *lanes) settle(rows int) {
	var moves [Lanes]kernel.Move
	for range perRank * l.Rank {
		l.Best(&moves)
		moved := false
		for i := range rows {
			m := moves[i]
			if l.done[i] = l.done[i] || m.Column < 0; l.done[i] {
				continue
			}
			moved = true
			c := l.Columns[kernel.MatchWidth*m.Column+i:]
			if m.Up {
				c[code]++
			} else {
				c[code]--
			}
			c[err] += m.By
			for j, x := range l.basis.of(m.Column) {
				l.C[Lanes*j+i] += float32(m.By * x)
			}
		}
		if !moved {
			return
		}
	}
}

// distance is the mean distance of levels.
func distance(g *quant.Grid) float32 {
	if g.Uniform {
		return 1
	}
	return (g.Levels[len(g.Levels)-1] - g.Levels[0]) / float32(len(g.Levels)-1)
}

// firstStep is long enough for the first multipliers to move targets by about an eighth of a step: far below
// that, no code changes.
func firstStep(g *quant.Grid, b *Basis, least float32) float32 {
	var sum float64
	for _, s := range g.Step {
		sum += float64(float64(s) * float64(s))
	}
	n := float64(b.cols)
	typical := distance(g) * float32(math.Sqrt(sum/n))
	return max(1, float32(0.125*typical)*float32(math.Sqrt(n/float64(b.rank)))/float32(math.Sqrt(float64(least))))
}
