package kernel

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"
)

// rough makes n float32 of one of many kinds: normal, tied, subnormal, huge, mostly zero.
func rough(r *rand.Rand, n, kind int) []float32 {
	x := make([]float32, n)
	for i := range x {
		v := r.NormFloat64()
		switch kind {
		case 0:
			x[i] = float32(v * 0.02)
		case 1:
			x[i] = float32(math.Round(2*v)) * 0.25
		case 2:
			x[i] = float32(v * 0x1p-140)
		case 3:
			x[i] = float32(v * 0x1p100)
		case 4:
			if r.IntN(4) == 0 {
				x[i] = float32(v)
			}
		case 5:
			x[i] = math.Float32frombits(uint32(r.Uint64()) &^ 0x40000000) // up to 2
		case 6:
			x[i] = 0.02
		case 7:
			x[i] = float32(math.Copysign(math.Exp(20*v), r.NormFloat64()))
		}
	}
	return x
}

const roughKinds = 8

// roughWeights are rough numbers, but not negative, as weights are.
func roughWeights(r *rand.Rand, n, kind int) []float32 {
	w := rough(r, n, kind)
	for i, v := range w {
		w[i] = abs(v)
	}
	return w
}

func sameBits(a, b float32) bool {
	return math.Float32bits(a) == math.Float32bits(b) || a != a && b != b
}

func TestLatticeLoopsEqualPortable(t *testing.T) {
	atEachLevel(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 2))
		for round := range 4000 {
			dims := 8 - 4*(round&1)
			groups, lanes := 1+r.IntN(4), 8*(1+r.IntN(4))
			x, w := rough(r, groups*dims, r.IntN(roughKinds)), roughWeights(r, groups*dims, r.IntN(roughKinds))
			compareLattice(t, r, dims, lanes, x, w)
			if t.Failed() {
				return
			}
		}
	})
}

func compareLattice(t *testing.T, r *rand.Rand, dims, lanes int, x, w []float32) {
	groups := len(x) / dims
	ids := rough(r, lanes, r.IntN(roughKinds))
	if r.IntN(2) == 0 { // as the encoders do
		for i := range ids {
			ids[i] = (5 + float32(i)*0.1) / abs(x[0])
		}
	}
	codes, want := make([]uint32, groups*lanes), make([]uint32, groups*lanes)
	LatticeCodes(codes, x, ids, dims)
	latticeCodesGo(want, x, ids, dims)
	for i := range codes {
		if codes[i] != want[i] {
			t.Fatalf("code %d of %v with %v is %d, want %d", i, x, ids, codes[i], want[i])
		}
	}

	points := make([]uint32, groups*lanes)
	for i := range points {
		points[i] = randomElement(r, dims)
	}
	xq, qq, wantX, wantQ := make([]float32, lanes), make([]float32, lanes), make([]float32, lanes), make([]float32, lanes)
	LatticeSums(xq, qq, points, x, w, dims)
	latticeSumsGo(wantX, wantQ, points, x, w, dims)
	for i := range xq {
		if !sameBits(xq[i], wantX[i]) || !sameBits(qq[i], wantQ[i]) {
			t.Fatalf("sums %d of %v are %v and %v, want %v and %v", i, x, xq[i], qq[i], wantX[i], wantQ[i])
		}
	}

	list := make([]uint32, 8*(1+r.IntN(12)))
	for i := range list {
		list[i] = randomElement(r, dims)
		if i > 0 && r.IntN(3) == 0 {
			list[i] = list[r.IntN(i)] & 0xffff // the same cost under another index
		}
	}
	levels := [8]float32{1, 3, 5, 7, 1, 3, 5, 7}
	switch {
	case dims == 4:
		levels = [8]float32{1, 3, 5, 7, 9, 11, 13, 15}
	case r.IntN(2) == 0:
		levels = [8]float32{-0.875, 0.125, 1.125, 0, -0.875, 0.125, 1.125, 0}
	}
	scale := 1 / ids[0]
	got := LatticeNearest(list, x[:dims], w[:dims], scale, &levels)
	if want := latticeNearestGo(list, x[:dims], w[:dims], scale, &levels); got != want {
		t.Fatalf("nearest of %v with scale %v is %#x, want %#x", x[:dims], scale, got, want)
	}
	if want := firstLeast(list, x[:dims], w[:dims], scale, &levels); got != want {
		t.Fatalf("nearest of %v with scale %v is %#x, want %#x by definition", x[:dims], scale, got, want)
	}
}

// randomElement is an element of a lattice with levels the lattice has.
func randomElement(r *rand.Rand, dims int) uint32 {
	p := uint32(r.IntN(2048)) << 16
	for j := range dims {
		if dims == 8 {
			p |= uint32(r.IntN(3)) << (2 * j)
		} else {
			p |= uint32(r.IntN(8)) << (4 * j)
		}
	}
	return p
}

// firstLeast is what LatticeNearest is defined to be.
func firstLeast(list []uint32, x, w []float32, scale float32, levels *[8]float32) uint32 {
	best, pick := float32(math.MaxFloat32), uint32(NoPoint)
	width := 16 / len(x)
	for _, p := range list {
		var sum float32
		for j := range x {
			diff := float32(scale*levels[p>>(j*width)&7]) - x[j]
			sum += float32(float32(w[j]*diff) * diff)
		}
		if sum < best {
			best, pick = sum, p
		}
	}
	return pick
}

func TestLatticeLengths(t *testing.T) {
	for name, call := range map[string]func(){
		"codes": func() { LatticeCodes(make([]uint32, 8), make([]float32, 16), make([]float32, 8), 8) },
		"lanes": func() { LatticeCodes(make([]uint32, 7), make([]float32, 8), make([]float32, 7), 8) },
		"weights": func() {
			LatticeSums(make([]float32, 8), make([]float32, 8), make([]uint32, 8), make([]float32, 8), nil, 8)
		},
		"list": func() { LatticeNearest(make([]uint32, 9), make([]float32, 8), make([]float32, 8), 1, new([8]float32)) },
		"dims": func() { LatticeNearest(make([]uint32, 8), make([]float32, 5), make([]float32, 5), 1, new([8]float32)) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: wrong lengths were taken", name)
				}
			}()
			call()
		}()
	}
}

// FuzzLattice feeds any bits to every loop and compares with the portable code.
func FuzzLattice(f *testing.F) {
	f.Add([]byte("0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz"), uint64(1))
	f.Fuzz(func(t *testing.T, data []byte, seed uint64) {
		var x, w [32]float32
		for i := range 32 {
			if len(data) >= 4 {
				x[i], data = math.Float32frombits(binary.LittleEndian.Uint32(data)), data[4:]
			}
			if len(data) >= 4 {
				w[i], data = abs(math.Float32frombits(binary.LittleEndian.Uint32(data))), data[4:]
			}
		}
		r := rand.New(rand.NewPCG(seed, 3))
		compareLattice(t, r, 8-4*int(seed&1), 8*(1+r.IntN(4)), x[:], w[:])
		compareSplits(t, x[:], w[:])
	})
}
