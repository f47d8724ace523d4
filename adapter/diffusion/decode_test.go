package diffusion

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/internal/applied"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

func tensors(t *testing.T, specs ...string) []tensor.Tensor {
	t.Helper()
	return applied.File(t, specs...)
}

func pair(module, down, up string, out, in int) []string {
	return []string{fmt.Sprintf("%s%s [2 %d]", module, down, in), fmt.Sprintf("%s%s [%d 2]", module, up, out)}
}

// TestSpellings decodes what the tools write and wrote, and checks where the updates go.
func TestSpellings(t *testing.T) {
	const block = "down_blocks.0.attentions.1.transformer_blocks.0."
	for name, c := range map[string]struct {
		specs   []string
		dialect string
		want    []string
	}{
		"attention processors": {slices.Concat(
			pair("unet."+block+"attn1.processor.to_q", "_lora.down.weight", "_lora.up.weight", 4, 4),
			pair("unet."+block+"attn2.processor.to_out", "_lora.down.weight", "_lora.up.weight", 4, 4),
			pair("text_encoder.text_model.encoder.layers.3.self_attn.to_v", "_lora.down.weight", "_lora.up.weight", 4, 4)),
			"diffusers-old", []string{"unet." + block + "attn1.to_q.weight", "unet." + block + "attn2.to_out.0.weight", "text_encoder.text_model.encoder.layers.3.self_attn.v_proj.weight"}},
		"nested layers": {slices.Concat(
			pair("unet."+block+"attn1.to_k", ".lora.down.weight", ".lora.up.weight", 4, 4),
			pair("text_encoder.text_model.encoder.layers.3.mlp.fc1", ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight", 4, 4)),
			"diffusers-old", []string{"unet." + block + "attn1.to_k.weight", "text_encoder.text_model.encoder.layers.3.mlp.fc1.weight"}},
		"an adapter's name": {pair("transformer.transformer_blocks.7.img_mod.1", ".lora_A.default.weight", ".lora_B.default.weight", 6, 4),
			"diffusers", []string{"transformer.transformer_blocks.7.img_mod.1.weight"}},
		"PEFT's prefix": {pair("base_model.model.double_blocks.3.txt_attn.qkv", ".lora_A.weight", ".lora_B.weight", 6, 4),
			"diffusers", []string{"transformer.transformer_blocks.3.attn.add_q_proj.weight", "transformer.transformer_blocks.3.attn.add_k_proj.weight", "transformer.transformer_blocks.3.attn.add_v_proj.weight"}},
		"children of a fused module": {slices.Concat(
			pair("transformer.double_blocks.0.img_attn.qkv.1", ".lora_down.weight", ".lora_up.weight", 4, 4),
			pair("transformer.single_blocks.0.linear1.3", ".lora_down.weight", ".lora_up.weight", 8, 4)),
			"onetrainer", []string{"transformer.transformer_blocks.0.attn.to_k.weight", "transformer.single_transformer_blocks.0.proj_mlp.weight"}},
		"names of diffusers, flattened": {pair("lora_transformer_single_transformer_blocks_4_attn_to_q", ".lora_down.weight", ".lora_up.weight", 4, 4),
			"onetrainer", []string{"transformer.single_transformer_blocks.4.attn.to_q.weight"}},
		"XLabs": {slices.Concat(
			pair("double_blocks.1.processor.qkv_lora2", ".down.weight", ".up.weight", 6, 4),
			pair("double_blocks.1.processor.proj_lora1", ".down.weight", ".up.weight", 4, 4),
			pair("single_blocks.2.processor.qkv_lora", ".down.weight", ".up.weight", 6, 4),
			pair("single_blocks.2.processor.proj_lora", ".down.weight", ".up.weight", 4, 4)),
			"xlabs", []string{
				"transformer.transformer_blocks.1.attn.add_q_proj.weight", "transformer.transformer_blocks.1.attn.add_k_proj.weight", "transformer.transformer_blocks.1.attn.add_v_proj.weight",
				"transformer.transformer_blocks.1.attn.to_out.0.weight",
				"transformer.single_transformer_blocks.2.attn.to_q.weight", "transformer.single_transformer_blocks.2.attn.to_k.weight", "transformer.single_transformer_blocks.2.attn.to_v.weight",
				"transformer.single_transformer_blocks.2.proj_out.weight"}},
		"two underscores": {pair("lora_unet__blocks_0_cross_attn_k_img", ".lora_down.weight", ".lora_up.weight", 4, 4),
			"kohya", []string{"transformer.blocks.0.attn2.add_k_proj.weight"}},
		"LyCORIS prefix": {pair("lycoris_transformer_blocks_0_txt_mlp_net_0_proj", ".lora_down.weight", ".lora_up.weight", 4, 4),
			"lycoris", []string{"transformer.transformer_blocks.0.txt_mlp.net.0.proj.weight"}},
		"SDXL in names of diffusers": {slices.Concat(
			pair("lora_unet_down_blocks_2_attentions_0_transformer_blocks_9_ff_net_2", ".lora_down.weight", ".lora_up.weight", 4, 4),
			pair("lora_te2_text_projection", ".lora_down.weight", ".lora_up.weight", 4, 4)),
			"kohya", []string{"unet.down_blocks.2.attentions.0.transformer_blocks.9.ff.net.2.weight", "text_encoder_2.text_projection.weight"}},
		"ComfyUI": {slices.Concat(
			pair("diffusion_model.output_blocks.1.1.transformer_blocks.3.attn2.to_v", ".lora_down.weight", ".lora_up.weight", 4, 4),
			pair("text_encoders.clip_g.transformer.text_model.encoder.layers.31.self_attn.k_proj", ".lora_down.weight", ".lora_up.weight", 4, 4),
			[]string{"diffusion_model.output_blocks.1.1.transformer_blocks.3.attn2.to_v.alpha"}),
			"comfyui", []string{"unet.up_blocks.0.attentions.1.transformer_blocks.3.attn2.to_v.weight", "text_encoder_2.text_model.encoder.layers.31.self_attn.k_proj.weight"}},
		"ComfyUI's Qwen3": {slices.Concat(
			pair("text_encoders.qwen3_06b.transformer.model.layers.2.mlp.up_proj", ".lora_A.weight", ".lora_B.weight", 4, 4), pair("diffusion_model.blocks.0.mlp.layer1", ".lora_A.weight", ".lora_B.weight", 4, 4)),
			"ai-toolkit", []string{"text_encoder.layers.2.mlp.up_proj.weight", "transformer.transformer_blocks.0.ff.net.0.proj.weight"}},
		"control": {append(pair("double_blocks.0.img_attn.qkv", ".lora_A.weight", ".lora_B.weight", 6, 4),
			"double_blocks.0.img_attn.qkv.lora_B.bias [6]", "double_blocks.0.img_attn.norm.key_norm.scale [2]"),
			"bfl-control", []string{
				"transformer.transformer_blocks.0.attn.to_q.weight", "transformer.transformer_blocks.0.attn.to_k.weight", "transformer.transformer_blocks.0.attn.to_v.weight",
				"transformer.transformer_blocks.0.attn.to_q.bias", "transformer.transformer_blocks.0.attn.to_k.bias", "transformer.transformer_blocks.0.attn.to_v.bias",
				"transformer.transformer_blocks.0.attn.norm_k.weight"}},
		"Z-Image": {pair("lora_unet_noise_refiner_1_attention_out", ".lora_down.weight", ".lora_up.weight", 4, 4),
			"kohya", []string{"transformer.noise_refiner.1.attention.to_out.0.weight"}},
		"HunyuanVideo": {slices.Concat(pair("lora_unet_double_blocks_19_img_mlp_fc1", ".lora_down.weight", ".lora_up.weight", 4, 4), pair("lora_unet_double_blocks_19_txt_mod_linear", ".lora_down.weight", ".lora_up.weight", 4, 4)),
			"kohya", []string{"transformer.transformer_blocks.19.ff.net.0.proj.weight", "transformer.transformer_blocks.19.norm1_context.linear.weight"}},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := Decode("file", "file", tensors(t, c.specs...), nil, Options{})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, u := range a.Updates {
				got = append(got, u.Target.String())
			}
			if d := cmp.Diff(c.want, got); d != "" || a.Dialect != c.dialect || a.Space != naming.Diffusers {
				t.Errorf("%s in %s\n%s", a.Dialect, a.Space, d)
			}
		})
	}
}

// TestScales checks where scales come from, and that what is said twice must agree.
func TestScales(t *testing.T) {
	const module = "transformer.transformer_blocks.0.attn.to_q"
	factors := pair(module, ".lora_A.weight", ".lora_B.weight", 4, 4) // of rank 2
	diffusers := func(text string) [][2]string { return [][2]string{{adapterMetadata, text}} }
	for name, c := range map[string]struct {
		more     []string
		metadata [][2]string
		value    float64
		code     string
	}{
		"none":                 {nil, nil, 1, ""},
		"tensor":               {[]string{module + ".alpha =3"}, nil, 1.5, ""},
		"explicit":             {[]string{module + ".scale =0.25"}, nil, 0.25, ""},
		"zero":                 {[]string{module + ".alpha =0"}, nil, 0, ""},
		"diffusers":            {nil, diffusers(`{"transformer.r": 2, "transformer.lora_alpha": 8, "text_encoder.lora_alpha": 1}`), 4, ""},
		"another component":    {nil, diffusers(`{"text_encoder.lora_alpha": 8}`), 1, ""},
		"pattern":              {nil, diffusers(`{"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"attn.to_q": 6, "to_k": 1}}`), 3, ""},
		"regular expression":   {nil, diffusers(`{"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"transformer_blocks\\.\\d+\\.attn\\.to_q": 6}}`), 3, ""},
		"rsLoRA":               {nil, diffusers(`{"transformer.lora_alpha": 8, "transformer.use_rslora": true}`), 8 / math.Sqrt(2), ""},
		"plain metadata":       {nil, [][2]string{{"lora_alpha", "1"}}, 0.5, ""},
		"prefixed metadata":    {nil, [][2]string{{"transformer.lora_alpha", "1"}, {"transformer.r", "2"}}, 0.5, ""},
		"agreeing":             {[]string{module + ".alpha =8"}, diffusers(`{"transformer.lora_alpha": 8}`), 4, ""},
		"tensor over plain":    {[]string{module + ".alpha =8"}, [][2]string{{"lora_alpha", "1"}}, 4, ""},
		"conflict":             {[]string{module + ".alpha =8"}, diffusers(`{"transformer.lora_alpha": 4}`), 0, "adapter.alpha_conflict"},
		"scale against alpha":  {[]string{module + ".alpha =8", module + ".scale =1"}, nil, 0, "adapter.alpha_conflict"},
		"two alphas":           {nil, [][2]string{{"lora_alpha", "1"}, {"network_alpha", "2"}}, 0, "adapter.alpha_conflict"},
		"infinite":             {[]string{module + ".alpha =inf"}, nil, 0, "adapter.bad_alpha"},
		"not a number":         {nil, [][2]string{{"lora_alpha", "x"}}, 0, "adapter.bad_alpha"},
		"no numbers":           {nil, diffusers(`{"transformer.lora_alpha": "8"}`), 0, "adapter.bad_alpha"},
		"bad JSON":             {nil, diffusers(`[`), 0, "adapter.bad_json"},
		"an alpha of a matrix": {[]string{module + ".alpha [2]"}, nil, 0, "adapter.bad_alpha"},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := Decode("file", "file", tensors(t, append(slices.Clone(factors), c.more...)...), c.metadata, Options{})
			if c.code != "" {
				if f := finding.Of(err); f == nil || f.Code != c.code {
					t.Errorf("got %v, expected %s", err, c.code)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if s := a.Updates[0].Scale; s.Value != c.value || s.Rank != 2 || s.Source == "" {
				t.Errorf("scale %+v, expected %v", s, c.value)
			}
		})
	}
}

func TestErrors(t *testing.T) {
	const module = "lora_unet_double_blocks_0_img_attn_qkv"
	good := pair(module, ".lora_down.weight", ".lora_up.weight", 6, 4)
	for name, c := range map[string]struct {
		specs []string
		code  string
		says  string
	}{
		"nothing":            {nil, "adapter.empty_adapter", ""},
		"half a pair":        {good[:1], "adapter.missing_pair", module},
		"other half":         {good[1:], "adapter.missing_pair", module},
		"ranks":              {[]string{module + ".lora_down.weight [3 4]", module + ".lora_up.weight [6 2]"}, "adapter.rank_mismatch", ""},
		"no rank":            {[]string{module + ".lora_down.weight [0 4]", module + ".lora_up.weight [6 0]"}, "adapter.rank_zero", ""},
		"vectors":            {[]string{module + ".lora_down.weight [4]", module + ".lora_up.weight [6]"}, "adapter.shape_mismatch", ""},
		"rows in thirds":     {pair(module, ".lora_down.weight", ".lora_up.weight", 7, 4), "adapter.shape_mismatch", ""},
		"an alpha alone":     {append(slices.Clone(good), "lora_unet_double_blocks_1_img_attn_qkv.alpha"), "adapter.unexpected_tensor", ""},
		"a typing error":     {append(pair("lora_unet_double_blocks_0_img_atn_qkv", ".lora_down.weight", ".lora_up.weight", 6, 4), good...), "adapter.unknown_module", "double_blocks_0_img_attn_qkv"},
		"another thing":      {append([]string{"optimizer.state [2 2]"}, good...), "adapter.unexpected_tensor", "optimizer.state"},
		"one tensor twice":   {append(pair(module, ".lora_A.weight", ".lora_B.weight", 6, 4), good...), "adapter.duplicate_target", ""},
		"one module twice":   {append(pair("lora_transformer_transformer_blocks_0_attn_to_q", ".lora_down.weight", ".lora_up.weight", 2, 4), good...), "adapter.duplicate_target", ""},
		"a bias of another":  {append([]string{module + ".lora_up.bias [5]"}, good...), "adapter.shape_mismatch", ""},
		"a vector's replace": {append([]string{module + ".set_weight [2 2]"}, good...), "adapter.unexpected_tensor", ""},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := Decode("file", "file", tensors(t, c.specs...), nil, Options{})
			f := finding.Of(err)
			if f == nil || f.Code != c.code || !strings.Contains(f.Error(), c.says) {
				t.Errorf("got %v, %v, expected %s with %q", a, err, c.code, c.says)
			}
		})
	}
}

// TestAllowUnmatched leaves out, with a warning, the modules that the family does not know.
func TestAllowUnmatched(t *testing.T) {
	specs := append(pair("lora_unet_double_blocks_0_img_attn_qkv", ".lora_down.weight", ".lora_up.weight", 6, 4), pair("lora_unet_strange", ".lora_down.weight", ".lora_up.weight", 6, 4)...)
	a, err := Decode("file", "file", tensors(t, specs...), nil, Options{AllowUnmatched: true})
	if err != nil || len(a.Updates) != 3 || !slices.ContainsFunc(a.Findings, func(f finding.Finding) bool { return f.Level == finding.Warning && f.Code == "adapter.unknown_module" }) {
		t.Errorf("got %v, %v", a, err)
	}
}

// TestUnknown lists all that is not known with what is most like it, and drops it only where that is allowed.
func TestUnknown(t *testing.T) {
	specs := pair("lora_unet_double_blocks_0_img_attn_qkv", ".lora_down.weight", ".lora_up.weight", 6, 4)
	for i := range 9 {
		specs = append(specs, pair(fmt.Sprintf("lora_unet_double_blocks_%d_img_atn_proj", i), ".lora_down.weight", ".lora_up.weight", 6, 4)...)
	}
	_, err := Decode("file", "file", tensors(t, specs...), nil, Options{})
	f := finding.Of(err)
	if f == nil || f.Code != "adapter.unknown_module" || !strings.Contains(f.Message, "9 of 10") || !strings.Contains(f.Got, `"double_blocks_3_img_atn_proj" (nearest "double_blocks_3_img_attn_proj")`) ||
		!strings.Contains(f.Got, "and 1 more") || !strings.Contains(f.Hint, "--allow-unmatched") {
		t.Errorf("got %+v", f)
	}
	strange := append(slices.Clone(specs[:2]), "optimizer.step [1]", "optimizer.moment [2 2]")
	_, err = Decode("file", "file", tensors(t, strange...), nil, Options{})
	if f := finding.Of(err); f == nil || f.Code != "adapter.unexpected_tensor" || !strings.Contains(f.Message, "2 tensors") || !strings.Contains(f.Got, "optimizer.moment") {
		t.Errorf("got %+v", f)
	}
	a, err := Decode("file", "file", tensors(t, strange...), nil, Options{AllowUnmatched: true})
	if err != nil || len(a.Updates) != 3 || !slices.ContainsFunc(a.Findings, func(f finding.Finding) bool {
		return f.Level == finding.Warning && f.Code == "adapter.unexpected_tensor"
	}) {
		t.Errorf("got %v, %v", a, err)
	}
}

// TestMixed names every dialect that a file's names speak for.
func TestMixed(t *testing.T) {
	specs := append(pair("lora_unet_double_blocks_0_img_attn_qkv", ".lora_down.weight", ".lora_up.weight", 6, 4),
		pair("diffusion_model.double_blocks.1.img_attn.qkv", ".lora_A.weight", ".lora_B.weight", 6, 4)...)
	a, err := Decode("file", "file", tensors(t, specs...), nil, Options{})
	if err != nil || len(a.Updates) != 6 {
		t.Fatalf("got %v, %v", a, err)
	}
	i := slices.IndexFunc(a.Findings, func(f finding.Finding) bool { return f.Code == "adapter.ambiguous_dialect" })
	if i < 0 || !strings.Contains(a.Findings[i].Got, `kohya: 2 names ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight")`) || !strings.Contains(a.Findings[i].Got, "comfyui: 2 names") {
		t.Errorf("got %+v", a.Findings)
	}
	// The same module in two dialects, with different factors, is an error.
	specs[2] = "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight [2 4]"
	specs[3] = "diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight [6 2]"
	if _, err := Decode("file", "file", tensors(t, specs...), nil, Options{}); finding.Of(err) == nil || finding.Of(err).Code != "adapter.duplicate_target" {
		t.Errorf("got %v", err)
	}
}

// TestTwice applies once what a file says twice, as those of one Z-Image trainer do.
func TestTwice(t *testing.T) {
	fused := tensors(t, pair("lora_unet_layers_0_attention_qkv", ".lora_down.weight", ".lora_up.weight", 6, 4)...)
	a := fused[0]
	a.Name = "lora_unet_layers_0_attention_to_k.lora_down.weight"
	b := fused[1]
	b.Name, b.Shape, b.Off, b.Size = "lora_unet_layers_0_attention_to_k.lora_up.weight", tensor.Shape{2, 2}, b.Off+16, 16
	got, err := Decode("file", "file", append(fused, a, b), nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(got.Findings); len(got.Updates) != 3 || n == 0 || got.Findings[n-1].Code != "adapter.duplicate_target" {
		t.Errorf("%d updates, %v", len(got.Updates), got.Findings)
	}
}

// TestVocabulary reads flattened names of a family without a table with the base's names.
func TestVocabulary(t *testing.T) {
	base := func(names ...string) func() ([]string, error) { return func() ([]string, error) { return names, nil } }
	specs := append(pair("lora_unet_mix_up_layers_0_to_q", ".lora_down.weight", ".lora_up.weight", 4, 4), "lora_unet_mix_up_layers_0_to_q.alpha")
	a, err := Decode("file", "file", tensors(t, specs...), nil, Options{Base: base("model.diffusion_model.mix_up.layers.0.to_q", "other")})
	if err != nil {
		t.Fatal(err)
	}
	if u := a.Updates[0]; a.Space != naming.HF || u.Module != "model.diffusion_model.mix_up.layers.0.to_q" || u.Scale.Value != 2 {
		t.Errorf("%v in %s, scale %v", u.Module, a.Space, u.Scale)
	}
	f, err := Encode(a, "kohya", EncodeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := names(memory(t, f.Weights)), names(tensors(t, specs...)); got != want {
		t.Errorf("comes back as\n%s\nexpected\n%s", got, want)
	}
	// Other dialects in the original's names take it, and other algorithms than plain LoRA.
	const block = "lora_unet_mix_up_layers_0_conv"
	all := append(slices.Clone(specs), block+".lokr_w1 [2 2]", block+".lokr_w2 [2 3 3 3]", block+".diff_b [4]", "lora_unet_mix_up_norm.w_norm [3]")
	modules := base("model.diffusion_model.mix_up.layers.0.to_q", "model.diffusion_model.mix_up.layers.0.conv", "model.diffusion_model.mix_up.norm")
	if a, err = Decode("file", "file", tensors(t, all...), nil, Options{Base: modules}); err != nil {
		t.Fatal(err)
	}
	if f, err = Encode(a, "comfyui", EncodeOptions{}); err != nil {
		t.Fatal(err)
	}
	for i := range all {
		all[i] = strings.NewReplacer("lora_unet_mix_up_layers_0_", "diffusion_model.mix_up.layers.0.", "lora_unet_mix_up_norm", "diffusion_model.mix_up.norm").Replace(all[i])
	}
	if got, want := names(memory(t, f.Weights)), names(tensors(t, all...)); got != want {
		t.Errorf("becomes\n%s\nexpected\n%s", got, want)
	}
	if _, err := Encode(a, "xlabs", EncodeOptions{}); finding.Of(err) == nil {
		t.Errorf("xlabs: got %v", err)
	}
	for _, c := range []struct {
		names []string
		code  string
	}{
		{[]string{"mix_up.layers.0.to_q", "mix.up_layers.0.to_q"}, "adapter.ambiguous_module"},
		{[]string{"mix_up.layers.0.to_k"}, "adapter.unknown_module"},
	} {
		if _, err := Decode("file", "file", tensors(t, specs...), nil, Options{Base: base(c.names...)}); finding.Of(err) == nil || finding.Of(err).Code != c.code {
			t.Errorf("got %v, expected %s", err, c.code)
		}
	}
}
