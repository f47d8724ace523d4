package kernel

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestMagnitudeBits(t *testing.T) {
	g := rand.New(rand.NewPCG(1, 2))
	for n := range 70 {
		v := make([]float32, n+1)
		for i := range v {
			v[i] = math.Float32frombits(g.Uint32())
		}
		for start := range min(2, n+1) { // both alignments
			var want uint32
			for _, x := range v[start:] {
				want |= math.Float32bits(x) & 0x7fffffff
			}
			if got := MagnitudeBits(v[start:]); got != want {
				t.Fatalf("%d values from %d: got %#x, want %#x", len(v), start, got, want)
			}
		}
	}
	if MagnitudeBits(nil) != 0 {
		t.Error("nothing has bits")
	}
}

func BenchmarkMagnitudeBits(b *testing.B) {
	v := make([]float32, 24<<10)
	b.SetBytes(int64(4 * len(v)))
	for b.Loop() {
		MagnitudeBits(v)
	}
}
