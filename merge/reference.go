package merge

import (
	"sync"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/quant/scheme"
)

// A Reference recomputes rows of an updated tensor from the plan's inputs, for checks.
type Reference struct {
	t     *task
	frame adapter.Frame

	matching sync.Mutex
	matched  scheme.Encoding // once asked for

	// Buffers of Rows.
	in           []byte
	base, merged []float32
	exact        []float64
}

// Reference loads the tensor's updates. Close releases them.
func (o *Output) Reference() (*Reference, error) {
	t := &task{out: o, source: o.source, frame: o.frame}
	t.decode, _ = quant.Of(o.source.DType)
	var err error
	if o.weight != nil {
		t.encode = o.weight.Encoding
	}
	if t.inRow, err = o.source.DType.Bytes(t.frame.Cols); err != nil {
		return nil, err
	}
	if err := t.prepare(); err != nil {
		return nil, err
	}
	return &Reference{t: t, frame: o.frame}, nil
}

// Close releases the factors.
func (r *Reference) Close() {
	for _, op := range r.t.out.ops {
		op.Release()
	}
}

// Rows returns n rows from first: the source as it is stored, the merged rows in the engine's float32
// arithmetic, and the same in float64. They are good until the next call.
func (r *Reference) Rows(first, n int64) (base, merged []float32, exact []float64, err error) {
	if values := n * r.frame.Cols; int64(cap(r.base)) < values {
		r.in, r.base, r.merged, r.exact = make([]byte, n*r.t.inRow), make([]float32, values), make([]float32, values), make([]float64, values)
	}
	in := r.in[:n*r.t.inRow]
	base, merged, exact = r.base[:n*r.frame.Cols], r.merged[:n*r.frame.Cols], r.exact[:n*r.frame.Cols]
	if _, err := r.t.source.ReadAt(in, first*r.t.inRow); err != nil {
		return nil, nil, nil, r.t.fault(err)
	}
	r.t.decode.Decode(base, in)
	copy(merged, base)
	for i, w := range base {
		exact[i] = float64(w)
	}
	for _, op := range r.t.out.ops {
		op.Apply(merged, first)
		op.Exact(exact, first)
	}
	return base, merged, exact, nil
}

// Products returns the updates as low-rank products of blocks of the matrix, when all of them are.
func (r *Reference) Products() ([]adapter.Product, bool) {
	var ps []adapter.Product
	for _, op := range r.t.out.ops {
		p, ok := op.LowRank()
		if !ok {
			return nil, false
		}
		ps = append(ps, p)
	}
	return ps, len(ps) > 0
}
