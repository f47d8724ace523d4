// Package safetensors reads and writes safetensors files, sharded models with an index, and the model
// folders of Hugging Face that hold them.
//
// A file is
//
//	8 bytes   n, the length of the header, little-endian
//	n bytes   header: JSON, {"name": {"dtype", "shape", "data_offsets": [begin, end]}, …},
//	          and "__metadata__": a map of strings; padded with spaces
//	the rest  data: the tensors, without gaps, offsets counted from here
//
// The reader is stricter than the reference implementation (huggingface/safetensors) in two points: a
// key that appears twice is an error, and so is a tensor entry in array form. Everything else the
// reference accepts is accepted, some of it with a warning. Headers end at 100 MB.
//
// The writer orders tensors as the reference does (type by descending alignment, then name), so a file
// written by the reference comes out byte for byte. Only metadata of two or more keys, which the
// reference writes in random order, is sorted here.
package safetensors

import (
	"math/bits"

	"github.com/loratool/loratool/tensor"
)

// kinds are the types of the format, in the reference's order: ascending alignment.
var kinds = []struct {
	dtype tensor.DType
	bits  uint64
}{
	{tensor.Bool, 8}, {tensor.F4, 4}, {tensor.F6E2M3, 6}, {tensor.F6E3M2, 6}, {tensor.U8, 8}, {tensor.I8, 8},
	{tensor.F8E5M2, 8}, {tensor.F8E4M3, 8}, {tensor.F8E8M0, 8}, {tensor.F8E4M3FNUZ, 8}, {tensor.F8E5M2FNUZ, 8},
	{tensor.I16, 16}, {tensor.U16, 16}, {tensor.F16, 16}, {tensor.BF16, 16},
	{tensor.I32, 32}, {tensor.U32, 32}, {tensor.F32, 32},
	{tensor.C64, 64}, {tensor.F64, 64}, {tensor.I64, 64}, {tensor.U64, 64},
}

var kindByName = func() map[string]int {
	m := make(map[string]int, len(kinds))
	for i, k := range kinds {
		m[k.dtype.String()] = i
	}
	return m
}()

// kindOf returns the index of a type in kinds.
func kindOf(d tensor.DType) (int, bool) {
	i, ok := kindByName[d.String()]
	return i, ok
}

// The ways in which a shape and a type may fail to give a size; also the reasons of findings.
const (
	overflow   = "overflow"
	misaligned = "subbyte_misaligned"
)

// dataSize is the size in bytes of a tensor, or the reason why it has none. The product runs from
// left to right and must fit 64 bits at every step, as in the reference; so a zero dimension hides
// an overflow behind it, but not one before it.
func dataSize(bitsEach uint64, shape []uint64) (size uint64, reason string) {
	n := uint64(1)
	for _, d := range shape {
		hi, lo := bits.Mul64(n, d)
		if hi != 0 {
			return 0, overflow
		}
		n = lo
	}
	hi, lo := bits.Mul64(n, bitsEach)
	switch {
	case hi != 0:
		return 0, overflow
	case lo%8 != 0:
		return 0, misaligned
	}
	return lo / 8, ""
}
