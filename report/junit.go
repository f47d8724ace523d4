package report

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"

	"github.com/jstemmer/go-junit-report/v2/junit"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/verify"
)

// writeJUnit writes one suite with a case for every module, and one with a case for every finding that is
// about no module. A case fails when a finding about it counts; all of its findings stand in its text. Known
// findings are skipped cases. There are no times: they would differ from run to run.
func writeJUnit(w io.Writer, d *Document) error {
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	all := junit.Testsuites{Name: "loratool " + d.Provenance.Command, Time: "0"}
	byTensor := map[string][]finding.Finding{} // also by output of the whole model, which no tensor is called as
	for _, m := range d.Modules {
		byTensor[m.Tensor] = nil
	}
	if d.Whole != nil {
		for _, o := range d.Whole.Outputs {
			byTensor[o.Name] = nil
		}
	}
	var rest []finding.Finding
	for _, f := range d.Findings {
		if _, ok := byTensor[f.Tensor]; ok {
			byTensor[f.Tensor] = append(byTensor[f.Tensor], f)
		} else {
			rest = append(rest, f)
		}
	}
	if len(d.Modules) > 0 {
		s := d.suite("modules", 0)
		for _, m := range d.Modules {
			s.AddTestcase(d.moduleCase(m, byTensor[m.Tensor]))
		}
		all.AddSuite(s)
	}
	if d.Whole != nil {
		s := d.suite("whole model", len(all.Suites))
		for _, o := range d.Whole.Outputs {
			s.AddTestcase(d.outputCase(o, byTensor[o.Name]))
		}
		all.AddSuite(s)
	}
	s := d.suite("findings", len(all.Suites))
	for _, f := range rest {
		s.AddTestcase(d.findingCase(f))
	}
	for _, f := range d.Known {
		c := findingName(f)
		c.Skipped = &junit.Result{Message: "known: it is in the baseline", Type: f.Code, Data: f.Error()}
		s.AddTestcase(c)
	}
	if len(s.Testcases) == 0 { // readers call a suite without cases a broken one
		s.AddTestcase(junit.Testcase{Classname: "loratool." + d.Provenance.Command, Name: strings.Join(d.Provenance.Subjects, ", "), Time: "0"})
	}
	all.AddSuite(s)
	all.Skipped = 0 // the usual schemas know it of a suite only
	return all.WriteXML(w)
}

func (d *Document) suite(name string, id int) junit.Testsuite {
	s := junit.Testsuite{Name: name, ID: id, Time: "0"}
	s.AddProperty("tool", d.Provenance.Tool)
	s.AddProperty("verdict", string(d.Verdict))
	for _, p := range d.Provenance.Subjects {
		s.AddProperty("subject", p)
	}
	if d.Provenance.Base != "" {
		s.AddProperty("base", d.Provenance.Base)
	}
	for _, a := range d.Provenance.Adapters {
		s.AddProperty("adapter", a)
	}
	s.AddProperty("seed", fmt.Sprint(d.Provenance.Seed))
	return s
}

func (d *Document) moduleCase(m Module, about []finding.Finding) junit.Testcase {
	c := junit.Testcase{Classname: "loratool." + d.Provenance.Command + ".module", Name: m.Tensor, Time: "0"}
	measured := fmt.Sprintf("module %s, type %s, retention %.4f, update ratio %.3e", m.Module, m.Type, m.Retention, m.Ratio)
	if m.Checked {
		measured += fmt.Sprintf(", relative error %.3e, %d of %d rows", m.RelError, m.Rows, m.Total)
	}
	return d.measuredCase(c, measured, about)
}

// outputCase is the case of an output of the whole model.
func (d *Document) outputCase(o verify.ModelOutput, about []finding.Finding) junit.Testcase {
	c := junit.Testcase{Classname: "loratool." + d.Provenance.Command + ".output", Name: o.Name, Time: "0"}
	measured := fmt.Sprintf("relative error %.3e of at most %.3e, effect of the adapter %.3e", o.RelError, o.Limit, o.Effect)
	if o.Why != "" {
		measured += "; " + o.Why
	}
	return d.measuredCase(c, measured, about)
}

// measuredCase fills a case with what was measured and the findings about it.
func (d *Document) measuredCase(c junit.Testcase, measured string, about []finding.Finding) junit.Testcase {
	text := []string{measured}
	for _, f := range about {
		text = append(text, fmt.Sprintf("%s: %s: %s", f.Level, f.Code, said(f)))
		if f.Hint != "" {
			text = append(text, "hint: "+f.Hint)
		}
		if d.fails(f) && c.Failure == nil {
			c.Failure = &junit.Result{Message: said(f), Type: f.Code}
		}
	}
	if c.Failure != nil {
		c.Failure.Data = strings.Join(text, "\n")
	} else {
		c.SystemOut = &junit.Output{Data: strings.Join(text, "\n")}
	}
	return c
}

func findingName(f finding.Finding) junit.Testcase {
	area, _, _ := strings.Cut(f.Code, ".")
	name := f.Code
	for _, s := range []string{f.File, f.Tensor} {
		if s != "" {
			name += " " + s
		}
	}
	return junit.Testcase{Classname: "loratool." + area, Name: name, Time: "0"}
}

func (d *Document) findingCase(f finding.Finding) junit.Testcase {
	c := findingName(f)
	text := fmt.Sprintf("%s: %s", f.Level, f.Error())
	if f.Hint != "" {
		text += "\nhint: " + f.Hint
	}
	if d.fails(f) {
		c.Failure = &junit.Result{Message: said(f), Type: f.Code, Data: text}
	} else {
		c.SystemOut = &junit.Output{Data: text}
	}
	return c
}
