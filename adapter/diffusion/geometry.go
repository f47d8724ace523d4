package diffusion

import (
	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/naming"
)

// split brings an update of a module into the modules of diffusers. Of a fused module there is one update a
// part, or for each of the parts listed where the rows are only those; A is shared and B cut. original says
// that the rows are in the order of the original checkpoint, so that swapped halves are put right. It is
// false where the rows do not divide.
func split(u adapter.Update, n naming.DiffusionName, parts []int, original bool) ([]adapter.Update, bool) {
	rows := outputs(&u)
	if n.Part >= 0 {
		u.Module = n.Path()
		if n.Module.Swapped && original {
			if rows%2 != 0 {
				return nil, false
			}
			gather(&u, rows, func(i int64) int64 { return (i + rows/2) % rows })
		}
		return []adapter.Update{u}, true
	}
	of := *n.Module
	if parts != nil {
		of.Parts = of.Parts[:len(parts)]
	}
	var out []adapter.Update
	for p := range of.Parts {
		first, count, ok := of.Slice(p, rows)
		if !ok {
			return nil, false
		}
		v := u
		n.Part = p
		v.Module = n.Path()
		gather(&v, count, func(i int64) int64 { return first + i })
		out = append(out, v)
	}
	return out, true
}

// outputs is the number of output rows that an update covers.
func outputs(u *adapter.Update) int64 {
	switch u.Kind {
	case adapter.LowRank, adapter.DoRA:
		return u.B.Rows
	case adapter.Bias:
		return u.Value.Rows * u.Value.Cols
	}
	if u.Layer == "" { // a vector
		return u.Value.Rows * u.Value.Cols
	}
	return u.Value.Rows
}

// gather takes output rows of an update in another order.
func gather(u *adapter.Update, rows int64, index func(int64) int64) {
	switch {
	case u.Kind == adapter.LowRank || u.Kind == adapter.DoRA:
		u.B = u.B.GatherRows(rows, index)
		if u.Magnitude.Present() {
			u.Magnitude = vector(u.Magnitude, rows, index)
		}
	case u.Kind == adapter.Bias || u.Layer == "":
		u.Value = vector(u.Value, rows, index)
	default:
		u.Value = u.Value.GatherRows(rows, index)
	}
}

// vector gathers elements of a vector, which stays one row.
func vector(f adapter.Factor, n int64, index func(int64) int64) adapter.Factor {
	f.Rows, f.Cols = f.Rows*f.Cols, 1
	f = f.GatherRows(n, index)
	f.Rows, f.Cols = 1, n
	return f
}
