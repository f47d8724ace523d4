package naming

import "strings"

// quantizedInputs are the operators that hold a quantized weight themselves: the input with its codes, and
// how many of the following ones, or which, belong to it. The float weight is [out, in] where turned is
// false, [in, out] where it is true.
var quantizedInputs = map[string]struct {
	codes  int
	parts  []int // scales, zero points and the like, of weight and activations
	bias   int   // 0 = none
	turned bool
	as     role
	packed bool // q|k|v
}{
	"MatMulNBits":           {codes: 1, parts: []int{2, 3, 4}, bias: 5},
	"MatMulBnb4":            {codes: 1, parts: []int{2}},
	"MatMulInteger":         {codes: 1, parts: []int{2, 3}, turned: true},
	"MatMulIntegerToFloat":  {codes: 1, parts: []int{2, 3, 4, 5}, bias: 6, turned: true},
	"DynamicQuantizeMatMul": {codes: 1, parts: []int{2, 3}, bias: 4, turned: true},
	"QLinearMatMul":         {codes: 3, parts: []int{1, 2, 4, 5, 6, 7}, turned: true},
	"QGemm":                 {codes: 3, parts: []int{1, 2, 4, 5, 7, 8}, bias: 6, turned: true}, // but for transB
	"QAttention":            {codes: 1, parts: []int{3, 4, 6, 7}, bias: 2, turned: true, packed: true},
	"QLinearConv":           {codes: 3, parts: []int{1, 2, 4, 5, 6, 7}, bias: 8, as: conv},
	"GatherBlockQuantized":  {codes: 0, parts: []int{2, 3}, as: embedding},
	"DequantizeLinear":      {codes: 0, parts: []int{1, 2}, as: unclear},
	"QuantizeLinear":        {codes: 0, parts: []int{1, 2}, as: unclear},
}

// quantizedPart reports whether an input of a node is a scale or a zero point, which is no weight of its own.
func quantizedPart(n ONNXNode, input int) bool {
	q, ok := quantizedInputs[n.Op]
	if !ok {
		return false
	}
	for _, p := range q.parts {
		if p == input {
			return true
		}
	}
	return false
}

// quantizedReads is reads for the operators that hold a quantized weight, whatever the rank of its codes.
func quantizedReads(n ONNXNode, input int, transposed bool) (as role, stored, packed, ok bool) {
	q, known := quantizedInputs[n.Op]
	if !known || input != q.codes || q.as == unclear {
		return 0, false, false, false
	}
	turned := q.turned != (n.Op == "QGemm" && one(n.Ints["transB"]) == 1)
	return q.as, transposed != turned, q.packed, true
}

// quantizedBias reports whether an input of a node that holds a quantized weight is its bias.
func quantizedBias(n ONNXNode, input int) bool {
	q := quantizedInputs[n.Op]
	return q.bias > 0 && input == q.bias
}

// quantizedEndings are what quantizers add to the name of a weight to name its codes.
var quantizedEndings = []string{
	"_DQ_Q4", "_DQ_Q8", "_DQ_Q2", "_Q4", "_Q8", "_Q2", "_Bnb4", "_NF4", "_FP4", "_quantized", "_quant",
}

// floatName is the name of the weight that an initializer holds the codes of.
func floatName(name string) string {
	for _, e := range quantizedEndings {
		if w, ok := strings.CutSuffix(name, e); ok {
			return w
		}
	}
	if w, ok := strings.CutSuffix(name, ".qweight"); ok {
		return w + ".weight"
	}
	return name
}
