package naming

import (
	"fmt"
	"slices"
)

// The prefixes of a denoiser's names in checkpoints of one file and in flattened adapters.
var (
	inCheckpoint  = []string{"model.diffusion_model.", "", "diffusion_model."}
	kohyaDenoiser = []string{"lora_unet_", "lora_unet__", "lora_transformer_", "lycoris_", "lora_prior_unet_"}
)

// diffusionFamilies builds the tables from the rules of the architectures. The text encoders of all
// families are the same few models in other places.
func diffusionFamilies() []*DiffusionFamily {
	denoiser := func(name, folder string, flat Body, modules []DiffusionModule) *DiffusionComponent {
		return &DiffusionComponent{Name: name, Folder: folder, Kohya: kohyaDenoiser, Prefixes: inCheckpoint, Native: "diffusion_model.", Flat: flat, Modules: modules}
	}
	text := func(name, native, folder string, kohya, prefixes []string, modules []DiffusionModule) *DiffusionComponent {
		return &DiffusionComponent{Name: name, Folder: folder, Kohya: kohya, Prefixes: prefixes, Native: "text_encoders." + native, Flat: Renamed, Modules: modules}
	}
	l, g, h, t5 := clipText(12, 768), openCLIP(32, 1280, true), openCLIP(23, 1024, false), t5(24, 4096, 10240)
	clipG := clipText(32, 1280) // as ComfyUI and SD3 checkpoints store CLIP-G
	clipG = append(clipG, DiffusionModule{Original: "text_projection", Kind: "linear", Group: "extra", Shape: []int64{1280, 1280},
		Parts: []DiffusionPart{{"text_projection", 1280}}, Weight: ".weight", Bias: ".bias"})

	te1 := []string{"lora_te1_", "lora_te_"}
	clipL := func() *DiffusionComponent {
		return text("clip_l", "clip_l.transformer.", "text_encoder", te1, []string{"text_encoders.clip_l.transformer.", "conditioner.embedders.0.transformer.", ""}, l)
	}
	t5xxl := func(folder string, kohya ...string) *DiffusionComponent {
		return text("t5xxl", "t5xxl.transformer.", folder, kohya, []string{"text_encoders.t5xxl.transformer.", ""}, t5)
	}
	sd3 := func(name string, depth int, dual int) *DiffusionFamily {
		return &DiffusionFamily{name, []*DiffusionComponent{
			denoiser(name, "transformer", Original, mmdit(depth, dual)),
			clipL(),
			text("clip_g", "clip_g.transformer.", "text_encoder_2", []string{"lora_te2_"}, []string{"text_encoders.clip_g.transformer.", ""}, clipG),
			t5xxl("text_encoder_3", "lora_te3_"),
		}}
	}
	wan := func(name string, layers int, width, ff int64, image bool) *DiffusionFamily {
		return &DiffusionFamily{name, []*DiffusionComponent{denoiser(name, "transformer", Original, wan(layers, width, ff, image))}}
	}
	flux2 := func(name string, double, single int, width, context int64) *DiffusionFamily {
		return &DiffusionFamily{name, []*DiffusionComponent{denoiser(name, "transformer", Original, flux2(double, single, width, context))}}
	}
	return []*DiffusionFamily{
		{"sd15", []*DiffusionComponent{
			denoiser("sd15_unet", "unet", Renamed, unet{channels: 320, mult: []int64{1, 2, 4, 4}, depth: []int{1, 1, 1, 0}, mid: 1, context: 768, convolved: true}.modules()),
			text("sd15_clip_l", "clip_l.transformer.", "text_encoder", []string{"lora_te_", "lora_te1_"}, []string{"cond_stage_model.transformer.", ""}, l),
		}},
		{"sd2", []*DiffusionComponent{
			denoiser("sd2_unet", "unet", Renamed, unet{channels: 320, mult: []int64{1, 2, 4, 4}, depth: []int{1, 1, 1, 0}, mid: 1, context: 1024}.modules()),
			text("sd2_openclip_h", "clip_h.transformer.", "text_encoder", []string{"lora_te_", "lora_te1_"}, []string{"cond_stage_model.model."}, h),
		}},
		{"sdxl", []*DiffusionComponent{
			denoiser("sdxl_unet", "unet", Original, unet{channels: 320, mult: []int64{1, 2, 4}, depth: []int{0, 2, 10}, mid: 10, context: 2048, label: 2816}.modules()),
			text("sdxl_clip_l", "clip_l.transformer.", "text_encoder", te1, []string{"conditioner.embedders.0.transformer.", "text_encoders.clip_l.transformer.", ""}, l),
			text("sdxl_openclip_g", "clip_g.transformer.", "text_encoder_2", []string{"lora_te2_"}, []string{"conditioner.embedders.1.model.", "text_encoders.clip_g.transformer."}, g),
		}},
		{"sdxl-refiner", []*DiffusionComponent{
			denoiser("sdxl_refiner_unet", "unet", Original, unet{channels: 384, mult: []int64{1, 2, 4, 4}, depth: []int{0, 4, 4, 0}, mid: 4, context: 1280, label: 2560}.modules()),
			text("refiner_openclip_g", "clip_g.transformer.", "text_encoder_2", []string{"lora_te2_", "lora_te_"}, []string{"conditioner.embedders.0.model."}, g),
		}},
		sd3("sd3-medium", 24, 0),
		sd3("sd3.5-medium", 24, 13),
		sd3("sd3.5-large", 38, 0),
		{"flux1", []*DiffusionComponent{
			denoiser("flux1", "transformer", Original, flux1(19, 38, 3072)), clipL(), t5xxl("text_encoder_2", "lora_te3_", "lora_te2_"),
		}},
		{"chroma", []*DiffusionComponent{
			denoiser("chroma", "transformer", Original, chroma(19, 38, 3072)), t5xxl("text_encoder", "lora_te3_", "lora_te1_", "lora_te_"),
		}},
		flux2("flux2-dev", 8, 48, 6144, 15360),
		flux2("flux2-klein-4b", 5, 20, 3072, 7680),
		flux2("flux2-klein-9b", 8, 24, 4096, 12288),
		{"hunyuan-video", []*DiffusionComponent{denoiser("hunyuan_video", "transformer", Original, hunyuanVideo(20, 40, 3072))}},
		wan("wan2.1-14b", 40, 5120, 13824, true),
		wan("wan2.1-1.3b", 30, 1536, 8960, false),
		{"qwen-image", []*DiffusionComponent{denoiser("qwen_image", "transformer", Original, qwenImage(60, 3072))}},
		{"z-image", []*DiffusionComponent{denoiser("z_image", "transformer", Original, zImage(30, 3840, 10240))}},
		{"lumina2", []*DiffusionComponent{denoiser("lumina2", "transformer", Original, lumina2(26, 2304, 768, 9216))}},
		{"anima", []*DiffusionComponent{
			denoiser("anima", "transformer", Original, anima(28, 2048, 1024)),
			text("qwen3_06b", "qwen3_06b.transformer.model.", "text_encoder", []string{"lora_te_", "lora_te1_"}, []string{"text_encoders.qwen3_06b.transformer.model.", "model.", ""}, qwen3(28, 1024, 2048, 1024, 3072)),
		}},
	}
}

// rows collects the modules of a component.
type rows []DiffusionModule

func (r *rows) add(m DiffusionModule) {
	if m.Weight == "" {
		m.Weight, m.Bias = ".weight", ".bias"
	}
	*r = append(*r, m)
}

// linear adds a module that diffusers renames.
func (r *rows) linear(group, original, renamed string, out, in int64) {
	r.add(DiffusionModule{Original: original, Parts: []DiffusionPart{{renamed, out}}, Kind: "linear", Group: group, Shape: []int64{out, in}})
}

// swapped adds one whose output halves change places.
func (r *rows) swapped(group, original, renamed string, out, in int64) {
	r.linear(group, original, renamed, out, in)
	(*r)[len(*r)-1].Swapped = true
}

// fused adds a module that diffusers splits.
func (r *rows) fused(group, original string, in int64, parts ...DiffusionPart) {
	out := int64(0)
	for _, p := range parts {
		out += p.Rows
	}
	r.add(DiffusionModule{Original: original, Parts: parts, Kind: "linear", Group: group, Shape: []int64{out, in}})
}

// thirds adds a fused projection of three equal parts below a path of diffusers.
func (r *rows) thirds(original, block string, width int64, q, k, v string) {
	r.fused("attn", original, width, DiffusionPart{block + q, width}, DiffusionPart{block + k, width}, DiffusionPart{block + v, width})
}

func (r *rows) conv(group, original, renamed string, out, in, kernel int64) {
	r.add(DiffusionModule{Original: original, Parts: []DiffusionPart{{renamed, out}}, Kind: "conv", Group: group, Shape: []int64{out, in, kernel, kernel}})
}

func (r *rows) norm(original, renamed string, n int64) {
	r.add(DiffusionModule{Original: original, Parts: []DiffusionPart{{renamed, n}}, Kind: "norm", Group: "norm", Shape: []int64{n}})
}

// A unet is the architecture of SD1.x, SD2.x, SDXL and its refiner, with two layers a block.
type unet struct {
	channels  int64
	mult      []int64
	depth     []int // transformer blocks in each attention of a level
	mid       int
	context   int64
	label     int64 // the width of the added embedding, 0 for none
	convolved bool  // proj_in and proj_out are 1×1 convolutions
}

func (u unet) modules() []DiffusionModule {
	var r rows
	time := 4 * u.channels
	r.linear("extra", "time_embed.0", "time_embedding.linear_1", time, u.channels)
	r.linear("extra", "time_embed.2", "time_embedding.linear_2", time, time)
	if u.label > 0 {
		r.linear("extra", "label_emb.0.0", "add_embedding.linear_1", time, u.label)
		r.linear("extra", "label_emb.0.2", "add_embedding.linear_2", time, time)
	}
	r.conv("extra", "input_blocks.0.0", "conv_in", u.channels, 4, 3)
	in, skips, at := u.channels, []int64{u.channels}, 1
	for i, m := range u.mult {
		c := m * u.channels
		for j := range 2 {
			o, d := fmt.Sprintf("input_blocks.%d", at), fmt.Sprintf("down_blocks.%d", i)
			r.resnet(o+".0", fmt.Sprintf("%s.resnets.%d", d, j), c, in, time)
			if u.depth[i] > 0 {
				u.attention(&r, o+".1", fmt.Sprintf("%s.attentions.%d", d, j), c, u.depth[i])
			}
			in, skips, at = c, append(skips, c), at+1
		}
		if i < len(u.mult)-1 {
			r.conv("conv", fmt.Sprintf("input_blocks.%d.0.op", at), fmt.Sprintf("down_blocks.%d.downsamplers.0.conv", i), c, c, 3)
			skips, at = append(skips, c), at+1
		}
	}
	r.resnet("middle_block.0", "mid_block.resnets.0", in, in, time)
	u.attention(&r, "middle_block.1", "mid_block.attentions.0", in, u.mid)
	r.resnet("middle_block.2", "mid_block.resnets.1", in, in, time)
	for i := range u.mult {
		level := len(u.mult) - 1 - i
		c, d := u.mult[level]*u.channels, fmt.Sprintf("up_blocks.%d", i)
		for j := range 3 {
			o := fmt.Sprintf("output_blocks.%d", 3*i+j)
			skip := skips[len(skips)-1]
			skips = skips[:len(skips)-1]
			r.resnet(o+".0", fmt.Sprintf("%s.resnets.%d", d, j), c, in+skip, time)
			if u.depth[level] > 0 {
				u.attention(&r, o+".1", fmt.Sprintf("%s.attentions.%d", d, j), c, u.depth[level])
			}
			in = c
		}
		if level > 0 {
			after := 1
			if u.depth[level] > 0 {
				after = 2
			}
			r.conv("conv", fmt.Sprintf("output_blocks.%d.%d.conv", 3*i+2, after), d+".upsamplers.0.conv", c, c, 3)
		}
	}
	r.norm("out.0", "conv_norm_out", in)
	r.conv("extra", "out.2", "conv_out", 4, in, 3)
	return r
}

func (r *rows) resnet(o, d string, out, in, time int64) {
	r.norm(o+".in_layers.0", d+".norm1", in)
	r.conv("conv", o+".in_layers.2", d+".conv1", out, in, 3)
	r.linear("conv", o+".emb_layers.1", d+".time_emb_proj", out, time)
	r.norm(o+".out_layers.0", d+".norm2", out)
	r.conv("conv", o+".out_layers.3", d+".conv2", out, out, 3)
	if in != out {
		r.conv("conv", o+".skip_connection", d+".conv_shortcut", out, in, 1)
	}
}

func (u unet) attention(r *rows, o, d string, c int64, depth int) {
	proj := func(leaf string) {
		if u.convolved {
			r.conv("attn", o+leaf, d+leaf, c, c, 1)
		} else {
			r.linear("attn", o+leaf, d+leaf, c, c)
		}
	}
	r.norm(o+".norm", d+".norm", c)
	proj(".proj_in")
	for b := range depth {
		leaf := fmt.Sprintf(".transformer_blocks.%d.", b)
		same := func(name string, out, in int64) { r.linear("attn", o+leaf+name, d+leaf+name, out, in) }
		for k, context := range []int64{c, u.context} {
			attn := fmt.Sprintf("attn%d.", k+1)
			same(attn+"to_q", c, c)
			same(attn+"to_k", c, context)
			same(attn+"to_v", c, context)
			same(attn+"to_out.0", c, c)
		}
		same("ff.net.0.proj", 8*c, c)
		same("ff.net.2", c, 4*c)
		for _, n := range []string{"norm1", "norm2", "norm3"} {
			r.norm(o+leaf+n, d+leaf+n, c)
		}
	}
	proj(".proj_out")
}

// clipText is a CLIP text model under its names in transformers.
func clipText(layers int, width int64) []DiffusionModule {
	var r rows
	same := func(name string, out, in int64) { r.linear("attn", name, name, out, in) }
	for i := range layers {
		l := fmt.Sprintf("text_model.encoder.layers.%d.", i)
		for _, p := range []string{"q_proj", "k_proj", "v_proj", "out_proj"} {
			same(l+"self_attn."+p, width, width)
		}
		same(l+"mlp.fc1", 4*width, width)
		same(l+"mlp.fc2", width, 4*width)
		r.norm(l+"layer_norm1", l+"layer_norm1", width)
		r.norm(l+"layer_norm2", l+"layer_norm2", width)
	}
	r.norm("text_model.final_layer_norm", "text_model.final_layer_norm", width)
	return r
}

// openCLIP is the same model as OpenCLIP stores it: q, k and v in one parameter, the text projection transposed.
func openCLIP(layers int, width int64, projection bool) []DiffusionModule {
	var r rows
	for i := range layers {
		o, d := fmt.Sprintf("transformer.resblocks.%d.", i), fmt.Sprintf("text_model.encoder.layers.%d.", i)
		r.thirds(o+"attn.in_proj", d+"self_attn.", width, "q_proj", "k_proj", "v_proj")
		in := &r[len(r)-1]
		in.Weight, in.Bias = "_weight", "_bias"
		r.linear("attn", o+"attn.out_proj", d+"self_attn.out_proj", width, width)
		r.linear("attn", o+"mlp.c_fc", d+"mlp.fc1", 4*width, width)
		r.linear("attn", o+"mlp.c_proj", d+"mlp.fc2", width, 4*width)
		r.norm(o+"ln_1", d+"layer_norm1", width)
		r.norm(o+"ln_2", d+"layer_norm2", width)
	}
	r.norm("ln_final", "text_model.final_layer_norm", width)
	if projection {
		r.linear("extra", "text_projection", "text_projection", width, width)
		p := &r[len(r)-1]
		p.Transposed, p.Weight, p.Bias = true, "", ""
	}
	return r
}

func t5(layers int, width, ff int64) []DiffusionModule {
	var r rows
	for i := range layers {
		b := fmt.Sprintf("encoder.block.%d.layer.", i)
		same := func(name string, out, in int64) { r.linear("attn", b+name, b+name, out, in) }
		for _, p := range []string{"q", "k", "v", "o"} {
			same("0.SelfAttention."+p, width, width)
		}
		same("1.DenseReluDense.wi_0", ff, width)
		same("1.DenseReluDense.wi_1", ff, width)
		same("1.DenseReluDense.wo", width, ff)
	}
	return r
}

func qwen3(layers int, width, heads, kv, ff int64) []DiffusionModule {
	var r rows
	for i := range layers {
		l := fmt.Sprintf("layers.%d.", i)
		same := func(name string, out, in int64) { r.linear("attn", l+name, l+name, out, in) }
		same("self_attn.q_proj", heads, width)
		same("self_attn.k_proj", kv, width)
		same("self_attn.v_proj", kv, width)
		same("self_attn.o_proj", width, heads)
		same("mlp.gate_proj", ff, width)
		same("mlp.up_proj", ff, width)
		same("mlp.down_proj", width, ff)
	}
	return slices.Clip(r)
}
