package peft

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/internal/corpus"
)

const tiny = "../../testdata/tiny-llama"

// TestTinyMerges merges the adapters that peft 0.18 made of a small Llama, in safetensors and in pickle
// form, and compares with what peft wrote in BF16: float32 arithmetic rounded once, or twice where peft
// rounds an embedding's update before it adds it.
func TestTinyMerges(t *testing.T) {
	dirs, err := filepath.Glob(filepath.Join(tiny, "adapters", "*"))
	if err != nil || len(dirs) < 8 {
		t.Fatalf("%d adapters, %v", len(dirs), err)
	}
	base := filepath.Join(tiny, "base", "model.safetensors")
	for _, dir := range append(dirs, filepath.Join(tiny, "adapter")) {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			a, err := Open(dir, Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			want := filepath.Join(dir, "merged.safetensors")
			if _, err := os.Stat(want); err != nil {
				want = filepath.Join(tiny, "merged", "model.safetensors")
			}
			var c struct{ Changed []string }
			corpus.ReadJSON(t, filepath.Join(dir, "case.json"), &c)
			got, before := apply(t, base, a), apply(t, base)
			for name, w := range floats(t, want) {
				changed := slices.Contains(c.Changed, name) || c.Changed == nil
				for i, x := range w {
					b := before[name][i]
					bound := halfStep(float64(x)) + math.Ldexp(math.Abs(b), -22) // float32 arithmetic
					if name == "model.embed_tokens.weight" {
						bound += halfStep(got[name][i] - b)
					}
					if !changed {
						bound = 0
					}
					if d := math.Abs(got[name][i] - float64(x)); d > bound {
						t.Fatalf("%s: value %d is %v, peft has %v (base %v)", name, i, got[name][i], x, b)
					}
				}
			}
			f, err := Encode(a, EncodeOptions{})
			if err != nil {
				t.Fatal(err)
			}
			sameUpdates(t, reread(t, f, Options{}), a)
		})
	}
}

// halfStep is the most that rounding to BF16 changes a value.
func halfStep(x float64) float64 {
	if x == 0 {
		return 0
	}
	return math.Ldexp(1, math.Ilogb(x)-8)
}

func floats(t *testing.T, path string) map[string][]float32 {
	t.Helper()
	m, err := safetensors.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	out := map[string][]float32{}
	for _, x := range m.Tensors() {
		if out[x.Name], err = adapter.ReadFloats(&x); err != nil {
			t.Fatal(err)
		}
	}
	return out
}
