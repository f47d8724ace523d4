// Package report renders what verify and merge found: as JSON, JUnit XML, SARIF 2.1.0, one self-contained HTML
// page, and for GitHub as annotations and a job summary. The same document gives the same bytes. Text that comes
// from files (names of tensors and modules, paths, messages) is escaped in every format, so that no name
// can end a line, start a command, close a tag or hide behind invisible characters.
package report

import (
	"fmt"
	"slices"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/verify"
)

// A Document is one report, ready to be rendered.
type Document struct {
	Provenance verify.Provenance
	Verdict    verify.Verdict
	Findings   []finding.Finding
	Known      []finding.Finding // of a baseline: shown, not counted
	Baseline   bool              // whether there was one
	Modules    []Module
	Fits       []Module // what an adapter would do to its base: module, tensor and ratio only
	Retention  *verify.Retention
	Runtime    *verify.RuntimeUse
	Unchanged  *verify.Unchanged
	Whole      *verify.WholeModel
	// FailOn is the lowest level that JUnit calls a failure; "" means Error.
	FailOn finding.Level
	// JSON is what the .json form holds: a verify.Report, or a document that embeds one.
	JSON any
}

// A Module is what is known of one updated tensor, from the merge, from its check, or from both.
type Module struct {
	Module, Tensor, Type string
	Retention            float64 // ⟨S−W, Δ⟩/⟨Δ, Δ⟩
	Ratio                float64 // ‖Δ‖/‖W‖
	RelError             float64 // ‖S−(W+Δ)‖/‖W+Δ‖; meaningful when Checked
	Rows, Total          int64   // rows that the exact check read, of all
	Provider             string  // of ONNX Runtime, where it checked the module
	Checked, Pass        bool
	Why                  string // it does not pass
	Singular             []float32
	Errors               *verify.Errors
}

// FromVerify is the document of a verify report.
func FromVerify(r *verify.Report) *Document {
	d := &Document{
		Verdict: r.Verdict, Findings: r.Findings, Known: r.Known, Retention: r.Retention, Runtime: r.Runtime, Unchanged: r.Unchanged, Whole: r.WholeModel, JSON: r,
	}
	if r.Provenance != nil {
		d.Provenance = *r.Provenance
	}
	for i := range r.Modules {
		d.Modules = append(d.Modules, checked(&r.Modules[i]))
	}
	for _, f := range r.Fits {
		d.Fits = append(d.Fits, Module{Module: f.Module, Tensor: f.Tensor, Ratio: f.Ratio})
	}
	return d
}

func checked(m *verify.Module) Module {
	return Module{
		Module: m.Module, Tensor: m.Tensor, Type: m.Type, Retention: m.Retention, Ratio: m.Ratio, RelError: m.RelError,
		Rows: m.Exact.Rows, Total: m.Exact.Total, Provider: m.Provider, Checked: true, Pass: m.Pass, Why: m.Why, Singular: m.SingularValues, Errors: m.Exact.Errors,
	}
}

// FromMerge is the document of a merge: what it measured, over all rows, beside what the check of its output
// said (nil for none). The caller adds findings and provenance.
func FromMerge(stats []merge.Stats, check *verify.Report) *Document {
	d := &Document{Verdict: verify.Accept}
	byTensor := map[string]*verify.Module{}
	if check != nil {
		d.Runtime, d.Unchanged = check.Runtime, check.Unchanged
		for i := range check.Modules {
			byTensor[check.Modules[i].Tensor] = &check.Modules[i]
		}
	}
	for _, s := range stats {
		m := Module{Pass: true}
		if c := byTensor[s.Tensor]; c != nil {
			m = checked(c)
		}
		m.Module, m.Tensor, m.Type, m.Retention, m.Ratio = s.Module, s.Tensor, s.Type, s.Retention, s.Ratio
		d.Modules = append(d.Modules, m)
	}
	return d
}

// escaped is a copy whose texts hold printable characters only.
func (d *Document) escaped() *Document {
	e := *d
	p := &e.Provenance
	for _, s := range []*string{&p.Tool, &p.Command, &p.Base, &p.Check, &p.Device} {
		*s = finding.Escape(*s)
	}
	p.Subjects, p.Adapters = escapeAll(p.Subjects), escapeAll(p.Adapters)
	e.Findings, e.Known = escapeFindings(d.Findings), escapeFindings(d.Known)
	e.Modules, e.Fits = escapeModules(d.Modules), escapeModules(d.Fits)
	if d.Retention != nil {
		r := *d.Retention
		r.Worst = finding.Escape(r.Worst)
		e.Retention = &r
	}
	if d.Runtime != nil {
		r := *d.Runtime
		for _, s := range []*string{&r.Version, &r.Provider, &r.Reason} {
			*s = finding.Escape(*s)
		}
		e.Runtime = &r
	}
	if d.Whole != nil {
		w := *d.Whole
		w.Provider, w.Why = finding.Escape(w.Provider), finding.Escape(w.Why)
		w.Inputs, w.Outputs = slices.Clone(w.Inputs), slices.Clone(w.Outputs)
		for i := range w.Inputs {
			in := &w.Inputs[i]
			in.Name, in.Source = finding.Escape(in.Name), finding.Escape(in.Source)
		}
		for i := range w.Outputs {
			o := &w.Outputs[i]
			o.Name, o.Why = finding.Escape(o.Name), finding.Escape(o.Why)
		}
		e.Whole = &w
	}
	return &e
}

func escapeAll(in []string) []string {
	out := slices.Clone(in)
	for i, s := range out {
		out[i] = finding.Escape(s)
	}
	return out
}

func escapeModules(in []Module) []Module {
	out := slices.Clone(in)
	for i := range out {
		m := &out[i]
		for _, s := range []*string{&m.Module, &m.Tensor, &m.Type, &m.Provider, &m.Why} {
			*s = finding.Escape(*s)
		}
	}
	return out
}

func escapeFindings(in []finding.Finding) []finding.Finding {
	out := slices.Clone(in)
	for i := range out {
		f := &out[i]
		for _, s := range []*string{&f.Code, &f.Message, &f.File, &f.Tensor, &f.Module, &f.Got, &f.Want, &f.Hint} {
			*s = finding.Escape(*s)
		}
	}
	return out
}

// said is a finding's message with what was found and expected, without the place.
func said(f finding.Finding) string {
	f.File, f.Tensor = "", ""
	return f.Error()
}

// fails reports whether a finding counts as a failure.
func (d *Document) fails(f finding.Finding) bool {
	return f.Level == finding.Error || f.Level == finding.Warning && d.FailOn == finding.Warning
}

// count is how many findings of a level there are.
func (d *Document) count(l finding.Level) (n int) {
	for _, f := range d.Findings {
		if f.Level == l {
			n++
		}
	}
	return n
}

// plural prints a number with its noun.
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
