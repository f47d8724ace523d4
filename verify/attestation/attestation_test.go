package attestation

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/finding"
)

// write makes files in a folder, and returns it.
func write(t *testing.T, dir string, files map[string]string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func codes(found []finding.Finding) (out []string) {
	for _, f := range found {
		out = append(out, f.Code)
	}
	return out
}

func TestStatement(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	out := write(t, filepath.Join(dir, "out"), map[string]string{"b.safetensors": "abc", "a.json": "{}"})
	base := write(t, filepath.Join(dir, "base"), map[string]string{"w": "base"})
	statement := func() []byte {
		s := New("v1", map[string]any{"adapters": []string{"lora:0.5"}})
		files, err := Files(out, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Made(ctx, files, out); err != nil {
			t.Fatal(err)
		}
		if err := s.From(ctx, "base", base, []string{filepath.Join(base, "w")}); err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	b := statement()
	if !bytes.Equal(b, statement()) {
		t.Error("the same merge gives other bytes")
	}
	path := filepath.Join(dir, "statement.json")
	if err := os.WriteFile(path, b, 0o666); err != nil {
		t.Fatal(err)
	}
	s, _, _, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	// SHA-256 of "abc", from FIPS 180-4.
	if r := s.Subject[1]; r.Name != "b.safetensors" || r.Digest["sha256"] != "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" {
		t.Errorf("subject %+v", r)
	}
	if d := s.Predicate.BuildDefinition.ResolvedDependencies; len(d) != 1 || d[0].Name != "base/w" {
		t.Errorf("dependencies %+v", d)
	}
	check := func(want ...string) {
		t.Helper()
		found, err := s.Check(ctx, out)
		if err != nil || !slices.Equal(codes(found), want) {
			t.Errorf("%q %v, expected %q", codes(found), err, want)
		}
	}
	check()
	write(t, out, map[string]string{"extra": ""})
	check("provenance.unexpected_file")
	write(t, out, map[string]string{"b.safetensors": "abd"})
	check("provenance.digest_mismatch", "provenance.unexpected_file")
	os.Remove(filepath.Join(out, "extra"))
	os.Remove(filepath.Join(out, "b.safetensors"))
	check("provenance.missing_file")
	write(t, out, map[string]string{"b.safetensors": "abc"})
	s.Subject = append(s.Subject, Resource{Name: "../base/w"}, Resource{Name: "/etc/passwd"}, Resource{Name: "a.json"})
	check("provenance.bad_name", "provenance.bad_name", "provenance.duplicate_name")

	for want, file := range map[string]string{"": "w", "provenance.other_base": "x"} {
		write(t, base, map[string]string{"x": "another"})
		found, err := s.CheckFrom(ctx, "base", []string{filepath.Join(base, file)})
		if err != nil || (want == "") != (len(found) == 0) || want != "" && found[0].Code != want {
			t.Errorf("%s: %q %v", file, codes(found), err)
		}
	}
	if found, _ := s.CheckFrom(ctx, "adapter", []string{filepath.Join(base, "w")}); len(found) != 1 {
		t.Error("a base passes for an adapter")
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"empty": "", "list": "[]", "other": `{"_type": "x"}`, "predicate": `{"_type": "https://in-toto.io/Statement/v1", "predicateType": "x"}`,
		"build":    `{"_type": "https://in-toto.io/Statement/v1", "predicateType": "https://slsa.dev/provenance/v1"}`,
		"subject":  `{"_type": "https://in-toto.io/Statement/v1", "predicateType": "https://slsa.dev/provenance/v1", "predicate": {"buildDefinition": {"buildType": "https://github.com/loratool/loratool/merge/v1"}}}`,
		"trailing": `{"_type": "https://in-toto.io/Statement/v1", "predicateType": "https://slsa.dev/provenance/v1"} {}`,
	} {
		write(t, dir, map[string]string{name: text})
		if _, _, _, err := Open(filepath.Join(dir, name)); finding.Of(err) == nil || finding.Of(err).Code != "provenance.bad_statement" {
			t.Errorf("%s: %v", name, err)
		}
	}
}
