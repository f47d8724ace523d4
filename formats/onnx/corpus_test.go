package onnx

import (
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/tensor"
)

// copyTree copies a folder. Links, which a checkout may hold as files with the target as text, become
// links again.
func copyTree(t *testing.T, from, to string, links []string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		if d.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		for _, l := range links {
			if filepath.FromSlash(l) == rel {
				text, err := os.Readlink(path)
				if err != nil {
					b, err := os.ReadFile(path)
					if err != nil {
						return err
					}
					text = string(b)
				}
				return os.Symlink(text, target)
			}
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(target, b, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
}

type badCase struct {
	File, Kind, Entry, Expect, Reason string
	Symlinks                          []string
	Setup                             []struct{ Op, Path, Target, Hex string }
}

func TestBadInputs(t *testing.T) {
	dir := corpus.Path(t, "badinputs/onnx")
	b, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var manifest struct{ Cases []badCase }
	if err := json.Unmarshal(b, &manifest); err != nil {
		t.Fatal(err)
	}
	if len(manifest.Cases) < 90 {
		t.Fatalf("only %d cases", len(manifest.Cases))
	}
	for _, c := range manifest.Cases {
		t.Run(c.File, func(t *testing.T) {
			path := filepath.Join(dir, c.File)
			if c.Kind == "dir" {
				tmp := t.TempDir()
				copyTree(t, path, tmp, c.Symlinks)
				for _, s := range c.Setup {
					at := filepath.Join(tmp, filepath.FromSlash(s.Path))
					var err error
					switch s.Op {
					case "hardlink":
						err = os.Link(filepath.Join(tmp, filepath.FromSlash(s.Target)), at)
					case "write":
						var data []byte
						if data, err = hex.DecodeString(s.Hex); err == nil {
							err = os.WriteFile(at, data, 0o644)
						}
					}
					if err != nil {
						t.Skipf("the file system cannot hold this case: %v", err)
					}
				}
				path = filepath.Join(tmp, filepath.FromSlash(c.Entry))
			}
			m, err := openBounded(t, path)
			if err != nil {
				f := finding.Of(err)
				if f == nil {
					t.Fatalf("the error is no finding: %v", err)
				}
				if c.Expect != "reject" || f.Code != "container."+c.Reason {
					t.Fatalf("refused with %s (%v), want %s %s", f.Code, err, c.Expect, c.Reason)
				}
				for _, r := range err.Error() {
					if !unicode.IsPrint(r) {
						t.Fatalf("the message %q has unprintable characters", err)
					}
				}
				return
			}
			defer m.Close()
			if c.Expect == "reject" {
				t.Fatalf("opened, want %s", c.Reason)
			}
			if c.Reason == "nan_inf" {
				// Whether numbers are finite is for checks that read the weights; here they must arrive as they are.
				data, err := m.Tensors()[0].Read()
				if err != nil || hex.EncodeToString(data[:4]) != "0000c07f" {
					t.Fatalf("NaN reads as %x, %v", data, err)
				}
				return
			}
			codes := map[string]bool{}
			for _, f := range m.Findings() {
				codes[f.Code] = true
				if f.Level != finding.Warning {
					t.Errorf("a finding of level %s: %v", f.Level, &f)
				}
			}
			switch {
			case c.Expect == "accept" && len(codes) > 0:
				t.Errorf("warnings: %v", codes)
			case c.Expect == "warn" && !codes["container."+c.Reason]:
				t.Errorf("codes %v, want %s", codes, c.Reason)
			}
			// Every sound case holds the same four numbers, or fewer.
			for i := range m.Tensors() {
				ts := &m.Tensors()[i]
				want := "0000803f000000400000404000008040"
				switch {
				case ts.DType == tensor.I4:
					want = "21"
				case c.File == "ext_hardlink":
					want = hex.EncodeToString([]byte("CANARY-outside-m"))
				case c.File == "ext_overlap_two_tensors" || c.File == "ext_location_is_model_itself":
					continue
				}
				data, err := ts.Read()
				if got := hex.EncodeToString(data); err != nil || !strings.HasPrefix(want+"03", got) && !strings.HasPrefix(want, got) {
					t.Errorf("%s reads %s, %v", ts.Name, got, err)
				}
			}
		})
	}
}

// openBounded opens a model within a second and within memory that its size justifies.
func openBounded(t *testing.T, path string) (*Model, error) {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	type result struct {
		m     *Model
		err   error
		alloc uint64
	}
	done := make(chan result, 1)
	go func() {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		m, err := Open(path)
		runtime.ReadMemStats(&after)
		done <- result{m, err, after.TotalAlloc - before.TotalAlloc}
	}()
	select {
	case r := <-done:
		if limit := uint64(fi.Size())*96 + 64<<10; r.alloc > limit {
			t.Errorf("opening %d bytes allocated %d, more than %d", fi.Size(), r.alloc, limit)
		}
		return r.m, r.err
	case <-time.After(time.Second):
		t.Fatal("still not open after a second")
		return nil, nil
	}
}
