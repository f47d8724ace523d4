package merge

import (
	"slices"
	"strings"

	"github.com/loratool/loratool/tensor"
)

// isFloat8 reports whether a type has floats of 8 bits, which are cast one by one, without a scale.
func isFloat8(t tensor.DType) bool { return t.IsFloat() && t.BlockBytes() == 1 }

// staysWide reports whether a tensor keeps its type where the others become floats of 8 bits: vectors (norms,
// biases, modulation), whose few values scale or shift whole channels; tables and embedders of positions,
// which diffusers leaves out of its casting for storage, too; and the VAE, which no program runs in 8 bits.
// All else is cast, text encoders and their embeddings with it.
func staysWide(name string, shape tensor.Shape) bool {
	if len(shape) < 2 {
		return true
	}
	parts := strings.Split(name, ".")
	switch parts[0] {
	case "vae", "first_stage_model":
		return true
	}
	return slices.ContainsFunc(parts, func(s string) bool {
		return s == "pos_embed" || s == "position_embedding" || s == "positional_embedding"
	})
}
