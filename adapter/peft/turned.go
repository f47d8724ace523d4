package peft

import (
	"fmt"
	"math"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/rotation"
)

// oft turns inputs by blocks of rotations, from the packed upper triangles of skew matrices.
func (d *decoder) oft(s *site) ([]adapter.Update, error) {
	u := s.begin("weight", adapter.OFT, "OFT turns as a whole")
	name := "oft_R.weight"
	if s.parts[name] == nil {
		name = "oft_embedding_R.weight"
		u.Layer = adapter.Embedding
	}
	if err := d.only(s, name); err != nil {
		return nil, err
	}
	packed, err := d.take(s, &u, name)
	if err != nil {
		return nil, err
	}
	b := int64(math.Round((1 + math.Sqrt(1+8*float64(packed.Cols))) / 2))
	if b*(b-1)/2 != packed.Cols || packed.Rows > math.MaxInt32 {
		return nil, d.errorf("shape_mismatch", s.first, "not packed skew matrices").Expected(s.parts[name].Shape, "[blocks, b·(b−1)/2]")
	}
	terms := int(d.float("num_cayley_neumann_terms", 5))
	if terms < 1 || terms > 64 {
		return nil, d.errorf("bad_config", s.first, "num_cayley_neumann_terms is %d", terms)
	}
	bound := math.Inf(1)
	if d.on("coft", false) {
		bound = d.float("eps", 6e-5) / math.Sqrt(float64(packed.Rows))
	}
	neumann, embedded := d.on("use_cayley_neumann", true), u.Layer == adapter.Embedding
	u.Input, u.Turn = true, &adapter.Turn{Block: b, Stages: [][]int64{nil}}
	u.Value = blocks(packed, packed.Rows, int(b), func(v []float64) ([]float64, error) {
		q := rotation.Packed(v, int(b))
		if norm := rotation.Norm(q); norm > bound {
			scale(q, bound/norm)
		}
		var r []float64
		if neumann {
			r = rotation.Neumann(q, int(b), terms)
		} else {
			scale(q, -1) // PEFT's two modes turn in opposite directions
			var err error
			if r, err = rotation.Cayley(q, int(b)); err != nil {
				return nil, err
			}
		}
		if embedded {
			return r, nil
		}
		return rotation.Transpose(r, int(b)), nil
	})
	return []adapter.Update{u}, nil
}

// boft turns inputs in stages of blocks and scales outputs.
func (d *decoder) boft(s *site) ([]adapter.Update, error) {
	u := s.begin("weight", adapter.OFT, "BOFT turns as a whole")
	if err := d.only(s, "boft_R", "boft_s"); err != nil {
		return nil, err
	}
	raw, err := d.take(s, &u, "boft_R")
	if err != nil {
		return nil, err
	}
	shape := s.parts["boft_R"].Shape
	if len(shape) != 4 || shape[2] != shape[3] {
		return nil, d.errorf("shape_mismatch", s.first, "not blocks of rotations").Expected(shape, "[stages, blocks, b, b]")
	}
	stages, b := shape[0], shape[3]
	u.Input, u.Turn = true, &adapter.Turn{Block: b, Stages: make([][]int64, stages)}
	for i := range u.Turn.Stages {
		if stages == 1 {
			break
		}
		chunks := rotation.Chunks(shape[1]*b, b, i)
		if chunks == nil {
			return nil, d.errorf("shape_mismatch", s.first, "stage %d does not divide the blocks into groups", i).Expected(shape, "fewer stages")
		}
		order := make([]int64, len(chunks))
		for k, c := range chunks {
			order[c] = int64(k)
		}
		u.Turn.Stages[i] = order
	}
	u.Value = blocks(raw, stages*shape[1], int(b), func(v []float64) ([]float64, error) {
		k := rotation.Skew(v, int(b))
		scale(k, -0.5) // (R − Rᵀ)/2, and the inverse on the other side
		q, err := rotation.Cayley(k, int(b))
		return rotation.Transpose(q, int(b)), err
	})
	m, err := d.take(s, &u, "boft_s")
	if err != nil {
		return nil, err
	}
	m.Rows, m.Cols = 1, m.Rows*m.Cols
	u.Magnitude = m
	return []adapter.Update{u}, nil
}

// blocks computes n blocks of b × b, each from as many of the raw values as there are for one.
func blocks(raw adapter.Factor, n int64, b int, make func(v []float64) ([]float64, error)) adapter.Factor {
	return adapter.FromFunc(n*int64(b), int64(b), func() ([]float32, error) {
		v, err := raw.Load()
		if err != nil {
			return nil, err
		}
		var out []float32
		size := len(v) / int(n)
		for ; len(v) > 0; v = v[size:] {
			var wide []float64
			for _, x := range v[:size] {
				wide = append(wide, float64(x))
			}
			r, err := make(wide)
			if err != nil {
				return nil, err
			}
			for _, x := range r {
				out = append(out, float32(x))
			}
		}
		return out, nil
	})
}

func scale(v []float64, f float64) {
	for i := range v {
		v[i] *= f
	}
}

// hra reflects inputs at planes, which apply_GS makes orthogonal first.
func (d *decoder) hra(s *site) ([]adapter.Update, error) {
	u := s.begin("weight", adapter.HRA, "HRA reflects as a whole")
	if err := d.only(s, "hra_u"); err != nil {
		return nil, err
	}
	v, err := d.take(s, &u, "hra_u")
	if err != nil {
		return nil, err
	}
	if len(s.parts["hra_u"].Shape) != 2 {
		return nil, d.errorf("shape_mismatch", s.first, "not a matrix").Expected(s.parts["hra_u"].Shape, fmt.Sprintf("[in, %d]", v.Cols))
	}
	u.Input, u.Rank, u.Value = true, int(v.Cols), v
	if d.on("apply_GS", false) {
		u.Value = orthogonal(v)
	}
	return []adapter.Update{u}, nil
}

// orthogonal is the factor with its columns made orthonormal, in order.
func orthogonal(f adapter.Factor) adapter.Factor {
	return adapter.FromFunc(f.Rows, f.Cols, func() ([]float32, error) {
		v, err := f.Load()
		if err != nil {
			return nil, err
		}
		m := make([]float64, len(v))
		for i, x := range v {
			m[i] = float64(x)
		}
		column := func(a, b int64) (dot float64) {
			for i := range f.Rows {
				dot += float64(m[i*f.Cols+a] * m[i*f.Cols+b])
			}
			return dot
		}
		for k := range f.Cols {
			for range 2 { // once more against what the first pass left
				for p := range k {
					dot := column(k, p)
					for i := range f.Rows {
						m[i*f.Cols+k] -= float64(dot * m[i*f.Cols+p])
					}
				}
			}
			if norm := math.Sqrt(column(k, k)); norm > 0 {
				for i := range f.Rows {
					m[i*f.Cols+k] /= norm
				}
			}
		}
		out := make([]float32, len(m))
		for i, x := range m {
			out[i] = float32(x)
		}
		return out, nil
	})
}
