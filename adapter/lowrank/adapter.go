package lowrank

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

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

// Options are the limits of ToLowRank, and how Convert goes about it.
type Options struct {
	Limits
	Jobs     int    // updates worked on at once, each of which may need its whole difference in memory; at least one
	Progress func() // called after each update; may be nil
}

// Convert turns every update of an adapter that is not low-rank, and with a limit every low-rank one, by
// ToLowRank. The adapter that it returns shares a's file and is closed with it. losses has an entry for each
// update that was changed, in order.
func Convert(ctx context.Context, a *adapter.Adapter, opt Options) (low *adapter.Adapter, losses []Loss, err error) {
	out := *a
	out.Updates = make([]adapter.Update, len(a.Updates))
	lost := make([]float64, len(a.Updates))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(1, opt.Jobs))
	for i := range a.Updates {
		g.Go(func() (err error) {
			if err := ctx.Err(); err != nil {
				return err
			}
			out.Updates[i], lost[i], err = ToLowRank(&a.Updates[i], opt.Limits)
			if opt.Progress != nil {
				opt.Progress()
			}
			if f := finding.Of(err); f != nil && f.File == "" {
				f.File = a.Path
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	for i, v := range out.Updates {
		if u := &a.Updates[i]; v.Kind != u.Kind || v.Rank != u.Rank {
			losses = append(losses, Loss{u.Target, u.Kind, v.Rank, lost[i]})
		}
	}
	return &out, losses, nil
}
