package npy

import (
	"archive/zip"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// archive writes an .npz file of entries.
func archive(t *testing.T, method uint16, entries ...[2]string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.npz")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z := zip.NewWriter(f)
	for _, e := range entries {
		w, err := z.CreateHeader(&zip.FileHeader{Name: e[0], Method: method})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e[1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func array(t *testing.T, d tensor.DType, shape tensor.Shape, data []byte) string {
	t.Helper()
	h, err := Header(d, shape)
	if err != nil {
		t.Fatal(err)
	}
	return string(h) + string(data)
}

func TestReadArchive(t *testing.T) {
	ids := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, 7), 9)
	half := []byte{0, 0x3c, 0, 0xc0}
	for _, method := range []uint16{zip.Store, zip.Deflate} {
		got, err := ReadArchive(archive(t, method, [2]string{"input_ids.npy", array(t, tensor.I64, tensor.Shape{1, 2}, ids)},
			[2]string{"x.y.npy", array(t, tensor.F16, tensor.Shape{2}, half)}), 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != 2 || got[0].Name != "input_ids" || got[0].DType != tensor.I64 || !got[0].Shape.Equal(tensor.Shape{1, 2}) || string(got[0].Data) != string(ids) ||
			got[1].Name != "x.y" || got[1].DType != tensor.F16 || string(got[1].Data) != string(half) {
			t.Errorf("%+v", got)
		}
	}
}

func TestReadArchiveRefuses(t *testing.T) {
	whole := array(t, tensor.U8, tensor.Shape{3}, []byte{1, 2, 3})
	damaged := archive(t, zip.Store, [2]string{"a.npy", whole})
	b, err := os.ReadFile(damaged)
	if err != nil {
		t.Fatal(err)
	}
	b[30+len("a.npy")+len(whole)-1] ^= 1 // the last element: only the checksum tells
	if err := os.WriteFile(damaged, b, 0o666); err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(t.TempDir(), "text.npz")
	if err := os.WriteFile(text, []byte("text"), 0o666); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ code, path string }{
		{"container.bad_zip", text}, {"container.bad_zip", damaged},
		{"container.unexpected_entry", archive(t, zip.Store, [2]string{"a.txt", "x"})},
		{"container.duplicate_entry", archive(t, zip.Store, [2]string{"a.npy", whole}, [2]string{"a.npy", whole})},
		{"container.bad_magic", archive(t, zip.Store, [2]string{"a.npy", "not an array at all"})},
		{"container.size_mismatch", archive(t, zip.Store, [2]string{"a.npy", whole + "x"})},
		{"container.too_large", archive(t, zip.Deflate, [2]string{"a.npy", array(t, tensor.U8, tensor.Shape{5000}, make([]byte, 5000))})},
		{"container.too_large", archive(t, zip.Store, [2]string{"a.npy", array(t, tensor.U8, tensor.Shape{800}, make([]byte, 800))}, [2]string{"b.npy", array(t, tensor.U8, tensor.Shape{800}, make([]byte, 800))})},
	} {
		if _, err := ReadArchive(c.path, 1<<10); finding.Of(err) == nil || finding.Of(err).Code != c.code {
			t.Errorf("%v, expected %s", err, c.code)
		}
	}
}
