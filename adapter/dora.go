package adapter

import (
	"fmt"
	"math"

	"github.com/loratool/loratool/finding"
)

// An additive op changes W by something that does not depend on W.
type additive interface {
	Load() error
	Release()
	Apply(rows []float32, first int64)
	Exact(rows []float64, first int64)
}

// dora is W[block] += t·(m/‖V‖·V − W) with V = W + Δ, the norm by stored row or by stored column, and t the
// user's factor.
type dora struct {
	rowLocal
	area
	inner     additive
	byColumn  bool
	group     int64 // columns (or rows) that share a magnitude: the taps of a kernel
	magnitude Factor
	round     func(float32) float32
	strength  float64
	m         []float32
	norms     []float64 // by magnitude; by column only
}

// decomposed lays the magnitudes over the area of Δ.
func (b *binding) decomposed(inner additive, at area) (Op, error) {
	u := b.u
	// The norm runs over the input axis of the canonical weight; of an embedding [vocab, dim] over vocab.
	input := u.Input || u.Layer == Embedding
	outputs, inputs := at.sides()
	d := &dora{area: at, inner: inner, byColumn: at.transposed != input, group: 1, round: rounder(b.round.DoRA), strength: u.Scale.strength()}
	m := u.Magnitude
	n := m.Rows * m.Cols
	m.Rows, m.Cols = n, 1
	switch {
	case input:
		if n == 0 || inputs%n != 0 || inputs != n && (len(b.stored.Shape) < 3 || at.transposed) {
			return nil, b.mismatch(fmt.Sprintf("%d magnitudes", n), fmt.Sprintf("%d", inputs))
		}
		if b.p.Run > 0 && u.Layer != Embedding {
			return nil, finding.Errorf("adapter.unsupported_feature", "", "the norms of module %q run over outputs that the base stores apart", u.Module).In(b.stored.Name)
		}
		d.group = inputs / n
	default:
		if b.p.Run == 0 && n != outputs || b.p.Run > 0 && outputs > 0 && b.p.Canonical(outputs-1, outputs) >= n {
			return nil, b.mismatch(fmt.Sprintf("%d magnitudes", n), fmt.Sprintf("%d", outputs))
		}
		var err error
		if m, err = b.outputs(m); err != nil {
			return nil, err
		}
	}
	d.magnitude = m
	return d, nil
}

func (d *dora) Load() (err error) {
	if d.m, err = load(d.magnitude); err != nil {
		return err
	}
	return d.inner.Load()
}

func (d *dora) Release() {
	d.m, d.norms = nil, nil
	d.inner.Release()
}

func (d *dora) Columns() bool { return d.byColumn }

// Stretches reports whether all inputs of an output are scaled by one factor.
func (d *dora) Stretches() bool { return d.byColumn == d.transposed }

// Prepare sums the squares of V by column. The rows come in order, so the sums do not depend on slabs.
func (d *dora) Prepare(next func() ([]float32, int64, error)) error {
	d.norms = make([]float64, len(d.m))
	for {
		rows, first, err := next()
		if err != nil || len(rows) == 0 {
			for j, s := range d.norms {
				d.norms[j] = math.Sqrt(s)
			}
			return err
		}
		d.inner.Apply(rows, first)
		lo, hi := d.overlap(int64(len(rows))/d.width, first)
		for i := lo; i < hi; i++ {
			row := blockRow(d.area, rows, i, first)
			for k := range d.norms {
				for _, v := range row[int64(k)*d.group:][:d.group] {
					d.norms[k] += float64(float64(v) * float64(v))
				}
			}
		}
	}
}

func (d *dora) Apply(rows []float32, first int64) {
	var before []float32
	if d.strength != 1 {
		before = append(before, rows...)
	}
	d.inner.Apply(rows, first)
	lo, hi := d.overlap(int64(len(rows))/d.width, first)
	for i := lo; i < hi; i++ {
		row := blockRow(d.area, rows, i, first)
		d.scale(row, i)
		if before != nil {
			for j, w := range blockRow(d.area, before, i, first) {
				row[j] = w + float32(float32(d.strength)*(row[j]-w))
			}
		}
	}
}

// scale turns a row of V into one of m/‖V‖·V.
func (d *dora) scale(row []float32, i int64) {
	var sum float64
	for j, v := range row {
		row[j] = d.round(v)
		sum += float64(float64(row[j]) * float64(row[j]))
	}
	if d.byColumn {
		for k, m := range d.m {
			f := d.factor(m, d.norms[k])
			part := row[int64(k)*d.group:][:d.group]
			for j := range part {
				part[j] *= f
			}
		}
		return
	}
	f := d.factor(d.m[i/d.group], math.Sqrt(sum))
	for j := range row {
		row[j] *= f
	}
}

// factor is m/‖V‖. A V of zeros stays one.
func (d *dora) factor(m float32, norm float64) float32 {
	if norm == 0 {
		return 0
	}
	return d.round(m / d.round(float32(norm)))
}

func (d *dora) Exact(rows []float64, first int64) {
	var before []float64
	if d.strength != 1 {
		before = append(before, rows...)
	}
	d.inner.Exact(rows, first)
	lo, hi := d.overlap(int64(len(rows))/d.width, first)
	for i := lo; i < hi; i++ {
		row := blockRow(d.area, rows, i, first)
		d.scaleExact(row, i)
		if before != nil {
			for j, w := range blockRow(d.area, before, i, first) {
				row[j] = w + float64(d.strength*(row[j]-w))
			}
		}
	}
}

func (d *dora) scaleExact(row []float64, i int64) {
	if d.byColumn {
		for k, m := range d.m {
			part := row[int64(k)*d.group:][:d.group]
			for j := range part {
				part[j] *= quotient(m, d.norms[k])
			}
		}
		return
	}
	var sum float64
	for _, v := range row {
		sum += float64(v * v)
	}
	f := quotient(d.m[i/d.group], math.Sqrt(sum))
	for j := range row {
		row[j] *= f
	}
}

func quotient(m float32, norm float64) float64 {
	if norm == 0 {
		return 0
	}
	return float64(m) / norm
}
