package verify

import (
	"context"
	"math"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/tensor"
)

// A Fit is one module as an adapter would change it.
type Fit struct {
	Module string  `json:"module"`
	Tensor string  `json:"tensor"`
	Ratio  float64 `json:"ratio"` // ‖Δ‖/‖W‖ over the rows that were looked at
}

// Adapter says whether the adapters of a plan fit their base and would do something: the plan's own
// findings, and for every module the size of its update against the weight, from a sample of rows.
// planErr is what NewPlan returned.
func Adapter(ctx context.Context, plan *merge.Plan, planErr error) (*Report, []Fit, error) {
	r := &Report{}
	r.Findings = append(r.Findings, plan.Findings...)
	if planErr != nil {
		if finding.Of(planErr) == nil {
			return nil, nil, planErr
		}
		return r.conclude(), nil, nil
	}
	var fits []Fit
	effective := 0
	for i := range plan.Tensors {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		out := &plan.Tensors[i]
		if len(out.Updates) == 0 {
			continue
		}
		fit, err := measure(out)
		if err != nil {
			if f := finding.Of(err); f != nil {
				r.add(f)
				continue
			}
			return nil, nil, err
		}
		fits = append(fits, fit)
		f := effect(fit.Ratio, tensor.DType(out.SourceType))
		if f != nil {
			f.File, f.Tensor, f.Module = out.Updates[0].Adapter, out.Name, fit.Module
			r.add(f)
		}
		if f == nil || f.Code != "adapter.no_effect" {
			effective++
		}
	}
	if effective == 0 && len(fits) > 0 {
		r.add(finding.Warnf("adapter.no_effect", plan.Pairs[0].Adapter, "no module of the adapter has an effect"))
	}
	if len(plan.Pairs) > 0 {
		r.Findings = append(r.Findings, outliers(plan.Pairs[0].Adapter, fits)...)
	}
	r.Fits = fits
	return r.conclude(), fits, nil
}

// measure looks at an even spread of rows.
func measure(out *merge.Output) (Fit, error) {
	fit := Fit{Module: out.Updates[0].Module, Tensor: out.Name}
	ops, frame := out.Ops()
	if len(ops) == 0 {
		fit.Ratio = 1 // replaced as a whole
		return fit, nil
	}
	ref, err := out.Reference()
	if err != nil {
		return fit, err
	}
	defer ref.Close()
	var delta, base float64
	n := min(frame.Rows, 64)
	for i := range n {
		w, _, want, err := ref.Rows(i*frame.Rows/n, 1)
		if err != nil {
			return fit, err
		}
		for j, x := range want {
			d := x - float64(w[j])
			delta += float64(d * d)
			base += float64(float64(w[j]) * float64(w[j]))
		}
	}
	switch {
	case base > 0:
		fit.Ratio = math.Sqrt(delta / base)
	case delta > 0:
		fit.Ratio = 1
	}
	return fit, nil
}
