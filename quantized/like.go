package quantized

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/quant/scheme"
	"github.com/loratool/loratool/tensor"
)

// endings are what quantizers add to the name of a weight for that of its codes.
var endings = []string{"_DQ_Q2", "_DQ_Q4", "_DQ_Q8", "_Q2", "_Q4", "_Q8", "_quantized"}

// floatName is the name of the weight of some codes, if the float model has it.
func floatName(codes string, has func(string) bool) (string, bool) {
	for _, e := range endings {
		if name, ok := strings.CutSuffix(codes, e); ok && has(name) {
			return name, true
		}
	}
	return "", false
}

// Like returns the view of a float model whose outputs are quantized as another model is, which was made from
// it: for a plan that this one is compared with. Where nothing in it is quantized by the names that recipes
// give, it is the model itself.
func Like(m *onnx.Model, merged *formats.PackedGraph) (formats.Writable, error) {
	g := newGraph(m)
	by := map[string]*site{}
	for _, s := range sites(m) {
		by[m.Tensors()[s.tensor].Name] = s
	}
	for _, q := range merged.AsStored().Quantized() {
		if q.Err != nil {
			continue
		}
		name, ok := floatName(q.Weight.Parts[0].Name, func(n string) bool { return by[n] != nil })
		if !ok || g.weights[name] != nil || merged.Weight(q.Weight.Parts[0].Name) == nil {
			continue
		}
		op := merged.AsStored().Graph().Nodes[q.Node].OpType
		s, shape := by[name], m.Tensors()[by[name].tensor].Shape
		turned := op == "MatMulNBits" && s.turned
		want := shape
		if turned {
			want = tensor.Shape{shape[1], shape[0]}
		}
		if !q.Weight.Shape.Equal(want) {
			continue // something else, which the comparison reports
		}
		if err := g.quantize(s, q.Weight.Unwritten(), turned, false); err != nil {
			return nil, err
		}
	}
	if len(g.changes) == 0 {
		return m, nil
	}
	return g, nil
}

// Named is a quantized model whose weights bear the names that they have in the float model: for the comparison
// with a plan. has reports whether that model has a tensor.
func Named(merged *formats.PackedGraph, has func(string) bool) merge.Base {
	v := &named{PackedGraph: merged, weights: map[string]*scheme.Weight{}}
	quantized := map[string]bool{}
	for _, t := range merged.Tensors() {
		if merged.Weight(t.Name) != nil {
			if name, ok := floatName(t.Name, has); ok {
				quantized[name] = true
			}
		}
	}
	inserted := decoders(merged, has)
	for _, t := range merged.Tensors() {
		w := merged.Weight(t.Name)
		t.Name = renumbered(t.Name, inserted)
		if name, ok := floatName(t.Name, has); ok && w != nil {
			t.Name = name
		} else if quantized[t.Name] {
			continue // kept for those who still read the floats
		}
		if w != nil {
			v.weights[t.Name] = w
		}
		v.tensors = append(v.tensors, t)
	}
	return v
}

// decoders are the nodes, by index, that were put in to decode weights.
func decoders(merged *formats.PackedGraph, has func(string) bool) (nodes []int) {
	for _, q := range merged.AsStored().Quantized() {
		codes := merged.AsStored().Tensors()[q.Parts[0]].Name
		if _, ok := floatName(codes, has); ok && merged.AsStored().Graph().Nodes[q.Node].OpType == "DequantizeLinear" {
			nodes = append(nodes, q.Node)
		}
	}
	return nodes
}

// renumbered is the name of a tensor in an attribute of a node, node[7].value, by the node's index without the
// inserted ones.
func renumbered(name string, inserted []int) string {
	rest, ok := strings.CutPrefix(name, "node[")
	number, rest, closed := strings.Cut(rest, "]")
	k, err := strconv.Atoi(number)
	if !ok || !closed || err != nil {
		return name
	}
	before := 0
	for _, i := range inserted {
		if i < k {
			before++
		}
	}
	return fmt.Sprintf("node[%d]%s", k-before, rest)
}

type named struct {
	*formats.PackedGraph
	tensors []tensor.Tensor
	weights map[string]*scheme.Weight
}

func (v *named) Tensors() []tensor.Tensor          { return v.tensors }
func (v *named) Weight(name string) *scheme.Weight { return v.weights[name] }
