package kernel

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

func benchmarkLevels(b *testing.B, name string, bytes int, f func()) {
	for l := portable; l <= best(); l++ {
		b.Run(fmt.Sprintf("%s/level=%d", name, l), func(b *testing.B) {
			defer func(old level) { active = old }(active)
			active = l
			b.SetBytes(int64(bytes))
			for b.Loop() {
				f()
			}
		})
	}
}

func BenchmarkConvert(b *testing.B) {
	const n = 1 << 14
	floats, halves := normal(rand.New(rand.NewPCG(1, 2)), n), make([]byte, 2*n)
	for _, c := range []struct {
		name string
		f    func()
	}{
		{"EncodeF16", func() { EncodeF16(halves, floats) }},
		{"DecodeF16", func() { DecodeF16(floats, halves) }},
		{"EncodeBF16", func() { EncodeBF16(halves, floats) }},
		{"DecodeBF16", func() { DecodeBF16(floats, halves) }},
	} {
		benchmarkLevels(b, c.name, 6*n, c.f)
	}
}

// BenchmarkLowRank updates 64 rows of 4096 columns. The plain loop is the formula with its loops in
// the order that suits the cache, what one would write first.
func BenchmarkLowRank(b *testing.B) {
	const rows, cols = 64, 4096
	rng := rand.New(rand.NewPCG(1, 2))
	w := normal(rng, rows*cols)
	for _, rank := range []int{8, 16, 64, 256} {
		l, r := normal(rng, rows*rank), normal(rng, rank*cols)
		u := NewLowRank(l, r, rows, cols, rank, 1e-6)
		benchmarkLevels(b, fmt.Sprintf("rank=%d", rank), 2*rows*cols*rank, func() { u.Apply(w, cols, 0, rows) })
		b.Run(fmt.Sprintf("rank=%d/plain", rank), func(b *testing.B) {
			b.SetBytes(2 * rows * cols * int64(rank))
			sums := make([]float32, cols)
			for b.Loop() {
				for i := range rows {
					clear(sums)
					for k := range rank {
						x, row := l[i*rank+k], r[k*cols:][:cols]
						for j, y := range row {
							sums[j] += float32(x * y)
						}
					}
					for j, s := range sums {
						w[i*cols+j] += float32(1e-6 * s)
					}
				}
			}
		})
	}
}
