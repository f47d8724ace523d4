package metadata

import (
	"encoding/json"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/hf/config"
)

// recipes are the hyper-parameters of each architecture, in the order in which the reference writes them.
var recipes = map[string]func(*writer){
	"llama":           (*writer).llama,
	"smollm3":         (*writer).llama,
	"granite":         (*writer).granite,
	"granitemoe":      (*writer).graniteMoE,
	"arcee":           func(w *writer) { w.llama(); w.pooling() },
	"mistral3":        (*writer).mistral3,
	"qwen2":           func(w *writer) { w.base(); w.pooling() },
	"qwen3":           func(w *writer) { w.base(); w.pooling() },
	"qwen2moe":        (*writer).qwenMoE,
	"qwen3moe":        (*writer).qwenMoE,
	"gemma":           (*writer).gemma,
	"gemma2":          (*writer).gemma2,
	"gemma3":          (*writer).gemma3,
	"gemma-embedding": (*writer).gemmaEmbedding,
	"phi2":            (*writer).phi2,
	"phi3":            (*writer).phi3,
	"phimoe":          (*writer).phiMoE,
	"gpt2":            (*writer).gpt2,
	"gptneox":         (*writer).gptNeoX,
	"starcoder":       (*writer).starCoder,
	"starcoder2":      (*writer).base,
	"falcon":          (*writer).falcon,
	"stablelm":        (*writer).stableLM,
	"olmo":            (*writer).olmo,
	"olmo2":           (*writer).olmo2,
	"olmoe":           func(w *writer) { w.base(); w.set("attention.layer_norm_rms_epsilon", gguf.Of(float32(1e-5))) },
	"command-r":       (*writer).commandR,
	"cohere2":         (*writer).cohere2,
	"deepseek":        (*writer).deepseek,
	"deepseek2":       (*writer).deepseek2,
	"gpt-oss":         (*writer).gptOSS,
	"bert":            (*writer).bert,
	"nomic-bert":      (*writer).nomicBert,
}

func (w *writer) llama() {
	w.base()
	w.needU32("vocab_size", "vocab_size")
	w.dimensionCount()
}

// granite is llama without a head size of its own and with factors for what it adds and multiplies.
func (w *writer) granite() {
	w.cfg = w.cfg.With("head_dim", nil)
	w.llama()
	for _, x := range [][2]string{
		{"attention.scale", "attention_multiplier"}, {"embedding_scale", "embedding_multiplier"},
		{"residual_scale", "residual_multiplier"}, {"logit_scale", "logits_scaling"},
	} {
		if config.Truthy(w.cfg.Get(x[1])) {
			w.f32(x[0], x[1])
		}
	}
}

func (w *writer) graniteMoE() {
	w.granite()
	if config.Truthy(w.cfg.Get("shared_intermediate_size")) {
		w.u32("expert_shared_feed_forward_length", "shared_intermediate_size")
	}
}

func (w *writer) dimensionCount() {
	if n, ok := w.headSize(); ok {
		w.putU32("rope.dimension_count", "head_dim", n)
	}
}

func (w *writer) mistral3() {
	w.llama()
	if w.cfg.Text("model_type") == "ministral3" {
		rp := w.cfg.Rope()
		w.setF32("rope.scaling.yarn_log_multiplier", "mscale_all_dim", rp["mscale_all_dim"])
		w.setF32("attention.temperature_scale", "llama_4_scaling_beta", rp["llama_4_scaling_beta"])
	}
}

func (w *writer) qwenMoE() {
	w.base()
	w.u32("expert_feed_forward_length", "moe_intermediate_size")
	w.u32("expert_shared_feed_forward_length", "shared_expert_intermediate_size")
}

func (w *writer) gemma() {
	w.needU32("context_length", "max_position_embeddings")
	w.needU32("embedding_length", "hidden_size")
	w.blocks()
	w.needU32("feed_forward_length", "intermediate_size")
	w.needU32("attention.head_count", "num_attention_heads")
	w.needU32("attention.head_count_kv", "num_key_value_heads", "num_attention_heads")
	w.needF32("attention.layer_norm_rms_epsilon", "rms_norm_eps")
	w.needU32("attention.key_length", "head_dim")
	w.needU32("attention.value_length", "head_dim")
	w.fileTypeKV()
}

func (w *writer) gemma2() {
	w.gemma()
	w.needF32("attn_logit_softcapping", "attn_logit_softcapping")
	w.needF32("final_logit_softcapping", "final_logit_softcapping")
	w.needU32("attention.sliding_window", "sliding_window")
}

// gemma3 has defaults for what its configurations leave out; they go where the keys stand already.
func (w *writer) gemma3() {
	w.base()
	w.putU32("context_length", "max_position_embeddings", w.intOr(131072, "max_position_embeddings"))
	w.putU32("attention.head_count", "num_attention_heads", w.intOr(8, "num_attention_heads"))
	w.floatOr("attention.layer_norm_rms_epsilon", 1e-6, "rms_norm_eps", w.cfg.Get("rms_norm_eps"))
	w.putU32("attention.key_length", "head_dim", w.intOr(256, "head_dim"))
	w.putU32("attention.value_length", "head_dim", w.intOr(256, "head_dim"))
	w.fileTypeKV()
	w.floatOr("rope.freq_base", 1e6, "rope_theta", w.cfg.FullRope()["rope_theta"])
	if v := w.cfg.Get("final_logit_softcapping"); config.Truthy(v) {
		w.setF32("final_logit_softcapping", "final_logit_softcapping", v)
	}
	if n, ok := config.Int(w.cfg.Get("sliding_window_pattern")); !ok || n != 1 {
		w.needU32("attention.sliding_window", "sliding_window")
	}
	w.putU32("attention.head_count_kv", "num_key_value_heads", w.intOr(4, "num_key_value_heads"))
}

func (w *writer) floatOr(key string, other float32, name string, v any) {
	if v == nil {
		w.set(key, gguf.Of(other))
		return
	}
	w.setF32(key, name, v)
}

func (w *writer) gemmaEmbedding() {
	w.gemma3()
	w.pooling()
}

func (w *writer) phi2() {
	w.needU32("context_length", "n_positions", "max_position_embeddings")
	width, ok := w.int("hidden_size", "n_embd")
	w.putU32("embedding_length", "hidden_size", width)
	w.putU32("feed_forward_length", "hidden_size", 4*width)
	w.blocks()
	heads, ok2 := w.heads()
	w.putU32("attention.head_count", "num_attention_heads", heads)
	w.putU32("attention.head_count_kv", "num_attention_heads", heads)
	w.needF32("attention.layer_norm_epsilon", "layer_norm_epsilon", "layer_norm_eps")
	fraction, ok3 := w.rotaryFraction(0, "partial_rotary_factor")
	if ok && ok2 && ok3 {
		w.putU32("rope.dimension_count", "partial_rotary_factor", int64(fraction*float64(width))/heads)
	}
	w.fileTypeKV()
	w.set("tokenizer.ggml.add_bos_token", gguf.Of(false))
}

func (w *writer) phi3() {
	w.needU32("context_length", "n_positions", "max_position_embeddings")
	original, err := w.originalContext()
	w.fail(err)
	w.putU32("rope.scaling.original_context_length", "original_max_position_embeddings", original)
	width, ok := w.int("hidden_size", "n_embd")
	w.putU32("embedding_length", "hidden_size", width)
	w.needU32("feed_forward_length", "intermediate_size")
	w.blocks()
	heads, ok2 := w.heads()
	w.putU32("attention.head_count", "num_attention_heads", heads)
	w.putU32("attention.head_count_kv", "num_key_value_heads", w.intOr(heads, "num_key_value_heads", "n_head_kv"))
	w.needF32("attention.layer_norm_rms_epsilon", "rms_norm_eps")
	fraction, ok3 := w.rotaryFraction(1, "partial_rotary_factor")
	if ok && ok2 && ok3 {
		w.putU32("rope.dimension_count", "partial_rotary_factor", int64(fraction*float64(width))/heads)
	}
	w.setF32("rope.freq_base", "rope_theta", w.cfg.FullRope()["rope_theta"])
	w.fileTypeKV()
	w.putU32("attention.sliding_window", "sliding_window", w.intOr(0, "sliding_window"))
}

func (w *writer) phiMoE() {
	w.phi3()
	w.needU32("expert_used_count", "num_experts_per_tok", "num_experts_per_token")
	w.needU32("expert_count", "num_local_experts", "num_experts")
}

func (w *writer) gpt2() {
	w.blocks()
	w.needU32("context_length", "n_ctx", "n_positions")
	width, _ := w.int("n_embd")
	w.putU32("embedding_length", "n_embd", width)
	w.putU32("feed_forward_length", "n_embd", 4*width)
	w.needU32("attention.head_count", "n_head")
	w.needF32("attention.layer_norm_epsilon", "layer_norm_epsilon")
	w.fileTypeKV()
}

func (w *writer) gptNeoX() {
	w.needU32("context_length", "max_position_embeddings")
	w.needU32("embedding_length", "hidden_size")
	w.blocks()
	w.needU32("feed_forward_length", "intermediate_size")
	w.rotary(w.rotaryFraction(0, "rotary_pct"))
	w.needU32("attention.head_count", "num_attention_heads")
	w.parallelResidual()
	w.needF32("attention.layer_norm_epsilon", "layer_norm_eps")
}

func (w *writer) parallelResidual() {
	parallel := true
	if w.cfg.Has("use_parallel_residual") {
		parallel = config.Truthy(w.cfg.Get("use_parallel_residual"))
	}
	w.set("use_parallel_residual", gguf.Of(parallel))
}

func (w *writer) starCoder() {
	w.needU32("context_length", "n_positions")
	width, _ := w.int("n_embd")
	w.putU32("embedding_length", "n_embd", width)
	w.putU32("feed_forward_length", "n_embd", 4*width)
	w.blocks()
	w.needU32("attention.head_count", "n_head")
	w.set("attention.head_count_kv", gguf.Of(uint32(1)))
	w.needF32("attention.layer_norm_epsilon", "layer_norm_epsilon")
	w.fileTypeKV()
}

func (w *writer) falcon() {
	w.set("context_length", gguf.Of(uint32(2048)))
	w.set("tensor_data_layout", gguf.Of("jploski"))
	width, _ := w.int("hidden_size", "n_embed")
	w.putU32("embedding_length", "hidden_size", width)
	w.putU32("feed_forward_length", "hidden_size", 4*width)
	w.blocks()
	w.needU32("attention.head_count", "num_attention_heads", "n_head")
	kv := w.intOr(1, "num_kv_heads", "n_head_kv")
	// The old decoder with multi-query attention has one head, whatever num_kv_heads says.
	if w.cfg.Get("multi_query") == true && w.cfg.Get("new_decoder_architecture") != true {
		kv = 1
	}
	w.putU32("attention.head_count_kv", "num_kv_heads", kv)
	w.needF32("attention.layer_norm_epsilon", "layer_norm_epsilon")
	w.fileTypeKV()
}

func (w *writer) stableLM() {
	w.needU32("context_length", "max_position_embeddings")
	w.needU32("embedding_length", "hidden_size")
	w.blocks()
	w.needU32("feed_forward_length", "intermediate_size")
	w.rotary(w.rotaryFraction(0, "partial_rotary_factor", "rope_pct"))
	w.needU32("attention.head_count", "num_attention_heads")
	w.needU32("attention.head_count_kv", "num_key_value_heads")
	w.parallelResidual()
	w.needF32("attention.layer_norm_epsilon", "layer_norm_eps", "norm_eps")
	w.fileTypeKV()
}

func (w *writer) olmo() {
	w.base()
	w.set("attention.layer_norm_epsilon", gguf.Of(float32(1e-5)))
	w.f32("attention.clamp_kqv", "clip_qkv")
}

func (w *writer) olmo2() {
	w.base()
	if w.cfg.Get("sliding_window") == nil {
		return
	}
	w.needU32("attention.sliding_window", "sliding_window")
	layers, err := w.cfg.Layers()
	kinds, ok := w.cfg.Get("layer_types").([]any)
	if err != nil || layers < 0 || layers > 1<<16 {
		w.fail(w.cfg.Bad("num_hidden_layers", layers, "a number up to 65536"))
		return
	}
	pattern := make([]bool, 0, 64)
	if ok {
		for _, k := range kinds {
			pattern = append(pattern, k == "sliding_attention")
		}
	} else {
		for i := range layers {
			pattern = append(pattern, (i+1)%4 != 0)
		}
	}
	w.set("attention.sliding_window_pattern", gguf.ArrayOf(pattern))
}

func (w *writer) commandR() {
	if v := w.cfg.Get("model_max_length"); v != nil {
		w.cfg = w.cfg.With("max_position_embeddings", v)
	}
	w.base()
	w.needF32("logit_scale", "logit_scale")
	w.set("rope.scaling.type", gguf.Of("none"))
}

func (w *writer) cohere2() {
	w.base()
	w.needF32("logit_scale", "logit_scale")
	w.needU32("attention.sliding_window", "sliding_window")
	w.needU32("vocab_size", "vocab_size")
	w.rotary(w.rotaryFraction(0, "rotary_pct"))
	w.set("rope.scaling.type", gguf.Of("none"))
}

func (w *writer) deepseek() {
	w.base()
	w.dimensionCount()
	w.set("rope.scaling.type", gguf.Of("none"))
	w.needU32("leading_dense_block_count", "first_k_dense_replace")
	w.needU32("vocab_size", "vocab_size")
	w.needU32("expert_feed_forward_length", "moe_intermediate_size")
	w.set("expert_weights_scale", gguf.Of(float32(1)))
	w.needU32("expert_count", "n_routed_experts")
	w.needU32("expert_shared_count", "n_shared_experts")
}

// deepseek2 has latent attention, which is stored as attention with a single key-value head.
func (w *writer) deepseek2() {
	w.cfg = w.cfg.With("num_key_value_heads", number(1))
	if !w.cfg.Has("rms_norm_eps") {
		w.cfg = w.cfg.With("rms_norm_eps", json.Number("1e-6"))
	}
	w.base()
	experts := w.cfg.Get("n_routed_experts") != nil
	dense := int64(0)
	if !experts {
		dense, _ = w.cfg.Layers()
	}
	w.putU32("leading_dense_block_count", "first_k_dense_replace", w.intOr(dense, "first_k_dense_replace"))
	w.needU32("vocab_size", "vocab_size")
	w.u32("attention.q_lora_rank", "q_lora_rank")
	rank := w.intOr(512, "kv_lora_rank")
	rope, _ := w.int("qk_rope_head_dim")
	nope, _ := w.int("qk_nope_head_dim")
	w.putU32("attention.kv_lora_rank", "kv_lora_rank", rank)
	w.putU32("attention.key_length", "qk_rope_head_dim", sum(rank, rope))
	w.putU32("attention.value_length", "kv_lora_rank", rank)
	w.putU32("attention.key_length_mla", "qk_nope_head_dim", sum(nope, rope))
	w.needU32("attention.value_length_mla", "v_head_dim")
	w.needU32("expert_feed_forward_length", "moe_intermediate_size", "intermediate_size")
	w.u32("expert_count", "n_routed_experts")
	w.putU32("expert_shared_count", "n_shared_experts", w.intOr(0, "n_shared_experts"))
	w.f32("expert_weights_scale", "routed_scaling_factor")
	if config.Truthy(w.cfg.Get("norm_topk_prob")) {
		w.set("expert_weights_norm", gguf.Of(true))
	}
	w.putU32("rope.dimension_count", "qk_rope_head_dim", rope)
	if v := w.cfg.Rope()["mscale_all_dim"]; v != nil {
		x, ok := config.Float(v)
		if !ok {
			w.fail(w.cfg.Bad("mscale_all_dim", v, "a number"))
			return
		}
		w.set("rope.scaling.yarn_log_multiplier", gguf.Of(float32(0.1*x)))
	}
}

// sum adds numbers of a configuration; one that cannot be a u32 makes a sum that cannot either.
func sum(a, b int64) int64 {
	const most = 1 << 40
	if a < 0 || b < 0 || a > most || b > most {
		return -1
	}
	return a + b
}

func (w *writer) gptOSS() {
	w.base()
	w.needU32("attention.sliding_window", "sliding_window")
	w.needU32("expert_feed_forward_length", "intermediate_size")
}

// bert are BERT, RoBERTa and XLM-R. The latter two leave out the positions up to the padding token's.
func (w *writer) bert() {
	if positionsAfterPad(w.cfg.Class()) && w.cfg.Get("pad_token_id") != nil && w.cfg.Get("max_position_embeddings") != nil {
		pad, ok := w.int("pad_token_id")
		n, ok2 := w.int("max_position_embeddings")
		if ok && ok2 {
			w.cfg = w.cfg.With("max_position_embeddings", number(n-1-pad))
		}
	}
	w.base()
	w.set("attention.causal", gguf.Of(false))
	w.pooling()
	w.labels()
}

func positionsAfterPad(class string) bool {
	switch class {
	case "RobertaModel", "RobertaForSequenceClassification", "XLMRobertaModel", "XLMRobertaForSequenceClassification":
		return true
	}
	return false
}

// nomicBert is trained on fewer positions than it is said to have.
func (w *writer) nomicBert() {
	for _, c := range []struct {
		key  string
		want any
	}{
		{"causal", false}, {"qkv_proj_bias", false}, {"prenorm", false}, {"rotary_emb_interleaved", false},
	} {
		if v := w.cfg.Get(c.key); v != nil && v != c.want {
			w.fail(w.cfg.Bad(c.key, v, "false"))
		}
	}
	if x, ok := config.Float(w.cfg.Get("rotary_emb_fraction")); ok && x != 1 {
		w.fail(w.cfg.Bad("rotary_emb_fraction", x, "1"))
	}
	positions, ok := w.int("n_positions")
	trained := w.intOr(2048, "max_trained_positions")
	context := int64(512)
	switch {
	case !ok:
	case positions == 8192 && trained == 2048:
		context = 2048
	case positions == 2048 && trained == 2048:
	default:
		w.fail(w.cfg.Bad("n_positions", positions, "8192 or 2048, with max_trained_positions 2048"))
	}
	w.cfg = w.cfg.With("max_position_embeddings", number(context))
	w.base()
	w.set("attention.causal", gguf.Of(false))
	w.pooling()
	w.labels()
}
