// Package onnxquant decodes and encodes the quantized weights of ONNX graphs: those of MatMulNBits,
// DequantizeLinear, GatherBlockQuantized, MatMulBnb4 and of the operators with 8-bit products. It knows no
// files and no graphs: callers hand it the node's tensors and attributes.
//
// The formulas are those of ONNX Runtime 1.30. A weight is w = (q − z)·s with a scale, and perhaps a zero
// point, for each block; the product is rounded once to the type of the scales.
package onnxquant

import (
	"fmt"
	"io"
	"math"
	"sync"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// A Weight is a quantized weight.
type Weight struct {
	// Scheme says how it is stored: "MatMulNBits 4-bit in blocks of 32".
	Scheme string
	// Shape is that of the float weight, in the order in which it is stored: [out, in] for MatMulNBits and
	// MatMulBnb4, the shape of the codes for the others.
	Shape tensor.Shape
	// DType is the type of the scales, to which ONNX Runtime decodes.
	DType tensor.DType
	// Parts are the tensors the weight is stored in: codes, scales, and zero points where there are any.
	Parts []tensor.Tensor

	rows, cols int64 // rows run over all dimensions but the last
	stride     int64 // codes from one row to the next: cols, or more where rows are padded
	coding     coding
	grid       grid
	zeros      zeros
	rounding   rounding
	bound      bool // the scales cannot be changed
}

// Stored reports whether the parts hold a weight already. A weight that is to be made has parts without data.
func (w *Weight) Stored() bool { return w.Parts[0].Src != nil }

// A grid says which scale an element has. Seen as [outer, axis, inner], blocks of the axis have a scale for
// each inner element, or for all.
type grid struct {
	axis, inner, block int64
	blocks             int64 // along the axis
	each               bool  // a scale for each outer and inner element: blocks; otherwise one for a place on the axis
	one                bool  // a single scale
	count              int64
}

// byColumns reports whether each element of a row has the scale of its column.
func (g *grid) byColumns() bool { return !g.one && !g.each && g.inner == 1 }

// of is the scale of element i of the flattened weight.
func (g *grid) of(i int64) int64 {
	switch {
	case g.one:
		return 0
	case !g.each:
		return i / g.inner % g.axis
	}
	line := i / g.inner
	return (line/g.axis*g.blocks+line%g.axis/g.block)*g.inner + i%g.inner
}

// span is the range of scales that elements [i, j) have.
func (g *grid) span(i, j int64) (lo, hi int64) {
	if !g.each {
		return 0, g.count
	}
	first, last := i/g.inner, (j-1)/g.inner
	lo = (first/g.axis*g.blocks + first%g.axis/g.block) * g.inner
	hi = (last/g.axis*g.blocks + last%g.axis/g.block + 1) * g.inner
	return lo, hi
}

// zeros are the zero points: a constant, codes as the weight's, or floats.
type zeros struct {
	constant int32
	stored   bool
	floats   bool
	row      int64 // zero points in a row
	stride   int64 // codes from one row of zero points to the next
}

// at is the place of zero point g among the stored codes.
func (z *zeros) at(g int64) int64 { return g/z.row*z.stride + g%z.row }

// fault is an error about a part of a weight.
func fault(reason string, t *tensor.Tensor, format string, a ...any) *finding.Finding {
	f := finding.Errorf("scheme."+reason, "", format, a...)
	if t != nil {
		f.In(t.Name)
	}
	return f
}

var floats = []tensor.DType{tensor.F32, tensor.F16, tensor.BF16}

// part checks the type and the number of elements of a tensor, in whatever shape.
func part(t *tensor.Tensor, what string, elements int64, types ...tensor.DType) error {
	if t == nil {
		return fault("missing_part", nil, "the %s of a quantized weight are no initializer", what)
	}
	known := false
	for _, d := range types {
		known = known || d == t.DType
	}
	if !known {
		return fault("bad_dtype", t, "the %s of a quantized weight have the wrong type", what).Expected(t.DType, fmt.Sprint(types))
	}
	n, err := t.Shape.Elements()
	if err != nil || n != elements {
		return fault("bad_shape", t, "the %s of a quantized weight have the wrong number of elements", what).Expected(t.Shape, elements)
	}
	if size, err := t.Spec.Bytes(); err != nil || size != t.Size {
		return fault("bad_shape", t, "the size of the %s does not fit their shape", what).Expected(t.Size, size)
	}
	return nil
}

// matrix sets the rows and columns of the weight's shape.
func (w *Weight) matrix() error {
	n, err := w.Shape.Elements()
	if err != nil || n <= 0 || n > 1<<48 || len(w.Shape) == 0 {
		return fault("bad_shape", &w.Parts[0], "a quantized weight of this shape is not supported").Expected(w.Shape, "at least one element")
	}
	w.cols = w.Shape[len(w.Shape)-1]
	w.rows = n / w.cols
	return nil
}

// negativeZero changes nothing that it is added to.
var negativeZero = float32(math.Copysign(0, -1))

func ceil(a, b int64) int64 { return a/b + min(a%b, 1) }

// readCodes reads n codes from code first on.
func readCodes(t *tensor.Tensor, c *coding, first, n int64) ([]byte, error) {
	lo, hi := first*c.bits/8, ceil((first+n)*c.bits, 8)
	b := make([]byte, hi-lo)
	if _, err := t.ReadAt(b, lo); err != nil {
		return nil, err
	}
	return b, nil
}

// decoded decodes whole rows from row first on, before the rounding to DType.
func (w *Weight) decoded(dst []float32, first int64) error {
	n := int64(len(dst)) / w.cols
	start := first * w.stride
	codes, err := readCodes(&w.Parts[0], &w.coding, start, n*w.stride)
	if err != nil {
		return err
	}
	skip := start * w.coding.bits % 8 / w.coding.bits
	lo, hi := w.grid.span(first*w.cols, (first+n)*w.cols)
	scales, err := w.readFloats(1, lo, hi)
	if err != nil {
		return err
	}
	zero, err := w.readZeros(lo, hi)
	if err != nil {
		return err
	}
	w.apply(dst, codes, skip, scales, zero, lo, first)
	return nil
}

// apply decodes rows: codes begin skip codes into the first byte, scales and zeros with scale lo.
func (w *Weight) apply(dst []float32, codes []byte, skip int64, scales, zero []float32, lo, first int64) {
	z := float32(w.zeros.constant)
	for r := int64(0); r*w.cols < int64(len(dst)); r++ {
		row := dst[r*w.cols:][:w.cols]
		at := skip + r*w.stride
		w.grid.runs((first+r)*w.cols, w.cols, func(g, j, n int64) {
			s := scales[g-lo]
			if zero != nil {
				z = zero[g-lo]
			}
			if w.zeros.floats {
				offset := float32(z * s) // as ONNX Runtime does, which rounds three times here
				for k := range row[j : j+n] {
					row[j+int64(k)] = float32(w.coding.value(codes, at+j+int64(k))*s) - offset
				}
				return
			}
			for k := range row[j : j+n] {
				row[j+int64(k)] = (w.coding.value(codes, at+j+int64(k)) - z) * s
			}
		})
	}
}

// runs calls f for each stretch of the n elements from element i on, which lie in one row, that have the
// same scale g: elements [i+j, i+j+k).
func (g *grid) runs(i, n int64, f func(g, j, k int64)) {
	for j := int64(0); j < n; {
		k := n - j
		switch at := (i + j) / g.inner % g.axis; {
		case g.one, !g.each && g.inner > 1:
		case g.inner > 1, !g.each:
			k = 1
		default:
			k = min(k, g.block-at%g.block, g.axis-at)
		}
		f(g.of(i+j), j, k)
		j += k
	}
}

// readFloats reads elements [lo, hi) of a part of floats.
func (w *Weight) readFloats(part int, lo, hi int64) ([]float32, error) {
	t := &w.Parts[part]
	if t.DType == tensor.F8E8M0 {
		b := make([]byte, hi-lo)
		_, err := t.ReadAt(b, lo)
		v := make([]float32, len(b))
		for i, c := range b {
			v[i] = power(c)
		}
		return v, err
	}
	codec, _ := quant.Of(t.DType)
	size := int64(t.DType.BlockBytes())
	b, v := make([]byte, (hi-lo)*size), make([]float32, hi-lo)
	if _, err := t.ReadAt(b, lo*size); err != nil {
		return nil, err
	}
	codec.Decode(v, b)
	return v, nil
}

// readZeros reads zero points [lo, hi), nil where none are stored.
func (w *Weight) readZeros(lo, hi int64) ([]float32, error) {
	switch z := &w.zeros; {
	case !z.stored:
		return nil, nil
	case z.floats:
		return w.readFloats(2, lo, hi)
	default:
		from, to := z.at(lo), z.at(hi-1)+1
		b, err := readCodes(&w.Parts[2], &w.coding, from, to-from)
		if err != nil {
			return nil, err
		}
		skip := from * w.coding.bits % 8 / w.coding.bits
		v := make([]float32, hi-lo)
		for g := range v {
			v[g] = w.coding.value(b, skip+z.at(lo+int64(g))-from)
		}
		return v, nil
	}
}

// Tensor is the weight as a float tensor of a name, decoded while it is read: rounded to DType, or, with
// exact, as float32 without a further rounding.
func (w *Weight) Tensor(name string, exact bool) tensor.Tensor {
	d := w.DType
	if exact {
		d = tensor.F32
	}
	codec, _ := quant.Of(d)
	return tensor.Tensor{
		Spec: tensor.Spec{Name: name, DType: d, Shape: w.Shape},
		Src:  &source{w: w, codec: codec}, Size: w.rows * w.cols * int64(d.BlockBytes()),
	}
}

// A source decodes the rows that are read.
type source struct {
	w     *Weight
	codec quant.Codec
}

const batch = 1 << 20 // elements decoded at once

var slabs = sync.Pool{New: func() any { return new([]float32) }}

// ReadAt decodes the rows that p touches.
func (s *source) ReadAt(p []byte, off int64) (int, error) {
	row := s.w.cols * int64(s.codec.DType().BlockBytes())
	total := s.w.rows * row
	if off < 0 || off > total {
		return 0, io.EOF
	}
	short := int64(len(p)) > total-off
	if short {
		p = p[:total-off]
	}
	slab := slabs.Get().(*[]float32)
	defer slabs.Put(slab)
	var out []byte
	done := 0
	for done < len(p) {
		first, skip := (off+int64(done))/row, (off+int64(done))%row
		n := min(max(1, batch/s.w.cols), ceil(skip+int64(len(p)-done), row))
		if int64(cap(*slab)) < n*s.w.cols {
			*slab = make([]float32, n*s.w.cols)
		}
		rows := (*slab)[:n*s.w.cols]
		if err := s.w.decoded(rows, first); err != nil {
			return done, err
		}
		if int64(cap(out)) < n*row {
			out = make([]byte, n*row)
		}
		out = out[:n*row]
		if err := s.codec.Encode(out, rows); err != nil {
			return done, err
		}
		done += copy(p[done:], out[skip:])
	}
	if short {
		return done, io.EOF
	}
	return done, nil
}
