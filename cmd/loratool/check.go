package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/onnxruntime"
	"github.com/loratool/loratool/quantized"
	"github.com/loratool/loratool/verify"
)

// A checkLevel says how a merge is checked.
type checkLevel struct {
	off, all bool
	modules  int
	device   onnxruntime.Device
	seed     uint64

	low, lost float64 // retention that is warned of, and that is an error
}

// parseCheck reads off, sample, sample:N, N or all.
func parseCheck(s, device string, seed uint64) (checkLevel, error) {
	c := checkLevel{seed: seed, modules: 8}
	var err error
	if c.device, err = onnxruntime.ParseDevice(device); err != nil {
		return c, usagef("--device: %v", err)
	}
	switch s {
	case "off":
		c.off = true
	case "all":
		c.all = true
	case "sample":
	default:
		n, err := strconv.Atoi(strings.TrimPrefix(s, "sample:"))
		if err != nil || n < 0 {
			return c, usagef("%q is not a check: off, sample:N or all", s)
		}
		c.modules = n
	}
	return c, nil
}

// openRuntime opens ONNX Runtime. A library that is missing is a reason, not an error, unless a device
// was asked for by name.
func (t *terminal) openRuntime(ctx context.Context, device onnxruntime.Device) (*onnxruntime.Runtime, string, error) {
	if t.runtime != nil {
		return t.runtime, "", nil
	}
	lib, err := onnxruntime.Locate(t.ortLib)
	var r *onnxruntime.Runtime
	if err == nil {
		prober := onnxruntime.InProcess
		if exe, err := os.Executable(); err == nil {
			prober = onnxruntime.ChildProber(exe)
		}
		r, err = onnxruntime.Open(ctx, lib, onnxruntime.Options{Device: device, Threads: t.jobs, Prober: prober})
	}
	if err == nil {
		t.runtime = r
		return r, "", nil
	}
	if device != onnxruntime.Auto || t.ortLib != "" {
		return nil, "", err
	}
	reason := err.Error()
	if f := finding.Of(err); f != nil && f.Hint != "" {
		reason += " (" + f.Hint + ")"
	}
	return nil, reason, nil
}

// demandRuntime fails where a device or a library was asked for that cannot be used, before anything is written.
func (t *terminal) demandRuntime(ctx context.Context, level checkLevel) error {
	if level.off || level.device == onnxruntime.Auto && t.ortLib == "" {
		return nil
	}
	_, _, err := t.openRuntime(ctx, level.device)
	return err
}

// checkMerge verifies a written output against the plan it was made by; nil when checks are off. With
// anyRetention, an adapter that rounding has eaten is the caller's business.
func (t *terminal) checkMerge(ctx context.Context, plan *merge.Plan, path string, level checkLevel, anyRetention bool) (*verify.Report, error) {
	if level.off {
		return nil, nil
	}
	opened, err := t.openMerged(path)
	if err != nil {
		return nil, err
	}
	defer opened.Close()
	var merged merge.Base = opened
	if g, ok := opened.(*formats.PackedGraph); ok {
		merged = quantized.Named(g, plan.Has)
	}
	rt, reason, err := t.openRuntime(ctx, level.device)
	if err != nil {
		return nil, err
	}
	add, done := t.bar("checking", "tensors", int64(len(plan.Tensors)))
	defer done()
	return verify.Merge(ctx, plan, merged, verify.MergeOptions{
		All: level.all, Modules: level.modules, Seed: level.seed, Jobs: t.jobs, Runtime: rt, NoRuntime: reason, Progress: add, AnyRetention: anyRetention,
		Low: level.low, Lost: level.lost,
	})
}

// openMerged opens a merged model, with what a scheme has quantized in it.
func (t *terminal) openMerged(path string) (formats.Model, error) {
	m, err := formats.OpenWith(path, t.formats)
	if err != nil {
		return nil, err
	}
	if m, err = formats.Decode(m); err != nil {
		return nil, err
	}
	if d, ok := m.(*formats.Decoded); ok {
		return d.Packed(), nil
	}
	return m, nil
}

// printCheck says what was checked, by whom, and what was not.
func printCheck(out io.Writer, r *verify.Report) {
	passed, rows, elements, rounded := 0, int64(0), int64(0), int64(0)
	worst := 0.0
	for _, m := range r.Modules {
		if m.Pass {
			passed++
		}
		rows += m.Exact.Rows
		elements += m.Exact.Elements
		rounded += m.Exact.Rounded
		if m.Runtime != nil {
			worst = max(worst, m.Runtime.RelError)
		}
	}
	fmt.Fprintf(out, "exact check: %d of %d modules pass (%d rows", passed, len(r.Modules), rows)
	if rounded > 0 {
		fmt.Fprintf(out, ", %.4f %% of %d elements are one rounding of W + ΔW", 100*float64(rounded)/float64(elements), elements)
	}
	fmt.Fprintln(out, ")")
	if u := r.Unchanged; u != nil && u.Tensors > 0 {
		how := "sampled"
		if u.Whole {
			how = "whole"
		}
		fmt.Fprintf(out, "untouched:   %d tensors compared with the base, %s (%s)\n", u.Tensors, how, formatSize(u.Bytes))
	}
	switch u := r.Runtime; {
	case u == nil:
	case u.Reason != "":
		fmt.Fprintf(out, "runtime:     not checked by ONNX Runtime: %s\n", finding.Escape(u.Reason))
	default:
		fmt.Fprintf(out, "runtime:     ONNX Runtime %s on %s: %d of %d modules, largest relative error %.1e\n", u.Version, u.Provider, u.Modules, u.Of, worst)
	}
	printWhole(out, r.WholeModel)
	if r.Retention != nil {
		fmt.Fprintf(out, "retention:   min %.4f (%s), median %.4f\n", r.Retention.Min, finding.Escape(r.Retention.Worst), r.Retention.Median)
	}
	fmt.Fprintf(out, "verdict:     %s\n", r.Verdict)
}

func plainTable() table.Style {
	s := table.StyleLight
	s.Options = table.OptionsNoBordersAndSeparators
	s.Format.Header = text.FormatDefault
	return s
}
