// Package quantized sees a float ONNX model as one whose weights are quantized by a recipe: plans made from it
// store them so, in one pass, and its outputs have the nodes that decode them.
package quantized

import (
	"fmt"
	"path/filepath"
	"slices"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/quant/scheme"
	"github.com/loratool/loratool/tensor"
)

// A Graph is an ONNX model whose outputs are quantized. Its Tensors are the model's; those that become
// quantized are in the order in which they are stored then.
type Graph struct {
	*onnx.Model
	tensors []tensor.Tensor
	weights map[string]*scheme.Weight
	notes   []finding.Finding

	changes []change // in the order of the tensors
	edits   []onnx.NodeEdit
	imports []onnx.Opset
	ir      int64
}

// A change is a tensor that becomes quantized.
type change struct {
	tensor int
	keep   bool // others still read the floats
}

// Tensors lists the model's tensors.
func (g *Graph) Tensors() []tensor.Tensor { return g.tensors }

// Weight is how outputs store one of the Tensors, nil where they do not quantize it.
func (g *Graph) Weight(name string) *scheme.Weight { return g.weights[name] }

// Findings are the warnings about the model, and notes on what stays float.
func (g *Graph) Findings() []finding.Finding { return slices.Concat(g.Model.Findings(), g.notes) }

// Layout lays an output out in which the tensors that stay float keep their bytes.
func (g *Graph) Layout(specs []tensor.Spec, opt layout.Options) (*layout.Layout, error) {
	return g.Rewrite(specs, opt, onnx.Edit{Touched: make([]bool, len(g.tensors))})
}

// Rewrite is the model's Rewrite: specs and items of the layout are those of the Tensors, of the parts where
// these are quantized, then those of clones. Touched is parallel to Tensors.
func (g *Graph) Rewrite(specs []tensor.Spec, opt layout.Options, edit onnx.Edit) (*layout.Layout, error) {
	model := g.Model.Tensors()
	inner := make([]tensor.Spec, 0, len(specs)+len(g.changes))
	var parts []tensor.Spec
	items := make([]int, 0, len(specs)) // of each spec, its index in the model's layout
	first := len(model) + len(edit.Clones)
	changes := g.changes
	take := func() (tensor.Spec, error) {
		if len(specs) == 0 {
			return tensor.Spec{}, fmt.Errorf("there are too few specs for %d tensors and their parts", len(model))
		}
		s := specs[0]
		specs = specs[1:]
		return s, nil
	}
	edit.Touched = slices.Clone(edit.Touched)
	for i := range model {
		if len(changes) == 0 || changes[0].tensor != i {
			s, err := take()
			if err != nil {
				return nil, err
			}
			items, inner = append(items, i), append(inner, s)
			continue
		}
		n := len(g.weights[model[i].Name].Parts)
		for range n {
			s, err := take()
			if err != nil {
				return nil, err
			}
			items, parts = append(items, first+len(parts)), append(parts, s)
		}
		inner, edit.Touched[i] = append(inner, model[i].Spec), false
		edit.Swaps = append(edit.Swaps, onnx.Swap{Tensor: i, Keep: changes[0].keep, Parts: n})
		changes = changes[1:]
	}
	for range edit.Clones {
		s, err := take()
		if err != nil {
			return nil, err
		}
		items, inner = append(items, len(inner)), append(inner, s)
	}
	edit.Nodes, edit.Imports, edit.IRVersion = append(edit.Nodes, g.edits...), append(edit.Imports, g.imports...), max(edit.IRVersion, g.ir)
	if opt.Name == "" {
		opt.Name = filepath.Base(g.Path())
	}
	l, err := g.Model.Rewrite(append(inner, parts...), opt, edit)
	if err != nil {
		return nil, err
	}
	l.Select(items)
	return l, nil
}
