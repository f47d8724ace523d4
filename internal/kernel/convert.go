package kernel

import (
	"fmt"
	"math"
	"unsafe"
)

// DecodeF16 widens little-endian float16 to float32, exactly; a NaN becomes quiet and keeps its
// payload. src holds 2·len(dst) bytes at any alignment.
func DecodeF16(dst []float32, src []byte) {
	mustFit(len(src), len(dst), 2)
	decodeF16(dst, src)
}

// EncodeF16 rounds float32 to little-endian float16, nearest even: overflow gives an infinity, a NaN
// keeps the upper ten bits of its payload and becomes quiet. dst holds 2·len(src) bytes.
func EncodeF16(dst []byte, src []float32) {
	mustFit(len(dst), len(src), 2)
	encodeF16(dst, src)
}

// DecodeBF16 widens little-endian bfloat16 to float32, exactly and bit for bit. src holds 2·len(dst)
// bytes at any alignment.
func DecodeBF16(dst []float32, src []byte) {
	mustFit(len(src), len(dst), 2)
	decodeBF16(dst, src)
}

// EncodeBF16 rounds float32 to little-endian bfloat16, nearest even. A NaN keeps its upper half and
// becomes quiet. dst holds 2·len(src) bytes.
func EncodeBF16(dst []byte, src []float32) {
	mustFit(len(dst), len(src), 2)
	encodeBF16(dst, src)
}

// DecodeF32 reads little-endian float32, bit for bit. src holds 4·len(dst) bytes at any alignment.
func DecodeF32(dst []float32, src []byte) {
	mustFit(len(src), len(dst), 4)
	if littleEndian {
		copy(bytesOf(dst), src)
		return
	}
	decodeF32Go(dst, src)
}

// EncodeF32 writes little-endian float32, bit for bit. dst holds 4·len(src) bytes.
func EncodeF32(dst []byte, src []float32) {
	mustFit(len(dst), len(src), 4)
	if littleEndian {
		copy(dst, bytesOf(src))
		return
	}
	encodeF32Go(dst, src)
}

func mustFit(bytes, n, size int) {
	if bytes != n*size {
		panic(fmt.Sprintf("kernel: %d bytes for %d elements of %d bytes", bytes, n, size))
	}
}

var littleEndian = *(*byte)(unsafe.Pointer(&one)) == 1

var one uint32 = 1

// bytesOf views floats as the bytes they are in memory.
func bytesOf(f []float32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(f))), 4*len(f))
}

// F16 is the float32 value of a float16.
func F16(h uint16) float32 {
	const (
		exponent = 0x7c00
		rebias   = 0x1p112 // moves a float16 exponent, read as a float32 exponent, to its place
	)
	sign, u := uint32(h&0x8000)<<16, uint32(h&0x7fff)
	switch {
	case u > exponent:
		return math.Float32frombits(sign | 0x7fc00000 | u<<13)
	case u == exponent:
		return math.Float32frombits(sign | 0x7f800000)
	}
	return math.Float32frombits(sign | math.Float32bits(float32(math.Float32frombits(u<<13)*rebias)))
}

// ToF16 rounds as EncodeF16 does.
func ToF16(f float32) uint16 {
	const (
		inf       = 0x7f800000
		overflow  = 0x47800000 // 65536
		smallest  = 0x38800000 // the smallest normal float16
		halfStep  = 0x3f000000 // 0.5, whose last place is worth one subnormal float16 step
		exponents = 0x38000000 // the difference of the biases
	)
	u := math.Float32bits(f)
	sign, a := uint16(u>>16)&0x8000, u&0x7fffffff
	switch {
	case a > inf:
		return sign | 0x7e00 | uint16(a>>13)&0x3ff
	case a >= overflow:
		return sign | 0x7c00
	case a < smallest:
		return sign | uint16(math.Float32bits(math.Float32frombits(a)+0.5)-halfStep)
	}
	return sign | uint16((a-exponents+0xfff+a>>13&1)>>13)
}

// BF16 is the float32 value of a bfloat16.
func BF16(h uint16) float32 { return math.Float32frombits(uint32(h) << 16) }

// ToBF16 rounds as EncodeBF16 does.
func ToBF16(f float32) uint16 {
	u := math.Float32bits(f)
	if u&0x7fffffff > 0x7f800000 {
		return uint16(u>>16) | 0x40
	}
	return uint16((u + 0x7fff + u>>16&1) >> 16)
}
