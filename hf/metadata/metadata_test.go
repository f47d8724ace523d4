package metadata

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/gguf"
)

type obj = map[string]any

// tokenizerJSON is the smallest tokenizer that every architecture without SentencePiece takes.
var tokenizerJSON = obj{
	"model":         obj{"type": "BPE", "vocab": obj{"a": 0, "b": 1}, "merges": []string{"a b"}},
	"pre_tokenizer": obj{"type": "ByteLevel", "add_prefix_space": false},
}

func folder(t testing.TB, files obj) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "Model-A-7B-chat")
	for name, v := range files {
		data, err := json.Marshal(v)
		if s, ok := v.(string); ok {
			data = []byte(s)
		}
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err == nil {
			err = os.MkdirAll(filepath.Dir(path), 0o700)
		}
		if err == nil {
			err = os.WriteFile(path, data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func kvs(t testing.TB, class string, cfg obj, files obj, opt Options) (gguf.KVs, *Folder, error) {
	t.Helper()
	c := obj{"architectures": []string{class}}
	maps.Copy(c, cfg)
	all := obj{"config.json": c, "tokenizer.json": tokenizerJSON}
	maps.Copy(all, files)
	f, err := Read(folder(t, all), opt)
	if err != nil {
		return nil, nil, err
	}
	k, err := f.KVs(1, Parameters{Total: 7e9})
	return k, f, err
}

// lines are the key-values between the general and the tokenizer keys, as text.
func lines(k gguf.KVs, arch string) []string {
	var out []string
	for _, kv := range k {
		if rest, ok := strings.CutPrefix(kv.Key, arch+"."); ok {
			kind, _ := plain(kv.Value)
			out = append(out, rest+" "+kind+" "+fmt.Sprint(kv.Value.Any()))
		} else if kv.Key == "general.file_type" {
			out = append(out, "file_type")
		}
	}
	return out
}

var common = obj{
	"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
	"max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000, "vocab_size": 2,
}

func with(more obj) obj {
	c := maps.Clone(common)
	maps.Copy(c, more)
	return c
}

var commonLines = []string{
	"block_count u32 2", "context_length u32 128", "embedding_length u32 64", "feed_forward_length u32 96",
	"attention.head_count u32 4", "attention.head_count_kv u32 2",
}

// TestHyperParameters covers what the goldens do not: rarer kinds of rope scaling, arrays, and architectures
// without a golden. The expectations follow the reference converter's source.
func TestHyperParameters(t *testing.T) {
	after := func(more ...string) []string { return append(append([]string(nil), commonLines...), more...) }
	const base, eps = "rope.freq_base f32 10000", "attention.layer_norm_rms_epsilon f32 1e-06"
	for _, c := range []struct {
		name, class, arch string
		cfg               obj
		files             obj
		opt               Options
		want              []string
	}{
		{"filled head size", "MistralForCausalLM", "llama", with(obj{"model_type": "mistral"}), nil, Options{Filled: true},
			after(base, eps, "attention.key_length u32 16", "attention.value_length u32 16", "file_type", "vocab_size u32 2", "rope.dimension_count u32 16")},
		{"yarn", "Qwen2ForCausalLM", "qwen2", with(obj{"rope_scaling": obj{
			"type": "yarn", "factor": 4, "original_max_position_embeddings": 32, "attn_factor": 2, "extrapolation_factor": 1.5,
		}}), nil, Options{}, after("rope.scaling.type str yarn", "rope.scaling.factor f32 4", "rope.scaling.original_context_length u32 32",
			"rope.scaling.yarn_ext_factor f32 1.5", "rope.scaling.yarn_attn_factor f32 2", base, eps, "file_type")},
		{"longrope", "Qwen2ForCausalLM", "qwen2", with(obj{"rope_scaling": obj{"rope_type": "su"}}), nil, Options{},
			after("rope.scaling.type str longrope", base, eps, "file_type")},
		{"dynamic", "Qwen2ForCausalLM", "qwen2", with(obj{"rope_scaling": obj{"rope_type": "dynamic", "factor": 2}}), nil, Options{},
			after(base, eps, "file_type")},
		{"sections of mrope", "Qwen2ForCausalLM", "qwen2", with(obj{"rope_scaling": obj{"type": "mrope", "mrope_section": []int{3, 2}}, "is_causal": false}), nil, Options{},
			after("attention.causal bool false", "rope.dimension_sections arr[i32] [3 2 0 0]", base, eps, "file_type")},
		{"pooling of a decoder", "Qwen2ForCausalLM", "qwen2", common, obj{
			"modules.json": []obj{{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "1_Pooling"}}, "1_Pooling/config.json": obj{"pooling_mode_lasttoken": true},
		}, Options{}, after(base, eps, "file_type", "pooling_type u32 3")},
		{"layers that differ", "Qwen2ForCausalLM", "qwen2", with(obj{"intermediate_size": []int{96, 64}}), nil, Options{},
			append(append([]string(nil), commonLines[:3]...), "feed_forward_length arr[i32] [96 64]", commonLines[4], commonLines[5], base, eps, "file_type")},
		{"olmo 3", "Olmo3ForCausalLM", "olmo2", with(obj{"sliding_window": 32, "num_hidden_layers": 2, "layer_types": []string{"sliding_attention", "full_attention"}}), nil, Options{},
			after(base, eps, "file_type", "attention.sliding_window u32 32", "attention.sliding_window_pattern arr[bool] [true false]")},
		{"gpt-neox", "GPTNeoXForCausalLM", "gptneox", with(obj{"rotary_pct": 0.25, "layer_norm_eps": 1e-5}), nil, Options{},
			[]string{"context_length u32 128", "embedding_length u32 64", "block_count u32 2", "feed_forward_length u32 96", "rope.dimension_count u32 4",
				"attention.head_count u32 4", "use_parallel_residual bool true", "attention.layer_norm_epsilon f32 1e-05"}},
		{"cohere 2", "Cohere2ForCausalLM", "cohere2", with(obj{"logit_scale": 0.5, "sliding_window": 16, "rotary_pct": 1.0}), nil, Options{},
			after(base, eps, "file_type", "logit_scale f32 0.5", "attention.sliding_window u32 16", "vocab_size u32 2", "rope.dimension_count u32 16", "rope.scaling.type str none")},
		{"gemma 3's defaults", "Gemma3ForCausalLM", "gemma3", obj{"num_hidden_layers": 2, "hidden_size": 64, "sliding_window": 8, "vocab_size": 2}, nil, Options{},
			[]string{"block_count u32 2", "embedding_length u32 64", "file_type", "context_length u32 131072", "attention.head_count u32 8",
				"attention.layer_norm_rms_epsilon f32 1e-06", "attention.key_length u32 256", "attention.value_length u32 256",
				"rope.freq_base f32 1e+06", "attention.sliding_window u32 8", "attention.head_count_kv u32 4"}},
		{"granite", "GraniteForCausalLM", "granite", with(obj{"head_dim": 8, "embedding_multiplier": 12, "logits_scaling": 8.0, "residual_multiplier": 0.5, "attention_multiplier": 0.25}), nil, Options{},
			after(base, eps, "file_type", "vocab_size u32 2", "rope.dimension_count u32 16", "attention.scale f32 0.25", "embedding_scale f32 12",
				"residual_scale f32 0.5", "logit_scale f32 8")},
		{"old falcon says 71 heads", "FalconForCausalLM", "falcon", obj{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
			"layer_norm_epsilon": 1e-5, "multi_query": true, "num_kv_heads": 71}, nil, Options{},
			[]string{"context_length u32 2048", "tensor_data_layout str jploski", "embedding_length u32 64", "feed_forward_length u32 256", "block_count u32 2",
				"attention.head_count u32 4", "attention.head_count_kv u32 1", "attention.layer_norm_epsilon f32 1e-05", "file_type"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			k, _, err := kvs(t, c.class, c.cfg, c.files, c.opt)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, lines(k, c.arch)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	less := func(key string) obj { c := with(nil); delete(c, key); return c }
	for _, c := range []struct {
		name, class string
		cfg, files  obj
		code, text  string
	}{
		{"unknown architecture", "Lama4ForCausalLM", common, nil, "config.unknown_architecture", "LlamaForCausalLM"},
		{"no recipe", "XverseForCausalLM", common, nil, "config.unsupported_architecture", "nearest"},
		{"experts in nomic-bert", "NomicBertModel", with(obj{"moe_every_n_layers": 2}), nil, "config.unsupported_architecture", "nomic-bert"},
		{"layers missing", "LlamaForCausalLM", less("num_hidden_layers"), nil, "config.missing_key", "num_hidden_layers"},
		{"vocab_size missing", "LlamaForCausalLM", less("vocab_size"), nil, "config.missing_key", "vocab_size"},
		{"head_dim missing", "GemmaForCausalLM", common, obj{"tokenizer.model": "\n\x05\n\x03abc"}, "config.missing_key", "head_dim"},
		{"negative", "Qwen2ForCausalLM", with(obj{"max_position_embeddings": -1}), nil, "config.bad_value", "max_position_embeddings"},
		{"beyond 32 bits", "Qwen2ForCausalLM", with(obj{"max_position_embeddings": 1 << 32}), nil, "config.bad_value", "4294967295"},
		{"fraction", "Qwen2ForCausalLM", with(obj{"max_position_embeddings": 1.5}), nil, "config.bad_value", "1.5"},
		{"text", "Qwen2ForCausalLM", with(obj{"rms_norm_eps": "small"}), nil, "config.bad_value", "small"},
		{"no heads", "LlamaForCausalLM", with(obj{"num_attention_heads": 0}), nil, "config.bad_value", "num_attention_heads"},
		{"gating", "Qwen2ForCausalLM", with(obj{"scoring_func": "tanh"}), nil, "config.bad_value", "softmax"},
		{"yarn without context", "Qwen2ForCausalLM", with(obj{"rope_scaling": obj{"type": "yarn", "factor": 4}}), nil, "config.missing_key", "original_max_position_embeddings"},
		{"five sections", "Qwen2ForCausalLM", with(obj{"rope_scaling": obj{"mrope_section": []int{1, 2, 3, 4, 5}}}), nil, "config.bad_value", "four"},
		{"rotary fraction", "StableLmForCausalLM", with(obj{"partial_rotary_factor": 1e30, "layer_norm_eps": 1e-5}), nil, "config.bad_value", "partial_rotary_factor"},
		{"absurd layers", "Olmo2ForCausalLM", with(obj{"num_hidden_layers": 1 << 20, "sliding_window": 4}), nil, "config.bad_value", "layers"},
		{"pooling path", "Qwen2ForCausalLM", common, obj{"modules.json": []obj{{"type": "x.Pooling", "path": "../.."}}}, "config.bad_value", "leaves the folder"},
		{"pooling missing", "Qwen2ForCausalLM", common, obj{"modules.json": []obj{{"type": "x.Pooling", "path": "1_Pooling"}}}, "config.missing", "1_Pooling"},
		{"pooling unknown", "Qwen2ForCausalLM", common, obj{"modules.json": []obj{{"type": "x.Pooling", "path": "p"}}, "p/config.json": obj{"pooling_mode": "max"}}, "config.bad_value", "max"},
		{"sampling", "Qwen2ForCausalLM", common, obj{"generation_config.json": obj{"top_k": 1.5}}, "config.bad_value", "top_k"},
		{"bad generation_config", "Qwen2ForCausalLM", common, obj{"generation_config.json": "["}, "config.bad_json", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := kvs(t, c.class, c.cfg, c.files, Options{})
			f := finding.Of(err)
			if f == nil || f.Code != c.code || !strings.Contains(err.Error()+f.Hint, c.text) {
				t.Fatalf("got %v (%+v), want %s with %q", err, f, c.code, c.text)
			}
		})
	}
	_, _, err := kvs(t, "Qwen2ForCausalLM", common, nil, Options{Override: filepath.Join(t.TempDir(), "none.json")})
	if f := finding.Of(err); f == nil || f.Code != "metadata.missing" {
		t.Errorf("no override file: %v", err)
	}
}

// TestCard reads headers of model cards that are odd but usable, and warns of those that are not.
func TestCard(t *testing.T) {
	for _, c := range []struct {
		name, card string
		want       obj
		warning    bool
	}{
		{"no header", "# Title\n", nil, false},
		{"windows line ends", "---\r\nname: x\r\nlanguage:\r\n- no\r\n- de\r\n---\r\n", obj{"name": "x", "language": []any{"no", "de"}}, false},
		{"indented list", "---\nlanguage:\n  - no\nversion: 3\n---\n", obj{"language": []any{"no"}, "version": uint64(3)}, false},
		{"other keys are skipped", "---\nmodel-index:\n- name: y\n  results: {\nname: x\n---\n", obj{"name": "x"}, false},
		{"keys twice", "---\nname: x\nname: y\n---\n", obj{"name": "y"}, false},
		{"tab", "---\ntags:\n\t- a\n---\n", obj{"tags": []any{"a"}}, false},
		{"aliases", "---\nname: &a [x, x]\ntags: [*a, *a]\n---\n", nil, true},
		{"broken", "---\nname: [x\n---\n", nil, true},
		{"nested brackets", "---\nname: " + strings.Repeat("[", maxCard/2) + "\n---\n", nil, true},
		{"nested lists", "---\ntags: \n" + strings.Repeat("- ", maxCard/4) + "x\n---\n", nil, true},
		{"too long", "---\nname: " + strings.Repeat("x", maxCard) + "\n---\n", nil, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			card, warning, err := readCard(folder(t, obj{"README.md": c.card}))
			if err != nil {
				t.Fatal(err)
			}
			if (warning != nil) != c.warning {
				t.Errorf("warning %v", warning)
			}
			if len(card)+len(c.want) > 0 {
				if d := cmp.Diff(map[string]any(c.want), card); d != "" {
					t.Errorf("(-want +got):\n%s", d)
				}
			}
		})
	}
}

// A broken card, a reranker and a bad token are warnings, said once however often the keys are asked for.
func TestWarnings(t *testing.T) {
	_, f, err := kvs(t, "Qwen3ForCausalLM", common, obj{"README.md": "---\nname: [\n---\n"}, Options{FolderName: "Qwen3-Reranker-0.6B"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.KVs(1, Parameters{}); err != nil {
		t.Fatal(err)
	}
	var codes []string
	for _, x := range f.Findings() {
		codes = append(codes, x.Code)
	}
	if d := cmp.Diff([]string{"config.reranker", "card.bad_yaml"}, codes); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestGeneralKeys(t *testing.T) {
	k, _, err := kvs(t, "Qwen2ForCausalLM", common, obj{
		"README.md": "---\nlicense: [mit, apache-2.0]\ntags: []\nauthor: ''\n---\n",
	}, Options{ModelName: "Named"})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, kv := range k {
		if strings.HasPrefix(kv.Key, "general.") {
			got = append(got, strings.TrimPrefix(kv.Key, "general.")+" "+fmt.Sprint(kv.Value.Any()))
		}
	}
	want := []string{"architecture qwen2", "type model", "name Named", "finetune chat", "basename Model-A", "size_label 7B", "license mit,apache-2.0", "file_type 1", "quantization_version 2"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func FuzzCard(f *testing.F) {
	f.Add("---\nname: x\ntags: [a, 'b']\nbase_model:\n- a/b-7B\n- {name: N}\nlanguage:\n- no\n---\n# T\n", int64(7e9))
	f.Add("---\nname: &a x\ntags: *a\n---\n", int64(0))
	f.Fuzz(func(t *testing.T, text string, parameters int64) {
		card, err := parseCard(text)
		if err != nil {
			return
		}
		g := &general{text: map[string]string{}}
		g.fromCard(card, parameters)
		g.fromName(text, parameters)
		w := &writer{}
		if err := g.write(w); err != nil {
			t.Fatal(err)
		}
		for _, kv := range w.kvs {
			if s, ok := kv.Value.Text(); ok && s == "" {
				t.Fatalf("%s is empty", kv.Key)
			}
		}
	})
}
