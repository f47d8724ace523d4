package layout

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/loratool/loratool/finding"
)

// one is a layout of a single file: a header, a gap of zeros, and two tensors.
func one(name string) *Layout {
	return &Layout{
		Files: []File{{Name: name, Size: 20, Spans: []Span{Bytes(0, []byte("head"))}}},
		Items: []Place{{Off: 8, Size: 8}, {Off: 16, Size: 4, Swap: swap2}},
	}
}

func swap2(p []byte) {
	for i := 0; i+1 < len(p); i += 2 {
		p[i], p[i+1] = p[i+1], p[i]
	}
}

const oneWant = "head\x00\x00\x00\x0001234567badc"

// folder is a layout of a folder with a sub-folder and two weight files.
func folder() *Layout {
	return &Layout{
		Dir: true,
		Files: []File{
			{Name: "config.json", Size: 2, Spans: []Span{Bytes(0, []byte("{}"))}},
			{Name: "1_Pooling/config.json", Size: 3, Spans: []Span{Bytes(0, []byte("[1]"))}},
			{Name: "a.bin", Size: 8},
			{Name: "b.bin", Size: 8, Spans: []Span{Bytes(0, []byte("head"))}},
		},
		Items: []Place{{File: 2, Size: 8}, {File: 3, Off: 4, Size: 4}},
	}
}

// pair is a layout of two files beside each other, the second of which is the commit mark.
func pair(name string) *Layout {
	return &Layout{
		Files: []File{{Name: "data", Size: 8}, {Name: name, Size: 8, Spans: []Span{Bytes(0, []byte("head"))}}},
		Items: []Place{{File: 0, Size: 8}, {File: 1, Off: 4, Size: 4}},
	}
}

// fill writes the two tensors of the layouts above and commits.
func fill(w *Writer) error {
	if err := w.WriteSpans(context.Background()); err != nil {
		return err
	}
	if err := w.WriteAt(0, []byte("01234567"), 0); err != nil {
		return err
	}
	if err := w.WriteAt(1, []byte("abcd"), 0); err != nil {
		return err
	}
	return w.Commit()
}

// tree reads everything below dir: name → content, folders with a slash.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	got := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		rel = filepath.ToSlash(rel)
		switch {
		case e.IsDir():
			got[rel+"/"] = ""
		case e.Type()&fs.ModeSymlink != 0:
			got[rel], _ = os.Readlink(path)
			got[rel] = "-> " + got[rel]
		default:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			got[rel] = string(b)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func put(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o666); err != nil {
			t.Fatal(err)
		}
	}
}

func code(err error) string {
	if f := finding.Of(err); f != nil {
		return f.Code
	}
	return ""
}

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	w, err := Create(filepath.Join(dir, "out"), one("out"), false)
	if err != nil {
		t.Fatal(err)
	}
	names := slices.Collect(func(yield func(string) bool) {
		for n := range tree(t, dir) {
			yield(n)
		}
	})
	if len(names) != 1 || !strings.HasPrefix(names[0], ".out.loratool-") || !strings.HasSuffix(names[0], ".tmp") {
		t.Errorf("before the commit the folder holds %q", names)
	}
	if err := fill(w); err != nil {
		t.Fatal(err)
	}
	w.Abort()
	if diff := cmp.Diff(map[string]string{"out": oneWant}, tree(t, dir)); diff != "" {
		t.Error(diff)
	}
	if err := w.WriteAt(0, []byte("x"), 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a write after the commit gives %v", err)
	}
	if err := w.Commit(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a second commit gives %v", err)
	}
}

// A single file goes to the output path whatever the layout calls it.
func TestWriteFileOfOtherName(t *testing.T) {
	dir := t.TempDir()
	w, err := Create(filepath.Join(dir, "out"), one("model.x"), false)
	if err != nil {
		t.Fatal(err)
	}
	if err := fill(w); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"out": oneWant}, tree(t, dir)); diff != "" {
		t.Error(diff)
	}
}

func TestWriteFolderAndPair(t *testing.T) {
	dir := t.TempDir()
	for name, l := range map[string]*Layout{"m": folder(), "p": pair("p")} {
		w, err := Create(filepath.Join(dir, name), l, false)
		if err != nil {
			t.Fatal(err)
		}
		if err := fill(w); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]string{
		"m/": "", "m/config.json": "{}", "m/1_Pooling/": "", "m/1_Pooling/config.json": "[1]", "m/a.bin": "01234567", "m/b.bin": "headabcd",
		"data": "01234567", "p": "headabcd",
	}
	if diff := cmp.Diff(want, tree(t, dir)); diff != "" {
		t.Error(diff)
	}
}

func TestForce(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, map[string]string{"out": "old", "real": "kept", "m/config.json": "old", "m/stale": "old", "data": "old"})
	if err := os.Chmod(filepath.Join(dir, "out"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", filepath.Join(dir, "link")); err != nil {
		t.Skip("no symbolic links here")
	}
	before := tree(t, dir)
	outputs := map[string]*Layout{"out": one("out"), "link": one("link"), "m": folder(), "p": pair("p")}
	for name, l := range outputs {
		if _, err := Create(filepath.Join(dir, name), l, false); code(err) != "output.exists" || finding.Of(err).Hint == "" {
			t.Errorf("%s without force: %v", name, err)
		}
	}
	if diff := cmp.Diff(before, tree(t, dir)); diff != "" {
		t.Error(diff)
	}
	for name, l := range outputs {
		w, err := Create(filepath.Join(dir, name), l, true)
		if err != nil {
			t.Fatal(err)
		}
		if err := fill(w); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]string{
		"out": oneWant, "link": oneWant, "real": "kept", "p": "headabcd", "data": "01234567",
		"m/": "", "m/config.json": "{}", "m/1_Pooling/": "", "m/1_Pooling/config.json": "[1]", "m/a.bin": "01234567", "m/b.bin": "headabcd",
	}
	if diff := cmp.Diff(want, tree(t, dir)); diff != "" {
		t.Error(diff)
	}
	fi, err := os.Stat(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	if fi.Mode().Perm() != 0o640 {
		t.Errorf("the replaced file's mode 0640 became %o", fi.Mode().Perm())
	}
}

func TestNewFileFollowsUmask(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, map[string]string{"plain": ""})
	w, err := Create(filepath.Join(dir, "out"), one("out"), false)
	if err != nil {
		t.Fatal(err)
	}
	if err := fill(w); err != nil {
		t.Fatal(err)
	}
	a, _ := os.Stat(filepath.Join(dir, "plain"))
	b, _ := os.Stat(filepath.Join(dir, "out"))
	if a.Mode() != b.Mode() {
		t.Errorf("mode %v, a file created plainly has %v", b.Mode(), a.Mode())
	}
}

func TestRefuse(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, map[string]string{"file": "old", "dir/x": "old", "repo/config.json": "", "repo/.git/HEAD": "", "cwd/config.json": ""})
	t.Chdir(filepath.Join(dir, "cwd"))
	tests := []struct {
		name, path string
		l          *Layout
		want       string
	}{
		{"no folder", "none/out", one("out"), "output.no_folder"},
		{"parent is a file", "file/out", one("out"), "output.no_folder"},
		{"file over folder", "dir", one("dir"), "output.wrong_kind"},
		{"folder over file", "file", folder(), "output.wrong_kind"},
		{"foreign folder", "dir", folder(), "output.protected"},
		{"git work tree", "repo", folder(), "output.protected"},
		{"current folder", "cwd", folder(), "output.protected"},
		{"name leaves the folder", "m", &Layout{Dir: true, Files: []File{{Name: "../x"}}}, "output.bad_layout"},
		{"name is absolute", "m", &Layout{Dir: true, Files: []File{{Name: "/x"}}}, "output.bad_layout"},
		{"name with backslash", "m", &Layout{Dir: true, Files: []File{{Name: `a\b`}}}, "output.bad_layout"},
		{"sub-folder of a file output", "f", &Layout{Files: []File{{Name: "f"}, {Name: "a/b"}}}, "output.bad_layout"},
		{"name twice", "m", &Layout{Dir: true, Files: []File{{Name: "x"}, {Name: "x"}}}, "output.bad_layout"},
		{"nothing at the path", "f", &Layout{Files: []File{{Name: "a"}, {Name: "b"}}}, "output.bad_layout"},
		{"no files", "f", &Layout{}, "output.bad_layout"},
		{"span past the end", "f", &Layout{Files: []File{{Name: "f", Size: 3, Spans: []Span{Bytes(0, []byte("head"))}}}}, "output.bad_layout"},
		{"place past the end", "f", &Layout{Files: []File{{Name: "f", Size: 3}}, Items: []Place{{Off: 2, Size: 2}}}, "output.bad_layout"},
		{"place in no file", "f", &Layout{Files: []File{{Name: "f", Size: 3}}, Items: []Place{{File: 1}}}, "output.bad_layout"},
		{"overlap", "f", &Layout{Files: []File{{Name: "f", Size: 8}}, Items: []Place{{Size: 5}, {Off: 4, Size: 4}}}, "output.bad_layout"},
		{"sizes overflow", "f", &Layout{Files: []File{{Name: "f", Size: 1 << 62}, {Name: "g", Size: 1 << 62}}}, "output.bad_layout"},
		{"too large for any disk", "f", &Layout{Files: []File{{Name: "f", Size: 1 << 60}}}, "output.disk_full"},
	}
	before := tree(t, dir)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Create(filepath.Join(dir, tt.path), tt.l, true)
			if code(err) != tt.want {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
	if diff := cmp.Diff(before, tree(t, dir)); diff != "" {
		t.Error(diff)
	}
}

func TestIncomplete(t *testing.T) {
	dir := t.TempDir()
	tests := []struct {
		name   string
		writes [][2]int64
		ok     bool
	}{
		{"nothing", nil, false},
		{"hole", [][2]int64{{0, 3}, {4, 8}}, false},
		{"one part twice", [][2]int64{{0, 4}, {0, 4}}, false},
		{"last byte", [][2]int64{{0, 7}}, false},
		{"any order, overlapping", [][2]int64{{6, 8}, {0, 2}, {1, 5}, {5, 6}}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w, err := Create(filepath.Join(dir, "out"), &Layout{Files: []File{{Name: "out", Size: 8}}, Items: []Place{{Size: 8}}}, true)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range tt.writes {
				if err := w.WriteAt(0, make([]byte, r[1]-r[0]), r[0]); err != nil {
					t.Fatal(err)
				}
			}
			err = w.Commit()
			if tt.ok != (err == nil) || (!tt.ok && code(err) != "output.incomplete") {
				t.Fatalf("commit: %v", err)
			}
			if got := tree(t, dir); len(got) != 0 != tt.ok {
				t.Errorf("the folder holds %q", got)
			}
		})
	}
}

func TestWriteOutside(t *testing.T) {
	w, err := Create(filepath.Join(t.TempDir(), "out"), one("out"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for _, bad := range []struct {
		item int
		n    int
		off  int64
	}{{-1, 1, 0}, {2, 1, 0}, {0, 9, 0}, {0, 1, 8}, {0, 1, -1}, {0, 1, 1 << 62}, {0, 2, 7}} {
		if err := w.WriteAt(bad.item, make([]byte, bad.n), bad.off); code(err) != "output.bad_layout" {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

// Slabs of several sizes from many goroutines, some of them large enough for write-behind, and a
// span written at the same time.
func TestConcurrentWrites(t *testing.T) {
	const size, items = 5 << 20, 4
	rnd := rand.New(rand.NewPCG(1, 2))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		return b
	}
	span := random(9 << 20)
	l := &Layout{Files: []File{{Name: "out", Size: int64(len(span)) + items*size, Spans: []Span{Bytes(0, span)}}}}
	want := slices.Clone(span)
	var data [][]byte
	for i := range items {
		l.Items = append(l.Items, Place{Off: int64(len(span)) + int64(i)*size, Size: size})
		data = append(data, random(size))
		want = append(want, data[i]...)
	}
	path := filepath.Join(t.TempDir(), "out")
	w, err := Create(path, l, false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := w.WriteSpans(context.Background()); err != nil {
			t.Error(err)
		}
	})
	for item := range items {
		slab := []int{1 << 20, 2<<20 + 3, 100_001, 4095 * 17}[item]
		for off := 0; off < size; off += slab {
			wg.Go(func() {
				if err := w.WriteAt(item, data[item][off:min(size, off+slab)], int64(off)); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the file differs from what was written")
	}
}

// endless is a source that cancels a context when it has been read often enough.
type endless struct {
	reads  int
	cancel context.CancelFunc
}

func (e *endless) ReadAt(p []byte, _ int64) (int, error) {
	if e.reads++; e.reads == 3 {
		e.cancel()
	}
	return len(p), nil
}

func TestCancelSpans(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	src := &endless{cancel: cancel}
	w, err := Create(filepath.Join(dir, "out"), &Layout{Files: []File{{Name: "out", Size: 40 << 20, Spans: []Span{{Len: 40 << 20, Src: src}}}}}, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.WriteSpans(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if src.reads != 3 {
		t.Errorf("%d pieces were read, 3 expected", src.reads)
	}
	w.Abort()
	w.Abort()
	if got := tree(t, dir); len(got) != 0 {
		t.Errorf("left behind: %q", got)
	}
}

func TestShortSource(t *testing.T) {
	dir := t.TempDir()
	w, err := Create(filepath.Join(dir, "out"), &Layout{Files: []File{{Name: "out", Size: 9, Spans: []Span{{Len: 9, Src: strings.NewReader("short")}}}}}, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); code(err) != "input.read" || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v", err)
	}
	if got := tree(t, dir); len(got) != 0 {
		t.Errorf("left behind: %q", got)
	}
}

func TestSameFile(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, map[string]string{"a": "1", "b": "1", "m/w": "1", "n/w": "1"})
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := os.Symlink("a", at("sym")); err != nil {
		t.Skip("no symbolic links here")
	}
	if err := os.Symlink("m", at("msym")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(at("a"), at("hard")); err != nil {
		t.Skip("no hard links here")
	}
	tests := []struct{ out, in, want string }{
		{"a", "a", "a"}, {"sym", "a", "a"}, {"a", "sym", "sym"}, {"hard", "a", "a"}, {"m/../a", "a", "a"},
		{"m", "m/w", "m/w"}, {"m", "msym/w", "msym/w"}, {"msym", "m", "m"},
		{"a", "b", ""}, {"m", "n/w", ""}, {"m", "a", ""}, {"m/w", "m", ""}, {"new", "a", ""}, {"a", "none", ""},
	}
	for _, tt := range tests {
		want := tt.want
		if want != "" {
			want = at(want)
		}
		if got := SameFile(dir+"/"+tt.out, []string{at("b"), at(tt.in)}); tt.in != "b" && got != want {
			t.Errorf("output %s, input %s: %q, want %q", tt.out, tt.in, got, want)
		}
	}
}
