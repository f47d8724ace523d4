package merge

import (
	"sync"

	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/quant/rounding"
	"github.com/loratool/loratool/quant/scheme"
)

// A matching rounds lines of an output, some at a time, so that their updates survive.
type matching struct {
	out         *Output
	codes       scheme.Codes
	n, span     int64
	bytes       *sync.Mutex // held while the bytes of lines are read and written, where neighbours share them
	made        quant.Grid
	fresh       []int16
	have, would []float64 // squared distances on the scales of the base, and on fresh ones
	lanes       [rounding.Lanes]lane
	waiting     []rounding.Row // of one stretch
	where       []scheme.Line  // where they go
	of          *stretch
	basis       *rounding.Basis
	matcher     *rounding.Matcher
}

// A lane holds a line that waits.
type lane struct {
	grid  quant.Grid
	codes []int16
}

// begin sets the matching up for an output.
func (m *matching) begin(o *Output, codes scheme.Codes) {
	m.out, m.codes, m.n = o, codes, o.line()
	m.span, _ = codes.Span(o.byColumn())
}

// unmoved is the part of a step that an element may lie beside what its code means before its line counts as
// changed: more than the roundings of a scale and a zero point, and too little for any code.
const unmoved = 0x1p-14

// add takes a line in. dst holds it as the base does; made is its encoding to the nearest, whose scales are taken
// where that brings the nearest codes nearer, by spans. The line is in dst after the next flush; until then dst
// and target stay the matching's.
func (m *matching) add(x *stretch, dst, made scheme.Line, target []float32) error {
	if m.of != x || len(m.waiting) == rounding.Lanes {
		m.flush()
	}
	l := &m.lanes[len(m.waiting)]
	codes := grow(&l.codes, m.n)
	m.bytes.Lock()
	err := m.codes.ReadGrid(&l.grid, codes, dst)
	m.bytes.Unlock()
	if err != nil {
		return err
	}
	if !moved(&l.grid, codes, target) {
		x.done()
		return nil
	}
	if m.of != x {
		basis, err := m.out.basisOf(x)
		if err != nil {
			return err
		}
		m.of, m.basis, m.matcher = x, basis, rounding.NewMatcher(basis)
	}
	if x.scaled {
		if err := m.stretch(l, dst, target); err != nil {
			return err
		}
	}
	if m.span > 0 {
		if err := m.chooseScales(l, dst, made, target); err != nil {
			return err
		}
	}
	m.waiting = append(m.waiting, rounding.Row{Number: int(dst.Number), Grid: &l.grid, Codes: codes, Target: target})
	m.where = append(m.where, dst)
	return nil
}

// stretch lets the scales of a line take the factor by which its update scales all of it.
func (m *matching) stretch(l *lane, dst scheme.Line, target []float32) error {
	line := make([]float32, m.n)
	for k, c := range l.codes {
		line[k] = l.grid.Value(k, c)
	}
	by := m.basis.Factor(line, target)
	if !(by > 0.25 && by < 4) {
		return nil // no scale, but another line
	}
	m.bytes.Lock()
	defer m.bytes.Unlock()
	m.codes.Stretch(dst, by)
	return m.codes.ReadGrid(&l.grid, l.codes, dst)
}

// moved reports whether a line is another one than its codes mean.
func moved(g *quant.Grid, codes []int16, target []float32) bool {
	for k, v := range target {
		if d, slack := v-g.Value(k, codes[k]), float32(unmoved*g.Step[k]); d != 0 && !(max(d, -d) <= max(slack, -slack)) {
			return true
		}
	}
	return false
}

// chooseScales takes scales of the fresh encoding.
func (m *matching) chooseScales(l *lane, dst, made scheme.Line, target []float32) error {
	m.bytes.Lock()
	defer m.bytes.Unlock()
	fresh := grow(&m.fresh, m.n)
	if err := m.codes.ReadGrid(&m.made, fresh, made); err != nil {
		return err
	}
	have, would := grow(&m.have, m.n), grow(&m.would, m.n)
	l.grid.Squares(have, target, l.codes)
	m.made.Squares(would, target, fresh)
	for lo := int64(0); lo < m.n; lo += m.span {
		lo, hi := int(lo), int(min(m.n, lo+m.span))
		if sum(would[lo:hi]) < sum(have[lo:hi]) {
			copy(l.grid.Step[lo:hi], m.made.Step[lo:hi])
			copy(l.grid.Off[lo:hi], m.made.Off[lo:hi])
			copy(l.codes[lo:hi], fresh[lo:hi])
			m.codes.CopyScales(dst, made, int64(lo))
		}
	}
	return nil
}

func sum(v []float64) (s float64) {
	for _, x := range v {
		s += x
	}
	return s
}

// flush rounds the lines that wait.
func (m *matching) flush() {
	if len(m.waiting) == 0 {
		return
	}
	m.matcher.RoundRows(m.waiting)
	m.bytes.Lock()
	for i, r := range m.waiting {
		m.codes.WriteCodes(m.where[i], r.Codes)
		m.of.done()
	}
	m.bytes.Unlock()
	clear(m.waiting) // what they hold belongs to others
	clear(m.where)
	m.waiting, m.where = m.waiting[:0], m.where[:0]
}
