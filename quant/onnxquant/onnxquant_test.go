package onnxquant

import (
	"bytes"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

func stored(name string, d tensor.DType, b []byte, shape ...int64) *tensor.Tensor {
	return &tensor.Tensor{Spec: tensor.Spec{Name: name, DType: d, Shape: shape}, Src: bytes.NewReader(b), Size: int64(len(b))}
}

func empty(name string, d tensor.DType, shape ...int64) *tensor.Tensor {
	spec := tensor.Spec{Name: name, DType: d, Shape: shape}
	n, err := spec.Bytes()
	if err != nil {
		panic(err)
	}
	return stored(name, d, make([]byte, n), shape...)
}

func float32s(t *testing.T, x tensor.Tensor) []float32 {
	t.Helper()
	b, err := x.Read()
	if err != nil {
		t.Fatal(err)
	}
	c, _ := quant.Of(x.DType)
	v := make([]float32, len(b)/x.DType.BlockBytes())
	c.Decode(v, b)
	return v
}

// encodeAll encodes a weight's rows some blocks at a time, and returns its parts.
func encodeAll(t *testing.T, w *Weight, rows []float32, blocks int64) [][]byte {
	t.Helper()
	e, err := w.Encoding()
	if err != nil || e == nil {
		t.Fatalf("no encoding: %v", err)
	}
	parts := make([][]byte, e.Parts())
	for i := range parts {
		parts[i] = bytes.Repeat([]byte{0xa5}, int(w.Parts[i].Size))
	}
	done := false
	err = e.Measure(func() ([]float32, int64, error) {
		if done {
			return nil, 0, nil
		}
		done = true
		return rows, 0, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	step := blocks * e.Block()
	for first := int64(0); first < w.rows; first += step {
		n := min(step, w.rows-first)
		var dst [][]byte
		for p := range parts {
			off, size := e.Extent(p, first, n)
			dst = append(dst, parts[p][off:off+size])
		}
		if err := e.Encode(dst, rows[first*w.cols:(first+n)*w.cols], first); err != nil {
			t.Fatal(err)
		}
		back := make([]float32, n*w.cols)
		e.Decode(back, dst, first)
		for i := range w.Parts {
			w.Parts[i].Src = bytes.NewReader(parts[i])
		}
		if again := float32s(t, w.Tensor("w", true)); !slices.Equal(back, again[first*w.cols:(first+n)*w.cols]) {
			t.Fatalf("rows %d to %d decode to %v, read %v", first, first+n, back[:4], again[first*w.cols:][:4])
		}
	}
	return parts
}

type opener interface{ Open() (*Weight, error) }

var layouts = []struct {
	name string
	of   func() opener
	half float64 // steps that the most distant value may be away from its code's
}{
	{"nbits 4", func() opener {
		return NBits{K: 40, N: 6, Bits: 4, Block: 16, Codes: empty("w", tensor.U8, 6, 3, 8), Scale: empty("s", tensor.F32, 18)}
	}, 1},
	{"nbits 2 with zero points", func() opener {
		return NBits{K: 40, N: 6, Bits: 2, Block: 16, Codes: empty("w", tensor.U8, 6, 3, 4), Scale: empty("s", tensor.F32, 18), Zero: empty("z", tensor.U8, 6, 1)}
	}, 1},
	{"nbits 8 in f16", func() opener {
		return NBits{K: 48, N: 6, Bits: 8, Block: 16, Codes: empty("w", tensor.U8, 6, 3, 16), Scale: empty("s", tensor.F16, 18), Zero: empty("z", tensor.U8, 6, 3)}
	}, 1},
	{"nbits 4 with float zero points", func() opener {
		return NBits{K: 48, N: 6, Bits: 4, Block: 16, Codes: empty("w", tensor.U8, 6, 3, 8), Scale: empty("s", tensor.F32, 18), Zero: empty("z", tensor.F32, 18)}
	}, 0.51},
	{"int8 under one scale", func() opener {
		return Linear{Axis: 1, Codes: empty("w", tensor.I8, 7, 9), Scale: empty("s", tensor.F32)}
	}, 0.51},
	{"uint8 by columns", func() opener {
		return Linear{Axis: 1, Codes: empty("w", tensor.U8, 7, 9), Scale: empty("s", tensor.F32, 9), Zero: empty("z", tensor.U8, 9)}
	}, 1.01},
	{"int8 by rows", func() opener {
		return Linear{Axis: 0, Codes: empty("w", tensor.I8, 7, 9), Scale: empty("s", tensor.F32, 7), Zero: empty("z", tensor.I8, 7)}
	}, 0.51},
	{"int4 in blocks of rows", func() opener {
		return Linear{Axis: 0, Block: 16, Codes: empty("w", tensor.I4, 40, 7), Scale: empty("s", tensor.F32, 3, 7)}
	}, 1},
	{"uint4 in blocks of columns, odd rows", func() opener {
		return Linear{Axis: -1, Block: 16, Codes: empty("w", tensor.U4, 9, 33), Scale: empty("s", tensor.F32, 9, 3), Zero: empty("z", tensor.U4, 9, 3)}
	}, 1},
	{"int8 in blocks of a stack", func() opener {
		return Linear{Axis: 1, Block: 16, Codes: empty("w", tensor.I8, 3, 20, 5), Scale: empty("s", tensor.F32, 3, 2, 5)}
	}, 1},
	{"gathered 4", func() opener {
		return Gathered{Bits: 4, Axis: 1, Block: 16, Codes: empty("w", tensor.U8, 6, 24), Scale: empty("s", tensor.F32, 6, 3), Zero: empty("z", tensor.U8, 6, 2)}
	}, 1},
}

func TestEncoding(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	for _, c := range layouts {
		w, err := c.of().Open()
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		rows := make([]float32, w.rows*w.cols)
		for i := range rows {
			rows[i] = float32(random.NormFloat64())
		}
		whole := encodeAll(t, w, rows, 1<<20)
		scales, err := w.readFloats(1, 0, w.grid.count)
		if err != nil {
			t.Fatal(err)
		}
		back := float32s(t, w.Tensor("w", true))
		for i, x := range rows {
			s := math.Abs(float64(scales[w.grid.of(int64(i))]))
			if d := math.Abs(float64(x) - float64(back[i])); d > c.half*s {
				t.Errorf("%s: element %d, %v, comes back as %v with scale %v", c.name, i, x, back[i], s)
				break
			}
		}
		w2, _ := c.of().Open()
		for i, p := range encodeAll(t, w2, rows, 1) {
			if !bytes.Equal(p, whole[i]) {
				t.Errorf("%s: part %d depends on how many rows are encoded together", c.name, i)
			}
		}
		// What has been stored once stays: the same values have the same codes.
		w3, _ := c.of().Open()
		again := encodeAll(t, w3, back, 2)
		back3 := float32s(t, w3.Tensor("w", true))
		for i := range back {
			if d := math.Abs(float64(back[i] - back3[i])); d > 1e-3*math.Abs(float64(scales[w.grid.of(int64(i))]))*16 {
				t.Errorf("%s: element %d, %v, comes back as %v the second time (codes %v)", c.name, i, back[i], back3[i], bytes.Equal(again[0], whole[0]))
				break
			}
		}
	}
}

// TestRoundingToNearest is about the formulas: values worked out by hand.
func TestRoundingToNearest(t *testing.T) {
	block := func(v ...float32) []float32 { return append(v, make([]float32, 16-len(v))...) }
	nbits := func(zero *tensor.Tensor) *Weight {
		w, err := NBits{K: 16, N: 1, Bits: 4, Block: 16, Codes: empty("w", tensor.U8, 1, 1, 8), Scale: empty("s", tensor.F32, 1), Zero: zero}.Open()
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	f32 := func(b []byte) float32 { var v [1]float32; c, _ := quant.Of(tensor.F32); c.Decode(v[:], b); return v[0] }
	// m = 4, s = −0.5, z = 8: 4 → 0, 0.25 → 7.5 → 8 (away from zero), 0.75 → 6.5 → 7, −3.9 → 15.8 → 15.
	p := encodeAll(t, nbits(nil), block(4, 0.25, 0.75, -3.9), 1)
	if f32(p[1]) != -0.5 || !bytes.Equal(p[0], []byte{0x80, 0xf7, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88}) {
		t.Errorf("symmetric: scale %v, codes %x", f32(p[1]), p[0])
	}
	// From −5 to 10: s = 1, z = 5; 2.5 → 7.5 → 8. The other half of the byte with the zero point is 8.
	p = encodeAll(t, nbits(empty("z", tensor.U8, 1)), block(-5, 10, 2.5), 1)
	if f32(p[1]) != 1 || p[2][0] != 0x85 || !bytes.Equal(p[0], []byte{0xf0, 0x58, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55}) {
		t.Errorf("asymmetric: scale %v, zero %d, codes %x", f32(p[1]), p[2][0], p[0])
	}
	// 127 steps to 63.5: s = 0.5; 0.25 → 0.5 → 0 (to even), 0.75 → 1.5 → 2, −63.5 → −127.
	w, err := Linear{Codes: empty("w", tensor.I8, 1, 4), Scale: empty("s", tensor.F32)}.Open()
	if err != nil {
		t.Fatal(err)
	}
	p = encodeAll(t, w, []float32{63.5, 0.25, 0.75, -63.5}, 1)
	if f32(p[1]) != 0.5 || !bytes.Equal(p[0], []byte{127, 0, 2, 0x81}) {
		t.Errorf("int8: scale %v, codes %x", f32(p[1]), p[0])
	}
}

func TestNotFinite(t *testing.T) {
	w, err := NBits{K: 16, N: 1, Bits: 4, Block: 16, Codes: empty("w", tensor.U8, 1, 1, 8), Scale: empty("s", tensor.F16, 1)}.Open()
	if err != nil {
		t.Fatal(err)
	}
	e, err := w.Encoding()
	if err != nil {
		t.Fatal(err)
	}
	for code, v := range map[string]float32{
		"quant.nonfinite_value": float32(math.NaN()), "quant.scale_overflow": 1e9,
	} {
		rows := make([]float32, 16)
		rows[3] = v
		err := e.Encode([][]byte{make([]byte, 8), make([]byte, 2)}, rows, 0)
		if f := finding.Of(err); f == nil || f.Code != code {
			t.Errorf("%v: %v, want %s", v, err, code)
		}
	}
}

// TestBnb4 reads the first of two codes from the high half of a byte; blocks run over the flattened matrix.
func TestBnb4(t *testing.T) {
	codes := make([]byte, 27) // 3 × 18, in blocks of 16
	codes[0], codes[8] = 0xf0, 0x1f
	scales := make([]byte, 16)
	c, _ := quant.Of(tensor.F32)
	if err := c.Encode(scales, []float32{2, 3, 1, 1}); err != nil {
		t.Fatal(err)
	}
	w, err := Bnb4{K: 18, N: 3, Block: 16, NF4: true, Codes: stored("w", tensor.U8, codes, 27), Absmax: stored("s", tensor.F32, scales, 4)}.Open()
	if err != nil {
		t.Fatal(err)
	}
	got := float32s(t, w.Tensor("w", false))
	for i, want := range map[int]float32{0: 2, 1: -2, 15: -2, 16: -0.6961928009986877 * 3, 17: 3, 18: -3} {
		if got[i] != want {
			t.Errorf("element %d is %v, want %v", i, got[i], want)
		}
	}
	if e, err := w.Encoding(); e != nil || err != nil {
		t.Errorf("an encoding: %v %v", e, err)
	}
}
