package hf

import (
	"cmp"
	"slices"
	"strings"

	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/tensor"
)

// indexed lists a folder's tensors in the order in which llama.cpp's converter meets them: file after
// file, each in the order of its names. Tensors that are decoded count as one file.
func indexed(m formats.Model) []*tensor.Tensor {
	all := m.Tensors()
	file := make([]int, len(all))
	if _, stored := m.(*safetensors.Model); stored {
		for i := 1; i < len(all); i++ {
			if file[i] = file[i-1]; all[i].Src != all[i-1].Src {
				file[i]++
			}
		}
	}
	order := make([]int, len(all))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(file[a], file[b]), strings.Compare(all[a].Name, all[b].Name))
	})
	out := make([]*tensor.Tensor, len(all))
	for i, at := range order {
		out[i] = &all[at]
	}
	return out
}

// otherParts are what the names of vision, audio and speech tensors begin with or contain: parts of a
// model that are no part of its language model.
var otherParts = struct{ prefix, inside []string }{
	prefix: []string{"mlp", "vit.", "vpm.", "siglip2.", "conformer.", "merger.", "resampler.", "sound_encoder.", "sound_projection.", "speech_embeddings."},
	inside: []string{"visual.", "vision.", "audio.", "talker.", "vision_", "audio_", "token2wav.", "code2wav.", "projector.", "pre_mm_projector_norm",
		"image_newline", "view_seperator", "patch_embed", "patch_merger.", "patch_merge_mlp.", "model.connector."},
}

// buffers are the endings of tensors that a model class computes for itself.
var buffers = []string{".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq"}

// left reports whether the converter leaves a tensor out.
func left(arch, name string) bool {
	has := func(list []string, f func(s, part string) bool) bool {
		return slices.ContainsFunc(list, func(part string) bool { return f(name, part) })
	}
	if has(otherParts.prefix, strings.HasPrefix) || has(otherParts.inside, strings.Contains) || has(buffers, strings.HasSuffix) {
		return true
	}
	switch arch {
	case "gpt2", "starcoder":
		return strings.HasSuffix(name, ".attn.bias") || strings.HasSuffix(name, ".attn.masked_bias")
	case "bert", "nomic-bert":
		bare := name
		for _, p := range []string{"bert.", "roberta."} {
			bare = strings.TrimPrefix(bare, p)
		}
		return bare == "embeddings.position_ids" || bare == "pooler.dense.weight" || bare == "pooler.dense.bias" ||
			strings.HasPrefix(bare, "cls.predictions") || strings.HasPrefix(bare, "cls.seq_relationship")
	}
	return false
}

// renamed is a tensor's name as the tables of package naming know it.
func renamed(arch, name string) string {
	name = strings.ReplaceAll(name, "language_model.", "")
	if arch == "bert" || arch == "nomic-bert" {
		for old, now := range map[string]string{".gamma": ".weight", ".beta": ".bias"} {
			if s, ok := strings.CutSuffix(name, old); ok {
				return s + now
			}
		}
	}
	return name
}
