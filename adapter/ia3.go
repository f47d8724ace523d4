package adapter

import "fmt"

// rescale is W[block] += s·W∘(v − 1), one value v for each stored row, or for each group of columns.
type rescale struct {
	rowLocal
	area
	value Factor
	byRow bool
	group int64 // columns of one value: the taps of a kernel
	scale float64
	v     []float32
}

func (b *binding) ia3() (Op, error) {
	v := b.u.Value
	n := v.Rows * v.Cols
	v.Rows, v.Cols = n, 1
	if len(b.stored.Shape) < 2 {
		return b.rescaledVector()
	}
	r := &rescale{group: 1, scale: b.u.Scale.Value}
	var err error
	if b.u.Input {
		fits := func(inputs int64) bool {
			return n > 0 && (inputs == n || inputs%n == 0 && len(b.stored.Shape) > 2)
		}
		if r.area, err = b.find(anyOutputs, fits, fmt.Sprintf("%d inputs", n)); err != nil {
			return nil, err
		}
		_, inputs := r.sides()
		r.group = inputs / n
	} else {
		if r.area, err = b.find(n, anyInputs, fmt.Sprintf("%d outputs", n)); err != nil {
			return nil, err
		}
		if v, err = b.outputs(v); err != nil {
			return nil, err
		}
	}
	r.value, r.byRow = v, b.u.Input == r.transposed
	return r, nil
}

// rescaledVector binds factors of a bias.
func (b *binding) rescaledVector() (Op, error) {
	op, err := b.vector(false)
	if err != nil {
		return nil, err
	}
	at := area{colOff: b.p.RowOffset, rows: 1, cols: op.(*vector).value.Rows, width: b.frame.Cols}
	return &rescale{area: at, value: op.(*vector).value, group: 1, scale: b.u.Scale.Value}, nil
}

func (r *rescale) Load() (err error) { r.v, err = load(r.value); return err }
func (r *rescale) Release()          { r.v = nil }

func (r *rescale) Apply(rows []float32, first int64) {
	lo, hi := r.overlap(int64(len(rows))/r.width, first)
	for i := lo; i < hi; i++ {
		row := blockRow(r.area, rows, i, first)
		for j := range row {
			row[j] *= float32(r.factor(i, int64(j)))
		}
	}
}

func (r *rescale) Exact(rows []float64, first int64) {
	lo, hi := r.overlap(int64(len(rows))/r.width, first)
	for i := lo; i < hi; i++ {
		row := blockRow(r.area, rows, i, first)
		for j := range row {
			row[j] *= r.factor(i, int64(j))
		}
	}
}

// factor is what the value at row i and column j of the block is multiplied by.
func (r *rescale) factor(i, j int64) float64 {
	if !r.byRow {
		i = j
	}
	v := float64(r.v[i/r.group])
	if r.scale == 1 {
		return v
	}
	return 1 + float64(r.scale*(v-1))
}
