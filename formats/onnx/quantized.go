package onnx

import (
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/quant/onnxquant"
	"github.com/loratool/loratool/tensor"
)

// A Quantized is a quantized weight of the main graph.
type Quantized struct {
	Node  int   // that decodes it, or computes with it
	Parts []int // indexes into Model.Tensors: codes, scales, zero points where there are any
	// Weight is nil where Err says why it cannot be read, a *finding.Finding.
	Weight *onnxquant.Weight
	Err    error
}

// Quantized lists the weights that the main graph's nodes hold quantized, in the order of the nodes:
// initializers that MatMulNBits, MatMulBnb4, GatherBlockQuantized, DequantizeLinear or an operator with
// 8-bit products (MatMulInteger, DynamicQuantizeMatMul, MatMulIntegerToFloat, QLinearMatMul, QLinearConv, QGemm,
// QAttention) reads as codes. Nothing but shapes is looked at.
func (m *Model) Quantized() []Quantized {
	q := quantizedGraph{m: m, index: map[string]int{}, readers: map[string][]int{}}
	for _, i := range m.graph.Initializers {
		q.index[m.tensors[i].Name] = i
	}
	for k, n := range m.graph.Nodes {
		for _, in := range n.Inputs {
			if in != "" {
				q.readers[in] = append(q.readers[in], k)
			}
		}
	}
	var all []Quantized
	for k, n := range m.graph.Nodes {
		w, found := q.read(n)
		if !found {
			continue
		}
		w.Node = k
		if f := finding.Of(w.Err); f != nil {
			f.File = m.file
		}
		all = append(all, w)
	}
	return all
}

type quantizedGraph struct {
	m       *Model
	index   map[string]int   // initializers
	readers map[string][]int // nodes by the values they read
}

// input is the initializer at an input of a node, or nil.
func (q *quantizedGraph) input(n *Node, k int) *tensor.Tensor {
	if k >= len(n.Inputs) || n.Inputs[k] == "" {
		return nil
	}
	if i, ok := q.index[n.Inputs[k]]; ok {
		return &q.m.tensors[i]
	}
	return nil
}

// given reports whether a node has an input.
func given(n *Node, k int) bool { return k < len(n.Inputs) && n.Inputs[k] != "" }

type opened interface {
	Open() (*onnxquant.Weight, error)
}

// read reads the weight of a node, if it has a quantized one.
func (q *quantizedGraph) read(n *Node) (w Quantized, found bool) {
	var of opened
	var inputs []int // codes, scales, zero points
	microsoft := n.Domain == "com.microsoft"
	switch {
	case n.OpType == "MatMulNBits" && microsoft:
		inputs = []int{1, 2, 3}
		of = onnxquant.NBits{
			K: n.Int("K", 0), N: n.Int("N", 0), Bits: n.Int("bits", 4), Block: n.Int("block_size", 0), Prepacked: n.Int("weight_prepacked", 0),
			Codes: q.input(n, 1), Scale: q.input(n, 2), Zero: q.input(n, 3), Reordered: given(n, 4),
		}
	case n.OpType == "MatMulBnb4" && microsoft:
		inputs = []int{1, 2}
		of = onnxquant.Bnb4{
			K: n.Int("K", 0), N: n.Int("N", 0), Block: n.Int("block_size", 0), NF4: n.Int("quant_type", 0) == 1,
			Codes: q.input(n, 1), Absmax: q.input(n, 2),
		}
	case n.OpType == "GatherBlockQuantized" && microsoft:
		inputs = []int{0, 2, 3}
		of = onnxquant.Gathered{
			Bits: n.Int("bits", 4), Axis: n.Int("quantize_axis", 1), Block: n.Int("block_size", 128),
			Codes: q.input(n, 0), Scale: q.input(n, 2), Zero: q.input(n, 3),
		}
	case n.OpType == "DequantizeLinear" && (microsoft || n.Domain == ""):
		inputs = []int{0, 1, 2}
		of = q.linear(n, inputs, n.Int("axis", 1), n.Int("block_size", 0))
	case n.OpType == "DynamicQuantizeMatMul" && microsoft:
		inputs = []int{1, 2, 3}
		of = q.linear(n, inputs, -1, 0)
	case n.OpType == "MatMulIntegerToFloat" && microsoft:
		inputs = []int{1, 3, 5}
		of = q.linear(n, inputs, -1, 0)
	case n.OpType == "QLinearMatMul":
		inputs = []int{3, 4, 5}
		of = q.linear(n, inputs, -1, 0)
	case n.OpType == "QAttention" && microsoft:
		inputs = []int{1, 4, 7}
		of = q.linear(n, inputs, -1, 0)
	case n.OpType == "QGemm" && microsoft:
		inputs = []int{3, 4, 5}
		l := q.linear(n, inputs, -1, 0)
		if n.Int("transB", 0) != 0 {
			l.Axis = 0
		}
		l.Bound = given(n, 6)
		of = l
	case n.OpType == "QLinearConv":
		inputs = []int{3, 4, 5}
		l := q.linear(n, inputs, 0, 0)
		l.Bound = given(n, 8)
		of = l
	case n.OpType == "MatMulInteger":
		inputs = []int{1, -1, 3}
		l := q.linear(n, []int{1, 1, 3}, -1, 0)
		i, ok := q.factor(n)
		if !ok {
			return w, false
		}
		l.Scale = &q.m.tensors[i]
		of = l
		w.Parts = []int{-1, i, -1}
	default:
		return w, false
	}
	codes := q.input(n, inputs[0])
	if codes == nil || len(codes.Shape) < 2 && n.OpType != "MatMulBnb4" {
		return w, false // not a weight
	}
	parts := []int{}
	for k, in := range inputs {
		switch {
		case in < 0:
			parts = append(parts, w.Parts[k])
		case !given(n, in):
		case q.input(n, in) == nil:
			w.Parts = []int{q.index[n.Inputs[inputs[0]]]}
			w.Err = finding.Errorf("scheme.missing_part", "", "the scales or zero points of a quantized weight are computed").In(codes.Name)
			return w, true
		default:
			parts = append(parts, q.index[n.Inputs[in]])
		}
	}
	w.Parts = parts
	w.Weight, w.Err = of.Open()
	if w.Err != nil {
		w.Weight = nil
	}
	return w, true
}

func (q *quantizedGraph) linear(n *Node, inputs []int, axis, block int64) onnxquant.Linear {
	return onnxquant.Linear{Axis: axis, Block: block, Codes: q.input(n, inputs[0]), Scale: q.input(n, inputs[1]), Zero: q.input(n, inputs[2])}
}

// factor finds the scale of a MatMulInteger's weight: its product is cast to float and multiplied by the
// product of two scales, of which one is an initializer.
func (q *quantizedGraph) factor(n *Node) (int, bool) {
	v := n
	for _, op := range []string{"Cast", "Mul"} {
		if len(v.Outputs) == 0 || len(q.readers[v.Outputs[0]]) != 1 {
			return 0, false
		}
		next := q.m.graph.Nodes[q.readers[v.Outputs[0]][0]]
		if next.OpType != op {
			return 0, false
		}
		if op == "Cast" {
			v = next
			continue
		}
		for _, in := range next.Inputs {
			if in == v.Outputs[0] {
				continue
			}
			if i, ok := q.index[in]; ok {
				return i, true
			}
			return q.scaleIn(in)
		}
	}
	return 0, false
}

// scaleIn is the one initializer among the factors of the product with a name.
func (q *quantizedGraph) scaleIn(product string) (at int, ok bool) {
	for _, n := range q.m.graph.Nodes {
		if n.OpType != "Mul" || len(n.Outputs) != 1 || n.Outputs[0] != product {
			continue
		}
		for _, in := range n.Inputs {
			if i, found := q.index[in]; found {
				if ok {
					return 0, false
				}
				at, ok = i, true
			}
		}
	}
	return at, ok
}
