package torch

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/tensor"
)

// TestArchive lays the entries of files that torch saved out again: every byte of the archive is torch's.
func TestArchive(t *testing.T) {
	for _, name := range []string{"zip.pt", "checkpoint.pt"} {
		want, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		r, err := zip.NewReader(bytes.NewReader(want), int64(len(want)))
		if err != nil {
			t.Fatal(err)
		}
		z := newZip(strings.TrimSuffix(name, ".pt"))
		var items [][]byte
		for _, f := range r.File {
			e, err := f.Open()
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(e)
			if err != nil {
				t.Fatal(err)
			}
			switch _, entry, _ := strings.Cut(f.Name, "/"); {
			case strings.HasPrefix(entry, "data/"):
				z.item(entry, int64(len(b)))
				items = append(items, b)
			case entry == ".data/serialization_id":
				z.identify()
			default:
				z.add(entry, b)
			}
		}
		if got := fill(t, z.finish("out.pt"), items); !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes differ from torch's %d", name, len(got), len(want))
		}
	}
}

// fill writes items in halves, the second first, and returns the file.
func fill(t *testing.T, l *layout.Layout, items [][]byte) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), l.Files[0].Name)
	w, err := layout.Create(path, l, false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for i, b := range items {
		half := len(b) / 2
		for _, err := range []error{w.WriteAt(i, b[half:], int64(half)), w.WriteAt(i, b[:half], 0)} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// TestPickle compares with what CPython's pickler writes.
func TestPickle(t *testing.T) {
	want, err := os.ReadFile("testdata/dict.pkl")
	if err != nil {
		t.Fatal(err)
	}
	got, err := pickleOf([]tensor.Spec{
		{Name: "layers.0.attn.q_proj.lora_a.weight", DType: tensor.BF16, Shape: tensor.Shape{8, 4096}},
		{Name: "layers.0.attn.q_proj.lora_b.weight", DType: tensor.BF16, Shape: tensor.Shape{70000, 8}},
		{Name: "layers.0.attn.q_proj.magnitude", DType: tensor.F32, Shape: tensor.Shape{4096}},
		{Name: "scalar", DType: tensor.F32, Shape: tensor.Shape{}},
		{Name: "conv", DType: tensor.F16, Shape: tensor.Shape{2, 3, 3, 3}},
		{Name: "cube", DType: tensor.F16, Shape: tensor.Shape{2, 3, 5}},
		{Name: "größe", DType: tensor.F32, Shape: tensor.Shape{0, 4}},
		{Name: "big", DType: tensor.F16, Shape: tensor.Shape{3, 1 << 30}},
	}, "dict.pt")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got\n%q, expected\n%q", got, want)
	}
	for n, sum := range map[int]string{
		0:    "ad2598304a8af697d0c335a50a3e5a1ba06c82d9b63ef5f9d3e730b54cf9148a",
		1:    "e22943bc7ba780eb3ae6e472a5ab2a0ea9acaa3c7e981df8b2ed8f72b99a8689",
		1000: "8be74d4e8e0cdfd430f09f92198e2d69770eb120c7708bd610beda3aa530b586",
		1001: "d10f2e7d80adfd8817633535bc473d7ed79843729d3f83656a5c237319186d99",
	} {
		var specs []tensor.Spec
		for i := range n {
			specs = append(specs, tensor.Spec{Name: fmt.Sprintf("t%d", i), DType: tensor.F32, Shape: tensor.Shape{int64(i % 300), 2}})
		}
		p, err := pickleOf(specs, "")
		if err != nil {
			t.Fatal(err)
		}
		if s := sha256.Sum256(p); hex.EncodeToString(s[:]) != sum {
			t.Errorf("the pickle of %d tensors differs from CPython's", n)
		}
	}
}

// TestSaveAndOpen reads back what was written.
func TestSaveAndOpen(t *testing.T) {
	specs := []tensor.Spec{
		{Name: "a", DType: tensor.F32, Shape: tensor.Shape{3, 5}}, {Name: "b.c", DType: tensor.BF16, Shape: tensor.Shape{7}},
		{Name: "none", DType: tensor.F16, Shape: tensor.Shape{0, 3}}, {Name: "one", DType: tensor.I64, Shape: tensor.Shape{}},
	}
	rng := rand.New(rand.NewPCG(1, 2))
	var items [][]byte
	for _, s := range specs {
		n, err := s.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		items = append(items, b)
	}
	l, err := Layout(specs, layout.Options{Name: "adapter_0.pt"})
	if err != nil {
		t.Fatal(err)
	}
	file := fill(t, l, items)
	m, err := load(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Findings()) > 0 {
		t.Errorf("findings: %v", m.Findings())
	}
	if err := m.CheckData(); err != nil {
		t.Error(err)
	}
	for i, x := range m.Tensors() {
		b, err := x.Read()
		if err != nil || x.Name != specs[i].Name || x.DType != specs[i].DType || !x.Shape.Equal(specs[i].Shape) || !bytes.Equal(b, items[i]) {
			t.Errorf("%s %s %v came back as %s %s %v, %v", specs[i].Name, specs[i].DType, specs[i].Shape, x.Name, x.DType, x.Shape, err)
		}
	}
	z, err := zip.NewReader(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range z.File {
		off, err := f.DataOffset()
		if err != nil || off%alignment != 0 || !strings.HasPrefix(f.Name, "adapter_0/") {
			t.Errorf("%s lies at %d, %v", f.Name, off, err)
		}
	}
	if !slices.Equal(fill(t, l, items), file) {
		t.Error("the bytes are not the same twice")
	}
}

// TestLarge looks at an archive of more than 4 GiB through its spans alone.
func TestLarge(t *testing.T) {
	specs := []tensor.Spec{{Name: "small", DType: tensor.F32, Shape: tensor.Shape{2}}, {Name: "large", DType: tensor.F16, Shape: tensor.Shape{3, 1 << 30}}, {Name: "last", DType: tensor.F16, Shape: tensor.Shape{1}}}
	l, err := Layout(specs, layout.Options{Name: "x.pt"})
	if err != nil {
		t.Fatal(err)
	}
	l.Items[2].Seen([]byte{0, 0}, 0)
	m := &Model{path: "x.pt", file: spansOf(l.Files[0])}
	if err := m.load(l.Files[0].Size); err != nil {
		t.Fatal(err)
	}
	for i, x := range m.Tensors() {
		if x.Name != specs[i].Name || !x.Shape.Equal(specs[i].Shape) {
			t.Errorf("%s %v", x.Name, x.Shape)
		}
	}
	if x := m.Tensors()[2]; x.Src == nil {
		t.Error("no data")
	} else if b, err := x.Read(); err != nil || len(b) != 2 {
		t.Error(err)
	}
}

// spansOf is a file in which all but the spans is zero.
type spansOf layout.File

func (f spansOf) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	for _, s := range f.Spans {
		from, to := max(off, s.Off), min(off+int64(len(p)), s.Off+s.Len)
		if from < to {
			if _, err := s.Src.ReadAt(p[from-off:to-off], s.SrcOff+from-s.Off); err != nil && err != io.EOF {
				return 0, err
			}
		}
	}
	return len(p), nil
}

func TestSaveErrors(t *testing.T) {
	for code, specs := range map[string][]tensor.Spec{
		"output.bad_dtype":      {{Name: "a", DType: tensor.Q4_0, Shape: tensor.Shape{32}}},
		"output.duplicate_name": {{Name: "a", DType: tensor.F32, Shape: tensor.Shape{1}}, {Name: "a", DType: tensor.F32, Shape: tensor.Shape{1}}},
		"output.bad_shape":      {{Name: "a", DType: tensor.F32, Shape: tensor.Shape{1 << 40, 1 << 40}}},
	} {
		if _, err := Layout(specs, layout.Options{Name: "x.pt"}); finding.Of(err) == nil || finding.Of(err).Code != code {
			t.Errorf("got %v, expected %s", err, code)
		}
	}
}

func TestRoot(t *testing.T) {
	for name, want := range map[string]string{"adapter_0.pt": "adapter_0", "a.b.pt": "a.b", "x": "x", ".pt": "archive", "größe.pt": "archive", "": "archive"} {
		if got := rootOf(name); got != want {
			t.Errorf("%q: %q, expected %q", name, got, want)
		}
	}
}

// TestChecksum joins checksums of runs of all lengths, in any order.
func TestChecksum(t *testing.T) {
	b := make([]byte, 1<<16+7)
	for i := range b {
		b[i] = byte(i * i >> 3)
	}
	for _, step := range []int{7, 13, 4096, len(b)} {
		var c checksum
		var offs []int
		for off := 0; off < len(b); off += step {
			offs = append(offs, off)
		}
		rand.New(rand.NewPCG(3, 4)).Shuffle(len(offs), func(i, j int) { offs[i], offs[j] = offs[j], offs[i] })
		for _, off := range append(offs, offs[0]) {
			c.add(b[off:min(off+step, len(b))], int64(off))
		}
		if got, want := c.value(), crc32.ChecksumIEEE(b); got != want {
			t.Errorf("runs of %d bytes: %08x, expected %08x", step, got, want)
		}
	}
}
