package report

import (
	"io"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/verify"
)

// The parts of SARIF 2.1.0 that are written (OASIS sarif-schema-2.1.0.json).
type (
	sarifLog struct {
		Schema  string     `json:"$schema"`
		Version string     `json:"version"`
		Runs    []sarifRun `json:"runs"`
	}
	sarifRun struct {
		Tool       sarifTool      `json:"tool"`
		Results    []sarifResult  `json:"results"`
		ColumnKind string         `json:"columnKind"`
		Properties map[string]any `json:"properties"`
	}
	sarifTool struct {
		Driver sarifDriver `json:"driver"`
	}
	sarifDriver struct {
		Name           string      `json:"name"`
		Version        string      `json:"version,omitempty"`
		InformationURI string      `json:"informationUri"`
		Rules          []sarifRule `json:"rules"`
	}
	sarifRule struct {
		ID               string    `json:"id"`
		ShortDescription sarifText `json:"shortDescription"`
		Default          struct {
			Level string `json:"level"`
		} `json:"defaultConfiguration"`
	}
	sarifText struct {
		Text string `json:"text"`
	}
	sarifResult struct {
		RuleID        string             `json:"ruleId"`
		RuleIndex     int                `json:"ruleIndex"`
		Level         string             `json:"level"`
		Message       sarifText          `json:"message"`
		Locations     []sarifLocation    `json:"locations,omitempty"`
		Fingerprints  map[string]string  `json:"partialFingerprints"`
		BaselineState string             `json:"baselineState,omitempty"`
		Suppressions  []sarifSuppression `json:"suppressions,omitempty"`
		Properties    map[string]string  `json:"properties,omitempty"`
	}
	sarifSuppression struct {
		Kind          string `json:"kind"`
		Justification string `json:"justification"`
	}
	sarifLocation struct {
		Physical *sarifPhysical `json:"physicalLocation,omitempty"`
		Logical  []sarifLogical `json:"logicalLocations,omitempty"`
	}
	sarifPhysical struct {
		Artifact struct {
			URI string `json:"uri"`
		} `json:"artifactLocation"`
		Region struct {
			StartLine int `json:"startLine"`
		} `json:"region"`
	}
	sarifLogical struct {
		Name string `json:"name"`
		Kind string `json:"kind"`
	}
)

// projectURI is where the program is at home.
const projectURI = "https://github.com/loratool/loratool"

// writeSARIF writes a log of one run. It takes the document as it is: a path becomes a URI of its real bytes.
func writeSARIF(w io.Writer, raw *Document) error {
	d := raw.escaped()
	name, version, _ := strings.Cut(d.Provenance.Tool, " ")
	if name == "" {
		name = "loratool"
	}
	run := sarifRun{ColumnKind: "utf16CodeUnits", Results: []sarifResult{}}
	run.Tool.Driver = sarifDriver{Name: name, Version: version, InformationURI: projectURI, Rules: sarifRules(d)}
	run.Properties = map[string]any{"verdict": d.Verdict, "provenance": d.Provenance}
	if d.Retention != nil {
		run.Properties["retention"] = d.Retention
	}
	state := ""
	if d.Baseline {
		state = "new"
	}
	for i, f := range d.Findings {
		r := sarifOf(f, raw.Findings[i], raw, run.Tool.Driver.Rules)
		r.BaselineState = state
		run.Results = append(run.Results, r)
	}
	for i, f := range d.Known {
		r := sarifOf(f, raw.Known[i], raw, run.Tool.Driver.Rules)
		r.BaselineState = "unchanged"
		r.Suppressions = []sarifSuppression{{Kind: "external", Justification: "in the baseline"}}
		run.Results = append(run.Results, r)
	}
	return WriteJSON(w, sarifLog{
		Schema: "https://json.schemastore.org/sarif-2.1.0.json", Version: "2.1.0", Runs: []sarifRun{run},
	})
}

// sarifRules are the codes that occur, in order, with the worst level they occur at.
func sarifRules(d *Document) []sarifRule {
	worst := map[string]finding.Level{}
	rank := map[finding.Level]int{finding.Info: 1, finding.Warning: 2, finding.Error: 3}
	var codes []string
	for _, f := range slices.Concat(d.Findings, d.Known) {
		if _, ok := worst[f.Code]; !ok {
			codes = append(codes, f.Code)
		}
		if rank[f.Level] > rank[worst[f.Code]] {
			worst[f.Code] = f.Level
		}
	}
	slices.Sort(codes)
	out := []sarifRule{}
	for _, c := range codes {
		r := sarifRule{ID: c, ShortDescription: sarifText{describe(c)}}
		r.Default.Level = sarifLevel(worst[c])
		out = append(out, r)
	}
	return out
}

func sarifLevel(l finding.Level) string {
	if l == finding.Info {
		return "note"
	}
	return string(l)
}

// sarifOf is the result of a finding; raw is the finding as it is.
func sarifOf(f, raw finding.Finding, d *Document, rules []sarifRule) sarifResult {
	index := slices.IndexFunc(rules, func(r sarifRule) bool { return r.ID == f.Code })
	text := said(f)
	if f.Tensor != "" {
		text = f.Tensor + ": " + text
	}
	r := sarifResult{
		RuleID: f.Code, RuleIndex: index, Level: sarifLevel(f.Level), Message: sarifText{plainMessage(text)},
		Fingerprints: map[string]string{"loratool/v1": verify.Fingerprint(raw)}, Properties: map[string]string{},
	}
	file := raw.File
	if file == "" && len(d.Provenance.Subjects) > 0 {
		file = d.Provenance.Subjects[0]
	}
	var at sarifLocation
	if file != "" {
		at.Physical = &sarifPhysical{}
		at.Physical.Artifact.URI, at.Physical.Region.StartLine = fileURI(file), 1
	}
	if f.Tensor != "" {
		at.Logical = append(at.Logical, sarifLogical{Name: f.Tensor, Kind: "tensor"})
	}
	if f.Module != "" {
		at.Logical = append(at.Logical, sarifLogical{Name: f.Module, Kind: "module"})
	}
	if at.Physical != nil || at.Logical != nil {
		r.Locations = []sarifLocation{at}
	}
	for _, p := range [][2]string{{"tensor", f.Tensor}, {"module", f.Module}, {"got", f.Got}, {"want", f.Want}, {"hint", f.Hint}} {
		if p[1] != "" {
			r.Properties[p[0]] = p[1]
		}
	}
	return r
}

// placeholder is what viewers of a message replace by an argument.
var placeholder = regexp.MustCompile(`\{(\d+)\}`)

// plainMessage keeps text from being read as an embedded link or a placeholder (SARIF 2.1.0, 3.11.5 and 3.11.6).
func plainMessage(s string) string {
	s = strings.ReplaceAll(s, "](", `\](`)
	return placeholder.ReplaceAllString(s, "{{$1}}")
}

// fileURI is the URI of a path: relative where the path is, so that it is found in a repository.
func fileURI(path string) string {
	slashed := filepath.ToSlash(filepath.Clean(path))
	parts := strings.Split(slashed, "/")
	for i, p := range parts {
		parts[i] = strings.ReplaceAll(url.PathEscape(p), ":", "%3A")
	}
	uri := strings.Join(parts, "/")
	switch {
	case !filepath.IsAbs(path):
		return uri
	case strings.HasPrefix(uri, "/"):
		return "file://" + uri
	}
	return "file:///" + uri
}
