package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/onnxruntime"
)

// schemas are the published JSON schemas, by file name.
type schemas map[string]map[string]any

func readSchemas(t *testing.T) schemas {
	t.Helper()
	files, err := filepath.Glob("../../docs/schema/*.schema.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no schemas: %v", err)
	}
	s := schemas{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var v map[string]any
		if err := json.Unmarshal(b, &v); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		s[filepath.Base(f)] = v
	}
	return s
}

// keywords are those of draft 2020-12 that the schemas use and check knows.
var keywords = []string{"$schema", "$id", "$defs", "$ref", "title", "description", "type", "properties", "required", "items", "additionalProperties", "enum", "const", "minimum", "pattern"}

// check lists what a value has against a schema of a file. It is stricter than the schema: a property that the
// schema does not name is a fault, so that nothing is written that is not published.
func (s schemas) check(file string, schema map[string]any, v any, at string) (faults []string) {
	fault := func(format string, a ...any) { faults = append(faults, at+": "+fmt.Sprintf(format, a...)) }
	for k := range schema {
		if !slices.Contains(keywords, k) {
			fault("the schema's keyword %s is not known here", k)
		}
	}
	if ref, ok := schema["$ref"].(string); ok {
		name, fragment, _ := strings.Cut(ref, "#/$defs/")
		if name == "" {
			name = file
		}
		target := s[name]
		if fragment != "" && target != nil {
			target, _ = target["$defs"].(map[string]any)[fragment].(map[string]any)
		}
		if target == nil {
			fault("%s leads nowhere", ref)
			return faults
		}
		return append(faults, s.check(name, target, v, at)...)
	}
	if want, ok := schema["const"]; ok && v != want {
		fault("%v, expected %v", v, want)
	}
	if want, ok := schema["enum"].([]any); ok && !slices.Contains(want, v) {
		fault("%v is none of %v", v, want)
	}
	switch want := schema["type"].(type) {
	case string:
		if !isType(v, want) {
			fault("%T is no %s", v, want)
		}
	case []any:
		if !slices.ContainsFunc(want, func(w any) bool { return isType(v, w.(string)) }) {
			fault("%T is none of %v", v, want)
		}
	}
	switch v := v.(type) {
	case string:
		if p, ok := schema["pattern"].(string); ok && !regexp.MustCompile(p).MatchString(v) {
			fault("%q does not match %s", v, p)
		}
	case float64:
		if least, ok := schema["minimum"].(float64); ok && v < least {
			fault("%g is below %g", v, least)
		}
	case []any:
		items, _ := schema["items"].(map[string]any)
		for i, x := range v {
			faults = append(faults, s.check(file, items, x, fmt.Sprintf("%s[%d]", at, i))...)
		}
	case map[string]any:
		properties, _ := schema["properties"].(map[string]any)
		others, _ := schema["additionalProperties"].(map[string]any)
		required, _ := schema["required"].([]any)
		for _, r := range required {
			if _, ok := v[r.(string)]; !ok {
				fault("%s is missing", r)
			}
		}
		for k, x := range v {
			p, ok := properties[k].(map[string]any)
			if !ok {
				p = others
			}
			if p == nil {
				fault("%s is not in the schema", k)
				continue
			}
			faults = append(faults, s.check(file, p, x, at+"."+k)...)
		}
	}
	return faults
}

func isType(v any, want string) bool {
	switch v := v.(type) {
	case nil:
		return want == "null"
	case string:
		return want == "string"
	case bool:
		return want == "boolean"
	case float64:
		return want == "number" || want == "integer" && v == math.Trunc(v)
	case []any:
		return want == "array"
	case map[string]any:
		return want == "object"
	}
	return false
}

// TestSchemas holds what verify and merge print and write to the published schemas.
func TestSchemas(t *testing.T) {
	s := readSchemas(t)
	tiny := "../../testdata/tiny-llama/"
	base, adapter := tiny+"base", tiny+"adapter"
	dir := t.TempDir()
	out, quantized, report := filepath.Join(dir, "out"), filepath.Join(dir, "q.gguf"), filepath.Join(dir, "r.json")
	whole := exitDone
	if _, err := onnxruntime.Locate(""); err != nil {
		t.Logf("the report on whole models is not held to its schema: %v", err)
		whole = exitFailed
	}
	for _, c := range []struct {
		file   string
		status int
		args   []string
	}{
		{"merge-report", exitDone, []string{"merge", base, "-a", adapter, "-o", out}},
		{"merge-report", exitDone, []string{"merge", base, "-a", adapter + ":0.5", "-o", filepath.Join(dir, "off"), "--check", "off"}},
		{"merge-report", exitDone, []string{"merge", tiny + "base.onnx", "-a", adapter, "-o", filepath.Join(dir, "m.onnx"), "--check", "all"}},
		{"merge-report", exitDone, []string{"merge", tiny + "base-q8_0.gguf", "-a", adapter, "-o", quantized}},
		{"verify-report", exitDone, []string{"verify", out, "--base", base, "-a", adapter, "--seed", "3"}},
		{"verify-report", exitFound, []string{"verify", base, "--base", base, "-a", adapter, "--report", report}},
		{"verify-report", exitDone, []string{"verify", base, "--base", base, "-a", adapter, "--baseline", report}},
		{"verify-report", exitDone, []string{"verify", adapter, "--base", base}},
		{"verify-report", whole, []string{"verify", filepath.Join(dir, "m.onnx"), "--base", tiny + "base.onnx", "-a", adapter, "--whole-model"}},
		{"verify-report", exitDone, []string{"verify", out, "--tensors"}},
		{"verify-report", exitDone, []string{"verify", out, quantized, adapter}},
		{"verify-report", exitFailed, []string{"verify", "nowhere"}},
		{"verify-report", exitUsage, []string{"verify"}},
	} {
		a := ask(t, c.args...)
		if a.status != c.status {
			t.Errorf("%q: exit status %d, expected %d\n%s", c.args, a.status, c.status, a.err)
		}
		var v any
		if err := json.Unmarshal([]byte(a.out), &v); err != nil {
			t.Fatal(err)
		}
		file := c.file + ".schema.json"
		for _, f := range s.check(file, s[file], v, "$") {
			t.Errorf("%q: %s", c.args, f)
		}
	}
	// The validator itself must be able to fail.
	var bad any
	if err := json.Unmarshal([]byte(`{"schema_version": 2, "verdict": "fine", "findings": [{"code": "x", "level": "error", "nope": 1}], "modules": {}, "unchanged": {"tensors": -1.5, "bytes": 0, "whole": false}}`), &bad); err != nil {
		t.Fatal(err)
	}
	if faults := s.check("verify-report.schema.json", s["verify-report.schema.json"], bad, "$"); len(faults) != 8 {
		t.Errorf("%d faults, expected 8: %q", len(faults), faults)
	}
}
