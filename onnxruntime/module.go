package onnxruntime

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math"

	"github.com/x448/float16"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// A Module is one merged matrix and what an adapter should have done to it.
type Module struct {
	Name    string
	Out, In int
	// Transposed: the matrix is stored [in, out], else [out, in]. It decides the product, so that a square
	// matrix cannot be read the wrong way round.
	Transposed bool
	// Terms are the adapter's low-rank updates, empty where the update is given densely with each Block.
	Terms []Term
	// Noise is the expected relative L2 error of the merged matrix from rounding to its stored type. 0 means
	// half a unit in the last place of the type in Block.Merged; block types need a number: the step over √12
	// and over the RMS of the weights.
	Noise float64
}

// A Term is Scale·B·A. A is [Rank, in] and B is [out, Rank], row-major, however the matrix is stored.
type Term struct {
	Rank  int
	A, B  []float32
	Scale float32
}

// Weights are rows of a matrix in its stored orientation. Either Raw holds them little-endian in DType,
// which is then F32, F16 or BF16, or Values holds them decoded, and DType says what they were stored as.
type Weights struct {
	DType  tensor.DType
	Raw    []byte
	Values []float32
}

// A Block is a run of Rows stored rows from First: output rows, or input rows of a Transposed module.
// Blocks of a module may come in any order and must cover it once.
type Block struct {
	First, Rows  int
	Base, Merged Weights
	// For a module without Terms one of these: Expected is the whole wanted matrix (DoRA, replaced
	// weights), Delta the wanted change. Both are in the stored orientation, float32.
	Expected, Delta []float32
}

// stored is the number of rows and columns of the stored matrix.
func (m Module) stored() (rows, cols int) {
	if m.Transposed {
		return m.In, m.Out
	}
	return m.Out, m.In
}

// rank is the sum of the terms' ranks.
func (m Module) rank() int {
	r := 0
	for _, t := range m.Terms {
		r += t.Rank
	}
	return r
}

func (m Module) check() error {
	if m.Out <= 0 || m.In <= 0 || m.Out > math.MaxInt32 || m.In > math.MaxInt32 {
		return badModule(m, "a matrix of %d outputs and %d inputs cannot be checked", m.Out, m.In)
	}
	for i, t := range m.Terms {
		if t.Rank <= 0 || len(t.A) != t.Rank*m.In || len(t.B) != m.Out*t.Rank {
			return badModule(m, "term %d of rank %d has %d and %d values, expected %d and %d", i, t.Rank, len(t.A), len(t.B), t.Rank*m.In, m.Out*t.Rank)
		}
	}
	return nil
}

func (b Block) check(m Module) error {
	rows, cols := m.stored()
	if b.First < 0 || b.Rows <= 0 || b.Rows > rows-b.First {
		return badModule(m, "rows %d to %d are not in a matrix of %d rows", b.First, b.First+b.Rows, rows)
	}
	n := b.Rows * cols
	for _, w := range []Weights{b.Base, b.Merged} {
		if err := w.check(m, n); err != nil {
			return err
		}
	}
	want := 0
	if len(m.Terms) == 0 {
		want = 1
	}
	have := 0
	for _, v := range [][]float32{b.Expected, b.Delta} {
		if v != nil {
			have++
			if len(v) != n {
				return badModule(m, "the wanted rows have %d values, expected %d", len(v), n)
			}
		}
	}
	if have != want {
		return badModule(m, "the wanted change must be given once: as terms, as expected weights or as a difference")
	}
	return nil
}

func (w Weights) check(m Module, n int) error {
	if w.Values != nil {
		if len(w.Values) != n {
			return badModule(m, "the rows have %d values, expected %d", len(w.Values), n)
		}
		return nil
	}
	size := 0
	switch w.DType {
	case tensor.F32:
		size = 4
	case tensor.F16, tensor.BF16:
		size = 2
	default:
		return badModule(m, "rows of type %s must be decoded before the check", w.DType)
	}
	if len(w.Raw) != n*size {
		return badModule(m, "the rows have %d bytes, expected %d", len(w.Raw), n*size)
	}
	return nil
}

// slice is rows [first, first+rows) of a block that has cols columns.
func (b Block) slice(first, rows, cols int) Block {
	part := func(v []float32) []float32 {
		if v == nil {
			return nil
		}
		return v[first*cols : (first+rows)*cols]
	}
	weights := func(w Weights) Weights {
		if w.Values != nil {
			return Weights{DType: w.DType, Values: part(w.Values)}
		}
		size := len(w.Raw) / (b.Rows * cols)
		return Weights{DType: w.DType, Raw: w.Raw[first*cols*size : (first+rows)*cols*size]}
	}
	return Block{
		First: b.First + first, Rows: rows, Base: weights(b.Base), Merged: weights(b.Merged),
		Expected: part(b.Expected), Delta: part(b.Delta),
	}
}

// at is element i as float32.
func (w Weights) at(i int) float32 {
	if w.Values != nil {
		return w.Values[i]
	}
	switch w.DType {
	case tensor.F16:
		return float16.Frombits(binary.LittleEndian.Uint16(w.Raw[2*i:])).Float32()
	case tensor.BF16:
		return math.Float32frombits(uint32(binary.LittleEndian.Uint16(w.Raw[2*i:])) << 16)
	}
	return math.Float32frombits(binary.LittleEndian.Uint32(w.Raw[4*i:]))
}

// value makes the rows a graph input. With decode they become float32 first, for providers that lack
// the 16-bit types.
func (w Weights) value(rows, cols int, decode bool) Value {
	shape := tensor.Shape{int64(rows), int64(cols)}
	if w.Values != nil {
		return Value{Shape: shape, F32: w.Values}
	}
	if decode {
		v := make([]float32, rows*cols)
		for i := range v {
			v[i] = w.at(i)
		}
		return Value{Shape: shape, F32: v}
	}
	return Value{Shape: shape, raw: w.Raw, elem: w.element()}
}

// element is the ONNX number of the type the runtime sees.
func (w Weights) element() int64 {
	switch {
	case w.Values != nil:
		return onnxFloat
	case w.DType == tensor.F16:
		return onnxFloat16
	case w.DType == tensor.BF16:
		return onnxBFloat
	}
	return onnxFloat
}

// equal reports whether both hold the same weights: bit for bit in one type, else by value.
func (w Weights) equal(v Weights, n int) bool {
	if w.Values == nil && v.Values == nil && w.DType == v.DType {
		return string(w.Raw) == string(v.Raw)
	}
	for i := range n {
		if w.at(i) != v.at(i) {
			return false
		}
	}
	return true
}

// rounding is the error of storing a value in a type: relative, half a unit in the last place just above a
// power of two, and absolute, half the smallest subnormal. Both are 0 for types that have no such number.
func rounding(d tensor.DType) (relative, absolute float64) {
	switch d {
	case tensor.F64, tensor.F32:
		return 0x1p-24, 0
	case tensor.F16:
		return 0x1p-11, 0x1p-25
	case tensor.BF16:
		return 0x1p-8, 0
	case tensor.F8E4M3:
		return 0x1p-4, 0x1p-10
	case tensor.F8E4M3FNUZ:
		return 0x1p-4, 0x1p-11
	case tensor.F8E5M2:
		return 0x1p-3, 0x1p-17
	case tensor.F8E5M2FNUZ:
		return 0x1p-3, 0x1p-18
	}
	return 0, 0
}

// nameHash makes a seed of a module's name, so that its inputs do not depend on its neighbours.
func nameHash(name string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(name))
	return h.Sum64()
}

func badModule(m Module, format string, a ...any) error {
	return finding.Errorf("runtime.bad_module", "", "%s", fmt.Sprintf(format, a...)).In(m.Name)
}
