package report

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/verify"
)

// hostile are names that try to leave the place where a report puts them.
var hostile = []string{
	"a\n::error file=x::gotcha", "\x1b[31mred", "</script><script>alert(1)</script>", "]]><x/>", `" onmouseover="alert(1)`, "\u202egnp.exe",
	"a\x00b", "\xff\xfe", "a|b`c`", "[x](https://example.com)", "{0}", "\u2028\u0085", "\U000e0001", "%0A::warning::", "a,b:c", "<!--", "\ufffe", "${{ github.token }}",
}

// sample is a merge of n layers with seven modules each, measured and checked.
func sample(layers int, names ...string) *verify.Report {
	r := &verify.Report{
		SchemaVersion: verify.SchemaVersion,
		Provenance: &verify.Provenance{
			Tool: "loratool v1.2.3", Command: "verify", Subjects: []string{"out/model.safetensors"}, Base: "base", Adapters: []string{"lora:0.75"},
			Check: "sample:8", Device: "auto", Seed: 7,
		},
		Findings:  []finding.Finding{},
		Unchanged: &verify.Unchanged{Tensors: 3, Bytes: 4096},
		Runtime:   &verify.RuntimeUse{Version: "1.29.0", Provider: "cpu", Modules: 8, Of: 7 * layers},
	}
	var values []float64
	var modules []string
	for l := range layers {
		for k, kind := range []string{"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"} {
			name := fmt.Sprintf("model.layers.%d.%s", l, kind)
			m := verify.Module{
				Module: name, Tensor: name + ".weight", Type: "BF16", Retention: 1 - 0.001*float64(k*l%97), RelError: 1e-3 / float64(1+k), Ratio: 0.002 * float64(1+l) / float64(1+k),
				Exact: verify.Exact{
					Rows: 32, Total: 4096, Elements: 131072, Rounded: 131072,
					Errors: &verify.Errors{Unit: verify.Steps, Width: 1.0 / 16, Counts: []int64{16000, 16100, 16400, 16500, 16500, 16500, 16500, 16572, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
				}, Pass: true,
			}
			for i := range 8 {
				m.SingularValues = append(m.SingularValues, float32(0.5*math.Pow(0.7, float64(i+l%3))))
			}
			r.Modules = append(r.Modules, m)
			values, modules = append(values, m.Retention), append(modules, name)
		}
	}
	close, none := 0.999999, 0.0
	r.WholeModel = &verify.WholeModel{
		Provider: "cpu", Seed: 7, Branches: 7 * layers, Pass: true,
		Inputs:  []verify.ModelInput{{Name: "input_ids", DType: "I64", Shape: []int64{1, 8}, Source: "random below 256"}},
		Outputs: []verify.ModelOutput{{Name: "logits", DType: "F32", Shape: []int64{1, 8, 256}, RelError: 1e-7, Limit: 1e-5, Cosine: &close, Argmax: &close, Effect: 0.1, Retention: &close, Pass: true}},
	}
	for _, n := range names {
		w := r.WholeModel
		w.Pass, w.Why, w.Provider = false, n, n
		w.Inputs = append(w.Inputs, verify.ModelInput{Name: n, DType: "F32", Source: n})
		w.Outputs = append(w.Outputs, verify.ModelOutput{Name: n + "/out", DType: "F32", RelError: 1, Limit: 1e-5, Effect: 1, Retention: &none, Why: n})
		r.Findings = append(r.Findings, *finding.Errorf("merge.whole_model", n, "%s", n).In(n + "/out"))
		r.Modules = append(r.Modules, verify.Module{Module: n, Tensor: n + "/t", Type: "F16", Retention: 0.1, Ratio: 0.5, Why: n, Provider: n})
		f := finding.Errorf("merge.equivalence", n, "%s is not right", n).In(n+"/t").Expected(n, "other").Hinted("look at " + n)
		f.Module = n
		r.Findings = append(r.Findings, *f, *finding.Warnf("adapter.no_effect", n, "odd: %s", n))
		values, modules = append(values, 0.1), append(modules, n)
	}
	r.Retention = verify.SummarizeRetention(modules, values)
	r.Verdict = verify.Judge(r.Findings)
	return r
}

// forms are all outputs of a document.
func forms(t testing.TB, d *Document) map[string][]byte {
	out := map[string][]byte{}
	for _, f := range []Format{JSON, JUnit, SARIF, HTML} {
		b, err := Render(f, d)
		if err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		out[string(f)] = b
	}
	var a, s bytes.Buffer
	if err := WriteAnnotations(&a, d); err != nil {
		t.Fatal(err)
	}
	if err := WriteSummary(&s, d, 1<<20); err != nil {
		t.Fatal(err)
	}
	out["annotations"], out["summary"] = a.Bytes(), s.Bytes()
	return out
}

// requireClean fails on anything that a name could have smuggled in.
func requireClean(t *testing.T, d *Document) {
	t.Helper()
	all := forms(t, d)
	plain := forms(t, FromVerify(sample(1, "plain")))
	for form, b := range all {
		if !utf8.Valid(b) {
			t.Errorf("%s is not UTF-8", form)
		}
		for i, r := range string(b) {
			if !unicode.IsPrint(r) && r != '\n' && r != '\t' && r != utf8.RuneError {
				t.Fatalf("%s holds %U near %q", form, r, b[max(0, i-20):min(len(b), i+20)])
			}
		}
	}
	for form, v := range map[string]any{"json": nil, "sarif": nil} {
		if err := json.Unmarshal(all[form], &v); err != nil {
			t.Errorf("%s: %v", form, err)
		}
	}
	x := xml.NewDecoder(bytes.NewReader(all["junit"]))
	for {
		tok, err := x.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("junit: %v", err)
		}
		if e, ok := tok.(xml.StartElement); ok && !strings.Contains("testsuites testsuite properties property testcase failure skipped system-out", e.Name.Local) {
			t.Errorf("junit holds an element %s", e.Name.Local)
		}
	}
	for _, tag := range []string{"<script", "</script", "<!--", "<style"} {
		if got, want := strings.Count(string(all["html"]), tag), strings.Count(string(plain["html"]), tag); got != want {
			t.Errorf("html holds %d %s, expected %d", got, tag, want)
		}
	}
	for _, line := range strings.Split(strings.TrimSuffix(string(all["annotations"]), "\n"), "\n") {
		if line != "" && !strings.HasPrefix(line, "::error ") && !strings.HasPrefix(line, "::warning ") && !strings.HasPrefix(line, "::notice ") {
			t.Errorf("annotations hold the line %q", line)
		}
	}
	if got, want := strings.Count(string(all["annotations"]), "\n"), min(10, d.count(finding.Error))+min(10, d.count(finding.Warning)); got > want {
		t.Errorf("%d annotations, expected at most %d", got, want)
	}
	for _, raw := range []string{"<script", "<x/>", "<!--", "](h"} {
		if strings.Contains(string(all["summary"]), raw) {
			t.Errorf("the summary holds %s", raw)
		}
	}
}

func TestHostileNames(t *testing.T) {
	for _, n := range hostile {
		requireClean(t, FromVerify(sample(1, n)))
	}
	requireClean(t, FromVerify(sample(1, hostile...)))
}

func FuzzReport(f *testing.F) {
	for _, n := range hostile {
		f.Add(n)
	}
	f.Fuzz(func(t *testing.T, name string) {
		d := FromVerify(sample(1, name, "model.layers.0."+name))
		d.Known, d.Baseline = d.Findings[:1], true
		requireClean(t, d)
	})
}

func TestSameBytes(t *testing.T) {
	first := forms(t, FromVerify(sample(9, hostile...)))
	for range 3 {
		if diff := cmp.Diff(first, forms(t, FromVerify(sample(9, hostile...)))); diff != "" {
			t.Fatal(diff)
		}
	}
}

func TestJUnit(t *testing.T) {
	d := FromVerify(sample(2, "odd"))
	d.Findings = append(d.Findings, *finding.Errorf("merge.completeness", "out", "a tensor of the base is missing").In("gone"))
	d.Known = []finding.Finding{*finding.Warnf("numeric.nan_inf", "out", "NaN").In("old")}
	type testCase struct {
		Name    string `xml:"name,attr"`
		Failure *struct {
			Type string `xml:"type,attr"`
			Text string `xml:",chardata"`
		} `xml:"failure"`
		Skipped *struct{} `xml:"skipped"`
	}
	var got struct {
		Tests    int `xml:"tests,attr"`
		Failures int `xml:"failures,attr"`
		Suites   []struct {
			Name     string     `xml:"name,attr"`
			Tests    int        `xml:"tests,attr"`
			Failures int        `xml:"failures,attr"`
			Cases    []testCase `xml:"testcase"`
		} `xml:"testsuite"`
	}
	for failOn, want := range map[finding.Level]int{finding.Error: 3, finding.Warning: 4} {
		d.FailOn = failOn
		b, err := Render(JUnit, d)
		if err != nil {
			t.Fatal(err)
		}
		got.Suites = nil
		if err := xml.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
		if len(got.Suites) != 3 || got.Tests != 15+2+3 || got.Failures != want || got.Suites[0].Tests != 15 || got.Suites[0].Failures != 1 || got.Suites[1].Tests != 2 || got.Suites[1].Failures != 1 {
			t.Fatalf("--fail-on %s: %+v", failOn, got)
		}
		n := 0
		for _, s := range got.Suites {
			if s.Tests != len(s.Cases) {
				t.Errorf("%s says %d tests and has %d", s.Name, s.Tests, len(s.Cases))
			}
			for _, c := range s.Cases {
				if c.Failure != nil {
					n++
				}
				if (c.Skipped != nil) != strings.Contains(c.Name, "old") {
					t.Errorf("%s is skipped: %v", c.Name, c.Skipped != nil)
				}
			}
		}
		if n != want {
			t.Errorf("--fail-on %s: %d cases fail, expected %d", failOn, n, want)
		}
	}
	if c := got.Suites[0].Cases[14]; c.Name != "odd/t" || c.Failure == nil || c.Failure.Type != "merge.equivalence" || !strings.Contains(c.Failure.Text, "hint: look at odd") {
		t.Errorf("the module that fails: %+v", c)
	}
	b, err := Render(JUnit, FromVerify(verify.Rejected(finding.Warnf("container.big_endian", "x", "odd"))))
	if err != nil || !strings.Contains(string(b), `failures="0"`) {
		t.Errorf("a warning alone: %v\n%s", err, b)
	}
}

func TestSARIF(t *testing.T) {
	d := FromVerify(sample(1, "odd dir/weights: 50%"))
	d.Known, d.Baseline = []finding.Finding{*finding.Warnf("numeric.nan_inf", "/abs/x.gguf", "see [a](b) and {0}").In("old")}, true
	b, err := Render(SARIF, d)
	if err != nil {
		t.Fatal(err)
	}
	var log sarifLog
	if err := json.Unmarshal(b, &log); err != nil {
		t.Fatal(err)
	}
	run := log.Runs[0]
	if log.Version != "2.1.0" || len(log.Runs) != 1 || len(run.Results) != 4 || run.Tool.Driver.Name != "loratool" || run.Tool.Driver.Version != "v1.2.3" {
		t.Fatalf("%+v", log)
	}
	for i, want := range []struct{ rule, level, uri, state string }{
		{"merge.whole_model", "error", "odd%20dir/weights%3A%2050%25", "new"},
		{"merge.equivalence", "error", "odd%20dir/weights%3A%2050%25", "new"},
		{"adapter.no_effect", "warning", "odd%20dir/weights%3A%2050%25", "new"},
		{"numeric.nan_inf", "warning", "file:///abs/x.gguf", "unchanged"},
	} {
		r := run.Results[i]
		if r.RuleID != want.rule || r.Level != want.level || run.Tool.Driver.Rules[r.RuleIndex].ID != r.RuleID || r.BaselineState != want.state {
			t.Errorf("result %d: %+v", i, r)
		}
		if at := r.Locations[0].Physical; at.Artifact.URI != want.uri || at.Region.StartLine != 1 {
			t.Errorf("result %d lies at %+v, expected %s", i, at, want.uri)
		}
		if len(r.Fingerprints["loratool/v1"]) != 32 {
			t.Errorf("result %d has the fingerprints %v", i, r.Fingerprints)
		}
	}
	if got, want := run.Results[3].Message.Text, `old: see [a\](b) and {{0}}`; got != want || run.Results[3].Suppressions[0].Kind != "external" {
		t.Errorf("got %q, expected %q", got, want)
	}
}

func TestAnnotations(t *testing.T) {
	d := &Document{Findings: []finding.Finding{
		*finding.Errorf("merge.equivalence", "a,b:c.gguf", "100%% wrong").In("x\ny"),
		*finding.Warnf("adapter.no_effect", "", "nothing"),
		{Code: "match.summary", Level: finding.Info, Message: "14 fit"},
	}}
	want := "::error file=a%2Cb%3Ac.gguf,title=loratool%3A merge.equivalence::a,b:c.gguf: x\\x0ay: 100%25 wrong\n" +
		"::warning title=loratool%3A adapter.no_effect::nothing\n" +
		"::notice title=loratool%3A match.summary::14 fit\n"
	if got := string(forms(t, d)["annotations"]); got != want {
		t.Errorf("got\n%s\nexpected\n%s", got, want)
	}
	d.Findings = nil
	for i := range 30 {
		d.Findings = append(d.Findings, *finding.Errorf([]string{"merge.equivalence", "merge.not_merged"}[i%2], "f", "wrong").In(fmt.Sprint(i)))
	}
	want = "::error file=f,title=loratool%3A merge.equivalence::f: 0: wrong (and 14 more of this kind)\n" +
		"::error file=f,title=loratool%3A merge.not_merged::f: 1: wrong (and 14 more of this kind)\n"
	if got := string(forms(t, d)["annotations"]); got != want {
		t.Errorf("got\n%s\nexpected\n%s", got, want)
	}
}

func TestSummaryLimit(t *testing.T) {
	d := FromVerify(sample(30, hostile...))
	for _, limit := range []int{0, 100, 1000, 5000} {
		var b bytes.Buffer
		if err := WriteSummary(&b, d, limit); err != nil {
			t.Fatal(err)
		}
		if b.Len() > limit || b.Len() > 0 && !bytes.HasSuffix(b.Bytes(), []byte("\n")) {
			t.Errorf("limit %d: %d bytes", limit, b.Len())
		}
	}
	all := string(forms(t, d)["summary"])
	for _, want := range []string{"### loratool verify: reject", "median", `model\.layers\.`, "others have more"} {
		if !strings.Contains(all, want) {
			t.Errorf("the summary lacks %q:\n%s", want, all)
		}
	}
}

func TestPlaces(t *testing.T) {
	for _, c := range []struct {
		name, prefix string
		layer        int
		kind         string
	}{
		{"model.layers.12.self_attn.q_proj", "model.layers", 12, "self_attn.q_proj"},
		{"down_blocks.1.attentions.0.to_q", "down_blocks", 1, "attentions.0.to_q"},
		{"lm_head", "", 0, "lm_head"},
		{"0.weight", "", 0, "0.weight"},
		{"a.99999999999999999999.b", "", 0, "a.99999999999999999999.b"},
		{"a.-1.b", "", 0, "a.-1.b"},
	} {
		prefix, layer, kind := place(c.name)
		if prefix != c.prefix || layer != c.layer || kind != c.kind {
			t.Errorf("%s: %q %d %q", c.name, prefix, layer, kind)
		}
	}
}

func TestHeatMaps(t *testing.T) {
	d := FromVerify(sample(3, "lm_head"))
	maps := heatMaps(d.Modules, paintRetention)
	if len(maps) != 2 || maps[0].Prefix != "model.layers" || len(maps[0].Rows) != 7 || !cmp.Equal(maps[0].Layers, []int{0, 1, 2}) || len(maps[1].Rows) != 1 {
		t.Fatalf("%+v", maps)
	}
	n := 0
	for _, m := range maps {
		for _, r := range m.Rows {
			for _, c := range r.Cells {
				if c.Module != nil {
					n++
				}
			}
		}
	}
	if n != len(d.Modules) {
		t.Errorf("%d cells show a module, expected %d", n, len(d.Modules))
	}
	for r, want := range map[float64]string{1: "r7", 0.995: "r7", 0.989: "r6", 0.9: "r5", 0.5: "r2", 0: "r0", -3: "r0", 1.004: "r7", 2: "r0", 1.06: "r5", math.Inf(1): "r0", math.NaN(): "r0"} {
		if got := paintRetention(Module{Retention: r, Pass: true}).Class; got != want {
			t.Errorf("retention %g is painted %s, expected %s", r, got, want)
		}
	}
	for r, want := range map[float64]string{0: "q0", 1e-9: "q0", 0.0032: "q3", 1: "q8", 1e9: "q8", math.Inf(1): "q8"} {
		if got := paintRatio(Module{Ratio: r}).Class; got != want {
			t.Errorf("ratio %g is painted %s, expected %s", r, got, want)
		}
	}
}

// TestFromMerge: what the merge measured over all rows stands before what its check sampled.
func TestFromMerge(t *testing.T) {
	stats := []merge.Stats{{Tensor: "a.weight", Module: "a", Type: "BF16", Retention: 0.9, Ratio: 0.1}, {Tensor: "b.weight", Module: "b", Type: "BF16", Retention: 0.8}}
	check := &verify.Report{Modules: []verify.Module{{Tensor: "a.weight", Module: "a", Retention: 0.7, RelError: 0.01, Why: "wrong", Exact: verify.Exact{Rows: 4, Total: 8}}}}
	want := []Module{
		{Module: "a", Tensor: "a.weight", Type: "BF16", Retention: 0.9, Ratio: 0.1, RelError: 0.01, Rows: 4, Total: 8, Checked: true, Why: "wrong"},
		{Module: "b", Tensor: "b.weight", Type: "BF16", Retention: 0.8, Pass: true},
	}
	if diff := cmp.Diff(want, FromMerge(stats, check).Modules); diff != "" {
		t.Error(diff)
	}
}

// TestAssets holds uPlot to the release that its file names.
func TestAssets(t *testing.T) {
	said, err := assets.ReadFile("assets/uPlot.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"uPlot.iife.min.js", "uPlot.min.css"} {
		sum := sha256.Sum256([]byte(asset(name)))
		if line := hex.EncodeToString(sum[:]) + "  " + name; !strings.Contains(string(said), line) {
			t.Errorf("uPlot.txt lacks %s", line)
		}
	}
	if !strings.Contains(asset("uPlot.iife.min.js"), "(v1.6.32)") {
		t.Error("uPlot is not 1.6.32")
	}
}

func TestEndings(t *testing.T) {
	for name, want := range map[string]Format{"a.json": JSON, "A.XML": JUnit, "x/y.sarif": SARIF, "r.html": HTML, "r.htm": "", "json": "", "": "", "a.json.gz": ""} {
		if got, ok := ByEnding(name); got != want || ok != (want != "") {
			t.Errorf("%q is %q, expected %q", name, got, want)
		}
	}
}

func BenchmarkRender(b *testing.B) {
	d := FromVerify(sample(715, "odd"))
	for _, f := range []Format{JSON, JUnit, SARIF, HTML} {
		b.Run(string(f), func(b *testing.B) {
			for b.Loop() {
				out, err := Render(f, d)
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(int64(len(out)))
			}
		})
	}
}
