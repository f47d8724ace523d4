package tokenizer

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/hf/config"
	"github.com/loratool/loratool/internal/corpus"
)

// TestCheckHash compares the hash of the check text with the one that the reference computed for the
// golden folders. None is in its table, since the vocabularies are made up; their names follow from the
// structure.
func TestCheckHash(t *testing.T) {
	dir := corpus.Path(t, "hf2gguf")
	var manifest struct {
		Cases []struct {
			Case         string
			PreTokenizer *struct{ Name, Hash string } `json:"pre_tokenizer"`
		}
	}
	corpus.ReadJSON(t, filepath.Join(dir, "manifest.json"), &manifest)
	agree, total := 0, 0
	for _, c := range manifest.Cases {
		if c.PreTokenizer == nil {
			continue
		}
		t.Run(c.Case, func(t *testing.T) {
			total++
			file := filepath.Join(dir, "cases", c.Case, "input", "tokenizer.json")
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			f, err := parseFast(file, data)
			if err != nil {
				t.Fatal(err)
			}
			got, err := checkHash(f)
			if err != nil {
				t.Fatal(err)
			}
			if got != c.PreTokenizer.Hash {
				t.Fatalf("hash %s, want %s", got, c.PreTokenizer.Hash)
			}
			agree++
		})
	}
	t.Logf("%d of %d hashes agree", agree, total)
}

// TestCheckData compares the check text, the hashes and the names with those of the reference.
func TestCheckData(t *testing.T) {
	dir := corpus.Path(t, "hf2gguf")
	var data struct {
		Text      string `json:"check_text"`
		Effective map[string]string
		Runtime   map[string]any
	}
	corpus.ReadJSON(t, filepath.Join(dir, "pre_tokenizers.json"), &data)
	if data.Text != checkText {
		t.Errorf("check text %q, want %q", checkText, data.Text)
	}
	if d := cmp.Diff(data.Effective, hashes()); d != "" {
		t.Errorf("hashes (-want +got):\n%s", d)
	}
	for name := range data.Runtime {
		if !slices.Contains(dataLines(namesText), name) {
			t.Errorf("name %s is missing", name)
		}
	}
}

// TestStructures takes the name of each structure that the reference documents from the structure alone.
func TestStructures(t *testing.T) {
	dir := corpus.Path(t, "hf2gguf")
	var data struct {
		Structures []struct {
			Name         string
			Normalizer   any
			PreTokenizer any `json:"pre_tokenizer"`
		}
	}
	corpus.ReadJSON(t, filepath.Join(dir, "pre_tokenizers.json"), &data)
	// Names that share the structure of another, and differ in nothing that splits text.
	same := map[string]string{"refact": "starcoder", "smollm": "starcoder", "stablelm2": "qwen2", "grok-2": "qwen2"}
	agree := 0
	for _, s := range data.Structures {
		f := &fastFile{Normalizer: s.Normalizer, PreTokenizer: s.PreTokenizer}
		f.Model.IgnoreMerges = s.Name == "llama-bpe"
		want := s.Name
		if other := same[want]; other != "" {
			want = other
		}
		r := &reader{out: &Tokenizer{}}
		if got := r.byStructure(f); got != want {
			t.Errorf("%s: got %q", s.Name, got)
			continue
		}
		steps := maxSteps
		if _, err := preSplitters(s.PreTokenizer, &steps, 0); err != nil {
			t.Errorf("%s: %v", s.Name, err)
		}
		agree++
	}
	t.Logf("%d of %d structures", agree, len(data.Structures))
}

// TestSpecialVocab compares special tokens, flags, templates and merges with those of the reference.
func TestSpecialVocab(t *testing.T) {
	dir := corpus.Path(t, "hf2gguf")
	var units struct {
		Cases []struct {
			Name            string
			Tokenizer       any
			TokenizerConfig any `json:"tokenizer_config"`
			Config          any
			Files           map[string]string
			Args            map[string]any
			KV              [][3]any
		} `json:"special_vocab"`
	}
	corpus.ReadJSON(t, filepath.Join(dir, "units.json"), &units)
	agree := 0
	for _, c := range units.Cases {
		t.Run(c.Name, func(t *testing.T) {
			folder := t.TempDir()
			write := func(name string, v any) {
				if v == nil {
					return
				}
				data, err := json.Marshal(v)
				if s, ok := v.(string); ok {
					data = []byte(s)
				}
				if err == nil {
					err = os.WriteFile(filepath.Join(folder, name), data, 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			write("tokenizer.json", c.Tokenizer)
			write("tokenizer_config.json", c.TokenizerConfig)
			write("config.json", c.Config)
			for name, text := range c.Files {
				write(name, text)
			}
			cfg, err := config.Read(folder, false)
			if err != nil {
				t.Fatal(err)
			}
			limit := 0
			if n, ok := c.Args["n_vocab"].(float64); ok {
				limit = int(n)
			}
			r := &reader{dir: folder, cfg: cfg, out: &Tokenizer{}}
			if err := r.specials(limit, c.Args["load_merges"] == true); err != nil {
				t.Fatal(err)
			}
			got := [][3]any{}
			for _, kv := range r.out.KVs {
				got = append(got, [3]any{kv.Key, kindName(kv.Value), jsonValue(t, kv.Value)})
			}
			if d := cmp.Diff(c.KV, got); d != "" {
				t.Fatalf("(-want +got):\n%s", d)
			}
			agree++
		})
	}
	t.Logf("%d of %d set-ups agree", agree, len(units.Cases))
}

func kindName(v gguf.Value) string {
	return map[gguf.Type]string{gguf.Uint32: "UINT32", gguf.Bool: "BOOL", gguf.String: "STRING", gguf.Array: "ARRAY"}[v.Type()]
}

func jsonValue(t *testing.T, v gguf.Value) any {
	t.Helper()
	data, err := json.Marshal(v.Any())
	if err != nil {
		t.Fatal(err)
	}
	var x any
	if err := json.NewDecoder(strings.NewReader(string(data))).Decode(&x); err != nil {
		t.Fatal(err)
	}
	return x
}
