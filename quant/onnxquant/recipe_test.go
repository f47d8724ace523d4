package onnxquant

import (
	"strings"
	"testing"

	"github.com/loratool/loratool/finding"
)

func TestParseRecipe(t *testing.T) {
	for in, want := range map[string]string{
		"matmulnbits": "matmulnbits:4:128:asymmetric", "MatMulNBits:8": "matmulnbits:8:128:asymmetric", "matmulnbits:4:32": "matmulnbits:4:32:asymmetric",
		"matmulnbits:2:16:SYMMETRIC": "matmulnbits:2:16:symmetric", "matmulnbits:4:64:sym:accuracy4": "matmulnbits:4:64:symmetric:accuracy4",
		"qdq:int8": "qdq:int8:channel", "QDQ:UINT8:Tensor": "qdq:uint8:tensor", "qdq:int8:64": "qdq:int8:64", "qdq:int4": "qdq:int4:128",
		"qdq:uint4:32": "qdq:uint4:32", "qdq:int4:channel": "qdq:int4:channel", "keep": "keep",
	} {
		r, err := ParseRecipe(in)
		if err != nil || r.String() != want || r.Keeps() != (want == "keep") {
			t.Errorf("%s: %s, %v; want %s", in, r, err, want)
		}
		if again, err := ParseRecipe(r.String()); err != nil || again != r {
			t.Errorf("%s reads as %v, %v", r, again, err)
		}
	}
	for _, in := range []string{
		"", "Q4_K_M", "matmulnbits:3", "matmulnbits:4:48", "matmulnbits:4:32:64", "matmulnbits:4:32:odd", "matmulnbits:4:32:accuracy5", "matmulnbits:4:512",
		"qdq", "qdq:int2", "qdq:int8:7", "qdq:int4:tensor", "qdq:int8:channel:32", "keep:4", "qdq:int8:-32", "matmulnbits:99999999999999999999",
	} {
		r, err := ParseRecipe(in)
		f := finding.Of(err)
		if f == nil || f.Code != "quant.unknown_recipe" || !strings.Contains(f.Hint, "matmulnbits:BITS") || !strings.Contains(f.Hint, "qdq:int8") {
			t.Errorf("%s: %v, %v", in, r, err)
		}
	}
}
