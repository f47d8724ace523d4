package hf_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/hf"
	"github.com/loratool/loratool/hf/metadata"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// synthetic is an adapter of rank 3 for every matrix of the folder's layers and its output layer.
func synthetic(m *safetensors.Model, arch string) *adapter.Adapter {
	const rank = 3
	rnd := rand.New(rand.NewPCG(7, 11))
	values := func(n int64) []float32 {
		v := make([]float32, n)
		for i := range v {
			v[i] = rnd.Float32()*0.2 - 0.1
		}
		return v
	}
	a := &adapter.Adapter{Path: "synthetic", Dialect: "peft", Space: naming.HF}
	for _, t := range m.Tensors() {
		module, ok := strings.CutSuffix(t.Name, ".weight")
		if !ok || len(t.Shape) != 2 || t.Shape[0] < 2 || strings.Contains(module, "norm") || strings.Contains(module, "LayerNorm") ||
			strings.Contains(module, "embed") || strings.HasSuffix(module, "wte") || strings.HasSuffix(module, "wpe") || strings.Contains(module, "pooler") {
			continue
		}
		if naming.DropsHead(arch) && strings.HasSuffix(module, "lm_head") {
			continue
		}
		out, in := t.Shape[0], t.Shape[1]
		if arch == "gpt2" && naming.IsConv1D(module) {
			out, in = in, out
		}
		a.Updates = append(a.Updates, adapter.Update{
			Target: adapter.Target{Module: module, Param: "weight"}, Kind: adapter.LowRank, Layer: adapter.Linear, Rank: rank,
			A: adapter.FromValues(rank, in, values(rank*in)), B: adapter.FromValues(out, rank, values(out*rank)),
			Scale: adapter.Scale{Value: 1.5, Source: "test"}, Tensors: []string{module},
		})
	}
	return a
}

// merged plans and writes a merge, and returns its tensors by name.
func merged(t *testing.T, base formats.Writable, a *adapter.Adapter, path string, opt merge.Options) {
	t.Helper()
	opt.Resolve = merge.Resolvers(base)
	plan, err := merge.NewPlan(base, []merge.Input{{Adapter: a, Scale: 1}}, opt)
	if err != nil {
		t.Fatal(err)
	}
	l, err := plan.Layout(base, path, layout.Options{})
	if err != nil {
		t.Fatal(err)
	}
	run(t, plan, l, path)
}

func contents(t *testing.T, tensors []tensor.Tensor) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for _, x := range tensors {
		b, err := x.Read()
		if err != nil {
			t.Fatal(err)
		}
		out[x.Name] = b
	}
	return out
}

// TestMergeBeforeAndAfter merges an adapter into the folder and converts the result, into the converted
// file, and into the folder on its way to the file: in float32 all three are the same.
func TestMergeBeforeAndAfter(t *testing.T) {
	root := corpus.Path(t, "hf2gguf")
	cases, err := os.ReadDir(filepath.Join(root, "cases"))
	if err != nil {
		t.Fatal(err)
	}
	updates, tensors := 0, 0
	for _, c := range cases {
		t.Run(c.Name(), func(t *testing.T) {
			meta := metadata.Options{Pre: "default"}
			dir := input(t, root, c.Name())
			folder, err := safetensors.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer folder.Close()
			view := convert(t, dir, "f32", meta)
			a := synthetic(folder, view.Arch())
			tmp := t.TempDir()
			file := func(name string) string { return filepath.Join(tmp, name) }

			merged(t, view, a, file("way.gguf"), merge.Options{TypeOf: view.Type})
			plain := filepath.Join(write(t, view, "plain.gguf", layout.Options{}, nil), "plain.gguf")
			g, err := gguf.Open(plain)
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			merged(t, g, a, file("after.gguf"), merge.Options{})
			merged(t, folder, a, file("folder"), merge.Options{DType: tensor.F32})
			before := convert(t, file("folder"), "f32", meta)

			got := map[string]map[string][]byte{"before": contents(t, before.Tensors())}
			for _, name := range []string{"way", "after"} {
				m, err := gguf.Open(file(name + ".gguf"))
				if err != nil {
					t.Fatal(err)
				}
				defer m.Close()
				got[name] = contents(t, m.Tensors())
			}
			base := contents(t, g.Tensors())
			changed := 0
			for name, want := range got["way"] {
				for _, other := range []string{"before", "after"} {
					if other == "before" && view.Arch() == "gemma" && strings.HasSuffix(name, "norm.weight") {
						continue // 1 is added in the folder's type, which is F16 here and F32 after a merge
					}
					if !bytes.Equal(got[other][name], want) {
						t.Errorf("%s: %s the conversion gives other values than on the way", name, other)
					}
				}
				if !bytes.Equal(base[name], want) {
					changed++
				}
				tensors++
			}
			if changed == 0 {
				t.Error("the adapter changed nothing")
			}
			updates += len(a.Updates)
		})
	}
	t.Logf("%d updates, %d tensors equal on three ways", updates, tensors)
}

var _ formats.Writable = (*hf.Model)(nil)
var _ merge.LlamaModel = (*hf.Model)(nil)
