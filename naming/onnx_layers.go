package naming

// An ONNXLayer is a node that multiplies by a weight.
type ONNXLayer struct {
	Module string // "" where no rule gives a path
	// Tensor is the weight's initializer, the codes where it is quantized.
	Tensor  string
	Node    int
	Out, In int64 // of the float weight
}

// Layers lists the nodes that multiply by a weight, in the order of the nodes. An operator that packs
// several projections with what follows them (Attention) is not among them, nor is one in a subgraph.
func (r *ONNXResolver) Layers() []ONNXLayer {
	var all []ONNXLayer
	for n := range r.graph.Nodes {
		at, ok := r.byNode[n]
		if !ok || r.bindings[at].packed || r.graph.Nodes[n].Inner {
			continue
		}
		b := &r.bindings[at]
		l := ONNXLayer{Module: b.path(), Tensor: r.tensor(at).Name, Node: n, Out: r.outputs(at)}
		if l.Module == "" {
			l.Module = r.known(b.init)
		}
		if node := r.graph.Nodes[n]; node.Op == "MatMulNBits" || node.Op == "MatMulBnb4" {
			l.In = one(node.Ints["K"])
		} else if shape := r.tensor(at).Shape; len(shape) == 2 {
			l.In = shape[0] * shape[1] / max(1, l.Out)
		}
		all = append(all, l)
	}
	return all
}
