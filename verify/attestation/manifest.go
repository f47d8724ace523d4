package attestation

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/loratool/loratool/finding"
)

// manifestType is the predicate of a manifest by OpenSSF's model signing specification (OMS), version 1.0.
const manifestType = "https://model_signing/signature/v1.0"

// ignored are the paths that the specification leaves out of every manifest.
var ignored = []string{".git", ".gitattributes", ".github", ".gitignore"}

// A Manifest lists the files of a model with their SHA-256, in the form that OMS signs: the payload of its
// envelope, an in-toto Statement v1. It is not signed, for other tools to sign.
type Manifest struct {
	Type          string     `json:"_type"`
	Subject       []Resource `json:"subject"`
	PredicateType string     `json:"predicateType"`
	Predicate     struct {
		Resources     []File        `json:"resources"` // sorted by the bytes of their names
		Serialization Serialization `json:"serialization"`
	} `json:"predicate"`
}

// A File of a manifest: its path below the model, with slashes, and its digest in hexadecimal.
type File struct {
	Algorithm string `json:"algorithm"`
	Digest    string `json:"digest"`
	Name      string `json:"name"`
}

// A Serialization says how a manifest was made.
type Serialization struct {
	AllowSymlinks bool     `json:"allow_symlinks"`
	HashType      string   `json:"hash_type"`
	IgnorePaths   []string `json:"ignore_paths"`
	Method        string   `json:"method"` // files; the specification also knows shards
}

// NewManifest lists a model: a folder with all of its files and subfolders, or files beside one another. own is where
// the manifest will be, which is not listed where it lies in the folder. Symbolic links are never listed.
func NewManifest(ctx context.Context, model string, files []string, own string) (*Manifest, error) {
	m := &Manifest{Type: statementType, PredicateType: manifestType}
	m.Predicate.Serialization = Serialization{HashType: "sha256", IgnorePaths: slices.Clone(ignored), Method: "files"}
	root := filepath.Dir(filepath.Clean(model))
	var names []string
	if info, err := os.Stat(model); err == nil && info.IsDir() {
		root = filepath.Clean(model)
		if rel, err := below(root, own); err == nil {
			m.Predicate.Serialization.IgnorePaths = append(m.Predicate.Serialization.IgnorePaths, rel)
		}
		if names, _, err = tree(root, m.Predicate.Serialization.IgnorePaths); err != nil {
			return nil, err
		}
	} else {
		for _, f := range files {
			names = append(names, filepath.Base(f))
		}
		slices.Sort(names)
	}
	for _, n := range names {
		if !utf8.ValidString(n) {
			return nil, finding.Errorf("provenance.bad_name", filepath.Join(root, n), "the name is not UTF-8, which manifests are written in")
		}
		sum, err := digest(ctx, filepath.Join(root, filepath.FromSlash(n)))
		if err != nil {
			return nil, err
		}
		m.Predicate.Resources = append(m.Predicate.Resources, File{Algorithm: "sha256", Digest: sum, Name: n})
	}
	sum, ok := m.sum()
	if !ok {
		return nil, finding.Errorf("provenance.bad_name", model, "the model has no files")
	}
	m.Subject = []Resource{{Name: filepath.Base(filepath.Clean(model)), Digest: map[string]string{"sha256": sum}}}
	return m, nil
}

// sum is the digest of the whole model: SHA-256 over the files' digests, as bytes, one after the other in order.
func (m *Manifest) sum() (string, bool) {
	h := sha256.New()
	for _, r := range m.Predicate.Resources {
		b, err := hex.DecodeString(r.Digest)
		if err != nil || len(b) != sha256.Size {
			return "", false
		}
		h.Write(b)
	}
	return hex.EncodeToString(h.Sum(nil)), len(m.Predicate.Resources) > 0
}

// below is a path relative to a folder that it lies in.
func below(root, file string) (string, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return "", err
	}
	if file, err = filepath.Abs(file); err != nil {
		return "", err
	}
	rel, err := filepath.Rel(root, file)
	if err == nil && !filepath.IsLocal(rel) {
		err = fs.ErrNotExist
	}
	return filepath.ToSlash(rel), err
}

// tree lists the regular files below a folder and what else is there that is no folder, both sorted by the bytes of
// their names, without ignored paths and what lies below these.
func tree(root string, ignore []string) (files, others []string, err error) {
	err = filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return finding.Errorf("files.unreadable", p, "the folder cannot be read")
		}
		rel, err := filepath.Rel(root, p)
		if err != nil || rel == "." {
			return err
		}
		rel = filepath.ToSlash(rel)
		switch {
		case slices.Contains(ignore, rel) && e.IsDir():
			return fs.SkipDir
		case slices.Contains(ignore, rel), e.IsDir():
		case e.Type().IsRegular():
			files = append(files, rel)
		default:
			others = append(others, rel)
		}
		return nil
	})
	slices.Sort(files)
	slices.Sort(others)
	return files, others, err
}

// valid says what is wrong with a manifest in itself, "" for nothing.
func (m *Manifest) valid() string {
	s := m.Predicate.Serialization
	sum, ok := m.sum()
	switch {
	case s.Method != "files":
		return "its files are not listed whole, which is the only method that is checked"
	case s.HashType != "sha256":
		return "its digests are not SHA-256"
	case s.AllowSymlinks:
		return "it follows symbolic links"
	case !ok:
		return "it lists no files, or a digest is not one of SHA-256"
	case len(m.Subject) != 1 || m.Subject[0].Digest["sha256"] != sum:
		return "its own digest is not that of its list"
	}
	for i, r := range m.Predicate.Resources {
		switch {
		case r.Algorithm != "sha256":
			return "a digest is not SHA-256"
		case i > 0 && r.Name == m.Predicate.Resources[i-1].Name:
			return "it lists a file twice"
		case i > 0 && r.Name < m.Predicate.Resources[i-1].Name:
			return "its files are not sorted"
		case !filepath.IsLocal(filepath.FromSlash(r.Name)) || strings.ContainsAny(r.Name, "\\\x00") || path.Clean(r.Name) != r.Name:
			return "it names a file outside of the model"
		}
	}
	return ""
}

// Check holds a model to the manifest: every listed file is there, no link, with its digest. Files that are not listed
// are errors in a folder, unless they are to be ignored; beside a model of single files nothing else is looked at. own
// is the manifest, which may lie in the folder.
func (m *Manifest) Check(ctx context.Context, model, own string, ignoreUnsigned bool) ([]finding.Finding, error) {
	info, err := os.Stat(model)
	if err != nil {
		return nil, finding.Errorf("files.missing", model, "there is no such file")
	}
	var found []finding.Finding
	root := filepath.Clean(model)
	if !info.IsDir() {
		root = filepath.Dir(root)
	}
	listed := map[string]bool{}
	for _, r := range m.Predicate.Resources {
		listed[r.Name] = true
		file := filepath.Join(root, filepath.FromSlash(r.Name))
		if fi, err := os.Lstat(file); err != nil || !fi.Mode().IsRegular() {
			found = append(found, *finding.Errorf("provenance.missing_file", file, "the manifest lists a file that is not there, or is none of its own"))
			continue
		}
		got, err := digest(ctx, file)
		if err != nil {
			return nil, err
		}
		if got != r.Digest {
			found = append(found, *finding.Errorf("provenance.digest_mismatch", file, "the file is not the one that the manifest lists").Expected(got, r.Digest))
		}
	}
	var others []string
	if info.IsDir() {
		ignore := slices.Concat(ignored, m.Predicate.Serialization.IgnorePaths)
		if rel, err := below(root, own); err == nil {
			ignore = append(ignore, rel)
		}
		files, links, err := tree(root, ignore)
		if err != nil {
			return nil, err
		}
		others = append(files, links...)
	} else {
		others = []string{filepath.Base(model)}
	}
	for _, n := range others {
		if !listed[n] && !(ignoreUnsigned && info.IsDir()) {
			found = append(found, *finding.Errorf("provenance.unexpected_file", filepath.Join(root, filepath.FromSlash(n)), "the manifest does not list this file").
				Hinted("--ignore-unsigned-files accepts files that are not listed"))
		}
	}
	return found, nil
}
