package kernel

import (
	"math"
	"math/rand/v2"
	"testing"
)

// TestGridDistances has steps of zero, targets beyond the ends and on ties, at lengths with and without a rest: the same
// bits as the specification at every level.
func TestGridDistances(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	const n = 1000
	x, steps, offs := make([]float32, n), make([]float32, n), make([]float32, n)
	for i := range x {
		steps[i], offs[i] = float32(r.NormFloat64()), float32(r.NormFloat64())
		x[i] = offs[i] + steps[i]*float32(r.IntN(40)-20)/2
		switch i % 7 {
		case 3:
			steps[i] = 0
		case 5:
			x[i], offs[i] = 0, float32(math.Copysign(0, -1))
		}
	}
	want := make([]float64, n)
	gridDistancesGo(want, x, steps, offs, -8, 15)
	atEachLevel(t, func(t *testing.T) {
		for _, k := range []int{0, 1, 7, 8, 9, 256, n} {
			got := make([]float64, k+1)
			got[k] = -1
			GridDistances(got[:k], x[:k], steps[:k], offs[:k], -8, 15)
			for i := range k {
				if math.Float64bits(got[i]) != math.Float64bits(want[i]) {
					t.Fatalf("element %d of %d: %g, want %g", i, k, got[i], want[i])
				}
			}
			if got[k] != -1 {
				t.Fatalf("%d elements overrun", k)
			}
		}
	})
}
