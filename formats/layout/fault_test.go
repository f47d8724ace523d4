package layout

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A faulty disk fails its Nth operation, once, and all exchanges when it has none.
type faulty struct {
	realDisk
	at         int // counts down; the operation that reaches 0 fails
	err        error
	noExchange bool
	log        []string
}

func (d *faulty) step(op string) error {
	d.log = append(d.log, op)
	if d.at--; d.at == 0 {
		return &fs.PathError{Op: op, Path: "x", Err: d.err}
	}
	return nil
}

func try[T any](d *faulty, op string, f func() (T, error)) (T, error) {
	if err := d.step(op); err != nil {
		var zero T
		return zero, err
	}
	return f()
}

func (d *faulty) do(op string, f func() error) error {
	_, err := try(d, op, func() (struct{}, error) { return struct{}{}, f() })
	return err
}

func (d *faulty) Free(dir string) (int64, error) {
	return try(d, "free", func() (int64, error) { return d.realDisk.Free(dir) })
}
func (d *faulty) Create(n string) (handle, error) {
	return try(d, "create", func() (handle, error) { h, err := d.realDisk.Create(n); return &faultyFile{h, d}, err })
}
func (d *faulty) Reopen(n string) (handle, error) {
	return try(d, "reopen", func() (handle, error) { h, err := d.realDisk.Reopen(n); return &faultyFile{h, d}, err })
}
func (d *faulty) Mkdir(n string) error {
	return d.do("mkdir", func() error { return d.realDisk.Mkdir(n) })
}
func (d *faulty) Chmod(n string, m fs.FileMode) error {
	return d.do("chmod", func() error { return d.realDisk.Chmod(n, m) })
}
func (d *faulty) Rename(a, b string) error {
	return d.do("rename", func() error { return d.realDisk.Rename(a, b) })
}
func (d *faulty) Exchange(a, b string) error {
	if d.noExchange {
		return errors.ErrUnsupported
	}
	return d.do("exchange", func() error { return d.realDisk.Exchange(a, b) })
}
func (d *faulty) RemoveAll(n string) error {
	return d.do("remove", func() error { return d.realDisk.RemoveAll(n) })
}
func (d *faulty) SyncDir(n string) error {
	return d.do("syncdir", func() error { return d.realDisk.SyncDir(n) })
}

type faultyFile struct {
	h handle
	d *faulty
}

func (f *faultyFile) Reserve(n int64) error {
	return f.d.do("reserve", func() error { return f.h.Reserve(n) })
}
func (f *faultyFile) WriteAt(p []byte, off int64) (int, error) {
	return try(f.d, "write", func() (int, error) { return f.h.WriteAt(p, off) })
}
func (f *faultyFile) Sync() error { return f.d.do("sync", f.h.Sync) }
func (f *faultyFile) Size() (int64, error) {
	return try(f.d, "size", f.h.Size)
}
func (f *faultyFile) Close() error {
	if err := f.d.step("close"); err != nil {
		f.h.Close()
		return err
	}
	return f.h.Close()
}

// Every operation fails in turn. After each failure the output is the old one or the new one, whole;
// after Abort no temporary file is left; and the error names its cause.
func TestEveryFailure(t *testing.T) {
	newFolder := map[string]string{"m/": "", "m/config.json": "{}", "m/1_Pooling/": "", "m/1_Pooling/config.json": "[1]", "m/a.bin": "01234567", "m/b.bin": "headabcd"}
	tests := []struct {
		name, path string
		layout     func() *Layout
		before     map[string]string
		after      map[string]string
		noExchange bool
		least      int // operations; fewer would mean that the sweep misses some
	}{
		{"new file", "out", func() *Layout { return one("out") }, map[string]string{}, map[string]string{"out": oneWant}, false, 10},
		{"replaced file", "out", func() *Layout { return one("out") }, map[string]string{"out": "old"}, map[string]string{"out": oneWant}, false, 11},
		{"new folder", "m", folder, map[string]string{}, newFolder, false, 30},
		{"replaced folder", "m", folder, map[string]string{"m/": "", "m/config.json": "old"}, newFolder, false, 30},
		{"replaced folder in two steps", "m", folder, map[string]string{"m/": "", "m/config.json": "old"}, newFolder, true, 30},
		{"new pair", "p", func() *Layout { return pair("p") }, map[string]string{}, map[string]string{"data": "01234567", "p": "headabcd"}, false, 15},
		{"replaced pair", "p", func() *Layout { return pair("p") }, map[string]string{"data": "old", "p": "old"}, map[string]string{"data": "01234567", "p": "headabcd"}, false, 15},
		{"replaced pair in two steps", "p", func() *Layout { return pair("p") }, map[string]string{"data": "old", "p": "old"}, map[string]string{"data": "01234567", "p": "headabcd"}, true, 15},
		{"half new pair", "p", func() *Layout { return pair("p") }, map[string]string{"data": "old"}, map[string]string{"data": "01234567", "p": "headabcd"}, false, 15},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if runtime.GOOS != "linux" {
				tt.noExchange = true
			}
			injected := errors.New("injected")
			for n := 1; ; n++ {
				dir := t.TempDir()
				for name, content := range tt.before {
					if !strings.HasSuffix(name, "/") {
						put(t, dir, map[string]string{name: content})
					}
				}
				d := &faulty{at: n, err: injected, noExchange: tt.noExchange}
				w, err := create(d, filepath.Join(dir, tt.path), tt.layout(), true)
				if err == nil {
					err = fill(w)
					w.Abort()
				}
				got := tree(t, dir)
				old, done := cmp.Diff(tt.before, got), cmp.Diff(tt.after, got)
				if old != "" && done != "" {
					t.Fatalf("operation %d (%s) failed, error %v\nagainst the old output: %s\nagainst the new output: %s", n, d.log[len(d.log)-1], err, old, done)
				}
				if d.at > 0 {
					if err != nil || done != "" {
						t.Fatalf("without a failure: %v %s", err, done)
					}
					if n <= tt.least {
						t.Fatalf("only %d operations: %s", n-1, d.log)
					}
					return
				}
				if err == nil && d.log[n-1] != "remove" {
					t.Fatalf("operation %d (%s) failed, but nobody heard of it", n, d.log[n-1])
				}
				if err != nil && d.log[n-1] != "remove" && !errors.Is(err, injected) {
					t.Fatalf("operation %d (%s): the error %v hides its cause", n, d.log[n-1], err)
				}
				if err != nil && old != "" && d.log[n-1] != "syncdir" && code(err) != "output.leftover" {
					t.Fatalf("operation %d (%s): error %v, but the output was replaced", n, d.log[n-1], err)
				}
			}
		})
	}
}

func TestFaultCodes(t *testing.T) {
	for errno, want := range map[syscall.Errno]string{
		syscall.ENOSPC: "output.disk_full", syscall.EDQUOT: "output.quota", syscall.EROFS: "output.read_only",
		syscall.EFBIG: "output.too_large", syscall.EIO: "output.io", syscall.EACCES: "output.permission", syscall.EXDEV: "output.failed",
	} {
		dir := t.TempDir()
		d := &faulty{at: 3, err: errno} // free, create, reserve
		_, err := create(d, filepath.Join(dir, "out"), one("out"), false)
		if code(err) != want || !errors.Is(err, errno) {
			t.Errorf("%v: %v, want %s", errno, err, want)
		}
		if left := tree(t, dir); len(left) != 0 {
			t.Errorf("%v: left behind %q", errno, left)
		}
	}
}

// The file that a failed rename was to replace is still open to its readers and still there.
func TestReplaceInput(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out")
	put(t, dir, map[string]string{"out": "0123"})
	in, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if runtime.GOOS == "windows" {
		t.Skip("an open file cannot be replaced here")
	}
	w, err := Create(path, &Layout{Files: []File{{Name: "out", Size: 8, Spans: []Span{{Off: 4, Len: 4, Src: in}}}}}, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"out": "\x00\x00\x00\x000123"}, tree(t, dir)); diff != "" {
		t.Error(diff)
	}
}
