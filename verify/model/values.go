package model

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/loratool/loratool/onnxruntime"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// maxElements bounds an input, so that no declared shape can ask for all memory.
const maxElements = 1 << 28

// An Array is the value of an input: little-endian elements of a plain type, row-major.
type Array struct {
	tensor.Spec
	Data []byte
}

// integers reports whether a type holds whole numbers, booleans among them.
func integers(d tensor.DType) bool { return d >= tensor.Bool && d <= tensor.I64 }

// fromInts makes an array of an integer or float type of whole numbers.
func fromInts(d tensor.DType, shape tensor.Shape, v []int64) (Array, error) {
	a := Array{Spec: tensor.Spec{DType: d, Shape: shape}}
	if !integers(d) {
		f := make([]float64, len(v))
		for i, x := range v {
			f[i] = float64(x)
		}
		return fromFloats(d, shape, f)
	}
	size := d.BlockBytes()
	a.Data = make([]byte, len(v)*size)
	for i, x := range v {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], uint64(x))
		copy(a.Data[i*size:], b[:size])
		if back := intAt(d, a.Data[i*size:]); back != x {
			return a, fmt.Errorf("%d does not fit %s", x, d)
		}
	}
	return a, nil
}

// fromFloats makes an array of a float type, with one rounding.
func fromFloats(d tensor.DType, shape tensor.Shape, v []float64) (Array, error) {
	a := Array{Spec: tensor.Spec{DType: d, Shape: shape}}
	if d == tensor.F64 {
		for _, x := range v {
			a.Data = binary.LittleEndian.AppendUint64(a.Data, math.Float64bits(x))
		}
		return a, nil
	}
	codec, ok := quant.Of(d)
	if !ok || !d.IsFloat() {
		return a, fmt.Errorf("numbers with a fraction cannot be given as %s", d)
	}
	f := make([]float32, len(v))
	for i, x := range v {
		f[i] = float32(x)
	}
	a.Data = make([]byte, len(v)*d.BlockBytes())
	return a, codec.Encode(a.Data, f)
}

func intAt(d tensor.DType, b []byte) int64 {
	le := binary.LittleEndian
	switch d {
	case tensor.Bool:
		return int64(min(b[0], 1))
	case tensor.U8:
		return int64(b[0])
	case tensor.I8:
		return int64(int8(b[0]))
	case tensor.U16:
		return int64(le.Uint16(b))
	case tensor.I16:
		return int64(int16(le.Uint16(b)))
	case tensor.U32:
		return int64(le.Uint32(b))
	case tensor.I32:
		return int64(int32(le.Uint32(b)))
	}
	return int64(le.Uint64(b))
}

// as converts an array to the type that a model declares: whole numbers to any type they fit, floats to floats.
func (a Array) as(d tensor.DType) (Array, error) {
	if a.DType == d {
		return a, nil
	}
	n, err := a.Shape.Elements()
	if err != nil {
		return a, err
	}
	if integers(a.DType) {
		v := make([]int64, n)
		for i := range v {
			v[i] = intAt(a.DType, a.Data[i*a.DType.BlockBytes():])
		}
		return fromInts(d, a.Shape, v)
	}
	v := make([]float64, n)
	if a.DType == tensor.F64 {
		for i := range v {
			v[i] = math.Float64frombits(binary.LittleEndian.Uint64(a.Data[8*i:]))
		}
		return fromFloats(d, a.Shape, v)
	}
	codec, ok := quant.Of(a.DType)
	if !ok {
		return a, fmt.Errorf("%s is not a type of inputs", a.DType)
	}
	f := make([]float32, n)
	codec.Decode(f, a.Data)
	for i, x := range f {
		v[i] = float64(x)
	}
	return fromFloats(d, a.Shape, v)
}

// value is the array as the runtime takes it.
func (a Array) value() (onnxruntime.Value, error) {
	return onnxruntime.Bytes(a.DType, a.Data, a.Shape...)
}
