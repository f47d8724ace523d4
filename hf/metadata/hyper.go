package metadata

import (
	"cmp"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/hf/config"
)

// early writes what the reference writes while it converts tensors, and what therefore stands in front of
// everything but the architecture: the attention factor of long rope.
func (w *writer) early() {
	if w.arch != "phi3" && w.arch != "phimoe" {
		return
	}
	rp := w.cfg.Rope()
	if rp["long_factor"] == nil {
		return
	}
	context, ok := w.int("n_positions", "max_position_embeddings")
	original, err := w.originalContext()
	if !ok || err != nil {
		w.fail(err)
		return
	}
	if context <= 0 || original <= 1 {
		w.fail(w.cfg.Bad("original_max_position_embeddings", original, "a number greater than 1"))
		return
	}
	scale := float64(context) / float64(original)
	factor := 1.0
	switch kind, _ := rp["rope_type"].(string); kind {
	case "su", "longrope":
		if scale > 1 {
			factor = math.Sqrt(1 + math.Log(scale)/math.Log(float64(original)))
		}
	case "yarn":
		if scale > 1 {
			factor = 0.1*math.Log(scale) + 1
		}
	default:
		w.fail(w.cfg.Bad("rope_scaling.type", rp["rope_type"], "su, longrope or yarn"))
		return
	}
	w.set("rope.scaling.attn_factor", gguf.Of(float32(factor)))
}

// originalContext is the context length before rope scaling, which must be known.
func (w *writer) originalContext() (int64, error) {
	v := w.cfg.Rope()["original_max_position_embeddings"]
	if v == nil {
		return w.cfg.Int("original_max_position_embeddings")
	}
	n, ok := config.Int(v)
	if !ok {
		return 0, w.cfg.Bad("original_max_position_embeddings", v, "a whole number")
	}
	return n, nil
}

// blocks writes the number of layers.
func (w *writer) blocks() {
	n, err := w.cfg.Layers()
	if err != nil {
		w.fail(err)
		return
	}
	w.putU32("block_count", "num_hidden_layers", n)
}

func (w *writer) fileTypeKV() { w.set("general.file_type", gguf.Of(w.fileType)) }

// base writes the hyper-parameters that most architectures share.
func (w *writer) base() {
	w.blocks()
	w.u32("context_length", "max_position_embeddings", "n_ctx", "n_positions", "max_length", "max_sequence_length", "model_max_length")
	w.u32("embedding_length", "hidden_size", "n_embd", "dim")
	w.u32s("feed_forward_length", "prefix_dense_intermediate_size", "dense_intermediate_size", "intermediate_size", "n_inner", "hidden_dim")
	w.u32s("attention.head_count", "num_attention_heads", "n_head", "n_heads")
	w.u32s("attention.head_count_kv", "num_key_value_heads", "n_kv_heads")
	if w.cfg.Get("is_causal") == false {
		w.set("attention.causal", gguf.Of(false))
	}
	w.ropeScaling()
	w.ropeBases()
	w.f32("attention.layer_norm_rms_epsilon", "rms_norm_eps", "norm_eps")
	w.f32("attention.layer_norm_epsilon", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")
	w.u32("expert_count", "num_local_experts", "num_experts", "n_routed_experts")
	w.u32("expert_used_count", "num_experts_per_tok", "num_experts_per_token", "top_k_experts")
	w.u32("expert_group_count", "n_group")
	w.u32("expert_group_used_count", "topk_group")
	w.gating()
	w.u32("attention.key_length", "head_dim")
	w.u32("attention.value_length", "head_dim")
	w.fileTypeKV()
}

func (w *writer) gating() {
	v := w.cfg.Get("score_function", "scoring_func", "score_func", "moe_router_activation", "moe_router_activation_func", "expert_selection_fn")
	if v == nil {
		return
	}
	name, _ := v.(string)
	n := map[string]uint32{"softmax": 1, "sigmoid": 2, "sqrtsoftplus": 4}[name]
	if n == 0 {
		w.fail(w.cfg.Bad("scoring_func", v, "softmax, sigmoid or sqrtsoftplus"))
		return
	}
	w.set("expert_gating_func", gguf.Of(n))
}

// ropeScaling writes the kinds of rope scaling that are numbers of the file; llama3 and dynamic are not.
func (w *writer) ropeScaling() {
	rp := w.cfg.FullRope()
	kind, _ := rp["rope_type"].(string)
	factor := rp["factor"]
	switch {
	case kind == "linear" && factor != nil:
		w.set("rope.scaling.type", gguf.Of("linear"))
		w.setF32("rope.scaling.factor", "rope_scaling.factor", factor)
	case kind == "yarn" && factor != nil:
		w.set("rope.scaling.type", gguf.Of("yarn"))
		w.setF32("rope.scaling.factor", "rope_scaling.factor", factor)
		original := rp["original_max_position_embeddings"]
		if original == nil {
			_, err := w.originalContext()
			w.fail(err)
			return
		}
		w.setU32("rope.scaling.original_context_length", "original_max_position_embeddings", original)
		w.setF32("rope.scaling.yarn_ext_factor", "extrapolation_factor", rp["extrapolation_factor"])
		attention, ok := rp["attention_factor"]
		if !ok {
			attention = rp["attn_factor"]
		}
		w.setF32("rope.scaling.yarn_attn_factor", "attention_factor", attention)
		w.setF32("rope.scaling.yarn_beta_fast", "beta_fast", rp["beta_fast"])
		w.setF32("rope.scaling.yarn_beta_slow", "beta_slow", rp["beta_slow"])
	case kind == "su" || kind == "longrope":
		w.set("rope.scaling.type", gguf.Of("longrope"))
	}
}

func (w *writer) ropeBases() {
	rp, full := w.cfg.Rope(), w.cfg.FullRope()
	if sections, ok := full["mrope_section"].([]any); ok {
		if len(sections) > 4 {
			w.fail(w.cfg.Bad("mrope_section", sections, "at most four numbers"))
			return
		}
		numbers := make([]int32, 4)
		for i, x := range sections {
			n, ok := config.Int(x)
			if !ok || n < 0 || n > math.MaxInt32 {
				w.fail(w.cfg.Bad("mrope_section", sections, "whole numbers"))
				return
			}
			numbers[i] = int32(n)
		}
		w.set("rope.dimension_sections", gguf.ArrayOf(numbers))
	}
	w.setF32("rope.freq_base", "rope_theta", full["rope_theta"])
	if sliding, ok := rp["sliding_attention"].(map[string]any); ok {
		w.setF32("rope.freq_base_swa", "rope_local_base_freq", sliding["rope_theta"])
	}
}

// headSize is the number of rows of one attention head.
func (w *writer) headSize() (int64, bool) {
	if w.cfg.Get("head_dim") != nil {
		return w.int("head_dim")
	}
	width, ok := w.int("hidden_size")
	heads, ok2 := w.heads()
	if !ok || !ok2 {
		return 0, false
	}
	return width / heads, true
}

func (w *writer) heads(names ...string) (int64, bool) {
	heads, ok := w.int(append(names, "num_attention_heads", "n_head")...)
	if ok && heads <= 0 {
		w.fail(w.cfg.Bad("num_attention_heads", heads, "a positive number"))
		return 0, false
	}
	return heads, ok
}

// rotary writes the part of each head that rotates: the given fraction of the head's size.
func (w *writer) rotary(fraction float64, ok bool) {
	width, ok2 := w.int("hidden_size", "n_embd")
	heads, ok3 := w.heads()
	if ok && ok2 && ok3 {
		w.putU32("rope.dimension_count", "partial_rotary_factor", int64(fraction*float64(width/heads)))
	}
}

// rotaryFraction is the fraction of a head that rotates.
func (w *writer) rotaryFraction(other float64, names ...string) (float64, bool) {
	v := w.cfg.Get(names...)
	if v == nil {
		v = w.cfg.Rope()["partial_rotary_factor"]
	}
	if v == nil && other > 0 {
		return other, true
	}
	if v == nil {
		_, err := w.cfg.Float(names...)
		w.fail(err)
		return 0, false
	}
	x, ok := config.Float(v)
	if !ok || x < 0 || x > 1 {
		w.fail(w.cfg.Bad(names[0], v, "a number from 0 to 1"))
		return 0, false
	}
	return x, true
}

// pooling writes how sentence embeddings are pooled, as modules.json and the file it names say. Without
// modules.json nothing is written.
func (w *writer) pooling() {
	kind, err := poolingType(w.dir)
	if err != nil {
		w.fail(err)
	} else if kind != 0 {
		w.set("pooling_type", gguf.Of(kind))
	}
}

// labels writes the names of a classifier's outputs, in the order of their ids. The pair that
// configuration classes make up is not a classifier's.
func (w *writer) labels() {
	ids, _ := w.cfg.Get("id2label").(map[string]any)
	if len(ids) == 0 {
		return
	}
	if len(ids) == 2 && ids["0"] == "LABEL_0" && ids["1"] == "LABEL_1" {
		return
	}
	keys := make([]string, 0, len(ids))
	for k := range ids {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	if w.filled {
		slices.SortFunc(keys, func(a, b string) int {
			// Keys are numbers once a configuration class has read them.
			return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b))
		})
	}
	names := make([]string, len(keys))
	for i, k := range keys {
		s, ok := ids[k].(string)
		if !ok {
			w.fail(w.cfg.Bad("id2label", ids[k], "a name"))
			return
		}
		names[i] = s
	}
	w.set("classifier.output_labels", gguf.ArrayOf(names))
}
