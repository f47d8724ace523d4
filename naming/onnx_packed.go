package naming

import "slices"

// The leaf names of separate projections, and of the projection that packs them along the output axis.
var packs = []struct{ parts, whole []string }{
	{[]string{"q_proj", "k_proj", "v_proj"}, []string{"qkv_proj", "qkv", "Wqkv", "c_attn"}},
	{[]string{"query", "key", "value"}, []string{"qkv_proj", "qkv"}},
	{[]string{"to_q", "to_k", "to_v"}, []string{"to_qkv"}},
	{[]string{"gate_proj", "up_proj"}, []string{"gate_up_proj"}},
}

// packed finds a projection in one that packs several, or the other way round.
func (r *ONNXResolver) packed(module, param string) []Place {
	parent, last := leaf(module)
	for _, pack := range packs {
		if part := slices.Index(pack.parts, last); part >= 0 {
			for _, whole := range pack.whole {
				if p := r.slice(join(parent, whole), param, part, len(pack.parts)); p != nil {
					return p
				}
			}
		}
		if slices.Contains(pack.whole, last) {
			if p := r.parts(parent, param, pack.parts); p != nil {
				return p
			}
		}
	}
	return nil
}

// slice places part number part of the n that the module whole packs.
func (r *ONNXResolver) slice(whole, param string, part, n int) []Place {
	at, rule, _ := r.lookup(whole, param)
	if len(r.byInitializer(at)) != 1 {
		return nil
	}
	p, why := r.place(at, rule)
	weight, _, _ := r.lookup(whole, "weight")
	if why != "" || weight == nil {
		return nil
	}
	sizes := r.sizes(weight[0], n)
	if sizes == nil {
		return nil
	}
	for _, s := range sizes[:part] {
		p.RowOffset += s
	}
	p.Rows, p.Rule = sizes[part], p.Rule+", packed"
	return []Place{p}
}

// parts places a packed module in the separate initializers of its parts.
func (r *ONNXResolver) parts(parent, param string, parts []string) []Place {
	var out []Place
	first := int64(0)
	for _, part := range parts {
		at, rule, _ := r.lookup(join(parent, part), param)
		if len(r.byInitializer(at)) != 1 {
			return nil
		}
		p, why := r.place(at, rule)
		n := r.outputs(at[0])
		if why != "" || n <= 0 {
			return nil
		}
		p.First, p.Run, p.Rows = first, n, n
		p.Rule += ", unpacked"
		first += n
		out = append(out, p)
	}
	return out
}

// outputs is the length of a binding's output axis.
func (r *ONNXResolver) outputs(b int) int64 {
	shape := r.tensor(b).Shape
	if n := r.graph.Nodes[r.bindings[b].node]; n.Op == "MatMulNBits" || n.Op == "MatMulBnb4" {
		return one(n.Ints["N"])
	}
	if r.bindings[b].transposed {
		return shape[len(shape)-1]
	}
	return shape[0]
}

// sizes are the output sizes of the n parts that a weight packs: from the Attention operator itself,
// the attention or Split node that takes the product, or, for two parts, halves.
func (r *ONNXResolver) sizes(b, n int) []int64 {
	out := r.outputs(b)
	if n == 2 {
		if out%2 != 0 {
			return nil
		}
		return []int64{out / 2, out / 2}
	}
	node := r.graph.Nodes[r.bindings[b].node]
	if r.bindings[b].packed {
		return three(node.Ints["qkv_hidden_sizes"], out)
	}
	for range 3 { // the product, perhaps a bias, perhaps a reshape
		if len(node.Outputs) == 0 || len(r.uses[node.Outputs[0]]) != 1 {
			return nil
		}
		u := r.uses[node.Outputs[0]][0]
		node = r.graph.Nodes[u.node]
		switch node.Op {
		case "GroupQueryAttention", "MultiHeadAttention", "Attention":
			h, kv := one(node.Ints["num_heads"]), one(node.Ints["kv_num_heads"])
			if kv == 0 {
				kv = h
			}
			if h <= 0 || kv <= 0 || h > out || kv > out || out%(h+2*kv) != 0 {
				return nil
			}
			d := out / (h + 2*kv)
			return []int64{h * d, kv * d, kv * d}
		case "Split":
			split := node.Ints["split"]
			if len(node.Inputs) > 1 {
				i, ok := r.index[node.Inputs[1]]
				if !ok || r.graph.Initializers[i].Ints == nil {
					return nil
				}
				split = r.graph.Initializers[i].Ints
			}
			if len(node.Outputs) != 3 {
				return nil
			}
			return three(split, out)
		case "Add", "Reshape", "Cast", "Identity":
		default:
			return nil
		}
	}
	return nil
}

// three returns the three sizes if they sum to out; without sizes, thirds.
func three(sizes []int64, out int64) []int64 {
	if len(sizes) == 0 && out%3 == 0 {
		return []int64{out / 3, out / 3, out / 3}
	}
	if len(sizes) != 3 {
		return nil
	}
	left := out
	for _, s := range sizes {
		if s <= 0 || s > left {
			return nil
		}
		left -= s
	}
	if left != 0 {
		return nil
	}
	return sizes
}

func one(v []int64) int64 {
	if len(v) != 1 {
		return 0
	}
	return v[0]
}
