package main

import (
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// bar shows on stderr how much of total bytes, or of total other things when unit is not "", is done. It returns
// a function that adds to that and one that removes the bar.
func (t *terminal) bar(label, unit string, total int64) (add func(int64), done func()) {
	show := t.progress == "always" || t.progress == "auto" && isTerminal(t.err) && !t.quiet
	if !show || total <= 0 {
		return func(int64) {}, func() {}
	}
	counter, speed := decor.CountersNoUnit("%d of %d "+unit), decor.Name("")
	if unit == "" {
		counter, speed = decor.CountersKibiByte("% .1f of % .1f"), decor.AverageSpeed(decor.SizeB1024(0), "% .1f ")
	}
	options := []mpb.ContainerOption{mpb.WithOutput(t.err), mpb.WithWidth(100)}
	if t.progress == "always" {
		options = append(options, mpb.WithAutoRefresh()) // also where nobody's cursor can be moved
	}
	p := mpb.New(options...)
	b := p.AddBar(total,
		mpb.BarRemoveOnComplete(), mpb.BarWidth(40),
		mpb.PrependDecorators(decor.Name(label+" "), counter),
		mpb.AppendDecorators(speed, decor.AverageETA(decor.ET_STYLE_GO), decor.Name(" left")),
	)
	return func(n int64) { b.IncrInt64(n) }, func() {
		b.Abort(true)
		p.Wait()
	}
}
