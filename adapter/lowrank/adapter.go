package lowrank

import (
	"fmt"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
)

// A Loss is what the conversion of one update lost.
type Loss struct {
	adapter.Target
	Kind adapter.Kind // before the conversion
	Rank int          // after it
	Lost float64      // share of the squares of the difference, 0 where nothing is lost
}

func (l Loss) String() string {
	return fmt.Sprintf("%s: %s to rank %d, %.3g %% of the difference lost", l.Target, l.Kind, l.Rank, 100*l.Lost)
}

// Convert turns every update of an adapter that is not low-rank, and with a limit every low-rank one, by
// ToLowRank. The adapter that it returns shares a's file and is closed with it. losses has an entry for each
// update that was changed, in order.
func Convert(a *adapter.Adapter, rank int, energy float64) (low *adapter.Adapter, losses []Loss, err error) {
	out := *a
	out.Updates = make([]adapter.Update, len(a.Updates))
	for i := range a.Updates {
		u := &a.Updates[i]
		v, lost, err := ToLowRank(u, rank, energy)
		if err != nil {
			if f := finding.Of(err); f != nil && f.File == "" {
				f.File = a.Path
			}
			return nil, nil, err
		}
		out.Updates[i] = v
		if v.Kind != u.Kind || v.Rank != u.Rank {
			losses = append(losses, Loss{u.Target, u.Kind, v.Rank, lost})
		}
	}
	return &out, losses, nil
}
