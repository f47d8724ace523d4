package adapter

import (
	"math"
	"sync"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/tensor"
)

// rowLocal is embedded by ops that need no Prepare.
type rowLocal struct{}

func (rowLocal) Columns() bool { return false }
func (rowLocal) Prepare(func() ([]float32, int64, error)) error {
	return nil
}
func (rowLocal) LowRank() (Product, bool) { return Product{}, false }

// load reads a factor and refuses NaN and infinities, which would spread over whole rows of the weight.
func load(f Factor) ([]float32, error) {
	v, err := f.Load()
	if err != nil {
		return nil, err
	}
	for i, x := range v {
		if math.Float32bits(x)&0x7f800000 == 0x7f800000 {
			return nil, finding.Errorf("adapter.non_finite", "", "the adapter holds %v at row %d, column %d of a factor", x, int64(i)/f.Cols, int64(i)%f.Cols).
				Hinted("the adapter is broken: it was saved from a training run that diverged")
		}
	}
	return v, nil
}

// product is W[block] += s·L·R.
type product struct {
	rowLocal
	Product
	area
	left, right Factor
	delta       tensor.DType
	packed      *kernel.LowRank
	wide        sync.Once
	r64         []float64 // R for Exact
}

func (p *product) Load() (err error) {
	if p.L, err = load(p.left); err != nil {
		return err
	}
	if p.R, err = load(p.right); err != nil {
		return err
	}
	p.packed = kernel.NewLowRank(p.L, p.R, int(p.Rows), int(p.Cols), int(p.Rank), p.Scale)
	return nil
}

func (p *product) Release() {
	p.L, p.R, p.packed, p.r64, p.wide = nil, nil, nil, nil, sync.Once{}
}

func (p *product) LowRank() (Product, bool) { return p.Product, true }

func (p *product) Apply(rows []float32, first int64) {
	lo, hi := p.overlap(int64(len(rows))/p.width, first)
	if lo >= hi {
		return
	}
	slab := rows[(p.RowOff+lo-first)*p.width+p.ColOff:]
	if p.delta == tensor.Invalid {
		p.packed.Apply(slab, int(p.width), int(lo), int(hi-lo))
		return
	}
	d := make([]float32, (hi-lo)*p.Cols)
	p.packed.Apply(d, int(p.Cols), int(lo), int(hi-lo))
	round := rounder(p.delta)
	for i := lo; i < hi; i++ {
		row := blockRow(p.area, rows, i, first)
		for j, x := range d[(i-lo)*p.Cols:][:p.Cols] {
			row[j] += round(x)
		}
	}
}

// strip is how many columns Exact sums at once, so that the sums and the factor's rows stay in the cache.
const strip = 1024

func (p *product) Exact(rows []float64, first int64) {
	lo, hi := p.overlap(int64(len(rows))/p.width, first)
	if lo >= hi {
		return
	}
	p.widen()
	sums := make([]float64, min(strip, p.Cols))
	for at := int64(0); at < p.Cols; at += strip {
		n := min(strip, p.Cols-at)
		for i := lo; i < hi; i++ {
			sums := sums[:n]
			p.sumRow(sums, i, at)
			row := blockRow(p.area, rows, i, first)[at:]
			for j, s := range sums {
				row[j] += float64(float64(p.Scale) * s)
			}
		}
	}
}

// widen makes the float64 copy of R that sumRow reads.
func (p *product) widen() {
	p.wide.Do(func() {
		p.r64 = make([]float64, len(p.R))
		for i, x := range p.R {
			p.r64[i] = float64(x)
		}
	})
}

// sumRow sets sums to row i of L·R from column at, each sum in the order of k.
func (p *product) sumRow(sums []float64, i, at int64) {
	clear(sums)
	l := p.L[i*p.Rank:][:p.Rank]
	k := int64(0)
	for ; k+4 <= p.Rank; k += 4 {
		l0, l1, l2, l3 := float64(l[k]), float64(l[k+1]), float64(l[k+2]), float64(l[k+3])
		r0 := p.r64[k*p.Cols+at:][:len(sums)]
		r1 := p.r64[(k+1)*p.Cols+at:][:len(sums)]
		r2 := p.r64[(k+2)*p.Cols+at:][:len(sums)]
		r3 := p.r64[(k+3)*p.Cols+at:][:len(sums)]
		for j, s := range sums {
			s += float64(l0 * r0[j])
			s += float64(l1 * r1[j])
			s += float64(l2 * r2[j])
			sums[j] = s + float64(l3*r3[j])
		}
	}
	for ; k < p.Rank; k++ {
		lk := float64(l[k])
		for j, r := range p.r64[k*p.Cols+at:][:len(sums)] {
			sums[j] += float64(lk * r)
		}
	}
}

// replace is W[block] = value, or with a scale W[block] += s·(value − W[block]).
type replace struct {
	rowLocal
	area
	value Factor
	scale float32
	v     []float32
}

func (r *replace) Load() (err error) { r.v, err = load(r.value); return err }
func (r *replace) Release()          { r.v = nil }

func (r *replace) Apply(rows []float32, first int64) {
	lo, hi := r.overlap(int64(len(rows))/r.width, first)
	for i := lo; i < hi; i++ {
		row := blockRow(r.area, rows, i, first)
		for j, v := range r.v[i*r.cols:][:r.cols] {
			row[j] = toward(row[j], v, r.scale)
		}
	}
}

func (r *replace) Exact(rows []float64, first int64) {
	lo, hi := r.overlap(int64(len(rows))/r.width, first)
	for i := lo; i < hi; i++ {
		row := blockRow(r.area, rows, i, first)
		for j, v := range r.v[i*r.cols:][:r.cols] {
			row[j] = towardExact(row[j], v, r.scale)
		}
	}
}

// toward goes from w to v, all the way or the share of it that the scale says.
func toward(w, v, scale float32) float32 {
	if scale == 1 {
		return v
	}
	return w + float32(scale*(v-w))
}

func towardExact(w float64, v, scale float32) float64 {
	if scale == 1 {
		return float64(v)
	}
	return w + float64(float64(scale)*(float64(v)-w))
}

// someRows is W[index[i]] = value[i], scaled as replace, for rows (or, transposed, columns) of the matrix.
type someRows struct {
	rowLocal
	value      Factor
	index      []int64
	at         map[int64]int64
	cols       int64
	transposed bool
	scale      float32
	v          []float32
}

func (s *someRows) Load() (err error) { s.v, err = load(s.value); return err }
func (s *someRows) Release()          { s.v = nil }

func (s *someRows) Apply(rows []float32, first int64) {
	s.each(int64(len(rows)), first, func(i, j int64) { rows[i] = toward(rows[i], s.v[j], s.scale) })
}

func (s *someRows) Exact(rows []float64, first int64) {
	s.each(int64(len(rows)), first, func(i, j int64) { rows[i] = towardExact(rows[i], s.v[j], s.scale) })
}

func (s *someRows) each(n, first int64, set func(i, j int64)) {
	for i := range n / s.cols {
		if s.transposed {
			for k, id := range s.index {
				set(i*s.cols+id, int64(k)*s.value.Cols+first+i)
			}
		} else if k, ok := s.at[first+i]; ok {
			for j := range s.cols {
				set(i*s.cols+j, k*s.cols+j)
			}
		}
	}
}

// vector changes a one-dimensional parameter: b += s·value, or b = value.
type vector struct {
	rowLocal
	value   Factor
	off     int64
	scale   float32
	replace bool
	cols    int64
	v       []float32
}

func (o *vector) Load() (err error) { o.v, err = load(o.value); return err }
func (o *vector) Release()          { o.v = nil }

func (o *vector) Apply(rows []float32, first int64) {
	for i, x := range o.v {
		if j := o.off + int64(i) - first*o.cols; j >= 0 && j < int64(len(rows)) {
			if o.replace {
				rows[j] = toward(rows[j], x, o.scale)
			} else {
				rows[j] += float32(o.scale * x)
			}
		}
	}
}

func (o *vector) Exact(rows []float64, first int64) {
	for i, x := range o.v {
		if j := o.off + int64(i) - first*o.cols; j >= 0 && j < int64(len(rows)) {
			if o.replace {
				rows[j] = towardExact(rows[j], x, o.scale)
			} else {
				rows[j] += float64(float64(o.scale) * float64(x))
			}
		}
	}
}
