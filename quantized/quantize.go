package quantized

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/quant/onnxquant"
	"github.com/loratool/loratool/quant/scheme"
	"github.com/loratool/loratool/tensor"
)

// Options say which weights are quantized, and how.
type Options struct {
	// Recipe is that of the weights of MatMul and Gemm, for qdq of 8 bits also of Conv.
	Recipe onnxquant.Recipe
	// Overrides are the exceptions; the first that matches a weight counts.
	Overrides []Override
	// Output is the recipe of the output layer, nil for that of all.
	Output *onnxquant.Recipe
	// Embedding is the recipe of token embeddings, nil for none.
	Embedding *onnxquant.Recipe
}

// An Override gives weights a recipe whose initializer, module or node a pattern is found in.
type Override struct {
	Pattern *regexp.Regexp
	Recipe  onnxquant.Recipe
}

// ParseOverride reads REGEX=RECIPE; the case of letters does not count. Errors are findings:
// quant.bad_pattern, quant.unknown_recipe.
func ParseOverride(s string) (Override, error) {
	i := strings.LastIndexByte(s, '=')
	if i <= 0 {
		return Override{}, finding.Errorf("quant.bad_pattern", "", "%q is not REGEX=RECIPE", s).Hinted("for example lm_head=keep")
	}
	r, err := onnxquant.ParseRecipe(s[i+1:])
	if err != nil {
		return Override{}, err
	}
	re, err := regexp.Compile("(?i)" + s[:i])
	if err != nil {
		return Override{}, finding.Errorf("quant.bad_pattern", "", "the pattern %q cannot be used: %v", s[:i], err)
	}
	return Override{re, r}, nil
}

// New returns the view of a float model. Nothing is read. A model that no weight of can be quantized is
// refused, and so is one whose operators are too old for the recipe: findings of code quant.unsupported.
func New(m *onnx.Model, opt Options) (*Graph, error) {
	q := quantizer{m: m, opt: opt, g: newGraph(m), names: newNames(m), matched: make([]bool, len(opt.Overrides)), edits: map[int]*onnx.NodeEdit{}}
	for _, s := range sites(m) {
		if err := q.site(s); err != nil {
			if f := finding.Of(err); f != nil && f.File == "" {
				f.File = m.Path()
			}
			return nil, err
		}
	}
	if len(q.g.changes) == 0 {
		return nil, finding.Errorf("quant.unsupported", m.Path(), "the model has no weight that %s is for", opt.Recipe).
			Hinted("MatMul and Gemm by float initializers of two dimensions are quantized; loratool inspect --tensors shows what the model holds")
	}
	q.finish()
	return q.g, nil
}

func newGraph(m *onnx.Model) *Graph {
	return &Graph{Model: m, tensors: slices.Clone(m.Tensors()), weights: map[string]*scheme.Weight{}}
}

type quantizer struct {
	m       *onnx.Model
	opt     Options
	g       *Graph
	names   names
	matched []bool // overrides
	edits   map[int]*onnx.NodeEdit
	kept    []string // why weights stay float
}

// site quantizes one weight, if it is to be.
func (q *quantizer) site(s *site) error {
	r, asked := q.recipe(s)
	if r.Keeps() {
		return nil
	}
	t := &q.m.Tensors()[s.tensor]
	why := ""
	switch {
	case len(s.products) == 0 && len(s.gathers) == 0:
		return nil
	case s.mixed:
		why = "it is read in both orientations"
	case len(s.products) > 0 && len(s.gathers) > 0:
		why = "an embedding and a product share it"
	case s.conv && (r.Op != "qdq" || r.Block > 0):
		why = "it is a convolution's"
	case r.Op == "matmulnbits" && len(s.products) > 0 && !s.packable:
		why = "a Gemm that does more than to multiply and to add a bias reads it"
	case s.inner && r.Op == "qdq":
		why = "subgraphs read it too, or it is an output"
	case (s.inner || len(s.others) > 0) && r.Op == "matmulnbits" && !asked:
		why = "others than products read it too, so that it would be stored twice"
	case len(s.gathers) > 0 && (r.Op != "matmulnbits" || r.Bits != 4):
		why = fmt.Sprintf("%s is not for embeddings", r)
	}
	if why != "" {
		if asked {
			return finding.Errorf("quant.unsupported", q.m.Path(), "the weight cannot be quantized by %s: %s", r, why).In(t.Name)
		}
		q.kept = append(q.kept, t.Name+": "+why)
		return nil
	}
	var w *onnxquant.Weight
	var err error
	if len(s.gathers) > 0 {
		w, err = r.Rows(t.Name, t.Shape, t.DType)
	} else {
		w, err = r.Product(t.Name, t.Shape, s.turned, t.DType)
	}
	if err != nil {
		return err
	}
	if err := q.suits(r, len(s.gathers) > 0, t.Name); err != nil {
		return err
	}
	q.rename(w)
	keep := r.Op == "matmulnbits" && (s.inner || len(s.others) > 0)
	if err := q.g.quantize(s, w, r.Op == "matmulnbits" && s.turned, keep); err != nil {
		return err
	}
	switch {
	case len(s.gathers) > 0:
		q.gatherRows(s, w, r)
	case r.Op == "matmulnbits":
		q.multiplyBits(s, w, r)
	default:
		q.decodeFirst(s, w, r)
	}
	return nil
}

// recipe is that of a weight; asked is true where an option names the weight.
func (q *quantizer) recipe(s *site) (r onnxquant.Recipe, asked bool) {
	name := q.m.Tensors()[s.tensor].Name
	for i, o := range q.opt.Overrides {
		if slices.ContainsFunc(append(q.names.of(s), name), o.Pattern.MatchString) {
			q.matched[i] = true
			return o.Recipe, true
		}
	}
	switch {
	case len(s.products) == 0:
		if q.opt.Embedding != nil {
			return *q.opt.Embedding, true
		}
		return onnxquant.Recipe{}, false
	case q.opt.Output != nil && q.names.isOutput(s):
		return *q.opt.Output, true
	}
	return q.opt.Recipe, false
}

// suits checks that the model's operators are new enough, and raises its version where a type needs it.
func (q *quantizer) suits(r onnxquant.Recipe, gather bool, name string) error {
	if r.Op == "matmulnbits" {
		q.g.imports = []onnx.Opset{{Domain: "com.microsoft", Version: 1}}
		if gather {
			q.g.ir = max(q.g.ir, 10) // the first with types of 4 bits
		}
		return nil
	}
	need := int64(10)
	switch {
	case r.Block > 0 || r.Codes == tensor.I4 || r.Codes == tensor.U4:
		need, q.g.ir = 21, max(q.g.ir, 10)
	case !r.Whole:
		need = 13
	}
	for _, o := range q.m.Header().Opsets {
		if o.Domain == "" && o.Version < need {
			return finding.Errorf("quant.unsupported", q.m.Path(), "%s needs newer operators than the model's", r).In(name).
				Expected(fmt.Sprintf("opset %d", o.Version), fmt.Sprintf("%d or later", need)).
				Hinted("export the model with a newer opset, or choose matmulnbits:4:32, which any model can hold")
		}
	}
	return nil
}

// rename gives parts whose names the graph has already others.
func (q *quantizer) rename(w *onnxquant.Weight) {
	for i := range w.Parts {
		w.Parts[i].Name = q.names.fresh(w.Parts[i].Name)
	}
}

// quantize makes a tensor of the view quantized.
func (g *Graph) quantize(s *site, w *onnxquant.Weight, turned, keep bool) error {
	t := g.Model.Tensors()[s.tensor]
	if turned {
		var err error
		if t, err = tensor.Turned(t); err != nil {
			return err
		}
	}
	e, err := w.Encoding()
	if err == nil && e == nil {
		err = finding.Errorf("quant.unsupported", g.Path(), "the weight's rows of %v are too long to be quantized by %s", t.Shape, w.Scheme).In(t.Name)
	}
	if err != nil {
		return err
	}
	g.tensors[s.tensor] = t
	g.weights[t.Name] = &scheme.Weight{Scheme: w.Scheme, Parts: w.Parts, Exact: t, Turned: turned, Encoding: e}
	g.changes = append(g.changes, change{tensor: s.tensor, keep: keep})
	return nil
}

// edit is the change of a node.
func (q *quantizer) edit(node int) *onnx.NodeEdit {
	if q.edits[node] == nil {
		q.edits[node] = &onnx.NodeEdit{Node: node, Inputs: map[int]string{}}
	}
	return q.edits[node]
}

func partNames(w *onnxquant.Weight) (names []string) {
	for _, p := range w.Parts {
		names = append(names, p.Name)
	}
	return names
}

// suffixed is the name of a new node for another one, "" where that has none.
func suffixed(name, suffix string) string {
	if name == "" {
		return ""
	}
	return name + suffix
}

// multiplyBits puts MatMulNBits in the place of products.
func (q *quantizer) multiplyBits(s *site, w *onnxquant.Weight, r onnxquant.Recipe) {
	for _, k := range s.products {
		n := q.m.Graph().Nodes[k]
		inputs := append([]string{n.Inputs[0]}, partNames(w)...)
		if len(n.Inputs) > 2 && n.Inputs[2] != "" { // a bias is the last of six
			for len(inputs) < 5 {
				inputs = append(inputs, "")
			}
			inputs = append(inputs, n.Inputs[2])
		}
		ints := []onnx.IntAttr{{Name: "K", Value: w.Shape[1]}, {Name: "N", Value: w.Shape[0]}, {Name: "bits", Value: r.Bits}, {Name: "block_size", Value: r.Block}}
		if r.Accuracy > 0 {
			ints = append(ints, onnx.IntAttr{Name: "accuracy_level", Value: r.Accuracy})
		}
		q.edit(k).Replace = &onnx.NewNode{
			OpType: "MatMulNBits", Domain: "com.microsoft", Name: suffixed(n.Name, fmt.Sprintf("_Q%d", r.Bits)),
			Inputs: inputs, Outputs: n.Outputs[:1], Ints: ints,
		}
	}
}

// gatherRows puts GatherBlockQuantized in the place of Gathers.
func (q *quantizer) gatherRows(s *site, w *onnxquant.Weight, r onnxquant.Recipe) {
	for _, k := range s.gathers {
		n := q.m.Graph().Nodes[k]
		parts := partNames(w)
		q.edit(k).Replace = &onnx.NewNode{
			OpType: "GatherBlockQuantized", Domain: "com.microsoft", Name: suffixed(n.Name, "_Q4"),
			Inputs: slices.Concat(parts[:1], n.Inputs[1:2], parts[1:]), Outputs: n.Outputs[:1],
			Ints: []onnx.IntAttr{{Name: "gather_axis"}, {Name: "quantize_axis", Value: 1}, {Name: "block_size", Value: r.Block}},
		}
	}
}

// decodeFirst puts a DequantizeLinear before the first of the nodes that read a weight.
func (q *quantizer) decodeFirst(s *site, w *onnxquant.Weight, r onnxquant.Recipe) {
	first := slices.Min(s.products)
	for _, u := range s.others {
		first = min(first, u.node)
	}
	n := q.m.Graph().Nodes[first]
	name := q.m.Tensors()[s.tensor].Name
	node, output := name+"_DequantizeLinear", name+"_DequantizeLinear_Output"
	axis := int64(0)
	if s.turned {
		axis = 1
	}
	var ints []onnx.IntAttr
	switch {
	case r.Block > 0:
		bits := 8
		if r.Codes == tensor.I4 || r.Codes == tensor.U4 {
			bits = 4
		}
		node, output = suffixed(n.Name, fmt.Sprintf("_DQ_Q%d", bits)), w.Parts[0].Name+"_output"
		ints = []onnx.IntAttr{{Name: "axis", Value: 1 - axis}, {Name: "block_size", Value: r.Block}}
	case !r.Whole:
		ints = []onnx.IntAttr{{Name: "axis", Value: axis}}
	}
	output = q.names.fresh(output)
	e := q.edit(first)
	e.Before = append(e.Before, onnx.NewNode{OpType: "DequantizeLinear", Name: node, Inputs: partNames(w), Outputs: []string{output}, Ints: ints})
	for _, k := range s.products {
		q.edit(k).Inputs[1] = output
	}
	for _, u := range s.others {
		q.edit(u.node).Inputs[u.input] = output
	}
}

// finish sorts the changes and reports what stays float.
func (q *quantizer) finish() {
	for k := range q.m.Graph().Nodes {
		if e := q.edits[k]; e != nil {
			q.g.edits = append(q.g.edits, *e)
		}
	}
	if n := len(q.kept); n > 0 {
		q.g.notes = append(q.g.notes, *finding.Warnf("quant.kept", q.m.Path(), "%d weights stay float; the first is %s", n, q.kept[0]))
	}
	for i, o := range q.opt.Overrides {
		if !q.matched[i] {
			q.g.notes = append(q.g.notes, *finding.Warnf("quant.unmatched_pattern", q.m.Path(), "the pattern %q is found in the name of no weight", strings.TrimPrefix(o.Pattern.String(), "(?i)")))
		}
	}
}

// names are what the weights of a model are called.
type names struct {
	m      *onnx.Model
	taken  map[string]bool
	module map[int]string // by the node that multiplies
	embed  map[string]string
}

func newNames(m *onnx.Model) names {
	n := names{m: m, taken: map[string]bool{}, module: map[int]string{}, embed: map[string]string{}}
	for _, l := range merge.ONNXNames(m).Layers() {
		n.module[l.Node] = l.Module
	}
	for _, s := range merge.ONNXNames(m).Modules() {
		n.embed[s.Place.Tensor] = s.Module
	}
	g := m.Graph()
	for _, t := range m.Tensors() {
		n.taken[t.Name] = true
	}
	for _, vs := range [][]onnx.Value{g.Inputs, g.Outputs, g.Values} {
		for _, v := range vs {
			n.taken[v.Name] = true
		}
	}
	for _, node := range g.Nodes {
		for _, v := range slices.Concat(node.Inputs, node.Outputs) {
			n.taken[v] = true
		}
	}
	return n
}

// fresh is a name, or one like it that the graph does not have.
func (n names) fresh(name string) string {
	for i, s := 1, name; ; i++ {
		if !n.taken[s] {
			n.taken[s] = true
			return s
		}
		s = fmt.Sprintf("%s_%d", name, i)
	}
}

// of are the modules and nodes of a weight.
func (n names) of(s *site) []string {
	w := []string{n.embed[n.m.Tensors()[s.tensor].Name]}
	for _, k := range slices.Concat(s.products, s.gathers) {
		w = append(w, n.module[k], n.m.Graph().Nodes[k].Name)
	}
	return w
}

// isOutput reports whether a weight is the output layer's: of a module that is called so, or of a product that
// is an output of the graph, perhaps after a bias or a Cast.
func (n names) isOutput(s *site) bool {
	g := n.m.Graph()
	for _, k := range s.products {
		switch module := n.module[k]; module[strings.LastIndexByte(module, '.')+1:] {
		case "lm_head", "embed_out":
			return true
		}
		value := g.Nodes[k].Outputs[0]
		for range 3 {
			if slices.ContainsFunc(g.Outputs, func(v onnx.Value) bool { return v.Name == value }) {
				return true
			}
			next := slices.IndexFunc(g.Nodes, func(x *onnx.Node) bool { return slices.Contains(x.Inputs, value) })
			if next < 0 || !slices.Contains([]string{"Add", "Cast", "Identity"}, g.Nodes[next].OpType) || len(g.Nodes[next].Outputs) != 1 {
				break
			}
			value = g.Nodes[next].Outputs[0]
		}
	}
	return false
}
