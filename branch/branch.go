// Package branch puts LoRA branches into ONNX graphs, so that one model serves many adapters: each linear
// layer y = x·W becomes y = x·W + (x·A)·B, where A [in, r] and B [r, out] are inputs of the graph that may be
// left out. It also fits adapters to those inputs.
package branch

import (
	"fmt"
	"path/filepath"
	"regexp"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// Options are the choices a plan depends on.
type Options struct {
	// Include, where not nil, chooses the modules by their path.
	Include *regexp.Regexp
	// Rank is that of the defaults: 0, or 1 for providers that do not bear tensors without elements.
	Rank int64
}

// A Layer is a linear layer with a branch.
type Layer struct {
	Module string       `json:"module"`
	A      string       `json:"a"` // names of the inputs
	B      string       `json:"b"`
	In     int64        `json:"in"`
	Out    int64        `json:"out"`
	DType  tensor.DType `json:"-"`
}

// A Plan is where branches go in a model.
type Plan struct {
	Layers   []Layer
	Findings []finding.Finding // layers that get no branch, none of level error

	model    *onnx.Model
	branches []onnx.Branch
	at       map[int]int // the node that multiplies by a weight → layer
}

// NewPlan finds the layers of a model that can have branches: products with a weight whose module is known
// (MatMul, Gemm, their quantized forms). No weight is read.
func NewPlan(m *onnx.Model, opt Options) (*Plan, error) {
	p := &Plan{model: m, at: map[int]int{}}
	if err := p.suits(); err != nil {
		return nil, err
	}
	f := newFinder(m)
	layers := merge.ONNXNames(m).Layers()
	tensors := map[string]string{} // module → its weight, "" where there are several
	for _, l := range layers {
		if t, seen := tensors[l.Module]; seen && t != l.Tensor {
			tensors[l.Module] = ""
			continue
		}
		tensors[l.Module] = l.Tensor
	}
	index := map[string]int{}
	for _, l := range layers {
		if opt.Include != nil && !opt.Include.MatchString(l.Module) {
			continue
		}
		switch {
		case l.Module == "":
			p.skip(l, "no_name", "the layer gets no branch: nothing tells which module it is")
			continue
		case tensors[l.Module] == "":
			p.skip(l, "ambiguous", "the layer gets no branch: two weights are module %q's", l.Module)
			continue
		}
		s, why := f.site(l)
		if why != "" {
			p.skip(l, "unsupported", "module %q gets no branch: %s", l.Module, why)
			continue
		}
		layer := Layer{Module: l.Module, A: l.Module + ".lora_A.weight", B: l.Module + ".lora_B.weight", In: l.In, Out: l.Out, DType: s.dtype}
		i, seen := index[l.Module]
		if !seen {
			i = len(p.Layers)
			index[l.Module] = i
			p.Layers = append(p.Layers, layer)
		} else if p.Layers[i] != layer {
			p.skip(l, "ambiguous", "module %q is used twice, in two types", l.Module)
			continue
		}
		p.at[l.Node] = i
		p.branches = append(p.branches, onnx.Branch{A: layer.A, B: layer.B, Node: s.node, X: s.x, In: l.In, Out: l.Out, DType: s.dtype, Rank: opt.Rank})
	}
	if len(p.Layers) == 0 {
		return p, finding.Errorf("match.nothing_to_do", m.Path(), "no layer of the model can have a branch").
			Hinted("loratool inspect --tensors shows what the model holds")
	}
	return p, nil
}

// suits checks that the operators of branches are there.
func (p *Plan) suits() error {
	for _, o := range p.model.Header().Opsets {
		if o.Domain == "" && o.Version >= 7 {
			return nil
		}
	}
	return finding.Errorf("base.unsupported", p.model.Path(), "the model does not import the operators that a branch is made of").
		Expected(fmt.Sprint(p.model.Header().Opsets), "ai.onnx from version 7 on")
}

func (p *Plan) skip(l naming.ONNXLayer, reason, format string, a ...any) {
	f := finding.Warnf("inject."+reason, p.model.Path(), format, a...).In(l.Tensor)
	f.Module = l.Module
	p.Findings = append(p.Findings, *f)
}

// Layout lays the model with its branches out at a path. All else of the model stays byte for byte, and
// there is no tensor left to write.
func (p *Plan) Layout(output string, opt layout.Options) (*layout.Layout, error) {
	opt.Name = filepath.Base(filepath.Clean(output))
	specs := make([]tensor.Spec, len(p.model.Tensors()))
	for i, t := range p.model.Tensors() {
		specs[i] = t.Spec
	}
	return p.model.Rewrite(specs, opt, onnx.Edit{
		Dir: filepath.Dir(filepath.Clean(output)), Touched: make([]bool, len(specs)), Branches: p.branches,
	})
}
