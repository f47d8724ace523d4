package onnxquant

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// A Recipe says how the float weights of a graph are quantized. The zero value keeps them.
type Recipe struct {
	// Op is the operator that reads the codes: "matmulnbits" for MatMulNBits, "qdq" for DequantizeLinear
	// before the node, "" for none.
	Op string
	// Codes is the type of qdq's codes.
	Codes tensor.DType
	// Bits are those of matmulnbits' codes.
	Bits int64
	// Block is the number of elements that share a scale along the inner dimension; 0 without blocks.
	Block int64
	// Whole: one scale for the weight. Otherwise, without blocks, one for each output.
	Whole bool
	// Symmetric: there are no zero points, or all are 0.
	Symmetric bool
	// Accuracy is MatMulNBits' accuracy_level, 0 for none: the type that activations are rounded to at run
	// time (1 float32, 2 float16, 3 bfloat16, 4 int8).
	Accuracy int64
}

// Recipes are the ways to write a recipe.
var Recipes = []string{
	"matmulnbits:BITS:BLOCK[:symmetric|asymmetric][:accuracyN] (BITS 2, 4, 8; BLOCK 16, 32, 64, 128, 256)",
	"qdq:int8|uint8[:channel|tensor|BLOCK]", "qdq:int4|uint4[:channel|BLOCK]",
}

// IsRecipe reports whether a text begins like a recipe for a graph, right or wrong.
func IsRecipe(s string) bool {
	op, _, _ := strings.Cut(strings.ToLower(s), ":")
	return op == "matmulnbits" || op == "qdq"
}

const defaultBlock = 128 // of ONNX Runtime's quantizer, as are 4 bits and zero points

// ParseRecipe reads a recipe, without regard to case; "keep" is the one that changes nothing. Anything else
// is a *finding.Finding, quant.unknown_recipe.
func ParseRecipe(s string) (Recipe, error) {
	words := strings.Split(strings.ToLower(s), ":")
	bad := func(format string, a ...any) (Recipe, error) {
		return Recipe{}, finding.Errorf("quant.unknown_recipe", "", "%q is not a recipe for an ONNX graph: %s", s, fmt.Sprintf(format, a...)).
			Hinted("recipes: keep; " + strings.Join(Recipes, "; "))
	}
	var r Recipe
	switch r.Op = words[0]; r.Op {
	case "keep":
		if len(words) > 1 {
			return bad("%q says nothing", words[1])
		}
		return Recipe{}, nil
	case "matmulnbits":
		r.Bits, r.Block = 4, defaultBlock
		numbers := 0
		for _, w := range words[1:] {
			level, isLevel := strings.CutPrefix(w, "accuracy")
			n, err := strconv.ParseInt(strings.TrimPrefix(w, "accuracy"), 10, 32)
			switch {
			case isLevel && err == nil && n >= 0 && n <= 4:
				r.Accuracy = n
			case isLevel:
				return bad("accuracy level %q is not 0 to 4", level)
			case w == "symmetric" || w == "sym":
				r.Symmetric = true
			case w == "asymmetric" || w == "asym":
				r.Symmetric = false
			case err != nil || numbers == 2:
				return bad("%q says nothing", w)
			case numbers == 0 && n != 2 && n != 4 && n != 8:
				return bad("%d bits are not 2, 4 or 8", n)
			case numbers == 1 && !slices.Contains([]int64{16, 32, 64, 128, 256}, n):
				return bad("a block of %d is not 16, 32, 64, 128 or 256", n)
			case numbers == 0:
				r.Bits, numbers = n, 1
			default:
				r.Block, numbers = n, 2
			}
		}
		return r, nil
	case "qdq":
	default:
		return bad("it does not begin with matmulnbits or qdq")
	}
	if len(words) < 2 {
		return bad("it does not say the type of the codes")
	}
	types := map[string]tensor.DType{"int8": tensor.I8, "uint8": tensor.U8, "int4": tensor.I4, "uint4": tensor.U4}
	var known bool
	if r.Codes, known = types[words[1]]; !known {
		return bad("codes of type %q are not int8, uint8, int4 or uint4", words[1])
	}
	c, _ := codingOf(r.Codes)
	r.Symmetric = c.signed
	if c.bits == 4 {
		r.Block = defaultBlock
	}
	for i, w := range words[2:] {
		n, err := strconv.ParseInt(w, 10, 32)
		switch {
		case i > 0:
			return bad("%q says nothing", w)
		case w == "channel":
			r.Block = 0
		case w == "tensor" && c.bits == 8:
			r.Whole = true
		case w == "tensor":
			return bad("one scale for a weight is too coarse for 4 bits")
		case err != nil || n < 16 || n > 1<<16 || n&(n-1) != 0:
			return bad("%q is neither channel, tensor nor a block: a power of two from 16 up", w)
		default:
			r.Block = n
		}
	}
	return r, nil
}

// Keeps reports whether the recipe leaves weights as they are.
func (r Recipe) Keeps() bool { return r.Op == "" }

// String is the recipe in full, as ParseRecipe reads it.
func (r Recipe) String() string {
	switch r.Op {
	case "":
		return "keep"
	case "matmulnbits":
		s := fmt.Sprintf("matmulnbits:%d:%d:asymmetric", r.Bits, r.Block)
		if r.Symmetric {
			s = strings.TrimSuffix(s, "asymmetric") + "symmetric"
		}
		if r.Accuracy > 0 {
			s += fmt.Sprintf(":accuracy%d", r.Accuracy)
		}
		return s
	}
	name := map[tensor.DType]string{tensor.I8: "int8", tensor.U8: "uint8", tensor.I4: "int4", tensor.U4: "uint4"}[r.Codes]
	switch {
	case r.Whole:
		return "qdq:" + name + ":tensor"
	case r.Block == 0:
		return "qdq:" + name + ":channel"
	}
	return fmt.Sprintf("qdq:%s:%d", name, r.Block)
}

// Product is the weight that a recipe makes of one that a product reads: [out, in] for matmulnbits, which
// turns one that is stored [in, out]; otherwise in the shape that it has, with the outputs along its last
// dimension where turned is true, along its first where it is false. Scales are of type d. The parts bear
// the names that ONNX Runtime's quantizers give them, and hold no data.
func (r Recipe) Product(name string, shape tensor.Shape, turned bool, d tensor.DType) (*Weight, error) {
	n := len(shape)
	out, in := int64(1), int64(1)
	for _, size := range shape {
		in *= size
	}
	if turned {
		out = shape[n-1]
	} else {
		out = shape[0]
	}
	in /= max(1, out)
	part := func(ending string, d tensor.DType, shape ...int64) *tensor.Tensor {
		return unwritten(name+ending, d, shape)
	}
	if r.Op == "matmulnbits" {
		blocks := ceil(in, r.Block)
		w := NBits{K: in, N: out, Bits: r.Bits, Block: r.Block,
			Codes: part(fmt.Sprintf("_Q%d", r.Bits), tensor.U8, out, blocks, r.Block*r.Bits/8), Scale: part("_scales", d, out, blocks)}
		if !r.Symmetric {
			w.Zero = part("_zero_points", tensor.U8, out, ceil(blocks*r.Bits, 8))
		}
		return w.Open()
	}
	axis := int64(0) // of the outputs
	if turned {
		axis = int64(n - 1)
	}
	l := Linear{Axis: axis}
	scales := tensor.Shape{out}
	endings := []string{"_quantized", "_scale", "_zero_point"} // of static quantization
	switch {
	case r.Whole:
		scales = nil
	case r.Block > 0:
		if n != 2 {
			return nil, fault("unsupported", &tensor.Tensor{Spec: tensor.Spec{Name: name}}, "a weight of %d dimensions is not quantized in blocks", n)
		}
		l.Axis, l.Block = 1-axis, r.Block
		scales = slices.Clone(shape)
		scales[l.Axis] = ceil(shape[l.Axis], r.Block)
	}
	c, _ := codingOf(r.Codes)
	if r.Block > 0 {
		endings = []string{fmt.Sprintf("_DQ_Q%d", c.bits), "_DQ_scales", "_DQ_zero_points"} // of blocks
	}
	l.Codes, l.Scale = part(endings[0], r.Codes, shape...), part(endings[1], d, scales...)
	if !r.Symmetric || r.Block == 0 {
		l.Zero = part(endings[2], r.Codes, scales...)
	}
	w, err := l.Open()
	if err == nil {
		w.flatten()
	}
	return w, err
}

// Unwritten is a weight that is stored like w, under the same names, and has no data yet.
func (w *Weight) Unwritten() *Weight {
	u := *w
	u.Parts = nil
	for _, p := range w.Parts {
		u.Parts = append(u.Parts, *unwritten(p.Name, p.DType, p.Shape))
	}
	u.flatten()
	return &u
}

// flatten makes one row of each output of a convolution.
func (w *Weight) flatten() {
	if n := w.rows * w.cols; len(w.Shape) > 2 && !w.grid.each {
		w.rows = w.Shape[0]
		w.cols = n / w.rows
		w.stride = w.cols
	}
}

// Rows is the weight that a recipe makes of an embedding, for GatherBlockQuantized. Only 4 bits in blocks
// are offered, as in ONNX Runtime's quantizer.
func (r Recipe) Rows(name string, shape tensor.Shape, d tensor.DType) (*Weight, error) {
	if r.Op != "matmulnbits" || r.Bits != 4 || len(shape) != 2 {
		return nil, fault("unsupported", &tensor.Tensor{Spec: tensor.Spec{Name: name}}, "an embedding is not quantized by %s", r).
			Expected(r.String(), "matmulnbits:4:BLOCK")
	}
	codes := tensor.U4
	if r.Symmetric {
		codes = tensor.I4
	}
	scales := tensor.Shape{shape[0], ceil(shape[1], r.Block)}
	g := Gathered{Bits: 4, Axis: 1, Block: r.Block, Codes: unwritten(name+"_Q4", codes, shape), Scale: unwritten(name+"_scales", d, scales)}
	if !r.Symmetric {
		g.Zero = unwritten(name+"_zero_points", codes, scales)
	}
	return g.Open()
}

// unwritten is a part without data. One of an impossible size has none, which Open finds out.
func unwritten(name string, d tensor.DType, shape tensor.Shape) *tensor.Tensor {
	t := &tensor.Tensor{Spec: tensor.Spec{Name: name, DType: d, Shape: shape}}
	t.Size, _ = t.Spec.Bytes()
	return t
}
