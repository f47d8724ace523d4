package rounding

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

func gauss(r *rand.Rand, n int, size float64) []float32 {
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(r.NormFloat64() * size)
	}
	return v
}

// A matrix is a quantized base and a change s·B·A of it.
type matrix struct {
	codec            quant.Codec
	rows, cols, rank int
	data             []byte
	a, b             []float32
	scale            float32
}

func newMatrix(t testing.TB, d tensor.DType, rows, cols, rank int, ratio float64) *matrix {
	t.Helper()
	r := rand.New(rand.NewPCG(uint64(d), 7))
	m := &matrix{rows: rows, cols: cols, rank: rank, scale: float32(ratio)}
	m.codec, _ = quant.Of(d)
	w := gauss(r, rows*cols, 0.02)
	n, err := d.Bytes(int64(len(w)))
	if err != nil {
		t.Fatal(err)
	}
	m.data = make([]byte, n)
	if err := m.codec.Encode(m.data, w); err != nil {
		t.Fatal(err)
	}
	m.a, m.b = gauss(r, rank*cols, 1), gauss(r, rows*rank, 0.02/2)
	clear(m.b[rank : 2*rank]) // row 1 does not change
	return m
}

func (m *matrix) basis() *Basis {
	var rows [][]float32
	for j := range m.rank {
		rows = append(rows, m.a[j*m.cols:(j+1)*m.cols])
	}
	return NewBasis(rows, m.cols)
}

// A result is what became of a change.
type result struct {
	data                 []byte
	alpha, nearest       float64 // retention, and that of the nearest codes
	noise, scale, change float64 // |E|², |W|², |Δ|²
	along                float64 // |E·Q|² by |Δ·Q|²
}

// match adds the change row by row: delta in the order of directions, then the sum.
func (m *matrix) match(order []int) result {
	res := result{data: bytes.Clone(m.data)}
	size := len(m.data) / m.rows
	basis := m.basis()
	matcher := NewMatcher(basis)
	var g quant.Grid
	old, codes := make([]int16, m.cols), make([]int16, m.cols)
	var dot, plain, eq, dq float64
	for _, i := range order {
		row := res.data[i*size : (i+1)*size]
		m.codec.ReadGrid(&g, old, row)
		delta, target := make([]float32, m.cols), make([]float32, m.cols)
		for j := range m.rank {
			b := float32(m.scale * m.b[i*m.rank+j])
			for k := range delta {
				delta[k] += float32(b * m.a[j*m.cols+k])
			}
		}
		for k := range target {
			target[k] = g.Value(k, old[k]) + delta[k]
		}
		copy(codes, old)
		matcher.Round(i, &g, codes, target)
		m.codec.WriteCodes(row, codes)
		e, d := make([]float64, basis.rank), make([]float64, basis.rank)
		for k, c := range codes {
			was, x := float64(g.Value(k, old[k])), float64(delta[k])
			err := float64(g.Value(k, c)) - float64(target[k])
			dot += x * (float64(g.Value(k, c)) - was)
			plain += x * (float64(g.Value(k, g.Nearest(k, target[k], old[k]))) - was)
			res.change += x * x
			res.noise += err * err
			res.scale += was * was
			for j, q := range basis.of(k) {
				e[j] += err * float64(q)
				d[j] += x * float64(q)
			}
		}
		for j := range e {
			eq += e[j] * e[j]
			dq += d[j] * d[j]
		}
	}
	res.alpha, res.nearest, res.along = dot/res.change, plain/res.change, eq/dq
	return res
}

func upTo(n int) []int {
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	return order
}

// TestGolden compares bytes with those of the program that the method was first written in.
func TestGolden(t *testing.T) {
	for _, c := range []struct {
		dtype tensor.DType
		ratio float64
		sum   string
	}{
		{tensor.Q4_0, 0.003, "6aab208699947456"},
		{tensor.Q4_0, 0.03, "a7205e91e95e0b4b"},
		{tensor.Q4_0, 0.2, "36bead6af53d8edc"},
		{tensor.Q8_0, 0.003, "0ff8ba974f11e49f"},
		{tensor.Q8_0, 0.03, "8fc565ce21049da4"},
		{tensor.Q8_0, 0.2, "95c7f7cd7e4e2e48"},
		{tensor.Q3_K, 0.003, "3946fdf6842d8a7c"},
		{tensor.Q3_K, 0.03, "b7183ac7637004a6"},
		{tensor.Q3_K, 0.2, "cd573f294b8027a0"},
		{tensor.Q4_K, 0.003, "0bc19734d4b611bb"},
		{tensor.Q4_K, 0.03, "583f70305ef16676"},
		{tensor.Q4_K, 0.2, "74ed738cac0d5502"},
		{tensor.Q5_K, 0.003, "e82d9fe6f2c29e71"},
		{tensor.Q5_K, 0.03, "22f316f6f0558360"},
		{tensor.Q5_K, 0.2, "c85b21249f8dca36"},
		{tensor.Q6_K, 0.003, "1fb7aa7ddc7f8b63"},
		{tensor.Q6_K, 0.03, "fe194f96b0ce9391"},
		{tensor.Q6_K, 0.2, "47becf534f48f273"},
		{tensor.IQ4_NL, 0.003, "b79ff6e9098ae92c"},
		{tensor.IQ4_NL, 0.03, "abd72d7d9f2bca4d"},
		{tensor.IQ4_NL, 0.2, "f94368a8475838de"},
	} {
		m := newMatrix(t, c.dtype, 12, 512, 4, c.ratio)
		sum := sha256.Sum256(m.match(upTo(m.rows)).data)
		if got := hex.EncodeToString(sum[:8]); got != c.sum {
			t.Errorf("%s at %g: %s, want %s", c.dtype, c.ratio, got, c.sum)
		}
	}
}
