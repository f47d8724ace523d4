// Package attestation says which files a merge made from which, as an in-toto Statement v1 with a SLSA
// provenance v1 predicate, and holds files to such a statement. The statement is not signed: that
// is for other tools. It holds no times and no host, so the same merge gives the same bytes.
package attestation

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// The types that a statement names.
const (
	statementType = "https://in-toto.io/Statement/v1"
	predicateType = "https://slsa.dev/provenance/v1"
	buildType     = "https://github.com/loratool/loratool/merge/v1"
	builder       = "https://github.com/loratool/loratool"
)

// maxStatement is the size of the largest statement that is read.
const maxStatement = 64 << 20

// A Resource is a file and its SHA-256. Names are relative to the model's folder, with slashes.
type Resource struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
	// Annotations of a dependency say its role: base or adapter.
	Annotations map[string]string `json:"annotations,omitempty"`
}

// A Statement says what was made (Subject) from what.
type Statement struct {
	Type          string     `json:"_type"`
	Subject       []Resource `json:"subject"`
	PredicateType string     `json:"predicateType"`
	Predicate     struct {
		BuildDefinition struct {
			BuildType            string         `json:"buildType"`
			ExternalParameters   map[string]any `json:"externalParameters"`
			ResolvedDependencies []Resource     `json:"resolvedDependencies"`
		} `json:"buildDefinition"`
		RunDetails struct {
			Builder struct {
				ID      string            `json:"id"`
				Version map[string]string `json:"version"`
			} `json:"builder"`
		} `json:"runDetails"`
	} `json:"predicate"`
}

// New begins a statement of a program's version and of the parameters that the merge was given.
func New(version string, parameters map[string]any) *Statement {
	s := &Statement{Type: statementType, PredicateType: predicateType}
	d := &s.Predicate.BuildDefinition
	d.BuildType, d.ExternalParameters = buildType, parameters
	s.Predicate.RunDetails.Builder.ID = builder
	s.Predicate.RunDetails.Builder.Version = map[string]string{"loratool": version}
	return s
}

// Made adds the files of an output: those of a folder, or the named ones.
func (s *Statement) Made(ctx context.Context, files []string, root string) error {
	for _, f := range files {
		r, err := resource(ctx, f, root)
		if err != nil {
			return err
		}
		s.Subject = append(s.Subject, r)
	}
	slices.SortFunc(s.Subject, func(a, b Resource) int { return strings.Compare(a.Name, b.Name) })
	return nil
}

// From adds the files of an input, a path, in the role of base or adapter. Files of a folder are named with it.
func (s *Statement) From(ctx context.Context, role, input string, files []string) error {
	d := &s.Predicate.BuildDefinition
	for _, f := range files {
		r, err := resource(ctx, f, filepath.Dir(filepath.Clean(input)))
		if err != nil {
			return err
		}
		r.Annotations = map[string]string{"role": role}
		d.ResolvedDependencies = append(d.ResolvedDependencies, r)
	}
	return nil
}

func resource(ctx context.Context, path, root string) (Resource, error) {
	sum, err := digest(ctx, path)
	if err != nil {
		return Resource{}, err
	}
	name, err := filepath.Rel(root, path)
	if err != nil {
		name = filepath.Base(path)
	}
	return Resource{Name: filepath.ToSlash(name), Digest: map[string]string{"sha256": sum}}, nil
}

func digest(ctx context.Context, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", finding.Errorf("files.unreadable", path, "the file cannot be read")
	}
	defer f.Close()
	h := sha256.New()
	buf := make([]byte, 4<<20)
	for {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		n, err := f.Read(buf)
		h.Write(buf[:n])
		if err == io.EOF {
			return hex.EncodeToString(h.Sum(nil)), nil
		}
		if err != nil {
			return "", finding.Errorf("files.unreadable", path, "the file cannot be read")
		}
	}
}

// Files are the files of a model or adapter: all of a folder, or the path itself and the files that its tensors
// lie in. Links are followed.
func Files(path string, tensors []tensor.Tensor) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, finding.Errorf("files.missing", path, "there is no such file")
	}
	if !info.IsDir() {
		files := []string{filepath.Clean(path)}
		for _, t := range tensors {
			if f, ok := t.Src.(interface{ Name() string }); ok {
				files = append(files, filepath.Clean(f.Name()))
			}
		}
		slices.Sort(files)
		return slices.Compact(files), nil
	}
	var files []string
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, finding.Errorf("files.unreadable", path, "the folder cannot be read")
	}
	for _, e := range entries {
		f := filepath.Join(path, e.Name())
		if info, err := os.Stat(f); err == nil && info.Mode().IsRegular() {
			files = append(files, f)
		}
	}
	return files, nil
}

// Open reads a statement: of what a merge was made from, or a manifest of files, one of the two. Inside an envelope
// (DSSE, or a Sigstore bundle) it is read, too; signed then says so, since signatures are checked by the tools that
// make them.
func Open(path string) (s *Statement, m *Manifest, signed bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, false, finding.Errorf("files.missing", path, "the attestation cannot be opened")
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxStatement+1))
	if err != nil || len(b) > maxStatement {
		return nil, nil, false, finding.Errorf("provenance.bad_statement", path, "the attestation cannot be read, or is larger than 64 MiB")
	}
	if b, signed, err = payload(path, b); err != nil {
		return nil, nil, false, err
	}
	var kind struct {
		PredicateType string `json:"predicateType"`
	}
	if err := decode(path, b, &kind); err != nil {
		return nil, nil, false, err
	}
	if kind.PredicateType == manifestType {
		m = &Manifest{}
		if err := decode(path, b, m); err != nil {
			return nil, nil, false, err
		}
		if m.Type != statementType {
			return nil, nil, false, finding.Errorf("provenance.bad_statement", path, "the manifest is not an in-toto statement").Expected(m.Type, statementType)
		}
		if why := m.valid(); why != "" {
			return nil, nil, false, finding.Errorf("provenance.bad_statement", path, "the manifest cannot be relied on: %s", why)
		}
		return nil, m, signed, nil
	}
	s, err = provenance(path, b)
	return s, nil, signed, err
}

// payload takes a statement out of its envelope.
func payload(path string, b []byte) (statement []byte, signed bool, err error) {
	type envelope struct {
		Payload    []byte            `json:"payload"`
		Signatures []json.RawMessage `json:"signatures"`
	}
	var e struct {
		envelope
		Bundled *envelope `json:"dsseEnvelope"`
	}
	if err := decode(path, b, &e); err != nil {
		return nil, false, err
	}
	in := e.envelope
	if e.Bundled != nil {
		in = *e.Bundled
	}
	if in.Payload == nil {
		return b, false, nil
	}
	return in.Payload, len(in.Signatures) > 0, nil
}

// decode reads one JSON document.
func decode(path string, b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(v); err != nil {
		return finding.Errorf("provenance.bad_statement", path, "the attestation is not a statement")
	}
	if _, err := d.Token(); err != io.EOF {
		return finding.Errorf("provenance.bad_statement", path, "something follows the statement")
	}
	return nil
}

// provenance reads a statement about a merge.
func provenance(path string, b []byte) (*Statement, error) {
	s := &Statement{}
	if err := decode(path, b, s); err != nil {
		return nil, err
	}
	switch {
	case s.Type != statementType:
		return nil, finding.Errorf("provenance.bad_statement", path, "the attestation is not an in-toto statement").Expected(s.Type, statementType)
	case s.PredicateType != predicateType:
		return nil, finding.Errorf("provenance.bad_statement", path, "the statement is not one of SLSA provenance").Expected(s.PredicateType, predicateType)
	case s.Predicate.BuildDefinition.BuildType != buildType:
		return nil, finding.Errorf("provenance.bad_statement", path, "the statement is not about a merge").Expected(s.Predicate.BuildDefinition.BuildType, buildType)
	case len(s.Subject) == 0:
		return nil, finding.Errorf("provenance.bad_statement", path, "the statement has no subject")
	}
	return s, nil
}

// Check holds an output to the statement: every subject is there with its digest, and a folder holds nothing else.
func (s *Statement) Check(ctx context.Context, output string) ([]finding.Finding, error) {
	info, err := os.Stat(output)
	if err != nil {
		return nil, finding.Errorf("files.missing", output, "there is no such file")
	}
	dir, folder := output, info.IsDir()
	if !folder {
		dir = filepath.Dir(output)
	}
	var found []finding.Finding
	add := func(f *finding.Finding) { found = append(found, *f) }
	said := map[string]bool{}
	for _, r := range s.Subject {
		path := filepath.Join(dir, filepath.FromSlash(r.Name))
		switch {
		case !filepath.IsLocal(filepath.FromSlash(r.Name)) || strings.ContainsAny(r.Name, "\\\x00"):
			add(finding.Errorf("provenance.bad_name", output, "the attestation names a file outside of the folder").Expected(r.Name, "a plain name"))
			continue
		case said[r.Name]:
			add(finding.Errorf("provenance.duplicate_name", path, "the attestation names the file twice"))
			continue
		}
		said[r.Name] = true
		if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
			add(finding.Errorf("provenance.missing_file", path, "the attestation names a file that is not there"))
			continue
		}
		got, err := digest(ctx, path)
		if err != nil {
			return nil, err
		}
		if got != r.Digest["sha256"] {
			add(finding.Errorf("provenance.digest_mismatch", path, "the file is not the one that was attested").Expected(got, r.Digest["sha256"]))
		}
	}
	if !folder {
		if !said[filepath.Base(output)] {
			add(finding.Errorf("provenance.unexpected_file", output, "the attestation does not name this file"))
		}
		return found, nil
	}
	files, err := Files(output, nil)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if !said[filepath.Base(f)] {
			add(finding.Errorf("provenance.unexpected_file", f, "the attestation does not name this file"))
		}
	}
	return found, nil
}

// CheckFrom requires that every file of an input is among the dependencies of its role, by its digest.
func (s *Statement) CheckFrom(ctx context.Context, role string, files []string) ([]finding.Finding, error) {
	known := map[string]bool{}
	for _, r := range s.Predicate.BuildDefinition.ResolvedDependencies {
		if r.Annotations["role"] == role {
			known[r.Digest["sha256"]] = true
		}
	}
	var found []finding.Finding
	for _, f := range files {
		got, err := digest(ctx, f)
		if err != nil {
			return nil, err
		}
		if !known[got] {
			found = append(found, *finding.Errorf("provenance.other_"+role, f, "the attested merge was not made from this file").Expected(got, "a digest of the attestation"))
		}
	}
	return found, nil
}
