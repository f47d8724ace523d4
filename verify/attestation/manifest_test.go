package attestation

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/finding"
)

// hashes of "abc" and of nothing, from FIPS 180-4 and its examples.
const (
	hashABC  = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
	hashNone = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
)

func encoded(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestManifest holds a manifest to the specification's rules, whose numbers are computed here once more.
func TestManifest(t *testing.T) {
	ctx := context.Background()
	dir := filepath.Join(t.TempDir(), "model")
	write(t, dir, map[string]string{"b.safetensors": "abc", "B.json": "", ".gitignore": "x", "model.sig.json": "old"})
	write(t, filepath.Join(dir, "sub"), map[string]string{"é.txt": "abc"})
	write(t, filepath.Join(dir, ".git"), map[string]string{"HEAD": "x"})
	write(t, filepath.Join(dir, ".github"), map[string]string{"x.yml": "x"})
	if err := os.Symlink("b.safetensors", filepath.Join(dir, "link")); err != nil {
		t.Skip(err)
	}
	own := filepath.Join(dir, "model.sig.json")
	m, err := NewManifest(ctx, dir, nil, own)
	if err != nil {
		t.Fatal(err)
	}
	// Capitals stand before small letters: the order is that of bytes.
	want := []File{{"sha256", hashNone, "B.json"}, {"sha256", hashABC, "b.safetensors"}, {"sha256", hashABC, "sub/é.txt"}}
	if !slices.Equal(m.Predicate.Resources, want) {
		t.Errorf("%+v", m.Predicate.Resources)
	}
	var raw []byte
	for _, h := range []string{hashNone, hashABC, hashABC} {
		b, _ := hex.DecodeString(h)
		raw = append(raw, b...)
	}
	sum := sha256.Sum256(raw)
	if len(m.Subject) != 1 || m.Subject[0].Name != "model" || m.Subject[0].Digest["sha256"] != hex.EncodeToString(sum[:]) {
		t.Errorf("subject %+v", m.Subject)
	}
	var fields struct {
		Type          string `json:"_type"`
		PredicateType string `json:"predicateType"`
		Predicate     struct {
			Serialization struct {
				Method        string
				HashType      string   `json:"hash_type"`
				AllowSymlinks bool     `json:"allow_symlinks"`
				IgnorePaths   []string `json:"ignore_paths"`
			}
		}
	}
	b := encoded(t, m)
	if err := json.Unmarshal(b, &fields); err != nil {
		t.Fatal(err)
	}
	s := fields.Predicate.Serialization
	if fields.Type != "https://in-toto.io/Statement/v1" || fields.PredicateType != "https://model_signing/signature/v1.0" || s.Method != "files" || s.HashType != "sha256" || s.AllowSymlinks ||
		!slices.Equal(s.IgnorePaths, []string{".git", ".gitattributes", ".github", ".gitignore", "model.sig.json"}) {
		t.Errorf("%s", b)
	}
	again, err := NewManifest(ctx, dir, nil, own)
	if err != nil || !bytes.Equal(b, encoded(t, again)) {
		t.Error("the same model gives other bytes")
	}

	write(t, dir, map[string]string{"model.sig.json": string(b)})
	statement, m, signed, err := Open(own)
	if err != nil || statement != nil || m == nil || signed {
		t.Fatalf("%v %v %v %v", statement, m, signed, err)
	}
	check := func(ignore bool, want ...string) {
		t.Helper()
		found, err := m.Check(ctx, dir, own, ignore)
		if err != nil || !slices.Equal(codes(found), want) {
			t.Errorf("%q %v, expected %q", codes(found), err, want)
		}
	}
	// The link was never listed, so it is one too many.
	check(false, "provenance.unexpected_file")
	check(true)
	os.Remove(filepath.Join(dir, "link"))
	check(false)
	write(t, filepath.Join(dir, "sub"), map[string]string{"extra": ""})
	check(false, "provenance.unexpected_file")
	check(true)
	write(t, dir, map[string]string{"b.safetensors": "abd"})
	check(true, "provenance.digest_mismatch")
	os.Remove(filepath.Join(dir, "b.safetensors"))
	if err := os.Symlink("sub/é.txt", filepath.Join(dir, "b.safetensors")); err != nil { // the same content, behind a link
		t.Fatal(err)
	}
	check(true, "provenance.missing_file")

	// In an envelope, and in a bundle around that.
	for name, v := range map[string]any{
		"dsse.json":   map[string]any{"payload": base64.StdEncoding.EncodeToString(b), "payloadType": "application/vnd.in-toto+json", "signatures": []any{map[string]string{"sig": "AA=="}}},
		"bundle.json": map[string]any{"dsseEnvelope": map[string]any{"payload": base64.StdEncoding.EncodeToString(b), "signatures": []any{map[string]string{"sig": "AA=="}}}},
	} {
		path := filepath.Join(write(t, filepath.Join(t.TempDir(), "e"), map[string]string{name: string(encoded(t, v))}), name)
		if _, in, signed, err := Open(path); err != nil || in == nil || !signed || in.Subject[0].Digest["sha256"] != m.Subject[0].Digest["sha256"] {
			t.Errorf("%s: %v %v %v", name, in, signed, err)
		}
	}
}

// TestManifestOfFile lists single files beside others.
func TestManifestOfFile(t *testing.T) {
	ctx := context.Background()
	dir := write(t, filepath.Join(t.TempDir(), "d"), map[string]string{"m-00001-of-00002.gguf": "abc", "m-00002-of-00002.gguf": "", "other": "x"})
	first := filepath.Join(dir, "m-00001-of-00002.gguf")
	m, err := NewManifest(ctx, first, []string{filepath.Join(dir, "m-00002-of-00002.gguf"), first}, filepath.Join(dir, "m.json"))
	if err != nil || len(m.Predicate.Resources) != 2 || m.Predicate.Resources[0].Digest != hashABC || m.Subject[0].Name != "m-00001-of-00002.gguf" {
		t.Fatalf("%+v %v", m, err)
	}
	for model, want := range map[string][]string{first: nil, filepath.Join(dir, "other"): {"provenance.unexpected_file"}} {
		if found, err := m.Check(ctx, model, "", true); err != nil || !slices.Equal(codes(found), want) {
			t.Errorf("%s: %q %v", model, codes(found), err)
		}
	}
}

// TestManifestRefused: a manifest that does not hold together is not held to a model.
func TestManifestRefused(t *testing.T) {
	dir := write(t, filepath.Join(t.TempDir(), "d"), map[string]string{"a": "abc", "b": ""})
	for name, spoil := range map[string]func(m *Manifest){
		"order":    func(m *Manifest) { r := m.Predicate.Resources; r[0], r[1] = r[1], r[0]; spoilSum(m) },
		"twice":    func(m *Manifest) { m.Predicate.Resources[1] = m.Predicate.Resources[0]; spoilSum(m) },
		"outside":  func(m *Manifest) { m.Predicate.Resources[0].Name = "../a"; spoilSum(m) },
		"absolute": func(m *Manifest) { m.Predicate.Resources[0].Name = "/a"; spoilSum(m) },
		"dots":     func(m *Manifest) { m.Predicate.Resources[0].Name = "./a"; spoilSum(m) },
		"sum":      func(m *Manifest) { m.Subject[0].Digest["sha256"] = hashNone },
		"digest":   func(m *Manifest) { m.Predicate.Resources[0].Digest = "00" },
		"other":    func(m *Manifest) { m.Predicate.Resources[0].Algorithm = "md5" },
		"hash":     func(m *Manifest) { m.Predicate.Serialization.HashType = "blake2b" },
		"method":   func(m *Manifest) { m.Predicate.Serialization.Method = "shards" },
		"links":    func(m *Manifest) { m.Predicate.Serialization.AllowSymlinks = true },
		"type":     func(m *Manifest) { m.Type = "x" },
		"empty":    func(m *Manifest) { m.Predicate.Resources = nil },
	} {
		m, err := NewManifest(context.Background(), dir, nil, "")
		if err != nil {
			t.Fatal(err)
		}
		spoil(m)
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, encoded(t, m), 0o666); err != nil {
			t.Fatal(err)
		}
		if _, _, _, err := Open(path); finding.Of(err) == nil || finding.Of(err).Code != "provenance.bad_statement" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func spoilSum(m *Manifest) {
	sum, _ := m.sum()
	m.Subject[0].Digest["sha256"] = sum
}
