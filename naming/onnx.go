package naming

import (
	"fmt"
	"slices"
	"strings"
)

// An ONNXGraph is what the names in an ONNX model are found from: nodes of the main graph first, then those of
// the graphs in its nodes. The names of values are unique among all of them.
type ONNXGraph struct {
	Nodes        []ONNXNode
	Initializers []ONNXInitializer
	Values       []ONNXValue
	// ByContent: weights were looked for by their values, and what was found is in the initializers' Content.
	ByContent bool
}

// An ONNXNode is one operator.
type ONNXNode struct {
	Name, Op, Domain string
	Inputs, Outputs  []string           // "" for an input that is left out
	Ints             map[string][]int64 // integer attributes; a single integer is a list of one
	Metadata         map[string]string  // metadata_props
	// Inner: the node is in a graph of a node of the main graph (If, Loop, Scan).
	Inner bool
}

// An ONNXInitializer is a constant tensor. Ints are the values of a small one-dimensional integer tensor,
// nil where they are not known.
type ONNXInitializer struct {
	Name     string
	Shape    []int64
	Ints     []int64
	Metadata map[string]string
	// Content is whose weights the tensor holds, where that was found out from values.
	Content []ONNXContent
}

// An ONNXContent is a module's weight in an initializer: in Rows of its outputs from RowOffset on, or in all where
// Rows is 0.
type ONNXContent struct {
	Module          string
	RowOffset, Rows int64
}

// An ONNXValue is an entry of value_info.
type ONNXValue struct {
	Name     string
	Metadata map[string]string
}

// An ONNXResolver finds modules among the initializers of an ONNX graph.
type ONNXResolver struct {
	graph    ONNXGraph
	index    map[string]int   // initializer name → index
	uses     map[string][]use // value name → the node inputs that read it
	producer map[string]int   // value name → node
	bindings []binding
	byNode   map[int]int // node → binding of its weight
	byInit   map[int][]int
	exact    [rules]map[string][]int // path → bindings
	loose    [rules]map[string][]int // key of the path → bindings
	near     nameIndex

	content map[string][]contentAt // by module, and by the key of its path
}

type use struct{ node, input int }

// The rules that give a binding its module path, strongest first.
const (
	byName     = iota // the initializer's name
	byNodePath        // the consuming node's name
	byMetadata        // name scopes, or the constants a weight was folded from
	byBias            // the bias that is added to the product
	rules
)

var ruleNames = [rules]string{"initializer name", "node path", "metadata", "bias name"}

// A role is what a node does with an initializer.
type role int

const (
	linear    role = iota // [out, in], or [in, out] when transposed
	embedding             // [vocab, dim]
	conv                  // [out, in, k…]
	vector                // one-dimensional: a bias, a norm's scale
	unclear               // an operator that says nothing about the orientation
)

// A binding is one use of an initializer by a node that computes with it.
type binding struct {
	init, node int
	reader     Reader // the first node on the way from the initializer to node
	role       role
	transposed bool
	packed     bool          // an Attention operator's q|k|v
	bias       bool          // a vector that is a bias, of a layer or of a norm
	added      bool          // a bias that is added to the product of a layer
	paths      [rules]string // "" where a rule gives none
}

// NewONNX finds the modules of an ONNX graph. A module's initializer is found by, in this order: the
// initializer's name (model.layers.0.self_attn.q_proj.weight, genai's …attn.q_proj.MatMul.weight, the
// optimizer's *.weight_transposed and *_resize), the path in the name of the node that reads it
// (/model/layers.0/self_attn/q_proj/MatMul), the metadata that torch.onnx and onnxscript leave
// (name_scopes, folded_from), the name of the bias added to the product, and packed q|k|v and gate|up
// projections. The orientation comes from the operator (Gemm transB, MatMul, an explicit Transpose,
// Gather, Conv), never from the shape.
//
// A quantized weight is found in the same ways: its place is the initializer with its codes, whose names
// (_Q4, .qweight, _DQ_Q4, _quantized) and operators (MatMulNBits, DequantizeLinear before a product, …) are
// known. The place then speaks of the float weight in the order of the codes.
func NewONNX(g ONNXGraph) *ONNXResolver {
	r := &ONNXResolver{
		graph: g, index: map[string]int{}, uses: map[string][]use{}, producer: map[string]int{},
		byNode: map[int]int{}, byInit: map[int][]int{},
	}
	for i, t := range g.Initializers {
		if _, dup := r.index[t.Name]; !dup && t.Name != "" {
			r.index[t.Name] = i
		}
	}
	for n, node := range g.Nodes {
		for k, v := range node.Inputs {
			if v != "" {
				r.uses[v] = append(r.uses[v], use{n, k})
			}
		}
		for _, v := range node.Outputs {
			r.producer[v] = n
		}
	}
	for i, t := range g.Initializers {
		if r.index[t.Name] == i && len(t.Shape) > 0 {
			r.trace(i, t.Name, false, map[int]bool{}, 0, nil)
		}
	}
	r.biases()
	r.name()
	r.indexContent()
	r.near.names = func() []string {
		names := make([]string, len(g.Initializers))
		for i, t := range g.Initializers {
			names[i] = t.Name
		}
		return names
	}
	return r
}

// Find returns the place of a module's parameter. Places carry Uses and Node.
func (r *ONNXResolver) Find(module, param string) ([]Place, error) {
	if i, ok := r.index[join(module, param)]; ok {
		if p, why := r.place(r.byInit[i], byName); why == "" {
			return []Place{p}, nil
		}
	}
	at, rule, why := r.lookup(module, param)
	if at != nil {
		var places []Place
		for _, one := range r.byInitializer(at) {
			p, unusable := r.place(one, rule)
			if unusable != "" {
				places, why = nil, unusable
				break
			}
			places = append(places, p)
		}
		if places != nil {
			return places, nil
		}
	}
	if why == "" {
		if p := r.packed(module, param); p != nil {
			return p, nil
		}
	}
	p, unknown := r.byContent(module, param)
	switch {
	case p != nil:
		return p, nil
	case why == "" && unknown != "":
		why = unknown
	case why == "" && isHead(module):
		why = tied
	}
	return nil, &NotFound{Module: module, Param: param, Reason: why, Nearest: r.near.nearest(join(module, param))}
}

// byInitializer groups bindings.
func (r *ONNXResolver) byInitializer(at []int) (groups [][]int) {
	for _, b := range at {
		i := slices.IndexFunc(groups, func(g []int) bool { return r.bindings[g[0]].init == r.bindings[b].init })
		if i < 0 {
			groups, i = append(groups, nil), len(groups)
		}
		groups[i] = append(groups[i], b)
	}
	return groups
}

// copies reports whether bindings are of one initializer that several subgraphs hold under the same name, as the
// branches of an If do.
func (r *ONNXResolver) copies(at []int) bool {
	_, own, _ := strings.Cut(r.tensor(at[0]).Name, "/")
	for _, b := range at {
		if _, name, _ := strings.Cut(r.tensor(b).Name, "/"); name != own || !r.graph.Nodes[r.bindings[b].node].Inner {
			return false
		}
	}
	return true
}

// lookup finds the bindings of one initializer for a parameter, or of its copies in several subgraphs, or says
// why there is not just one.
func (r *ONNXResolver) lookup(module, param string) (at []int, rule int, why string) {
	for rule := range rules {
		for _, hits := range [][]int{r.exact[rule][module], r.loose[rule][key(module)]} {
			var found []int
			for _, b := range hits {
				if r.bindings[b].param() == param {
					found = append(found, b)
				}
			}
			if len(found) == 0 {
				continue
			}
			for _, b := range found[1:] {
				if r.bindings[b].init != r.bindings[found[0]].init && !r.copies(found) {
					return nil, rule, fmt.Sprintf("more than one initializer fits: %q, %q",
						r.tensor(found[0]).Name, r.tensor(b).Name)
				}
			}
			return found, rule, ""
		}
	}
	return nil, 0, ""
}

// place makes a Place of the bindings of one initializer; an embedding decides over a linear layer that
// shares its tensor.
func (r *ONNXResolver) place(at []int, rule int) (Place, string) {
	if len(at) == 0 {
		return Place{}, "no node reads it"
	}
	best := at[0]
	for _, b := range at[1:] {
		if r.bindings[b].rank() < r.bindings[best].rank() {
			best = b
		}
	}
	b := r.bindings[best]
	for _, o := range at {
		if o := r.bindings[o]; o.role == linear && b.role == linear && o.transposed != b.transposed {
			return Place{}, fmt.Sprintf("%q is read in both orientations", r.tensor(best).Name)
		}
	}
	if b.role == unclear {
		return Place{}, fmt.Sprintf("%q is read by %s, which does not tell how it is stored",
			r.tensor(best).Name, r.graph.Nodes[b.node].Op)
	}
	name := r.tensor(best).Name
	uses := len(r.uses[name])
	return Place{Tensor: name, Transposed: b.transposed, Rule: ruleNames[rule], Uses: uses, Node: b.node}, ""
}

// Readers are the uses of a place's tensor that are known to belong to the place's module: those that do
// the same with it under the same path. Where there are fewer of them than the place has Uses, changing
// the tensor changes other modules too. There are none where that is so and one of all its uses is in a subgraph.
func (r *ONNXResolver) Readers(p Place) []Reader {
	init, ok := r.index[p.Tensor]
	if !ok {
		return nil
	}
	var b *binding
	for _, i := range r.byInit[init] {
		if r.bindings[i].node == p.Node {
			b = &r.bindings[i]
		}
	}
	if b == nil {
		return nil
	}
	seen := map[Reader]bool{}
	var own []Reader
	for _, i := range r.byInit[init] {
		o := &r.bindings[i]
		if o.role != b.role || seen[o.reader] {
			continue
		}
		if mine, other := b.nodePath(), o.nodePath(); mine != "" && other != "" && key(mine) != key(other) {
			continue
		}
		seen[o.reader] = true
		own = append(own, o.reader)
	}
	inner := slices.ContainsFunc(r.uses[p.Tensor], func(u use) bool { return r.graph.Nodes[u.node].Inner })
	if inner && len(own) < len(r.uses[p.Tensor]) {
		return nil
	}
	return own
}

// nodePath is the module path that the reading node itself tells.
func (b *binding) nodePath() string {
	if p := b.paths[byNodePath]; p != "" {
		return p
	}
	return b.paths[byMetadata]
}

func (r *ONNXResolver) tensor(b int) *ONNXInitializer {
	return &r.graph.Initializers[r.bindings[b].init]
}

func (b *binding) param() string {
	if b.bias {
		return "bias"
	}
	return "weight"
}

// rank orders the roles by how much they say about the initializer.
func (b *binding) rank() int {
	return slices.Index([]role{embedding, linear, conv, vector, unclear}, b.role)
}

// Candidates are the places of initializers that no module path is known for and whose weight is
// [out, in] when read as their operator reads it. A single one is the place of an unmatched module of
// that shape; among several, only the values can decide.
func (r *ONNXResolver) Candidates(out, in int64) []Place {
	var places []Place
	for i, t := range r.graph.Initializers {
		at := r.byInit[i]
		if len(t.Shape) != 2 || len(at) == 0 || r.index[t.Name] != i {
			continue
		}
		named := slices.ContainsFunc(at, func(b int) bool { return r.bindings[b].path() != "" })
		p, why := r.place(at, byName)
		if named || why != "" {
			continue
		}
		rows, cols := t.Shape[0], t.Shape[1]
		if p.Transposed {
			rows, cols = cols, rows
		}
		if rows == out && cols == in {
			p.Rule = "shape"
			places = append(places, p)
		}
	}
	return places
}

// Modules lists what was recognised, in the order of the initializers: each module's parameter under the
// strongest rule's path.
func (r *ONNXResolver) Modules() []Source {
	var out []Source
	for i := range r.graph.Initializers {
		seen := map[string]bool{}
		for _, b := range r.byInit[i] {
			for rule, path := range r.bindings[b].paths {
				if path == "" {
					continue
				}
				if p, why := r.place(r.byInit[i], rule); why == "" && !seen[path] {
					seen[path] = true
					out = append(out, Source{path, r.bindings[b].param(), p})
				}
				break
			}
		}
	}
	return out
}

// path is the binding's path under the strongest rule that has one.
func (b *binding) path() string {
	for _, p := range b.paths {
		if p != "" {
			return p
		}
	}
	return ""
}

// key is the part of a module path that different exporters agree on.
func key(path string) string {
	_, tail := split(path, 1)
	c := strings.Split(tail, ".")
	for i, s := range c {
		if s == "self_attn" {
			c[i] = "attn"
		}
	}
	return strings.Join(c, ".")
}
