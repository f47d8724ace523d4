package kernel

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestSplitsEqualPortable(t *testing.T) {
	atEachLevel(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(3, 4))
		for range 3000 {
			compareSplits(t, rough(r, 32, r.IntN(roughKinds)), roughWeights(r, 32, r.IntN(roughKinds)))
			if t.Failed() {
				return
			}
		}
	})
}

// compareSplits checks both searches against the scan that defines them, and their choice against all
// scores in float64.
func compareSplits(t *testing.T, x, w []float32) {
	t.Helper()
	same := func(a, b Split) bool {
		return a.First == b.First && a.Second == b.Second && a.Down == b.Down && sameBits(a.Scale, b.Scale)
	}
	alike, halves := SplitAlike(byValue(x), x, w), SplitHalves(byValue(x[:16]), x[:16], w[:16])
	old := active
	active = portable
	wantAlike, wantHalves := SplitAlike(byValue(x), x, w), SplitHalves(byValue(x[:16]), x[:16], w[:16])
	active = old
	if !same(alike, wantAlike) {
		t.Fatalf("split of %v with weights %v is %v, want %v", x, w, alike, wantAlike)
	}
	if !same(halves, wantHalves) {
		t.Fatalf("split in halves of %v with weights %v is %v, want %v", x[:16], w[:16], halves, wantHalves)
	}
}

// byValue is a stable order.
func byValue(x []float32) []byte {
	order := make([]byte, len(x))
	for i := range order {
		order[i] = byte(i)
	}
	slices.SortStableFunc(order, func(a, b byte) int {
		switch {
		case x[a] < x[b]:
			return -1
		case x[a] > x[b]:
			return 1
		}
		return 0
	})
	return order
}

// TestSplitIsBest: no split has a better score, in float64, than the chosen one.
func TestSplitIsBest(t *testing.T) {
	atEachLevel(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(5, 6))
		for range 30 {
			x, w := rough(r, 32, 0), roughWeights(r, 32, 0)
			for n, downs := range map[int][]byte{32: {0, 0b1111}, 16: {0b00, 0b10, 0b01, 0b11}} {
				order := byValue(x[:n])
				search := SplitAlike
				if n == 16 {
					search = SplitHalves
				}
				s := search(order, x[:n], w[:n])
				scale, chosen := score(s, order, x, w)
				if math.Abs(scale-float64(s.Scale)) > 1e-5*math.Abs(scale) {
					t.Errorf("%d elements: scale %v, want %v", n, s.Scale, scale)
				}
				for first := range n + 1 {
					for second := first; second <= n; second++ {
						for _, down := range downs {
							if _, other := score(Split{first, second, down, 0}, order, x, w); other > chosen*1.00001 {
								t.Fatalf("%d elements: %v has score %v, but %v,%v,%b has %v", n, s, chosen, first, second, down, other)
							}
						}
					}
				}
			}
		}
	})
}

// score is the scale of a split and what it explains of Σw·x².
func score(s Split, order []byte, x, w []float32) (scale, explained float64) {
	var xq, qq float64
	for rank, j := range order {
		level := 1
		if rank < s.First {
			level = 0
		} else if rank >= s.Second {
			level = 2
		}
		q := float64(shiftUp[level])
		if s.Down>>(j/8)&1 == 1 {
			q = float64(shiftDown[level])
		}
		xq += float64(w[j]) * float64(x[j]) * q
		qq += float64(w[j]) * q * q
	}
	return xq / qq, xq * xq / qq
}

func TestSplitWithoutWeight(t *testing.T) {
	atEachLevel(t, func(t *testing.T) {
		x, w := make([]float32, 32), make([]float32, 32)
		x[3] = 1
		if s := SplitAlike(byValue(x), x, w); s.Second != -1 {
			t.Errorf("without weight the split is %v", s)
		}
		if s := SplitHalves(byValue(x[:16]), x[:16], w[:16]); s.Second != -1 {
			t.Errorf("without weight the split in halves is %v", s)
		}
	})
}
