package merge_test

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"testing"

	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/tensor"
)

// TestLlamaCpp merges GGUF adapters into GGUF bases and compares with llama.cpp's merge tool: absolute
// difference for F32, units in the last place for F16, and equal bytes where nothing is merged.
func TestLlamaCpp(t *testing.T) {
	b, err := os.ReadFile(corpus.Path(t, "gguf-lora", "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var manifest struct {
		Cases []struct {
			ID    string `json:"id"`
			Merge []struct {
				Base, Adapter, Expected string
				Scale                   float64
				MergedType              string `json:"merged_type"`
				Tolerance               struct {
					Abs    float64
					F16Ulp int `json:"f16_ulp"`
				}
				Silent string `json:"peer_silent"`
			}
		}
	}
	if err := json.Unmarshal(b, &manifest); err != nil {
		t.Fatal(err)
	}
	compared := 0
	for _, c := range manifest.Cases {
		for _, m := range c.Merge {
			t.Run(m.Expected, func(t *testing.T) {
				base := open(t, corpus.Path(t, "gguf-lora", m.Base))
				in := input(t, corpus.Path(t, "gguf-lora", m.Adapter), m.Scale, dialect.Options{})
				d, _ := tensor.ParseDType(m.MergedType)
				opt := merge.Options{DType: d, AllowUnmatched: m.Silent != ""} // the peer drops norms without a word
				specs, data, _ := merged(t, base, []merge.Input{in}, opt, merge.RunOptions{})
				updated := map[string]bool{}
				for _, u := range in.Adapter.Updates {
					updated[u.Module+"."+u.Param] = true
				}
				for _, want := range open(t, corpus.Path(t, "gguf-lora", m.Expected)).Tensors() {
					bytesOf, err := want.Read()
					if err != nil {
						t.Fatal(err)
					}
					got, s := data[want.Name], specs[want.Name]
					if !updated[want.Name] {
						// The peer copies, and so do we; a float type of the same width may have been asked for.
						if s.DType == want.DType && !bytes.Equal(got, bytesOf) {
							t.Errorf("%s: the adapter does not touch it, but its bytes differ", want.Name)
						}
						continue
					}
					if m.Silent != "" && len(want.Shape) == 1 {
						continue // the peer dropped this norm vector
					}
					if s.DType != want.DType {
						t.Fatalf("%s: type %s, want %s", want.Name, s.DType, want.DType)
					}
					compared++
					if m.MergedType == "F32" {
						x, y := floats(t, tensor.F32, got), floats(t, tensor.F32, bytesOf)
						for i := range x {
							if d := math.Abs(float64(x[i]) - float64(y[i])); !(d <= m.Tolerance.Abs) {
								t.Fatalf("%s: element %d differs by %g", want.Name, i, d)
							}
						}
						continue
					}
					for i := 0; i < len(got); i += 2 {
						if d := f16Steps(got[i:], bytesOf[i:]); d > m.Tolerance.F16Ulp {
							t.Fatalf("%s: element %d is %d units in the last place away", want.Name, i/2, d)
						}
					}
				}
			})
		}
	}
	if compared < 100 {
		t.Errorf("only %d tensors were compared", compared)
	}
	t.Logf("%d merged tensors compared", compared)
}

// f16Steps is the distance between two float16 in units in the last place.
func f16Steps(a, b []byte) int {
	order := func(p []byte) int {
		v := int(p[0]) | int(p[1])<<8
		if v >= 0x8000 {
			return 0x8000 - v
		}
		return v
	}
	d := order(a) - order(b)
	return max(d, -d)
}

// TestNorms checks that no norm vector of a GGUF adapter is dropped, as llama.cpp drops them without a word:
// one that the base lacks stops the merge, the other replaces the base's.
func TestNorms(t *testing.T) {
	base := open(t, corpus.Path(t, "gguf-lora", "llama_norms_mergekit", "merge", "base-F32.gguf"))
	path := corpus.Path(t, "gguf-lora", "llama_norms_mergekit", "expected-f32.gguf")
	in := input(t, path, 1, dialect.Options{})
	_, err := merge.NewPlan(base, []merge.Input{in}, merge.Options{Resolve: merge.Resolvers(base)})
	if f := finding.Of(err); f == nil || f.Code != "match.unmatched_target" || f.Module != "blk.0.attn_norm" {
		t.Errorf("got %v, want match.unmatched_target for blk.0.attn_norm", err)
	}
	_, data, _ := merged(t, base, []merge.Input{in}, merge.Options{AllowUnmatched: true}, merge.RunOptions{})
	for _, x := range open(t, path).Tensors() {
		if x.Name == "output_norm.weight" {
			want, err := x.Read()
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(data[x.Name], want) {
				t.Errorf("%s is not the adapter's", x.Name)
			}
			return
		}
	}
	t.Error("the adapter holds no output_norm.weight")
}
