package imatrix

import (
	"bytes"
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/tensor"
)

// A weight is one tensor of a GGUF file that a test writes.
type weight struct {
	name   string
	shape  tensor.Shape
	values []float32
}

var goodKVs = gguf.KVs{
	{Key: "general.type", Value: gguf.Of("imatrix")}, {Key: "imatrix.datasets", Value: gguf.ArrayOf([]string{"wiki", "code"})},
	{Key: "imatrix.chunk_count", Value: gguf.Of(uint32(7))}, {Key: "imatrix.chunk_size", Value: gguf.Of(uint32(512))},
}

func writeGGUF(t testing.TB, kvs gguf.KVs, weights []weight) string {
	t.Helper()
	specs := make([]tensor.Spec, len(weights))
	for i, w := range weights {
		specs[i] = tensor.Spec{Name: w.name, DType: tensor.F32, Shape: w.shape}
	}
	path := filepath.Join(t.TempDir(), "m.gguf")
	l, err := gguf.NewLayout(gguf.Header{KVs: kvs, KeepDims: true}, specs, layout.Options{Name: "m.gguf"})
	if err != nil {
		t.Fatal(err)
	}
	w, err := layout.Create(path, l, false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for i := range weights {
		if err := w.WriteAt(i, encode(weights[i].values...), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	return path
}

func encode(v ...float32) []byte {
	var b []byte
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
	}
	return b
}

func code(err error) string {
	if f := finding.Of(err); f != nil {
		return f.Code
	}
	return ""
}

func TestGGUF(t *testing.T) {
	path := writeGGUF(t, goodKVs, []weight{
		{"w.weight.in_sum2", tensor.Shape{1, 3}, []float32{2, 4, 9}}, {"w.weight.counts", tensor.Shape{1, 1}, []float32{2}},
		{"e.weight.in_sum2", tensor.Shape{2, 2}, []float32{3, 6, 5, 5}}, {"e.weight.counts", tensor.Shape{2, 1}, []float32{3, 0}},
	})
	m, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(m.Datasets, []string{"wiki", "code"}) || m.Chunks != 7 || m.Len() != 2 || !slices.Equal(m.Names(), []string{"e.weight", "w.weight"}) {
		t.Errorf("%+v", m)
	}
	for _, c := range []struct {
		spec tensor.Spec
		want []float32
		code string
	}{
		{tensor.Spec{Name: "w.weight", Shape: tensor.Shape{8, 3}}, []float32{1, 2, 4.5}, ""},
		{tensor.Spec{Name: "e.weight", Shape: tensor.Shape{2, 8, 2}}, []float32{1, 2, 1, 1}, ""}, // the second expert was never used
		{tensor.Spec{Name: "other.weight", Shape: tensor.Shape{8, 3}}, nil, ""},
		{tensor.Spec{Name: "w.weight", Shape: tensor.Shape{8, 4}}, nil, "imatrix.wrong_size"},
		{tensor.Spec{Name: "w.weight", Shape: tensor.Shape{3, 8, 1}}, []float32{1, 2, 4.5}, ""},
		{tensor.Spec{Name: "e.weight", Shape: tensor.Shape{8, 4}}, nil, "imatrix.wrong_size"}, // of two experts
		{tensor.Spec{Name: "e.weight", Shape: tensor.Shape{8, 2}}, nil, "imatrix.wrong_size"},
	} {
		got, err := m.For(c.spec)
		if !slices.Equal(got, c.want) || code(err) != c.code {
			t.Errorf("%s %v: %v, %v", c.spec.Name, c.spec.Shape, got, err)
		}
	}
	if len(m.Findings) != 1 || m.Findings[0].Code != "imatrix.unseen" || m.Findings[0].Tensor != "e.weight" {
		t.Errorf("findings %+v", m.Findings)
	}
}

func TestBadGGUF(t *testing.T) {
	sum := weight{"w.in_sum2", tensor.Shape{1, 2}, []float32{1, 1}}
	count := weight{"w.counts", tensor.Shape{1, 1}, []float32{1}}
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	with := func(w weight, v ...float32) weight { w.values = v; return w }
	for name, c := range map[string]struct {
		kvs     gguf.KVs
		weights []weight
		code    string
	}{
		"model":          {gguf.KVs{{Key: "general.type", Value: gguf.Of("model")}}, []weight{sum, count}, "imatrix.not_imatrix"},
		"no datasets":    {slices.Delete(slices.Clone(goodKVs), 1, 2), []weight{sum, count}, "imatrix.bad_metadata"},
		"no chunk size":  {goodKVs[:3], []weight{sum, count}, "imatrix.bad_metadata"},
		"no counts":      {goodKVs, []weight{sum}, "imatrix.incomplete"},
		"no sums":        {goodKVs, []weight{count}, "imatrix.incomplete"},
		"strange tensor": {goodKVs, []weight{sum, count, {"w", tensor.Shape{1}, []float32{1}}}, "imatrix.bad_tensor"},
		"empty":          {goodKVs, nil, "imatrix.empty"},
		"count size":     {goodKVs, []weight{sum, {"w.counts", tensor.Shape{2, 1}, []float32{1, 1}}}, "imatrix.wrong_size"},
		"no count":       {goodKVs, []weight{sum, {"w.counts", tensor.Shape{0, 1}, nil}}, "imatrix.wrong_size"},
		"nan":            {goodKVs, []weight{with(sum, 1, nan), count}, "imatrix.bad_value"},
		"inf":            {goodKVs, []weight{with(sum, inf, 1), count}, "imatrix.bad_value"},
		"overflow":       {goodKVs, []weight{with(sum, math.MaxFloat32, 1), with(count, 0x1p-20)}, "imatrix.bad_value"},
		"negative":       {goodKVs, []weight{with(sum, -1, 1), count}, "imatrix.bad_value"},
		"nan count":      {goodKVs, []weight{sum, with(count, nan)}, "imatrix.bad_value"},
	} {
		if _, err := Open(writeGGUF(t, c.kvs, c.weights)); code(err) != c.code {
			t.Errorf("%s: %v, want %s", name, err, c.code)
		}
	}
}

// legacyFile is a legacy file of one entry w of two calls, with a trailer.
func legacyFile() []byte {
	b := binary.LittleEndian.AppendUint32(nil, 1)
	b = append(binary.LittleEndian.AppendUint32(b, 8), "w.weight"...)
	b = binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(b, 2), 3)
	b = append(b, encode(2, 4, 9)...)
	b = binary.LittleEndian.AppendUint32(b, 11)
	return append(binary.LittleEndian.AppendUint32(b, 4), "wiki"...)
}

func openBytes(t testing.TB, b []byte) (*Matrix, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "m.dat")
	if err := os.WriteFile(path, b, 0o666); err != nil {
		t.Fatal(err)
	}
	return Open(path)
}

func TestLegacy(t *testing.T) {
	full := legacyFile()
	m, err := openBytes(t, full)
	if err != nil {
		t.Fatal(err)
	}
	v, err := m.For(tensor.Spec{Name: "w.weight", Shape: tensor.Shape{8, 3}})
	if err != nil || !slices.Equal(v, []float32{1, 2, 4.5}) || m.Chunks != 11 || !slices.Equal(m.Datasets, []string{"wiki"}) {
		t.Errorf("%v %v %+v", v, err, m)
	}
	// Older files end after the entries. Anything between is cut off.
	bare := len(full) - 12
	for n := range full {
		_, err := openBytes(t, full[:n])
		if n == bare {
			if err != nil {
				t.Errorf("without a trailer: %v", err)
			}
			continue
		}
		if c := code(err); c != "imatrix.truncated" && c != "imatrix.bad_count" {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
	for name, c := range map[string]struct {
		at   int
		to   uint32
		code string
	}{
		"entries":     {0, 1 << 30, "imatrix.bad_count"},
		"negative":    {0, 1 << 31, "imatrix.bad_count"},
		"none":        {0, 0, "imatrix.bad_count"}, // the entry reads as a trailer
		"name length": {4, 1 << 30, "imatrix.bad_count"},
		"values":      {20, 1<<31 - 1, "imatrix.bad_count"},
		"nan":         {28, 0x7fc00000, "imatrix.bad_value"},
	} {
		b := bytes.Clone(full)
		binary.LittleEndian.PutUint32(b[c.at:], c.to)
		if _, err := openBytes(t, b); code(err) != c.code {
			t.Errorf("%s: %v, want %s", name, err, c.code)
		}
	}
	if _, err := openBytes(t, make([]byte, 4)); code(err) != "imatrix.empty" {
		t.Errorf("no entries: %v", err)
	}
}

func TestMissing(t *testing.T) {
	if _, err := Open(filepath.Join(t.TempDir(), "none")); code(err) != "files.missing" {
		t.Errorf("missing: %v", err)
	}
	if _, err := Open(t.TempDir()); code(err) != "files.not_regular" {
		t.Errorf("folder: %v", err)
	}
}

// FuzzOpen: whatever the bytes, values are finite and no larger than the file.
func FuzzOpen(f *testing.F) {
	f.Add(legacyFile())
	f.Add([]byte("GGUF"))
	good, err := os.ReadFile(writeGGUF(f, goodKVs, []weight{{"w.in_sum2", tensor.Shape{1, 2}, []float32{1, 1}}, {"w.counts", tensor.Shape{1, 1}, []float32{1}}}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	path := filepath.Join(f.TempDir(), "m.dat")
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(path, b, 0o666); err != nil {
			t.Fatal(err)
		}
		m, err := Open(path)
		if err != nil {
			if finding.Of(err) == nil {
				t.Fatalf("not a finding: %v", err)
			}
			return
		}
		total := 0
		for _, n := range m.Names() {
			for _, v := range m.entries[n].values {
				if v-v != 0 || v < 0 {
					t.Fatalf("%s has %v", n, v)
				}
			}
			total += 4 * len(m.entries[n].values)
		}
		if total > len(b) {
			t.Fatalf("%d bytes of values from %d", total, len(b))
		}
	})
}

// TestCorpus reads the matrix that the whole-file goldens were made with.
func TestCorpus(t *testing.T) {
	m, err := Open(corpus.Path(t, "gguf-files", "tiny-imatrix.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	if m.Len() != 15 || m.Chunks != 10 || !slices.Equal(m.Datasets, []string{"synthetic"}) {
		t.Errorf("%d entries, %d chunks, %q", m.Len(), m.Chunks, m.Datasets)
	}
}
