package naming_test

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/naming"
)

func parse(t *testing.T, s string) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(s), &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestFromConfig(t *testing.T) {
	tests := []struct {
		name, config, arch string
		want               naming.HyperParameters
	}{
		{"llama", `{"architectures":["LlamaForCausalLM"],"num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":8,"hidden_size":4096}`,
			"llama", naming.HyperParameters{Layers: 32, Heads: 32, KVHeads: 8, HeadDim: 128}},
		{"no key-value heads, null head size", `{"architectures":["MistralForCausalLM"],"num_hidden_layers":2,"num_attention_heads":4,"hidden_size":64,"head_dim":null}`,
			"llama", naming.HyperParameters{Layers: 2, Heads: 4, KVHeads: 4, HeadDim: 16}},
		{"mixtral", `{"model_type":"mixtral","num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"hidden_size":64,"num_local_experts":8,"intermediate_size":96}`,
			"llama", naming.HyperParameters{Layers: 2, Heads: 4, KVHeads: 2, HeadDim: 16, Experts: 8, ExpertWidth: 96}},
		{"gpt2 keys", `{"architectures":["GPT2LMHeadModel"],"n_layer":12,"n_head":12,"n_embd":768}`,
			"gpt2", naming.HyperParameters{Layers: 12, Heads: 12, KVHeads: 12, HeadDim: 64}},
		{"text part of a vision model", `{"architectures":["SomethingNewForConditionalGeneration"],"model_type":"new","text_config":{"model_type":"gemma3_text","num_hidden_layers":26,"num_attention_heads":4,"num_key_value_heads":1,"head_dim":256,"hidden_size":1152}}`,
			"gemma3", naming.HyperParameters{Layers: 26, Heads: 4, KVHeads: 1, HeadDim: 256}},
		{"falcon 7b as transformers writes it", `{"architectures":["FalconForCausalLM"],"num_hidden_layers":32,"num_attention_heads":71,"num_kv_heads":71,"hidden_size":4544,"multi_query":true,"new_decoder_architecture":false}`,
			"falcon", naming.HyperParameters{Layers: 32, Heads: 71, KVHeads: 1, HeadDim: 64}},
	}
	for _, tt := range tests {
		arch, hp, err := naming.FromConfig(parse(t, tt.config))
		if err != nil || arch != tt.arch || hp != tt.want {
			t.Errorf("%s: %q %+v %v, expected %q %+v", tt.name, arch, hp, err, tt.arch, tt.want)
		}
	}
	for _, bad := range []string{
		`{"architectures":["LlamaForCausalLM"],"num_hidden_layers":-1}`,
		`{"architectures":["LlamaForCausalLM"],"num_hidden_layers":2.5}`,
		`{"architectures":["LlamaForCausalLM"],"num_attention_heads":1e300}`,
		`{"architectures":["LlamaForCausalLM"],"num_attention_heads":"8"}`,
		`{"architectures":["MixtralForCausalLM"],"num_local_experts":2000000000}`,
		`{}`,
	} {
		if _, _, err := naming.FromConfig(parse(t, bad)); err == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
	var e *naming.UnknownArchitecture
	_, _, err := naming.FromConfig(parse(t, `{"architectures":["Qwen2ForCausalLN"]}`))
	if !errors.As(err, &e) || !slices.Contains(e.Nearest, "Qwen2ForCausalLM") {
		t.Errorf("%v does not suggest Qwen2ForCausalLM", err)
	}
}

func TestFromMetadataRefusesValuesThatDiffer(t *testing.T) {
	_, err := naming.FromMetadata("llama", func(key string) []int64 {
		if key == "llama.attention.head_count_kv" {
			return []int64{8, 8, 4}
		}
		return []int64{8}
	})
	if err == nil || !strings.Contains(err.Error(), "differs from layer to layer") {
		t.Error(err)
	}
}

var small = naming.HyperParameters{Layers: 2, Heads: 4, KVHeads: 2, HeadDim: 4, Experts: 3, ExpertWidth: 5, NopeDim: 3, ValueDim: 2}

func TestToGGUF(t *testing.T) {
	tests := []struct {
		arch, module, param string
		want                []naming.Place
	}{
		{"llama", "model.layers.1.self_attn.q_proj", "weight", []naming.Place{{Tensor: "blk.1.attn_q.weight", Heads: 4}}},
		{"llama", "model.layers.1.self_attn.k_proj", "bias", []naming.Place{{Tensor: "blk.1.attn_k.bias", Heads: 2}}},
		{"llama", "language_model.model.layers.0.mlp.down_proj", "weight", []naming.Place{{Tensor: "blk.0.ffn_down.weight"}}},
		{"llama", "model.layers.0.block_sparse_moe.experts.2.w3", "weight", []naming.Place{{Tensor: "blk.0.ffn_up_exps.weight", Expert: 2, Experts: 3}}},
		{"llama", "blk.0.attn_q", "weight", []naming.Place{{Tensor: "blk.0.attn_q.weight"}}},
		{"llama", "lm_head", "weight", []naming.Place{{Tensor: "output.weight"}}},
		{"qwen2", "model.layers.0.self_attn.q_proj", "weight", []naming.Place{{Tensor: "blk.0.attn_q.weight"}}},
		{"phi3", "model.layers.0.mlp.gate_up_proj", "weight", []naming.Place{{Tensor: "blk.0.ffn_up.weight"}}},
		{"gpt2", "transformer.h.0.attn.c_attn", "weight", []naming.Place{{Tensor: "blk.0.attn_qkv.weight"}}},
		// GPT-NeoX regroups (head, 3, dim) rows; Falcon (2 query heads, key, value) per key-value head.
		{"gptneox", "gpt_neox.layers.0.attention.query_key_value", "weight", []naming.Place{
			{Tensor: "blk.0.attn_qkv.weight", Rows: 16, Run: 4, Step: 12},
			{Tensor: "blk.0.attn_qkv.weight", RowOffset: 16, Rows: 16, First: 4, Run: 4, Step: 12},
			{Tensor: "blk.0.attn_qkv.weight", RowOffset: 32, Rows: 16, First: 8, Run: 4, Step: 12}}},
		{"falcon", "transformer.h.0.self_attention.query_key_value", "weight", []naming.Place{
			{Tensor: "blk.0.attn_qkv.weight", Rows: 16, Run: 8, Step: 16},
			{Tensor: "blk.0.attn_qkv.weight", RowOffset: 16, Rows: 8, First: 8, Run: 4, Step: 16},
			{Tensor: "blk.0.attn_qkv.weight", RowOffset: 24, Rows: 8, First: 12, Run: 4, Step: 16}}},
		{"qwen3moe", "model.layers.0.mlp.experts", "gate_up_proj", []naming.Place{
			{Tensor: "blk.0.ffn_gate_exps.weight", Rows: 5, Run: 5},
			{Tensor: "blk.0.ffn_up_exps.weight", Rows: 5, First: 5, Run: 5}}},
		{"gpt-oss", "model.layers.0.mlp.experts", "gate_up_proj", []naming.Place{
			{Tensor: "blk.0.ffn_gate_exps.weight", Rows: 5, Run: 1, Step: 2},
			{Tensor: "blk.0.ffn_up_exps.weight", Rows: 5, First: 1, Run: 1, Step: 2}}},
		{"deepseek2", "model.layers.0.self_attn.kv_b_proj", "weight", []naming.Place{
			{Tensor: "blk.0.attn_k_b.weight", Transposed: true, Experts: 2, Rows: 3, Run: 3},
			{Tensor: "blk.0.attn_k_b.weight", Transposed: true, Expert: 1, Experts: 2, Rows: 3, First: 5, Run: 3},
			{Tensor: "blk.0.attn_v_b.weight", Experts: 2, Rows: 2, First: 3, Run: 2},
			{Tensor: "blk.0.attn_v_b.weight", Expert: 1, Experts: 2, Rows: 2, First: 8, Run: 2}}},
	}
	for _, tt := range tests {
		got, err := naming.ToGGUF(tt.arch, small, tt.module, tt.param)
		if err != nil {
			t.Errorf("%s %s: %v", tt.arch, tt.module, err)
			continue
		}
		for i := range got {
			got[i].Rule = ""
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%s %s: %s", tt.arch, tt.module, d)
		}
	}
}

func TestToGGUFRefuses(t *testing.T) {
	tests := []struct {
		name, arch, module string
		hp                 naming.HyperParameters
		want               string
	}{
		{"layer", "llama", "model.layers.2.mlp.up_proj", small, "the model has 2 layers"},
		{"expert", "llama", "model.layers.0.block_sparse_moe.experts.3.w1", small, "the model has 3 experts"},
		{"module", "llama", "model.layers.0.mlp.upproj", small, `no such module in llama.cpp; nearest: "blk.0.ffn_up.weight"`},
		{"tied by the converter", "gemma2", "lm_head", small, "tied to the token embedding"},
		{"heads unknown", "llama", "model.layers.0.self_attn.q_proj", naming.HyperParameters{}, "number of heads of this llama model is not known"},
		{"experts unknown", "llama", "model.layers.0.block_sparse_moe.experts.0.w1", naming.HyperParameters{}, "number of experts of this llama model is not known"},
		{"heads that do not divide", "falcon", "transformer.h.0.self_attention.query_key_value", naming.HyperParameters{Heads: 3, KVHeads: 2, HeadDim: 4}, "3 query heads cannot share 2"},
		{"architecture", "qwen4", "lm_head", small, `"qwen4" is not supported; nearest: ["qwen2" "qwen3"`},
		{"absurd", "llama", "lm_head", naming.HyperParameters{Experts: 1 << 40}, "out of range"},
	}
	for _, tt := range tests {
		_, err := naming.ToGGUF(tt.arch, tt.hp, tt.module, "weight")
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, expected %q", tt.name, err, tt.want)
		}
	}
}

func TestGGUFResolver(t *testing.T) {
	names := []string{"token_embd.weight", "output_norm.weight", "blk.0.attn_qkv.weight", "blk.0.ffn_up.weight", "blk.1.attn_q.weight"}
	r, err := naming.NewGGUF("llama", small, names)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		module string
		want   []naming.Place
	}{
		{"blk.0.ffn_up", []naming.Place{{Tensor: "blk.0.ffn_up.weight", Rule: "name"}}},
		{"model.layers.1.self_attn.q_proj", []naming.Place{{Tensor: "blk.1.attn_q.weight", Heads: 4, Rule: "architecture llama"}}},
		{"model.layers.0.self_attn.k_proj", []naming.Place{{Tensor: "blk.0.attn_qkv.weight", RowOffset: 16, Rows: 8, Heads: 2, Rule: "architecture llama, fused"}}},
		{"model.layers.0.self_attn.v_proj", []naming.Place{{Tensor: "blk.0.attn_qkv.weight", RowOffset: 24, Rows: 8, Rule: "architecture llama, fused"}}},
	} {
		got, err := r.Find(tt.module, "weight")
		if err != nil {
			t.Error(err)
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%s: %s", tt.module, d)
		}
	}
	_, err = r.Find("lm_head", "weight")
	if e := notFound(t, err); !strings.Contains(e.Error(), "tied to the token embedding") {
		t.Error(e)
	}
	_, err = r.Find("model.layers.1.mlp.up_proj", "weight")
	if e := notFound(t, err); !slices.Contains(e.Nearest, "blk.0.ffn_up.weight") {
		t.Error(e)
	}

	r, err = naming.NewGGUF("strange", small, names)
	var unknown *naming.UnknownArchitecture
	if !errors.As(err, &unknown) {
		t.Fatal(err)
	}
	if p, err := r.Find("blk.1.attn_q", "weight"); err != nil || p[0].Tensor != "blk.1.attn_q.weight" {
		t.Error(p, err)
	}
	_, err = r.Find("model.layers.0.self_attn.q_proj", "weight")
	notFound(t, err)
}

// TestNamesAgreeWithConverter compares the table with the converter's own name map: every pair of a
// module and a tensor that both know must be the same.
func TestNamesAgreeWithConverter(t *testing.T) {
	dir := corpus.Path(t)
	var maps map[string][][2]string
	corpus.ReadJSON(t, filepath.Join(dir, "hf2gguf", "names.json"), &maps)
	var classes map[string]struct {
		Arch string `json:"arch"`
	}
	corpus.ReadJSON(t, filepath.Join(dir, "hf2gguf", "classes.json"), &classes)

	// Where the converter's code, not its name map, decides.
	differs := regexp.MustCompile(`kv_b_proj|gate_up_proj|input_linear`)
	pairs := 0
	for arch, pairsOf := range maps {
		for _, pair := range pairsOf {
			module := strings.Replace(pair[0], "{bid}", "1", 1)
			tensor := strings.Replace(pair[1], "{bid}", "1", 1) + ".weight"
			places, err := naming.ToGGUF(arch, small, module, "weight")
			if err != nil || differs.MatchString(module) {
				continue
			}
			pairs++
			if places[0].Tensor != tensor {
				t.Errorf("%s %s: %s, expected %s", arch, module, places[0].Tensor, tensor)
			}
		}
	}
	if pairs < 800 {
		t.Errorf("only %d pairs were compared", pairs)
	}
	t.Logf("%d pairs agree", pairs)
	for class, c := range classes {
		arch, ok := naming.GGUFArch(class)
		if ok && arch != c.Arch && class != "NomicBertModel" {
			t.Errorf("%s: %s, expected %s", class, arch, c.Arch)
		}
	}
}
