package hf

import (
	"regexp"
	"slices"
	"strings"

	"github.com/loratool/loratool/tensor"
)

// fileTypes are the types that llama.cpp's converter writes matrices in, and its numbers (general.file_type)
// of files that have them.
var fileTypes = map[tensor.DType]uint32{
	tensor.F32: 0, tensor.F16: 1, tensor.BF16: 32, tensor.Q8_0: 7, tensor.TQ1_0: 36, tensor.TQ2_0: 37,
}

// mxfp4File is the file type of folders whose experts are MXFP4, in the plain float types.
const mxfp4File = 38

// Converts reports whether a plain conversion can have the type.
func Converts(d tensor.DType) bool {
	_, ok := fileTypes[d]
	return ok
}

// auto is the type that the folder's first 16-bit matrix has, F16 if there is none.
func auto(folder []*tensor.Tensor) tensor.DType {
	for _, t := range folder {
		if len(t.Shape) >= 2 && (t.DType == tensor.BF16 || t.DType == tensor.F16) {
			return t.DType
		}
	}
	return tensor.F16
}

// kept are the matrices that stay F32, by name: llama.cpp computes with them in float32, or they are
// small and matter.
var kept = regexp.MustCompile(`^(blk\.\d+\.(ffn_gate_inp|ffn_gate_inp_shexp|ssm_conv1d[^.]*|shortconv\.conv|time_mix_(first|w1|w2|decay_w1|decay_w2|lerp_fused)|indexer\.proj|altup_correct_coef|altup_predict_coef)|position_embd|token_types)\.weight$`)

// ternaryKept are the matrices that stay F16 where the others become ternary.
var ternaryKept = regexp.MustCompile(`^(token_embd|per_layer_token_embd|output|altup_router|blk\.\d+\.laurel_[lr])\.weight$`)

// stays32 reports whether a tensor is F32 whatever the type of the file's matrices.
func stays32(name string, shape tensor.Shape) bool {
	return len(shape) <= 1 || strings.HasSuffix(name, "_norm.weight") || !strings.HasSuffix(name, ".weight") || kept.MatchString(name)
}

// TypeOf is the type in which llama.cpp's converter stores a tensor of a file whose matrices are of
// type d. Packed experts stay as they are.
func TypeOf(s tensor.Spec, d tensor.DType) tensor.DType {
	switch {
	case s.DType == tensor.MXFP4:
		return s.DType
	case stays32(s.Name, s.Shape):
		return tensor.F32
	case (d == tensor.TQ1_0 || d == tensor.TQ2_0) && ternaryKept.MatchString(s.Name):
		return tensor.F16
	case s.Shape[len(s.Shape)-1]%int64(d.BlockLen()) != 0:
		return tensor.F16
	}
	return d
}

// fileType is the general.file_type of a conversion.
func fileType(specs []tensor.Tensor, d tensor.DType) uint32 {
	packed := slices.ContainsFunc(specs, func(t tensor.Tensor) bool { return t.DType == tensor.MXFP4 })
	if packed && !d.IsBlock() {
		return mxfp4File
	}
	return fileTypes[d]
}
