package hf

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// A configuration makes a config.json of a GGUF file's key-values.
type configuration struct {
	m      *gguf.Model
	hp     naming.HyperParameters
	family *family
	dtype  tensor.DType
	values map[string]any
	notes  []finding.Finding
}

// number is a value as JSON writes it: whole numbers as such, floats with the digits that float32 needs.
func number(v gguf.Value) (any, bool) {
	if n, ok := v.Int(); ok {
		return n, true
	}
	if b, ok := v.Bool(); ok {
		return b, true
	}
	if f, ok := v.Float(); ok {
		if v.Type() == gguf.Float32 {
			return float32Number(float32(f)), true
		}
		return f, true
	}
	if s, ok := v.Text(); ok {
		return s, true
	}
	return nil, false
}

func float32Number(f float32) any {
	if math.IsNaN(float64(f)) || math.IsInf(float64(f), 0) {
		return nil
	}
	s := strconv.FormatFloat(float64(f), 'g', -1, 32)
	if !strings.ContainsAny(s, ".e") {
		s += ".0"
	}
	return json.Number(s)
}

// get is a key of the architecture.
func (c *configuration) get(key string) (any, bool) {
	v, ok := c.m.Get(c.m.Arch() + "." + key)
	if !ok {
		return nil, false
	}
	return number(v)
}

func (c *configuration) integer(key string) int64 {
	x, _ := c.get(key)
	n, _ := x.(int64)
	return n
}

// tensor finds a GGUF tensor.
func (c *configuration) tensor(name string) *tensor.Tensor {
	tensors := c.m.Tensors()
	i := slices.IndexFunc(tensors, func(t tensor.Tensor) bool { return t.Name == name })
	if i < 0 {
		return nil
	}
	return &tensors[i]
}

func (c *configuration) write() ([]byte, error) {
	for _, x := range c.family.fixed {
		c.values[x.config] = x.value
	}
	for _, k := range c.family.keys {
		if v, ok := c.get(k.gguf); ok {
			for _, name := range k.config {
				c.values[name] = v
			}
		}
	}
	c.values["architectures"] = []string{c.family.class}
	c.values["model_type"] = c.family.modelType
	c.values["torch_dtype"] = map[tensor.DType]string{tensor.F32: "float32", tensor.F16: "float16", tensor.BF16: "bfloat16"}[c.dtype]
	c.common()
	c.special()
	if err := c.rope(); err != nil {
		return nil, err
	}
	return indented(c.values)
}

// common are the values that tensors and tokenizer tell.
func (c *configuration) common() {
	if t := c.tensor("token_embd.weight"); t != nil && len(t.Shape) == 2 {
		c.values["vocab_size"] = t.Shape[0]
	}
	if c.values["causal"] == nil && c.family.modelType != "bert" {
		c.values["tie_word_embeddings"] = c.tensor("output.weight") == nil
	}
	for key, name := range map[string]string{"bos": "bos", "eos": "eos", "padding": "pad", "unknown": "unk", "seperator": "sep", "eot": "eot", "eom": "eom"} {
		if v, ok := c.m.KVs().Int("tokenizer.ggml." + key + "_token_id"); ok && (name == "bos" || name == "eos" || name == "pad" || name == "eot" || name == "eom") {
			c.values[name+"_token_id"] = v
		}
	}
	has := func(name string) bool { return c.tensor(name) != nil }
	switch c.m.Arch() {
	case "llama", "qwen3", "qwen3moe", "smollm3", "arcee", "granite":
		c.values["attention_bias"] = has("blk.0.attn_q.bias")
		c.values["mlp_bias"] = has("blk.0.ffn_up.bias")
	case "stablelm":
		c.values["use_qkv_bias"] = has("blk.0.attn_q.bias")
	}
}

// special are the values that one architecture computes in its own way.
func (c *configuration) special() {
	heads, width := c.hp.Heads, c.integer("embedding_length")
	rotary := func(key string) {
		if d := c.integer("rope.dimension_count"); d > 0 && c.hp.HeadDim > 0 && d != c.hp.HeadDim {
			c.values[key] = float64(d) / float64(c.hp.HeadDim)
		}
	}
	switch c.m.Arch() {
	case "phi2", "stablelm", "phi3", "phimoe":
		rotary("partial_rotary_factor")
		if c.values["partial_rotary_factor"] == nil {
			c.values["partial_rotary_factor"] = 1.0
		}
		if c.values["sliding_window"] == int64(0) {
			c.values["sliding_window"] = nil
		}
	case "gptneox":
		c.values["rotary_pct"] = 1.0
		rotary("rotary_pct")
	case "gemma2", "gemma3":
		c.values["query_pre_attn_scalar"] = c.hp.HeadDim
		if layers := c.hp.Layers; c.m.Arch() == "gemma2" && layers == 46 || c.m.Arch() == "gemma3" && layers == 62 { // the models of 27 billion parameters
			c.values["query_pre_attn_scalar"] = width / max(heads, 1)
		}
		if c.m.Arch() == "gemma3" {
			c.values["sliding_window_pattern"] = 6
		}
	case "falcon":
		twice := c.tensor("blk.0.attn_norm_2.weight") != nil
		kv, _ := c.values["num_kv_heads"].(int64)
		c.values["new_decoder_architecture"] = twice
		c.values["multi_query"] = kv == 1 || twice
	case "bert":
		if c.tensor("token_types.weight") != nil {
			c.values["type_vocab_size"] = c.tensor("token_types.weight").Shape[0]
		}
		if skip := skippedPositions(c.m); skip > 0 {
			c.values["architectures"], c.values["model_type"] = []string{"RobertaModel"}, "roberta"
			c.values["max_position_embeddings"] = c.integer("context_length") + skip
			c.values["pad_token_id"] = skip - 1
		}
	case "nomic-bert":
		// Positions are those of training, or a quarter of them where the scaling of longer ones is left out.
		if n := c.integer("context_length"); n == 512 {
			c.values["n_positions"], c.values["max_trained_positions"] = 4*n, 4*n
		} else {
			c.values["n_positions"], c.values["max_trained_positions"] = 4*n, n
		}
		if c.tensor("token_types.weight") != nil {
			c.values["type_vocab_size"] = c.tensor("token_types.weight").Shape[0]
		}
	case "deepseek":
		c.gating()
	case "deepseek2":
		c.gating()
		rope := c.integer("rope.dimension_count")
		c.values["num_key_value_heads"] = c.hp.Heads
		c.values["qk_nope_head_dim"] = c.integer("attention.key_length_mla") - rope
		if _, ok := c.get("attention.q_lora_rank"); !ok {
			c.values["q_lora_rank"] = nil
		}
		if c.integer("expert_gating_func") == 2 {
			c.values["architectures"], c.values["model_type"] = []string{"DeepseekV3ForCausalLM"}, "deepseek_v3"
		}
	case "gpt-oss":
		kinds := make([]string, c.hp.Layers)
		for i := range kinds {
			kinds[i] = []string{"sliding_attention", "full_attention"}[i%2]
		}
		c.values["layer_types"], c.values["swiglu_limit"] = kinds, 7.0
		if t := c.tensor("blk.0.ffn_up_exps.weight"); t != nil && t.DType == tensor.MXFP4 {
			c.values["quantization_config"] = map[string]any{
				"quant_method":           "mxfp4",
				"modules_to_not_convert": []string{"model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"},
			}
		}
	case "olmo2":
		if v, ok := c.m.Get("olmo2.attention.sliding_window_pattern"); ok {
			pattern, _ := v.Any().([]bool)
			kinds := make([]string, len(pattern))
			for i, sliding := range pattern {
				kinds[i] = "full_attention"
				if sliding {
					kinds[i] = "sliding_attention"
				}
			}
			c.values["architectures"], c.values["model_type"], c.values["layer_types"] = []string{"Olmo3ForCausalLM"}, "olmo3", kinds
		}
	}
}

// gating says how DeepSeek's router scores experts.
func (c *configuration) gating() {
	switch c.integer("expert_gating_func") {
	case 1:
		c.values["scoring_func"] = "softmax"
	case 2:
		c.values["scoring_func"], c.values["topk_method"] = "sigmoid", "noaux_tc"
	}
	if c.values["moe_layer_freq"] == nil && c.hp.Experts > 0 {
		c.values["moe_layer_freq"] = 1
	}
}

// pooling are the files that say how a sentence's vector is made of its tokens', none where the GGUF does
// not say it.
func (c *configuration) pooling() (map[string][]byte, error) {
	kind, ok := map[int64]string{1: "mean_tokens", 2: "cls_token", 3: "lasttoken"}[c.integer("pooling_type")]
	if !ok {
		return nil, nil
	}
	modules, err := indented([]map[string]any{
		{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
		{"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
	})
	if err != nil {
		return nil, err
	}
	values := map[string]any{"word_embedding_dimension": c.integer("embedding_length")}
	for _, mode := range []string{"mean_tokens", "cls_token", "lasttoken"} {
		values["pooling_mode_"+mode] = mode == kind
	}
	pooling, err := indented(values)
	return map[string][]byte{"modules.json": modules, "1_Pooling/config.json": pooling}, err
}

// rope writes rope_scaling.
func (c *configuration) rope() error {
	scaling := map[string]any{}
	copyKey := func(key, name string) {
		if v, ok := c.get("rope.scaling." + key); ok {
			scaling[name] = v
		}
	}
	kind, _ := c.get("rope.scaling.type")
	switch kind {
	case "linear":
		scaling["rope_type"] = "linear"
		copyKey("factor", "factor")
	case "yarn":
		scaling["rope_type"] = "yarn"
		copyKey("factor", "factor")
		copyKey("original_context_length", "original_max_position_embeddings")
		copyKey("yarn_ext_factor", "extrapolation_factor")
		copyKey("yarn_attn_factor", "attention_factor")
		copyKey("yarn_beta_fast", "beta_fast")
		copyKey("yarn_beta_slow", "beta_slow")
		if v, ok := c.m.KVs().Float(c.m.Arch() + ".rope.scaling.yarn_log_multiplier"); ok {
			scaling["mscale_all_dim"] = float32Number(float32(v * 10))
		}
	}
	for _, which := range []string{"long", "short"} {
		x, err := c.vector("rope_factors_" + which + ".weight")
		if err != nil {
			return err
		}
		if x != nil {
			scaling["rope_type"] = "longrope"
			scaling[which+"_factor"] = x
		}
	}
	if err := c.llama3(scaling); err != nil {
		return err
	}
	if len(scaling) > 0 {
		c.values["rope_scaling"] = scaling
	}
	return nil
}

// llama3 finds the parameters that Llama 3's rotary factors come from. The factors do not tell all of them,
// so those that are used by all known models are tried.
func (c *configuration) llama3(scaling map[string]any) error {
	t := c.tensor("rope_freqs.weight")
	if t == nil {
		return nil
	}
	stored, err := c.floats(t)
	if err != nil {
		return err
	}
	theta, _ := c.m.KVs().Float(c.m.Arch() + ".rope.freq_base")
	rope := map[string]any{
		"rope_theta": float32Number(float32(theta)), "factor": float32Number(slices.Max(stored)),
		"low_freq_factor": json.Number("1.0"), "high_freq_factor": json.Number("4.0"), "original_max_position_embeddings": json.Number("8192"),
	}
	if !slices.Equal(llama3Factors(int64(2*len(stored)), rope), stored) {
		c.notes = append(c.notes, *finding.Warnf("base.not_restored", "", "the rotary factors of rope_freqs.weight come from parameters that the file does not hold; config.json has no rope_scaling").
			Hinted("copy rope_scaling from the original config.json"))
		return nil
	}
	delete(rope, "rope_theta")
	rope["rope_type"] = "llama3"
	for k, v := range rope {
		scaling[k] = v
	}
	return nil
}

// vector is a tensor's values as config.json lists them, nil without the tensor.
func (c *configuration) vector(name string) ([]any, error) {
	t := c.tensor(name)
	if t == nil {
		return nil, nil
	}
	x, err := c.floats(t)
	out := make([]any, len(x))
	for i, f := range x {
		out[i] = float32Number(f)
	}
	return out, err
}

func (c *configuration) floats(t *tensor.Tensor) ([]float32, error) {
	if t.DType != tensor.F32 || len(t.Shape) != 1 || t.Size == 0 || t.Size > span {
		return nil, finding.Errorf("base.bad_shape", c.m.Path(), "a vector of F32 values is expected here").In(t.Name)
	}
	b, err := t.Read()
	if err != nil {
		return nil, err
	}
	x := make([]float32, len(b)/4)
	for i := range x {
		x[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return x, nil
}
