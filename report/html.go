package report

import (
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strconv"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/verify"
)

//go:embed assets/page.html assets/page.css assets/page.js assets/uPlot.iife.min.js assets/uPlot.min.css assets/uPlot.LICENSE assets/uPlot.txt
var assets embed.FS

func asset(name string) string {
	b, err := assets.ReadFile("assets/" + name)
	if err != nil {
		panic(err) // embedded above
	}
	return string(b)
}

var page = template.Must(template.New("page.html").ParseFS(assets, "assets/page.html"))

// A htmlPage is what the template sees.
type htmlPage struct {
	Doc              *Document
	Facts            [][2]string
	Policy           string
	Style            template.CSS
	Script           template.JS
	Rows             []htmlFinding
	Levels           []htmlLevel
	Retention, Ratio []heatMap
	Charts           []chart
	Data             template.JS
	Modules          []htmlModule
	Whole            *htmlWhole
	Details          template.JS
}

type htmlFinding struct {
	Finding     finding.Finding
	Kind, Label string
	Order       int
	Where, Said string
}

type htmlLevel struct{ Kind, Label string }

type htmlModule struct {
	Tensor, Type, Kind, Result, Provider          string
	Retention, Ratio, Error, Rows                 string
	RetentionSort, RatioSort, ErrorSort, RowsSort string
	Largest, LargestSort, Rank, RankSort          string // of the singular values
	Index                                         int
}

// A htmlWhole is the comparison of whole models.
type htmlWhole struct {
	*verify.WholeModel
	Rows []htmlOutput
}

type htmlOutput struct {
	Name, Shape, Error, Limit, Effect, Retention, Cosine, Argmax, Kind, Result string
}

// writeHTML writes one page that needs nothing else: style, script and figures are in it, and its content
// security policy forbids every request and every other script.
func writeHTML(w io.Writer, d *Document) error {
	p := htmlPage{
		Doc: d, Facts: d.facts(),
		Style:     template.CSS(asset("uPlot.min.css") + "\n" + asset("page.css")),
		Script:    template.JS("/* uPlot:\n" + asset("uPlot.LICENSE") + "\n*/\n" + asset("uPlot.iife.min.js") + "\n" + asset("page.js")),
		Retention: heatMaps(d.Modules, paintRetention),
		Ratio:     heatMaps(slices.Concat(d.Modules, d.Fits), paintRatio),
		Charts:    charts(d.Modules, d.Fits),
	}
	hash := sha256.Sum256([]byte(p.Script))
	p.Policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-" + base64.StdEncoding.EncodeToString(hash[:]) + "'"
	data, err := json.Marshal(p.Charts)
	if err != nil {
		return fmt.Errorf("charts: %w", err)
	}
	p.Data = template.JS(data)
	p.findings(d)
	for i, m := range d.Modules {
		h := htmlOf(m)
		h.Index = i
		p.Modules = append(p.Modules, h)
	}
	if data, err = json.Marshal(detailsOf(d.Modules)); err != nil {
		return fmt.Errorf("details: %w", err)
	}
	p.Details = template.JS(data)
	p.Whole = wholeOf(d.Whole)
	return page.Execute(w, p)
}

// findings fills the table, errors first, known ones last.
func (p *htmlPage) findings(d *Document) {
	orders := map[finding.Level]int{finding.Error: 0, finding.Warning: 1, finding.Info: 2}
	add := func(f finding.Finding, kind, label string, order int) {
		where := f.Tensor
		if where == "" {
			where = f.Module
		}
		if where == "" {
			where = f.File
		}
		p.Rows = append(p.Rows, htmlFinding{Finding: f, Kind: kind, Label: label, Order: order, Where: where, Said: said(f)})
	}
	for _, f := range byLevel(d.Findings) {
		add(f, string(f.Level), string(f.Level), orders[f.Level])
	}
	for _, f := range byLevel(d.Known) {
		add(f, "known", string(f.Level)+", known", 3+orders[f.Level])
	}
	for _, k := range []string{string(finding.Error), string(finding.Warning), string(finding.Info), "known"} {
		n := 0
		for _, r := range p.Rows {
			if r.Kind == k {
				n++
			}
		}
		if n > 0 {
			p.Levels = append(p.Levels, htmlLevel{k, fmt.Sprintf("%s (%d)", k, n)})
		}
	}
}

func htmlOf(m Module) htmlModule {
	exact := func(x float64) string { return strconv.FormatFloat(x, 'g', -1, 64) }
	h := htmlModule{
		Tensor: m.Tensor, Type: m.Type, Kind: "pass", Result: "ok", Provider: m.Provider,
		Retention: fmt.Sprintf("%.4f", m.Retention), RetentionSort: exact(m.Retention),
		Ratio: fmt.Sprintf("%.2e", m.Ratio), RatioSort: exact(m.Ratio), ErrorSort: "-1", RowsSort: "-1",
	}
	if m.Checked {
		h.Error, h.ErrorSort = fmt.Sprintf("%.1e", m.RelError), exact(m.RelError)
		h.Rows, h.RowsSort = fmt.Sprintf("%d/%d", m.Rows, m.Total), exact(float64(m.Rows))
	}
	h.LargestSort, h.RankSort = "-1", "-1"
	if largest, rank := spread(m.Singular); largest > 0 {
		h.Largest, h.LargestSort = fmt.Sprintf("%.3g", largest), exact(largest)
		h.Rank, h.RankSort = fmt.Sprintf("%.1f of %d", rank, len(m.Singular)), exact(rank)
	}
	if !m.Pass {
		h.Kind, h.Result = "fail", m.Why
	}
	return h
}

// wholeOf is what the page says of the whole models, nil where they were not run.
func wholeOf(w *verify.WholeModel) *htmlWhole {
	if w == nil {
		return nil
	}
	h := &htmlWhole{WholeModel: w}
	optional := func(format string, x *float64, scale float64) string {
		if x == nil {
			return ""
		}
		return fmt.Sprintf(format, scale**x)
	}
	for _, o := range w.Outputs {
		r := htmlOutput{
			Name: o.Name, Shape: fmt.Sprint(o.Shape), Error: fmt.Sprintf("%.1e", o.RelError), Limit: fmt.Sprintf("%.1e", o.Limit), Effect: fmt.Sprintf("%.1e", o.Effect),
			Retention: optional("%.4f", o.Retention, 1), Cosine: optional("%.6f", o.Cosine, 1), Argmax: optional("%.1f %%", o.Argmax, 100), Kind: "pass", Result: "ok",
		}
		if o.Why != "" {
			r.Result = o.Why
		}
		if !o.Pass {
			r.Kind = "fail"
		}
		h.Rows = append(h.Rows, r)
	}
	return h
}
