package onnx

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/tensor"
)

// Protobuf by hand: what a test model is made of.

func num(n protowire.Number, v int64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, n, protowire.VarintType), uint64(v))
}

func str(n protowire.Number, parts ...[]byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, n, protowire.BytesType), bytes.Join(parts, nil))
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func text(n protowire.Number, s string) []byte { return str(n, []byte(s)) }

func pair(n protowire.Number, k, v string) []byte { return str(n, text(1, k), text(2, v)) }

// proto is a TensorProto with raw_data.
func proto(name string, dataType int64, raw []byte, dims ...int64) []byte {
	var b []byte
	for _, d := range dims {
		b = append(b, num(1, d)...)
	}
	return join(b, num(2, dataType), text(8, name), str(9, raw))
}

// outside is a TensorProto with external data.
func outside(name string, dataType int64, kv [][2]string, dims ...int64) []byte {
	var b []byte
	for _, d := range dims {
		b = append(b, num(1, d)...)
	}
	b = append(b, join(num(2, dataType), text(8, name))...)
	for _, e := range kv {
		b = append(b, pair(13, e[0], e[1])...)
	}
	return append(b, num(14, 1)...)
}

// declared is a ValueInfoProto of a tensor type.
func declared(name string, dataType int64, dims ...int64) []byte {
	var shape []byte
	for _, d := range dims {
		shape = append(shape, str(1, num(1, d))...)
	}
	return join(text(1, name), str(2, str(1, num(1, dataType), str(2, shape))))
}

func nodeOf(op string, in, out []string, more ...[]byte) []byte {
	var b []byte
	for _, s := range in {
		b = append(b, text(1, s)...)
	}
	for _, s := range out {
		b = append(b, text(2, s)...)
	}
	return join(b, text(4, op), bytes.Join(more, nil))
}

// modelOf wraps graph fields into a model of IR 8 and opset 17.
func modelOf(graph ...[]byte) []byte {
	return join(num(1, 8), text(2, "test"), str(7, append([][]byte{text(2, "g")}, graph...)...), str(8, text(1, ""), num(2, 17)))
}

// linear is y = x·w with w [2, 4] of float32, and further graph fields.
func linear(w []byte, more ...[]byte) []byte {
	return modelOf(append([][]byte{
		str(1, nodeOf("MatMul", []string{"x", "w"}, []string{"y"})), str(5, w),
		str(11, declared("x", 1, 1, 2)), str(12, declared("y", 1, 1, 4)),
	}, more...)...)
}

func f32s(n int) []byte {
	var b []byte
	for i := range n {
		b = protowire.AppendFixed32(b, 0x3f800000+uint32(i)<<12)
	}
	return b
}

// parse reads a model from memory, with data files below dir.
func parse(t testing.TB, b []byte, dir string) (*Model, error) {
	t.Helper()
	return read(bytes.NewReader(b), int64(len(b)), "test.onnx", nil, roots{dir, dir})
}

func mustParse(t testing.TB, b []byte, dir string) *Model {
	t.Helper()
	m, err := parse(t, b, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// write carries a layout out as the merge engine would: spans first, then the tensors with a size. It
// fails where a byte is written twice.
func write(t testing.TB, l *layout.Layout, data func(item int) []byte) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	var all [][]byte
	var seen [][]bool
	put := func(file int, off int64, b []byte) {
		for i := range b {
			if seen[file][off+int64(i)] {
				t.Fatalf("byte %d of %q is written twice", off+int64(i), l.Files[file].Name)
			}
			seen[file][off+int64(i)] = true
		}
		copy(all[file][off:], b)
	}
	for i, f := range l.Files {
		all, seen = append(all, make([]byte, f.Size)), append(seen, make([]bool, f.Size))
		files[f.Name] = all[i]
		for _, s := range f.Spans {
			b := make([]byte, s.Len)
			if n, err := s.Src.ReadAt(b, s.SrcOff); n != len(b) || err != nil && err != io.EOF {
				t.Fatalf("a span of %q: %d of %d bytes, %v", f.Name, n, len(b), err)
			}
			put(i, s.Off, b)
		}
	}
	if len(files) != len(l.Files) {
		t.Fatal("two files have the same name")
	}
	for i, p := range l.Items {
		if p.Size == 0 {
			continue
		}
		b := data(i)
		if int64(len(b)) != p.Size {
			t.Fatalf("item %d has place for %d bytes of %d", i, p.Size, len(b))
		}
		put(p.File, p.Off, b)
	}
	return files
}

// own gives the tensors' own data to write.
func own(t testing.TB, m *Model) func(int) []byte {
	return func(i int) []byte {
		b, err := m.Tensors()[i].Read()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
}

func specs(m *Model) []tensor.Spec {
	var w []tensor.Spec
	for _, t := range m.Tensors() {
		w = append(w, t.Spec)
	}
	return w
}

// save writes files to a new folder and opens the model among them.
func save(t testing.TB, files map[string][]byte, name string) *Model {
	t.Helper()
	dir := t.TempDir()
	for n, b := range files {
		if err := os.WriteFile(filepath.Join(dir, n), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m, err := Open(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// same compares names, types, shapes and data of all tensors.
func same(t testing.TB, want, got *Model) {
	t.Helper()
	a, b := want.Tensors(), got.Tensors()
	if len(a) != len(b) {
		t.Fatalf("%d tensors, want %d", len(b), len(a))
	}
	for i := range a {
		if a[i].Name != b[i].Name || a[i].DType != b[i].DType || !a[i].Shape.Equal(b[i].Shape) {
			t.Errorf("tensor %d is %v, want %v", i, b[i].Spec, a[i].Spec)
		}
		x, err := a[i].Read()
		if err != nil {
			t.Fatal(err)
		}
		y, err := b[i].Read()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(x, y) {
			t.Errorf("%s reads %x, want %x", a[i].Name, head(y), head(x))
		}
	}
}

func head(b []byte) []byte { return b[:min(32, len(b))] }

func optNamed(name string) layout.Options { return layout.Options{Name: name} }
