package onnxruntime

import (
	"context"
	"math/rand/v2"
)

// Start begins a check whose weights come in blocks.
func (c *Checker) Start(m Module) (*Accumulation, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	seed := nameHash(m.Name)
	a := &Accumulation{
		checker: c, module: m, storage: storage{inner: m.In, same: true},
		x: normal(rand.New(rand.NewPCG(c.options.Seed, seed)), c.options.Rows*m.In),
		result: Result{
			Module: m.Name, Provider: c.runtime.provider, Rows: c.options.Rows, Seed: c.options.Seed,
		},
	}
	step := max(1, m.Out/c.options.Columns)
	for j := step / 2; j < m.Out && len(a.sample) < c.options.Columns; j += step {
		a.sample = append(a.sample, j)
	}
	a.joinTerms()
	if m.Transposed {
		n := c.options.Rows * m.Out
		a.partial = [3][]float64{make([]float64, n), make([]float64, n), make([]float64, n)}
		a.reference = make([]float64, c.options.Rows*len(a.sample))
	}
	return a, nil
}

// An Accumulation adds up what the blocks of one module say. It holds the inputs, the adapter's factors
// and, for a Transposed module, whose blocks are parts of every output, the outputs; never the weights.
type Accumulation struct {
	checker *Checker
	module  Module
	result  Result

	x      []float32 // Rows × In
	a, b   []float32 // the terms' factors side by side: [rank, in] and [out, rank]
	s      []float32 // the scale of each rank
	sample []int     // outputs compared with float64 arithmetic, ascending

	sums    sums
	rows    int
	storage storage
	partial [3][]float64 // Transposed: Y0, Y1 and D so far
	// reference is the sum so far of the sampled outputs in float64, for a Transposed module.
	reference []float64
}

// joinTerms puts the terms side by side, which makes one product of them.
func (a *Accumulation) joinTerms() {
	terms := a.module.Terms
	rank := a.module.rank()
	for _, t := range terms {
		for range t.Rank {
			a.s = append(a.s, t.Scale)
		}
	}
	if len(terms) == 1 {
		a.a, a.b = terms[0].A, terms[0].B
		return
	}
	a.b = make([]float32, a.module.Out*rank)
	first := 0
	for _, t := range terms {
		a.a = append(a.a, t.A...)
		for o := range a.module.Out {
			copy(a.b[o*rank+first:], t.B[o*t.Rank:(o+1)*t.Rank])
		}
		first += t.Rank
	}
}

// Add runs a block. Large blocks are run in parts. It is not safe for concurrent use on one Accumulation.
func (a *Accumulation) Add(ctx context.Context, b Block) error {
	if err := b.check(a.module); err != nil {
		return err
	}
	merged := b.Merged.DType
	a.storage.typ, a.storage.locked = merged.String(), b.Base.DType == merged
	if a.storage.noise = a.module.Noise; a.storage.noise == 0 {
		a.storage.noise, a.storage.floor = rounding(merged)
	}
	if a.storage.noise == 0 {
		return badModule(a.module, "the rounding error of type %s must be given", merged)
	}
	_, cols := a.module.stored()
	part := max(1, a.checker.options.RunBytes/(8*cols))
	for first := 0; first < b.Rows; first += part {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := a.run(b.slice(first, min(part, b.Rows-first), cols)); err != nil {
			return err
		}
	}
	return nil
}

// run puts one part through the graph and adds up what comes out.
func (a *Accumulation) run(b Block) error {
	m, rows := a.module, a.checker.options.Rows
	_, cols := m.stored()
	a.rows += b.Rows
	a.storage.same = a.storage.same && b.Base.equal(b.Merged, b.Rows*cols)

	x, fa, fb, in, out := a.x, a.a, a.b, m.In, b.Rows
	if m.Transposed {
		x, fa = columns(a.x, m.In, b.First, b.Rows), columns(a.a, m.In, b.First, b.Rows)
		in, out = b.Rows, m.Out
	} else if len(m.Terms) > 0 {
		rank := len(a.s)
		fb = a.b[b.First*rank : (b.First+b.Rows)*rank]
	}
	base, merged := b.Base.value(b.Rows, cols, a.checker.decode), b.Merged.value(b.Rows, cols, a.checker.decode)
	key := checkGraph{base: elementOf(base), merged: elementOf(merged), transposed: m.Transposed}
	values := []Value{Floats(x, int64(rows), int64(in)), base, merged}
	switch {
	case len(m.Terms) > 0:
		rank := int64(len(a.s))
		values = append(values, Floats(fa, rank, int64(in)), Floats(a.s, 1, rank), Floats(fb, int64(out), rank))
	case b.Expected != nil:
		key.form = expected
		values = append(values, Floats(b.Expected, int64(b.Rows), int64(cols)))
	default:
		key.form = difference
		values = append(values, Floats(b.Delta, int64(b.Rows), int64(cols)))
	}
	s, err := a.checker.session(key)
	if err != nil {
		return err
	}
	ys, err := s.run(values)
	if err != nil {
		return modelError(Model{}, err)
	}
	for _, y := range ys {
		if len(y.F32) != rows*out {
			return badModule(m, "an output has %d values, expected %d", len(y.F32), rows*out)
		}
	}
	if m.Transposed {
		for i, y := range ys {
			for j, v := range y.F32 {
				a.partial[i][j] += float64(v)
			}
		}
		a.addReference(b, x)
		return nil
	}
	for i := range ys[0].F32 {
		a.sums.add(float64(ys[0].F32[i]), float64(ys[1].F32[i]), float64(ys[2].F32[i]))
	}
	a.compareRows(b, ys[1].F32)
	return nil
}

// compareRows computes the sampled outputs of a block of output rows in float64.
func (a *Accumulation) compareRows(b Block, y1 []float32) {
	in := a.module.In
	w := make([]float64, in)
	for _, j := range a.sample {
		if j < b.First || j >= b.First+b.Rows {
			continue
		}
		row := j - b.First
		for k := range w {
			w[k] = float64(b.Merged.at(row*in + k))
		}
		for i := range a.checker.options.Rows {
			var want float64
			for k, v := range a.x[i*in : (i+1)*in] {
				want += float64(v) * w[k]
			}
			a.sums.compare(float64(y1[i*b.Rows+row]), want)
		}
	}
}

// addReference adds a block of input rows to the sampled outputs in float64. x are the block's columns of X.
func (a *Accumulation) addReference(b Block, x []float32) {
	out := a.module.Out
	for c, j := range a.sample {
		for k := range b.Rows {
			w := float64(b.Merged.at(k*out + j))
			for i := range a.checker.options.Rows {
				a.reference[i*len(a.sample)+c] += float64(x[i*b.Rows+k]) * w
			}
		}
	}
}

// Result judges the module once all its rows have been added.
func (a *Accumulation) Result() (Result, error) {
	m := a.module
	if total, _ := m.stored(); a.rows != total {
		return Result{}, badModule(m, "%d of %d rows were checked", a.rows, total)
	}
	s := a.sums
	if m.Transposed {
		for i, y0 := range a.partial[0] {
			s.add(y0, a.partial[1][i], a.partial[2][i])
		}
		for i := range a.checker.options.Rows {
			for c, j := range a.sample {
				s.compare(a.partial[1][i*m.Out+j], a.reference[i*len(a.sample)+c])
			}
		}
	}
	return s.judge(a.result, a.storage), nil
}

// compare takes one sampled output and its float64 value.
func (s *sums) compare(got, want float64) {
	s.refDiff += (got - want) * (got - want)
	s.refNorm += want * want
}

// columns copies columns [first, first+n) of a matrix with cols columns.
func columns(v []float32, cols, first, n int) []float32 {
	if n == cols {
		return v
	}
	rows := len(v) / cols
	out := make([]float32, 0, rows*n)
	for i := range rows {
		out = append(out, v[i*cols+first:i*cols+first+n]...)
	}
	return out
}

// elementOf is the ONNX number of a value's type.
func elementOf(v Value) int64 {
	if v.raw != nil {
		return v.elem
	}
	return onnxFloat
}
