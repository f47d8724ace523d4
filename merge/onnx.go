package merge

import (
	"errors"
	"fmt"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// onnxResolver finds modules in an ONNX graph by the rules of package naming, and by shape where the
// exporter left no name and only one weight fits.
func onnxResolver(m *onnx.Model, a *adapter.Adapter) (naming.Resolver, error) {
	if _, by := m.Known(0); by {
		return ONNXNames(m), nil // values tell more than shapes
	}
	r := byShape{ONNXResolver: ONNXNames(m), dims: map[adapter.Target][2]int64{}}
	for _, u := range a.Updates {
		if u.A.Present() && u.B.Present() && u.Layer == adapter.Linear {
			r.dims[u.Target] = [2]int64{u.B.Rows, u.A.Cols}
		}
	}
	return r, nil
}

// byShape adds the last rule: a weight without a usable name, the only one of its shape.
type byShape struct {
	*naming.ONNXResolver
	dims map[adapter.Target][2]int64 // [out, in] of the adapter's linear modules
}

func (r byShape) Find(module, param string) ([]naming.Place, error) {
	places, err := r.ONNXResolver.Find(module, param)
	var missing *naming.NotFound
	if err == nil || !errors.As(err, &missing) {
		return places, err
	}
	d, ok := r.dims[adapter.Target{Module: module, Param: param}]
	if !ok {
		return nil, err
	}
	alike := 0 // other modules of the same shape would claim the same weight
	for target, other := range r.dims {
		if _, err := r.ONNXResolver.Find(target.Module, target.Param); err != nil && other == d {
			alike++
		}
	}
	fits := r.Candidates(d[0], d[1])
	if len(fits) == 1 && alike == 1 {
		fits[0].Rule = "shape"
		return fits, nil
	}
	if len(fits) > 0 && missing.Reason == "" {
		missing.Reason = fmt.Sprintf("no name leads to its weight; %d unnamed weights have its shape, and --weights FOLDER tells them apart by their values", len(fits))
		missing.Nearest = nil
		for _, p := range fits[:min(3, len(fits))] {
			missing.Nearest = append(missing.Nearest, p.Tensor)
		}
	}
	return nil, err
}

// ONNXNames finds modules in an ONNX model by the rules of package naming alone.
func ONNXNames(m *onnx.Model) *naming.ONNXResolver { return naming.NewONNX(onnxGraph(m)) }

// smallInts is the largest integer initializer whose values names are found with (the sizes of a Split).
const smallInts = 64

// onnxGraph is the plain data that package naming works on: the main graph, then the nodes and initializers of
// the graphs in its nodes, whose values bear the names of their graphs before their own.
func onnxGraph(m *onnx.Model) naming.ONNXGraph {
	g := graphData{m: m}
	_, g.ByContent = m.Known(0)
	g.add(m.Graph(), func(name string) string { return name }, false)
	return g.ONNXGraph
}

type graphData struct {
	naming.ONNXGraph
	m *onnx.Model
}

// add adds a graph whose values are renamed by a function, and then the graphs in it.
func (g *graphData) add(of *onnx.Graph, rename func(string) string, inner bool) {
	var subgraphs []*onnx.Graph
	for _, n := range of.Nodes {
		node := naming.ONNXNode{
			Name: n.Name, Op: n.OpType, Domain: n.Domain, Inputs: mapped(n.Inputs, rename), Outputs: mapped(n.Outputs, rename),
			Ints: map[string][]int64{}, Metadata: properties(n.Props), Inner: inner,
		}
		for _, a := range n.Attrs {
			if a.Ints != nil {
				node.Ints[a.Name] = a.Ints
			} else {
				node.Ints[a.Name] = []int64{a.Int}
			}
			subgraphs = append(subgraphs, a.Graphs...)
		}
		g.Nodes = append(g.Nodes, node)
	}
	tensors := g.m.Tensors()
	for _, i := range of.Initializers {
		t := &tensors[i]
		init := naming.ONNXInitializer{Name: t.Name, Shape: t.Shape, Ints: smallIntegers(t), Metadata: properties(g.m.Info(i).Props)}
		known, _ := g.m.Known(i)
		for _, k := range known {
			init.Content = append(init.Content, naming.ONNXContent{Module: k.Module, RowOffset: k.RowOffset, Rows: k.Rows})
		}
		g.Initializers = append(g.Initializers, init)
	}
	for _, v := range of.Values {
		g.Values = append(g.Values, naming.ONNXValue{Name: rename(v.Name), Metadata: properties(v.Props)})
	}
	for _, sub := range subgraphs {
		g.add(sub, scoped(g.m, sub, rename), true)
	}
}

// scoped renames the values of a graph in a node: its own bear its name, as its initializers do among a model's
// tensors; others are those of the graphs around it.
func scoped(m *onnx.Model, of *onnx.Graph, outer func(string) string) func(string) string {
	own := map[string]bool{}
	for _, n := range of.Nodes {
		for _, v := range n.Outputs {
			own[v] = true
		}
	}
	for _, v := range of.Inputs {
		own[v.Name] = true
	}
	for _, i := range of.Initializers {
		own[m.Info(i).Name] = true
	}
	return func(name string) string {
		switch {
		case name == "":
			return ""
		case own[name]:
			return of.Scope + "/" + name
		}
		return outer(name)
	}
}

func mapped(names []string, rename func(string) string) []string {
	w := make([]string, len(names))
	for i, n := range names {
		w[i] = rename(n)
	}
	return w
}

func smallIntegers(t *tensor.Tensor) []int64 {
	if t.DType != tensor.I64 || len(t.Shape) != 1 || t.Shape[0] > smallInts {
		return nil
	}
	b, err := t.Read()
	if err != nil {
		return nil // what cannot be read is unknown; reading the weights will say why
	}
	ns := make([]int64, len(b)/8)
	for i := range ns {
		for k := range 8 {
			ns[i] |= int64(b[8*i+k]) << (8 * k)
		}
	}
	return ns
}

func properties(props [][2]string) map[string]string {
	if len(props) == 0 {
		return nil
	}
	m := make(map[string]string, len(props))
	for _, p := range props {
		m[p[0]] = p[1]
	}
	return m
}
