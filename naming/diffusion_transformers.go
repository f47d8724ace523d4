package naming

import "fmt"

// mmdit is the transformer of SD3 and SD3.5; the first dual blocks have a second attention.
func mmdit(depth, dual int) []DiffusionModule {
	var r rows
	w := int64(64 * depth)
	for i := range depth {
		o, d := fmt.Sprintf("joint_blocks.%d.", i), fmt.Sprintf("transformer_blocks.%d.", i)
		x := o + "x_block."
		r.thirds(x+"attn.qkv", d+"attn.", w, "to_q", "to_k", "to_v")
		r.linear("attn", x+"attn.proj", d+"attn.to_out.0", w, w)
		modulation := 6 * w
		if i < dual {
			modulation = 9 * w
			r.thirds(x+"attn2.qkv", d+"attn2.", w, "to_q", "to_k", "to_v")
			r.linear("attn", x+"attn2.proj", d+"attn2.to_out.0", w, w)
		}
		r.linear("attn", x+"mlp.fc1", d+"ff.net.0.proj", 4*w, w)
		r.linear("attn", x+"mlp.fc2", d+"ff.net.2", w, 4*w)
		r.linear("attn", x+"adaLN_modulation.1", d+"norm1.linear", modulation, w)
		c := o + "context_block."
		r.thirds(c+"attn.qkv", d+"attn.", w, "add_q_proj", "add_k_proj", "add_v_proj")
		if i == depth-1 { // the last block gives its context no output
			r.swapped("attn", c+"adaLN_modulation.1", d+"norm1_context.linear", 2*w, w)
			break
		}
		r.linear("attn", c+"attn.proj", d+"attn.to_add_out", w, w)
		r.linear("attn", c+"mlp.fc1", d+"ff_context.net.0.proj", 4*w, w)
		r.linear("attn", c+"mlp.fc2", d+"ff_context.net.2", w, 4*w)
		r.linear("attn", c+"adaLN_modulation.1", d+"norm1_context.linear", 6*w, w)
	}
	r.conv("extra", "x_embedder.proj", "pos_embed.proj", w, 16, 2)
	r.linear("extra", "context_embedder", "context_embedder", w, 4096)
	r.embedder("t_embedder.mlp.0", "t_embedder.mlp.2", "time_text_embed.timestep_embedder", w, 256)
	r.embedder("y_embedder.mlp.0", "y_embedder.mlp.2", "time_text_embed.text_embedder", w, 2048)
	r.linear("extra", "final_layer.linear", "proj_out", 64, w)
	r.swapped("extra", "final_layer.adaLN_modulation.1", "norm_out.linear", 2*w, w)
	return r
}

// embedder adds the two layers of a timestep, guidance or text embedder.
func (r *rows) embedder(first, second, renamed string, width, in int64) {
	r.linear("extra", first, renamed+".linear_1", width, in)
	r.linear("extra", second, renamed+".linear_2", width, width)
}

// double adds the streams of a double block of Flux. mlp are the names of the feed-forward's layers.
func (r *rows) double(i int, w, hidden, inner int64, up, down string, modulated bool) {
	d := fmt.Sprintf("transformer_blocks.%d.", i)
	for _, s := range []struct{ stream, q, k, v, out, ff, norm, key string }{
		{"img", "to_q", "to_k", "to_v", "to_out.0", "ff", "norm1.linear", "norm_"},
		{"txt", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff_context", "norm1_context.linear", "norm_added_"},
	} {
		o := fmt.Sprintf("double_blocks.%d.%s_", i, s.stream)
		r.thirds(o+"attn.qkv", d+"attn.", w, s.q, s.k, s.v)
		r.linear("attn", o+"attn.proj", d+"attn."+s.out, w, w)
		r.linear("attn", o+"mlp.0", d+s.ff+"."+up, hidden, w)
		r.linear("attn", o+"mlp.2", d+s.ff+"."+down, w, inner)
		if modulated {
			r.linear("attn", o+"mod.lin", d+s.norm, 6*w, w)
		}
		r.scale(o+"attn.norm.query_norm", d+"attn."+s.key+"q")
		r.scale(o+"attn.norm.key_norm", d+"attn."+s.key+"k")
	}
}

// scale adds a norm over a head of 128 whose weight the original calls scale.
func (r *rows) scale(original, renamed string) {
	r.add(DiffusionModule{Original: original, Parts: []DiffusionPart{{renamed, 128}}, Kind: "norm", Group: "norm", Shape: []int64{128}, Weight: ".scale", Bias: ".bias"})
}

// single adds a single block of Flux.1: linear1 is q, k, v and the feed-forward.
func (r *rows) single(i int, w int64, modulated bool) {
	o, d := fmt.Sprintf("single_blocks.%d.", i), fmt.Sprintf("single_transformer_blocks.%d.", i)
	r.fused("attn", o+"linear1", w, DiffusionPart{d + "attn.to_q", w}, DiffusionPart{d + "attn.to_k", w}, DiffusionPart{d + "attn.to_v", w}, DiffusionPart{d + "proj_mlp", 4 * w})
	r.linear("attn", o+"linear2", d+"proj_out", w, 5*w)
	if modulated {
		r.linear("attn", o+"modulation.lin", d+"norm.linear", 3*w, w)
	}
	r.scale(o+"norm.query_norm", d+"attn.norm_q")
	r.scale(o+"norm.key_norm", d+"attn.norm_k")
}

func flux1(double, single int, w int64) []DiffusionModule {
	var r rows
	for i := range double {
		r.double(i, w, 4*w, 4*w, "net.0.proj", "net.2", true)
	}
	for i := range single {
		r.single(i, w, true)
	}
	r.linear("extra", "img_in", "x_embedder", w, 64)
	r.linear("extra", "txt_in", "context_embedder", w, 4096)
	r.embedder("time_in.in_layer", "time_in.out_layer", "time_text_embed.timestep_embedder", w, 256)
	r.embedder("vector_in.in_layer", "vector_in.out_layer", "time_text_embed.text_embedder", w, 768)
	r.embedder("guidance_in.in_layer", "guidance_in.out_layer", "time_text_embed.guidance_embedder", w, 256)
	r.swapped("extra", "final_layer.adaLN_modulation.1", "norm_out.linear", 2*w, w)
	r.linear("extra", "final_layer.linear", "proj_out", 64, w)
	return r
}

// chroma is Flux.1 without modulations, which one small network predicts.
func chroma(double, single int, w int64) []DiffusionModule {
	const guidance = 5120
	var r rows
	for i := range double {
		r.double(i, w, 4*w, 4*w, "net.0.proj", "net.2", false)
	}
	for i := range single {
		r.single(i, w, false)
	}
	r.linear("extra", "img_in", "x_embedder", w, 64)
	r.linear("extra", "txt_in", "context_embedder", w, 4096)
	r.linear("extra", "final_layer.linear", "proj_out", 64, w)
	const g = "distilled_guidance_layer."
	r.linear("extra", g+"in_proj", g+"in_proj", guidance, 64)
	r.linear("extra", g+"out_proj", g+"out_proj", w, guidance)
	for i := range 5 {
		l := fmt.Sprintf("%slayers.%d.", g, i)
		r.linear("extra", l+"in_layer", l+"linear_1", guidance, guidance)
		r.linear("extra", l+"out_layer", l+"linear_2", guidance, guidance)
	}
	return r
}

func flux2(double, single int, w, context int64) []DiffusionModule {
	var r rows
	for i := range double {
		r.double(i, w, 6*w, 3*w, "linear_in", "linear_out", false)
	}
	for i := range single {
		o, d := fmt.Sprintf("single_blocks.%d.", i), fmt.Sprintf("single_transformer_blocks.%d.attn.", i)
		r.linear("attn", o+"linear1", d+"to_qkv_mlp_proj", 9*w, w)
		r.linear("attn", o+"linear2", d+"to_out", w, 4*w)
		r.scale(o+"norm.query_norm", d+"norm_q")
		r.scale(o+"norm.key_norm", d+"norm_k")
	}
	r.linear("extra", "img_in", "x_embedder", w, 128)
	r.linear("extra", "txt_in", "context_embedder", w, context)
	r.embedder("time_in.in_layer", "time_in.out_layer", "time_guidance_embed.timestep_embedder", w, 256)
	r.embedder("guidance_in.in_layer", "guidance_in.out_layer", "time_guidance_embed.guidance_embedder", w, 256)
	r.linear("extra", "single_stream_modulation.lin", "single_stream_modulation.linear", 3*w, w)
	for _, s := range []string{"img", "txt"} {
		r.linear("extra", "double_stream_modulation_"+s+".lin", "double_stream_modulation_"+s+".linear", 6*w, w)
	}
	r.linear("extra", "final_layer.linear", "proj_out", 128, w)
	r.swapped("extra", "final_layer.adaLN_modulation.1", "norm_out.linear", 2*w, w)
	return r
}

// hunyuanVideo has Flux's blocks under names of its own, and a refiner of the text.
func hunyuanVideo(double, single int, w int64) []DiffusionModule {
	var r rows
	for i := range double {
		d := fmt.Sprintf("transformer_blocks.%d.", i)
		for _, s := range []struct{ stream, q, k, v, out, ff, norm string }{
			{"img", "to_q", "to_k", "to_v", "to_out.0", "ff", "norm1.linear"},
			{"txt", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff_context", "norm1_context.linear"},
		} {
			o := fmt.Sprintf("double_blocks.%d.%s_", i, s.stream)
			r.thirds(o+"attn_qkv", d+"attn.", w, s.q, s.k, s.v)
			r.linear("attn", o+"attn_proj", d+"attn."+s.out, w, w)
			r.linear("attn", o+"mlp.fc1", d+s.ff+".net.0.proj", 4*w, w)
			r.linear("attn", o+"mlp.fc2", d+s.ff+".net.2", w, 4*w)
			r.linear("attn", o+"mod.linear", d+s.norm, 6*w, w)
			for k, alias := range []string{"attn.qkv", "attn.proj", "mlp.0", "mlp.2", "mod.lin"} { // ComfyUI's
				r[len(r)-5+k].Alias = o + alias
			}
		}
	}
	for i := range single {
		o, d := fmt.Sprintf("single_blocks.%d.", i), fmt.Sprintf("single_transformer_blocks.%d.", i)
		r.fused("attn", o+"linear1", w, DiffusionPart{d + "attn.to_q", w}, DiffusionPart{d + "attn.to_k", w}, DiffusionPart{d + "attn.to_v", w}, DiffusionPart{d + "proj_mlp", 4 * w})
		r.linear("attn", o+"linear2", d+"proj_out", w, 5*w)
		r.linear("attn", o+"modulation.linear", d+"norm.linear", 3*w, w)
	}
	for i := range 2 {
		o := fmt.Sprintf("txt_in.individual_token_refiner.blocks.%d.", i)
		d := fmt.Sprintf("context_embedder.token_refiner.refiner_blocks.%d.", i)
		r.thirds(o+"self_attn_qkv", d+"attn.", w, "to_q", "to_k", "to_v")
		r.linear("attn", o+"self_attn_proj", d+"attn.to_out.0", w, w)
		r.linear("attn", o+"mlp.fc1", d+"ff.net.0.proj", 4*w, w)
		r.linear("attn", o+"mlp.fc2", d+"ff.net.2", w, 4*w)
		r.linear("attn", o+"adaLN_modulation.1", d+"norm_out.linear", 2*w, w)
	}
	r.linear("extra", "final_layer.linear", "proj_out", 64, w)
	r.swapped("extra", "final_layer.adaLN_modulation.1", "norm_out.linear", 2*w, w)
	return r
}

// wan is the transformer of Wan 2.1 and 2.2; image adds the image keys and values of the 2.1 I2V models.
func wan(layers int, w, ff int64, image bool) []DiffusionModule {
	var r rows
	for i := range layers {
		b := fmt.Sprintf("blocks.%d.", i)
		for k, a := range []string{"self_attn.", "cross_attn."} {
			d := fmt.Sprintf("%sattn%d.", b, k+1)
			for j, p := range []string{"q", "k", "v", "o"} {
				r.linear("attn", b+a+p, d+[]string{"to_q", "to_k", "to_v", "to_out.0"}[j], w, w)
			}
		}
		if image {
			r.linear("attn", b+"cross_attn.k_img", b+"attn2.add_k_proj", w, w)
			r.linear("attn", b+"cross_attn.v_img", b+"attn2.add_v_proj", w, w)
		}
		r.linear("attn", b+"ffn.0", b+"ffn.net.0.proj", ff, w)
		r.linear("attn", b+"ffn.2", b+"ffn.net.2", w, ff)
		for k, a := range []string{"self_attn.", "cross_attn."} {
			d := fmt.Sprintf("%sattn%d.", b, k+1)
			r.norm(b+a+"norm_q", d+"norm_q", w)
			r.norm(b+a+"norm_k", d+"norm_k", w)
		}
		if image {
			r.norm(b+"cross_attn.norm_k_img", b+"attn2.norm_added_k", w)
		}
		r.norm(b+"norm3", b+"norm2", w)
	}
	const c = "condition_embedder."
	r.embedder("text_embedding.0", "text_embedding.2", c+"text_embedder", w, 4096)
	r.embedder("time_embedding.0", "time_embedding.2", c+"time_embedder", w, 256)
	r.linear("extra", "time_projection.1", c+"time_proj", 6*w, w)
	if image {
		r.linear("extra", "img_emb.proj.1", c+"image_embedder.ff.net.0.proj", 1280, 1280)
		r.linear("extra", "img_emb.proj.3", c+"image_embedder.ff.net.2", w, 1280)
	}
	r.linear("extra", "head.head", "proj_out", 64, w)
	return r
}

// qwenImage has the same names in diffusers and in the original checkpoint.
func qwenImage(layers int, w int64) []DiffusionModule {
	var r rows
	for i := range layers {
		b := fmt.Sprintf("transformer_blocks.%d.", i)
		for _, p := range []string{"to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"} {
			r.linear("attn", b+"attn."+p, b+"attn."+p, w, w)
		}
		for _, s := range []string{"img", "txt"} {
			r.linear("attn", b+s+"_mlp.net.0.proj", b+s+"_mlp.net.0.proj", 4*w, w)
			r.linear("attn", b+s+"_mlp.net.2", b+s+"_mlp.net.2", w, 4*w)
			r.linear("attn", b+s+"_mod.1", b+s+"_mod.1", 6*w, w)
		}
	}
	r.linear("extra", "img_in", "img_in", w, 64)
	r.linear("extra", "txt_in", "txt_in", w, 3584)
	r.linear("extra", "proj_out", "proj_out", 64, w)
	r.linear("extra", "norm_out.linear", "norm_out.linear", 2*w, w)
	const t = "time_text_embed.timestep_embedder."
	r.embedder(t+"linear_1", t+"linear_2", t[:len(t)-1], w, 256)
	return r
}

// zImage is the transformer of Z-Image: refiners of the noise and of the context before the layers.
func zImage(layers int, w, ff int64) []DiffusionModule {
	var r rows
	stack := func(name string, n int, modulated bool) {
		for i := range n {
			b := fmt.Sprintf("%s.%d.", name, i)
			r.thirds(b+"attention.qkv", b+"attention.", w, "to_q", "to_k", "to_v")
			r.linear("attn", b+"attention.out", b+"attention.to_out.0", w, w)
			r.linear("attn", b+"feed_forward.w1", b+"feed_forward.w1", ff, w)
			r.linear("attn", b+"feed_forward.w2", b+"feed_forward.w2", w, ff)
			r.linear("attn", b+"feed_forward.w3", b+"feed_forward.w3", ff, w)
			if modulated {
				r.linear("attn", b+"adaLN_modulation.0", b+"adaLN_modulation.0", 4*w, 256)
			}
		}
	}
	stack("layers", layers, true)
	stack("noise_refiner", 2, true)
	stack("context_refiner", 2, false)
	return r
}

// lumina2 has fewer heads for keys and values, and other names for the feed-forward in diffusers.
func lumina2(layers int, w, kv, ff int64) []DiffusionModule {
	var r rows
	stack := func(name string, n int, modulated bool) {
		for i := range n {
			b := fmt.Sprintf("%s.%d.", name, i)
			r.fused("attn", b+"attention.qkv", w, DiffusionPart{b + "attn.to_q", w}, DiffusionPart{b + "attn.to_k", kv}, DiffusionPart{b + "attn.to_v", kv})
			r.linear("attn", b+"attention.out", b+"attn.to_out.0", w, w)
			r.linear("attn", b+"feed_forward.w1", b+"feed_forward.linear_1", ff, w)
			r.linear("attn", b+"feed_forward.w2", b+"feed_forward.linear_2", w, ff)
			r.linear("attn", b+"feed_forward.w3", b+"feed_forward.linear_3", ff, w)
			if modulated {
				r.linear("attn", b+"adaLN_modulation.1", b+"norm1.linear", 4*w, 1024)
			}
		}
	}
	stack("layers", layers, true)
	stack("noise_refiner", 2, true)
	stack("context_refiner", 2, false)
	return r
}

// anima is the transformer of Cosmos-Predict2 as Anima uses it.
func anima(layers int, w, context int64) []DiffusionModule {
	const low = 256
	var r rows
	for i := range layers {
		o, d := fmt.Sprintf("blocks.%d.", i), fmt.Sprintf("transformer_blocks.%d.", i)
		for k, in := range []int64{w, context} {
			a, n := o+[]string{"self_attn.", "cross_attn."}[k], fmt.Sprintf("%sattn%d.", d, k+1)
			r.linear("attn", a+"q_proj", n+"to_q", w, w)
			r.linear("attn", a+"k_proj", n+"to_k", w, in)
			r.linear("attn", a+"v_proj", n+"to_v", w, in)
			r.linear("attn", a+"output_proj", n+"to_out.0", w, w)
		}
		r.linear("attn", o+"mlp.layer1", d+"ff.net.0.proj", 4*w, w)
		r.linear("attn", o+"mlp.layer2", d+"ff.net.2", w, 4*w)
		for k, s := range []string{"self_attn", "cross_attn", "mlp"} {
			m, n := o+"adaln_modulation_"+s, fmt.Sprintf("%snorm%d.linear_", d, k+1)
			r.linear("extra", m+".1", n+"1", low, w)
			r.linear("extra", m+".2", n+"2", 3*w, low)
		}
	}
	return r
}
