package gguf

import "github.com/loratool/loratool/tensor"

// byID maps ggml's tensor type ids to storage types. Gaps are types that ggml has removed.
var byID = [...]tensor.DType{
	0: tensor.F32, 1: tensor.F16, 2: tensor.Q4_0, 3: tensor.Q4_1, 6: tensor.Q5_0, 7: tensor.Q5_1,
	8: tensor.Q8_0, 9: tensor.Q8_1, 10: tensor.Q2_K, 11: tensor.Q3_K, 12: tensor.Q4_K, 13: tensor.Q5_K,
	14: tensor.Q6_K, 15: tensor.Q8_K, 16: tensor.IQ2_XXS, 17: tensor.IQ2_XS, 18: tensor.IQ3_XXS,
	19: tensor.IQ1_S, 20: tensor.IQ4_NL, 21: tensor.IQ3_S, 22: tensor.IQ2_S, 23: tensor.IQ4_XS,
	24: tensor.I8, 25: tensor.I16, 26: tensor.I32, 27: tensor.I64, 28: tensor.F64, 29: tensor.IQ1_M,
	30: tensor.BF16, 34: tensor.TQ1_0, 35: tensor.TQ2_0, 39: tensor.MXFP4, 40: tensor.NVFP4,
	41: tensor.Q1_0, 42: tensor.Q2_0,
}

// idOf is the inverse of byID; types that GGUF cannot store are missing.
var idOf = func() map[tensor.DType]uint32 {
	m := make(map[tensor.DType]uint32, len(byID))
	for id, d := range byID {
		if d != tensor.Invalid {
			m[d] = uint32(id)
		}
	}
	return m
}()

// Stores reports whether a GGUF tensor can have the type.
func Stores(d tensor.DType) bool {
	_, ok := idOf[d]
	return ok
}
