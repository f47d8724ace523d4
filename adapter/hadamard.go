package adapter

// hadamard is W[block] += s·(L1·R1)∘(L2·R2), or, without a second product, W[block] += s·W∘(L1·R1).
type hadamard struct {
	rowLocal
	area
	one, two *product // scale 1; two may be nil
	scale    float64
}

// factors is the product B·A with the scale 1, laid out as the block.
func (b *binding) factors(a, bb Factor) (*product, error) {
	u := *b.u
	u.A, u.B, u.Scale = a, bb, Scale{Value: 1}
	inner := *b
	inner.u, inner.round = &u, Rounding{Factors: b.round.Factors}
	return inner.product()
}

func (b *binding) loha() (*hadamard, error) {
	one, err := b.factors(b.u.A, b.u.B)
	if err != nil {
		return nil, err
	}
	two, err := b.factors(b.u.A2, b.u.B2)
	if err != nil {
		return nil, err
	}
	return &hadamard{area: one.area, one: one, two: two, scale: b.u.Scale.Value}, nil
}

func (b *binding) hira() (Op, error) {
	one, err := b.factors(b.u.A, b.u.B)
	if err != nil {
		return nil, err
	}
	return &hadamard{area: one.area, one: one, scale: b.u.Scale.Value}, nil
}

func (h *hadamard) Load() error {
	if err := h.one.Load(); err != nil || h.two == nil {
		return err
	}
	return h.two.Load()
}

func (h *hadamard) Release() {
	h.one.Release()
	if h.two != nil {
		h.two.Release()
	}
}

// batch is the number of rows whose products are made at once.
const batch = 16

func (h *hadamard) Apply(rows []float32, first int64) {
	lo, hi := h.overlap(int64(len(rows))/h.width, first)
	if lo >= hi {
		return
	}
	x, y := make([]float32, batch*h.cols), make([]float32, batch*h.cols)
	s := float32(h.scale)
	for ; lo < hi; lo += batch {
		n := min(batch, hi-lo)
		clear(x)
		h.one.packed.Apply(x, int(h.cols), int(lo), int(n))
		if h.two != nil {
			clear(y)
			h.two.packed.Apply(y, int(h.cols), int(lo), int(n))
		}
		for i := range n {
			row := blockRow(h.area, rows, lo+i, first)
			left, right := x[i*h.cols:][:h.cols], row
			if h.two != nil {
				right = y[i*h.cols:][:h.cols]
			}
			for j, l := range left {
				row[j] += float32(s * float32(l*right[j]))
			}
		}
	}
}

func (h *hadamard) Exact(rows []float64, first int64) {
	lo, hi := h.overlap(int64(len(rows))/h.width, first)
	if lo >= hi {
		return
	}
	h.one.widen()
	x, y := make([]float64, h.cols), make([]float64, h.cols)
	if h.two != nil {
		h.two.widen()
	}
	for i := lo; i < hi; i++ {
		row := blockRow(h.area, rows, i, first)
		h.one.sumRow(x, i, 0)
		right := row
		if h.two != nil {
			h.two.sumRow(y, i, 0)
			right = y
		}
		for j, l := range x {
			row[j] += float64(h.scale * float64(l*right[j]))
		}
	}
}
