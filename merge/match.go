package merge

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/quant/rounding"
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

// chooseRequant decides how an updated tensor that keeps its quantized type is rounded.
func (p *planner) chooseRequant(out *Output) {
	why := out.unmatched()
	out.Requant = RequantNearest
	switch {
	case p.opt.Requant == RequantNearest:
	case why == "":
		out.Requant = RequantMatch
	case p.opt.Requant == RequantMatch:
		p.fail(finding.Errorf("merge.requantize", p.base.Path(), "the tensor cannot be rounded so that the adapter is kept: %s", why).
			In(out.Name).Hinted("--dtype f16 stores updated tensors in float16; --requant rtn rounds to the nearest and tells what is left"))
	}
}

// unmatched says why the tensor cannot be stored by matched rounding, "" where it can.
func (o *Output) unmatched() string {
	t := tensor.DType(o.Type)
	codec, _ := quant.Of(t)
	switch {
	case o.weight != nil || !t.IsBlock() || o.Type != o.SourceType || len(o.ops) == 0:
		return "it does not keep a block type"
	case !codec.HasGrid():
		return t.String() + " has codes that several elements share"
	}
	for _, op := range o.ops {
		if _, ok := op.LowRank(); !ok {
			return "an update is not a low-rank product"
		}
	}
	for _, s := range o.stretches() {
		var rank int64
		for _, op := range s.ops {
			p, _ := op.LowRank()
			rank += p.Rank
		}
		if 2*rank > o.frame.Cols {
			return "its rows are too short for the rank of the updates"
		}
	}
	return ""
}

// A stretch is rows of a frame that the same updates change.
type stretch struct {
	first, end int64
	ops        []adapter.Op

	mu    sync.Mutex
	basis *rounding.Basis
	left  atomic.Int64 // rows to be stored
}

// stretches cuts the frame at the edges of the updates' blocks. Their ops are low-rank products.
func (o *Output) stretches() []*stretch {
	edges := []int64{0, o.frame.Rows}
	for _, op := range o.ops {
		p, _ := op.LowRank()
		edges = append(edges, p.RowOff, p.RowOff+p.Rows)
	}
	slices.Sort(edges)
	edges = slices.Compact(edges)
	var all []*stretch
	for i, end := range edges[1:] {
		s := &stretch{first: edges[i], end: end}
		for _, op := range o.ops {
			if p, _ := op.LowRank(); p.RowOff <= s.first && s.end <= p.RowOff+p.Rows {
				s.ops = append(s.ops, op)
			}
		}
		s.left.Store(s.end - s.first)
		all = append(all, s)
	}
	return all
}

// directions is the basis of the rows of all right factors, which lie at their columns of the frame.
func (s *stretch) directions(cols int64) *rounding.Basis {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.basis != nil {
		return s.basis
	}
	var vectors [][]float32
	for _, op := range s.ops {
		p, _ := op.LowRank()
		for j := range p.Rank {
			v := p.R[j*p.Cols : (j+1)*p.Cols]
			if p.Cols != cols {
				v = make([]float32, cols)
				copy(v[p.ColOff:], p.R[j*p.Cols:(j+1)*p.Cols])
			}
			vectors = append(vectors, v)
		}
	}
	s.basis = rounding.NewBasis(vectors, int(cols))
	return s.basis
}

// done forgets the basis when all rows are stored.
func (s *stretch) done() {
	if s.left.Add(-1) == 0 {
		s.mu.Lock()
		s.basis = nil
		s.mu.Unlock()
	}
}

// A matched encoding stores updated rows in the base's own type so that the update survives: codes are chosen
// by matched rounding, on the base's scales or on new ones. Its updates must be loaded.
type matched struct {
	single
	source    tensor.Tensor
	stretches []*stretch
	scratch   sync.Pool // of *matchScratch
}

type matchScratch struct {
	old     []byte
	made    quant.Grid
	codes   []int16
	lanes   [rounding.Lanes]lane
	waiting []rounding.Row // of one stretch
	bytes   [][]byte       // where they go
	of      *stretch
	matcher *rounding.Matcher
}

// A lane holds a row that waits.
type lane struct {
	grid  quant.Grid
	codes []int16
}

func newMatched(s single) *matched {
	return &matched{single: s, source: s.out.source, stretches: s.out.stretches(),
		scratch: sync.Pool{New: func() any { return new(matchScratch) }}}
}

// Encode first encodes to the nearest, as everywhere else, for the scales that this makes.
func (e *matched) Encode(dst [][]byte, rows []float32, first int64) error {
	if err := e.single.Encode(dst, rows, first); err != nil {
		return err
	}
	s := e.scratch.Get().(*matchScratch)
	defer e.scratch.Put(s)
	n := int64(len(rows)) / e.cols
	old := grow(&s.old, n*e.row)
	if _, err := e.source.ReadAt(old, first*e.row); err != nil {
		return err
	}
	for i := range n {
		e.match(s, dst[0][i*e.row:(i+1)*e.row], old[i*e.row:(i+1)*e.row], rows[i*e.cols:(i+1)*e.cols], first+i)
	}
	e.flush(s)
	return nil
}

// Block makes rows come in numbers that are rounded together; each is still by itself.
func (e *matched) Block() int64 { return rounding.Lanes }

// match chooses the scales of a row and lets it wait for others. dst is its encoding to the nearest, old the
// base's row.
func (e *matched) match(s *matchScratch, dst, old []byte, row []float32, number int64) {
	at, _ := slices.BinarySearchFunc(e.stretches, number, func(x *stretch, n int64) int {
		if x.end <= n {
			return -1
		}
		return 1
	})
	x := e.stretches[at]
	if s.of != x || len(s.waiting) == rounding.Lanes {
		e.flush(s)
	}
	l := &s.lanes[len(s.waiting)]
	kept, made := grow(&l.codes, e.cols), grow(&s.codes, e.cols)
	e.codec.ReadGrid(&l.grid, kept, old)
	same := true
	for k, v := range row {
		same = same && l.grid.Value(k, kept[k]) == v
	}
	if same {
		copy(dst, old)
		x.done()
		return
	}
	e.codec.ReadGrid(&s.made, made, dst)
	// By blocks, the new scales are taken where the nearest codes on them are nearer.
	n, size := e.codec.DType().BlockLen(), e.codec.DType().BlockBytes()
	for b := 0; b*n < len(row); b++ {
		lo, hi := b*n, (b+1)*n
		if s.made.SquaredError(row, made, lo, hi) < l.grid.SquaredError(row, kept, lo, hi) {
			copy(l.grid.Step[lo:hi], s.made.Step[lo:hi])
			copy(l.grid.Off[lo:hi], s.made.Off[lo:hi])
			copy(kept[lo:hi], made[lo:hi])
			continue
		}
		copy(dst[b*size:(b+1)*size], old[b*size:])
	}
	if s.of != x {
		s.of, s.matcher = x, rounding.NewMatcher(x.directions(e.cols))
	}
	s.waiting = append(s.waiting, rounding.Row{Number: int(number), Grid: &l.grid, Codes: kept, Target: row})
	s.bytes = append(s.bytes, dst)
}

// flush rounds the rows that wait.
func (e *matched) flush(s *matchScratch) {
	if len(s.waiting) == 0 {
		return
	}
	s.matcher.RoundRows(s.waiting)
	for i, r := range s.waiting {
		e.codec.WriteCodes(s.bytes[i], r.Codes)
		s.of.done()
	}
	clear(s.waiting) // what they hold belongs to others
	clear(s.bytes)
	s.waiting, s.bytes = s.waiting[:0], s.bytes[:0]
}

// Matched is what updated rows of the output's frame, from row first on, become by matched rounding. ok is
// false where the tensor is not stored so.
func (r *Reference) Matched(w []float32, first int64) (rounded []float32, ok bool, err error) {
	o := r.t.out
	if o.unmatched() != "" {
		return nil, false, nil
	}
	if r.matched == nil {
		codec, _ := quant.Of(tensor.DType(o.Type))
		r.matched = newMatched(single{out: o, codec: codec, cols: r.frame.Cols, row: r.t.inRow})
	}
	dst := make([]byte, int64(len(w))/r.frame.Cols*r.t.inRow)
	if err := r.matched.Encode([][]byte{dst}, w, first); err != nil {
		return nil, false, err
	}
	rounded = make([]float32, len(w))
	r.matched.codec.Decode(rounded, dst)
	return rounded, true, nil
}

// measureNearest adds what the nearest codes would have made of a sampled row to the sums.
func (t *task) measureNearest(base, w []float32, row int64, b *buffers, s *sums) {
	e, ok := t.encode.(*matched)
	if !ok {
		return
	}
	dst, back := grow(&b.nearest, e.row), grow(&b.nearestBack, e.cols)
	if e.single.Encode([][]byte{dst}, w, row) != nil {
		return // the same rows were encoded before
	}
	e.codec.Decode(back, dst)
	s.addNearest(base, w, back)
}
