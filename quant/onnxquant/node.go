package onnxquant

import (
	"fmt"

	"github.com/loratool/loratool/tensor"
)

// NBits is a node of MatMulNBits: its attributes and its constant inputs, nil where they are left out.
type NBits struct {
	K, N, Bits, Block  int64
	Prepacked          int64 // weight_prepacked
	Codes, Scale, Zero *tensor.Tensor
	Reordered          bool // it has a g_idx
}

// Open is the weight, [N, K]. Refused are layouts that only one provider can read (weight_prepacked) and
// rows that g_idx puts under scales out of order.
func (n NBits) Open() (*Weight, error) {
	switch {
	case n.Prepacked != 0:
		return nil, fault("unsupported", n.Codes, "the weight is packed for one provider of ONNX Runtime, in a layout that is not published").
			Expected(fmt.Sprintf("weight_prepacked %d", n.Prepacked), 0).Hinted("export the model without prepacking")
	case n.Reordered:
		return nil, fault("unsupported", n.Codes, "the weight's columns are put in blocks by g_idx, which newer versions of ONNX Runtime do not read")
	case n.Bits != 2 && n.Bits != 4 && n.Bits != 8:
		return nil, fault("unsupported", n.Codes, "codes of %d bits", n.Bits).Expected(n.Bits, "2, 4 or 8")
	case n.Block < 16 || n.Block > 1<<20 || n.Block&(n.Block-1) != 0:
		return nil, fault("bad_shape", n.Codes, "a block size that is no power of two from 16 up").Expected(n.Block, "16, 32, 64, …")
	case n.K <= 0 || n.N <= 0 || n.K > 1<<31 || n.N > 1<<31:
		return nil, fault("bad_shape", n.Codes, "the sizes of the node's weight").Expected(fmt.Sprintf("N %d, K %d", n.N, n.K), "positive sizes")
	}
	blocks := ceil(n.K, n.Block)
	if err := part(n.Codes, "codes", n.N*blocks*n.Block*n.Bits/8, tensor.U8); err != nil {
		return nil, err
	}
	if err := part(n.Scale, "scales", n.N*blocks, floats...); err != nil {
		return nil, err
	}
	w := &Weight{
		Scheme: fmt.Sprintf("MatMulNBits %d-bit in blocks of %d", n.Bits, n.Block),
		Shape:  tensor.Shape{n.N, n.K}, DType: n.Scale.DType, Parts: []tensor.Tensor{*n.Codes, *n.Scale},
		stride: blocks * n.Block, coding: coding{bits: n.Bits},
		grid:  grid{axis: n.K, inner: 1, block: n.Block, blocks: blocks, each: true, count: n.N * blocks},
		zeros: zeros{constant: 1 << (n.Bits - 1)},
	}
	if z := n.Zero; z != nil {
		w.zeros = zeros{stored: true, row: blocks, stride: ceil(blocks*n.Bits, 8) * 8 / n.Bits}
		if z.DType == tensor.U8 {
			if err := part(z, "zero points", n.N*w.zeros.stride*n.Bits/8, tensor.U8); err != nil {
				return nil, err
			}
		} else {
			w.zeros.floats = true
			if err := part(z, "zero points", n.N*blocks, n.Scale.DType); err != nil {
				return nil, err
			}
		}
		w.Parts = append(w.Parts, *z)
	}
	return w, w.matrix()
}

// Linear is a node of DequantizeLinear, or the weight of an operator that computes with integers: codes, a
// scale, and a zero point or nil. Axis may be negative; Block is 0 without blocks.
type Linear struct {
	Axis, Block        int64
	Codes, Scale, Zero *tensor.Tensor
	// Bound: the node has a bias of integers that are multiples of the scales, so these cannot be changed.
	Bound bool
}

// Open is the weight, in the shape of its codes.
func (n Linear) Open() (*Weight, error) {
	if n.Codes == nil || n.Scale == nil {
		return nil, fault("missing_part", n.Codes, "the scales of a quantized weight are no initializer")
	}
	c, ok := codingOf(n.Codes.DType)
	if !ok {
		return nil, fault("bad_dtype", n.Codes, "a weight is not quantized to this type").Expected(n.Codes.DType, "an integer of 2 to 16 bits or a float of 4 or 8")
	}
	count, err := n.Codes.Shape.Elements()
	if err != nil {
		return nil, fault("bad_shape", n.Codes, "%v", err)
	}
	if err := part(n.Codes, "codes", count, n.Codes.DType); err != nil {
		return nil, err
	}
	w := &Weight{Shape: n.Codes.Shape, DType: n.Scale.DType, Parts: []tensor.Tensor{*n.Codes, *n.Scale}, coding: c}
	if err := w.matrix(); err != nil {
		return nil, err
	}
	w.stride, w.rounding, w.bound = w.cols, bySlice, n.Bound
	if err := n.grid(w); err != nil {
		return nil, err
	}
	types := append([]tensor.DType{tensor.F8E8M0}, floats...)
	if err := part(n.Scale, "scales", w.grid.count, types...); err != nil {
		return nil, err
	}
	if w.DType == tensor.F8E8M0 {
		w.DType = tensor.F32
	}
	if n.Zero != nil {
		if err := part(n.Zero, "zero points", w.grid.count, n.Codes.DType); err != nil {
			return nil, err
		}
		w.Parts = append(w.Parts, *n.Zero)
		w.zeros = zeros{stored: true, row: w.grid.count, stride: w.grid.count}
	}
	w.Scheme = fmt.Sprintf("%s%s", n.Codes.DType, w.grid.describe())
	return w, nil
}

// grid finds the blocks from the shape of the scales.
func (n Linear) grid(w *Weight) error {
	scales, err := n.Scale.Shape.Elements()
	if err != nil {
		return fault("bad_shape", n.Scale, "%v", err)
	}
	if scales == 1 && n.Block == 0 {
		w.grid = grid{axis: 1, inner: 1, block: 1, blocks: 1, one: true, count: 1}
		return nil
	}
	rank := int64(len(w.Shape))
	axis := n.Axis
	if axis < 0 {
		axis += rank
	}
	if axis < 0 || axis >= rank {
		return fault("bad_shape", n.Codes, "axis %d of a quantized weight with %d dimensions", n.Axis, rank)
	}
	if n.Block > 0 {
		w.rounding = inBlocks
	}
	g := grid{axis: w.Shape[axis], inner: 1, block: 1}
	for _, d := range w.Shape[axis+1:] {
		g.inner *= d
	}
	if n.Block == 0 {
		g.blocks, g.count = g.axis, g.axis
		w.grid = g
		return nil
	}
	if n.Block < 0 || int64(len(n.Scale.Shape)) != rank {
		return fault("bad_shape", n.Scale, "the scales of blocks of %d have another rank than the weight", n.Block).Expected(n.Scale.Shape, w.Shape)
	}
	g.each, g.block, g.blocks = true, min(n.Block, g.axis), ceil(g.axis, n.Block)
	for i, d := range n.Scale.Shape {
		want := w.Shape[i]
		if int64(i) == axis {
			want = g.blocks
		}
		if d != want {
			return fault("bad_shape", n.Scale, "the scales do not fit blocks of %d along axis %d", n.Block, axis).Expected(n.Scale.Shape, w.Shape)
		}
	}
	g.count = scales
	w.grid = g
	return nil
}

func (g *grid) describe() string {
	switch {
	case g.one:
		return " under one scale"
	case g.each && g.inner == 1:
		return fmt.Sprintf(" in blocks of %d", g.block)
	case g.each:
		return fmt.Sprintf(" in blocks of %d rows", g.block)
	case g.inner == 1:
		return " by columns"
	}
	return " by rows"
}

// Gathered is a node of GatherBlockQuantized: an embedding in blocks.
type Gathered struct {
	Bits, Axis, Block  int64 // Axis is quantize_axis
	Codes, Scale, Zero *tensor.Tensor
}

// Open is the weight. Bytes hold codes of 4 or 8 bits, two along the last axis where they are of 4; without
// zero points theirs is half the range, and that of int4 and uint4 is 0.
func (n Gathered) Open() (*Weight, error) {
	if n.Codes == nil || n.Scale == nil {
		return nil, fault("missing_part", n.Codes, "the scales of a quantized weight are no initializer")
	}
	if n.Codes.DType != tensor.U8 {
		w, err := Linear{Axis: n.Axis, Block: n.Block, Codes: n.Codes, Scale: n.Scale, Zero: n.Zero}.Open()
		if err == nil {
			w.rounding = inRows
		}
		return w, err
	}
	if n.Bits != 4 && n.Bits != 8 {
		return nil, fault("unsupported", n.Codes, "codes of %d bits in bytes", n.Bits).Expected(n.Bits, "4 or 8")
	}
	rank := len(n.Codes.Shape)
	if rank == 0 || n.Codes.Shape[rank-1] > 1<<40 {
		return nil, fault("bad_shape", n.Codes, "the codes of an embedding").Expected(n.Codes.Shape, "[vocabulary, …]")
	}
	count, err := n.Codes.Shape.Elements()
	if err != nil {
		return nil, fault("bad_shape", n.Codes, "%v", err)
	}
	if err := part(n.Codes, "codes", count, tensor.U8); err != nil {
		return nil, err
	}
	w := &Weight{DType: n.Scale.DType, Parts: []tensor.Tensor{*n.Codes, *n.Scale}, coding: coding{bits: n.Bits}, zeros: zeros{constant: 1 << (n.Bits - 1)}}
	w.Shape = append(tensor.Shape{}, n.Codes.Shape...)
	w.Shape[rank-1] *= 8 / n.Bits
	if err := w.matrix(); err != nil {
		return nil, err
	}
	w.stride = w.cols
	if err := (Linear{Axis: n.Axis, Block: n.Block, Codes: n.Codes, Scale: n.Scale}).grid(w); err != nil {
		return nil, err
	}
	w.rounding = inRows
	if err := part(n.Scale, "scales", w.grid.count, floats...); err != nil {
		return nil, err
	}
	if z := n.Zero; z != nil {
		row := n.Scale.Shape[len(n.Scale.Shape)-1]
		stride := ceil(row*n.Bits, 8) * 8 / n.Bits
		if err := part(z, "zero points", w.grid.count/row*stride*n.Bits/8, tensor.U8); err != nil {
			return nil, err
		}
		w.zeros = zeros{stored: true, row: row, stride: stride}
		w.Parts = append(w.Parts, *z)
	}
	w.Scheme = fmt.Sprintf("GatherBlockQuantized %d-bit%s", n.Bits, w.grid.describe())
	return w, nil
}

// Bnb4 is a node of MatMulBnb4. NF4 tells its code apart from FP4 (quant_type 1 and 0).
type Bnb4 struct {
	K, N, Block   int64
	NF4           bool
	Codes, Absmax *tensor.Tensor
}

// The values of bitsandbytes' codes. Two codes lie in a byte, the first in its high half.
var (
	nf4 = []float32{
		-1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0,
		0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1,
	}
	fp4 = []float32{
		0, 5.208333333e-03, 0.66666667, 1, 0.33333333, 0.5, 0.16666667, 0.25, -0, -5.208333333e-03, -0.66666667, -1, -0.33333333, -0.5, -0.16666667, -0.25,
	}
)

// Open is the weight, [N, K], in blocks of the flattened matrix.
func (n Bnb4) Open() (*Weight, error) {
	if n.K <= 0 || n.N <= 0 || n.K > 1<<31 || n.N > 1<<31 || n.Block < 16 || n.Block > 1<<30 {
		return nil, fault("bad_shape", n.Codes, "the sizes of the node's weight").Expected(fmt.Sprintf("N %d, K %d, block %d", n.N, n.K, n.Block), "positive sizes, blocks from 16 up")
	}
	count := n.N * n.K
	if err := part(n.Codes, "codes", (count+1)/2, tensor.U8); err != nil {
		return nil, err
	}
	blocks := ceil(count, n.Block)
	if err := part(n.Absmax, "scales", blocks, floats...); err != nil {
		return nil, err
	}
	w := &Weight{
		Scheme: "MatMulBnb4 FP4", Shape: tensor.Shape{n.N, n.K}, DType: n.Absmax.DType, Parts: []tensor.Tensor{*n.Codes, *n.Absmax},
		stride: n.K, coding: coding{bits: 4, values: fp4, highFirst: true},
		grid: grid{axis: count, inner: 1, block: n.Block, blocks: blocks, each: true, count: blocks},
	}
	if n.NF4 {
		w.Scheme, w.coding.values = "MatMulBnb4 NF4", nf4
	}
	return w, w.matrix()
}
