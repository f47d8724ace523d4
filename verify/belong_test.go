package verify

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// A named model has a path and tensors and nothing else.
type named struct {
	path    string
	tensors []tensor.Tensor
}

func (n named) Path() string                { return n.path }
func (n named) Format() string              { return "safetensors" }
func (n named) Tensors() []tensor.Tensor    { return n.tensors }
func (n named) Findings() []finding.Finding { return nil }
func (n named) Close() error                { return nil }

func model(path string, t tensor.DType, rows, cols int64) named {
	return named{path, []tensor.Tensor{{Spec: tensor.Spec{Name: "model.embed_tokens.weight", DType: t, Shape: tensor.Shape{rows, cols}}}}}
}

func TestOtherBase(t *testing.T) {
	const million, billion = int64(1e6), int64(1e9)
	tests := []struct {
		adapter, folder, config string
		parameters              int64
		dtype                   tensor.DType
		want                    string // part of the message, "" = no finding
	}{
		{"meta-llama/Llama-2-7b-hf", "base", "", 67 * billion / 10, tensor.BF16, ""},
		{"meta-llama/Llama-2-7b-hf", "base", "", 13 * billion, tensor.BF16, ""},
		{"meta-llama/Llama-2-7b-hf", "base", "", 70 * billion, tensor.BF16, "another size"},
		{"Qwen/Qwen2.5-0.5B-Instruct", "base", "", 494 * million, tensor.BF16, ""},
		{"Qwen/Qwen2.5-0.5B", "base", "", 7600 * million, tensor.BF16, "another size"},
		{"facebook/opt-125m", "base", "", 125 * million, tensor.F16, ""},
		{"facebook/opt-125m", "base", "", 1300 * million, tensor.F16, "another size"},
		{"mistralai/Mixtral-8x7B-v0.1", "base", "", 46 * billion, tensor.BF16, ""},
		{"Qwen/Qwen3-30B-A3B", "base", "", 3 * billion, tensor.BF16, ""},
		{"meta-llama/Llama-4-Scout-17B-16E", "base", "", 109 * billion, tensor.BF16, ""},
		{"unsloth/llama-3-8b-bnb-4bit", "base", "", 4 * million, tensor.U8, ""}, // packed weights tell no size
		{"google/gemma-3-4k-it", "base", "", 10, tensor.F32, ""},                // a context length is no size
		{"microsoft/phi-2", "base", "", 2700 * million, tensor.F16, ""},

		{"NousResearch/Llama-2-7b-hf", "Llama-2-7b-hf", "", 7 * billion, tensor.BF16, ""},
		{"mistralai/Mistral-7B-v0.1", "Llama-2-7b-hf", "", 7 * billion, tensor.BF16, "names another base"},
		{"mistralai/Mistral-7B-v0.1", "my-work", "", 7 * billion, tensor.BF16, ""},
		{"mistralai/Mistral-7B-v0.1", "models--meta-llama--Llama-2-7b-hf/snapshots/0123abcd", "", 7 * billion, tensor.BF16, "names another base"},
		{"teknium/OpenHermes-2.5-Mistral-7B", "models--mistralai--Mistral-7B-v0.1/snapshots/0123abcd", "", 7 * billion, tensor.BF16, ""},
		{"lmsys/vicuna-7b", "renamed-7b", `{"_name_or_path": "lmsys/vicuna-7b-v1.5"}`, 7 * billion, tensor.BF16, ""},
		{"lmsys/vicuna-7b", "base", `{"_name_or_path": "meta-llama/Llama-2-7b-hf"}`, 7 * billion, tensor.BF16, ""},
		{"", "Llama-2-7b-hf", "", 70 * billion, tensor.BF16, ""},
		{"/home/someone/mistral-7b", "Llama-2-7b-hf", "", 70 * billion, tensor.BF16, ""},
		{`C:\models\mistral-7b`, "Llama-2-7b-hf", "", 70 * billion, tensor.BF16, ""},
	}
	for _, tt := range tests {
		t.Run(tt.adapter+" on "+tt.folder, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), tt.folder)
			write(t, filepath.Join(dir, "config.json"), tt.config)
			f := otherBase(tt.adapter, model(dir, tt.dtype, 1, tt.parameters))
			switch {
			case tt.want == "" && f != nil:
				t.Errorf("found %v", f)
			case tt.want != "" && (f == nil || !strings.Contains(f.Message, tt.want) || f.Level != finding.Warning || f.Code != "adapter.base_mismatch"):
				t.Errorf("found %+v, expected %q", f, tt.want)
			}
		})
	}
}

func TestMoreTokens(t *testing.T) {
	tokenizer := func(id string) string {
		return `{"version": "1.0", "added_tokens": [{"id": 0, "content": "a"}, {"id": ` + id + `, "content": "b"}], "model": {"vocab": {"x": 99}}}`
	}
	tests := []struct {
		name, added, tokenizer, base string
		want                         bool
	}{
		{"no tokenizer", "", "", "", false},
		{"the last row", `{"<a>": 9}`, "", "", false},
		{"one more", `{"<a>": 10}`, "", "", true},
		{"in tokenizer.json", "", tokenizer("10"), "", true},
		{"the last row in tokenizer.json", "", tokenizer("9"), "", false},
		{"the base has the token, too", "", tokenizer("10"), tokenizer("10"), false},
		{"the base has fewer", "", tokenizer("12"), tokenizer("10"), true},
		{"not JSON", `{"<a>": `, `[1`, "", false},
		{"another shape", `[1]`, `{"added_tokens": {"id": 3}}`, "", false},
		{"a vocabulary before the tokens", "", `{"model": {}, "added_tokens": [{"id": 77}]}`, "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			base, dir := t.TempDir(), t.TempDir()
			write(t, filepath.Join(base, "tokenizer.json"), tt.base)
			write(t, filepath.Join(dir, "added_tokens.json"), tt.added)
			write(t, filepath.Join(dir, "tokenizer.json"), tt.tokenizer)
			found := Belongs(model(base, tensor.F32, 10, 4), &adapter.Adapter{Path: dir})
			if (len(found) == 1 && found[0].Code == "adapter.vocab_mismatch" && found[0].Level == finding.Warning) != tt.want || len(found) > 1 {
				t.Errorf("found %+v, expected one: %v", found, tt.want)
			}
		})
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	if text == "" {
		return
	}
	if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
}
