package rounding

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// batch makes rows of a matrix and their changed targets.
func (m *matrix) batch(n int) []Row {
	size := len(m.data) / m.rows
	rows := make([]Row, n)
	for i := range rows {
		r := Row{Number: 5*i + 3, Grid: &quant.Grid{}, Codes: make([]int16, m.cols), Target: make([]float32, m.cols)}
		m.codec.ReadGrid(r.Grid, r.Codes, m.data[i*size:(i+1)*size])
		for k := range r.Target {
			r.Target[k] = r.Grid.Value(k, r.Codes[k])
			for j := range m.rank {
				r.Target[k] += float32(float32(m.scale*m.b[i*m.rank+j]) * m.a[j*m.cols+k])
			}
		}
		rows[i] = r
	}
	return rows
}

// Rows together become what they become one by one, of every type and number, with steps of zero among them.
func TestRowsTogether(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 9))
	for _, d := range all {
		for _, ratio := range []float64{0.003, 0.03, 0.3} {
			for _, n := range []int{8, 5} {
				for _, rank := range []int{1, 3, 16} {
					m := newMatrix(t, d, 8, 512, rank, ratio)
					rows, want := m.batch(n), m.batch(n)
					for i := range rows {
						for range 20 {
							k := rng.IntN(m.cols)
							rows[i].Grid.Step[k], want[i].Grid.Step[k] = 0, 0
						}
					}
					basis := m.basis()
					NewMatcher(basis).RoundRows(rows)
					one := NewMatcher(basis)
					for i, r := range want {
						one.Round(r.Number, r.Grid, r.Codes, r.Target)
						if !slices.Equal(rows[i].Codes, r.Codes) {
							t.Errorf("%s at %g, rank %d, row %d of %d: other codes", d, ratio, rank, i, n)
						}
					}
				}
			}
		}
	}
}

func BenchmarkRoundRows(b *testing.B) {
	for _, d := range []tensor.DType{tensor.Q4_0, tensor.IQ4_NL} {
		for _, rank := range []int{8, 16, 32} {
			b.Run(d.String()+" rank "+string(rune('0'+rank/10))+string(rune('0'+rank%10)), func(b *testing.B) {
				m := newMatrix(b, d, 8, 4096, rank, 0.03)
				matcher := NewMatcher(m.basis())
				rows := m.batch(8)
				codes := make([]int16, 4096)
				copy(codes, rows[0].Codes)
				b.SetBytes(4 * 8 * 4096)
				for b.Loop() {
					matcher.RoundRows(rows)
				}
			})
		}
	}
}
