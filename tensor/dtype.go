// Package tensor holds what every format agrees on: element types and their sizes, shapes with
// checked products, and a Tensor as a named section of some file. It knows no file format.
package tensor

import (
	"fmt"
	"math"
	"math/bits"
)

// A DType is a storage type: a plain element type, or a block type that packs a fixed number of
// elements into a fixed number of bytes. Multi-byte values are little-endian unless a format says
// otherwise. The names follow safetensors, ONNX and ggml, in this order of preference.
type DType uint8

// The storage types. Block types carry the names ggml gives them.
const (
	Invalid DType = iota
	Bool
	U8
	I8
	U16
	I16
	U32
	I32
	U64
	I64
	F16
	BF16
	F32
	F64
	C64  // two float32
	C128 // two float64

	F8E5M2
	F8E4M3 // finite only, no infinities; one NaN pattern a sign (ONNX: FLOAT8E4M3FN)
	F8E8M0 // exponent only
	F8E4M3FNUZ
	F8E5M2FNUZ
	F6E2M3
	F6E3M2
	F4 // E2M1
	U4 // two elements a byte, low nibble first, over the flattened tensor
	I4
	U2 // four elements a byte, lowest bits first
	I2
	String // ONNX only: no fixed size

	Q4_0
	Q4_1
	Q5_0
	Q5_1
	Q8_0
	Q8_1
	Q2_K
	Q3_K
	Q4_K
	Q5_K
	Q6_K
	Q8_K
	IQ2_XXS
	IQ2_XS
	IQ3_XXS
	IQ1_S
	IQ4_NL
	IQ3_S
	IQ2_S
	IQ4_XS
	IQ1_M
	TQ1_0
	TQ2_0
	MXFP4
	NVFP4
	Q1_0
	Q2_0

	numDTypes
)

type dtypeInfo struct {
	name       string
	block      int // elements in a block
	blockBytes int // bytes of a block; 0 = no fixed size
}

var dtypes = [numDTypes]dtypeInfo{
	Invalid: {"INVALID", 1, 0},
	Bool:    {"BOOL", 1, 1}, U8: {"U8", 1, 1}, I8: {"I8", 1, 1}, U16: {"U16", 1, 2}, I16: {"I16", 1, 2},
	U32: {"U32", 1, 4}, I32: {"I32", 1, 4}, U64: {"U64", 1, 8}, I64: {"I64", 1, 8},
	F16: {"F16", 1, 2}, BF16: {"BF16", 1, 2}, F32: {"F32", 1, 4}, F64: {"F64", 1, 8},
	C64: {"C64", 1, 8}, C128: {"C128", 1, 16},
	F8E5M2: {"F8_E5M2", 1, 1}, F8E4M3: {"F8_E4M3", 1, 1}, F8E8M0: {"F8_E8M0", 1, 1},
	F8E4M3FNUZ: {"F8_E4M3FNUZ", 1, 1}, F8E5M2FNUZ: {"F8_E5M2FNUZ", 1, 1},
	F6E2M3: {"F6_E2M3", 4, 3}, F6E3M2: {"F6_E3M2", 4, 3}, F4: {"F4", 2, 1},
	U4: {"U4", 2, 1}, I4: {"I4", 2, 1}, U2: {"U2", 4, 1}, I2: {"I2", 4, 1},
	String: {"STRING", 1, 0},
	Q4_0:   {"Q4_0", 32, 18}, Q4_1: {"Q4_1", 32, 20}, Q5_0: {"Q5_0", 32, 22}, Q5_1: {"Q5_1", 32, 24},
	Q8_0: {"Q8_0", 32, 34}, Q8_1: {"Q8_1", 32, 36},
	Q2_K: {"Q2_K", 256, 84}, Q3_K: {"Q3_K", 256, 110}, Q4_K: {"Q4_K", 256, 144}, Q5_K: {"Q5_K", 256, 176},
	Q6_K: {"Q6_K", 256, 210}, Q8_K: {"Q8_K", 256, 292},
	IQ2_XXS: {"IQ2_XXS", 256, 66}, IQ2_XS: {"IQ2_XS", 256, 74}, IQ3_XXS: {"IQ3_XXS", 256, 98}, IQ1_S: {"IQ1_S", 256, 50},
	IQ4_NL: {"IQ4_NL", 32, 18}, IQ3_S: {"IQ3_S", 256, 110}, IQ2_S: {"IQ2_S", 256, 82}, IQ4_XS: {"IQ4_XS", 256, 136},
	IQ1_M: {"IQ1_M", 256, 56}, TQ1_0: {"TQ1_0", 256, 54}, TQ2_0: {"TQ2_0", 256, 66},
	MXFP4: {"MXFP4", 32, 17}, NVFP4: {"NVFP4", 64, 36}, Q1_0: {"Q1_0", 128, 18}, Q2_0: {"Q2_0", 64, 18},
}

// String returns the type's name, for example "BF16" or "Q4_K".
func (d DType) String() string {
	if d >= numDTypes {
		return fmt.Sprintf("DType(%d)", uint8(d))
	}
	return dtypes[d].name
}

// BlockLen is the number of elements stored together: 1 for whole-byte types.
func (d DType) BlockLen() int { return dtypes[d].block }

// BlockBytes is the size of a block in bytes, 0 for types without a fixed size.
func (d DType) BlockBytes() int { return dtypes[d].blockBytes }

// IsBlock reports whether the type is one of ggml's quantized block types.
func (d DType) IsBlock() bool { return d >= Q4_0 && d < numDTypes }

// IsFloat reports whether the type holds plain floating-point elements of 8 to 64 bits that this
// program converts to and from float32 or float64.
func (d DType) IsFloat() bool {
	switch d {
	case F16, BF16, F32, F64, F8E5M2, F8E4M3, F8E4M3FNUZ, F8E5M2FNUZ:
		return true
	}
	return false
}

// Bytes is the size of n elements. It fails when the type has no fixed size, when n is negative or
// not a multiple of the block length, and when the size does not fit int64.
func (d DType) Bytes(n int64) (int64, error) {
	b := int64(d.BlockLen())
	switch {
	case d.BlockBytes() == 0:
		return 0, fmt.Errorf("type %s has no fixed size", d)
	case n < 0:
		return 0, fmt.Errorf("negative element count %d", n)
	case n%b != 0:
		return 0, fmt.Errorf("%d elements are not a multiple of the %d elements in a block of %s", n, b, d)
	}
	hi, lo := bits.Mul64(uint64(n/b), uint64(d.BlockBytes()))
	if hi != 0 || lo > math.MaxInt64 {
		return 0, fmt.Errorf("%d elements of %s overflow 64 bits", n, d)
	}
	return int64(lo), nil
}

// ParseDType finds a type by name, without regard to case. "fp32", "float16", "float8_e4m3fn" and the like are
// accepted beside the names String returns; "fp8" is E4M3, which diffusion programs mean by it.
func ParseDType(s string) (DType, bool) {
	d, ok := dtypeByName[normalise(s)]
	return d, ok
}

var dtypeByName = func() map[string]DType {
	m := map[string]DType{
		"FLOAT": F32, "FLOAT32": F32, "FP32": F32, "HALF": F16, "FLOAT16": F16, "FP16": F16, "BFLOAT16": BF16,
		"DOUBLE": F64, "FLOAT64": F64, "FP64": F64, "INT8": I8, "INT16": I16, "INT32": I32, "INT64": I64,
		"FP8": F8E4M3, "F8": F8E4M3, "FLOAT8_E4M3FN": F8E4M3, "F8_E4M3FN": F8E4M3, "FP8_E4M3": F8E4M3, "FP8_E4M3FN": F8E4M3,
		"FLOAT8_E5M2": F8E5M2, "FP8_E5M2": F8E5M2,
		"UINT8": U8, "UINT16": U16, "UINT32": U32, "UINT64": U64, "INT4": I4, "UINT4": U4, "INT2": I2, "UINT2": U2,
	}
	for d := Bool; d < numDTypes; d++ {
		m[dtypes[d].name] = d
	}
	return m
}()

func normalise(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'a' <= c && c <= 'z' {
			b[i] = c - 'a' + 'A'
		}
	}
	return string(b)
}
