package gguflora

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/evidence"
	"github.com/loratool/loratool/adapter/mlx"
	"github.com/loratool/loratool/adapter/peft"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// bytesOf lays a file out and fills it.
func bytesOf(t testing.TB, f *File) []byte {
	t.Helper()
	var specs []tensor.Spec
	for _, w := range f.Weights {
		specs = append(specs, w.Spec)
	}
	l, err := gguf.NewLayout(f.Header, specs, layout.Options{Name: "adapter.gguf"})
	if err != nil {
		t.Fatal(err)
	}
	out := make([]byte, l.Files[0].Size)
	for _, s := range l.Files[0].Spans {
		if _, err := s.Src.ReadAt(out[s.Off:s.Off+s.Len], s.SrcOff); err != nil && err != io.EOF {
			t.Fatal(err)
		}
	}
	for i, w := range f.Weights {
		b, err := w.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		copy(out[l.Items[i].Off:l.Items[i].Off+l.Items[i].Size], b)
	}
	return out
}

type conversion struct {
	ID, Adapter string
	Base        string `json:"base_config"`
	Convert     struct {
		Peer, Expected, Should, Message string
		Right                           string `json:"right_gguf"`
	}
	Wrong *struct{ Right string } `json:"peer_wrong"`
}

func openAdapter(t *testing.T, path string) *adapter.Adapter {
	t.Helper()
	var a *adapter.Adapter
	var err error
	if mlx.Detect(evidence.Look(path)) != "" {
		a, err = mlx.Open(path)
	} else {
		a, err = peft.Open(path, peft.Options{})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

func optionsFor(t *testing.T, config string) Options {
	t.Helper()
	var c map[string]any
	corpus.ReadJSON(t, config, &c)
	arch, hp, err := naming.FromConfig(c)
	if err != nil {
		t.Fatal(err)
	}
	return Options{Arch: arch, HP: hp, Tied: c["tie_word_embeddings"] == true, Name: NameOf("adapter")}
}

// TestConversionGoldens converts every adapter of the corpus; the files must equal llama.cpp's (or the
// corrected ones) byte for byte, and what cannot be converted must be refused.
func TestConversionGoldens(t *testing.T) {
	var m struct{ Cases []conversion }
	corpus.ReadJSON(t, corpus.Path(t, "gguf-lora", "manifest.json"), &m)
	equal, refused := 0, 0
	for _, c := range m.Cases {
		t.Run(c.ID, func(t *testing.T) {
			a := openAdapter(t, corpus.Path(t, "gguf-lora", c.Adapter))
			f, err := Encode(a, optionsFor(t, corpus.Path(t, "gguf-lora", c.Base)))
			want := c.Convert.Expected
			if c.Convert.Right != "" {
				want = c.Convert.Right
			}
			if want == "" {
				if fi := finding.Of(err); fi == nil || fi.Code != "adapter.unsupported_feature" || fi.Hint == "" {
					t.Fatalf("got %v, expected a refusal with a hint", err)
				}
				refused++
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			golden, err := os.ReadFile(corpus.Path(t, "gguf-lora", want))
			if err != nil {
				t.Fatal(err)
			}
			if got := bytesOf(t, f); !bytes.Equal(got, golden) {
				t.Errorf("%d bytes differ from the %d of %s", len(got), len(golden), want)
			}
			equal++
		})
	}
	if equal != 10 || refused != 3 {
		t.Errorf("%d files equal, %d refused; expected 10 and 3", equal, refused)
	}
}

// TestTiedHead checks that the update of a tied output matrix can be left out on request, and only it.
func TestTiedHead(t *testing.T) {
	a := openAdapter(t, corpus.Path(t, "gguf-lora", "qwen2_tied_lmhead", "adapter"))
	opt := optionsFor(t, corpus.Path(t, "gguf-lora", "qwen2_tied_lmhead", "base", "config.json"))
	if _, err := Encode(a, opt); err == nil || !strings.Contains(err.Error(), "lm_head") || !strings.Contains(err.Error(), "token embedding") {
		t.Errorf("got %v", err)
	}
	opt.SkipTied = true
	f, err := Encode(a, opt)
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Weights) != 28 || len(f.Findings) != 1 || f.Findings[0].Level != finding.Warning {
		t.Errorf("%d tensors, findings %v", len(f.Weights), f.Findings)
	}
}
