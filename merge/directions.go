package merge

import (
	"fmt"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/lowrank"
)

// Of an update without factors, as many directions are kept as hold a share of its squares, and no more than
// mostDirections.
const (
	directionShare = 0.999
	mostDirections = 64
)

// directions are the inputs that an update reads: the rows of its A.
type directions struct {
	rank   int64 // at most
	part   bool  // others may hold a part of the update, which is then rounded to the nearest
	scaled bool  // and each output is scaled besides
	load   func() ([][]float32, error)
}

// directions are those of an op's update; why says why it has none that matched rounding can keep.
func (o *Output) directions(op int) (d directions, why string) {
	u := o.bound[op]
	if u.Magnitude.Present() {
		s, ok := o.ops[op].(interface{ Stretches() bool })
		codes := o.codes()
		switch {
		case !ok || !s.Stretches():
			return d, "the magnitudes of a DoRA update belong to its inputs"
		case codes == nil || !codes.Stretches(o.area(op).Transposed):
			return d, "a DoRA update scales rows, and the scales of " + o.stored() + " are too coarse for that"
		}
		d.scaled = true
		u.Magnitude = adapter.Factor{}
		if u.Kind == adapter.DoRA {
			u.Kind = adapter.LowRank
		}
	}
	switch u.Kind {
	case adapter.LowRank, adapter.VeRA:
		d.rank = u.A.Rows
		if u.Layer == adapter.Embedding {
			d.rank = u.B.Cols
		}
		d.load = func() ([][]float32, error) { return rightRows(&u, o.area(op)) }
	case adapter.GLoRA:
		d.rank = u.A.Rows + u.A2.Rows
		d.load = func() ([][]float32, error) {
			rows, err := rightRows(&u, o.area(op))
			if err != nil {
				return nil, err
			}
			more, err := rowsOf(u.A2)
			return append(rows, more...), err
		}
	case adapter.LoHa, adapter.LoKr, adapter.Full:
		d.rank = min(mostDirections, o.line()/4)
		f, ok := u.Factored()
		if d.part = !ok || int64(f.Rank) > d.rank; !d.part {
			d.rank = int64(f.Rank)
		}
		d.load = func() ([][]float32, error) {
			low, _, err := lowrank.ToLowRank(&u, lowrank.Limits{Rank: int(d.rank), Energy: directionShare})
			if err != nil {
				return nil, err
			}
			return rightRows(&low, o.area(op))
		}
	default:
		return d, fmt.Sprintf("an update of kind %s has no directions of its own", u.Kind)
	}
	return d, ""
}

// rightRows are the rows of the right factor, of as many inputs as the block has.
func rightRows(u *adapter.Update, at adapter.Block) ([][]float32, error) {
	right := u.A
	if u.Layer == adapter.Embedding {
		right = u.B.Transpose()
	}
	rows, err := rowsOf(right)
	n := at.Cols
	if at.Transposed {
		n = at.Rows
	}
	for i, r := range rows {
		rows[i] = r[:min(n, int64(len(r)))]
	}
	return rows, err
}

// rowsOf reads a factor.
func rowsOf(f adapter.Factor) ([][]float32, error) {
	v, err := f.Load()
	if err != nil {
		return nil, err
	}
	rows := make([][]float32, f.Rows)
	for i := range rows {
		rows[i] = v[int64(i)*f.Cols:][:f.Cols]
	}
	return rows, nil
}
