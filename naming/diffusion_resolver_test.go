package naming

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNewDiffusion(t *testing.T) {
	flux := map[string][]int64{
		"double_blocks.0.img_attn.qkv.weight": {12, 4}, "double_blocks.0.img_attn.qkv.bias": {12}, "double_blocks.0.img_attn.norm.query_norm.scale": {2},
		"single_blocks.1.linear1.weight": {28, 4}, "final_layer.adaLN_modulation.1.weight": {8, 4}, "img_in.weight": {4, 64},
	}
	split := map[string][]int64{
		"transformer_blocks.0.attn.to_q.weight": {4, 4}, "transformer_blocks.0.attn.to_k.weight": {4, 4}, "transformer_blocks.0.attn.to_v.weight": {4, 4},
		"norm_out.linear.weight": {8, 4},
	}
	sdxl := map[string][]int64{
		"model.diffusion_model.input_blocks.4.1.proj_in.weight": {4, 4}, "conditioner.embedders.1.model.text_projection": {6, 6},
		"conditioner.embedders.1.model.transformer.resblocks.3.attn.in_proj_weight": {12, 4}, "conditioner.embedders.1.model.transformer.resblocks.3.attn.in_proj_bias": {12},
	}
	clip := map[string][]int64{"text_model.encoder.layers.0.mlp.fc1.weight": {5120, 1280}}
	pipeline := map[string][]int64{"unet.conv_in.weight": {4, 4, 3, 3}, "text_encoder.text_model.encoder.layers.0.mlp.fc1.weight": {4, 4}}
	for _, c := range []struct {
		family, folder string
		stored         map[string][]int64
		module, param  string
		want           []Place
	}{
		{"flux1", "", flux, "transformer.transformer_blocks.0.attn.to_k", "weight", []Place{{Tensor: "double_blocks.0.img_attn.qkv.weight", RowOffset: 4, Rows: 4, Rule: "original name"}}},
		{"flux1", "", flux, "transformer.transformer_blocks.0.attn.to_v", "bias", []Place{{Tensor: "double_blocks.0.img_attn.qkv.bias", RowOffset: 8, Rows: 4, Rule: "original name"}}},
		{"flux1", "", flux, "transformer.transformer_blocks.0.attn.norm_q", "weight", []Place{{Tensor: "double_blocks.0.img_attn.norm.query_norm.scale", Rule: "original name"}}},
		{"flux1", "", flux, "transformer.single_transformer_blocks.1.proj_mlp", "weight", []Place{{Tensor: "single_blocks.1.linear1.weight", RowOffset: 12, Rows: 16, Rule: "original name"}}},
		{"flux1", "", flux, "transformer.norm_out.linear", "weight", []Place{{Tensor: "final_layer.adaLN_modulation.1.weight", Rows: 8, Run: 4, First: 4, Step: -4, Rule: "original name"}}},
		{"flux1", "", flux, "transformer.final_layer.adaLN_modulation.1", "weight", []Place{{Tensor: "final_layer.adaLN_modulation.1.weight", Rule: "name"}}},
		{"flux1", "transformer", split, "transformer.transformer_blocks.0.attn.to_k", "weight", []Place{{Tensor: "transformer_blocks.0.attn.to_k.weight", Rule: "name"}}},
		{"flux1", "transformer", split, "transformer.double_blocks.0.img_attn.qkv", "weight", []Place{
			{Tensor: "transformer_blocks.0.attn.to_q.weight", Rows: 4, Run: 4, Step: 4, Rule: "diffusers name"},
			{Tensor: "transformer_blocks.0.attn.to_k.weight", Rows: 4, Run: 4, First: 4, Step: 4, Rule: "diffusers name"},
			{Tensor: "transformer_blocks.0.attn.to_v.weight", Rows: 4, Run: 4, First: 8, Step: 4, Rule: "diffusers name"},
		}},
		{"flux1", "", split, "transformer.final_layer.adaLN_modulation.1", "weight", []Place{{Tensor: "norm_out.linear.weight", Rows: 8, Run: 4, First: 4, Step: -4, Rule: "diffusers name"}}},
		{"sdxl", "", sdxl, "unet.down_blocks.1.attentions.0.proj_in", "weight", []Place{{Tensor: "model.diffusion_model.input_blocks.4.1.proj_in.weight", Rule: "original name"}}},
		{"sdxl", "", sdxl, "text_encoder_2.text_model.encoder.layers.3.self_attn.v_proj", "bias", []Place{{Tensor: "conditioner.embedders.1.model.transformer.resblocks.3.attn.in_proj_bias", RowOffset: 8, Rows: 4, Rule: "original name"}}},
		{"sdxl", "", sdxl, "text_encoder_2.text_projection", "weight", []Place{{Tensor: "conditioner.embedders.1.model.text_projection", Transposed: true, Rule: "original name"}}},
		{"sdxl", "", sdxl, "text_encoder.text_model.encoder.layers.3.self_attn.v_proj", "weight", nil},
		{"sdxl", "", clip, "text_encoder_2.text_model.encoder.layers.0.mlp.fc1", "weight", []Place{{Tensor: "text_model.encoder.layers.0.mlp.fc1.weight", Rule: "name"}}},
		{"sdxl", "", clip, "text_encoder.text_model.encoder.layers.0.mlp.fc1", "weight", nil},
		{"sdxl", "text_encoder", clip, "text_encoder_2.text_model.encoder.layers.0.mlp.fc1", "weight", nil},
		{"sd15", "", pipeline, "unet.conv_in", "weight", []Place{{Tensor: "unet.conv_in.weight", Rule: "name"}}},
		{"sd15", "", pipeline, "text_encoder.text_model.encoder.layers.0.mlp.fc1", "weight", []Place{{Tensor: "text_encoder.text_model.encoder.layers.0.mlp.fc1.weight", Rule: "name"}}},
		{"sd15", "", pipeline, "transformer.conv_in", "weight", nil},
	} {
		var names []string
		for n := range c.stored {
			names = append(names, n)
		}
		r := NewDiffusion(DiffusionFamilyNamed(c.family), names, func(n string) []int64 { return c.stored[n] }, c.folder)
		got, err := r.Find(c.module, c.param)
		var missing *NotFound
		if c.want == nil {
			if !errors.As(err, &missing) || !strings.Contains(err.Error(), c.module) {
				t.Errorf("%s: got %v, %v, expected none", c.module, got, err)
			}
			continue
		}
		if d := cmp.Diff(c.want, got); err != nil || d != "" {
			t.Errorf("%s: %v\n%s", c.module, err, d)
		}
	}
}

// TestSwap applies the place of a swapped module to rows.
func TestSwap(t *testing.T) {
	p := Place{}
	swap(&p, 6)
	var got []int64
	for i := range int64(6) {
		got = append(got, p.Canonical(i, 6))
	}
	if d := cmp.Diff([]int64{3, 4, 5, 0, 1, 2}, got); d != "" {
		t.Error(d)
	}
}
