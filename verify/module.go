package verify

import (
	"context"
	"fmt"
	"math"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/lowrank"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/onnxruntime"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// updated checks a tensor with ops: exactly on some or all of its rows, and with the runtime.
func (c *mergeCheck) updated(ctx context.Context, w *work) error {
	_, frame := w.out.Ops()
	m := &Module{Module: w.out.Updates[0].Module, Tensor: w.out.Name, Type: w.storedAs(), Pass: true}
	w.module = m
	codec, ok := quant.Of(w.stored.DType)
	if !ok {
		m.Pass, m.Why = false, "its type cannot be decoded"
		c.fail(w, "merge.equivalence", "type %s cannot be decoded", w.stored.DType)
		return nil
	}
	ref, err := w.out.Reference()
	if err != nil {
		return err
	}
	defer ref.Close()
	e := &exact{ref: ref, stored: w.stored, codec: codec, shares: w.shares(), cols: frame.Cols, equalToBase: true, unknownImatrix: c.unknownImatrix(w)}
	e.matches = w.storedAs() == w.baseAs()
	if e.row, err = w.stored.DType.Bytes(frame.Cols); err != nil {
		return err
	}
	e.res.Total, e.res.Errors = frame.Rows, newErrors(e.shares)
	if err := c.exactRows(ctx, w, e, frame); err != nil {
		return err
	}
	m.Exact, m.Retention = e.res, e.retention()
	if terms, ok := ref.Products(); ok {
		for _, s := range lowrank.SingularValues(frame.Rows, frame.Cols, terms, maxSpectrum) {
			m.SingularValues = append(m.SingularValues, float32(s))
		}
	}
	m.RelError, m.Ratio = ratio(e.noise, e.want), ratio(e.delta, e.base)
	w.matched = e.matched
	c.judge(w, e)
	if w.byRuntime {
		return c.byRuntime(ctx, w, ref, frame, e)
	}
	return nil
}

// exactRows runs the exact check over all rows, or over an even spread of them: blocks of rows, where those are
// stored together.
func (c *mergeCheck) exactRows(ctx context.Context, w *work, e *exact, frame adapter.Frame) error {
	block := e.ref.Block()
	want := int64(sampledRows)
	if e.shares && w.out.ByColumn() {
		want *= 8
	}
	if c.opt.All || frame.Rows <= max(want, block) {
		step := max(1, (256<<10)/frame.Cols/block) * block
		for first := int64(0); first < frame.Rows; first += step {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := e.rows(first, min(step, frame.Rows-first)); err != nil {
				return err
			}
		}
		return nil
	}
	shift, samples := c.random(w.out.Name).Float64(), max(2, want/block)
	for i := range samples {
		row := int64((float64(i) + shift) * float64(frame.Rows) / float64(samples))
		row -= row % block
		if err := e.rows(row, min(block, frame.Rows-row)); err != nil {
			return err
		}
	}
	return nil
}

// judge turns the measurements into findings.
func (c *mergeCheck) judge(w *work, e *exact) {
	m := w.module
	bad := func(code, why string) {
		if m.Pass {
			m.Pass, m.Why = false, why
		}
		f := c.fail(w, code, "%s", why)
		f.Module = m.Module
	}
	switch {
	case e.nonFinite:
		bad("numeric.nan_inf", "the stored weight holds NaN or infinity")
		return
	case e.delta == 0:
		f := finding.Warnf("adapter.no_effect", c.merged.Path(), "the adapter changes nothing here").In(m.Tensor)
		f.Module = m.Module
		w.findings = append(w.findings, *f)
		return
	case (e.far() || e.strays()) && e.equalToBase && w.stored.DType == w.out.Source().DType:
		bad("merge.not_merged", "the stored weight is the base's: the adapter is not in it")
		return
	case e.res.Off > 0 && !e.finer && w.stored.DType != tensor.BF16 && m.Retention < c.opt.Low:
		bad("merge.retention_lost", fmt.Sprintf("every stored value is W + ΔW rounded to BF16, although %s could hold more: the merge went through it, which left %.0f %% of the adapter", m.Type, 100*m.Retention))
		return
	case e.res.Off > 0:
		bad("merge.equivalence", fmt.Sprintf("%d of %d checked elements are not W + ΔW rounded once (up to %.2g steps of %s away); %s", e.res.Off, e.res.Elements, e.res.MaxSteps, m.Type, e.explain()))
		return
	case e.far():
		bad("merge.equivalence", fmt.Sprintf("the stored %s weight is %.3g times as far from W + ΔW as rounding makes it; %s", m.Type, math.Sqrt(e.noise/e.ownNoise), e.explain()))
		return
	}
	if e.strays() {
		bad("merge.equivalence", fmt.Sprintf("the stored %s weight holds %.0f %% of the adapter, of which its rounding leaves %.0f %%; %s", m.Type, 100*m.Retention, 100*e.ownDot/e.delta, e.explain()))
		return
	}
	w.rounded = true
	if m.Retention < c.opt.Lost && !c.opt.AnyRetention {
		m.Pass, m.Why = false, fmt.Sprintf("only %.0f %% of the adapter is left", 100*m.Retention)
	}
}

// byRuntime lets ONNX Runtime multiply with base and merged weights, block by block.
func (c *mergeCheck) byRuntime(ctx context.Context, w *work, ref *merge.Reference, frame adapter.Frame, e *exact) error {
	if frame.Rows == 1 && len(w.out.Shape) < 2 {
		return nil // a vector is no product
	}
	place := w.out.Places()[0]
	m := onnxruntime.Module{Name: w.module.Module, Out: int(frame.Rows), In: int(frame.Cols), Transposed: place.Transposed}
	if m.Transposed {
		m.Out, m.In = m.In, m.Out
	}
	m.Terms = terms(ref, frame, m.Transposed)
	source := w.out.Source()
	if w.shares() || w.out.Quantized() {
		m.Noise = ratio(e.noise, e.want) + 0x1p-20
	}
	acc, err := c.checker.Start(m)
	if err != nil {
		return err
	}
	step := max(1, (1<<20)/frame.Cols)
	for first := int64(0); first < frame.Rows; first += step {
		n := min(step, frame.Rows-first)
		b := onnxruntime.Block{First: int(first), Rows: int(n)}
		if b.Base, err = weights(source, first, n, frame.Cols); err != nil {
			return err
		}
		if b.Merged, err = weights(w.stored, first, n, frame.Cols); err != nil {
			return err
		}
		if len(m.Terms) == 0 {
			if _, b.Expected, _, err = ref.Rows(first, n); err != nil {
				return err
			}
		}
		if err := acc.Add(ctx, b); err != nil {
			return err
		}
	}
	r, err := acc.Result()
	if err != nil {
		return err
	}
	c.record(w, r)
	return nil
}

// record adds the runtime's answer to the module's.
func (c *mergeCheck) record(w *work, r onnxruntime.Result) {
	m := w.module
	m.Provider = string(r.Provider)
	m.Runtime = &ByRuntime{
		Provider: string(r.Provider), Retention: r.Retention, RelError: r.RelError, ComputeError: r.ComputeError,
		Residual: r.Residual, Effect: r.Effect, Seed: r.Seed, Pass: r.Pass, Why: r.Why,
	}
	switch r.Verdict {
	case onnxruntime.OK, onnxruntime.NoEffect, onnxruntime.Inconclusive, onnxruntime.Rounded:
		// Lost adapters are judged by the retention over whole rows; these verdicts add nothing to it.
		return
	case onnxruntime.Scaled:
		// The error of matched rows goes with the update's coefficients. It has no part in the update's own
		// directions, but what a few random inputs see of it does not average out over the outputs, and so
		// the factor is known from the whole rows only.
		if w.rounded && w.matched && math.Abs(m.Retention-1) <= 0.05 && math.Abs(r.Retention-1) <= 0.5 {
			return
		}
	case onnxruntime.Unchanged, onnxruntime.NotMerged:
		if w.rounded && m.Retention < c.opt.Lost {
			return // as rightly rounded as it is lost
		}
	}
	if !m.Pass {
		return // the exact check has said so already
	}
	m.Pass, m.Why = false, r.Why
	f := c.fail(w, "merge.runtime_check", "ONNX Runtime on %s: %s", r.Provider, r.Why)
	f.Module = m.Module
}

// terms returns the updates as low-rank terms over the whole matrix, or nil when they are not.
func terms(ref *merge.Reference, frame adapter.Frame, transposed bool) []onnxruntime.Term {
	products, ok := ref.Products()
	if !ok {
		return nil
	}
	var ts []onnxruntime.Term
	for _, p := range products {
		if p.Rows != frame.Rows || p.Cols != frame.Cols {
			return nil
		}
		t := onnxruntime.Term{Rank: int(p.Rank), Scale: p.Scale, A: p.R, B: p.L}
		if transposed { // stored [in, out]: L is Aᵀ and R is Bᵀ
			t.A, t.B = turned(p.L, p.Rows, p.Rank), turned(p.R, p.Rank, p.Cols)
		}
		ts = append(ts, t)
	}
	return ts
}

func turned(v []float32, rows, cols int64) []float32 {
	out := make([]float32, len(v))
	for i := range rows {
		for j := range cols {
			out[j*rows+i] = v[i*cols+j]
		}
	}
	return out
}

// weights reads n rows in the form the checker takes.
func weights(t tensor.Tensor, first, n, cols int64) (onnxruntime.Weights, error) {
	row, err := t.DType.Bytes(cols)
	if err != nil {
		return onnxruntime.Weights{}, err
	}
	raw := make([]byte, n*row)
	if _, err := t.ReadAt(raw, first*row); err != nil {
		return onnxruntime.Weights{}, err
	}
	switch t.DType {
	case tensor.F32, tensor.F16, tensor.BF16:
		return onnxruntime.Weights{DType: t.DType, Raw: raw}, nil
	}
	codec, _ := quant.Of(t.DType)
	v := make([]float32, n*cols)
	codec.Decode(v, raw)
	return onnxruntime.Weights{DType: t.DType, Values: v}, nil
}
