package quant

import (
	"encoding/binary"
	"math"
	"slices"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/internal/kernel"
)

// blocks makes a decoder out of one that decodes a block of n elements from size bytes.
func blocks(n, size int, decode func(y []float32, b []byte)) func([]float32, []byte) {
	return func(dst []float32, src []byte) {
		for len(dst) > 0 {
			decode(dst[:n:n], src[:size:size])
			dst, src = dst[n:], src[size:]
		}
	}
}

// toBlocks makes an encoder out of one that encodes a block of n elements into size bytes and reports
// whether the scales it stored are finite.
func toBlocks(n, size int, encode func(b []byte, x []float32) (finite bool)) func([]byte, []float32) error {
	return func(dst []byte, src []float32) error {
		for i := 0; i < len(src); i += n {
			x := src[i : i+n : i+n]
			if err := mustBeFinite(x, i); err != nil {
				return err
			}
			if !encode(dst[:size:size], x) {
				return overflow(i, n)
			}
			dst = dst[size:]
		}
		return nil
	}
}

// toQuickBlocks is toBlocks for a type most of whose blocks are done quickly.
func toQuickBlocks(n, size int, quick kernel.Quick, encode func(b []byte, x []float32) (finite bool)) func([]byte, []float32) error {
	return func(dst []byte, src []float32) error {
		for i := 0; i < len(src); {
			done := quick.Encode(dst, src[i:])
			dst, i = dst[done*size:], i+n*done
			if i == len(src) {
				break
			}
			x := src[i : i+n : i+n]
			if err := mustBeFinite(x, i); err != nil {
				return err
			}
			if !encode(dst[:size:size], x) {
				return overflow(i, n)
			}
			dst, i = dst[size:], i+n
		}
		return nil
	}
}

// toWeighedBlocks is toBlocks for an encoder that also gets the importance of the block's elements.
func toWeighedBlocks(n, size int, encode func(b []byte, x, importance []float32) (finite bool)) rowEncoder {
	return toBatches(n, size, 1, encode)
}

// toBatches is toWeighedBlocks for an encoder that takes up to most blocks of a row at once.
func toBatches(n, size, most int, encode func(b []byte, x, importance []float32) (finite bool)) rowEncoder {
	return func(dst []byte, src []float32, cols int, importance []float32) error {
		for i := 0; i < len(src); {
			count := min(n*most, cols-i%cols)
			x := src[i : i+count : i+count]
			var w []float32
			if importance != nil {
				w = importance[i%cols:][:count:count]
			}
			if err := mustBeFinite(x, i); err != nil {
				return err
			}
			bytes := count / n * size
			if !encode(dst[:bytes:bytes], x, w) {
				return overflow(i, count)
			}
			dst, i = dst[bytes:], i+count
		}
		return nil
	}
}

// plainly makes an encoder without importance of one with: all values are one row.
func plainly(encode rowEncoder) func([]byte, []float32) error {
	return func(dst []byte, src []float32) error { return encode(dst, src, len(src), nil) }
}

// mustBeFinite is the error for the first value that is not finite. The values start at element at.
func mustBeFinite(x []float32, at int) error {
	j := nonFinite(x)
	if j < 0 {
		return nil
	}
	return finding.Errorf("quant.nonfinite_value", "", "element %d is %v, which a block type cannot hold", at+j, x[j]).
		Hinted("repair the weights, or keep this tensor in a floating-point type")
}

// overflow is the error for a block of n elements from element at on.
func overflow(at, n int) error {
	return finding.Errorf("quant.scale_overflow", "", "the scale of elements %d to %d overflows float16", at, at+n-1).
		Hinted("keep this tensor in a floating-point type")
}

// nonFinite is the index of the first value that is not finite, or -1.
func nonFinite(x []float32) int {
	if isFinite(kernel.Magnitude(x)) {
		return -1
	}
	return slices.IndexFunc(x, func(v float32) bool { return !isFinite(v) })
}

const infinity = 0x7f800000

func isFinite(f float32) bool { return math.Float32bits(f)&infinity != infinity }

// half reads the float16 at the start of b.
func half(b []byte) float32 { return kernel.F16(binary.LittleEndian.Uint16(b)) }

// putHalf stores f as float16 and reports whether it is still finite.
func putHalf(b []byte, f float32) bool {
	h := kernel.ToF16(f)
	binary.LittleEndian.PutUint16(b, h)
	return h&0x7c00 != 0x7c00
}

// truncate is C's conversion of a float to an 8-bit integer as x86-64 does it: by way of 32 bits, and
// zero for what does not fit those.
func truncate(f float32) int8 {
	if f > -1<<31 && f < 1<<31 {
		return int8(int32(f))
	}
	return 0
}

// roundAway rounds to the nearest integer, halves away from zero. |f| must be below 2^31. The number
// that is added is the one below a half: a half itself would round the number below it up.
func roundAway(f float32) int32 {
	const belowHalf = 0x3effffff
	return int32(f + math.Float32frombits(belowHalf|math.Float32bits(f)&(1<<31)))
}

// inverse is 1/d, or 0 for 0. It is infinite for the smallest subnormals, as in the reference.
func inverse(d float32) float32 {
	if d == 0 {
		return 0
	}
	return 1 / d
}

// finiteInverse is inverse, but 0 where that is infinite: for types whose codes then come out as if all
// values were zero.
func finiteInverse(d float32) float32 {
	if id := inverse(d); isFinite(id) {
		return id
	}
	return 0
}

// root is the square root, rounded once.
func root(f float32) float32 { return float32(math.Sqrt(float64(f))) }

func abs(f float32) float32 { return math.Float32frombits(math.Float32bits(f) &^ (1 << 31)) }

// largest returns the magnitude of the value of largest magnitude, and that value with its sign; the
// first one wins.
func largest(x []float32) (amax, value float32) {
	for _, v := range x {
		if a := abs(v); a > amax {
			amax, value = a, v
		}
	}
	return amax, value
}

// magnitude is the largest magnitude of finite values.
func magnitude(x []float32) float32 { return kernel.Magnitude(x) }
