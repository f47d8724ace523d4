// Package recipe says which type each tensor of a quantized model gets, and in which order they are
// written: the mixtures (Q4_K_M and the like) of llama.cpp v0.5.0, from names, shapes and a few
// hyper-parameters. It sees no weight and no file.
package recipe

import (
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// A Recipe is a named way to quantize a model: one type, or a mixture around a base type.
type Recipe struct {
	name     string
	base     tensor.DType // Invalid for COPY
	fileType uint32
}

// Name is the recipe's name as the reference prints it: "Q4_K_M".
func (r Recipe) Name() string { return r.name }

// Base is the type that tensors get where no rule says otherwise; Invalid for COPY, which keeps all types.
func (r Recipe) Base() tensor.DType { return r.base }

// Plain reports whether the recipe is one floating-point type for everything.
func (r Recipe) Plain() bool { return r.base.IsFloat() }

// FileType is the value of general.file_type; ok is false where the file keeps its own (COPY) or the
// type has no number there.
func (r Recipe) FileType() (n uint32, ok bool) { return r.fileType, r.fileType != noFileType }

const noFileType = 1<<32 - 1

// The recipes of the reference, in its order, and the plain types it lacks a recipe for. A plain type
// stands for its file type's mixture rules, so output and embedding keep more bits in it, too.
var recipes = []Recipe{
	{"F32", tensor.F32, 0}, {"F16", tensor.F16, 1}, {"BF16", tensor.BF16, 32},
	{"Q1_0", tensor.Q1_0, 40}, {"Q2_0", tensor.Q2_0, 41},
	{"Q4_0", tensor.Q4_0, 2}, {"Q4_1", tensor.Q4_1, 3}, {"Q5_0", tensor.Q5_0, 8}, {"Q5_1", tensor.Q5_1, 9}, {"Q8_0", tensor.Q8_0, 7},
	{"MXFP4_MOE", tensor.MXFP4, 38}, {"MXFP4", tensor.MXFP4, 38}, {"NVFP4", tensor.NVFP4, 39},
	{"IQ1_S", tensor.IQ1_S, 24}, {"IQ1_M", tensor.IQ1_M, 31},
	{"IQ2_XXS", tensor.IQ2_XXS, 19}, {"IQ2_XS", tensor.IQ2_XS, 20}, {"IQ2_S", tensor.IQ2_XS, 28}, {"IQ2_M", tensor.IQ2_S, 29},
	{"IQ3_XXS", tensor.IQ3_XXS, 23}, {"IQ3_XS", tensor.IQ3_S, 22}, {"IQ3_S", tensor.IQ3_S, 26}, {"IQ3_M", tensor.IQ3_S, 27},
	{"IQ4_NL", tensor.IQ4_NL, 25}, {"IQ4_XS", tensor.IQ4_XS, 30},
	{"TQ1_0", tensor.TQ1_0, 36}, {"TQ2_0", tensor.TQ2_0, 37},
	{"Q2_K", tensor.Q2_K, 10}, {"Q2_K_S", tensor.Q2_K, 21},
	{"Q3_K_S", tensor.Q3_K, 11}, {"Q3_K_M", tensor.Q3_K, 12}, {"Q3_K_L", tensor.Q3_K, 13},
	{"Q4_K_S", tensor.Q4_K, 14}, {"Q4_K_M", tensor.Q4_K, 15},
	{"Q5_K_S", tensor.Q5_K, 16}, {"Q5_K_M", tensor.Q5_K, 17},
	{"Q6_K", tensor.Q6_K, 18},
	{"F8_E4M3", tensor.F8E4M3, noFileType}, {"F8_E5M2", tensor.F8E5M2, noFileType},
	{"COPY", tensor.Invalid, noFileType},
}

// aliases are the plain types whose name stands for one of their mixtures.
var aliases = map[string]string{"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

// Of finds a recipe by name, without regard to case. An unknown name is a *finding.Finding,
// quant.unknown_recipe.
func Of(name string) (Recipe, error) {
	upper := strings.ToUpper(name)
	if to, ok := aliases[upper]; ok {
		upper = to
	}
	for _, r := range recipes {
		if r.name == upper {
			return r, nil
		}
	}
	if d, ok := tensor.ParseDType(name); ok {
		for _, r := range recipes {
			if r.Plain() && r.base == d {
				return r, nil
			}
		}
	}
	return Recipe{}, finding.Errorf("quant.unknown_recipe", "", "%q is not a recipe", name).
		Hinted("recipes: " + strings.Join(Names(), " "))
}

// Names lists the recipes.
func Names() []string {
	names := make([]string, len(recipes))
	for i, r := range recipes {
		names[i] = r.name
	}
	return names
}

// ParseType reads the name of a type that a tensor can be stored in, without regard to case. Anything
// else is a *finding.Finding, quant.unknown_type.
func ParseType(name string) (tensor.DType, error) {
	if d, ok := tensor.ParseDType(name); ok && (d.IsBlock() && d != tensor.Q8_1 && d != tensor.Q8_K || d.IsFloat()) {
		return d, nil
	}
	return tensor.Invalid, finding.Errorf("quant.unknown_type", "", "%q is not a type that weights can be stored in", name).
		Hinted("examples: F16, BF16, Q8_0, Q4_K, IQ4_XS")
}
