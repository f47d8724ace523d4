package diffusion

import (
	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/naming"
)

// split brings an update of a module into the modules of diffusers. Of a fused module there is one update a
// part, or for each of the parts listed where the rows are only those; A is shared and B cut. original says
// that the rows are in the order of the original checkpoint, so that swapped halves are put right. Other
// algorithms than LoRA stay whole, under the original checkpoint's name: a part of theirs would be another
// algorithm's update, and a base that is split gets its rows of the whole. It is false where the rows do not
// divide.
func split(u adapter.Update, n naming.DiffusionName, parts []int, original bool) ([]adapter.Update, bool) {
	rows := u.Outputs()
	if n.Part >= 0 && !(n.Module.Swapped && original) {
		u.Module = n.Path()
		return []adapter.Update{u}, true
	}
	whole := u
	whole.Module = n.Component.Folder + "." + n.Module.Original
	switch u.Kind {
	case adapter.LowRank, adapter.DoRA, adapter.Bias, adapter.Replace:
	default:
		return []adapter.Update{whole}, parts == nil
	}
	if n.Part >= 0 {
		v, ok := u.GatherOutputs(rows, halves(rows))
		if !ok || rows%2 != 0 {
			return []adapter.Update{whole}, rows%2 == 0
		}
		v.Module = n.Path()
		return []adapter.Update{v}, true
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
		v, ok := u.GatherOutputs(count, func(i int64) int64 { return first + i })
		if !ok {
			return []adapter.Update{whole}, parts == nil
		}
		n.Part = p
		v.Module = n.Path()
		out = append(out, v)
	}
	return out, true
}

// halves exchanges the two halves of some rows.
func halves(rows int64) func(int64) int64 { return func(i int64) int64 { return (i + rows/2) % rows } }
