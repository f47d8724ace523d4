package merge

import (
	"context"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/loratool/loratool/formats/layout"
)

// A Writer takes the bytes of an output's tensors: items are the tensors of the plan in order, each packed one
// as many items as it has parts.
type Writer interface {
	WriteAt(item int, p []byte, off int64) error
}

// RunOptions say how a plan is carried out. They never change the bytes.
type RunOptions struct {
	Jobs      int         // workers; 0 = two a processor, and two more, to overlap reading and writing
	MaxMemory int64       // upper bound of the slab buffers in bytes; 0 = 128 MiB
	Progress  func(int64) // called with the number of output bytes just written
	// Stored, where not nil, is called for each tensor of the output when all are written, in plan order.
	Stored func(Stored)
}

const (
	defaultMemory = 128 << 20
	maxSlab       = 16 << 20
	minSlab       = 64 << 10
)

// Run reads, updates and writes every tensor of the plan that the layout leaves to it (an item of size 0 is
// already covered by the layout's spans), and returns what it measured of the updated ones, in plan order.
func Run(ctx context.Context, p *Plan, l *layout.Layout, w Writer, opt RunOptions) ([]Stats, error) {
	jobs := opt.Jobs
	if jobs <= 0 {
		jobs = 2*runtime.GOMAXPROCS(0) + 2
	}
	memory := opt.MaxMemory
	if memory <= 0 {
		memory = defaultMemory
	}
	slab := min(maxSlab, max(minSlab, memory/int64(2*jobs)))

	var tensors []*task
	item := 0
	for i := range p.Tensors {
		out := &p.Tensors[i]
		if l.Items[item].Size > 0 {
			ts, err := newTasks(out, item, slab)
			if err != nil {
				return nil, err
			}
			tensors = append(tensors, ts...)
		}
		item += len(out.specs())
	}
	g, ctx := errgroup.WithContext(ctx)
	work := make(chan piece)
	g.Go(func() error {
		defer close(work)
		for _, t := range tensors {
			for s := range t.slabs {
				select {
				case work <- piece{t, s}:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		return nil
	})
	for range jobs {
		g.Go(func() error {
			var b buffers
			for pc := range work {
				if err := ctx.Err(); err != nil {
					return err
				}
				n, err := pc.task.run(pc.slab, &b, w)
				if err != nil {
					return err
				}
				if opt.Progress != nil {
					opt.Progress(n)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var stats []Stats
	for _, t := range tensors {
		if t.rest {
			continue
		}
		if len(t.out.Updates) > 0 {
			stats = append(stats, t.stats())
		}
		if opt.Stored != nil {
			opt.Stored(t.stored())
		}
	}
	return stats, nil
}

// A piece is one slab of one tensor.
type piece struct {
	task *task
	slab int64
}

// buffers belong to one worker and are reused for every slab.
type buffers struct {
	in, out      []byte
	dst          [][]byte
	w0, w1, back []float32

	nearest     []byte // rows as they would have been without matched rounding
	nearestBack []float32
	nearestOf   *task
	nearestAt   int64

	change, kept []float64 // of a row, that calibration weighs
}

func grow[T any](b *[]T, n int64) []T {
	if int64(cap(*b)) < n {
		*b = make([]T, n)
	}
	return (*b)[:n]
}
