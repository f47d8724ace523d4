package quant

import (
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/tensor"
)

// latticeTypes are the types of this package whose encoders search a lattice.
var latticeTypes = []tensor.DType{
	tensor.IQ1_S, tensor.IQ1_M, tensor.IQ2_XXS, tensor.IQ2_XS, tensor.IQ2_S, tensor.IQ3_XXS, tensor.IQ3_S,
}

// BenchmarkEncodeLattice encodes rows of 4096 values of N(0, 0.02), with and without importance.
func BenchmarkEncodeLattice(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	const cols = 4096
	x, importance := make([]float32, 4*cols), make([]float32, cols)
	for i := range x {
		x[i] = float32(r.NormFloat64() * 0.02)
	}
	for i := range importance {
		importance[i] = float32(r.ExpFloat64())
	}
	for _, d := range latticeTypes {
		c, _ := Of(d)
		dst := make([]byte, len(x)/256*d.BlockBytes())
		for _, w := range [][]float32{nil, importance} {
			name := d.String()
			if w != nil {
				name += "/importance"
			} else if c.NeedsImportance() {
				continue
			}
			b.Run(name, func(b *testing.B) {
				for b.Loop() {
					if err := c.EncodeRows(dst, x, cols, w); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(len(x)*b.N)/b.Elapsed().Seconds()/1e6, "Mvalue/s")
			})
		}
	}
}
