package merge

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/loratool/loratool/quant/rounding"
	"github.com/loratool/loratool/quant/scheme"
	"github.com/loratool/loratool/tensor"
)

// newMatched is the encoding of an output's rows by matched rounding. Its updates must be loaded when it is used.
func (o *Output) newMatched() scheme.Encoding {
	parts := []tensor.Tensor{o.source}
	if o.weight != nil {
		parts = o.weight.Parts
	}
	codes := o.codes()
	stretches := o.stretches()
	if o.byColumn() {
		return &matchedColumns{Codes: codes, out: o, parts: parts, stretches: stretches}
	}
	return &matchedRows{Codes: codes, out: o, parts: parts, stretches: stretches, scratch: sync.Pool{New: func() any {
		s := &rowScratch{}
		s.begin(o, codes)
		s.bytes = new(sync.Mutex)
		return s
	}}}
}

// A matchedRows encoding stores updated rows as the base stores them, so that the update survives: codes are
// chosen by matched rounding, on the base's scales or on new ones.
type matchedRows struct {
	scheme.Codes
	out       *Output
	parts     []tensor.Tensor
	stretches []*stretch
	scratch   sync.Pool // of *rowScratch
}

type rowScratch struct {
	matching
	buffer []byte
}

// Block makes rows come in numbers that are rounded together; each is still by itself.
func (e *matchedRows) Block() int64 {
	b := e.Codes.Block()
	return (rounding.Lanes + b - 1) / b * b
}

// Encode begins with the base's bytes, and with an encoding to the nearest for its scales.
func (e *matchedRows) Encode(dst [][]byte, rows []float32, first int64) error {
	s := e.scratch.Get().(*rowScratch)
	defer e.scratch.Put(s)
	n := int64(len(rows)) / s.n
	for i := range dst {
		off, size := e.Extent(i, first, n)
		if _, err := e.parts[i].ReadAt(dst[i][:size], off); err != nil {
			return err
		}
	}
	e.PutScales(dst, first)
	var made [][]byte
	if s.span > 0 {
		made, _ = extents(e.Codes, first, n, &s.buffer)
		if err := e.Codes.Encode(made, rows, first); err != nil {
			return err
		}
	}
	for i := range n {
		to := scheme.Line{Parts: dst, First: first, Number: first + i}
		from := to
		from.Parts = made
		if err := s.add(stretchOf(e.stretches, first+i), to, from, rows[i*s.n:(i+1)*s.n]); err != nil {
			return err
		}
	}
	s.flush()
	return nil
}

// A matchedColumns encoding does the same by columns, where the base stores [in, out]. A column needs all rows, so
// the whole weight is rounded before the first of them is written, and its bytes are kept until the last is.
type matchedColumns struct {
	scheme.Codes
	out       *Output
	parts     []tensor.Tensor
	stretches []*stretch
	bytes     [][]byte // of all rows, by part
}

// stripElements is how many elements of some columns are in memory at once as floats.
const stripElements = 16 << 20

// round makes the weight's bytes. Every call of pass hands out a reader of all updated rows, in order.
func (e *matchedColumns) round(pass func() func() ([]float32, int64, error)) error {
	rows, cols := e.out.frame.Rows, e.out.frame.Cols
	bytes := make([][]byte, e.Parts())
	for i := range bytes {
		_, size := e.Extent(i, 0, rows)
		bytes[i] = make([]byte, size)
		if _, err := e.parts[i].ReadAt(bytes[i], 0); err != nil {
			return err
		}
	}
	if err := e.Codes.Measure(pass()); err != nil {
		return err
	}
	e.PutScales(bytes, 0)
	var made [][]byte
	if span, _ := e.Span(true); span > 0 {
		var err error
		if made, err = e.nearest(pass()); err != nil {
			return err
		}
	}
	width := max(1, min(cols, stripElements/rows))
	strip := make([]float32, width*rows)
	for at := int64(0); at < cols; at += width {
		width := min(width, cols-at)
		if err := gatherColumns(strip, pass(), at, width, rows, cols); err != nil {
			return err
		}
		if err := e.roundStrip(strip[:width*rows], at, bytes, made); err != nil {
			return err
		}
	}
	e.bytes = bytes
	return nil
}

// roundStrip rounds some columns from one on, each of which lies in the strip after the other.
func (e *matchedColumns) roundStrip(strip []float32, at int64, bytes, made [][]byte) error {
	rows := e.out.frame.Rows
	width := int64(len(strip)) / rows
	var mu sync.Mutex
	var next atomic.Int64
	g, _ := errgroup.WithContext(context.Background())
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() error {
			m := matching{bytes: &mu}
			m.begin(e.out, e.Codes)
			for {
				lo := next.Add(rounding.Lanes) - rounding.Lanes
				if lo >= width {
					return nil
				}
				for c := lo; c < min(width, lo+rounding.Lanes); c++ {
					to := scheme.Line{Parts: bytes, Number: at + c, Column: true}
					from := to
					from.Parts = made
					if err := m.add(stretchOf(e.stretches, at+c), to, from, strip[c*rows:(c+1)*rows]); err != nil {
						return err
					}
				}
				m.flush()
			}
		})
	}
	return g.Wait()
}

// nearest encodes all rows to the nearest.
func (e *matchedColumns) nearest(next func() ([]float32, int64, error)) ([][]byte, error) {
	rows, cols, block := e.out.frame.Rows, e.out.frame.Cols, e.Codes.Block()
	var buffer []byte
	made, offs := extents(e.Codes, 0, rows, &buffer)
	dst := make([][]byte, len(made))
	var waiting []float32
	first := int64(0)
	for first < rows {
		more, _, err := next()
		if err != nil {
			return nil, err
		}
		waiting = append(waiting, more...)
		n := int64(len(waiting)) / cols
		if first+n < rows {
			n -= n % block
		}
		if n == 0 {
			continue
		}
		within(dst, e.Codes, made, offs, first, n)
		if err := e.Codes.Encode(dst, waiting[:n*cols], first); err != nil {
			return nil, err
		}
		first += n
		waiting = append(waiting[:0], waiting[n*cols:]...)
	}
	return made, nil
}

// gatherColumns sets strip to width columns of a matrix from column at on, one after the other.
func gatherColumns(strip []float32, next func() ([]float32, int64, error), at, width, rows, cols int64) error {
	for {
		slab, first, err := next()
		if err != nil || len(slab) == 0 {
			return err
		}
		for r := int64(0); r*cols < int64(len(slab)); r++ {
			for c, v := range slab[r*cols+at:][:width] {
				strip[int64(c)*rows+first+r] = v
			}
		}
	}
}

// Measure needs nothing that round has not seen.
func (e *matchedColumns) Measure(func() ([]float32, int64, error)) error { return nil }

// Encode hands out what was made.
func (e *matchedColumns) Encode(dst [][]byte, rows []float32, first int64) error {
	n := int64(len(rows)) / e.out.frame.Cols
	for i := range dst {
		off, size := e.Extent(i, first, n)
		copy(dst[i], e.bytes[i][off:off+size])
	}
	return nil
}

// Matched is what updated rows of the output's frame, whole blocks from row first on, become by matched rounding.
// ok is false where the tensor is not stored so.
func (r *Reference) Matched(w []float32, first int64) (rounded []float32, ok bool, err error) {
	o := r.t.out
	r.matching.Lock()
	if r.matched == nil && o.unmatched() == "" {
		e := o.newMatched()
		if c, columns := e.(*matchedColumns); columns {
			err = c.round(r.t.pass)
		}
		r.matched = e
	}
	r.matching.Unlock()
	if r.matched == nil || err != nil {
		return nil, false, err
	}
	rounded, err = stored(r.matched, w, first, r.frame.Cols)
	return rounded, err == nil, err
}

// stored is what rows become when they are stored by an encoding.
func stored(e scheme.Encoding, w []float32, first, cols int64) ([]float32, error) {
	var buffer []byte
	parts, _ := extents(e, first, int64(len(w))/cols, &buffer)
	if err := e.Encode(parts, w, first); err != nil {
		return nil, err
	}
	rounded := make([]float32, len(w))
	e.Decode(rounded, parts, first)
	return rounded, nil
}

// measureNearest adds what the nearest codes would have made of a sampled row of a block to the sums. w are the
// rows of the block from row first on.
func (t *task) measureNearest(base, w []float32, first, row int64, b *buffers, s *sums) {
	var e scheme.Codes
	switch m := t.encode.(type) {
	case *matchedRows:
		e = m.Codes
	case *matchedColumns:
		e = m.Codes
	default:
		return
	}
	cols, block := t.frame.Cols, e.Block()
	from := (row - first) - (row-first)%block
	w = w[from*cols : min(int64(len(w)), (from+block)*cols)]
	at := first + from
	if b.nearestOf != t || b.nearestAt != at { // the rows of a block come one after the other
		parts, _ := extents(e, at, int64(len(w))/cols, &b.nearest)
		back := grow(&b.nearestBack, int64(len(w)))
		if e.Encode(parts, w, at) != nil {
			return // the same rows were encoded before
		}
		e.Decode(back, parts, at)
		b.nearestOf, b.nearestAt = t, at
	}
	i := row - at
	s.addNearest(base, w[i*cols:][:cols], b.nearestBack[i*cols:][:cols])
}
