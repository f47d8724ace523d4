package quant

import (
	"encoding/binary"
	"math"

	"github.com/loratool/loratool/internal/kernel"
)

func decodeF32(dst []float32, src []byte)  { kernel.DecodeF32(dst, src) }
func decodeF16(dst []float32, src []byte)  { kernel.DecodeF16(dst, src) }
func decodeBF16(dst []float32, src []byte) { kernel.DecodeBF16(dst, src) }

func encodeF32(dst []byte, src []float32) error  { kernel.EncodeF32(dst, src); return nil }
func encodeF16(dst []byte, src []float32) error  { kernel.EncodeF16(dst, src); return nil }
func encodeBF16(dst []byte, src []float32) error { kernel.EncodeBF16(dst, src); return nil }

func decodeF64(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = float32(math.Float64frombits(binary.LittleEndian.Uint64(src[8*i:])))
	}
}

func encodeF64(dst []byte, src []float32) error {
	for i, f := range src {
		binary.LittleEndian.PutUint64(dst[8*i:], math.Float64bits(float64(f)))
	}
	return nil
}
