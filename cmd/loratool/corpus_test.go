package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/internal/corpus"
)

// A badInput is a case of a manifest of the corpus badinputs.
type badInput struct {
	File, Kind, Entry, Base, Expect, Reason, Global string
	Symlinks                                        []string
	Setup                                           []struct{ Op, Path, Target, Hex string }
}

func badInputs(t *testing.T, kind string) (dir string, cases []badInput) {
	t.Helper()
	dir = corpus.Path(t, "badinputs", kind)
	b, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var m struct{ Cases []badInput }
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	return dir, m.Cases
}

// path is where a case lies, or a copy of it that has been set up.
func (c badInput) path(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, c.File)
	if len(c.Setup)+len(c.Symlinks) > 0 {
		at := filepath.Join(t.TempDir(), c.File)
		if err := os.CopyFS(at, os.DirFS(path)); err != nil {
			t.Skip(err)
		}
		for _, link := range c.Symlinks { // a checkout without links has files that hold their targets
			target, err := os.ReadFile(filepath.Join(path, link))
			if st, e := os.Lstat(filepath.Join(path, link)); e == nil && st.Mode()&fs.ModeSymlink != 0 {
				var to string
				to, err = os.Readlink(filepath.Join(path, link))
				target = []byte(to)
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(filepath.Join(at, link)); err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
			if err := os.Symlink(string(target), filepath.Join(at, link)); err != nil {
				t.Skip(err)
			}
		}
		for _, s := range c.Setup {
			var err error
			switch s.Op {
			case "hardlink":
				err = os.Link(filepath.Join(at, s.Target), filepath.Join(at, s.Path))
			case "write":
				var b []byte
				if b, err = hex.DecodeString(s.Hex); err == nil {
					err = os.WriteFile(filepath.Join(at, s.Path), b, 0o666)
				}
			}
			if err != nil {
				t.Skip(err)
			}
		}
		path = at
	}
	if c.Entry != "" {
		path = filepath.Join(path, c.Entry)
	}
	return path
}

// An answer is what the program said.
type answer struct {
	status   int
	out, err string
	findings []finding.Finding
}

// ask runs the program in-process with --json. It must answer, with one line a message,
// all of it printable.
func ask(t *testing.T, args ...string) answer {
	t.Helper()
	var out, stderr bytes.Buffer
	done := make(chan int, 1)
	go func() { done <- run(append([]string{"loratool", "--json"}, args...), &out, &stderr) }()
	var a answer
	select {
	case a.status = <-done:
	case <-time.After(5 * time.Second):
		t.Fatalf("%q: no answer", args)
	}
	a.out, a.err = out.String(), stderr.String()
	for _, line := range strings.Split(strings.TrimSuffix(a.err, "\n"), "\n") {
		if strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%q: not printable: %q", args, line)
		}
	}
	var doc struct {
		Findings []finding.Finding
		Files    []struct{ Findings []finding.Finding }
	}
	if err := json.Unmarshal(out.Bytes(), &doc); err != nil {
		t.Fatalf("%q: %v\n%s%s", args, err, a.out, a.err)
	}
	a.findings = doc.Findings
	for _, f := range doc.Files {
		a.findings = append(a.findings, f.Findings...)
	}
	return a
}

// says requires the verdict and the reason of a case.
func (a answer) says(t *testing.T, c badInput) {
	t.Helper()
	level := map[string]finding.Level{"reject": finding.Error, "warn": finding.Warning}[c.Expect]
	has := slices.ContainsFunc(a.findings, func(f finding.Finding) bool {
		return f.Level == level && strings.HasSuffix(f.Code, "."+c.Reason)
	})
	failed := slices.ContainsFunc(a.findings, func(f finding.Finding) bool { return f.Level == finding.Error })
	if failed != (c.Expect == "reject") || level != "" && !has {
		t.Errorf("expected %s %s, found %+v", c.Expect, c.Reason, a.findings)
	}
}

// needValues are the files whose header is sound: what is wrong shows when the values are read, which inspect
// does not do.
var needValues = []string{"warn_raw_nan.onnx", "reject_zip_usize_lies_small.pt", "reject_zip_bad_crc_data.pt"}

// TestBadAdapters checks every hostile adapter against its base with verify and merge.
func TestBadAdapters(t *testing.T) {
	dir, cases := badInputs(t, "adapter")
	checked := 0
	for _, c := range cases {
		checked++
		t.Run(c.File, func(t *testing.T) {
			path := c.path(t, dir)
			if c.Base == "" {
				a := ask(t, "verify", path)
				a.says(t, c)
				return
			}
			base := filepath.Join(dir, c.Base)
			status := map[bool]int{true: exitFound, false: exitDone}
			a := ask(t, "verify", path, "--base", base)
			a.says(t, c)
			if c.Expect == "accept" && len(a.findings) > 0 {
				t.Errorf("odd where nothing is: %+v", a.findings)
			}
			if want := status[c.Expect == "reject"]; a.status != want {
				t.Errorf("verify: exit status %d, expected %d", a.status, want)
			}
			if a := ask(t, "verify", path, "--base", base, "--fail-on", "warning"); a.status != status[c.Expect != "accept"] {
				t.Errorf("verify --fail-on warning: exit status %d", a.status)
			}
			folder := t.TempDir()
			out := filepath.Join(folder, "out")
			a = ask(t, "merge", base, "-a", path, "-o", out)
			a.says(t, c)
			entries, err := os.ReadDir(folder)
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case c.Expect != "reject":
				if a.status != exitDone || len(entries) != 1 {
					t.Errorf("merge: exit status %d, %d outputs", a.status, len(entries))
				}
				a = ask(t, "merge", base, "-a", path, "-o", out, "--force", "--fail-on", "warning")
				if a.status != status[c.Expect == "warn"] {
					t.Errorf("merge --fail-on warning: exit status %d", a.status)
				}
			case len(entries) > 0:
				t.Errorf("a rejected merge left %v", entries)
			case a.status != exitFailed && a.status != exitNothing, (a.status == exitNothing) != (c.File == "all_targets_unmatched"):
				t.Errorf("merge: exit status %d", a.status)
			}
		})
	}
	if checked != 49 {
		t.Errorf("%d cases, expected 49", checked)
	}
}

// TestBadFiles checks every hostile file with inspect and verify.
func TestBadFiles(t *testing.T) {
	for kind, want := range map[string]int{"safetensors": 119, "gguf": 122, "onnx": 95, "pickle": 126} {
		dir, cases := badInputs(t, kind)
		if len(cases) != want {
			t.Errorf("%s: %d cases, expected %d", kind, len(cases), want)
		}
		before := tree(t, dir)
		for _, c := range cases {
			t.Run(kind+"/"+c.File, func(t *testing.T) {
				path := c.path(t, dir)
				status := exitDone
				if c.Expect == "reject" {
					status = exitFound
				}
				for _, command := range []string{"inspect", "verify"} {
					if command == "inspect" && slices.Contains(needValues, c.File) {
						continue
					}
					a := ask(t, command, path)
					a.says(t, c)
					if a.status != status {
						t.Errorf("%s: exit status %d, expected %d", command, a.status, status)
					}
					if c.Expect == "warn" {
						if a := ask(t, command, path, "--fail-on", "warning"); a.status != exitFound {
							t.Errorf("%s --fail-on warning: exit status %d", command, a.status)
						}
					}
					if c.Global != "" && c.Expect == "reject" && !strings.Contains(a.err, finding.Escape(c.Global)) {
						t.Errorf("%s does not name %s: %s", command, c.Global, a.err)
					}
				}
			})
		}
		if after := tree(t, dir); !slices.Equal(before, after) {
			t.Errorf("%s: files have come or gone", kind)
		}
	}
}

func tree(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		names = append(names, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
