package main

import (
	"context"
	"path/filepath"
	"runtime/debug"

	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/merge"
)

// A writing carries a plan out.
type writing struct {
	t      *terminal
	label  string
	plan   *merge.Plan
	layout *layout.Layout
	output string // of a split output, the first file in the end
	input  string // must not be replaced; "" where that is sure
	force  bool

	bytes  int64
	stats  []merge.Stats
	stored []merge.Stored
}

func (w *writing) run(ctx context.Context) error {
	l := w.layout
	if n := len(l.Files); !l.Dir && n > 1 {
		w.output = filepath.Join(filepath.Dir(w.output), l.Files[n-1].Name)
	}
	if w.input != "" {
		if err := outputIsInput(w.output, []string{w.input}); err != nil {
			return err
		}
	}
	out, err := layout.Create(w.output, l, w.force)
	if err != nil {
		return err
	}
	defer out.Abort()
	for _, f := range l.Files {
		w.bytes += f.Size
	}
	var total int64
	for _, it := range l.Items {
		total += it.Size
	}
	// The heap is a few large buffers: collecting early costs nothing and keeps the peak near what is in use.
	defer debug.SetGCPercent(debug.SetGCPercent(20))
	add, done := w.t.bar(w.label, "", total)
	w.stats, err = merge.Run(ctx, w.plan, l, out, merge.RunOptions{
		Jobs: w.t.jobs, MaxMemory: w.t.maxMemory, Progress: add, Stored: func(s merge.Stored) { w.stored = append(w.stored, s) },
	})
	if err == nil {
		err = out.WriteSpans(ctx)
	}
	done()
	if err != nil {
		return err
	}
	return out.Commit()
}
