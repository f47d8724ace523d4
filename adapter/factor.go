package adapter

import (
	"fmt"
	"math"
	"slices"

	"github.com/loratool/loratool/tensor"
)

// A Factor is a matrix of the adapter, read from its file when Load is called. The zero Factor is absent.
type Factor struct {
	Rows, Cols int64
	// Stored is the tensor the factor is, byte for byte in row-major order; nil when it is only part of
	// one, or reordered.
	Stored *tensor.Tensor
	// DType is the type that the values were stored in, also where they are only part of a tensor or
	// reordered: it holds every one of them. Invalid where they are computed.
	DType tensor.DType
	// Kernel, where not nil, is what the factor of a decomposed kernel is computed from. Cuts and maps of the
	// factor have none.
	Kernel *Decomposed
	load   func() ([]float32, error)
	fresh  bool // load returns values that no one else holds
}

// Present reports whether the factor was set.
func (f Factor) Present() bool { return f.load != nil }

// Load reads the factor as Rows·Cols float32 values, row-major. 16-bit types are widened exactly.
func (f Factor) Load() ([]float32, error) {
	v, err := f.load()
	if err == nil && int64(len(v)) != f.Rows*f.Cols {
		return nil, fmt.Errorf("factor has %d values, expected %d × %d", len(v), f.Rows, f.Cols)
	}
	return v, err
}

// FromTensor is the factor that t holds, seen as rows × cols; t must be of a plain float type (or, with
// decode, of any type decode understands) and have rows·cols elements. The values that decode returns become
// the caller's.
func FromTensor(t tensor.Tensor, rows, cols int64, decode func(t *tensor.Tensor) ([]float32, error)) Factor {
	return Factor{Rows: rows, Cols: cols, Stored: &t, DType: t.DType, fresh: true, load: func() ([]float32, error) { return decode(&t) }}
}

// FromValues is a factor held in memory.
func FromValues(rows, cols int64, v []float32) Factor {
	return Factor{Rows: rows, Cols: cols, load: func() ([]float32, error) { return v, nil }}
}

// FromFunc is a factor computed when it is loaded: load returns rows·cols values, row-major.
func FromFunc(rows, cols int64, load func() ([]float32, error)) Factor {
	return Factor{Rows: rows, Cols: cols, load: load}
}

// Same reports whether two factors hold the same values, bit for bit. It reads them, unless they are the same bytes
// of a file.
func (f Factor) Same(g Factor) (bool, error) {
	if !f.Present() || !g.Present() {
		return f.Present() == g.Present(), nil
	}
	if f.Rows != g.Rows || f.Cols != g.Cols {
		return false, nil
	}
	if s, t := f.Stored, g.Stored; s != nil && t != nil && s.Src == t.Src && s.Off == t.Off && s.Size == t.Size {
		return true, nil
	}
	v, err := f.Load()
	if err != nil {
		return false, err
	}
	defer f.done(v)
	w, err := g.Load()
	if err != nil {
		return false, err
	}
	defer g.done(w)
	return slices.EqualFunc(v, w, func(a, b float32) bool { return math.Float32bits(a) == math.Float32bits(b) }), nil
}

// Transpose is the factor with rows and columns exchanged.
func (f Factor) Transpose() Factor {
	return Factor{Rows: f.Cols, Cols: f.Rows, DType: f.DType, fresh: true, load: func() ([]float32, error) {
		v, err := f.Load()
		if err != nil {
			return nil, err
		}
		defer f.done(v)
		return transpose(floats.get(int64(len(v))), v, int(f.Rows), int(f.Cols)), nil
	}}
}

// done gives values of the factor back that Load returned.
func (f Factor) done(v []float32) {
	if f.fresh {
		floats.put(v)
	}
}

// GatherRows is the factor whose row i is row index(i) of f, for i < rows.
func (f Factor) GatherRows(rows int64, index func(int64) int64) Factor {
	return Factor{Rows: rows, Cols: f.Cols, DType: f.DType, fresh: true, load: func() ([]float32, error) {
		v, err := f.Load()
		if err != nil {
			return nil, err
		}
		defer f.done(v)
		out := floats.get(rows * f.Cols)
		for i := range rows {
			copy(out[i*f.Cols:(i+1)*f.Cols], v[index(i)*f.Cols:])
		}
		return out, nil
	}}
}

// SliceRows is rows [first, first+n) of f.
func (f Factor) SliceRows(first, n int64) Factor {
	return f.GatherRows(n, func(i int64) int64 { return first + i })
}

// Map is the factor with every value replaced by g of it.
func (f Factor) Map(g func(float32) float32) Factor {
	return f.changed(func(v []float32) {
		for i, x := range v {
			v[i] = g(x)
		}
	})
}

// changed is the factor with its values changed in place.
func (f Factor) changed(change func(v []float32)) Factor {
	return Factor{Rows: f.Rows, Cols: f.Cols, fresh: true, load: func() ([]float32, error) {
		v, err := f.Load()
		if err != nil {
			return nil, err
		}
		if !f.fresh {
			v = slices.Clone(v)
		}
		change(v)
		return v, nil
	}}
}

// Scaled is the factor times x, each product rounded to float32.
func (f Factor) Scaled(x float64) Factor {
	if x == 1 {
		return f
	}
	return f.changed(func(v []float32) {
		for i, y := range v {
			v[i] = float32(float64(y) * x)
		}
	})
}

// Stacked is the factor whose rows are those of all parts, which have the same number of columns.
func Stacked(parts ...Factor) Factor {
	f := Factor{Cols: parts[0].Cols, DType: parts[0].DType, fresh: true}
	for _, p := range parts {
		f.Rows += p.Rows
		if p.DType != f.DType {
			f.DType = tensor.Invalid
		}
	}
	f.load = func() ([]float32, error) {
		v := floats.get(f.Rows * f.Cols)[:0]
		for _, p := range parts {
			x, err := p.Load()
			if err != nil {
				return nil, err
			}
			v = append(v, x...)
			p.done(x)
		}
		return v, nil
	}
	return f
}

// Padded is the factor with rows of zeros added up to a number.
func (f Factor) Padded(rows int64) Factor {
	if rows == f.Rows {
		return f
	}
	zeros := FromFunc(rows-f.Rows, f.Cols, func() ([]float32, error) { return make([]float32, (rows-f.Rows)*f.Cols), nil })
	zeros.DType = f.DType
	return Stacked(f, zeros)
}

// transpose writes the transpose of a matrix to out and returns it: tile by tile, so that reads and writes stay within
// the cache lines at hand, and along the longer side first, for lines that lie a power of two apart push one
// another out.
func transpose[T float32 | float64](out, v []T, rows, cols int) []T {
	const tile = 16
	for i0 := 0; i0 < rows; i0 += tile {
		i1 := min(i0+tile, rows)
		for j0 := 0; j0 < cols; j0 += tile {
			j1 := min(j0+tile, cols)
			if rows <= cols {
				for i := i0; i < i1; i++ {
					at := j0*rows + i
					for _, x := range v[i*cols+j0 : i*cols+j1] {
						out[at] = x
						at += rows
					}
				}
				continue
			}
			for j := j0; j < j1; j++ {
				line, at := out[j*rows+i0:j*rows+i1], i0*cols+j
				for k := range line {
					line[k] = v[at]
					at += cols
				}
			}
		}
	}
	return out
}
