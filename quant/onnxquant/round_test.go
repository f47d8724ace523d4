package onnxquant

import (
	"math"
	"testing"
)

// TestRoundAway compares with package math: around every half, and on numbers of all magnitudes.
func TestRoundAway(t *testing.T) {
	check := func(v float32) {
		if got, want := roundAway(v), float32(math.Round(float64(v))); got != want {
			t.Fatalf("%v (%#x) rounds to %v, want %v", v, math.Float32bits(v), got, want)
		}
	}
	for n := range 70000 {
		half := float32(n) + 0.5
		for _, v := range []float32{half, math.Nextafter32(half, 0), math.Nextafter32(half, 1e9), float32(n)} {
			check(v)
			check(-v)
		}
	}
	for b := uint32(0); b < 0x7f800000; b += 40009 {
		check(math.Float32frombits(b))
		check(-math.Float32frombits(b))
	}
	check(float32(math.Inf(1)))
}
