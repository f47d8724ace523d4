package hf

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/hf/metadata"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// viaFile writes the tensors of a view as a GGUF file without converting them, and opens it.
func viaFile(t *testing.T, m *Model) *gguf.Model {
	t.Helper()
	specs := make([]tensor.Spec, len(m.Tensors()))
	for i, x := range m.Tensors() {
		specs[i] = x.Spec
	}
	l, err := gguf.NewLayout(m.Header(), specs, layout.Options{Name: "m.gguf"})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "m.gguf")
	w, err := layout.Create(path, l, false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for i, x := range m.Tensors() {
		b, err := x.Read()
		if err != nil {
			t.Fatal(err)
		}
		if err := w.WriteAt(i, b, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.WriteSpans(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	g, err := gguf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

// bare is a tensor's name without the prefix that comes and goes between model classes.
func bare(name string) string {
	for _, p := range []string{"bert.", "roberta.", "transformer.", "model."} {
		name = strings.TrimPrefix(name, p)
	}
	return name
}

// TestRestore takes every folder to GGUF and back, and compares the values.
func TestRestore(t *testing.T) {
	cases, err := filepath.Glob(corpus.Path(t, "hf2gguf", "cases", "*"))
	if err != nil || len(cases) == 0 {
		t.Fatal("no cases", err)
	}
	equal := 0
	for _, dir := range cases {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			folder, err := safetensors.Open(filepath.Join(dir, "input"))
			if err != nil {
				t.Fatal(err)
			}
			defer folder.Close()
			m, err := Open(filepath.Join(dir, "input"), Options{Metadata: metadata.Options{Pre: anyPre}})
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			restored, err := restore(viaFile(t, m), m.hp)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]tensor.Tensor{}
			for _, x := range restored {
				got[bare(x.Name)] = x
			}
			for _, want := range folder.Tensors() {
				if left(m.arch, want.Name) || naming.DropsHead(m.arch) && strings.HasPrefix(want.Name, "lm_head") {
					continue
				}
				x, ok := got[bare(want.Name)]
				if !ok {
					t.Errorf("%s is lost", want.Name)
					continue
				}
				delete(got, bare(want.Name))
				compare(t, m, &want, &x)
				equal++
			}
			for name := range got {
				t.Errorf("%s was not there", name)
			}
		})
	}
	t.Logf("%d tensors came back", equal)
}

// compare looks at the values of a tensor that went to GGUF and back.
func compare(t *testing.T, m *Model, want, got *tensor.Tensor) {
	t.Helper()
	wantData, gotData := float(t, want), float(t, got)
	rows := want.Shape
	if strings.HasSuffix(want.Name, "embed_tokens.weight") && m.arch == "gemma3" {
		rows = tensor.Shape{got.Shape[0], want.Shape[1]} // the padding of the vocabulary is gone for good
		wantData = wantData[:len(gotData)]
	}
	if strings.HasSuffix(want.Name, "position_embeddings.weight") && strings.HasPrefix(want.Name, "roberta.") {
		unused := 2 * 4 * want.Shape[1] // rows of positions that no token has
		wantData, gotData = wantData[unused:], gotData[unused:]
	}
	if got.Shape.String() != rows.String() {
		t.Errorf("%s has the shape %v, want %v", want.Name, got.Shape, rows)
		return
	}
	if want.DType == tensor.F16 && m.arch == "gemma" && strings.HasSuffix(want.Name, "norm.weight") {
		return // 1 was added in F16, which rounds
	}
	if !bytes.Equal(gotData, wantData) {
		t.Errorf("%s has other values", want.Name)
	}
}

// float is a tensor's data as F32, and as it is where it holds packed bytes.
func float(t *testing.T, x *tensor.Tensor) []byte {
	t.Helper()
	if x.DType == tensor.U8 {
		b, err := x.Read()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	s, ok := widened(source{x, x.DType, x.Shape})
	if !ok {
		t.Fatalf("%s: type %s", x.Name, x.DType)
	}
	n, err := x.Shape.Elements()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4*n)
	if err := full(s, b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}
