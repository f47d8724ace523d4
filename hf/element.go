package hf

import (
	"encoding/binary"
	"io"
	"math"

	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// A source is a parameter of the folder in the type that llama.cpp's converter computes in: F16 and F32
// stay; BF16 stays too, since widening it is exact; everything else is widened to F32.
type source struct {
	io.ReaderAt
	dtype tensor.DType
	shape tensor.Shape
}

// asSource is the tensor as a source, false if its type holds no numbers.
func asSource(t *tensor.Tensor) (source, bool) {
	s := source{t, t.DType, t.Shape}
	switch t.DType {
	case tensor.F16, tensor.BF16, tensor.F32:
		return s, true
	}
	return widened(s)
}

// widened is a source as F32, false if its type holds no numbers.
func widened(s source) (source, bool) {
	if s.dtype == tensor.F32 {
		return s, true
	}
	decode := integers[s.dtype]
	if c, ok := quant.Of(s.dtype); ok {
		decode = c.Decode
	}
	block, elem := int64(s.dtype.BlockLen()), int64(s.dtype.BlockBytes())
	if decode == nil {
		return s, false
	}
	wide := readerAt(func(p []byte, off int64) error {
		return inUnits(p, off, 4*block, func(p []byte, first int64) error {
			n := int64(len(p)) / (4 * block)
			in := scratch(n * elem)
			defer free(in)
			if err := full(s.ReaderAt, *in, first*elem); err != nil {
				return err
			}
			x := make([]float32, n*block)
			decode(x, *in)
			putF32(p, x)
			return nil
		})
	})
	return source{wide, tensor.F32, s.shape}, true
}

func putF32(p []byte, x []float32) {
	for i, f := range x {
		binary.LittleEndian.PutUint32(p[4*i:], math.Float32bits(f))
	}
}

// integers decode the integer types as numpy casts them.
var integers = map[tensor.DType]func(dst []float32, src []byte){
	tensor.Bool: each(1, func(b []byte) float32 { return float32(b[0]) }),
	tensor.U8:   each(1, func(b []byte) float32 { return float32(b[0]) }),
	tensor.I8:   each(1, func(b []byte) float32 { return float32(int8(b[0])) }),
	tensor.U16:  each(2, func(b []byte) float32 { return float32(binary.LittleEndian.Uint16(b)) }),
	tensor.I16:  each(2, func(b []byte) float32 { return float32(int16(binary.LittleEndian.Uint16(b))) }),
	tensor.U32:  each(4, func(b []byte) float32 { return float32(binary.LittleEndian.Uint32(b)) }),
	tensor.I32:  each(4, func(b []byte) float32 { return float32(int32(binary.LittleEndian.Uint32(b))) }),
	tensor.U64:  each(8, func(b []byte) float32 { return float32(binary.LittleEndian.Uint64(b)) }),
	tensor.I64:  each(8, func(b []byte) float32 { return float32(int64(binary.LittleEndian.Uint64(b))) }),
}

func each(size int, one func([]byte) float32) func([]float32, []byte) {
	return func(dst []float32, src []byte) {
		for i := range dst {
			dst[i] = one(src[i*size:])
		}
	}
}

// shifted is a norm's scale with 1 added, as Gemma's graph expects it, or taken away: F32, or F16 of an F16
// folder, whose sum the converter rounds to F16.
func shifted(s source, by float32) source {
	c, _ := quant.Of(s.dtype)
	out := tensor.F32
	if s.dtype == tensor.F16 {
		out = tensor.F16
	}
	to, _ := quant.Of(out)
	elem, unit := int64(s.dtype.BlockBytes()), int64(out.BlockBytes())
	sum := readerAt(func(p []byte, off int64) error {
		return inUnits(p, off, unit, func(p []byte, first int64) error {
			n := int64(len(p)) / unit
			in := scratch(n * elem)
			defer free(in)
			if err := full(s.ReaderAt, *in, first*elem); err != nil {
				return err
			}
			x := make([]float32, n)
			c.Decode(x, *in)
			for i := range x {
				x[i] += by
			}
			return to.Encode(p, x)
		})
	})
	return source{sum, out, s.shape}
}

// readerAt is a function that fills p from off, as an io.ReaderAt.
type readerAt func(p []byte, off int64) error

func (f readerAt) ReadAt(p []byte, off int64) (int, error) {
	if err := f(p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// The sizes of an MXFP4 block of 32 elements, with and without its scale.
const (
	mxCodes = 16
	mxBlock = 17
)

// mxfp4 joins the blocks and scales of transformers into ggml's blocks. A source byte holds elements 2i
// (low half) and 2i+1; ggml's byte j holds elements j and j+16, and the scale comes first.
func mxfp4(blocks, scales *tensor.Tensor, shape tensor.Shape) source {
	joined := readerAt(func(p []byte, off int64) error {
		return inUnits(p, off, mxBlock, func(p []byte, first int64) error {
			n := int64(len(p)) / mxBlock
			codes, exps := scratch(n*mxCodes), scratch(n)
			defer free(codes)
			defer free(exps)
			if _, err := blocks.ReadAt(*codes, first*mxCodes); err != nil {
				return err
			}
			if _, err := scales.ReadAt(*exps, first); err != nil {
				return err
			}
			for b := range n {
				repack(p[b*mxBlock:][:mxBlock], (*codes)[b*mxCodes:][:mxCodes], (*exps)[b])
			}
			return nil
		})
	})
	return source{joined, tensor.MXFP4, shape}
}

func repack(dst, codes []byte, scale byte) {
	dst[0] = scale
	for j := range mxCodes {
		low, high := codes[j/2], codes[8+j/2]
		if j%2 == 1 {
			low, high = low>>4, high>>4
		}
		dst[1+j] = low&15 | high<<4
	}
}
