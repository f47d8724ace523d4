package quant

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/tensor"
)

// TestQuickBlocks compares the vector encoders with the scalar ones, on values of all magnitudes, ties,
// constants, signed zeros and subnormals, with blocks in between that they leave to them.
func TestQuickBlocks(t *testing.T) {
	for d, scalar := range map[tensor.DType]func([]byte, []float32) bool{
		tensor.Q8_0: encodeQ8_0, tensor.Q4_0: encodeQ4_0, tensor.Q5_0: encodeQ5_0, tensor.Q4_1: encodeQ4_1, tensor.Q5_1: encodeQ5_1,
		tensor.MXFP4: encodeMXFP4, tensor.NVFP4: encodeNVFP4,
	} {
		rng := rand.New(rand.NewPCG(1, uint64(d)))
		c, n, size := mustOf(t, d), d.BlockLen(), d.BlockBytes()
		x := make([]float32, n*20000)
		scaled, low, high := n, -150, 120 // values with a scale of their own, and magnitudes
		if d == tensor.NVFP4 {
			scaled, low, high = 16, -12, 12
		}
		for i := 0; i < len(x); i += n {
			for part := range n / scaled {
				fillWild(rng, x[i+part*scaled:][:scaled], float32(math.Ldexp(1, low+rng.IntN(high-low))))
			}
			if !scalar(make([]byte, size), x[i:][:n]) {
				for j := range n {
					x[i+j] *= 0x1p-120
				}
			}
		}
		got := make([]byte, len(x)/n*size)
		if err := c.Encode(got, x); err != nil {
			t.Errorf("%s: %v", d, err)
			continue
		}
		for i := range len(x) / n {
			want := make([]byte, size)
			scalar(want, x[n*i:][:n])
			if string(got[i*size:][:size]) != string(want) {
				t.Errorf("%s: %v encodes to\n%x, want\n%x", d, x[n*i:][:n], got[i*size:][:size], want)
				break
			}
		}
	}
}

// fillWild makes values of one of several kinds.
func fillWild(rng *rand.Rand, x []float32, scale float32) {
	kind := rng.IntN(9)
	for i := range x {
		n := float32(rng.NormFloat64())
		switch kind {
		case 0:
			x[i] = n * 0.02
		case 1:
			x[i] = n * scale
		case 2:
			x[i] = float32(rng.IntN(9)-4) * scale
		case 3:
			x[i] = float32(rng.IntN(2)*2-1) * scale
		case 4:
			x[i] = scale
		case 5: // zeros, and few others
			x[i] = float32(math.Copysign(0, float64(n)))
			if rng.IntN(30) == 0 {
				x[i] = n
			}
		case 6:
			x[i] = math.Float32frombits(rng.Uint32() & 0x800fffff)
		case 7: // just below a power of two
			x[i] = math.Nextafter32(scale, 0) * float32(math.Ldexp(1, -rng.IntN(6)))
		case 8: // halfway between codes
			x[i] = float32(2*rng.IntN(128)-127) / 254 * scale
		}
	}
	x[rng.IntN(len(x))] *= float32(1 - 2*rng.IntN(2))
}
