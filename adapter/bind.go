package adapter

import (
	"fmt"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// A Frame is the matrix a stored tensor is processed as: Rows rows of Cols contiguous elements.
type Frame struct{ Rows, Cols int64 }

// FrameOf chooses the frame of a stored tensor: a vector is one row, a convolution's kernel belongs to its
// row, and every other tensor has its last dimension as columns (so a stack of experts is one tall matrix).
func FrameOf(s tensor.Shape, layer Layer) (Frame, error) {
	n, err := s.Elements()
	if err != nil {
		return Frame{}, err
	}
	switch {
	case len(s) < 2:
		return Frame{1, n}, nil
	case layer == Conv:
		rows, cols, err := s.Matrix()
		return Frame{rows, cols}, err
	}
	cols := s[len(s)-1]
	if cols == 0 {
		return Frame{}, nil
	}
	return Frame{n / cols, cols}, nil
}

// Rounding reproduces the intermediate roundings of a peer. The zero value rounds nothing: float32
// all the way, one rounding when the result is stored.
type Rounding struct {
	Factors tensor.DType // A and B are rounded to this type first (Invalid: not)
	Delta   tensor.DType // s·B·A is rounded to this type before it is added (Invalid: not)
	DoRA    tensor.DType // so are V, its norms and m/‖V‖ (Invalid: not)
}

// An Op is an Update bound to the matrix a base stores. Ops on one matrix are applied in order.
// After Load, Apply and Exact may be called from several goroutines on disjoint rows.
type Op interface {
	// Load reads the factors; Release forgets them.
	Load() error
	Release()
	// Columns reports whether the op needs Prepare: something that depends on whole columns.
	Columns() bool
	// Prepare hands the op every row of the matrix, with all earlier ops applied, in order. next returns
	// the following rows and the number of the first, or no rows at the end.
	Prepare(next func() (rows []float32, first int64, err error)) error
	// Apply changes whole rows of the matrix in place; first is the number of rows[0]'s row.
	Apply(rows []float32, first int64)
	// Exact does the same in float64, for checks.
	Exact(rows []float64, first int64)
	// LowRank returns the op as s·L·R on a block of the matrix, where it is one. Valid after Load.
	LowRank() (Product, bool)
}

// A Block is the part of a stored matrix that an op changes. Transposed tells that it stores [in, out].
type Block struct {
	RowOff, ColOff int64
	Rows, Cols     int64
	Transposed     bool
}

// A Product is the low-rank update s·L·R of a block: L is [Rows, Rank], R is [Rank, Cols], both row-major. Where
// the block stores [in, out], L is Aᵀ and R is Bᵀ.
type Product struct {
	Block
	Rank  int64
	L, R  []float32
	Scale float32
}

// Bind turns an update into an op on the stored tensor that p names. frame is the tensor's frame. The
// update's Scale holds for every kind: a replacement goes that share of the way from W to its value.
// The error for factors that do not fit is a finding with both shapes.
func Bind(u *Update, p naming.Place, stored tensor.Spec, frame Frame, round Rounding) (Op, error) {
	b := binding{u: u, p: p, stored: stored, frame: frame, round: round}
	switch u.Kind {
	case LowRank:
		return b.lowRank()
	case DoRA:
		return b.dora()
	case Replace:
		return b.replace()
	case Rows:
		return b.rows()
	case Bias:
		return b.bias()
	case VeRA:
		return b.vera()
	case HiRA:
		return b.hira()
	case GLoRA:
		return b.glora()
	case IA3:
		return b.ia3()
	case OFT, HRA:
		return b.turned()
	case LoHa, LoKr, Full:
		op, at, err := b.difference()
		if err != nil || !u.Magnitude.Present() {
			return op, err
		}
		return b.decomposed(op, at)
	}
	return nil, finding.Errorf("adapter.unsupported_feature", "", "update kind %q is not known", u.Kind).In(u.Module)
}

type binding struct {
	u      *Update
	p      naming.Place
	stored tensor.Spec
	frame  Frame
	round  Rounding
}

func (b *binding) mismatch(got, want string) error {
	f := finding.Errorf("adapter.shape_mismatch", "", "%s update of module %q does not fit the base's tensor", b.u.Kind, b.u.Module)
	f.Module = b.u.Module
	return f.In(b.stored.Name).Expected(got, want).Hinted("the adapter belongs to another base, or a factor is transposed")
}

// place finds the block for a canonical matrix of n output rows and m input columns.
func (b *binding) place(n, m int64) (area, error) {
	return b.find(n, func(inputs int64) bool { return inputs == m }, fmt.Sprintf("[%d, %d]", n, m))
}

// anyOutputs is the number of outputs of an update that fits any.
const anyOutputs = -1

// search finds the block for a canonical matrix of n output rows and of input columns that fit. ok is
// false where neither orientation fits.
func (b *binding) search(n int64, in func(inputs int64) bool) (at area, ok bool, err error) {
	rows, cols := b.frame.Rows, b.frame.Cols
	at.width = cols
	expert, experts, swapped := b.p.Expert, b.p.Experts, b.p.Transposed
	if b.u.Experts > 0 && b.p.Matrices == 0 { // else the base stores each expert on its own
		expert, experts, swapped = int64(b.u.Expert), int64(b.u.Experts), b.u.Swapped
	}
	if experts > 0 {
		if rows%experts != 0 || expert >= experts || b.stored.Shape[0] != experts {
			return at, false, b.mismatch(fmt.Sprintf("expert %d of %d", expert, experts), fmt.Sprintf("stored %v", b.stored.Shape))
		}
		rows /= experts
		at.rowOff = expert * rows
	}
	part := func(outputs int64) int64 { // the stretch of the output axis that is the module's
		if b.p.Rows > 0 {
			return b.p.Rows
		}
		return outputs
	}
	fits := func(outputs, inputs int64) bool {
		part := part(outputs)
		if b.p.RowOffset+part > outputs || !in(inputs) {
			return false
		}
		if b.p.Run > 0 {
			return part == 0 || n < 0 || b.p.Canonical(part-1, part) < n
		}
		return part == n || n < 0
	}
	straight, turned := fits(rows, cols), fits(cols, rows)
	if straight && turned && b.u.Unsure != "" {
		return at, false, finding.Errorf("adapter.ambiguous_orientation", "", "the matrix of module %q is square, and %s", b.u.Module, b.u.Unsure).In(b.stored.Name)
	}
	switch {
	case swapped && turned, !swapped && straight:
		at.transposed = swapped
	case b.p.ByShape && b.u.Layer != Embedding && (straight || turned):
		at.transposed = turned
	default:
		return at, false, nil
	}
	at.rows, at.cols = part(rows), cols
	if at.transposed {
		at.rows, at.cols = rows, part(cols)
		at.colOff += b.p.RowOffset
	} else {
		at.rowOff += b.p.RowOffset
	}
	return at, true, nil
}

// outputs brings a factor whose rows are output channels into stored order, where it is another one.
func (b *binding) outputs(f Factor) (Factor, error) {
	if b.p.Heads == 0 && b.p.Run == 0 {
		return f, nil
	}
	rows := f.Rows
	if b.p.Rows > 0 {
		rows = b.p.Rows
	}
	if h := b.p.Heads; h > 0 && rows%(2*h) != 0 {
		return f, b.mismatch(fmt.Sprintf("%d rows", rows), fmt.Sprintf("a multiple of 2 × %d heads", h))
	}
	return f.GatherRows(rows, func(i int64) int64 { return b.p.Canonical(i, rows) }), nil
}

// product lays the factors of a low-rank update out in the stored frame.
func (b *binding) product() (*product, error) {
	u := b.u
	a, bb := u.A, u.B
	if a.Rows != bb.Cols {
		f := finding.Errorf("adapter.rank_mismatch", "", "factors of module %q have different ranks", u.Module)
		return nil, f.Expected(fmt.Sprintf("A [%d, %d], B [%d, %d]", a.Rows, a.Cols, bb.Rows, bb.Cols), "A [r, in], B [out, r]")
	}
	if t := b.round.Factors; t != tensor.Invalid {
		a, bb = a.Map(rounder(t)), bb.Map(rounder(t))
	}
	out, in := bb, a // canonical weight = out · in
	if u.Layer == Embedding {
		out, in = a.Transpose(), bb.Transpose()
	}
	at, err := b.place(out.Rows, in.Cols)
	if err != nil {
		return nil, err
	}
	if out, err = b.outputs(out); err != nil {
		return nil, err
	}
	l, r := out, in
	if at.transposed {
		l, r = in.Transpose(), out.Transpose()
	}
	p := &product{left: l, right: r, area: at, delta: b.round.Delta}
	p.Product = Product{Block: at.Area(), Rank: l.Cols, Scale: float32(u.Scale.Value)}
	return p, nil
}

func (b *binding) lowRank() (Op, error) { return b.product() }

// vera binds a product whose A is cut to the base's inputs.
func (b *binding) vera() (Op, error) {
	u := *b.u
	at, err := b.find(u.B.Rows, func(inputs int64) bool { return inputs <= u.A.Cols }, fmt.Sprintf("[%d, at most %d]", u.B.Rows, u.A.Cols))
	if err != nil {
		return nil, err
	}
	_, inputs := at.sides()
	u.A = u.A.Transpose().SliceRows(0, inputs).Transpose()
	inner := *b
	inner.u = &u
	return inner.product()
}

// dora binds DoRA over a low-rank update.
func (b *binding) dora() (Op, error) {
	u := *b.u
	if s := u.Scale.strength(); s != 0 {
		u.Scale.Value /= s // the user's factor is the share of the whole change
	}
	inner := *b
	inner.u = &u
	p, err := inner.product()
	if err != nil {
		return nil, err
	}
	return b.decomposed(p, p.area)
}

func (b *binding) replace() (Op, error) {
	v := b.u.Value
	if b.frame.Rows == 1 && len(b.stored.Shape) < 2 {
		return b.vector(true)
	}
	if b.p.Matrices > 0 && v.Rows%b.p.Matrices == 0 { // the value is a stack that the base stores apart
		n := v.Rows / b.p.Matrices
		v = v.SliceRows(b.p.Matrix*n, n)
	}
	at, err := b.place(v.Rows, v.Cols)
	if err != nil {
		f := finding.Of(err)
		if b.u.Layer == Embedding || b.u.Layer == Linear {
			if v.Cols == b.frame.Cols && v.Rows != b.frame.Rows {
				f.Code = "adapter.vocab_mismatch"
				f.Message = fmt.Sprintf("replacement of %q has another number of rows than the base", b.u.Target)
				f.Hint = "resize the base's embedding and tokenizer first"
			}
		}
		return nil, f
	}
	if v, err = b.outputs(v); err != nil {
		return nil, err
	}
	if at.transposed {
		v = v.Transpose()
	}
	return &replace{area: at, value: v, scale: float32(b.u.Scale.Value)}, nil
}

func (b *binding) rows() (Op, error) {
	v := b.u.Value
	if int64(len(b.u.Index)) != v.Rows {
		return nil, b.mismatch(fmt.Sprintf("%d rows for %d indices", v.Rows, len(b.u.Index)), "one row an index")
	}
	transposed := b.p.Transposed
	n, m := b.frame.Rows, b.frame.Cols
	if transposed {
		n, m = m, n
	}
	if v.Cols != m {
		return nil, b.mismatch(fmt.Sprintf("rows of %d", v.Cols), fmt.Sprintf("rows of %d", m))
	}
	at := make(map[int64]int64, len(b.u.Index))
	for i, id := range b.u.Index {
		if id < 0 || id >= n {
			return nil, b.mismatch(fmt.Sprintf("row %d", id), fmt.Sprintf("rows 0 to %d", n-1))
		}
		if _, dup := at[id]; dup {
			return nil, b.mismatch(fmt.Sprintf("row %d twice", id), "each row once")
		}
		at[id] = int64(i)
	}
	return &someRows{value: v, index: b.u.Index, at: at, cols: b.frame.Cols, transposed: transposed, scale: float32(b.u.Scale.Value)}, nil
}

func (b *binding) bias() (Op, error) { return b.vector(false) }

// vector binds a change of a one-dimensional parameter.
func (b *binding) vector(replace bool) (Op, error) {
	v := b.u.Value
	n, stored := v.Rows*v.Cols, b.frame.Rows*b.frame.Cols
	part := stored
	if b.p.Rows > 0 {
		part = b.p.Rows
	}
	fits := n == part
	if b.p.Run > 0 && part > 0 {
		fits = b.p.Canonical(part-1, part) < n
	}
	if !fits || b.p.RowOffset+part > stored {
		return nil, b.mismatch(fmt.Sprintf("[%d]", n), fmt.Sprintf("stored %v", b.stored.Shape))
	}
	v.Rows, v.Cols = n, 1
	v, err := b.outputs(v)
	if err != nil {
		return nil, err
	}
	return &vector{value: v, off: b.p.RowOffset, scale: float32(b.u.Scale.Value), replace: replace, cols: b.frame.Cols}, nil
}
