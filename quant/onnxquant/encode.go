package onnxquant

import (
	"sync"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// An Encoding stores rows of a weight in its own scheme, by rounding to nearest as ONNX Runtime's own
// quantizers do (see rounding). Numbers of rows are those of the matrix whose rows run over all dimensions
// but the last. It may be used from several goroutines.
type Encoding struct {
	w        *Weight
	together int64 // rows a block
	whole    bool  // scales are for all rows
	scale    quant.Codec
	// symmetric: there are no zero points to be chosen, they are all in the middle.
	symmetric bool

	once   sync.Once
	ranges []extremes // when measured
	err    error

	taken sync.Once
	apart codes
}

// maxBlock is the largest number of elements that are encoded together.
const maxBlock = 16 << 20

// Encoding is how the weight is stored again, or nil where that is not offered: floats, fixed zero points
// at the end of the range, scales that are exponents, and scales that a bias depends on.
func (w *Weight) Encoding() (*Encoding, error) {
	if w.bound || w.coding.values != nil || w.Parts[1].DType == tensor.F8E8M0 || w.coding.bits > 8 {
		return nil, nil
	}
	if !w.zeros.stored && !w.coding.signed && w.zeros.constant == 0 {
		return nil, nil
	}
	e := &Encoding{w: w, together: 1}
	e.scale, _ = quant.Of(w.Parts[1].DType)
	g := &w.grid
	outer := w.rows * w.cols / (g.axis * g.inner)
	switch {
	case g.one, !g.each && (g.inner == 1 || outer > 1):
		e.whole = true
	case !g.each:
		e.together = g.inner / w.cols
	case g.inner > 1:
		e.together = g.block * g.inner / w.cols
		if outer > 1 && g.axis%g.block != 0 {
			e.together = g.axis * g.inner / w.cols
		}
	}
	if e.together > maxBlock/w.cols {
		return nil, nil
	}
	for step := e.together; e.together < 8*step && !e.aligned(); {
		e.together += step
	}
	if !e.aligned() && e.together < w.rows {
		return nil, nil
	}
	return e, e.findSymmetry()
}

// aligned reports whether blocks of rows begin with a byte in all parts.
func (e *Encoding) aligned() bool {
	w := e.w
	if e.together*w.stride*w.coding.bits%8 != 0 {
		return false
	}
	if e.whole || !w.zeros.stored || w.zeros.floats {
		return true
	}
	_, hi := w.grid.span(0, e.together*w.cols)
	return w.zeros.at(hi)*w.coding.bits%8 == 0
}

// findSymmetry finds out whether stored zero points are all 0, so that they stay so.
func (e *Encoding) findSymmetry() error {
	w := e.w
	e.symmetric = !w.zeros.stored
	if !w.zeros.stored || w.zeros.floats || !w.coding.signed {
		return nil
	}
	e.symmetric = true
	if !w.Stored() {
		return nil
	}
	const step = 1 << 16
	b := make([]byte, min(step, w.Parts[2].Size))
	for off := int64(0); off < w.Parts[2].Size; off += step {
		b := b[:min(step, w.Parts[2].Size-off)]
		if _, err := w.Parts[2].ReadAt(b, off); err != nil {
			return err
		}
		for _, c := range b {
			e.symmetric = e.symmetric && c == 0
		}
	}
	return nil
}

// Parts is how many tensors hold the rows: codes, scales, zero points.
func (e *Encoding) Parts() int { return len(e.w.Parts) }

// Block is the number of rows that are encoded together: from a multiple of it on, as many as a multiple
// of it or to the end of the weight.
func (e *Encoding) Block() int64 { return e.together }

// Extent is the place of rows in a part, in bytes: n rows from first on, whole blocks.
func (e *Encoding) Extent(part int, first, n int64) (off, size int64) {
	w := e.w
	t := &w.Parts[part]
	if part == 0 {
		off = first * w.stride * w.coding.bits / 8
		return off, ceil((first+n)*w.stride*w.coding.bits, 8) - off
	}
	if e.whole {
		if first > 0 {
			return 0, 0 // written with the first rows
		}
		return 0, t.Size
	}
	lo, hi := w.grid.span(first*w.cols, (first+n)*w.cols)
	if !w.grid.each {
		lo, hi = first/e.perScale(), (first+n)/e.perScale()
	}
	if part == 1 || w.zeros.floats {
		size := int64(t.DType.BlockBytes())
		return lo * size, (hi - lo) * size
	}
	off = w.zeros.at(lo) * w.coding.bits / 8
	if hi == w.grid.count {
		return off, t.Size - off
	}
	return off, w.zeros.at(hi)*w.coding.bits/8 - off
}

// perScale is the number of rows under one scale, where scales are by rows.
func (e *Encoding) perScale() int64 { return e.w.grid.inner / e.w.cols }

// scales is the range of scales that rows have.
func (e *Encoding) scales(first, n int64) (lo, hi int64) {
	switch {
	case e.whole:
		return 0, e.w.grid.count
	case !e.w.grid.each:
		return first / e.perScale(), (first + n) / e.perScale()
	}
	return e.w.grid.span(first*e.w.cols, (first+n)*e.w.cols)
}

// extremes are what a scale is made from.
type extremes struct{ least, most float32 }

func (x *extremes) add(v []float32) {
	wide := *x
	for _, f := range v {
		wide.one(f)
	}
	*x = wide
}

func (x *extremes) one(f float32) {
	if f < x.least {
		x.least = f
	}
	if f > x.most {
		x.most = f
	}
	if f != f {
		x.least, x.most = f, f // and stays
	}
}

// gather adds rows to the ranges of their scales, the first of which is lo.
func (e *Encoding) gather(to []extremes, rows []float32, first, lo int64) {
	for r := int64(0); r*e.w.cols < int64(len(rows)); r++ {
		row := rows[r*e.w.cols:][:e.w.cols]
		if e.w.grid.byColumns() {
			for j, f := range row {
				to[j].one(f)
			}
			continue
		}
		e.w.grid.runs((first+r)*e.w.cols, e.w.cols, func(g, j, n int64) { to[g-lo].add(row[j : j+n]) })
	}
}

// Measure shows the encoding all rows in order where a scale is for rows that are not encoded together.
// next returns the following rows and the number of the first, or no rows at the end. Only the first call
// counts.
func (e *Encoding) Measure(next func() ([]float32, int64, error)) error {
	if !e.whole {
		return nil
	}
	e.once.Do(func() {
		e.ranges = make([]extremes, e.w.grid.count)
		for {
			rows, first, err := next()
			if err != nil {
				e.err = err
				return
			}
			if len(rows) == 0 {
				return
			}
			e.gather(e.ranges, rows, first, 0)
		}
	})
	return e.err
}

// Encode stores whole blocks from row first on. dst are their extents in the parts. A value or a scale that
// is not finite is a *finding.Finding without file and tensor.
func (e *Encoding) Encode(dst [][]byte, rows []float32, first int64) error {
	w := e.w
	n := int64(len(rows)) / w.cols
	lo, hi := e.scales(first, n)
	ranges := e.ranges
	if !e.whole {
		ranges = make([]extremes, hi-lo)
		e.gather(ranges, rows, first, lo)
	}
	scales, zero, stored, err := e.choose(ranges)
	if err != nil {
		return err
	}
	copy(dst[1], stored)
	if err := e.putZeros(dst, zero, lo); err != nil {
		return err
	}
	e.putCodes(dst[0], rows, scales, zero, first, lo)
	return nil
}

// choose finds the scales and the zero points of ranges: those that codes are made with, and the scales as
// they are stored.
func (e *Encoding) choose(ranges []extremes) (scales, zero []float32, stored []byte, err error) {
	scales, zero = make([]float32, len(ranges)), make([]float32, len(ranges))
	for i, x := range ranges {
		if x.least-x.least != 0 || x.most-x.most != 0 {
			return nil, nil, nil, finding.Errorf("quant.nonfinite_value", "", "a value is not finite, so that there is no scale for it")
		}
		scales[i], zero[i] = e.scaleOf(x)
	}
	stored = make([]byte, len(scales)*e.scale.DType().BlockBytes())
	if err := e.scale.Encode(stored, scales); err != nil {
		return nil, nil, nil, err
	}
	rounded := make([]float32, len(scales))
	e.scale.Decode(rounded, stored)
	for _, s := range rounded {
		if s-s != 0 {
			return nil, nil, nil, finding.Errorf("quant.scale_overflow", "", "a scale overflows %s", e.scale.DType())
		}
	}
	if late := e.w.rounding == inBlob || e.w.rounding == inBlocks; !late || e.scale.DType() != tensor.BF16 {
		scales = rounded // ONNX Runtime casts the scales of bfloat16 weights when their codes are made
	}
	return scales, zero, stored, nil
}

// putZeros stores the zero points; those that are floats come back as they are stored.
func (e *Encoding) putZeros(dst [][]byte, zero []float32, lo int64) error {
	w := e.w
	if !w.zeros.stored || len(dst[2]) == 0 {
		return nil
	}
	if w.zeros.floats {
		codec, _ := quant.Of(w.Parts[2].DType)
		if err := codec.Encode(dst[2], zero); err != nil {
			return err
		}
		codec.Decode(zero, dst[2])
		return nil
	}
	clear(dst[2])
	from := w.zeros.at(lo)
	for i, z := range zero {
		w.coding.put(dst[2], w.zeros.at(lo+int64(i))-from, int32(z))
		if g := lo + int64(i) + 1; w.rounding == inBlob && g%w.zeros.row == 0 {
			for pad := w.zeros.row; pad < w.zeros.stride; pad++ { // as ONNX Runtime fills rows up
				w.coding.put(dst[2], g/w.zeros.row*w.zeros.stride-w.zeros.stride+pad-from, 1<<(w.coding.bits-1))
			}
		}
	}
	return nil
}

func (e *Encoding) putCodes(dst []byte, rows, scales, zero []float32, first, lo int64) {
	w, c := e.w, e.coder()
	clear(dst)
	for r := int64(0); r*w.cols < int64(len(rows)); r++ {
		row, at := rows[r*w.cols:][:w.cols], r*w.stride
		if w.grid.byColumns() {
			for j, v := range row {
				c.s, c.z = scales[j], zero[j]
				w.coding.put(dst, at+int64(j), c.code(v))
			}
			continue
		}
		w.grid.runs((first+r)*w.cols, w.cols, func(g, j, n int64) {
			c.under(scales[g-lo], zero[g-lo])
			for k, v := range row[j : j+n] {
				w.coding.put(dst, at+j+int64(k), c.code(v))
			}
		})
		if w.rounding == inBlob {
			e.fillByte(dst, at)
		}
	}
}

// fillByte fills the last byte of a row whose codes begin at one of dst up as ONNX Runtime does, which leaves in
// it what it has from the byte before. It works through as many blocks at once as codes go into a byte.
func (e *Encoding) fillByte(dst []byte, at int64) {
	w := e.w
	pack := 8 / w.coding.bits
	if w.cols%pack == 0 {
		return
	}
	start := w.cols / (w.grid.block * pack) * w.grid.block * pack
	for i := w.cols; i%pack != 0; i++ {
		if i-pack >= start {
			w.coding.put(dst, at+i, int32(w.coding.code(dst, at+i-pack)))
		}
	}
}

// Decode is what whole blocks from row first on decode to.
func (e *Encoding) Decode(rows []float32, src [][]byte, first int64) {
	w := e.w
	n := int64(len(rows)) / w.cols
	lo, hi := e.scales(first, n)
	if e.whole {
		// They were measured, and lie with the first rows only.
		if scales, zero, _, err := e.choose(e.ranges); err == nil {
			w.apply(rows, src[0], 0, scales, zero, 0, first)
		}
		return
	}
	scales := make([]float32, hi-lo)
	e.scale.Decode(scales, src[1])
	var zero []float32
	if w.zeros.stored {
		zero = make([]float32, hi-lo)
		if w.zeros.floats {
			codec, _ := quant.Of(w.Parts[2].DType)
			codec.Decode(zero, src[2])
		} else {
			from := w.zeros.at(lo)
			for i := range zero {
				zero[i] = w.coding.value(src[2], w.zeros.at(lo+int64(i))-from)
			}
		}
	}
	w.apply(rows, src[0], 0, scales, zero, lo, first)
}
