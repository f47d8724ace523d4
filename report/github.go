package report

import (
	"fmt"
	"io"
	"sort"
	"strings"
	"unicode/utf8"

	"github.com/loratool/loratool/finding"
)

// annotationsShown is how many annotations of one level GitHub shows of a step.
const annotationsShown = 10

// WriteAnnotations writes GitHub's workflow commands, one a line. Where there are more findings of a level than
// GitHub shows, those of one code become one annotation.
func WriteAnnotations(w io.Writer, raw *Document) error {
	d := raw.escaped()
	var b strings.Builder
	for _, l := range []struct {
		level   finding.Level
		command string
	}{{finding.Error, "error"}, {finding.Warning, "warning"}, {finding.Info, "notice"}} {
		var of []finding.Finding
		for _, f := range d.Findings {
			if f.Level == l.level {
				of = append(of, f)
			}
		}
		for _, a := range annotations(of) {
			b.WriteString("::" + l.command + " ")
			if a.file != "" {
				b.WriteString("file=" + property(a.file) + ",")
			}
			b.WriteString("title=" + property("loratool: "+a.code) + "::" + data(a.text) + "\n")
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

type annotation struct{ file, code, text string }

func annotations(of []finding.Finding) []annotation {
	var out []annotation
	if len(of) <= annotationsShown {
		for _, f := range of {
			out = append(out, annotation{f.File, f.Code, f.Error()})
		}
		return out
	}
	at := map[string]int{}
	more := map[string]int{}
	for _, f := range of {
		if _, ok := at[f.Code]; ok {
			more[f.Code]++
			continue
		}
		at[f.Code] = len(out)
		out = append(out, annotation{f.File, f.Code, f.Error()})
	}
	for i := range out {
		if n := more[out[i].code]; n > 0 {
			out[i].text += fmt.Sprintf(" (and %d more of this kind)", n)
		}
	}
	return out
}

// data escapes the message of a workflow command.
func data(s string) string {
	return strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A").Replace(s)
}

// property escapes a property of a workflow command.
func property(s string) string {
	return strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", ":", "%3A", ",", "%2C").Replace(s)
}

// What a job summary shows at most: it is read by people, and the report files hold everything.
const (
	summaryFindings = 50
	summaryModules  = 20
)

// WriteSummary writes a GitHub job summary, Markdown of at most limit bytes.
func WriteSummary(w io.Writer, raw *Document, limit int) error {
	d := raw.escaped()
	s := &summary{left: limit}
	p := d.Provenance
	s.line("### loratool %s: %s", markdown(p.Command), d.Verdict)
	s.line("")
	s.line("| | |")
	s.line("| --- | --- |")
	for _, r := range d.facts() {
		s.line("| %s | %s |", markdown(r[0]), markdown(r[1]))
	}
	if len(d.Findings) > 0 {
		s.line("")
		s.line("| level | code | tensor or file | finding |")
		s.line("| --- | --- | --- | --- |")
		for _, f := range byLevel(d.Findings)[:min(summaryFindings, len(d.Findings))] {
			place := f.Tensor
			if place == "" {
				place = f.File
			}
			s.line("| %s | %s | %s | %s |", f.Level, markdown(f.Code), markdown(place), markdown(said(f)))
		}
		if n := len(d.Findings) - summaryFindings; n > 0 {
			s.line("")
			s.line("%d more are in the report files.", n)
		}
	}
	if worst := worstModules(d.Modules, summaryModules); len(worst) > 0 {
		s.line("")
		s.line("| module | type | retention | update ratio | |")
		s.line("| --- | --- | ---: | ---: | --- |")
		for _, m := range worst {
			said := "ok"
			if !m.Pass {
				said = m.Why
			}
			s.line("| %s | %s | %.4f | %.2e | %s |", markdown(m.Module), markdown(m.Type), m.Retention, m.Ratio, markdown(said))
		}
		if n := len(d.Modules) - len(worst); n > 0 {
			s.line("")
			s.line("The %d modules with the least retention; %d others have more.", len(worst), n)
		}
	}
	s.line("")
	_, err := io.WriteString(w, s.b.String())
	return err
}

// A summary is text that ends before it grows too large, at a whole line.
type summary struct {
	b    strings.Builder
	left int
	full bool
}

func (s *summary) line(format string, a ...any) {
	l := fmt.Sprintf(format, a...) + "\n"
	if s.full || len(l) > s.left {
		s.full = true
		return
	}
	s.left -= len(l)
	s.b.WriteString(l)
}

// facts are what a reader wants to know first.
func (d *Document) facts() [][2]string {
	p := d.Provenance
	var out [][2]string
	add := func(name, value string) {
		if value != "" {
			out = append(out, [2]string{name, value})
		}
	}
	add("model", strings.Join(p.Subjects, ", "))
	add("base", p.Base)
	add("adapters", strings.Join(p.Adapters, ", "))
	found := fmt.Sprintf("%s, %s", plural(d.count(finding.Error), "error"), plural(d.count(finding.Warning), "warning"))
	if n := d.count(finding.Info); n > 0 {
		found += fmt.Sprintf(", %s", plural(n, "note"))
	}
	if d.Baseline {
		found += fmt.Sprintf(", %d known", len(d.Known))
	}
	add("findings", found)
	if len(d.Modules) > 0 {
		passed := 0
		for _, m := range d.Modules {
			if m.Pass {
				passed++
			}
		}
		add("modules", fmt.Sprintf("%d, of which %d pass", len(d.Modules), passed))
	}
	if len(d.Fits) > 0 {
		low, high := d.Fits[0], d.Fits[0]
		for _, f := range d.Fits {
			if f.Ratio < low.Ratio {
				low = f
			}
			if f.Ratio > high.Ratio {
				high = f
			}
		}
		add("updates that fit", fmt.Sprintf("%d, of %.2e (%s) to %.2e (%s) of their weights", len(d.Fits), low.Ratio, low.Module, high.Ratio, high.Module))
	}
	if d.Retention != nil {
		add("retention", fmt.Sprintf("least %.4f (%s), median %.4f", d.Retention.Min, d.Retention.Worst, d.Retention.Median))
	}
	if u := d.Unchanged; u != nil {
		how := "sampled"
		if u.Whole {
			how = "whole"
		}
		add("untouched tensors", fmt.Sprintf("%d compared with the base, %s", u.Tensors, how))
	}
	if r := d.Runtime; r != nil {
		if r.Reason != "" {
			add("ONNX Runtime", "not used: "+r.Reason)
		} else {
			add("ONNX Runtime", fmt.Sprintf("%s on %s, %d of %d modules", r.Version, r.Provider, r.Modules, r.Of))
		}
	}
	if w := d.Whole; w != nil {
		said := "agrees with base and adapters"
		if !w.Pass {
			said = w.Why
		}
		add("whole model", fmt.Sprintf("%s; on %s, %s, %d layers with the adapter, seed %d", said, w.Provider, plural(len(w.Outputs), "output"), w.Branches, w.Seed))
	}
	if p.Check != "" {
		add("check", fmt.Sprintf("%s, seed %d, device %s", p.Check, p.Seed, p.Device))
	}
	add("tool", p.Tool)
	return out
}

// byLevel sorts findings, errors first, and keeps their order within a level.
func byLevel(in []finding.Finding) []finding.Finding {
	rank := map[finding.Level]int{finding.Error: 0, finding.Warning: 1, finding.Info: 2}
	out := append([]finding.Finding{}, in...)
	sort.SliceStable(out, func(a, b int) bool { return rank[out[a].Level] < rank[out[b].Level] })
	return out
}

// worstModules are at most n modules: those that do not pass, then those with the least retention.
func worstModules(in []Module, n int) []Module {
	out := append([]Module{}, in...)
	sort.SliceStable(out, func(a, b int) bool {
		if out[a].Pass != out[b].Pass {
			return !out[a].Pass
		}
		return out[a].Retention < out[b].Retention
	})
	return out[:min(n, len(out))]
}

// markdown escapes text so that it shows as it is: what could start a tag becomes an entity, and every other
// ASCII punctuation mark gets a backslash.
func markdown(s string) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == '<':
			b.WriteString("&lt;")
			continue
		case r == '>':
			b.WriteString("&gt;")
			continue
		case r == '&':
			b.WriteString("&amp;")
			continue
		case r < utf8.RuneSelf && strings.ContainsRune("!\"#$%'()*+,-./:;=?@[\\]^_`{|}~", r):
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	return b.String()
}
