package scheme

import (
	"encoding/binary"
	"math"
)

// bitsAt takes a code of at most 8 bits from a stream of bits, lowest bits of the first byte first. Read
// as little-endian 32-bit words, this is the dense packing of GPTQ and compressed-tensors, where codes of
// 3, 5, 6 and 7 bits may straddle two words.
func bitsAt(b []byte, at int64, bits int) uint8 {
	v := uint32(b[at/8])
	if at/8+1 < int64(len(b)) {
		v |= uint32(b[at/8+1]) << 8
	}
	return uint8(v >> (at % 8) & (1<<bits - 1))
}

// word is the little-endian 32-bit word i of b.
func word(b []byte, i int64) uint32 { return binary.LittleEndian.Uint32(b[4*i:]) }

// e2m1 is the value of each four-bit float code.
var e2m1 = [16]float32{0, .5, 1, 1.5, 2, 3, 4, 6, float32(math.Copysign(0, -1)), -.5, -1, -1.5, -2, -3, -4, -6}

// powers is the value 2^(e-127) of each exponent byte (E8M0 of the OCP microscaling formats); 255 is NaN.
var powers = func() (p [256]float32) {
	for e := range p {
		p[e] = float32(math.Ldexp(1, e-127))
	}
	p[255] = float32(math.NaN())
	return p
}()
