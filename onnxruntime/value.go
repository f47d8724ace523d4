package onnxruntime

import (
	"fmt"

	"github.com/loratool/loratool/tensor"
)

// A Value is a tensor that goes into or comes out of a model, row-major. Exactly one of the data fields
// is used. A nil Shape is a scalar.
type Value struct {
	Shape tensor.Shape
	F32   []float32
	I64   []int64

	// raw holds elements of elem, an ONNX type number, in little-endian order. Inputs only.
	raw  []byte
	elem int64
}

// elements are the types of raw values: their ONNX numbers and sizes in bytes.
var elements = map[tensor.DType]struct{ number, size int64 }{
	tensor.F32: {onnxFloat, 4}, tensor.U8: {2, 1}, tensor.I8: {3, 1}, tensor.U16: {4, 2}, tensor.I16: {5, 2}, tensor.I32: {6, 4}, tensor.I64: {7, 8},
	tensor.Bool: {9, 1}, tensor.F16: {onnxFloat16, 2}, tensor.F64: {11, 8}, tensor.U32: {12, 4}, tensor.U64: {13, 8}, tensor.BF16: {onnxBFloat, 2},
}

// Bytes makes an input of little-endian elements of a plain type: a float of 16 to 64 bits, an integer or a boolean.
func Bytes(d tensor.DType, raw []byte, shape ...int64) (Value, error) {
	e, ok := elements[d]
	if !ok {
		return Value{}, fmt.Errorf("values of type %s cannot be given to a model", d)
	}
	return Value{Shape: shape, raw: raw, elem: e.number}, nil
}

// Floats makes a float32 value.
func Floats(v []float32, shape ...int64) Value { return Value{Shape: shape, F32: v} }

// Ints makes an int64 value.
func Ints(v []int64, shape ...int64) Value { return Value{Shape: shape, I64: v} }

// check compares the data's length with the shape, which the runtime's C API takes on trust.
func (v Value) check(name string) error {
	n, err := v.Shape.Elements()
	if err != nil {
		return fmt.Errorf("input %q: %w", name, err)
	}
	have, used := 0, 0
	for _, l := range []int{len(v.F32), len(v.I64), len(v.raw) / v.elemBytes()} {
		if l > 0 {
			have, used = l, used+1
		}
	}
	if int64(have) != n || used > 1 {
		return fmt.Errorf("input %q: shape %v needs %d elements in one slice, found %d", name, v.Shape, n, have)
	}
	return nil
}

func (v Value) elemBytes() int {
	for _, e := range elements {
		if e.number == v.elem {
			return int(e.size)
		}
	}
	return 1
}

// A Model is an ONNX model in a file (with its external data beside it) or in memory. Path is also what errors
// name; with Bytes set, the file is not read.
type Model struct {
	Path  string
	Bytes []byte
	// Folder holds the external data of a model in memory.
	Folder string
}
