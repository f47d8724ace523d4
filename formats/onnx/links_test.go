package onnx

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/finding"
)

func TestLinks(t *testing.T) {
	model := linear(outside("w", 1, [][2]string{{"location", "w.bin"}}, 2, 4))
	data := f32s(8)
	for _, c := range []struct {
		name  string
		files map[string][]byte
		links map[string]string
		open  string
		want  string // a code, or "" where nothing is worth a word
	}{
		{"plain", map[string][]byte{"m/m.onnx": model, "m/w.bin": data}, nil, "m/m.onnx", ""},
		{"inside", map[string][]byte{"m/m.onnx": model, "m/d/real": data}, map[string]string{"m/w.bin": "d/real"}, "m/m.onnx", "symlink"},
		{"out", map[string][]byte{"m/m.onnx": model, "w": data}, map[string]string{"m/w.bin": "../w"}, "m/m.onnx", "reject symlink"},
		{"loop", map[string][]byte{"m/m.onnx": model}, map[string]string{"m/w.bin": "v.bin", "m/v.bin": "w.bin"}, "m/m.onnx", "reject symlink"},
		{"to nothing", map[string][]byte{"m/m.onnx": model}, map[string]string{"m/w.bin": "v.bin"}, "m/m.onnx", "reject missing_file"},
		{"cache", map[string][]byte{"blobs/1": model, "blobs/2": data}, map[string]string{"s/r/m.onnx": "../../blobs/1", "s/r/w.bin": "../../blobs/2"}, "s/r/m.onnx", ""},
		{"cache below", map[string][]byte{"blobs/1": model, "blobs/2": data}, map[string]string{"s/r/onnx/m.onnx": "../../../blobs/1", "s/r/onnx/w.bin": "../../../blobs/2"}, "s/r/onnx/m.onnx", ""},
		{"edited in the cache", map[string][]byte{"s/r/m.onnx": model, "blobs/2": data}, map[string]string{"s/r/w.bin": "../../blobs/2"}, "s/r/m.onnx", "symlink"},
		{"blobs is a link", map[string][]byte{"s/r/m.onnx": model, "secret/2": data}, map[string]string{"s/r/w.bin": "../../blobs/2", "blobs": "secret"}, "s/r/m.onnx", "reject symlink"},
		{"a blob is a link", map[string][]byte{"s/r/m.onnx": model, "secret": data, "blobs/1": nil}, map[string]string{"s/r/w.bin": "../../blobs/2", "blobs/2": "../secret"}, "s/r/m.onnx", "reject symlink"},
		{"past the blobs", map[string][]byte{"s/r/m.onnx": model, "secret": data, "blobs/1": nil}, map[string]string{"s/r/w.bin": "../../blobs/../secret"}, "s/r/m.onnx", "reject symlink"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			at := func(p string) string {
				full := filepath.Join(dir, filepath.FromSlash(p))
				if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
					t.Fatal(err)
				}
				return full
			}
			for p, b := range c.files {
				if err := os.WriteFile(at(p), b, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			for p, target := range c.links {
				if err := os.Symlink(filepath.FromSlash(target), at(p)); err != nil {
					t.Skipf("no symbolic links: %v", err)
				}
			}
			m, err := Open(at(c.open))
			if err != nil {
				f := finding.Of(err)
				if f == nil || "reject "+f.Code[len("container."):] != c.want {
					t.Fatalf("%v, want %s", err, c.want)
				}
				return
			}
			defer m.Close()
			got := ""
			for _, f := range m.Findings() {
				got += f.Code[len("container."):]
			}
			if got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
			if b, err := m.Tensors()[0].Read(); err != nil || !bytes.Equal(b, data) {
				t.Errorf("reads %x, %v", b, err)
			}
		})
	}
}

// A model with a file for every tensor must not run out of open files, and must notice a file that is
// replaced between two reads.
func TestManyDataFiles(t *testing.T) {
	const n = maxPinned + 3
	files := map[string][]byte{}
	more := [][]byte{}
	for i := range n {
		loc := fmt.Sprintf("w%d.bin", i)
		files[loc] = bytes.Repeat([]byte{byte(i)}, 4)
		more = append(more, str(5, outside(fmt.Sprintf("w%d", i), 1, [][2]string{{"location", loc}}, 1)))
	}
	files["m.onnx"] = linear(proto("w", 1, f32s(8), 2, 4), more...)
	m := save(t, files, "m.onnx")
	pinned := 0
	for i, d := range m.files {
		if d.pinned != nil {
			pinned++
		}
		if b, err := m.Tensors()[i+1].Read(); err != nil || !bytes.Equal(b, files[d.location]) {
			t.Errorf("%s reads %x, %v", d.location, b, err)
		}
	}
	if pinned != maxPinned || len(m.files) != n {
		t.Errorf("%d of %d files are open", pinned, len(m.files))
	}
	last := filepath.Join(filepath.Dir(m.file), fmt.Sprintf("w%d.bin", n-1))
	if err := os.WriteFile(last+".new", []byte("evil"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(last+".new", last); err != nil {
		t.Fatal(err)
	}
	if b, err := m.Tensors()[n].Read(); finding.Of(err) == nil || finding.Of(err).Code != "files.changed" {
		t.Errorf("a replaced file reads %q, %v", b, err)
	}
}
