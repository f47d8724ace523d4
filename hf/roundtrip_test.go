package hf_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/hf"
	"github.com/loratool/loratool/hf/metadata"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/tensor"
)

// TestRoundTrip takes every case from GGUF to a folder and back: the tensors are the same, and so are the
// key-values that do not name the folder.
func TestRoundTrip(t *testing.T) {
	root := corpus.Path(t, "hf2gguf")
	pre := preTokenizers(t, root)
	cases, err := os.ReadDir(filepath.Join(root, "cases"))
	if err != nil {
		t.Fatal(err)
	}
	tensors, kvs := 0, 0
	for _, c := range cases {
		t.Run(c.Name(), func(t *testing.T) {
			first := convert(t, input(t, root, c.Name()), "auto", metadata.Options{Pre: pre[c.Name()]})
			if !slices.ContainsFunc(first.Tensors(), func(x tensor.Tensor) bool { return x.DType == first.DType() }) {
				first = convert(t, input(t, root, c.Name()), "f32", metadata.Options{Pre: pre[c.Name()]})
			}
			outtype := strings.ToLower(first.DType().String())
			g, err := gguf.Open(filepath.Join(write(t, first, "m.gguf", layout.Options{}, nil), "m.gguf"))
			if err != nil {
				t.Fatal(err)
			}
			hp, err := merge.GGUFParameters(g)
			if err != nil {
				t.Fatal(err)
			}
			f, err := hf.Restore(g, hp, tensor.Invalid)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			plan, err := merge.NewPlan(f, nil, merge.Options{TypeOf: f.Type})
			if err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(t.TempDir(), c.Name())
			l, err := plan.Layout(f, dir, layout.Options{})
			if err != nil {
				t.Fatal(err)
			}
			run(t, plan, l, dir)
			for _, n := range f.Findings() {
				t.Logf("note: %v", n.Error())
			}
			if c.Name() == "llama-hf-tok-12M-v1.5" {
				return // its tokenizer cannot come back
			}
			second := convert(t, dir, outtype, metadata.Options{Pre: pre[c.Name()]})
			want, got := contents(t, first.Tensors()), contents(t, second.Tensors())
			for name, b := range want {
				if string(got[name]) != string(b) {
					t.Errorf("%s has other values", name)
				}
				tensors++
			}
			if len(got) != len(want) {
				t.Errorf("%d tensors, want %d", len(got), len(want))
			}
			for _, kv := range first.KVs() {
				if strings.HasPrefix(kv.Key, "general.") && kv.Key != "general.file_type" && kv.Key != "general.architecture" {
					continue
				}
				v, ok := second.Get(kv.Key)
				switch {
				case !ok:
					t.Errorf("%s is lost (%v)", kv.Key, kv.Value)
				case v.String() != kv.Value.String() || !slices.Equal(stringsOf(v), stringsOf(kv.Value)):
					t.Errorf("%s is %v, was %v", kv.Key, v, kv.Value)
				default:
					kvs++
				}
			}
			for _, kv := range second.KVs() {
				if _, ok := first.Get(kv.Key); !ok && !strings.HasPrefix(kv.Key, "general.") {
					t.Errorf("%s = %v is new", kv.Key, kv.Value)
				}
			}
		})
	}
	t.Logf("%d tensors, %d key-values came back", tensors, kvs)
}

func stringsOf(v gguf.Value) []string {
	s, _ := v.Strings()
	return s
}
