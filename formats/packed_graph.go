package formats

import (
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/quant/scheme"
	"github.com/loratool/loratool/tensor"
)

// A PackedGraph is an ONNX model with quantized weights whose outputs are quantized like it: each of these
// weights is one float tensor, under the name of its codes, and its scales and zero points are none.
type PackedGraph struct {
	*onnx.Model
	tensors []tensor.Tensor
	weights map[string]*scheme.Weight
	stored  [][]int // of each tensor, the indexes of its parts in the model
	notes   []finding.Finding
}

// packGraph returns the view of a model, or the model itself where it holds no quantized weight that can be
// read.
func packGraph(m *onnx.Model) (Model, error) {
	p := &PackedGraph{Model: m, weights: map[string]*scheme.Weight{}}
	reads := readCounts(m.Graph())
	uses := map[int]int{}           // part → nodes that hold it as a weight's part
	of := map[int]*onnx.Quantized{} // codes → weight
	var order []int
	qs := m.Quantized()
	for i := range qs {
		q := &qs[i]
		if q.Err != nil {
			f := *finding.Of(q.Err)
			f.Level = finding.Warning
			p.notes = append(p.notes, f)
			continue
		}
		if known, ok := of[q.Parts[0]]; !ok {
			of[q.Parts[0]] = q
			order = append(order, q.Parts[0])
		} else if !slices.Equal(known.Parts, q.Parts) {
			known.Weight = nil // the same codes under two scales
		}
		for _, k := range q.Parts {
			uses[k]++
		}
	}
	part := map[int]bool{}
	for _, codes := range order {
		q := of[codes]
		if q.Weight == nil || slices.ContainsFunc(q.Parts[1:], func(k int) bool {
			return uses[k] != uses[codes] || reads[m.Tensors()[k].Name] != uses[codes]
		}) {
			continue // scales that others read too cannot be rewritten
		}
		name := m.Tensors()[codes].Name
		w := &scheme.Weight{Scheme: q.Weight.Scheme, Parts: q.Weight.Parts, Exact: q.Weight.Tensor(name, true)}
		e, err := q.Weight.Encoding()
		if err == nil {
			w.Codes, err = q.Weight.Codes()
		}
		if err != nil {
			return nil, err
		}
		if w.Encoding = w.Codes; e != nil {
			w.Encoding = e
		}
		p.weights[name] = w
		for _, k := range q.Parts[1:] {
			part[k] = true
		}
	}
	if len(p.weights) == 0 {
		return m, nil
	}
	for i, t := range m.Tensors() {
		switch q := of[i]; {
		case part[i]:
		case q != nil && p.weights[t.Name] != nil:
			p.tensors = append(p.tensors, q.Weight.Tensor(t.Name, false))
			p.stored = append(p.stored, q.Parts)
		default:
			p.tensors = append(p.tensors, t)
			p.stored = append(p.stored, []int{i})
		}
	}
	return p, nil
}

// readCounts counts, by name, what the nodes of a graph and of the graphs in it read.
func readCounts(g *onnx.Graph) map[string]int {
	n := map[string]int{}
	var visit func(g *onnx.Graph)
	visit = func(g *onnx.Graph) {
		for _, node := range g.Nodes {
			for _, in := range node.Inputs {
				n[in]++
			}
			for _, a := range node.Attrs {
				for _, sub := range a.Graphs {
					visit(sub)
				}
			}
		}
	}
	visit(g)
	return n
}

// Tensors lists the model's tensors, each quantized weight as one float tensor.
func (p *PackedGraph) Tensors() []tensor.Tensor { return p.tensors }

// Weight is how one of the Tensors is quantized, nil where it is not.
func (p *PackedGraph) Weight(name string) *scheme.Weight { return p.weights[name] }

// Findings are the warnings about the model and its quantized weights, and a note that these are kept.
func (p *PackedGraph) Findings() []finding.Finding {
	var schemes []string
	for _, t := range p.tensors {
		if w := p.weights[t.Name]; w != nil && !slices.Contains(schemes, w.Scheme) {
			schemes = append(schemes, w.Scheme)
		}
	}
	if len(schemes) > 3 {
		schemes = append(schemes[:3], "…")
	}
	note := finding.Finding{
		Code: "scheme.kept", Level: finding.Info, File: p.Path(),
		Message: fmt.Sprintf("%d weights are stored as %s, which is kept", len(p.weights), strings.Join(schemes, ", ")),
	}
	return slices.Concat(p.Model.Findings(), p.notes, []finding.Finding{note})
}

// Layout lays an output of stored tensors out in which all weights are written anew.
func (p *PackedGraph) Layout(specs []tensor.Spec, opt layout.Options) (*layout.Layout, error) {
	touched := make([]bool, len(p.tensors))
	for i := range touched {
		touched[i] = true
	}
	return p.Rewrite(specs, opt, onnx.Edit{Touched: touched})
}

// Rewrite is the model's Rewrite in terms of the Tensors: specs are those of their parts, one tensor after
// the other, and so are the items of the layout. Touched is parallel to Tensors. Clones are of Tensors that
// are not quantized.
func (p *PackedGraph) Rewrite(specs []tensor.Spec, opt layout.Options, edit onnx.Edit) (*layout.Layout, error) {
	inner := make([]tensor.Spec, len(p.Model.Tensors()))
	touched := make([]bool, len(inner))
	var items []int // of each spec, the index in the model
	for i, parts := range p.stored {
		for _, k := range parts {
			if len(items) == len(specs) {
				return nil, fmt.Errorf("%d specs are too few for the parts of %d tensors", len(specs), len(p.tensors))
			}
			inner[k], touched[k] = specs[len(items)], edit.Touched[i]
			items = append(items, k)
		}
	}
	for i := range edit.Clones {
		c := edit.Clones[i]
		if len(p.stored[c.Tensor]) > 1 {
			return nil, finding.Errorf("output.unsupported", p.Path(), "a quantized weight that several modules share is not stored apart for one of them").In(p.tensors[c.Tensor].Name)
		}
		c.Tensor = p.stored[c.Tensor][0]
		edit.Clones[i] = c
		items = append(items, len(inner))
		inner = append(inner, specs[len(items)-1])
	}
	edit.Touched = touched
	l, err := p.Model.Rewrite(inner, opt, edit)
	if err != nil {
		return nil, err
	}
	l.Select(items)
	return l, nil
}
