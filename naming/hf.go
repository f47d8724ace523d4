package naming

import (
	"fmt"
	"strings"
)

// hf resolves module paths against the tensor names of a Hugging Face model.
type hf struct {
	names    []string
	shape    func(string) []int64
	stored   map[string]bool
	tails    map[string][]int // name without drifting prefix → indexes into names
	families map[string]bool  // prefix and first component of the tail, as stored
	near     nameIndex
}

// NewHF returns the resolver for a model folder or state dict whose tensors have these names. A
// parameter is stored under module.param; where it is not, the name is tried with other leading
// components (model., base_model.model., language_model., transformer. …), and taken when exactly one
// stored tensor fits and the base has no such family under the module's own prefix. Experts are found
// whether the base stores each on its own or all in one stack (experts.gate_up_proj [experts,
// 2·ffn, in], experts.down_proj), and shape, which may be nil, tells a tensor's dimensions for that.
//
// The resolver does not know whether a weight is stored [in, out]: its places say ByShape, and see
// IsConv1D for square ones.
func NewHF(names []string, shape func(name string) []int64) Resolver {
	r := &hf{
		names: names, shape: shape,
		stored:   make(map[string]bool, len(names)),
		tails:    make(map[string][]int, len(names)),
		families: make(map[string]bool),
	}
	if shape == nil {
		r.shape = func(string) []int64 { return nil }
	}
	for i, n := range names {
		if r.stored[n] {
			continue
		}
		r.stored[n] = true
		prefix, tail := split(n, 2)
		r.tails[tail] = append(r.tails[tail], i)
		r.families[prefix+"\x00"+first(tail)] = true
	}
	r.near.names = func() []string { return names }
	return r
}

func (r *hf) Find(module, param string) ([]Place, error) {
	name := join(module, param)
	stored, rule, several := r.lookup(name)
	if stored != "" {
		return []Place{{Tensor: stored, Rule: rule, ByShape: param == "weight"}}, nil
	}
	if p := r.experts(module, param); p != nil {
		return p, nil
	}
	e := &NotFound{Module: module, Param: param}
	switch {
	case several != nil:
		e.Nearest, e.Reason = several[:min(3, len(several))], "more than one stored tensor fits"
	case isHead(module):
		e.Reason = tied
		fallthrough
	default:
		e.Nearest = r.near.nearest(name)
	}
	return nil, e
}

const tied = "the output layer is tied to the token embedding and not stored by itself"

// isHead reports whether a module is the output layer over the vocabulary.
func isHead(module string) bool {
	_, last := leaf(module)
	return last == "lm_head" || last == "embed_out"
}

// lookup finds the stored name for name, or the stored names that fit equally well.
func (r *hf) lookup(name string) (stored, rule string, several []string) {
	if r.stored[name] {
		return name, "name", nil
	}
	prefix, tail := split(name, 2)
	if r.families[prefix+"\x00"+first(tail)] {
		return "", "", nil
	}
	switch at := r.within(r.tails[tail], prefix); len(at) {
	case 0:
		return "", "", nil
	case 1:
		return r.names[at[0]], "name with another prefix", nil
	default:
		for _, i := range at {
			several = append(several, r.names[i])
		}
		return "", "", several
	}
}

// within drops the stored names outside a language model where the wanted prefix names one: an adapter of
// a vision language model does not belong to a model that has no such part.
func (r *hf) within(at []int, prefix string) []int {
	const part = ".language_model."
	if !strings.Contains("."+prefix, part) {
		return at
	}
	var kept []int
	for _, i := range at {
		if stored, _ := split(r.names[i], 2); strings.Contains("."+stored, part) {
			kept = append(kept, i)
		}
	}
	return kept
}

// The leaf names of the gate, up and down projections of one expert.
var expertLeaves = [][3]string{{"gate_proj", "up_proj", "down_proj"}, {"w1", "w3", "w2"}}

// blocks are the names of a mixture-of-experts block in different versions of the model classes.
var blocks = []string{"mlp", "block_sparse_moe", "feed_forward"}

// experts finds an expert's matrix in a stack, or a stack as single matrices.
func (r *hf) experts(module, param string) []Place {
	if parent, last := leaf(module); last == "experts" && (param == "gate_up_proj" || param == "down_proj") {
		return r.unstacked(parent, param)
	}
	parent, last := leaf(module)
	parent, n := leaf(parent)
	expert, ok := number(n)
	parent, e := leaf(parent)
	if !ok || e != "experts" || param != "weight" {
		return nil
	}
	for _, leaves := range expertLeaves {
		for part, l := range leaves {
			if l == last {
				return r.stacked(parent, part, expert)
			}
		}
	}
	return nil
}

// stacked places expert number expert's gate (part 0), up (1) or down (2) projection in a stack.
func (r *hf) stacked(block string, part int, expert int64) []Place {
	for _, b := range siblings(block) {
		fused, _, _ := r.lookup(b + ".experts.gate_up_proj")
		down, rule, _ := r.lookup(b + ".experts.down_proj")
		if fused == "" || down == "" {
			continue
		}
		g, d := r.shape(fused), r.shape(down)
		// Classes that compute x·W store [experts, in, 2·ffn]; they never had single experts.
		if len(g) != 3 || len(d) != 3 || expert >= g[0] || g[0] != d[0] || g[2] != d[1] || g[1] != 2*d[2] {
			continue
		}
		p := Place{Tensor: down, Expert: expert, Experts: g[0], Rule: rule}
		if part < 2 {
			p.Tensor, p.Rows, p.RowOffset = fused, d[2], int64(part)*d[2]
		}
		return []Place{p}
	}
	return nil
}

// unstacked places the parameter gate_up_proj or down_proj of a block's experts in single matrices.
func (r *hf) unstacked(block, param string) []Place {
	for _, b := range siblings(block) {
		for _, leaves := range expertLeaves {
			if p := r.matrices(b+".experts.", leaves, param == "gate_up_proj"); p != nil {
				return p
			}
		}
	}
	return nil
}

func (r *hf) matrices(prefix string, leaves [3]string, gateUp bool) []Place {
	var places []Place
	experts := int64(0)
	for ; ; experts++ {
		find := func(part int) Place {
			name, rule, _ := r.lookup(fmt.Sprintf("%s%d.%s.weight", prefix, experts, leaves[part]))
			return Place{Tensor: name, Rule: rule, Matrix: experts}
		}
		if !gateUp {
			p := find(2)
			if p.Tensor == "" {
				break
			}
			places = append(places, p)
			continue
		}
		gate, up := find(0), find(1)
		if gate.Tensor == "" || up.Tensor == "" {
			break
		}
		g, u := r.shape(gate.Tensor), r.shape(up.Tensor)
		if len(g) != 2 || len(u) != 2 || g[0] != u[0] {
			return nil
		}
		gate.Rows, gate.Run = g[0], g[0]
		up.First, up.Rows, up.Run = g[0], g[0], g[0]
		places = append(places, gate, up)
	}
	for i := range places {
		places[i].Matrices = experts
	}
	return places
}

// siblings are the paths a mixture-of-experts block may have, the given one first.
func siblings(block string) []string {
	out := []string{block}
	parent, last := leaf(block)
	for _, b := range blocks {
		if b != last {
			out = append(out, join(parent, b))
		}
	}
	return out
}

// IsConv1D reports whether, in a model of the GPT-2 family (model_type gpt2 and its relatives), the
// module is a transformers Conv1D, whose weight is stored [in, out]. For other weights the shapes
// say so; a square one needs this rule. GPTBigCode and StarCoder use the same names for ordinary
// linear layers, so ask only about a gpt2 base.
func IsConv1D(module string) bool {
	parent, last := leaf(module)
	_, block := leaf(parent)
	switch strings.ToLower(block) {
	case "attn", "crossattention":
		return last == "c_attn" || last == "c_proj" || last == "q_attn"
	case "mlp":
		return last == "c_fc" || last == "c_proj"
	}
	return false
}

// embeddings are the last elements of the paths of modules that look rows up, in transformers' models and
// llama.cpp's.
var embeddings = map[string]bool{
	"embed_tokens": true, "embed_in": true, "wte": true, "wpe": true, "embeddings": true, "tok_embeddings": true,
	"word_embeddings": true, "position_embeddings": true, "token_type_embeddings": true, "embed_positions": true,
	"token_embedding": true, "position_embedding": true, "shared": true, "token_embd": true, "position_embd": true, "token_types": true,
}

// IsEmbedding reports whether a module with a matrix [rows, dim] is, by its name, a table of rows and not a
// linear layer.
func IsEmbedding(module string) bool {
	_, last := leaf(module)
	return embeddings[last]
}
