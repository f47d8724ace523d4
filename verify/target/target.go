// Package target knows what the programs that serve adapters accept, and says before loading what each of
// them will refuse, ignore or get wrong.
package target

import (
	"regexp"
	"slices"

	"github.com/loratool/loratool/adapter/trtllm"
	"github.com/loratool/loratool/finding"
)

// A Target is a program that loads adapters beside a base. What a program ignores silently counts as an
// error, because the model is then another one.
type Target struct {
	Name    string
	Title   string
	Dialect string   // the dialect it reads, and that is written for it
	Also    []string // others that it reads

	// Ranks are the values its rank option may have, ascending; a rank above the last is refused. Default
	// is the option's default, and Option its name. None: any rank.
	Ranks   []int
	Default int
	Option  string
	// OneScale: of PEFT's files it computes one scale from lora_alpha and r and ignores patterns; with RSLoRA it heeds
	// use_rslora.
	OneScale, RSLoRA bool
	// Unscaled: it reads PEFT's files too, but not their configuration, so that every scale is 1.
	Unscaled bool
	// Names are the names of factors that it reads as they are; nil: all of the dialect.
	Names *regexp.Regexp
	// Knows reports whether it can adapt a module of Hugging Face's; nil: any.
	Knows func(module string) bool
	// Groups are modules of a layer of which it needs all or none, at this level.
	Groups [][]string
	Level  finding.Level
	// The kinds of updates it can apply beside low rank on linear layers.
	DoRA, Embeddings, Replaced, Rows, Bias, Convolutions, Stacks bool
	// SkipsNorms: it loads an adapter with whole norm vectors, and leaves them out without a word.
	SkipsNorms bool
	// Activated: it applies an activated LoRA only after its invocation tokens.
	Activated bool
}

var (
	qkv    = []string{"q_proj", "k_proj", "v_proj"}
	gateUp = []string{"gate_proj", "up_proj"}
)

var targets = []Target{
	{Name: "vllm", Title: "vLLM", Dialect: "peft", Ranks: []int{1, 8, 16, 32, 64, 128, 256, 320, 512}, Default: 16, Option: "--max-lora-rank",
		OneScale: true, RSLoRA: true, Names: regexp.MustCompile(`\.(lora_[AB]\.weight|lora_embedding_[AB])$`), Embeddings: true, Stacks: true},
	{Name: "sglang", Title: "SGLang", Dialect: "peft", OneScale: true, Groups: [][]string{qkv, gateUp}, Level: finding.Error, Embeddings: true},
	{Name: "lorax", Title: "LoRAX", Dialect: "peft", Ranks: []int{16, 32, 64, 96, 128}, OneScale: true,
		Names: regexp.MustCompile(`^base_model\.model\..+\.lora_[AB]\.weight$`)},
	{Name: "llama.cpp", Title: "llama.cpp", Dialect: "gguf", Embeddings: true, Stacks: true, SkipsNorms: true, Activated: true},
	{Name: "mlx", Title: "mlx-lm", Dialect: "mlx", DoRA: true, Embeddings: true, Stacks: true},
	{Name: "trtllm", Title: "TensorRT-LLM", Dialect: "trtllm", Default: 64, Option: "--max_lora_rank", Groups: [][]string{qkv}, Level: finding.Warning, Knows: trtllm.Knows,
		Also: []string{"peft", "nemo"}, OneScale: true},
	{Name: "ort", Title: "ONNX Runtime", Dialect: "ort"},
	{Name: "openvino", Title: "OpenVINO GenAI", Dialect: "openvino", Unscaled: true, Replaced: true},
}

// Names lists the targets.
func Names() []string {
	var out []string
	for _, t := range targets {
		out = append(out, t.Name)
	}
	return out
}

// Find returns the target of a name, or nil.
func Find(name string) *Target {
	if i := slices.IndexFunc(targets, func(t Target) bool { return t.Name == name }); i >= 0 {
		return &targets[i]
	}
	return nil
}
