package merge

import (
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/quant/scheme"
	"github.com/loratool/loratool/tensor"
)

// encoding is how rows of a frame of the output are stored: in the one tensor that it is, or in the parts of
// a scheme.
func (o *Output) encoding(cols int64) (scheme.Encoding, error) {
	if o.Requant == RequantMatch {
		return o.newMatched(), nil
	}
	if o.weight != nil {
		return o.weight.Encoding, nil
	}
	row, err := tensor.DType(o.Type).Bytes(cols)
	if err != nil {
		return nil, err
	}
	codec, _ := quant.Of(tensor.DType(o.Type))
	return &single{out: o, codec: codec, cols: cols, row: row}, nil
}

// A single encoding stores rows one after the other in one tensor, each by itself.
type single struct {
	out       *Output
	codec     quant.Codec
	cols, row int64 // elements and bytes of a row
}

func (e *single) Parts() int   { return 1 }
func (e *single) Block() int64 { return 1 }

func (e *single) Extent(_ int, first, n int64) (off, size int64) { return first * e.row, n * e.row }

func (e *single) Measure(func() ([]float32, int64, error)) error { return nil }

func (e *single) Encode(dst [][]byte, rows []float32, first int64) error {
	return e.out.encodeRows(e.codec, dst[0], rows, e.cols, first)
}

func (e *single) Decode(rows []float32, src [][]byte, _ int64) { e.codec.Decode(rows, src[0]) }

// Span is a block of the type, which has scales of its own. Columns are not taken apart.
func (e *single) Span(column bool) (int64, bool) {
	return int64(e.codec.DType().BlockLen()), !column
}

// bytes are those of a row.
func (e *single) bytes(l scheme.Line) []byte { return l.Parts[0][(l.Number-l.First)*e.row:][:e.row] }

func (e *single) ReadGrid(g *quant.Grid, codes []int16, l scheme.Line) error {
	e.codec.ReadGrid(g, codes, e.bytes(l))
	return nil
}

func (e *single) WriteCodes(l scheme.Line, codes []int16) { e.codec.WriteCodes(e.bytes(l), codes) }

// Stretches reports whether the type's scales are floats.
func (e *single) Stretches(bool) bool { return e.codec.Stretches() }

// Stretch multiplies a row's scales.
func (e *single) Stretch(l scheme.Line, by float32) { e.codec.Stretch(e.bytes(l), by) }

// PutScales has nothing to put.
func (e *single) PutScales([][]byte, int64) {}

// CopyScales copies the block with its codes, which are written afterwards.
func (e *single) CopyScales(dst, src scheme.Line, lo int64) {
	d := e.codec.DType()
	at, n := int(lo)/d.BlockLen()*d.BlockBytes(), d.BlockBytes()
	copy(e.bytes(dst)[at:at+n], e.bytes(src)[at:])
}

// extents cuts a buffer into the extents of rows in every part of an encoding, and returns their offsets.
func extents(e scheme.Encoding, first, n int64, buffer *[]byte) (parts [][]byte, offs []int64) {
	var total int64
	sizes := make([]int64, e.Parts())
	offs = make([]int64, e.Parts())
	for i := range sizes {
		offs[i], sizes[i] = e.Extent(i, first, n)
		total += sizes[i]
	}
	b := grow(buffer, total)
	parts = make([][]byte, len(sizes))
	for i, size := range sizes {
		parts[i], b = b[:size:size], b[size:]
	}
	return parts, offs
}

// within cuts the extents of n rows from row first on out of those that begin at offs.
func within(dst [][]byte, e scheme.Encoding, parts [][]byte, offs []int64, first, n int64) {
	for i := range dst {
		off, size := e.Extent(i, first, n)
		if size == 0 {
			dst[i] = nil
			continue
		}
		dst[i] = parts[i][off-offs[i]:][:size:size]
	}
}

// Rounded is what rows of the output's frame, whole blocks from row first on, become when this program stores
// them in a type, or, where the output is packed, by its scheme. ok is false where it cannot.
func (r *Reference) Rounded(t tensor.DType, w []float32, first int64) (rounded []float32, ok bool, err error) {
	o := r.t.out
	var e scheme.Encoding
	if o.weight != nil {
		e = o.weight.Encoding
	} else if codec, known := quant.Of(t); known && codec.CanEncode() && (!codec.NeedsImportance() || o.Weighed()) {
		row, err := t.Bytes(r.frame.Cols)
		if err != nil {
			return nil, false, err
		}
		e = &single{out: o, codec: codec, cols: r.frame.Cols, row: row}
	}
	if e == nil {
		return nil, false, nil
	}
	if rounded, err = stored(e, w, first, r.frame.Cols); err != nil {
		if f := finding.Of(err); f != nil && f.Tensor == "" {
			f.Tensor = o.Name
		}
		return nil, false, err
	}
	return rounded, true, nil
}

// Block is the number of rows that are stored together, which Rounded takes multiples of.
func (r *Reference) Block() int64 {
	if w := r.t.out.weight; w != nil && w.Encoding != nil {
		return w.Encoding.Block()
	}
	return 1
}
