package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/onnxruntime"
	"github.com/loratool/loratool/verify"
	"github.com/loratool/loratool/verify/model"
)

// A wholeCheck is what verify --whole-model needs; nil where it is not asked for.
type wholeCheck struct {
	check   *model.Check
	runtime *onnxruntime.Runtime
	closers []func()
}

func (w *wholeCheck) close() {
	if w != nil {
		for _, f := range w.closers {
			f()
		}
	}
}

func (w *wholeCheck) run(ctx context.Context, r *verify.Report) error {
	if w == nil {
		return nil
	}
	return w.check.Run(ctx, w.runtime, r)
}

// readWhole prepares the check of whole models, before the time for any other is spent. Since it was asked for, a
// missing library is an error.
func (t *terminal) readWhole(c *cli.Context, merged string, adapters []string, level checkLevel) (w *wholeCheck, err error) {
	if !c.Bool("whole-model") {
		if c.String("inputs") != "" || len(c.StringSlice("dim")) > 0 {
			return nil, usagef("--inputs and --dim are for --whole-model")
		}
		return nil, nil
	}
	making := model.Making{Seed: level.seed, Dims: map[string]int64{}}
	for _, s := range c.StringSlice("dim") {
		name, size, ok := strings.Cut(s, "=")
		n, err := strconv.ParseInt(size, 10, 32)
		if !ok || name == "" || err != nil || n < 0 {
			return nil, usagef("--dim %q: a size is NAME=N", s)
		}
		making.Dims[name] = n
	}
	if p := c.String("inputs"); p != "" {
		if making.Given, err = model.ReadInputs(p); err != nil {
			return nil, err
		}
	}
	w = &wholeCheck{}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	open := func(path string) (*onnx.Model, error) {
		m, err := formats.OpenWith(path, t.formats)
		if err != nil {
			return nil, err
		}
		o, ok := m.(*onnx.Model)
		if !ok {
			defer m.Close()
			return nil, finding.Errorf("base.unsupported", path, "whole models are run in ONNX only").Expected(m.Format(), "onnx").
				Hinted("without --whole-model the merge is checked layer by layer, in every format")
		}
		w.closers = append(w.closers, func() { o.Close() })
		return o, nil
	}
	base, err := open(c.String("base"))
	if err != nil {
		return nil, err
	}
	after, err := open(merged)
	if err != nil {
		return nil, err
	}
	var reason string
	if w.runtime, reason, err = t.openRuntime(c.Context, level.device); err != nil {
		return nil, err
	}
	if w.runtime == nil {
		return nil, finding.Errorf("runtime.not_found", "", "--whole-model needs ONNX Runtime: %s", reason)
	}
	opt, err := dialectOptions(c)
	if err != nil {
		return nil, err
	}
	inputs, closeAdapters, err := openAdapters(adapters, opt)
	if err != nil {
		return nil, err
	}
	w.closers = append(w.closers, closeAdapters)
	w.check, err = model.New(base, after, inputs, w.runtime.Provider(), making)
	return w, err
}

// printWhole says what running the whole models showed.
func printWhole(out io.Writer, w *verify.WholeModel) {
	if w == nil {
		return
	}
	passed := 0
	for _, o := range w.Outputs {
		if o.Pass {
			passed++
		}
	}
	fmt.Fprintf(out, "whole model: %d of %d outputs agree on %s, %d layers with the adapter, seed %d\n", passed, len(w.Outputs), w.Provider, w.Branches, w.Seed)
	if w.OnCPU > 0 {
		fmt.Fprintf(out, "  %d operators ran on %s, %d others that it lacks on the CPU; no product is among them\n", w.OnDevice, w.Provider, w.OnCPU)
	}
	for _, o := range w.Outputs {
		fmt.Fprintf(out, "  %s: relative error %.1e (at most %.1e), effect of the adapter %.1e", finding.Escape(o.Name), o.RelError, o.Limit, o.Effect)
		if o.Retention != nil {
			fmt.Fprintf(out, ", retention %.4f", *o.Retention)
		}
		if o.Cosine != nil {
			fmt.Fprintf(out, ", cosine %.6f", *o.Cosine)
		}
		if o.Argmax != nil {
			fmt.Fprintf(out, ", same argmax %.1f %%", 100**o.Argmax)
		}
		if o.Why != "" {
			fmt.Fprintf(out, "; %s", finding.Escape(o.Why))
		}
		fmt.Fprintln(out)
	}
}
