package safetensors

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/tensor"
)

type badCase struct {
	File, Kind, Entry, Expect, Reason, SHA256 string
	Symlinks                                  []string
	Size                                      int64
	Tensors                                   map[string]struct {
		Dtype  string
		Shape  []json.Number
		SHA256 string
	}
	Digest struct {
		Count  int
		SHA256 string
	} `json:"tensors_digest"`
}

// allocFactor bounds what opening a file may allocate: allocFactor·size + 64 KiB.
const allocFactor = 10

// Every case of the hostile corpus: verdict, reason code, content, time and memory.
func TestHostileCorpus(t *testing.T) {
	dir := corpus.Path(t, "badinputs", "safetensors")
	raw, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var manifest struct{ Cases []badCase }
	if err := json.Unmarshal(raw, &manifest); err != nil {
		t.Fatal(err)
	}
	if len(manifest.Cases) < 100 {
		t.Fatalf("only %d cases", len(manifest.Cases))
	}
	for _, c := range manifest.Cases {
		t.Run(c.File, func(t *testing.T) {
			path := filepath.Join(dir, c.File, c.Entry)
			if len(c.Symlinks) > 0 {
				path = filepath.Join(linked(t, filepath.Join(dir, c.File), c.Symlinks), c.Entry)
			}
			if c.Kind == "file" {
				if b, err := os.ReadFile(path); err != nil || hex.EncodeToString(hash(b)) != c.SHA256 {
					t.Fatalf("the case is damaged (%v)", err)
				}
			}
			type result struct {
				m     *Model
				err   error
				alloc uint64
			}
			done := make(chan result, 1)
			go func() {
				var before, after runtime.MemStats
				defer func() {
					if r := recover(); r != nil {
						done <- result{err: fmt.Errorf("panic: %v", r)}
					}
				}()
				runtime.ReadMemStats(&before)
				m, err := Open(path)
				runtime.ReadMemStats(&after)
				done <- result{m, err, after.TotalAlloc - before.TotalAlloc}
			}()
			var got result
			select {
			case got = <-done:
			case <-time.After(time.Second):
				t.Fatal("no answer within a second")
			}
			limit := uint64(64 << 20)
			if c.Kind == "file" && c.Size < 1<<20 {
				limit = allocFactor*uint64(c.Size) + 64<<10
			}
			if got.alloc > limit {
				t.Errorf("%d bytes allocated for %d, at most %d allowed", got.alloc, c.Size, limit)
			}
			if c.Expect == "reject" {
				f := finding.Of(got.err)
				if f == nil || f.Level != finding.Error || f.Code != "container."+c.Reason {
					t.Fatalf("got %v (%+v), want container.%s", got.err, f, c.Reason)
				}
				if strings.ContainsFunc(got.err.Error(), func(r rune) bool { return !unicode.IsPrint(r) }) {
					t.Errorf("the error text %q is not one printable line", got.err)
				}
				return
			}
			if got.err != nil {
				t.Fatal(got.err)
			}
			defer got.m.Close()
			has := slices.ContainsFunc(got.m.Findings(), func(f finding.Finding) bool {
				return f.Level == finding.Warning && f.Code == "container."+c.Reason
			})
			if c.Expect == "warn" && !has {
				t.Errorf("no warning container.%s among %v", c.Reason, got.m.Findings())
			}
			if c.Expect == "accept" && len(got.m.Findings()) > 0 {
				t.Errorf("unexpected findings %v", got.m.Findings())
			}
			compareContent(t, got.m, c)
		})
	}
}

// linked copies a case and makes the symbolic links that a checkout without links has as text files.
func linked(t *testing.T, dir string, links []string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "case")
	for _, name := range links {
		target, err := os.Readlink(filepath.Join(dir, name))
		if err != nil {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			target = string(b)
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(to, name)), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, filepath.Join(to, name)); err != nil {
			t.Skip("no symbolic links here")
		}
	}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		if slices.Contains(links, filepath.ToSlash(rel)) {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(to, rel)), 0o777); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), b, 0o666)
	})
	if err != nil {
		t.Fatal(err)
	}
	return to
}

func hash(b []byte) []byte {
	h := sha256.Sum256(b)
	return h[:]
}

func compareContent(t *testing.T, m *Model, c badCase) {
	t.Helper()
	if c.Tensors != nil && len(c.Tensors) != len(m.Tensors()) {
		t.Errorf("%d tensors, want %d", len(m.Tensors()), len(c.Tensors))
	}
	var lines []string
	for _, x := range m.Tensors() {
		b, err := x.Read()
		if err != nil {
			t.Fatal(err)
		}
		sum := hex.EncodeToString(hash(b))
		var dims []string
		for _, d := range x.Shape {
			dims = append(dims, fmt.Sprint(d))
		}
		lines = append(lines, strings.Join([]string{x.Name, x.DType.String(), strings.Join(dims, ","), sum}, "\t")+"\n")
		if c.Tensors == nil {
			continue
		}
		want, ok := c.Tensors[x.Name]
		var wantDims []string
		for _, d := range want.Shape {
			if _, err := d.Int64(); err != nil { // see Tensors: dimensions beyond int64 are cut
				d = json.Number(fmt.Sprint(int64(math.MaxInt64)))
			}
			wantDims = append(wantDims, string(d))
		}
		if !ok || want.Dtype != x.DType.String() || !slices.Equal(wantDims, dims) || want.SHA256 != sum {
			t.Errorf("%q: %v%v %s, want %+v", x.Name, x.DType, x.Shape, sum, want)
		}
	}
	if c.Digest.Count > 0 {
		slices.Sort(lines)
		if sum := hex.EncodeToString(hash([]byte(strings.Join(lines, "")))); len(lines) != c.Digest.Count || sum != c.Digest.SHA256 {
			t.Errorf("%d tensors with digest %s, want %+v", len(lines), sum, c.Digest)
		}
	}
}

// Files that the reference wrote come out byte for byte. With two or more metadata keys the
// reference's order is random, and the corpus has files with several types that another tool
// ordered by name alone; those are only read.
func TestReferenceCorpus(t *testing.T) {
	same, read := 0, 0
	err := filepath.WalkDir(corpus.Path(t, "peft"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".safetensors") {
			return err
		}
		m, err := Open(path)
		if err != nil {
			return err
		}
		defer m.Close()
		read++
		types := map[tensor.DType]bool{}
		for _, x := range m.Tensors() {
			types[x.DType] = true
		}
		if len(m.Metadata()) > 1 || len(types) > 1 {
			return nil
		}
		want, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		l, err := m.Layout(specs(m), layout.Options{Name: "x.safetensors"})
		if err != nil {
			return err
		}
		if got := render(t, l, m.Tensors()); string(got[0]) != string(want) {
			t.Errorf("%s: laid out again, the bytes differ", path)
		}
		same++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d files read, %d of them compared", read, same)
	if same < 500 {
		t.Errorf("only %d files compared", same)
	}
}

func specs(m *Model) []tensor.Spec {
	var s []tensor.Spec
	for _, x := range m.Tensors() {
		s = append(s, x.Spec)
	}
	return s
}

// render gives the bytes of every file of a layout, filled with the data of these tensors.
func render(t testing.TB, l *layout.Layout, data []tensor.Tensor) [][]byte {
	t.Helper()
	files := make([][]byte, len(l.Files))
	for i, f := range l.Files {
		files[i] = make([]byte, f.Size)
		for _, s := range f.Spans {
			if n, err := s.Src.ReadAt(files[i][s.Off:s.Off+s.Len], s.SrcOff); int64(n) != s.Len {
				t.Fatal(err)
			}
		}
	}
	for i, p := range l.Items {
		if p.Size != data[i].Size {
			t.Fatalf("%q: %d bytes laid out, the tensor has %d", data[i].Name, p.Size, data[i].Size)
		}
		if _, err := data[i].ReadAt(files[p.File][p.Off:p.Off+p.Size], 0); err != nil {
			t.Fatal(err)
		}
	}
	return files
}
