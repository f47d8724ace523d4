package kernel

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"
)

// wild makes 256 values of a kind that is hard on a search, and importances that go with them.
func wild(rng *rand.Rand, kind uint8) (x, importance [256]float32) {
	for i := range importance {
		importance[i] = float32(rng.ExpFloat64())
		if kind&0x80 != 0 && rng.IntN(3) == 0 {
			importance[i] = 0
		}
	}
	scale := float32(math.Ldexp(1, rng.IntN(250)-125))
	for i := range x {
		n := float32(rng.NormFloat64())
		switch kind % 14 {
		case 0:
			x[i] = 0.02 * n
		case 1:
			x[i] = scale * n
		case 2: // heavy tails, each group in its own magnitude
			x[i] = n * float32(math.Exp(3*rng.NormFloat64())) * float32(math.Ldexp(1, i/16-8))
		case 3: // ties
			x[i] = float32(rng.IntN(9)-4) * scale
		case 4: // constant groups
			x[i] = float32(i/16%5-2) * scale
		case 5: // zeros and single values
			if rng.IntN(20) == 0 {
				x[i] = n
			}
		case 6: // a constant and noise far below it
			x[i] = -1 + n*float32(math.Ldexp(1, -10-i/16))
		case 7:
			x[i] = abs(n)
		case 8:
			x[i] = -abs(n) * scale
		case 9: // subnormals
			x[i] = math.Float32frombits(rng.Uint32() & 0x800fffff >> (i / 16))
			if rng.IntN(2) == 0 {
				x[i] = math.Float32frombits(math.Float32bits(x[i]) | 1<<31)
			}
		case 10: // around the magnitude that counts as zero
			x[i] = n * 1e-15
		case 11: // any finite pattern
			x[i] = math.Float32frombits(rng.Uint32())
			if x[i]-x[i] != 0 {
				x[i] = math.MaxFloat32
			}
		case 12: // signed zeros among values of one sign
			x[i] = float32(math.Copysign(float64(max(0, n)), float64(rng.IntN(2))-0.5))
		case 13: // one outlier a group
			x[i] = n * 1e-4
			if i%16 == 5 {
				x[i] = 1000 * n
			}
		}
	}
	return x, importance
}

// A search result as bits, every NaN the same.
func appendBits(b []uint32, f ...float32) []uint32 {
	for _, v := range f {
		if v != v {
			v = 0x7fc00000
		}
		b = append(b, math.Float32bits(v))
	}
	return b
}

// everySearch runs all there is on one super-block and returns what came out.
func everySearch(x, importance *[256]float32) (bits []uint32) {
	affines := []*Affine{NewAffine(3, -0.5, 0.1, 15, true), NewAffine(15, -1, 0.1, 20, false), NewAffine(31, -0.9, 0.05, 36, false)}
	for _, size := range []int{16, 32} {
		var g Groups
		g.Load(x[:], size)
		n := g.Count()
		bits = appendBits(bits, g.Values[:]...)
		s := g.Squares()
		bits = appendBits(bits, s[:n]...)
		for weights := range 4 {
			switch weights {
			case 0:
				g.WeighSquares()
			case 1:
				g.WeighMagnitudes(&s)
			case 2:
				g.WeighImportance(importance[:], &s)
			case 3:
				g.WeighPlain(importance[:])
			}
			bits = appendBits(bits, g.Weights[:]...)
			sums := g.WeightSums()
			bits = appendBits(bits, sums[:n]...)
			var codes [256]byte
			add := func(found ...*PerGroup) {
				for _, p := range found {
					bits = appendBits(bits, p[:n]...)
				}
				for _, c := range codes {
					bits = append(bits, uint32(c))
				}
			}
			for _, a := range affines {
				var fit, alone AffineFit
				h := g
				for i, v := range g.Values {
					h.Values[255-i] = v / 3
				}
				AffinePair(a, &h, &g, &alone, &fit)
				add(&alone.Scales, &alone.Depths, &alone.inverses, &alone.lows)
				g.Affine(a, &alone)
				add(&alone.Scales, &alone.Depths, &alone.inverses, &alone.lows)
				for j := range n {
					fit.Codes(codes[j*size:], x[j*size:][:size], j)
				}
				add(&fit.Scales, &fit.Depths, &fit.inverses, &fit.lows)
				Quantize(&codes, x[:], size, &fit.Scales, &fit.Depths, 0, int(a.top))
				for j := range n {
					if fit.Scales[j] == 0 {
						clear(codes[j*size:][:size])
					}
				}
				add()
			}
			for _, levels := range []int{4, 8, 16, 32} {
				var fit SymmetricFit
				g.Symmetric(levels, &fit)
				for j := range n {
					fit.Codes(codes[j*size:], x[j*size:][:size], j)
				}
				add(&fit.Scales, &fit.inverses)
			}
			var scales PerGroup
			g.NonLinear(&scales)
			add(&scales)
		}
		var fit SymmetricFit
		g.Descend(4, &fit)
		var codes [256]byte
		for j := range n {
			fit.Codes(codes[j*size:], x[j*size:][:size], j)
		}
		bits = appendBits(bits, fit.Scales[:n]...)
		for _, c := range codes {
			bits = append(bits, uint32(c))
		}
	}
	return bits
}

// sameAtEachLevel compares every level the machine has with the portable code.
func sameAtEachLevel(t *testing.T, x, importance *[256]float32) {
	t.Helper()
	defer func(old level) { active = old }(active)
	active = portable
	want := everySearch(x, importance)
	for l := portable + 1; l <= best(); l++ {
		active = l
		got := everySearch(x, importance)
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("level %d: result %d of %d is %#08x, want %#08x", l, i, len(want), got[i], want[i])
			}
		}
	}
}

func TestSearchesAgree(t *testing.T) {
	for kind := range 28 {
		for seed := range uint64(40) {
			x, importance := wild(rand.New(rand.NewPCG(seed, uint64(kind))), uint8(kind%14|kind/14<<7))
			sameAtEachLevel(t, &x, &importance)
			if t.Failed() {
				t.Fatalf("kind %d, seed %d", kind, seed)
			}
		}
	}
}

// FuzzSearches compares the assembly with the portable code. Values are wild, and some of them the
// fuzzer's own patterns.
func FuzzSearches(f *testing.F) {
	for kind := range uint8(14) {
		f.Add(kind, uint64(kind), []byte{})
		f.Add(kind|0x80, uint64(kind), []byte{0, 0, 0x80, 0x3f, 1, 0, 0, 0, 0, 0, 0, 0x80})
	}
	f.Fuzz(func(t *testing.T, kind uint8, seed uint64, data []byte) {
		x, importance := wild(rand.New(rand.NewPCG(seed, 1)), kind)
		for i := 0; len(data) >= 4 && i < 256; i, data = i+1, data[4:] {
			v := math.Float32frombits(binary.LittleEndian.Uint32(data))
			if v-v == 0 {
				x[i] = v
			}
		}
		sameAtEachLevel(t, &x, &importance)
	})
}

func TestMagnitude(t *testing.T) {
	atEachLevel(t, func(t *testing.T) {
		for n := range 70 {
			for at := range n {
				x := make([]float32, n)
				for i := range x {
					x[i] = 1 / float32(i+1) * -0.5
				}
				x[at] = -3
				if got := Magnitude(x); got != 3 {
					t.Fatalf("%d values, -3 at %d: %v", n, at, got)
				}
				x[n/2] = float32(math.Inf(-1))
				if got := Magnitude(x); !math.IsInf(float64(got), 1) {
					t.Fatalf("%d values, an infinity at %d: %v", n, n/2, got)
				}
				x[at] = float32(math.NaN())
				if got := Magnitude(x); got == got {
					t.Fatalf("%d values, NaN at %d: %v", n, at, got)
				}
			}
		}
	})
}

// TestNearestNonLinear compares the table with the reference's search by halving, around every level
// and every border.
func TestNearestNonLinear(t *testing.T) {
	reference := func(v float32) byte {
		levels := NonLinearLevels
		if v <= levels[0] {
			return 0
		}
		if v >= levels[15] {
			return 15
		}
		low, high := 0, 15
		for high-low > 1 {
			if middle := (low + high) / 2; v < levels[middle] {
				high = middle
			} else {
				low = middle
			}
		}
		if v-levels[high-1] < levels[high]-v {
			return byte(high - 1)
		}
		return byte(high)
	}
	inf := float32(math.Inf(1))
	check := func(v float32) {
		if got, want := NearestNonLinear(v), reference(v); got != want {
			t.Errorf("%v is code %d, want %d", v, got, want)
		}
	}
	for half := -300; half <= 300; half++ {
		v := float32(half) / 2
		for range 4 {
			check(v)
			v = math.Nextafter32(v, inf)
		}
		v = float32(half) / 2
		for range 4 {
			check(v)
			v = math.Nextafter32(v, -inf)
		}
		check(float32(half) * 0.4321)
	}
	for _, v := range []float32{inf, -inf, 1e-40, -1e-40, 1e-30, -1e-30, float32(math.NaN())} {
		check(v)
	}
}

func BenchmarkSearch(b *testing.B) {
	x, importance := wild(rand.New(rand.NewPCG(1, 2)), 0)
	run := func(name string, size int, f func(g *Groups)) {
		var g Groups
		g.Load(x[:], size)
		g.WeighImportance(importance[:], &PerGroup{})
		benchmarkLevels(b, name, 4*256, func() { f(&g) })
	}
	for _, c := range []struct {
		name string
		size int
		a    *Affine
	}{
		{"Affine/Q2_K", 16, NewAffine(3, -0.5, 0.1, 15, true)}, {"Affine/Q4_K", 32, NewAffine(15, -1, 0.1, 20, false)},
		{"Affine/Q5_K", 32, NewAffine(31, -0.5, 0.1, 15, false)},
	} {
		var h Groups
		h.Load(x[:], c.size)
		h.WeighSquares()
		var fit, fitH AffineFit
		run(c.name+"/pair", c.size, func(g *Groups) { AffinePair(c.a, g, &h, &fit, &fitH) })
	}
	var fit SymmetricFit
	run("Symmetric/Q6_K", 16, func(g *Groups) { g.Symmetric(32, &fit) })
	run("Descend/Q3_K", 16, func(g *Groups) { g.Descend(4, &fit) })
	var scales PerGroup
	run("NonLinear/IQ4", 32, func(g *Groups) { g.NonLinear(&scales) })
	run("Load", 32, func(g *Groups) { g.Load(x[:], 32) })
	run("WeighImportance", 32, func(g *Groups) { g.WeighImportance(importance[:], &scales) })
	var codes [256]byte
	scales = PerGroup{1, 1, 1, 1, 1, 1, 1, 1}
	run("Quantize", 32, func(g *Groups) { Quantize(&codes, x[:], 32, &scales, &scales, 0, 15) })
}
