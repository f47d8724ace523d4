package quantized

import (
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/tensor"
)

// A site is a float initializer of the main graph and the nodes that multiply by it or gather its rows.
type site struct {
	tensor   int
	products []int // nodes, in their order
	gathers  []int
	turned   bool // products read it [in, out]
	mixed    bool // in both ways
	conv     bool
	packable bool // MatMulNBits can stand for each of the products
	others   []use
	inner    bool // subgraphs read it, or it is an output of the graph
}

// A use is an input of a node of the main graph.
type use struct{ node, input int }

// sites finds the weights of a model, in the order of the tensors.
func sites(m *onnx.Model) []*site {
	g := m.Graph()
	by := map[string]*site{}
	var all []*site
	for _, i := range g.Initializers {
		t := &m.Tensors()[i]
		n, err := t.Shape.Elements()
		if err != nil || n == 0 || len(t.Shape) < 2 || t.DType != tensor.F32 && t.DType != tensor.F16 && t.DType != tensor.BF16 {
			continue
		}
		s := &site{tensor: i, packable: true}
		all, by[t.Name] = append(all, s), s
	}
	vectors := biases(m)
	for k, n := range g.Nodes {
		for i, in := range n.Inputs {
			if s := by[in]; s != nil {
				s.read(n, k, i, len(m.Tensors()[s.tensor].Shape), vectors)
			}
		}
		for _, a := range n.Attrs {
			for _, sub := range a.Graphs {
				readInside(sub, by)
			}
		}
	}
	for _, v := range g.Outputs {
		if s := by[v.Name]; s != nil {
			s.inner = true
		}
	}
	return all
}

// read counts an input of a node.
func (s *site) read(n *onnx.Node, node, input, rank int, vectors map[string]int64) {
	turned, product, packable := false, false, false
	switch {
	case n.Domain != "" || len(n.Outputs) != 1 || n.Inputs[0] == "":
	case n.OpType == "MatMul" && input == 1 && rank == 2:
		turned, product, packable = true, true, true
	case n.OpType == "Gemm" && input == 1 && rank == 2:
		turned, product = n.Int("transB", 0) == 0, true
		packable = plainGemm(n, vectors)
	case n.OpType == "Conv" && input == 1 && rank > 2:
		product, s.conv = true, true
	case n.OpType == "Gather" && input == 0 && len(n.Inputs) == 2 && rank == 2 && n.Int("axis", 0) == 0:
		s.gathers = append(s.gathers, node)
		return
	}
	if !product {
		s.others = append(s.others, use{node, input})
		return
	}
	s.mixed = s.mixed || len(s.products) > 0 && turned != s.turned
	s.products, s.turned, s.packable = append(s.products, node), turned, s.packable && packable
}

// plainGemm reports whether a Gemm is a product and at most a bias.
func plainGemm(n *onnx.Node, vectors map[string]int64) bool {
	for _, name := range []string{"alpha", "beta"} {
		if a := n.Attr(name); a != nil && a.Float != 1 {
			return false
		}
	}
	if n.Int("transA", 0) != 0 {
		return false
	}
	if len(n.Inputs) < 3 || n.Inputs[2] == "" {
		return true
	}
	_, isVector := vectors[n.Inputs[2]]
	return isVector
}

// biases are the float initializers of one dimension, and their sizes.
func biases(m *onnx.Model) map[string]int64 {
	v := map[string]int64{}
	for _, i := range m.Graph().Initializers {
		if t := &m.Tensors()[i]; len(t.Shape) == 1 && t.Shape[0] > 1 && t.DType.IsFloat() {
			v[t.Name] = t.Shape[0]
		}
	}
	return v
}

// readInside counts what the nodes of a subgraph read.
func readInside(g *onnx.Graph, by map[string]*site) {
	for _, n := range g.Nodes {
		for _, in := range n.Inputs {
			if s := by[in]; s != nil {
				s.inner = true
			}
		}
		for _, a := range n.Attrs {
			for _, sub := range a.Graphs {
				readInside(sub, by)
			}
		}
	}
	for _, v := range g.Outputs {
		if s := by[v.Name]; s != nil {
			s.inner = true
		}
	}
}
