package naming

import "strings"

// longestChain is how many nodes that only rearrange a weight are followed; exporters write at most a
// Cast, a Reshape and a Transpose.
const longestChain = 16

// trace follows an initializer through nodes that only rearrange it and binds it where it is used. seen
// are the nodes already passed.
func (r *ONNXResolver) trace(init int, value string, transposed bool, seen map[int]bool, depth int, reader *Reader) {
	shape := r.graph.Initializers[init].Shape
	for _, u := range r.uses[value] {
		n := r.graph.Nodes[u.node]
		if quantizedPart(n, u.input) {
			continue
		}
		first := reader
		if first == nil {
			first = &Reader{u.node, u.input}
		}
		if u.input == 0 && n.Domain == "" && len(n.Outputs) == 1 && !seen[u.node] && depth < longestChain {
			turned, ok := rearranges(n, len(shape))
			if ok {
				seen[u.node] = true
				r.trace(init, n.Outputs[0], transposed != turned, seen, depth+1, first)
				continue
			}
		}
		b := binding{init: init, node: u.node, reader: *first}
		b.role, b.transposed, b.packed = reads(n, u.input, len(shape), transposed)
		if b.role == vector {
			b.added = isAdded(n, u.input)
			b.bias = b.added || strings.HasSuffix(r.graph.Initializers[init].Name, ".bias")
		}
		r.byInit[init] = append(r.byInit[init], len(r.bindings))
		if b.role == linear {
			r.byNode[u.node] = len(r.bindings)
		}
		r.bindings = append(r.bindings, b)
	}
}

// rearranges reports whether a node passes its first input on unchanged, or transposed, as a weight.
func rearranges(n ONNXNode, rank int) (transposed, ok bool) {
	switch n.Op {
	case "Identity", "Cast", "DequantizeLinear":
		return false, true
	case "Reshape":
		// A kernel that is reshaped becomes another kind of weight.
		return false, rank <= 2
	case "Transpose":
		p := n.Ints["perm"]
		return true, rank == 2 && (len(p) == 0 || len(p) == 2 && p[0] == 1 && p[1] == 0)
	}
	return false, false
}

// reads says what a node does with a constant of the given rank at one of its inputs, and whether the
// constant, as stored, is then [in, out].
func reads(n ONNXNode, input, rank int, transposed bool) (as role, stored, packed bool) {
	if as, stored, packed, ok := quantizedReads(n, input, transposed); ok {
		return as, stored, packed
	}
	switch {
	case rank == 1:
		return vector, false, false
	case rank == 2 && input == 1 && (n.Op == "MatMul" && n.Domain == "" || n.Op == "FusedMatMul"):
		return linear, !transposed != (one(n.Ints["transB"]) == 1), false
	case rank == 2 && input == 1 && n.Op == "Gemm":
		return linear, !transposed != (one(n.Ints["transB"]) == 1), false
	case rank == 2 && input == 1 && n.Op == "Attention" && n.Domain == "com.microsoft":
		return linear, !transposed, true
	case rank == 2 && input == 0 && n.Op == "Gather" && one(n.Ints["axis"]) == 0:
		return embedding, transposed, false
	case rank == 2 && n.Op == "EmbedLayerNormalization" && input >= 2 && input <= 4:
		return embedding, transposed, false
	case rank > 2 && input == 1 && n.Op == "Conv" && !transposed:
		return conv, false, false
	}
	return unclear, false, false
}

// isAdded reports whether a node adds the vector at one of its inputs to what may be a product.
func isAdded(n ONNXNode, input int) bool {
	if quantizedBias(n, input) {
		return true
	}
	switch n.Op {
	case "Add":
		return true
	case "Gemm", "Conv", "Attention":
		return input == 2
	case "FastGelu", "BiasGelu":
		return input == 1
	case "SkipLayerNormalization":
		return input == 4
	case "SkipSimplifiedLayerNormalization":
		return input == 3
	}
	return false
}

// name gives every binding the paths that the rules find, and indexes them.
func (r *ONNXResolver) name() {
	folded := map[string]string{}
	for _, v := range r.graph.Values {
		if p := foldedFrom(v.Metadata); p != "" {
			folded[v.Name] = p
		}
	}
	for i := range r.bindings {
		b := &r.bindings[i]
		t, n := &r.graph.Initializers[b.init], &r.graph.Nodes[b.node]
		b.paths[byName] = initializerPath(t.Name, b.bias)
		if b.role != vector || b.bias {
			b.paths[byNodePath] = nodePath(n.Name)
			if b.paths[byMetadata] = foldedFrom(t.Metadata); b.paths[byMetadata] == "" {
				b.paths[byMetadata] = folded[t.Name]
			}
			if b.paths[byMetadata] == "" {
				b.paths[byMetadata] = scope(n.Metadata)
			}
		}
	}
	r.shareNames()
	for rule := range rules {
		r.exact[rule], r.loose[rule] = map[string][]int{}, map[string][]int{}
		for i, b := range r.bindings {
			if p := b.paths[rule]; p != "" {
				r.exact[rule][p] = append(r.exact[rule][p], i)
				r.loose[rule][key(p)] = append(r.loose[rule][key(p)], i)
			}
		}
	}
}

// biases binds the vectors that an Add (or a fused operator) adds to a product to the product's node.
func (r *ONNXResolver) biases() {
	for i := range r.bindings {
		b := &r.bindings[i]
		if !b.added {
			continue
		}
		if at, ok := r.product(b.node); ok {
			b.node = r.bindings[at].node
		}
	}
}

// product finds the weight's binding whose product a node adds something to.
func (r *ONNXResolver) product(node int) (int, bool) {
	if at, ok := r.byNode[node]; ok {
		return at, true // Gemm, Attention
	}
	n := r.graph.Nodes[node]
	found, hits := 0, 0
	for k, v := range n.Inputs {
		if k > 1 {
			break
		}
		for range 3 { // perhaps a Cast or a Reshape between
			p, ok := r.producer[v]
			if !ok {
				break
			}
			if at, ok := r.byNode[p]; ok {
				found = at
				hits++
				break
			}
			from := r.graph.Nodes[p]
			if len(from.Inputs) == 0 || from.Op != "Cast" && from.Op != "Reshape" && from.Op != "Identity" {
				break
			}
			v = from.Inputs[0]
		}
	}
	return found, hits == 1
}

// shareNames names a weight after its bias, and a bias after its weight.
func (r *ONNXResolver) shareNames() {
	for i := range r.bindings {
		b := &r.bindings[i]
		at, ok := r.byNode[b.node]
		if !ok || !b.added {
			continue
		}
		w := &r.bindings[at]
		if w.path() == "" {
			w.paths[byBias] = b.paths[byName]
		}
		b.paths[byBias] = w.path()
	}
}

// The endings of initializer names after the module's path, longest first.
var (
	weightEndings = []string{".MatMul.weight_transposed", ".MatMul.weight", ".Gemm.weight", ".weight_transposed", ".weight_resize", ".weight"}
	biasEndings   = []string{".MatMul.bias", ".Gemm.bias", ".Add.bias", ".bias_resize", ".bias"}
)

// initializerPath is the module path in an initializer's name.
func initializerPath(name string, bias bool) string {
	endings := weightEndings
	if bias {
		endings = biasEndings
	} else {
		name = floatName(name)
	}
	for _, e := range endings {
		if p, ok := strings.CutSuffix(name, e); ok {
			return p
		}
	}
	return ""
}

// nodePath is the module path in a node name such as /model/layers.0/self_attn/q_proj/MatMul.
func nodePath(name string) string {
	if !strings.HasPrefix(name, "/") {
		return ""
	}
	i := strings.LastIndexByte(name, '/')
	return strings.ReplaceAll(strings.Trim(name[:i], "/"), "/", ".")
}

// scope is the module path that torch.onnx recorded for a node: the last but one of the scopes from the
// model down to the operation.
func scope(metadata map[string]string) string {
	if s := literals(metadata["pkg.torch.onnx.name_scopes"]); len(s) > 1 {
		return s[len(s)-2]
	}
	// Older exporters join "path: class" pairs with slashes.
	s := strings.Split(metadata["namespace"], "/")
	if len(s) > 1 {
		path, _, _ := strings.Cut(s[len(s)-2], ": ")
		return path
	}
	return ""
}

// foldedFrom is the module path of the one parameter that an optimizer computed a constant from.
func foldedFrom(metadata map[string]string) string {
	path := ""
	for _, name := range literals(metadata["pkg.onnxscript.optimizer.folded_from"]) {
		p := initializerPath(name, false)
		if p == "" {
			p = initializerPath(name, true)
		}
		if p != "" && path != "" && p != path {
			return ""
		}
		if p != "" {
			path = p
		}
	}
	return path
}

// literals reads a Python list of string literals, as repr prints it; nil for anything else.
func literals(s string) []string {
	s = strings.TrimSpace(s)
	if len(s) < 2 || s[0] != '[' || s[len(s)-1] != ']' {
		return nil
	}
	var out []string
	for i := 1; i < len(s)-1; {
		switch q := s[i]; q {
		case ' ', ',':
			i++
		case '\'', '"':
			var b strings.Builder
			for i++; i < len(s)-1 && s[i] != q; i++ {
				if s[i] == '\\' {
					i++
				}
				b.WriteByte(s[i])
			}
			if i >= len(s)-1 {
				return nil
			}
			out = append(out, b.String())
			i++
		default:
			return nil
		}
	}
	return out
}
