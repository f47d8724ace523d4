package onnxruntime

import (
	"fmt"
	"math"
)

// A Verdict is what a check concludes about a module.
type Verdict string

// The verdicts. Only OK is a pass: NoEffect, Inconclusive and Rounded are not wrong merges either, but
// nothing is proven.
const (
	OK           Verdict = "ok"
	NoEffect     Verdict = "no_effect"    // the adapter changes nothing here, and nothing changed
	Inconclusive Verdict = "inconclusive" // rounding noise is too large to tell a merge from none
	Rounded      Verdict = "rounded"      // merged, but rounding to the stored type ate part of the adapter
	Unchanged    Verdict = "unchanged"    // the weight is the base's, bit for bit
	NotMerged    Verdict = "not_merged"   // the adapter's effect is absent
	Scaled       Verdict = "scaled"       // merged with another factor: twice, half, negative
	Foreign      Verdict = "foreign"      // something else was added: transposed, another module's
	Inaccurate   Verdict = "inaccurate"   // the outputs differ by more than rounding
	NonFinite    Verdict = "non_finite"   // NaN or infinity in an output
	Miscomputed  Verdict = "miscomputed"  // the provider's product of the merged weight is wrong
)

// A Result is what the check of a module measured. With X random inputs, W the base's weight, W' the
// merged one and ΔW the adapter's change: Y0 = X·Wᵀ, Y1 = X·W'ᵀ, ΔY = X·ΔWᵀ, Y2 = Y0 + ΔY.
type Result struct {
	Module       string   `json:"module"`
	Provider     Provider `json:"provider"`
	RelError     float64  `json:"rel_error"`     // ‖Y1−Y2‖ / ‖Y2‖
	ErrorLimit   float64  `json:"error_limit"`   // the most RelError may be
	ComputeError float64  `json:"compute_error"` // Y1 against float64 arithmetic on the stored weights, relative
	ComputeLimit float64  `json:"compute_limit"`
	Retention    float64  `json:"retention"` // α = ⟨Y1−Y0, ΔY⟩ / ⟨ΔY, ΔY⟩
	// RetentionSlack is how far α may be from 1: three standard deviations of the rounding noise, and 0.02.
	RetentionSlack float64 `json:"retention_slack"`
	Residual       float64 `json:"residual"` // ‖Y1−Y0−ΔY‖ / ‖ΔY‖
	Effect         float64 `json:"effect"`   // ‖ΔY‖ / ‖Y0‖, or 1 where Y0 is 0
	Rows           int     `json:"rows"`     // of X
	Seed           uint64  `json:"seed"`
	Verdict        Verdict `json:"verdict"`
	Pass           bool    `json:"pass"` // Verdict is OK
	Why            string  `json:"why,omitempty"`
}

// sums are the scalar products over all outputs that a Result is made of.
type sums struct {
	outputs                    int // elements of Y
	y0, y1, y2, d2, dot, error float64
	refDiff, refNorm           float64 // Y1 against the reference, on the sampled outputs
	nonFinite                  string
}

// add takes one output element: base, merged and wanted change.
func (s *sums) add(y0, y1, d float64) {
	e := y1 - y0 - d
	s.outputs++
	s.y0 += y0 * y0
	s.y1 += y1 * y1
	s.y2 += (y0 + d) * (y0 + d)
	s.d2 += d * d
	s.dot += (y1 - y0) * d
	s.error += e * e
	if s.nonFinite == "" && (math.IsNaN(e) || math.IsInf(e, 0)) {
		switch {
		case !finite(y0):
			s.nonFinite = "base"
		case !finite(y1):
			s.nonFinite = "merged"
		default:
			s.nonFinite = "adapter's"
		}
	}
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

// A storage is what a judgement needs to know of the weights behind the sums.
type storage struct {
	typ   string
	noise float64 // the relative rounding error of the merged weights
	floor float64 // their absolute rounding error, however small they are
	inner int     // the length of the scalar products
	same  bool    // every merged weight equals the base's
	// locked: base and merged weights lie on the same grid, so that a change below half a step is lost
	// instead of rounded to one side or the other by chance.
	locked bool
}

// judge turns sums into a Result.
func (s sums) judge(r Result, w storage) Result {
	noise := w.noise
	// X is white, so the size of the output tells that of the weights.
	if rms := math.Sqrt(s.y1 / max(1, float64(s.outputs)*float64(w.inner))); rms > 0 {
		noise = max(noise, w.floor/rms)
	}
	// A sum of n products in float32 errs by about √n units; four of them is never reached by chance.
	arithmetic := 0x1p-24 * math.Sqrt(float64(w.inner))
	r.ComputeLimit = max(1e-6, 4*arithmetic)
	r.ErrorLimit = 4*noise + r.ComputeLimit
	if s.nonFinite != "" {
		return r.conclude(NonFinite, "the "+s.nonFinite+" output holds NaN or infinity")
	}
	y0, y2, d := math.Sqrt(s.y0), math.Sqrt(s.y2), math.Sqrt(s.d2)
	r.ComputeError = ratio(math.Sqrt(s.refDiff), math.Sqrt(s.refNorm))
	r.RelError = ratio(math.Sqrt(s.error), y2)
	r.Effect = ratio(d, y0)
	if !(r.ComputeError <= r.ComputeLimit) {
		return r.conclude(Miscomputed, fmt.Sprintf("the %s provider's output of the merged weight is off by %.1e, expected at most %.1e", r.Provider, r.ComputeError, r.ComputeLimit))
	}
	if d == 0 {
		if r.RelError <= r.ErrorLimit {
			return r.conclude(NoEffect, "the adapter changes nothing here")
		}
		return r.conclude(Foreign, fmt.Sprintf("the adapter changes nothing here, but the output changed by %.1e", r.RelError))
	}
	r.Retention = s.dot / s.d2
	r.Residual = math.Sqrt(s.error) / d
	if w.same {
		return r.conclude(Unchanged, "weight unchanged: it equals the base's bit for bit, although the adapter changes it")
	}
	// Noise of the stored weights and of both products, as seen by one output, relative to the effect.
	perOutput := (noise + 2*arithmetic) * max(y0, y2) / d
	r.RetentionSlack = 3*perOutput/math.Sqrt(float64(s.outputs)) + 0.02
	off := math.Abs(r.Retention - 1)
	switch {
	case r.RetentionSlack > 0.5:
		return r.conclude(Inconclusive, fmt.Sprintf("the effect (%.1e of the output) drowns in the rounding of %s; retention %.2f ± %.2f tells nothing", r.Effect, w.typ, r.Retention, r.RetentionSlack))
	case off <= r.RetentionSlack && r.RelError <= r.ErrorLimit:
		return r.conclude(OK, "")
	case off <= r.RetentionSlack:
		return r.conclude(Inaccurate, fmt.Sprintf("the output differs by %.1e from base and adapter, expected at most %.1e for %s", r.RelError, r.ErrorLimit, w.typ))
	case math.Abs(r.Retention) <= 0.05+r.RetentionSlack && s.error > 1.5*s.d2 && r.RelError > r.ErrorLimit/4:
		return r.conclude(Foreign, fmt.Sprintf("retention %.2f with residual %.2f: something else was merged, as if transposed or into the wrong module", r.Retention, r.Residual))
	case r.Retention > -0.05 && r.Retention < 1 && perOutput > 0.5 && w.locked:
		return r.conclude(Rounded, fmt.Sprintf("rounding to %s kept %.0f %% of the adapter, whose effect is %.1e of the output", w.typ, 100*max(0, r.Retention), r.Effect))
	case math.Abs(r.Retention) <= 0.05:
		return r.conclude(NotMerged, fmt.Sprintf("not merged: retention %.3f", r.Retention))
	case r.Residual < 1.2*off+perOutput:
		return r.conclude(Scaled, fmt.Sprintf("retention %.2f: %s", r.Retention, factor(r.Retention)))
	}
	return r.conclude(Foreign, fmt.Sprintf("retention %.2f with residual %.2f: the change is not the adapter's", r.Retention, r.Residual))
}

func factor(alpha float64) string {
	switch {
	case alpha < 0:
		return "merged with the wrong sign"
	case math.Abs(alpha-2) < 0.1:
		return "merged twice, or with twice the scale"
	}
	return fmt.Sprintf("merged with %.2f times the scale", alpha)
}

func (r Result) conclude(v Verdict, why string) Result {
	r.Verdict, r.Why, r.Pass = v, why, v == OK
	return r
}

// ratio is a/b, with 0/0 = 0 and a/0 = 1, so that a Result holds finite numbers only.
func ratio(a, b float64) float64 {
	switch {
	case b != 0:
		return a / b
	case a == 0:
		return 0
	}
	return 1
}
