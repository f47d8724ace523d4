package quant

import (
	"bytes"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/tensor"
)

var gridTypes = []tensor.DType{tensor.Q4_0, tensor.Q4_1, tensor.Q5_0, tensor.Q5_1, tensor.Q8_0, tensor.Q2_K, tensor.Q3_K, tensor.Q4_K,
	tensor.Q5_K, tensor.Q6_K, tensor.IQ4_NL, tensor.IQ4_XS, tensor.MXFP4, tensor.NVFP4}

func TestHasGrid(t *testing.T) {
	n := 0
	for d := range tensor.DType(len(codecs)) {
		if c, ok := Of(d); ok && c.HasGrid() {
			n++
		}
	}
	if n != len(gridTypes) {
		t.Errorf("%d types have a grid, want %d", n, len(gridTypes))
	}
}

// A grid says what the decoder says of any bytes, and takes its own codes without a change.
func TestGridIsTheDecoder(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, d := range gridTypes {
		c := mustOf(t, d)
		for range 50 {
			const blocks = 3
			b := make([]byte, blocks*d.BlockBytes())
			for i := range b {
				b[i] = byte(rng.Uint32())
			}
			was := bytes.Clone(b)
			var g Grid
			codes, want := make([]int16, blocks*d.BlockLen()), make([]float32, blocks*d.BlockLen())
			c.ReadGrid(&g, codes, b)
			c.Decode(want, b)
			for k, x := range want {
				got := g.Value(k, codes[k])
				if math.Float32bits(got) != math.Float32bits(x) && !(got != got && x != x) {
					t.Fatalf("%s: element %d is %v, want %v", d, k, got, x)
				}
			}
			c.WriteCodes(b, codes)
			if !bytes.Equal(b, was) {
				t.Fatalf("%s: writing the codes back changed bytes", d)
			}
		}
	}
}

// Any codes can be written and are read again, and neither steps nor offsets move.
func TestWriteCodes(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, d := range gridTypes {
		c := mustOf(t, d)
		b := make([]byte, 2*d.BlockBytes())
		for i := range b {
			b[i] = byte(rng.Uint32()) & 0xbf
		}
		var before, after Grid
		codes, got := make([]int16, 2*d.BlockLen()), make([]int16, 2*d.BlockLen())
		c.ReadGrid(&before, codes, b)
		for k := range codes {
			codes[k] = int16(rng.IntN(len(before.Levels)))
		}
		c.WriteCodes(b, codes)
		c.ReadGrid(&after, got, b)
		for k := range codes {
			if got[k] != codes[k] || after.Step[k] != before.Step[k] || after.Off[k] != before.Off[k] {
				t.Fatalf("%s: element %d: code %d, want %d; step %v, was %v", d, k, got[k], codes[k], after.Step[k], before.Step[k])
			}
		}
	}
}

// The nearest code is nearer than both its neighbours, a value on the grid is its own nearest, and nothing is
// outside the levels.
func TestNearest(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for _, d := range gridTypes {
		c := mustOf(t, d)
		v := make([]float32, d.BlockLen())
		for i := range v {
			v[i] = float32(rng.NormFloat64())
		}
		b := make([]byte, d.BlockBytes())
		if err := c.Encode(b, v); err != nil {
			t.Fatal(err)
		}
		var g Grid
		codes := make([]int16, len(v))
		c.ReadGrid(&g, codes, b)
		for k, code := range codes {
			if g.Step[k] == 0 {
				continue
			}
			if got := g.Nearest(k, g.Value(k, code), 0); got != code {
				t.Errorf("%s: the code nearest to its own value is %d, want %d", d, got, code)
			}
			x := 2 * float32(rng.NormFloat64())
			best := g.Nearest(k, x, 0)
			for code := range g.Levels {
				near, other := math.Abs(float64(g.Value(k, best)-x)), math.Abs(float64(g.Value(k, int16(code))-x))
				if other < near*(1-1e-6) {
					t.Errorf("%s: %v became %v although %v is nearer", d, x, g.Value(k, best), g.Value(k, int16(code)))
				}
			}
			for _, x := range []float32{float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1)), math.MaxFloat32, -math.MaxFloat32} {
				if n := g.Nearest(k, x, 0); n < 0 || int(n) >= len(g.Levels) {
					t.Errorf("%s: code %d for %v", d, n, x)
				}
			}
		}
	}
}

// The squares are those of the distances to the nearest codes.
func TestSquares(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for _, d := range gridTypes {
		c := mustOf(t, d)
		n := d.BlockLen()
		b := make([]byte, 2*d.BlockBytes())
		for i := range b {
			b[i] = byte(rng.Uint32()) & 0xbf
		}
		var g Grid
		codes, x := make([]int16, 2*n), make([]float32, 2*n)
		c.ReadGrid(&g, codes, b)
		g.Step[n+1] = 0
		got := make([]float64, 2*n)
		for k := range x {
			x[k] = g.Value(k, codes[k]) + g.Step[k]*float32(8*rng.NormFloat64())
		}
		x[n+1] = 3
		g.Squares(got, x, codes)
		for k, v := range x {
			e := float64(g.Value(k, g.Nearest(k, v, codes[k]))) - float64(v)
			if want := float64(e * e); got[k] != want {
				t.Errorf("%s: element %d: %g, want %g", d, k, got[k], want)
			}
		}
	}
}
