package onnxquant

import (
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/tensor"
)

// BenchmarkEncode stores 4096 × 256 weights; MB are of float32.
func BenchmarkEncode(b *testing.B) {
	const rows, cols = 256, 4096
	random := rand.New(rand.NewPCG(1, 2))
	v := make([]float32, rows*cols)
	for i := range v {
		v[i] = float32(random.NormFloat64())
	}
	for _, name := range []string{"matmulnbits:4:32", "matmulnbits:8:64:symmetric", "qdq:int4:32", "qdq:int8", "qdq:uint8:tensor"} {
		b.Run(name, func(b *testing.B) {
			r, err := ParseRecipe(name)
			if err != nil {
				b.Fatal(err)
			}
			w, err := r.Product("w", tensor.Shape{rows, cols}, name == "qdq:int8", tensor.F32)
			if err != nil {
				b.Fatal(err)
			}
			e, err := w.Encoding()
			if err != nil {
				b.Fatal(err)
			}
			var dst [][]byte
			for i := range w.Parts {
				dst = append(dst, make([]byte, w.Parts[i].Size))
			}
			shown := false
			if err := e.Measure(func() ([]float32, int64, error) {
				if shown {
					return nil, 0, nil
				}
				shown = true
				return v, 0, nil
			}); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(4 * rows * cols)
			for b.Loop() {
				if err := e.Encode(dst, v, 0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
