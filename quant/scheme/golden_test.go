package scheme_test

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/quant/scheme"
	"github.com/loratool/loratool/tensor"
)

func load(t testing.TB, path string) []tensor.Tensor {
	t.Helper()
	m, err := safetensors.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m.Tensors()
}

func config(t *testing.T, path string) (c map[string]any) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

func values(t *testing.T, x tensor.Tensor) []float32 {
	t.Helper()
	b, err := x.Read()
	if err != nil {
		t.Fatal(err)
	}
	n, err := x.Shape.Elements()
	if err != nil {
		t.Fatal(err)
	}
	c, _ := quant.Of(x.DType)
	v := make([]float32, n)
	c.Decode(v, b)
	return v
}

// cases are the checkpoints of testdata/make.py, with the number of their weights.
var cases = map[string]int{
	"bnb-nf4": 5, "bnb-fp4": 5, "bnb-int8": 2, "hqq": 10, "ct-int4": 4, "ct-int8": 4, "ct-int3": 4, "ct-int5": 4,
	"ct-fp8": 3, "ct-fp8-block": 2, "ct-w8a8": 3, "ct-nvfp4": 1, "ct-mxfp4": 1, "gptq-v1": 5, "gptq-v2": 5, "awq": 2, "fp8-nvfp4": 3,
}

func open(t *testing.T, name string) *scheme.View {
	t.Helper()
	v, err := scheme.Open(name, load(t, filepath.Join("testdata", name+".safetensors")), config(t, filepath.Join("testdata", name+".json")))
	if err != nil {
		t.Fatal(err)
	}
	if v == nil {
		t.Fatal("nothing was recognised")
	}
	return v
}

// TestGolden compares decoded weights, bytes and types, with what the libraries decode. testdata/make.py
// says which library made which, and which cases are made by formula.
func TestGolden(t *testing.T) {
	for name, weights := range cases {
		t.Run(name, func(t *testing.T) {
			v := open(t, name)
			golden := load(t, filepath.Join("testdata", name+".golden.safetensors"))
			decoded := map[string]tensor.Tensor{}
			for _, x := range v.Tensors {
				decoded[x.Name] = x
			}
			if len(golden) != weights || len(v.Packed) != weights || len(v.Tensors) != weights+1 {
				t.Fatalf("%d goldens, %d packed weights, %d tensors; want %d weights and a norm", len(golden), len(v.Packed), len(v.Tensors), weights)
			}
			for _, f := range v.Findings {
				if f.Code == "scheme.config_mismatch" {
					t.Errorf("finding: %v", &f)
				}
			}
			for _, want := range golden {
				got := decoded[want.Name]
				if !got.Shape.Equal(want.Shape) || got.DType != want.DType {
					t.Errorf("%s (%s): %s%v, want %s%v", want.Name, v.Packed[want.Name], got.DType, got.Shape, want.DType, want.Shape)
					continue
				}
				g, err := got.Read()
				if err != nil {
					t.Fatal(err)
				}
				w, err := want.Read()
				if err != nil {
					t.Fatal(err)
				}
				if bytes.Equal(g, w) {
					continue
				}
				bad := 0
				for i, x := range values(t, got) {
					if y := values(t, want)[i]; math.Float32bits(x) != math.Float32bits(y) {
						if bad++; bad <= 3 {
							t.Errorf("%s (%s): element %d is %g, want %g", want.Name, v.Packed[want.Name], i, x, y)
						}
					}
				}
				t.Errorf("%s: %d of %d differ", want.Name, bad, len(g)/got.DType.BlockBytes())
			}
		})
	}
}

// TestPieces reads every weight in pieces that cut rows and elements, and compares with reading it whole.
func TestPieces(t *testing.T) {
	for name := range cases {
		v := open(t, name)
		for _, x := range v.Tensors {
			whole, err := x.Read()
			if err != nil {
				t.Fatal(err)
			}
			for _, size := range []int{1, 7, 64, 250} {
				if size == 1 && len(whole) > 4000 {
					continue
				}
				for off := 0; off < len(whole); off += size {
					p := make([]byte, min(size, len(whole)-off))
					if _, err := x.ReadAt(p, int64(off)); err != nil {
						t.Fatal(err)
					}
					if !bytes.Equal(p, whole[off:off+len(p)]) {
						t.Fatalf("%s %s: bytes from %d read alone differ", name, x.Name, off)
					}
				}
			}
		}
	}
}

// TestDropped checks that nothing of a packed weight is left in the view.
func TestDropped(t *testing.T) {
	for name := range cases {
		v := open(t, name)
		stored := load(t, filepath.Join("testdata", name+".safetensors"))
		replaced := 0
		for _, x := range v.Tensors {
			for _, s := range stored {
				if s.Name == x.Name && v.Packed[x.Name] != nil {
					replaced++
				}
			}
			if !strings.HasSuffix(x.Name, ".weight") && !strings.HasSuffix(x.Name, "gate_up_proj") {
				t.Errorf("%s: %s is left", name, x.Name)
			}
		}
		if len(v.Dropped)+replaced+1 != len(stored) {
			t.Errorf("%s: %d dropped, %d replaced and a norm of %d", name, len(v.Dropped), replaced, len(stored))
		}
	}
}
