package adapter

import (
	"fmt"
	"math"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// A Turn says how the blocks of an OFT update act. Along its axis a vector v, seen as a row, becomes
// v·R₁·R₂·…, one R a stage: block diagonal in an order of the axis of its own.
type Turn struct {
	Block int64
	// Stages are the orders: position i of stage s is axis index Stages[s][i]. A nil order is the axis's own.
	// Value holds the blocks of all stages, one below the other.
	Stages [][]int64
	// Raw, where it is known, is the tensor that the blocks are computed from, of shape Shape: blocks [n, b, b]
	// or [stages, n, b, b] whose skew parts turn, or with Packed upper triangles [n, b·(b−1)/2].
	Raw    Factor
	Shape  tensor.Shape
	Packed bool
	// Bound limits the common norm of the skew parts of all blocks, where it is positive: as the file gives it.
	Bound float64
	// Scaled: the packed values are divided by 2·√(b−1), as OneTrainer's scaled OFT is.
	Scaled bool
}

// Computed is the turn with blocks that come from no tensor.
func (t Turn) Computed() *Turn {
	t.Raw, t.Shape, t.Bound = Factor{}, nil, 0
	return &t
}

// turned is W[block] += t·(m∘(W·M) − W), where M acts along stored rows, or W[block] += t·(m∘(Mᵀ·W) − W)
// where it acts along stored columns. m, which may be absent, has a factor for each output.
type turned struct {
	area
	along     bool    // M acts along stored rows
	toAxis    []int64 // canonical index of each stored one along the axis, nil: the same
	outputs   []int64 // canonical output of each stored one, nil: the same
	value     Factor
	turn      *Turn // nil: Householder reflections
	magnitude Factor
	strength  float64

	m      []float64
	blocks []float64
	axes   [][]float64 // unit vectors of the reflections
	whole  []float64   // across only: the block after the change
}

func (b *binding) turned() (Op, error) {
	u := b.u
	if !u.Input && b.p.Run > 0 { // rows that the base stores apart or in another order: whole blocks can follow
		if part, ok := u.GatherOutputs(b.p.Rows, func(i int64) int64 { return b.p.Canonical(i, b.p.Rows) }); ok {
			there := *b
			there.u, there.p.Run, there.p.First, there.p.Step = &part, 0, 0, 0
			return there.turned()
		}
	}
	t := &turned{value: u.Value, turn: u.Turn, magnitude: u.Magnitude, strength: u.Scale.Value}
	n := u.Value.Rows
	fits, what := func(axis int64) bool { return axis == n }, fmt.Sprintf("%d", n)
	if u.Kind == OFT {
		if u.Turn == nil || u.Turn.Block <= 0 || u.Value.Cols != u.Turn.Block || len(u.Turn.Stages) == 0 || n%int64(len(u.Turn.Stages)) != 0 {
			return nil, b.mismatch(fmt.Sprintf("rotations [%d, %d]", n, u.Value.Cols), "square blocks, the same number for each stage")
		}
		n /= int64(len(u.Turn.Stages))
		fits = func(axis int64) bool {
			return n > 0 && n%u.Turn.Block == 0 && (axis == n || n == u.Turn.Block && axis%n == 0)
		}
		what = fmt.Sprintf("%d blocks of %d", n/u.Turn.Block, u.Turn.Block)
	} else {
		t.turn = nil
	}
	var err error
	if u.Input {
		t.area, err = b.find(anyOutputs, fits, what+" inputs")
	} else {
		t.area, err = b.rotatedOutputs(fits, what+" outputs")
	}
	if err != nil {
		return nil, err
	}
	outputs, inputs := t.sides()
	t.along = u.Input != t.transposed
	if t.outputs, err = b.order(outputs); err != nil {
		return nil, err
	}
	axis := inputs
	if !u.Input {
		axis, t.toAxis = outputs, t.outputs
	}
	if u.Kind == OFT {
		for _, o := range u.Turn.Stages {
			if o != nil && int64(len(o)) != axis {
				return nil, b.mismatch(fmt.Sprintf("a stage over %d channels", len(o)), fmt.Sprintf("%d", axis))
			}
		}
	}
	if m := u.Magnitude; m.Present() {
		have := m.Rows * m.Cols
		if b.p.Run == 0 && have != outputs || b.p.Run > 0 && outputs > 0 && b.p.Canonical(outputs-1, outputs) >= have {
			return nil, b.mismatch(fmt.Sprintf("%d factors of outputs", have), fmt.Sprintf("%d", outputs))
		}
	}
	return t, nil
}

// rotatedOutputs finds the block of an update that mixes outputs: all of the module's must be there.
func (b *binding) rotatedOutputs(fits func(int64) bool, what string) (area, error) {
	n := int64(anyOutputs)
	if b.p.Run > 0 {
		return area{}, finding.Errorf("adapter.unsupported_feature", "", "module %q is turned along outputs that the base stores apart", b.u.Module).In(b.stored.Name)
	}
	at, ok, err := b.search(n, anyInputs)
	if err != nil {
		return at, err
	}
	outputs, inputs := at.sides()
	if ok && !fits(outputs) && b.p.ByShape && b.p.Rows == 0 && fits(inputs) { // stored the other way round
		at.transposed = !at.transposed
		outputs = inputs
	}
	if !ok || !fits(outputs) {
		return at, b.mismatch(what, fmt.Sprintf("stored %v", b.stored.Shape))
	}
	return at, nil
}

func (t *turned) LowRank() (Product, bool) { return Product{}, false }
func (t *turned) Columns() bool            { return !t.along }

func (t *turned) Load() error {
	v, err := load(t.value)
	if err != nil {
		return err
	}
	if t.turn != nil {
		t.blocks = widened(v)
	} else if t.axes, err = units(v, int(t.value.Rows), int(t.value.Cols)); err != nil {
		return err
	}
	if t.magnitude.Present() {
		m, err := load(t.magnitude)
		if err != nil {
			return err
		}
		t.m = widened(m)
	}
	return nil
}

// units are the columns of a matrix, each divided by its length.
func units(v []float32, rows, cols int) ([][]float64, error) {
	out := make([][]float64, cols)
	for k := range cols {
		u, sum := make([]float64, rows), 0.0
		for i := range u {
			u[i] = float64(v[i*cols+k])
			sum += float64(u[i] * u[i])
		}
		if sum == 0 {
			return nil, finding.Errorf("adapter.zero_vector", "", "reflection %d has a vector of zeros, which no plane belongs to", k)
		}
		for i := range u {
			u[i] /= math.Sqrt(sum)
		}
		out[k] = u
	}
	return out, nil
}

func (t *turned) Release() { t.m, t.blocks, t.axes, t.whole = nil, nil, nil, nil }

// move applies M to a vector in the axis's canonical order. Both scratch vectors have its length.
func (t *turned) move(v, x, y []float64) {
	for _, u := range t.axes {
		dot := 0.0
		for i, a := range u {
			dot += float64(a * v[i])
		}
		for i, a := range u {
			v[i] -= float64(float64(2*dot) * a)
		}
	}
	if t.turn == nil {
		return
	}
	b := t.turn.Block
	stage := int64(len(t.blocks)) / int64(len(t.turn.Stages))
	for s, order := range t.turn.Stages {
		blocks := t.blocks[int64(s)*stage:][:stage]
		copy(x, v)
		for i, o := range order {
			x[i] = v[o]
		}
		for at := int64(0); at < int64(len(v)); at += b {
			r := blocks[at*b%stage:][:b*b]
			part := y[at:][:b]
			clear(part)
			for i, w := range x[at:][:b] {
				for j, c := range r[int64(i)*b:][:b] {
					part[j] += float64(w * c)
				}
			}
		}
		if order == nil {
			copy(v, y)
		}
		for i, o := range order {
			v[o] = y[i]
		}
	}
}

// change turns one vector along the axis, which holds stored values, in place.
func (t *turned) change(v []float64, s *scratch) {
	w := s.w[:len(v)]
	if t.toAxis == nil {
		copy(w, v)
	}
	for i, c := range t.toAxis {
		w[c] = v[i]
	}
	t.move(w, s.x, s.y)
	if t.toAxis == nil {
		copy(v, w)
	}
	for i, c := range t.toAxis {
		v[i] = w[c]
	}
}

// A scratch has room for vectors along the axis.
type scratch struct{ v, w, x, y []float64 }

func newScratch(n int64) *scratch {
	return &scratch{make([]float64, n), make([]float64, n), make([]float64, n), make([]float64, n)}
}

// output is the factor of the output at row i and column j of the block.
func (t *turned) output(i, j int64) float64 {
	if t.m == nil {
		return 1
	}
	if t.transposed {
		i = j
	}
	if t.outputs != nil {
		i = t.outputs[i]
	}
	return t.m[i]
}

// blend goes the share of the way from w to the turned value x that the strength says.
func (t *turned) blend(w, x float64, i, j int64) float64 {
	x *= t.output(i, j)
	if t.strength == 1 {
		return x
	}
	return w + float64(t.strength*(x-w))
}

// Prepare keeps the whole block, turned along its columns.
func (t *turned) Prepare(next func() ([]float32, int64, error)) error {
	if t.along {
		return nil
	}
	t.whole = make([]float64, t.rows*t.cols)
	for {
		rows, first, err := next()
		if err != nil {
			return err
		}
		if len(rows) == 0 {
			break
		}
		lo, hi := t.overlap(int64(len(rows))/t.width, first)
		for i := lo; i < hi; i++ {
			for j, x := range blockRow(t.area, rows, i, first) {
				t.whole[i*t.cols+int64(j)] = float64(x)
			}
		}
	}
	s := newScratch(t.rows)
	for j := range t.cols {
		for i := range s.v {
			s.v[i] = t.whole[int64(i)*t.cols+j]
		}
		t.change(s.v, s)
		for i, x := range s.v {
			at := &t.whole[int64(i)*t.cols+j]
			*at = t.blend(*at, x, int64(i), j)
		}
	}
	return nil
}

func (t *turned) Apply(rows []float32, first int64) { applyTurned(t, rows, first) }
func (t *turned) Exact(rows []float64, first int64) { applyTurned(t, rows, first) }

func applyTurned[T float32 | float64](t *turned, rows []T, first int64) {
	lo, hi := t.overlap(int64(len(rows))/t.width, first)
	if lo >= hi {
		return
	}
	s := newScratch(t.cols)
	for i := lo; i < hi; i++ {
		row := blockRow(t.area, rows, i, first)
		if !t.along {
			for j, x := range t.whole[i*t.cols:][:t.cols] {
				row[j] = T(x)
			}
			continue
		}
		for j, x := range row {
			s.v[j] = float64(x)
		}
		t.change(s.v, s)
		for j, x := range s.v {
			row[j] = T(t.blend(float64(row[j]), x, i, int64(j)))
		}
	}
}
