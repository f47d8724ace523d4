package naming

import (
	"fmt"
	"maps"
	"math"
	"slices"
)

// HyperParameters are the numbers of a model that the geometry of its GGUF tensors depends on. A zero
// is unknown; it matters only where a row needs it.
type HyperParameters struct {
	Layers  int64
	Heads   int64 // query heads
	KVHeads int64 // key-value heads; 0: as Heads
	HeadDim int64 // rows of one head
	Experts int64
	// ExpertWidth is the inner width of one expert, half the rows of a fused gate_up_proj.
	ExpertWidth int64
	// NopeDim and ValueDim are the rows of kv_b_proj (multi-head latent attention) that each head uses
	// for its keys and its values.
	NopeDim, ValueDim int64
}

// most bounds layers, heads and experts, so that files cannot ask for absurd numbers of places.
const most = 1 << 16

func (hp *HyperParameters) check() error {
	for _, f := range []struct {
		name  string
		value int64
		most  int64
	}{
		{"layers", hp.Layers, most}, {"heads", hp.Heads, most}, {"key-value heads", hp.KVHeads, most},
		{"experts", hp.Experts, most}, {"head size", hp.HeadDim, math.MaxInt32}, {"expert width", hp.ExpertWidth, math.MaxInt32},
		{"key size", hp.NopeDim, math.MaxInt32}, {"value size", hp.ValueDim, math.MaxInt32},
	} {
		if f.value < 0 || f.value > f.most {
			return fmt.Errorf("%d %s is out of range (0 to %d)", f.value, f.name, f.most)
		}
	}
	if hp.KVHeads == 0 {
		hp.KVHeads = hp.Heads
	}
	return nil
}

// GGUFArch is the llama.cpp architecture for a class name of config.json's architectures list.
func GGUFArch(hfArchitecture string) (arch string, ok bool) {
	arch, ok = architectures().classes[hfArchitecture]
	return arch, ok
}

// FromConfig reads the llama.cpp architecture and the hyper-parameters from a parsed config.json, whose
// text_config (or the like) overrides the root as in llama.cpp's converter. An architecture without a
// table here is an *UnknownArchitecture.
func FromConfig(config map[string]any) (arch string, hp HyperParameters, err error) {
	c := config
	for _, key := range []string{"text_config", "llm_config", "lm_config", "language_config"} {
		if inner, ok := config[key].(map[string]any); ok {
			c = maps.Clone(config)
			maps.Copy(c, inner)
			break
		}
	}
	if arch, err = archOf(c, config); err != nil {
		return "", hp, err
	}
	r := configReader{config: c}
	hp.Layers = r.number("n_layers", "num_hidden_layers", "n_layer", "num_layers")
	hp.Heads = r.number("num_attention_heads", "n_head", "n_heads")
	hp.KVHeads = r.number("num_key_value_heads", "n_kv_heads")
	hp.HeadDim = r.number("head_dim")
	if width := r.number("hidden_size", "n_embd", "n_embed", "d_model"); hp.HeadDim == 0 && hp.Heads > 0 {
		hp.HeadDim = width / hp.Heads
	}
	hp.Experts = r.number("num_local_experts", "num_experts", "n_routed_experts")
	if hp.Experts > 0 {
		if hp.ExpertWidth = r.number("moe_intermediate_size"); hp.ExpertWidth == 0 {
			hp.ExpertWidth = r.number("intermediate_size")
		}
	}
	hp.NopeDim, hp.ValueDim = r.number("qk_nope_head_dim"), r.number("v_head_dim")
	switch arch {
	case "starcoder":
		hp.KVHeads = 1
	case "falcon":
		hp.KVHeads = r.number("num_kv_heads", "n_head_kv")
		// Without the new decoder, multi-query attention has one key-value head whatever the configuration
		// class wrote into num_kv_heads.
		multi, old := c["multi_query"] == true, c["new_decoder_architecture"] != true
		if hp.KVHeads == 0 || multi && old {
			hp.KVHeads = 1
		}
	}
	if r.err != nil {
		return "", HyperParameters{}, r.err
	}
	return arch, hp, hp.check()
}

func archOf(c, root map[string]any) (string, error) {
	t := architectures()
	name := ""
	for _, m := range []map[string]any{c, root} {
		list, _ := m["architectures"].([]any)
		if len(list) == 0 {
			continue
		}
		class, _ := list[0].(string)
		if arch, ok := t.classes[class]; ok {
			return arch, nil
		}
		if name == "" {
			name = class
		}
	}
	model, _ := c["model_type"].(string)
	if arch, ok := t.types[model]; ok {
		return arch, nil
	}
	if name != "" {
		return "", unknown(name, slices.Sorted(maps.Keys(t.classes)))
	}
	return "", unknown(model, slices.Sorted(maps.Keys(t.types)))
}

// A configReader takes whole numbers out of a parsed JSON object and keeps the first error.
type configReader struct {
	config map[string]any
	err    error
}

// number is the value of the first key that is present and not null, or 0.
func (r *configReader) number(keys ...string) int64 {
	for _, k := range keys {
		switch v := r.config[k].(type) {
		case nil:
			continue
		case float64:
			if v == math.Trunc(v) && v >= 0 && v <= math.MaxInt32 {
				return int64(v)
			}
		case int:
			if v >= 0 && v <= math.MaxInt32 {
				return int64(v)
			}
		case int64:
			if v >= 0 && v <= math.MaxInt32 {
				return v
			}
		}
		if r.err == nil {
			r.err = fmt.Errorf("config.json: %s is %v, expected a whole number", k, r.config[k])
		}
		return 0
	}
	return 0
}

// FromMetadata reads the hyper-parameters from the key-values of a GGUF file of the architecture: get
// returns the numbers of a key, one for a scalar, or none where the key is missing or holds no
// integers. Values that differ from layer to layer are an error.
func FromMetadata(arch string, get func(key string) []int64) (HyperParameters, error) {
	var hp HyperParameters
	var err error
	one := func(key string) int64 {
		v := get(arch + "." + key)
		if len(v) == 0 {
			return 0
		}
		for _, x := range v[1:] {
			if x != v[0] && err == nil {
				err = fmt.Errorf("%s.%s differs from layer to layer, which is not supported", arch, key)
			}
		}
		return v[0]
	}
	hp.Layers = one("block_count")
	hp.Heads = one("attention.head_count")
	hp.KVHeads = one("attention.head_count_kv")
	if hp.HeadDim = one("attention.key_length"); hp.HeadDim == 0 && hp.Heads > 0 {
		hp.HeadDim = one("embedding_length") / hp.Heads
	}
	hp.Experts = one("expert_count")
	if hp.Experts > 0 {
		if hp.ExpertWidth = one("expert_feed_forward_length"); hp.ExpertWidth == 0 {
			hp.ExpertWidth = one("feed_forward_length")
		}
	}
	if n := one("attention.key_length_mla"); n > 0 {
		hp.NopeDim = n - one("rope.dimension_count")
		hp.ValueDim = one("attention.value_length_mla")
		// Latent attention is stored as one key-value head; kv_b_proj has one per query head.
		hp.KVHeads = hp.Heads
	}
	if err != nil {
		return HyperParameters{}, err
	}
	return hp, hp.check()
}
