package scheme

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// matchHQQ reads weights of HQQ. The weight is reshaped to a matrix of R rows and C columns in which a
// row (or, axis 0, a column) is a group. k codes are packed into one byte (or, 3-bit, ten into a word),
// code j from row j·⌈R/k⌉ + i, the first in the highest bits:
//
//	X.W_q             U8 [R/k, C], or I32 [⌈R/10⌉, C]; with view_as_float the same bytes as floats
//	X.scale, X.zero   [R, 1] or [1, C]
//	X.shape           I64 [2]
//	X.compute_dtype, X.packing … text and numbers as tensors
//
// W = (code − zero) · scale, the difference rounded to the type the library computes in.
func matchHQQ(m *model, t *tensor.Tensor) (*weight, error) {
	x, ok := strings.CutSuffix(t.Name, ".W_q")
	if !ok {
		return nil, nil
	}
	x += "."
	scale, err := m.part(x+"scale", floats, -1, -1)
	if err != nil {
		return nil, err
	}
	zero, err := m.part(x+"zero", floats, -1, -1)
	if err != nil {
		return nil, err
	}
	shape, err := m.readShape(x + "shape")
	if err != nil {
		return nil, err
	}
	for _, flag := range []string{"quant_scale", "quant_zero"} {
		if b, err := m.readSmall(x + flag); err != nil {
			return nil, err
		} else if len(b) > 0 && b[0] != 0 {
			return nil, m.fault("unsupported", x+flag, "scales or zeros of HQQ that are quantized themselves cannot be read")
		}
	}
	packing, err := m.readSmall(x + "packing")
	if err != nil {
		return nil, err
	}
	compute, err := m.readSmall(x + "compute_dtype")
	if err != nil {
		return nil, err
	}
	d := &hqq{packed: t, scale: scale, zero: zero, cols: shape[len(shape)-1]}
	if err := d.unpacking(m, shape, string(packing)); err != nil {
		return nil, err
	}
	w := &weight{name: x + "weight", shape: shape, dtype: scale.DType, scheme: fmt.Sprintf("HQQ %d-bit", d.bits), decode: d.rows}
	for _, c := range []tensor.DType{zero.DType, floatType(string(compute))} {
		if c != tensor.Invalid && c != w.dtype {
			w.dtype = tensor.F32 // what torch promotes different types to
		}
	}
	d.round, _ = quant.Of(w.dtype)
	w.parts = []string{t.Name}
	for _, part := range []string{
		"scale", "zero", "shape", "nbits", "group_size", "axis", "packing", "unpack_view_dtype", "view_as_float", "quant_scale", "quant_zero",
		"compute_dtype", "offload_meta", "encoded_state_dict", "stores_quant_config", "channel_wise", "optimize", "round_zero",
	} {
		if m.byName[x+part] != nil {
			w.parts = append(w.parts, x+part)
		}
	}
	return w, nil
}

type hqq struct {
	packed, scale, zero *tensor.Tensor
	bits                int
	unit                int64 // bytes that a pack of codes takes
	step                int64 // rows of packs
	matrixCols          int64
	cols                int64 // of the weight
	axis                int
	round               quant.Codec
}

// unpacking finds the matrix and the number of bits from the shapes.
func (d *hqq) unpacking(m *model, shape tensor.Shape, packing string) error {
	t := d.packed
	if len(t.Shape) != 2 {
		return m.fault("bad_shape", t.Name, "packed weights of HQQ are matrices").Expected(t.Shape, "[rows, columns]")
	}
	if err := m.check(t, []tensor.DType{tensor.U8, tensor.I8, tensor.I32, tensor.F16, tensor.BF16, tensor.F32}, -1, -1); err != nil {
		return err
	}
	d.unit = 1
	if t.DType == tensor.I32 || packing == "3bit_32" {
		d.unit = 4
	}
	rowBytes := int64(t.DType.BlockBytes()) * t.Shape[1]
	d.step, d.matrixCols = t.Shape[0], rowBytes/d.unit
	n, err := shape.Elements()
	if err != nil || n <= 0 || d.step <= 0 || d.matrixCols <= 0 || rowBytes%d.unit != 0 || n%d.matrixCols != 0 {
		return m.fault("bad_shape", t.Name, "the packed weight does not fit the weight's shape").Expected(t.Shape, fmt.Sprintf("a packing of %v", shape))
	}
	rows := n / d.matrixCols
	switch {
	case d.unit == 4 && d.step == ceil(rows, 10):
		d.bits = 3
	case d.unit == 4:
	default:
		for _, bits := range []int{8, 4, 2, 1} {
			if int64(8/bits) <= rows && d.step <= rows && d.step*int64(8/bits) == rows {
				d.bits = bits
			}
		}
	}
	if d.bits == 0 {
		return m.fault("bad_shape", t.Name, "the packed weight does not fit the weight's shape").Expected(t.Shape, fmt.Sprintf("a packing of %v", shape))
	}
	want := []int64{rows, 1}
	if !d.scale.Shape.Equal(want) {
		d.axis, want = 0, []int64{1, d.matrixCols}
	} else {
		d.axis = 1
	}
	for _, s := range []*tensor.Tensor{d.scale, d.zero} {
		if err := m.check(s, floats, want...); err != nil {
			return err
		}
	}
	return nil
}

func (d *hqq) rows(dst []float32, first int64) error {
	at, end := first*d.cols, first*d.cols+int64(len(dst))
	var scratch []byte
	for at < end {
		// A run of matrix rows whose codes lie in the same bits of packs that follow one another.
		row := at / d.matrixCols
		chunk := row / d.step
		stop := min(end, (chunk+1)*d.step*d.matrixCols)
		if err := d.run(dst[:stop-at], at, chunk, &scratch); err != nil {
			return err
		}
		dst, at = dst[stop-at:], stop
	}
	return nil
}

// run decodes elements from number at, all of one chunk.
func (d *hqq) run(dst []float32, at, chunk int64, scratch *[]byte) error {
	n := int64(len(dst))
	from := at - chunk*d.step*d.matrixCols // number of the first pack
	b := make([]byte, n*d.unit)
	if _, err := d.packed.ReadAt(b, from*d.unit); err != nil {
		return err
	}
	shift := 8 - d.bits*(int(chunk)+1)
	if d.bits == 3 {
		shift = 27 - 3*int(chunk)
	}
	groups, first := d.matrixCols, int64(0)
	if d.axis == 1 {
		first = at / d.matrixCols
		groups = (at+n-1)/d.matrixCols - first + 1
	}
	scales, err := readFloats(d.scale, first, groups)
	if err != nil {
		return err
	}
	zeros, err := readFloats(d.zero, first, groups)
	if err != nil {
		return err
	}
	if codes := int64(1) << d.bits; d.axis == 1 && d.unit == 1 && codes*4 <= d.matrixCols {
		return d.lookUp(dst, b, at, shift, scales, zeros, scratch)
	}
	size := n * int64(d.round.DType().BlockBytes())
	if int64(len(*scratch)) < size {
		*scratch = make([]byte, size)
	}
	for i := range dst {
		v := uint32(b[int64(i)*d.unit])
		if d.unit == 4 {
			v = word(b, int64(i))
		}
		dst[i] = float32(v >> shift & (1<<d.bits - 1))
	}
	d.each(dst, at, func(part []float32, g, step int64) {
		for i := range part {
			part[i] -= zeros[g+int64(i)*step-first]
		}
	})
	if err := d.round.Encode((*scratch)[:size], dst); err != nil {
		return err
	}
	d.round.Decode(dst, (*scratch)[:size])
	d.each(dst, at, func(part []float32, g, step int64) {
		for i := range part {
			part[i] *= scales[g+int64(i)*step-first]
		}
	})
	return nil
}

// lookUp decodes the codes at a shift of bytes, of rows that are groups, from element at on, by the values that
// each group's codes have.
func (d *hqq) lookUp(dst []float32, b []byte, at int64, shift int, scales, zeros []float32, scratch *[]byte) error {
	codes := int64(1) << d.bits
	values := make([]float32, codes*int64(len(scales)))
	for g, zero := range zeros {
		for c := range codes {
			values[int64(g)*codes+c] = float32(c) - zero
		}
	}
	size := len(values) * d.round.DType().BlockBytes()
	if len(*scratch) < size {
		*scratch = make([]byte, size)
	}
	if err := d.round.Encode((*scratch)[:size], values); err != nil {
		return err
	}
	d.round.Decode(values, (*scratch)[:size])
	for i := range values {
		values[i] *= scales[int64(i)>>d.bits]
	}
	first, mask := at/d.matrixCols, byte(codes-1)
	d.each(dst, at, func(part []float32, g, _ int64) {
		table := values[(g-first)*codes:][:codes:codes]
		from := b[:len(part)]
		b = b[len(part):]
		for i, v := range from {
			part[i] = table[v>>shift&mask]
		}
	})
	return nil
}

// each goes through the parts of matrix rows that elements from number at are. Element i of a part is in
// group g + i·step.
func (d *hqq) each(dst []float32, at int64, do func(part []float32, g, step int64)) {
	for len(dst) > 0 {
		row, col := at/d.matrixCols, at%d.matrixCols
		n := min(int64(len(dst)), d.matrixCols-col)
		if d.axis == 1 {
			do(dst[:n], row, 0)
		} else {
			do(dst[:n], col, 1)
		}
		dst, at = dst[n:], at+n
	}
}

// readSmall reads a tensor that holds a word or a number; nil where there is none.
func (m *model) readSmall(name string) ([]byte, error) {
	t := m.byName[name]
	if t == nil {
		return nil, nil
	}
	if t.Size > 64 {
		return nil, m.fault("bad_state", name, "the tensor should hold one word or number").Expected(fmt.Sprintf("%d bytes", t.Size), "at most 64")
	}
	return t.Read()
}

// readShape reads a shape that is stored as a tensor.
func (m *model) readShape(name string) (tensor.Shape, error) {
	t, err := m.part(name, []tensor.DType{tensor.I64, tensor.I32}, -1)
	if err != nil {
		return nil, err
	}
	b, err := m.readSmall(name)
	if err != nil {
		return nil, err
	}
	var shape tensor.Shape
	for len(b) > 0 {
		if t.DType == tensor.I64 {
			shape, b = append(shape, int64(binary.LittleEndian.Uint64(b))), b[8:]
		} else {
			shape, b = append(shape, int64(int32(binary.LittleEndian.Uint32(b)))), b[4:]
		}
	}
	if _, err := shape.Elements(); err != nil || len(shape) == 0 {
		return nil, m.badShape(name, shape)
	}
	return shape, nil
}

func (m *model) badShape(name string, shape tensor.Shape) *finding.Finding {
	return m.fault("bad_state", name, "the stored shape %v is not one", shape)
}
