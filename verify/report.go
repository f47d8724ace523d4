// Package verify says whether a file is sound, whether an adapter fits a base, and whether a merged
// model really is base + adapters.
//
// The last question is answered twice. The exact check recomputes W + ΔW in float64 and compares what
// the file stores with its one rounding. The runtime check lets ONNX Runtime multiply with the stored
// weights, so that the answer does not rest on this program's own arithmetic. Both report retention,
// the share of the adapter that is present in the stored weights: a comparison with a tolerance alone
// would pass a merge that never happened.
package verify

import (
	"sort"

	"github.com/loratool/loratool/finding"
)

// SchemaVersion is the version of the JSON that reports marshal to.
const SchemaVersion = 1

// A Verdict sums a report up.
type Verdict string

// The verdicts.
const (
	Accept Verdict = "accept" // nothing of level warning or error
	Warn   Verdict = "warn"
	Reject Verdict = "reject"
)

// A Report is the answer to one question.
type Report struct {
	SchemaVersion int               `json:"schema_version"`
	Verdict       Verdict           `json:"verdict"`
	Provenance    *Provenance       `json:"provenance,omitempty"`
	Findings      []finding.Finding `json:"findings"`
	Known         []finding.Finding `json:"known,omitempty"` // findings that a baseline sets aside
	Tensors       map[string]Digest `json:"tensors,omitempty"`
	Modules       []Module          `json:"modules,omitempty"`
	Fits          []Fit             `json:"fits,omitempty"` // of an adapter held to its base
	Retention     *Retention        `json:"retention,omitempty"`
	Runtime       *RuntimeUse       `json:"runtime,omitempty"`
	Unchanged     *Unchanged        `json:"unchanged,omitempty"`
	WholeModel    *WholeModel       `json:"whole_model,omitempty"`
}

// A Digest identifies a tensor's content: SHA-256 over its stored bytes (little-endian, rows in order).
type Digest struct {
	DType  string  `json:"dtype"`
	Shape  []int64 `json:"shape"`
	SHA256 string  `json:"sha256"`
}

// A Module is what was measured of one updated tensor.
type Module struct {
	Module    string  `json:"module"`
	Tensor    string  `json:"tensor"`
	Type      string  `json:"type"`
	Retention float64 `json:"retention"` // ⟨S−W, Δ⟩/⟨Δ, Δ⟩ over the rows that were checked
	RelError  float64 `json:"rel_error"` // ‖S−(W+Δ)‖/‖W+Δ‖
	Ratio     float64 `json:"ratio"`     // ‖Δ‖/‖W‖
	Provider  string  `json:"provider,omitempty"`
	// Singular values of Δ in falling order, where it has factors of at most maxSpectrum ranks.
	SingularValues []float32  `json:"singular_values,omitempty"`
	Exact          Exact      `json:"exact"`
	Runtime        *ByRuntime `json:"runtime,omitempty"`
	Pass           bool       `json:"pass"`
	Why            string     `json:"why,omitempty"`
}

// Exact counts how the stored elements of the checked rows compare with W + ΔW in float64.
type Exact struct {
	Rows     int64   `json:"rows"`      // checked, of TotalRows
	Total    int64   `json:"total"`     // rows of the tensor
	Elements int64   `json:"elements"`  // checked
	Rounded  int64   `json:"rounded"`   // equal to the one rounding of the exact value
	Off      int64   `json:"off"`       // further away than float32 accumulation explains
	MaxSteps float64 `json:"max_steps"` // largest distance, in steps (ulp) of the stored type
	Errors   *Errors `json:"errors,omitempty"`
}

// Errors is a histogram of |S−(W+Δ)| over the checked elements.
type Errors struct {
	Unit   ErrorUnit `json:"unit"`
	Width  float64   `json:"width"`  // of a bin, in units
	Counts []int64   `json:"counts"` // the last bin holds all larger ones
}

// An ErrorUnit is what errors are counted in.
type ErrorUnit string

// The units of errors: steps (ulp) of a float type, of which one rounding makes at most half a one; of types whose
// elements share scales the root mean square of the error that the type's own rounding makes.
const (
	Steps    ErrorUnit = "step"
	RMSNoise ErrorUnit = "rounding"
)

// errorBins are the bins of a histogram beside the last.
const errorBins = 16

// maxSpectrum is the rank up to which singular values are computed.
const maxSpectrum = 128

func newErrors(shared bool) *Errors {
	e := &Errors{Unit: Steps, Width: 1.0 / errorBins, Counts: make([]int64, errorBins+1)}
	if shared {
		e.Unit, e.Width = RMSNoise, 4.0/errorBins
	}
	return e
}

// ByRuntime is what ONNX Runtime measured.
type ByRuntime struct {
	Provider     string  `json:"provider"`
	Retention    float64 `json:"retention"`
	RelError     float64 `json:"rel_error"`     // X·W' against X·W + s·(X·Aᵀ)·Bᵀ
	ComputeError float64 `json:"compute_error"` // X·W' against the same in float64
	Residual     float64 `json:"residual"`
	Effect       float64 `json:"effect"` // ‖ΔY‖/‖Y‖
	Seed         uint64  `json:"seed"`
	Pass         bool    `json:"pass"`
	Why          string  `json:"why,omitempty"`
}

// RuntimeUse says which runtime and provider really ran, or why none did.
type RuntimeUse struct {
	Version  string `json:"version,omitempty"`
	Provider string `json:"provider,omitempty"`
	Modules  int    `json:"modules"` // checked by the runtime
	Of       int    `json:"of"`
	Reason   string `json:"reason,omitempty"` // why the runtime was not used
}

// Unchanged counts the tensors that the adapters do not touch.
type Unchanged struct {
	Tensors int   `json:"tensors"`
	Bytes   int64 `json:"bytes"` // compared
	Whole   bool  `json:"whole"` // every byte was compared
}

// Retention sums the modules' retention up.
type Retention struct {
	Min    float64 `json:"min"`
	Median float64 `json:"median"`
	Worst  string  `json:"worst"`
}

// SummarizeRetention returns the smallest and the middle retention, nil without values.
func SummarizeRetention(names []string, values []float64) *Retention {
	if len(values) == 0 {
		return nil
	}
	order := make([]int, len(values))
	for i := range order {
		order[i] = i
	}
	sort.SliceStable(order, func(a, b int) bool { return values[order[a]] < values[order[b]] })
	n := len(order)
	median := values[order[n/2]]
	if n%2 == 0 {
		median = (median + values[order[n/2-1]]) / 2
	}
	return &Retention{Min: values[order[0]], Median: median, Worst: names[order[0]]}
}

// Kept is how much of an adapter is left in one module.
type Kept struct {
	Module, Tensor, Type string
	Retention            float64
}

// LowRetention is the warning that rounding to the stored types has eaten a part of the adapter: one for
// all modules, naming the worst. It is nil where every retention is at least low.
func LowRetention(file string, modules []Kept, low float64) *finding.Finding {
	n := 0
	var worst *Kept
	for i, m := range modules {
		if m.Retention >= low {
			continue
		}
		if n++; worst == nil || m.Retention < worst.Retention {
			worst = &modules[i]
		}
	}
	if worst == nil {
		return nil
	}
	f := finding.Warnf("merge.retention_low", file, "rounding to %s lost a part of the adapter in %d of %d modules; least is left here, %.1f %%",
		worst.Type, n, len(modules), 100*worst.Retention).In(worst.Tensor)
	f.Module = worst.Module
	return f.Hinted("merge into a float base, or store the updated tensors in float16 (--dtype f16); merge --requant match keeps low-rank adapters in most quantized types")
}

// add appends a finding.
func (r *Report) add(f *finding.Finding) { r.Findings = append(r.Findings, *f) }

// conclude sets the verdict from the findings.
func (r *Report) conclude() *Report {
	r.SchemaVersion = SchemaVersion
	if r.Findings == nil {
		r.Findings = []finding.Finding{}
	}
	r.Verdict = Judge(r.Findings)
	return r
}
