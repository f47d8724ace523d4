package safetensors

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/tensor"
)

// modelOf is the model of a file in memory.
func modelOf(file []byte) (*Model, error) {
	h, err := readHeader("f", bytes.NewReader(file), int64(len(file)))
	if err != nil {
		return nil, err
	}
	m := &Model{metadata: h.metadata}
	for _, e := range h.tensors {
		m.tensors = append(m.tensors, tensor.Tensor{Spec: e.Spec, Src: bytes.NewReader(file), Off: h.data + int64(e.begin), Size: int64(e.size)})
	}
	return m, nil
}

func rewrite(t *testing.T, m *Model) []byte {
	t.Helper()
	l, err := m.Layout(specs(m), layout.Options{Name: "x.safetensors"})
	if err != nil {
		t.Fatalf("an accepted file cannot be written: %v", err)
	}
	return render(t, l, m.Tensors())[0]
}

// Whatever is accepted fills its file, and is stable once it has been written: the same tensors, and
// the same bytes the second time.
func FuzzOpen(f *testing.F) {
	for _, s := range []string{
		bytesFile("a", "b"), image(`{"__metadata__":{"format":"pt"}}   `, ""), image("{}", ""),
		image(`{"a":{"dtype":"F4","shape":[2,3],"data_offsets":[0,3]}}`, "xyz"),
		image(`{"a":{"dtype":"U8","shape":[0,18446744073709551615,9],"data_offsets":[0,0]}}`, ""),
		image(`{"é\ud83d\ude00\n":{"dtype":"I16","shape":[],"data_offsets":[0,2],"x":[[{}]]}}`, "ab"),
		"version https://git-lfs.github.com/spec/v1\n", "GGUF\x03\x00\x00\x00",
	} {
		f.Add([]byte(s))
	}
	own, _ := filepath.Glob("testdata/*.safetensors")
	for _, path := range own {
		if b, err := os.ReadFile(path); err == nil && len(b) < 4096 {
			f.Add(b)
		}
	}
	for _, b := range corpus.Seeds(f, "badinputs/safetensors/*.safetensors", 4096) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		m, err := modelOf(file)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > uint64(2*allocFactor*len(file)+1<<20) {
			t.Errorf("%d bytes allocated for %d", n, len(file))
		}
		if err != nil {
			if code(err) == "" {
				t.Fatalf("the error %v is no finding", err)
			}
			return
		}
		total := int64(0)
		for _, x := range m.Tensors() {
			total += x.Size
		}
		header, _ := readHeader("f", bytes.NewReader(file), int64(len(file)))
		if header.data+total != int64(len(file)) {
			t.Fatalf("a header of %d and %d bytes of data in a file of %d", header.data, total, len(file))
		}
		first := rewrite(t, m)
		again, err := modelOf(first)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		if a, b := fmt.Sprint(content(t, m), m.Metadata()), fmt.Sprint(content(t, again), again.Metadata()); a != b {
			t.Fatalf("content changed from %s to %s", a, b)
		}
		if second := rewrite(t, again); !bytes.Equal(first, second) {
			t.Fatal("the second copy differs from the first")
		}
	})
}

// What the strict scanner accepts, encoding/json accepts too, with the same strings.
func FuzzScanner(f *testing.F) {
	for _, s := range []string{`{"a":[1,-0.5e+3,"\u00e9\ud83d\ude00\"\\\/\b\f\n\r\t",null,true,false,{}]}`, `[]`, `"x"`, ` 12 `, `{"a":1,"a":2}`, `"\ud800"`, `01`, `1.`, `[1,]`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if strings.ToValidUTF8(text, "") != text {
			return
		}
		s := &scanner{file: "f", text: text}
		err := s.skip()
		if err == nil {
			err = s.end()
		}
		if err == nil && !json.Valid([]byte(text)) {
			t.Errorf("accepted %q", text)
		}
		s = &scanner{file: "f", text: text}
		got, err := s.str()
		if err != nil || s.end() != nil {
			return
		}
		var want string
		if err := json.Unmarshal([]byte(text), &want); err != nil || got != want {
			t.Errorf("%q reads as %q, encoding/json says %q (%v)", text, got, want, err)
		}
		for _, written := range [][]byte{appendString(nil, got), appendASCII(nil, got)} {
			s = &scanner{file: "f", text: string(written)}
			if back, err := s.str(); err != nil || back != got {
				t.Errorf("%q was written as %s and reads as %q (%v)", got, written, back, err)
			}
		}
	})
}

func BenchmarkOpen2000Tensors(b *testing.B) {
	var specs []tensor.Spec
	for i := range 2000 {
		specs = append(specs, tensor.Spec{Name: fmt.Sprintf("model.layers.%d.self_attn.q_proj.%d.weight", i/7, i), DType: tensor.BF16, Shape: tensor.Shape{2, 4}})
	}
	l, err := NewLayout(specs, Output{Metadata: [][2]string{{"format", "pt"}}}, layout.Options{Name: "x"})
	if err != nil {
		b.Fatal(err)
	}
	file := make([]byte, l.Files[0].Size)
	if n, _ := l.Files[0].Spans[0].Src.ReadAt(file[:l.Files[0].Spans[0].Len], 0); int64(n) != l.Files[0].Spans[0].Len {
		b.Fatal("short header")
	}
	dir := b.TempDir()
	put(b, dir, map[string]string{"x.safetensors": string(file)})
	for b.Loop() {
		m, err := Open(filepath.Join(dir, "x.safetensors"))
		if err != nil {
			b.Fatal(err)
		}
		if len(m.Tensors()) != len(specs) {
			b.Fatal("tensors are missing")
		}
		m.Close()
	}
}
