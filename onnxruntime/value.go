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

	// raw holds elements of elem, an ONNX type number, in little-endian order. Inputs of check graphs only.
	raw  []byte
	elem int64
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
	if v.elem == onnxFloat {
		return 4
	}
	return 2
}

// A Model is an ONNX model in a file (with its external data beside it) or in memory.
type Model struct {
	Path  string
	Bytes []byte
}
