package main

import (
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// bar shows the progress of total bytes on stderr and returns a function that adds to it and one that ends it.
func (t *terminal) bar(label string, total int64) (add func(int64), done func()) {
	show := t.progress == "always" || t.progress == "auto" && isTerminal(t.err) && !t.quiet
	if !show || total <= 0 {
		return func(int64) {}, func() {}
	}
	p := mpb.New(mpb.WithOutput(t.err), mpb.WithWidth(40))
	b := p.AddBar(total,
		mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(decor.Name(label+" "), decor.CountersKibiByte("% .1f / % .1f")),
		mpb.AppendDecorators(decor.AverageSpeed(decor.SizeB1024(0), "% .1f "), decor.AverageETA(decor.ET_STYLE_GO, decor.WC{})),
	)
	return func(n int64) { b.IncrInt64(n) }, func() {
		b.Abort(true)
		p.Wait()
	}
}
