package hf

import (
	"fmt"
	"io"
	"slices"
	"sync"
)

// A view is the data of a GGUF tensor that is gathered from a folder's tensors while it is read.
type view struct {
	sections []section // in order, without gaps
	ends     []int64
}

// A section is a stretch of a view's data.
type section interface {
	size() int64
	readAt(p []byte, off int64) error
}

func newView(sections []section) *view {
	v := &view{sections: sections}
	end := int64(0)
	for _, s := range sections {
		end += s.size()
		v.ends = append(v.ends, end)
	}
	return v
}

// ReadAt fills p from off. It keeps no state, so many workers may read at once.
func (v *view) ReadAt(p []byte, off int64) (int, error) {
	i, _ := slices.BinarySearch(v.ends, off+1)
	n := 0
	for ; n < len(p) && i < len(v.sections); i++ {
		start := v.ends[i] - v.sections[i].size()
		at := off + int64(n) - start
		part := p[n:min(int64(len(p)), int64(n)+v.ends[i]-start-at)]
		if err := v.sections[i].readAt(part, at); err != nil {
			return n, err
		}
		n += len(part)
	}
	if n < len(p) {
		return n, io.ErrUnexpectedEOF
	}
	return n, nil
}

// whole is a section that is a stretch of its source as it stands.
type whole struct {
	src    io.ReaderAt
	off, n int64
}

func (w whole) size() int64 { return w.n }

func (w whole) readAt(p []byte, off int64) error { return full(w.src, p, w.off+off) }

// full reads all of p.
func full(src io.ReaderAt, p []byte, off int64) error {
	n, err := src.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("reading %d bytes at %d: %w", len(p), off, err)
}

// gathered is a section of rows in another order than their source has them.
type gathered struct {
	src   io.ReaderAt // row-major
	width int64       // bytes of a row
	rows  int64       // of the section
	row   func(i int64) int64
}

func (g gathered) size() int64 { return g.rows * g.width }

func (g gathered) readAt(p []byte, off int64) error { return inUnits(p, off, g.width, g.fill) }

// span is how much of a source is read at once.
const span = 1 << 20

// fill reads rows from first. Where the wanted rows lie close together, the whole stretch is read once
// and the rows are picked from it; otherwise each is read by itself.
func (g gathered) fill(p []byte, first int64) error {
	batch := max(1, span/g.width)
	for len(p) > 0 {
		k := min(batch, int64(len(p))/g.width)
		lo, hi := g.row(first), g.row(first)
		for i := int64(1); i < k; i++ {
			r := g.row(first + i)
			lo, hi = min(lo, r), max(hi, r)
		}
		if hi-lo >= 2*k {
			k = 1
			lo, hi = g.row(first), g.row(first)
		}
		stretch := scratch((hi - lo + 1) * g.width)
		err := full(g.src, *stretch, lo*g.width)
		for i := range k {
			copy(p[i*g.width:(i+1)*g.width], (*stretch)[(g.row(first+i)-lo)*g.width:])
		}
		free(stretch)
		if err != nil {
			return err
		}
		p, first = p[k*g.width:], first+k
	}
	return nil
}

// transposed is a section whose rows are columns of the source.
type transposed struct {
	src    io.ReaderAt // row-major
	width  int64       // bytes of a source row
	elem   int64       // bytes of an element
	n      int64       // source rows, the length of a row of the section
	row    func(j int64) int64
	rows   int64 // of the section
	column func(i int64) int64
}

func (t transposed) size() int64 { return t.rows * t.n * t.elem }

func (t transposed) readAt(p []byte, off int64) error { return inUnits(p, off, t.n*t.elem, t.fill) }

// fill reads the strip of the source that holds the wanted columns, row by row.
func (t transposed) fill(p []byte, first int64) error {
	out := t.n * t.elem
	k := int64(len(p)) / out
	lo, hi := t.column(first), t.column(first)
	for i := int64(1); i < k; i++ {
		c := t.column(first + i)
		lo, hi = min(lo, c), max(hi, c)
	}
	strip := (hi - lo + 1) * t.elem
	buf := scratch(strip)
	defer free(buf)
	for j := range t.n {
		if err := full(t.src, *buf, t.row(j)*t.width+lo*t.elem); err != nil {
			return err
		}
		for i := range k {
			at := (t.column(first+i) - lo) * t.elem
			copy(p[i*out+j*t.elem:][:t.elem], (*buf)[at:at+t.elem])
		}
	}
	return nil
}

// inUnits reads a stretch of data that is made in units of so many bytes; fill makes whole ones.
func inUnits(p []byte, off, unit int64, fill func(p []byte, first int64) error) error {
	if lead := off % unit; lead > 0 || int64(len(p)) < unit {
		one := scratch(unit)
		defer free(one)
		if err := fill(*one, off/unit); err != nil {
			return err
		}
		n := int64(copy(p, (*one)[lead:]))
		if p, off = p[n:], off+n; len(p) == 0 {
			return nil
		}
	}
	body := int64(len(p)) / unit * unit
	if body > 0 {
		if err := fill(p[:body], off/unit); err != nil {
			return err
		}
	}
	if p, off = p[body:], off+body; len(p) == 0 {
		return nil
	}
	return inUnits(p, off, unit, fill)
}

var pool = sync.Pool{New: func() any { return new([]byte) }}

// scratch returns a buffer of n bytes, which free gives back.
func scratch(n int64) *[]byte {
	b := pool.Get().(*[]byte)
	if int64(cap(*b)) < n {
		*b = make([]byte, n)
	}
	*b = (*b)[:n]
	return b
}

func free(b *[]byte) { pool.Put(b) }
