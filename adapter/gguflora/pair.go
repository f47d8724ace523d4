package gguflora

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// write adds the pair of one base tensor to the file.
func (e *encoder) write(o *output) error {
	n := max(o.experts, 1)
	byExpert := make([][]part, n)
	for _, p := range o.parts {
		if p.expert < 0 || p.expert >= n {
			return e.refuse(p.u, "%q has no expert %d", o.tensor, p.expert)
		}
		byExpert[p.expert] = append(byExpert[p.expert], p)
	}
	var as, bs []adapter.Factor
	for i, parts := range byExpert {
		if len(parts) == 0 {
			return e.refuse(o.parts[0].u, "%q stacks %d experts, but expert %d has no factors", o.tensor, n, i).Hinted(mergeInstead)
		}
		a, b, err := e.factors(o.tensor, parts)
		if err != nil {
			return err
		}
		if i > 0 && (a.Rows != as[0].Rows || a.Cols != as[0].Cols || b.Rows != bs[0].Rows) {
			return e.refuse(parts[0].u, "the experts of %q differ in rank or shape, which one stack cannot hold", o.tensor).Hinted(mergeInstead)
		}
		as, bs = append(as, a), append(bs, b)
	}
	e.add(o.tensor+suffixA, as, o.experts > 0)
	e.add(o.tensor+suffixB, bs, o.experts > 0)
	return nil
}

// factors lays the factors of one matrix out as the file stores them.
func (e *encoder) factors(name string, parts []part) (a, b adapter.Factor, err error) {
	u := parts[0].u
	for _, p := range parts[1:] {
		if p.u != u {
			return a, b, e.refuse(p.u, "llama.cpp stores %q and %q in one tensor, %q, which one pair of factors cannot serve", u.Module, p.u.Module, name)
		}
		if p.place.Transposed != parts[0].place.Transposed {
			return a, b, e.refuse(p.u, "parts of %q are stored in different orientations", name)
		}
	}
	if latent(name) {
		return a, b, e.refuse(u, "llama.cpp multiplies with the heads of %q apart, and applies no factors there", u.Module).Hinted(mergeInstead)
	}
	a, b = u.A, u.B
	if u.Experts > 0 && e.a.Space == naming.HF {
		if a, b, err = e.orient(name, parts[0].place, u); err != nil {
			return a, b, err
		}
	}
	if f := alphaOf(u) / e.alpha; f != 1 {
		b = b.Map(func(x float32) float32 { return float32(float64(x) * f) })
	}
	if u.Layer == adapter.Embedding {
		if name != embedding || parts[0].place.Run > 0 {
			return a, b, e.refuse(u, "llama.cpp applies no factors to the embedding %q", name).Hinted(mergeInstead)
		}
		return a.Transpose(), b, nil
	}
	if b, err = e.rows(name, b, parts); err != nil {
		return a, b, err
	}
	if parts[0].place.Transposed {
		a, b = b.Transpose(), a.Transpose()
	}
	return a, b, nil
}

// rows gathers the rows of B in stored order.
func (e *encoder) rows(name string, b adapter.Factor, parts []part) (adapter.Factor, error) {
	u := parts[0].u
	slices.SortStableFunc(parts, func(x, y part) int { return cmp.Compare(x.place.RowOffset, y.place.RowOffset) })
	var order []int64
	same := true
	for _, p := range parts {
		n := p.place.Rows
		if n == 0 {
			n = b.Rows
		}
		if p.place.RowOffset != int64(len(order)) {
			return b, e.refuse(u, "%q holds only a part of %q, which a pair of factors cannot say", u.Module, name).Hinted(mergeInstead)
		}
		if n > b.Rows || p.place.Heads > 0 && n%(2*p.place.Heads) != 0 {
			return b, e.misfit(u, b, fmt.Sprintf("%d rows in %d heads", n, p.place.Heads))
		}
		for i := range n {
			c := p.place.Canonical(i, n)
			if c < 0 || c >= b.Rows {
				return b, e.misfit(u, b, fmt.Sprintf("more than %d rows", c))
			}
			same = same && c == int64(len(order))
			order = append(order, c)
		}
	}
	if same && int64(len(order)) == b.Rows {
		return b, nil
	}
	return b.GatherRows(int64(len(order)), func(i int64) int64 { return order[i] }), nil
}

func (e *encoder) misfit(u *adapter.Update, b adapter.Factor, want string) error {
	f := e.refuse(u, "factor B of %q does not fit the base's configuration", u.Module)
	f.Code = "adapter.shape_mismatch"
	return f.Expected(fmt.Sprintf("[%d, %d]", b.Rows, b.Cols), want).Hinted("the adapter belongs to another base")
}

// orient turns the factors of a fused expert round where PEFT laid A over the output: before 0.19.1 it
// took the first dimension for the input, whatever the module computes.
func (e *encoder) orient(name string, p naming.Place, u *adapter.Update) (a, b adapter.Factor, err error) {
	w := e.opt.HP.ExpertWidth
	fits := func(a, b adapter.Factor) bool {
		switch {
		case strings.Contains(name, ".ffn_down"):
			return a.Cols == w
		case p.Rows > 0: // one of two halves
			return b.Rows == 2*w
		}
		return b.Rows == w
	}
	turnedA, turnedB := u.B.Transpose(), u.A.Transpose()
	straight, turned := fits(u.A, u.B), fits(turnedA, turnedB)
	switch {
	case straight && !turned, straight && u.Unsure == "" && !u.Swapped:
		return u.A, u.B, nil
	case turned && !straight:
		return turnedA, turnedB, nil
	case straight:
		return a, b, e.refuse(u, "which factor of the square experts of %q is the input is not known", u.Target)
	}
	return a, b, e.misfit(u, u.B, fmt.Sprintf("experts of width %d", w))
}

// add appends one factor of a pair, a stack of several where stacked.
func (e *encoder) add(name string, parts []adapter.Factor, stacked bool) {
	f := parts[0]
	shape := tensor.Shape{f.Rows, f.Cols}
	if stacked {
		n := int64(len(parts))
		shape = tensor.Shape{n, f.Rows, f.Cols}
		f = adapter.FromFunc(n*f.Rows, f.Cols, func() ([]float32, error) {
			v := make([]float32, 0, n*parts[0].Rows*parts[0].Cols)
			for _, p := range parts {
				x, err := p.Load()
				if err != nil {
					return nil, err
				}
				v = append(v, x...)
			}
			return v, nil
		})
	}
	t := e.opt.DType
	if t.IsBlock() && f.Cols%int64(t.BlockLen()) != 0 {
		t = tensor.F16
	}
	e.file.Weights = append(e.file.Weights, adapter.Weight{Spec: tensor.Spec{Name: name, DType: t, Shape: shape}, Values: f})
}
