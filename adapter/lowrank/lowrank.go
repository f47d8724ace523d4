// Package lowrank turns updates into low-rank ones for dialects that hold nothing else: exactly where the
// difference has factors, else by singular values, with what is lost.
//
// Decompositions are deterministic: the random start of the range finder is fixed, and so is the sign of
// every singular vector.
package lowrank

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// most is the largest rank at which factors are decomposed as factors.
const most = 512

// largest is how many elements a difference may have that is made as a matrix: small factors can stand for
// one of any size. The embeddings of the largest models have 2³¹.
const largest = 1 << 31

// Limits say which singular values are kept: at least one, and of the rest those that every limit allows.
type Limits struct {
	Rank int // at most so many; 0 = any number
	// Energy in (0, 1): the fewest whose squares make up this share of the sum of all squares; 0 = all.
	Energy float64
	// Ratio > 1: those larger than the largest divided by it; 0 = all.
	Ratio float64
}

// Any reports whether there is a limit.
func (l Limits) Any() bool { return l.Rank > 0 || l.counts() }

// counts reports whether the values themselves decide how many are kept.
func (l Limits) counts() bool { return l.Energy > 0 && l.Energy < 1 || l.Ratio > 1 }

// ToLowRank makes a low-rank update of one whose difference does not depend on the base. Without limits,
// factors are written out exactly, and a dense difference is an error, for it needs one. loss is the share of
// the squares that is lost, 0 where the conversion is exact. Updates of form Whole come back as they are. The
// error for updates that depend on the base says so.
func ToLowRank(u *adapter.Update, limits Limits) (v adapter.Update, loss float64, err error) {
	switch u.Form() {
	case adapter.Whole:
		return *u, 0, nil
	case adapter.OnBase:
		f := finding.Errorf("adapter.unsupported_feature", "", "what the %s update of module %q changes depends on the base's weights, so it has no factors", u.Kind, u.Module)
		f.Module = u.Module
		return *u, 0, f.Hinted("merge the adapter into its base, then let extract make an adapter of the difference of the two models")
	case adapter.Dense:
		if !limits.Any() {
			f := finding.Errorf("adapter.needs_rank", "", "the %s update of module %q has no exact low-rank form", u.Kind, u.Module)
			f.Module = u.Module
			return *u, 0, f.Hinted("choose a rank (--rank 64) or the share of the difference to keep (--energy 0.99)")
		}
	}
	v, factored := u.Factored()
	if factored && !limits.counts() && (limits.Rank == 0 || limits.Rank >= v.Rank) && u.Form() == adapter.Exactly {
		if u.Kind != adapter.LowRank {
			v.Scale = told(v.Scale, v.Rank, "written out")
		}
		return v, 0, nil
	}
	s, total, err := decompose(u, v, factored, limits)
	if err != nil {
		return *u, 0, err
	}
	k, kept := s.choose(limits, total)
	v = *u
	v.Kind, v.A2, v.B2, v.Kron, v.Value, v.Rank = adapter.LowRank, adapter.Factor{}, adapter.Factor{}, [2]adapter.Side{}, adapter.Factor{}, k
	if shape := u.KernelShape(); shape != nil {
		v.Kernel, v.Layer = shape, adapter.Conv
	}
	v.A, v.B = s.factors(k)
	if u.Layer == adapter.Embedding && !factored { // whose matrix is [vocab, dim] and the product's transpose
		v.A, v.B = v.B.Transpose(), v.A.Transpose()
	}
	v.Scale = told(u.Scale, k, fmt.Sprintf("rank %d by singular values", k))
	if total > 0 {
		loss = max(0, 1-kept/total)
	}
	return v, loss, nil
}

// told is the same scale of factors of another rank.
func told(s adapter.Scale, rank int, how string) adapter.Scale {
	s.Rank, s.Alpha = rank, s.Value*float64(rank)
	s.Source += ", " + how
	return s
}

// decompose finds as many singular values of an update without its scale as may be needed, and the sum of all
// their squares.
func decompose(u *adapter.Update, v adapter.Update, factored bool, limits Limits) (spectrum, float64, error) {
	if factored && v.Rank <= most {
		a, err := v.A.Load()
		if err != nil {
			return spectrum{}, 0, err
		}
		b, err := v.B.Transpose().Load()
		if err != nil {
			return spectrum{}, 0, err
		}
		if err := finite(u, a, b); err != nil {
			return spectrum{}, 0, err
		}
		s := ofProduct(matrix{v.Rank, int(v.B.Rows), widen(b)}, matrix{v.Rank, int(v.A.Cols), widen(a)})
		total := 0.0
		for _, x := range s.s {
			total += float64(x * x)
		}
		return s, total, nil
	}
	d, err := difference(u)
	if err != nil {
		return spectrum{}, 0, err
	}
	total := d.energy()
	k := cmp.Or(limits.Rank, 32)
	for {
		s := d.leading(k)
		if n, _ := s.choose(limits, total); n <= k || len(s.s) >= min(d.rows, d.cols) {
			return s, total, nil
		}
		k *= 2
	}
}

func finite(u *adapter.Update, parts ...[]float32) error {
	for _, v := range parts {
		for _, x := range v {
			if x-x != 0 {
				f := finding.Errorf("adapter.non_finite", "", "the update of module %q holds %v", u.Module, x)
				f.Module = u.Module
				return f
			}
		}
	}
	return nil
}

// difference is the update's matrix without its scale.
func difference(u *adapter.Update) (dense, error) {
	plain := *u
	plain.Scale = adapter.Scale{Value: 1}
	if u.Layer == adapter.Embedding && u.Kind != adapter.Full {
		plain.Layer = adapter.Linear // B·A as it is, whose transpose changes the embedding
	}
	rows, cols := u.Outputs(), u.Inputs()
	spec := tensor.Spec{Name: u.Target.String(), DType: tensor.F32, Shape: tensor.Shape{rows, cols}}
	if rows < 1 || cols < 1 || rows > largest/cols {
		return dense{}, finding.Errorf("adapter.shape_mismatch", "", "the update of module %q is larger than any matrix", u.Module)
	}
	if u.Kind == adapter.Full { // the matrix itself
		v, err := u.Value.Load()
		if err != nil {
			return dense{}, err
		}
		return dense{int(rows), int(cols), v}, finite(u, v)
	}
	op, err := adapter.Bind(&plain, naming.Place{Tensor: spec.Name}, spec, adapter.Frame{Rows: rows, Cols: cols}, adapter.Rounding{})
	if err != nil {
		return dense{}, err
	}
	if err := op.Load(); err != nil {
		return dense{}, err
	}
	defer op.Release()
	d := dense{rows: int(rows), cols: int(cols), v: make([]float32, rows*cols)}
	row := make([]float64, cols)
	for i := range rows {
		clear(row)
		op.Exact(row, i)
		copy(d.v[i*cols:], narrow(row))
	}
	return d, finite(u, d.v)
}

// Matrix is the matrix [u.Outputs(), u.Inputs()] of an update that does not depend on the base, without its
// scale. The caller may change it.
func Matrix(u *adapter.Update) ([]float32, error) {
	d, err := difference(u)
	if u.Kind == adapter.Full {
		d.v = slices.Clone(d.v)
	}
	return d.v, err
}

// choose is how many values the limits keep, and the sum of their squares.
func (s spectrum) choose(l Limits, total float64) (k int, kept float64) {
	for k < len(s.s) {
		x := s.s[k]
		if k > 0 && (l.Rank > 0 && k >= l.Rank || l.Energy > 0 && l.Energy < 1 && kept >= l.Energy*total || l.Ratio > 1 && x*l.Ratio <= s.s[0] || x == 0) {
			break
		}
		kept += float64(x * x)
		k++
	}
	return k, kept
}

// factors are the first k terms as A [k, in] and B [out, k], with the root of the value on either side.
func (s spectrum) factors(k int) (a, b adapter.Factor) {
	v, u := make([]float32, 0, k*s.v.cols), newMatrix(k, s.u.cols)
	for i := range k {
		root := math.Sqrt(s.s[i])
		for _, x := range s.v.row(i) {
			v = append(v, float32(root*x))
		}
		for j, x := range s.u.row(i) {
			u.row(i)[j] = root * x
		}
	}
	return adapter.FromValues(int64(k), int64(s.v.cols), v), adapter.FromValues(int64(s.u.cols), int64(k), narrow(u.transpose().v))
}
