package rotation

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func random(n int, size float64) []float64 {
	r := rand.New(rand.NewPCG(uint64(n), 5))
	m := make([]float64, n*n)
	for i := range m {
		m[i] = size * r.NormFloat64()
	}
	return m
}

// turns reports by how much R·Rᵀ differs from the identity.
func turns(r []float64, n int) float64 {
	p, worst := Multiply(r, Transpose(r, n), n), 0.0
	for i, x := range p {
		if i%(n+1) == 0 {
			x--
		}
		worst = max(worst, math.Abs(x))
	}
	return worst
}

// TestCayley checks that a rotation results, of the known angle in the plane, the other way round for −Q, and
// that the polynomial comes close to it where Q is small.
func TestCayley(t *testing.T) {
	for n := 1; n < 12; n++ {
		q := Skew(random(n, 1), n)
		r, err := Cayley(q, n)
		if err != nil {
			t.Fatal(err)
		}
		back, err := Cayley(Transpose(q, n), n)
		if err != nil {
			t.Fatal(err)
		}
		if d := turns(r, n); d > 1e-12 {
			t.Errorf("%d: no rotation by %g", n, d)
		}
		for i, x := range Transpose(back, n) {
			if math.Abs(x-r[i]) > 1e-12 {
				t.Errorf("%d: the transform of −Q is not the inverse", n)
				break
			}
		}
		small := Skew(random(n, 1e-3), n)
		exact, err := Cayley(small, n)
		if err != nil {
			t.Fatal(err)
		}
		for i, x := range Neumann(small, n, 5) {
			if math.Abs(x-exact[i]) > 1e-8 {
				t.Errorf("%d: the polynomial differs by %g", n, x-exact[i])
			}
		}
	}
	r, err := Cayley(Packed([]float64{0.5}, 2), 2)
	if err != nil || math.Abs(r[0]-0.6) > 1e-15 || math.Abs(r[1]-0.8) > 1e-15 {
		t.Errorf("a skew part of 0.5 gives %v, %v", r, err)
	}
	if _, err := Cayley([]float64{1, 0, 0, 1}, 2); err == nil {
		t.Error("the identity has a Cayley transform")
	}
	if _, err := Cayley([]float64{math.NaN()}, 1); err == nil {
		t.Error("NaN has a Cayley transform")
	}
}

// TestOrders checks the orders of both butterflies: written out, as permutations, and where nothing fits.
func TestOrders(t *testing.T) {
	if got := Butterfly(8, 4, 0); !slices.Equal(got, []int64{0, 2, 1, 3, 4, 6, 5, 7}) {
		t.Errorf("LyCORIS's first stage: %v", got)
	}
	if got := Butterfly(8, 4, 1); !slices.Equal(got, []int64{0, 4, 1, 5, 2, 6, 3, 7}) {
		t.Errorf("LyCORIS's second stage: %v", got)
	}
	if got := Chunks(8, 4, 0); !slices.Equal(got, []int64{0, 1, 2, 3, 4, 5, 6, 7}) {
		t.Errorf("PEFT's first stage: %v", got)
	}
	if got := Chunks(8, 4, 1); !slices.Equal(got, []int64{0, 1, 4, 5, 2, 3, 6, 7}) {
		t.Errorf("PEFT's second stage: %v", got)
	}
	for stage := range 3 {
		for _, order := range [][]int64{Butterfly(48, 4, stage), Chunks(48, 4, stage)} {
			sorted := slices.Sorted(slices.Values(order))
			for i, x := range sorted {
				if x != int64(i) {
					t.Fatalf("stage %d is no permutation: %v", stage, order)
				}
			}
		}
	}
	if Butterfly(8, 4, 2) != nil || Butterfly(8, 3, 0) != nil || Chunks(8, 4, 2) != nil || Chunks(8, 4, 40) != nil || Chunks(9, 3, 0) != nil {
		t.Error("an order that does not divide the axis")
	}
}

// TestInverse finds the skew matrix of a rotation again, and none for half a turn.
func TestInverse(t *testing.T) {
	q := Packed([]float64{0.5, -2, 0.25}, 3)
	r, err := Cayley(q, 3)
	if err != nil {
		t.Fatal(err)
	}
	back, err := Inverse(r, 3)
	if err != nil {
		t.Fatal(err)
	}
	for i := range q {
		if math.Abs(back[i]-q[i]) > 1e-12 {
			t.Errorf("value %d is %v, expected %v", i, back[i], q[i])
		}
	}
	if _, err := Inverse([]float64{-1, 0, 0, -1}, 2); err == nil {
		t.Error("half a turn has a skew matrix")
	}
}
