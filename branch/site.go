package branch

import (
	"fmt"

	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// A site is where a branch goes: it multiplies value x, and is added to the output of a node.
type site struct {
	node  int
	x     string
	dtype tensor.DType
}

type finder struct {
	m        *onnx.Model
	dtypes   map[string]tensor.DType // initializers
	producer map[string]int
	readers  map[string][]int
}

func newFinder(m *onnx.Model) *finder {
	f := &finder{m: m, dtypes: map[string]tensor.DType{}, producer: map[string]int{}, readers: map[string][]int{}}
	g := m.Graph()
	for _, i := range g.Initializers {
		f.dtypes[m.Tensors()[i].Name] = m.Tensors()[i].DType
	}
	for k, n := range g.Nodes {
		for _, v := range n.Inputs {
			f.readers[v] = append(f.readers[v], k)
		}
		for _, v := range n.Outputs {
			f.producer[v] = k
		}
	}
	return f
}

// site finds the place of a layer's branch, or says why there is none.
func (f *finder) site(l naming.ONNXLayer) (s site, why string) {
	n := f.m.Graph().Nodes[l.Node]
	s = site{node: l.Node, x: n.Inputs[0]}
	typed := 1 // the input whose type the layer computes in
	switch n.OpType {
	case "MatMul":
	case "Gemm", "FusedMatMul":
		alpha := float32(1)
		if a := n.Attr("alpha"); a != nil {
			alpha = a.Float
		}
		if alpha != 1 || n.Int("transA", 0) != 0 || n.Int("transBatchA", 0) != 0 || n.Int("transBatchB", 0) != 0 {
			return s, fmt.Sprintf("the %s scales or transposes what it multiplies", n.OpType)
		}
	case "MatMulNBits", "MatMulBnb4", "DynamicQuantizeMatMul":
		typed = 2
	case "MatMulIntegerToFloat":
		typed = 3
		if s.x, why = f.unquantized(s.x); why != "" {
			return s, why
		}
	case "MatMulInteger":
		if s.x, why = f.unquantized(s.x); why != "" {
			return s, why
		}
		if s.node, why = f.rescaled(l.Node); why != "" {
			return s, why
		}
		s.dtype = tensor.F32
	default:
		return s, "it computes by " + n.OpType
	}
	if s.dtype == tensor.Invalid && typed < len(n.Inputs) {
		s.dtype = f.typeOf(n.Inputs[typed], 0)
	}
	switch {
	case s.dtype != tensor.F32 && s.dtype != tensor.F16 && s.dtype != tensor.BF16:
		return s, fmt.Sprintf("it computes in %s", s.dtype)
	case l.In <= 0 || l.Out <= 0:
		return s, "its shape is not known"
	}
	return s, ""
}

// maxChain is how many nodes a type is followed through.
const maxChain = 16

// typeOf is the element type of a value that is made from a constant.
func (f *finder) typeOf(value string, depth int) tensor.DType {
	if d, ok := f.dtypes[value]; ok {
		return d
	}
	k, ok := f.producer[value]
	if !ok || depth > maxChain {
		return tensor.Invalid
	}
	n := f.m.Graph().Nodes[k]
	if len(n.Inputs) == 0 {
		return tensor.Invalid
	}
	switch n.OpType {
	case "Cast":
		return onnx.DType(n.Int("to", 0))
	case "DequantizeLinear":
		if d := onnx.DType(n.Int("output_dtype", 0)); d != tensor.Invalid {
			return d
		}
		if len(n.Inputs) < 2 {
			return tensor.Invalid
		}
		return f.typeOf(n.Inputs[1], depth+1)
	case "Identity", "Transpose", "Reshape":
		return f.typeOf(n.Inputs[0], depth+1)
	}
	return tensor.Invalid
}

// unquantized is the value that was quantized to another.
func (f *finder) unquantized(value string) (string, string) {
	if k, ok := f.producer[value]; ok {
		if n := f.m.Graph().Nodes[k]; n.OpType == "DynamicQuantizeLinear" && len(n.Inputs) > 0 {
			return n.Inputs[0], ""
		}
	}
	return "", "its input is not quantized by DynamicQuantizeLinear, so that the float input is not known"
}

// rescaled is the node that makes floats of a MatMulInteger's product: a Cast, then a Mul with the scales.
func (f *finder) rescaled(node int) (int, string) {
	for _, op := range []string{"Cast", "Mul"} {
		n := f.m.Graph().Nodes[node]
		if len(n.Outputs) == 0 || len(f.readers[n.Outputs[0]]) != 1 {
			return 0, "its product is not made a float by Cast and Mul"
		}
		if node = f.readers[n.Outputs[0]][0]; f.m.Graph().Nodes[node].OpType != op {
			return 0, "its product is not made a float by Cast and Mul"
		}
	}
	return node, ""
}
