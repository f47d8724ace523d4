package diffusion

import (
	"strings"
	"testing"

	"github.com/loratool/loratool/tensor"
)

// FuzzDecode reads lists of names and shapes, one a line, and writes what could be read for every dialect.
// Nothing may panic, and no number of a shape may be trusted before the data are there.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight 2 4\nlora_unet_double_blocks_0_img_attn_qkv.lora_up.weight 6 2\nlora_unet_double_blocks_0_img_attn_qkv.alpha",
		"transformer.transformer_blocks.0.attn.to_q.lora_A.default.weight 1 2\ntransformer.transformer_blocks.0.attn.to_q.lora_B.default.weight 3 1",
		"single_blocks.2.processor.qkv_lora.down.weight 2 4\nsingle_blocks.2.processor.qkv_lora.up.weight 6 2",
		"unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.processor.to_out_lora.down.weight 1 2",
		"text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1.lora_mid.weight 1 1 3 3",
		"lora_te1_text_model_encoder_layers_0_mlp_fc1.hada_w1_a 4 2\nlora_te1_text_model_encoder_layers_0_mlp_fc1.dora_scale 1 4",
		"diffusion_model.double_blocks.0.img_attn.qkv.lokr_w1 2 3\ndiffusion_model.double_blocks.0.img_attn.qkv.lokr_w2 2 2",
		"lora_unet_double_blocks_0_img_attn_qkv.oft_blocks 6 2 2\nlora_unet_double_blocks_0_img_attn_qkv.alpha",
		"lora_transformer_transformer_blocks_0_attn_to_q.oft_R.weight 2 3\nlora_transformer_transformer_blocks_0_attn_to_k.oft_R.weight 2 3",
		"lora_unet_double_blocks_0_img_attn_qkv.a1.weight 4 2\nlora_unet_double_blocks_0_img_attn_qkv.a2.weight 2 4\nlora_unet_double_blocks_0_img_attn_qkv.b1.weight 12 2\nlora_unet_double_blocks_0_img_attn_qkv.b2.weight 2 4",
		"lora_unet_final_layer_adaLN_modulation_1.diff 8 6", "lora_unet_double_blocks_0_img_attn_qkv.weight 4\nlora_unet_double_blocks_0_img_attn_qkv.on_input",
		"transformer.transformer_blocks.0.attn.to_k.hada_w1_a 4 2\ntransformer.transformer_blocks.0.attn.to_k.hada_w1_b 2 4\ntransformer.transformer_blocks.0.attn.to_k.hada_w2_a 4 2\ntransformer.transformer_blocks.0.attn.to_k.hada_w2_b 2 4",
		"double_blocks.0.img_attn.norm.key_norm.scale 2", "lora_unet_.alpha", ".processor..down.weight", "text_encoders..transformer..alpha",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var ts []tensor.Tensor
		var total int64
		for line := range strings.SplitSeq(text, "\n") {
			fields := strings.Fields(line)
			if len(fields) == 0 {
				continue
			}
			shape := tensor.Shape{}
			for _, d := range fields[1:] {
				n := int64(0)
				for _, c := range d {
					if c < '0' || c > '9' || n > 1<<20 {
						return
					}
					n = 10*n + int64(c-'0')
				}
				shape = append(shape, n)
			}
			n, err := shape.Elements()
			if total += n; err != nil || total > 1<<14 {
				return
			}
			ts = append(ts, tensor.Tensor{Spec: tensor.Spec{Name: fields[0], DType: tensor.F32, Shape: shape}, Src: ones{}, Size: 4 * n})
		}
		a, err := Decode("file", "file", ts, nil, Options{AllowUnmatched: true})
		if err != nil {
			return
		}
		for _, d := range Dialects {
			files, err := Encode(a, d.Name, EncodeOptions{})
			if err != nil {
				continue
			}
			for _, w := range files.Weights {
				if _, err := w.Bytes(); err != nil {
					t.Fatalf("%s: %s: %v", d.Name, w.Name, err)
				}
			}
		}
	})
}
