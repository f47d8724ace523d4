package dialect

import (
	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/diffusion"
	"github.com/loratool/loratool/naming"
)

// pipelineDialects are the dialects of pipelines.
func pipelineDialects() []string {
	var out []string
	for _, d := range diffusion.Dialects {
		out = append(out, d.Name)
	}
	return out
}

// updatesOf makes a low-rank update for each of some modules of diffusers, in a model that is a small part of the
// real one's size.
func updatesOf(name string, modules ...string) *adapter.Adapter {
	family := naming.DiffusionFamilyNamed(name)
	a := &adapter.Adapter{Path: "synthetic", Space: naming.Diffusers, Arch: name}
	for i, path := range modules {
		n, ok := family.Find(path)
		if !ok {
			panic(path)
		}
		m := n.Module
		rows, in := m.Parts[n.Part].Rows, int64(4)
		for _, p := range m.Parts {
			rows = min(rows, p.Rows)
		}
		rows = 6 * m.Parts[n.Part].Rows / rows
		u := adapter.Update{Target: adapter.Target{Module: path, Param: "weight"}, Kind: adapter.LowRank, Layer: adapter.Linear, Rank: 4}
		if len(m.Shape) == 4 {
			in *= m.Shape[2] * m.Shape[3]
			u.Layer = adapter.Conv
		}
		u.Scale = adapter.Scale{Value: 2, Alpha: 8, Rank: 4}
		u.A, u.B = values(int64(2*i+1), 4, in), values(int64(2*i+2), rows, 4)
		a.Updates = append(a.Updates, u)
	}
	return a
}

// fluxModules are one of each kind.
var fluxModules = []string{
	"transformer.transformer_blocks.3.attn.to_q", "transformer.transformer_blocks.3.attn.to_k", "transformer.transformer_blocks.3.attn.to_v",
	"transformer.transformer_blocks.3.attn.add_q_proj", "transformer.transformer_blocks.3.attn.add_k_proj", "transformer.transformer_blocks.3.attn.add_v_proj",
	"transformer.transformer_blocks.3.attn.to_out.0", "transformer.transformer_blocks.3.ff_context.net.2",
	"transformer.single_transformer_blocks.37.attn.to_q", "transformer.single_transformer_blocks.37.attn.to_k", "transformer.single_transformer_blocks.37.attn.to_v",
	"transformer.single_transformer_blocks.37.proj_mlp", "transformer.single_transformer_blocks.37.norm.linear",
	"transformer.norm_out.linear", "transformer.x_embedder", "transformer.time_text_embed.guidance_embedder.linear_2",
	"text_encoder.text_model.encoder.layers.3.self_attn.q_proj", "text_encoder_2.encoder.block.3.layer.1.DenseReluDense.wo",
}

var pipelineFamily = family{
	title:    "Diffusion pipelines",
	dialects: pipelineDialects(),
	features: []feature{
		{"fused, swapped and plain modules of Flux.1, text encoders, ranks and alphas of all kinds", "{}", func() *adapter.Adapter {
			a := updatesOf("flux1", fluxModules...)
			for i := range a.Updates {
				alpha := []float64{16, 3, 0.7}[i%3]
				resize(&a.Updates[i], int64(1+i%5), alpha, alpha/float64(1+i%5))
			}
			return a
		}()},
		{"one rank, one alpha", "{}", updatesOf("flux1", fluxModules...)},
		{"convolutions and text encoders of SDXL", "{}", updatesOf("sdxl",
			"unet.down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k", "unet.down_blocks.1.resnets.0.conv_shortcut", "unet.mid_block.resnets.1.conv2",
			"unet.up_blocks.0.upsamplers.0.conv", "unet.add_embedding.linear_1", "text_encoder.text_model.encoder.layers.11.mlp.fc1",
			"text_encoder_2.text_model.encoder.layers.31.self_attn.v_proj", "text_encoder_2.text_projection")},
		{"the last block of SD3.5", "{}", updatesOf("sd3.5-large", "transformer.transformer_blocks.37.norm1_context.linear", "transformer.transformer_blocks.37.attn.add_q_proj", "transformer.transformer_blocks.37.attn.add_k_proj",
			"transformer.transformer_blocks.37.attn.add_v_proj", "text_encoder_3.encoder.block.0.layer.0.SelfAttention.q")},
		{"grouped heads of Lumina 2", "{}", updatesOf("lumina2", "transformer.layers.25.attn.to_q", "transformer.layers.25.attn.to_k", "transformer.layers.25.attn.to_v", "transformer.layers.25.norm1.linear")},
		{"DoRA", "{}", func() *adapter.Adapter {
			a := updatesOf("flux1", fluxModules...)
			for i := range a.Updates {
				u := &a.Updates[i]
				u.Kind, u.Magnitude = adapter.DoRA, values(int64(i+1000), 1, u.B.Rows)
			}
			return a
		}()},
		{"biases of lora_B", "{}", func() *adapter.Adapter {
			a := updatesOf("flux1", fluxModules...)
			u := a.Updates[6]
			a.Updates = append(a.Updates, adapter.Update{Target: adapter.Target{Module: u.Module, Param: "bias"}, Kind: adapter.Bias, Rank: u.Rank, Scale: u.Scale, Value: values(7, 1, u.B.Rows)})
			return a
		}()},
		{"replaced norms", "{}", func() *adapter.Adapter {
			a := updatesOf("flux1", fluxModules...)
			a.Updates = append(a.Updates, adapter.Update{Target: adapter.Target{Module: "transformer.transformer_blocks.3.attn.norm_q", Param: "weight"}, Kind: adapter.Replace,
				Scale: adapter.Scale{Value: 1}, Value: values(7, 1, 8)})
			return a
		}()},
	},
}
