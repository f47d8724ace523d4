package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// plain is the update as the formula says it.
func plain(w []float32, stride int, l, r []float32, first, n, cols, rank int, scale float32) {
	for i := range n {
		for j := range cols {
			acc := float32(0)
			for k := range rank {
				acc += float32(l[(first+i)*rank+k] * r[k*cols+j])
			}
			w[i*stride+j] += float32(scale * acc)
		}
	}
}

func normal(rng *rand.Rand, n int) []float32 {
	f := make([]float32, n)
	for i := range f {
		f[i] = float32(rng.NormFloat64())
	}
	return f
}

// same compares bits; any NaN equals any other.
func same(a, b float32) bool {
	return math.Float32bits(a) == math.Float32bits(b) || a != a && b != b
}

func TestLowRankEqualsTheFormula(t *testing.T) {
	atEachLevel(t, func(t *testing.T) {
		for _, rows := range []int{1, 2, 3, 4, 5, 9} {
			for _, cols := range []int{1, 15, 16, 17, 31, 48, 70, 300} {
				for _, rank := range []int{0, 1, 2, 5, 16, 33} {
					for _, pad := range []int{0, 3} {
						checkUpdate(t, rows, cols, rank, cols+pad, pad/2)
					}
				}
			}
		}
		// Ranks high enough that a block holds few panels, or one.
		checkUpdate(t, 5, 90, 1500, 90, 0)
		checkUpdate(t, 5, 40, 5000, 44, 1)
	})
}

func checkUpdate(t *testing.T, rows, cols, rank, stride, offset int) {
	t.Helper()
	rng := rand.New(rand.NewPCG(uint64(rows), uint64(cols*1000+rank)))
	l, r, w := normal(rng, rows*rank), normal(rng, rank*cols), normal(rng, rows*stride)
	const scale = 0.37
	u := NewLowRank(l, r, rows, cols, rank, scale)
	got, want := append([]float32(nil), w...), append([]float32(nil), w...)
	u.Apply(got[offset:], stride, 0, rows)
	plain(want[offset:], stride, l, r, 0, rows, cols, rank, scale)
	for i := range want {
		if !same(got[i], want[i]) {
			t.Fatalf("%d×%d rank %d stride %d: element %d is %v, want %v", rows, cols, rank, stride, i, got[i], want[i])
		}
	}
	for size := 1; size <= rows; size++ {
		pieces := append([]float32(nil), w...)
		for i := 0; i < rows; i += size {
			u.Apply(pieces[i*stride+offset:], stride, i, min(size, rows-i))
		}
		for i := range want {
			if !same(pieces[i], want[i]) {
				t.Fatalf("%d×%d rank %d in slabs of %d rows: element %d is %v, want %v", rows, cols, rank, size, i, pieces[i], want[i])
			}
		}
	}
}

func TestLowRankSpecialValues(t *testing.T) {
	special := []float32{0, float32(math.Copysign(0, -1)), 1, -1, float32(math.Inf(1)), float32(math.Inf(-1)), float32(math.NaN()),
		math.SmallestNonzeroFloat32, -0x1p-126, 0x1.8p-127, math.MaxFloat32, -math.MaxFloat32, 0x1p-75, 1e-20, 3e38}
	n := len(special)
	const rows, rank = 6, 3
	cols := n + 16
	l, r, w := make([]float32, rows*rank), make([]float32, rank*cols), make([]float32, rows*cols)
	pick := func(f []float32, step int) {
		for i := range f {
			f[i] = special[(i*step+i/n)%n]
		}
	}
	pick(l, 7)
	pick(r, 4)
	pick(w, 2)
	atEachLevel(t, func(t *testing.T) {
		for _, scale := range special {
			got, want := append([]float32(nil), w...), append([]float32(nil), w...)
			NewLowRank(l, r, rows, cols, rank, scale).Apply(got, cols, 0, rows)
			plain(want, cols, l, r, 0, rows, cols, rank, scale)
			for i := range want {
				if !same(got[i], want[i]) {
					t.Fatalf("scale %v: element %d is %v, want %v", scale, i, got[i], want[i])
				}
			}
		}
	})
}

// The scale is applied once to the finished sum. Folded into a factor it would round differently.
func TestLowRankScalesTheSum(t *testing.T) {
	const l, r, scale, other = 0x1.000002p0, 0x1.000002p0, 3, 1
	want := float32(scale * (float32(float32(l)*float32(r)) + other))
	atEachLevel(t, func(t *testing.T) {
		w := []float32{0}
		NewLowRank([]float32{l, 1}, []float32{r, other}, 1, 1, 2, scale).Apply(w, 1, 0, 1)
		if w[0] != want {
			t.Fatalf("got %v, want %v", w[0], want)
		}
	})
}

func TestLowRankRefusesWrongSlabs(t *testing.T) {
	u := NewLowRank(make([]float32, 4), make([]float32, 6), 4, 6, 1, 1)
	for _, c := range []struct{ slab, stride, first, n int }{
		{23, 6, 0, 4}, {24, 5, 0, 4}, {24, 6, 1, 4}, {24, 6, -1, 2}, {24, 6, 0, -1}, {24, 6, 5, 0},
	} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("accepted")
				}
			}()
			u.Apply(make([]float32, c.slab), c.stride, c.first, c.n)
		})
	}
}

func FuzzLowRank(f *testing.F) {
	f.Add(uint64(1), uint8(5), uint8(37), uint8(9), uint8(2))
	f.Fuzz(func(t *testing.T, seed uint64, rows, cols, rank, split uint8) {
		m, n, k := int(rows%12)+1, int(cols)+1, int(rank%40)
		rng := rand.New(rand.NewPCG(seed, 0))
		l, r, w := normal(rng, m*k), normal(rng, k*n), normal(rng, m*n)
		scale := float32(rng.NormFloat64())
		u := NewLowRank(l, r, m, n, k, scale)
		got, want := append([]float32(nil), w...), append([]float32(nil), w...)
		cut := int(split) % (m + 1)
		u.Apply(got[:cut*n], n, 0, cut)
		u.Apply(got[cut*n:], n, cut, m-cut)
		plain(want, n, l, r, 0, m, n, k, scale)
		for i := range want {
			if !same(got[i], want[i]) {
				t.Fatalf("%d×%d rank %d cut at %d: element %d is %v, want %v", m, n, k, cut, i, got[i], want[i])
			}
		}
	})
}
