package merge

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/quant/rounding"
	"github.com/loratool/loratool/quant/scheme"
	"github.com/loratool/loratool/tensor"
)

// A Requant says how an updated tensor returns to the quantized type that the base stores it in.
type Requant string

// The ways. Matched rounding keeps what the adapter does and needs low-rank updates and a type whose elements
// have codes of their own.
const (
	RequantAuto    Requant = ""      // matched where that can be done, else nearest
	RequantMatch   Requant = "match" // matched, and an error where that cannot be done
	RequantNearest Requant = "rtn"   // nearest: decode, add, encode
)

// chooseRequant decides how an updated tensor that stays quantized as it is is rounded.
func (p *planner) chooseRequant(out *Output, hint string) {
	why := out.unmatched()
	out.Requant = RequantNearest
	switch {
	case p.opt.Requant == RequantNearest:
	case why == "" && (p.opt.Requant != RequantMatch || !out.partly()):
		out.Requant = RequantMatch
	case p.opt.Requant == RequantMatch:
		if why == "" {
			why = "an update without factors may have more directions than are kept"
		}
		p.fail(finding.Errorf("merge.requantize", p.base.Path(), "the tensor cannot be rounded so that the adapter is kept: %s", why).
			In(out.Name).Hinted(hint + "; --requant rtn rounds to the nearest and tells what is left"))
	}
}

// partly reports whether matched rounding may keep a part of an update only.
func (o *Output) partly() bool {
	for i := range o.ops {
		if d, _ := o.directions(i); d.part {
			return true
		}
	}
	return false
}

// codes takes the tensor's rows apart, nil where its elements have no codes of their own.
func (o *Output) codes() scheme.Codes {
	if o.weight != nil {
		return o.weight.Codes
	}
	t := tensor.DType(o.Type)
	codec, _ := quant.Of(t)
	row, err := t.Bytes(o.frame.Cols)
	if err != nil || !codec.HasGrid() {
		return nil
	}
	return &single{out: o, codec: codec, cols: o.frame.Cols, row: row}
}

// unmatched says why the tensor cannot be stored by matched rounding, "" where it can.
func (o *Output) unmatched() string {
	if o.Type != o.SourceType || len(o.ops) == 0 || o.weight != nil && !o.weight.Stored() {
		return "it does not keep a quantized type"
	}
	codes := o.codes()
	switch {
	case codes == nil && o.weight != nil:
		return "weights stored as " + o.stored() + " are rounded to the nearest only"
	case codes == nil:
		return o.stored() + " has codes that several elements share"
	}
	for i := range o.ops {
		if _, why := o.directions(i); why != "" {
			return why
		}
		switch area := o.area(i); {
		case area.Cols == 0:
			return "an update changes single rows"
		case area.Transposed != o.byColumn():
			return "its updates do not lie in the same orientation"
		case area.Transposed && area.Rows != o.frame.Rows:
			return "an update changes a part of its columns"
		}
	}
	if _, ok := codes.Span(o.byColumn()); !ok {
		return "it is stored [in, out]"
	}
	for _, s := range o.stretches() {
		var rank int64
		for _, i := range s.ops {
			d, _ := o.directions(i)
			rank += d.rank
		}
		if 2*rank > o.line() {
			return "its rows are too short for the rank of the updates"
		}
	}
	return ""
}

// ByColumn reports whether the weights of an output of the updated module lie in a column, so that a few rows say
// less of what is kept than they do elsewhere.
func (o *Output) ByColumn() bool { return len(o.ops) > 0 && o.byColumn() }

// byColumn reports whether the weights of an output of the module, which are rounded together, are a column of
// the frame: whether the base stores [in, out].
func (o *Output) byColumn() bool { return o.area(0).Transposed }

// area is the block that an op changes.
func (o *Output) area(op int) adapter.Block {
	if b, ok := o.ops[op].(interface{ Area() adapter.Block }); ok {
		return b.Area()
	}
	return adapter.Block{}
}

// line is the number of elements that are rounded together.
func (o *Output) line() int64 {
	if o.byColumn() {
		return o.frame.Rows
	}
	return o.frame.Cols
}

// A stretch is lines of a frame that the same updates change.
type stretch struct {
	first, end int64
	ops        []int // numbers of the output's ops
	scaled     bool  // one of them scales whole lines

	mu    sync.Mutex
	basis *rounding.Basis
	left  atomic.Int64 // lines to be stored
}

// across is the stretch of lines in a block.
func across(b adapter.Block) (first, end int64) {
	if b.Transposed {
		return b.ColOff, b.ColOff + b.Cols
	}
	return b.RowOff, b.RowOff + b.Rows
}

// stretches cuts the frame at the edges of the updates' blocks.
func (o *Output) stretches() []*stretch {
	edges := []int64{0, o.frame.Rows * o.frame.Cols / max(1, o.line())}
	for i := range o.ops {
		first, end := across(o.area(i))
		edges = append(edges, first, end)
	}
	slices.Sort(edges)
	edges = slices.Compact(edges)
	var all []*stretch
	for i, end := range edges[1:] {
		s := &stretch{first: edges[i], end: end}
		for op := range o.ops {
			if first, end := across(o.area(op)); first <= s.first && s.end <= end {
				d, _ := o.directions(op)
				s.ops = append(s.ops, op)
				s.scaled = s.scaled || d.scaled
			}
		}
		s.left.Store(s.end - s.first)
		all = append(all, s)
	}
	return all
}

// stretchOf finds the stretch of a line.
func stretchOf(all []*stretch, line int64) *stretch {
	at, _ := slices.BinarySearchFunc(all, line, func(x *stretch, n int64) int {
		if x.end <= n {
			return -1
		}
		return 1
	})
	return all[at]
}

// basisOf is the basis of the directions of a stretch's updates.
func (o *Output) basisOf(s *stretch) (*rounding.Basis, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.basis != nil {
		return s.basis, nil
	}
	n := o.line()
	var vectors [][]float32
	for _, op := range s.ops {
		d, _ := o.directions(op)
		rows, err := d.load()
		if err != nil {
			return nil, err
		}
		at := o.area(op)
		off := at.ColOff
		if at.Transposed {
			off = at.RowOff
		}
		for _, row := range rows {
			v := make([]float32, n)
			copy(v[off:], row)
			vectors = append(vectors, v)
		}
	}
	s.basis = rounding.NewBasis(vectors, int(n))
	return s.basis, nil
}

// done forgets the basis when all lines are stored.
func (s *stretch) done() {
	if s.left.Add(-1) == 0 {
		s.mu.Lock()
		s.basis = nil
		s.mu.Unlock()
	}
}
