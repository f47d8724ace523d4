package merge

import (
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/quant/scheme"
	"github.com/loratool/loratool/tensor"
)

// A packedBase stores some of its tensors in several parts, by a scheme of package scheme, and so do the
// outputs made from it.
type packedBase interface {
	Weight(name string) *scheme.Weight
}

// newOutput is the output made from a tensor of the base, before anything is matched with it.
func (p *planner) newOutput(t tensor.Tensor) Output {
	out := Output{Name: t.Name, SourceType: typeName(t.DType), Shape: t.Shape, Updates: []Applied{}, source: t}
	if b, ok := p.base.(packedBase); ok {
		if w := b.Weight(t.Name); w != nil {
			out.weight, out.source, out.Scheme = w, w.Exact, w.Scheme
			out.SourceType, out.Shape = typeName(w.Parts[0].DType), w.Exact.Shape
			if !w.Stored() {
				out.SourceType = typeName(w.Exact.DType)
			}
		}
	}
	return out
}

// Weight is how the base and the output store the tensor in parts, nil where it is one tensor.
func (o *Output) Weight() *scheme.Weight { return o.weight }

// stored says how the output is stored: by its type, or by the scheme that it is packed by.
func (o *Output) stored() string {
	if o.weight != nil {
		return o.weight.Scheme
	}
	return tensor.DType(o.Type).String()
}

// shares reports whether stored elements share scales, so that they lose more than one rounding.
func (o *Output) shares() bool { return o.weight != nil || tensor.DType(o.Type).IsBlock() }

// specs are the tensors that the output is stored in.
func (o *Output) specs() []tensor.Spec {
	if o.weight == nil {
		return []tensor.Spec{o.Spec()}
	}
	specs := make([]tensor.Spec, len(o.weight.Parts))
	for i, t := range o.weight.Parts {
		specs[i] = t.Spec
	}
	return specs
}

// keepPacked checks that a packed tensor can be stored again.
func (p *planner) keepPacked(out *Output) {
	out.Type = typeName(out.weight.Parts[0].DType)
	if len(out.ops) == 0 || p.opt.CheckOnly || !out.weight.Stored() {
		return
	}
	hint := "--dtype bf16 writes a float model"
	if p.base.Format() == "onnx" {
		hint = "loratool inject adds the adapter beside the weights"
	}
	fail := func(code, format string, a ...any) {
		p.fail(finding.Errorf(code, p.base.Path(), format, a...).In(out.Name).Hinted(hint))
	}
	n := out.Shape[len(out.Shape)-1]
	switch {
	case out.weight.Encoding == nil || out.frame.Cols != n:
		if !p.refused[out.stored()] { // once is enough
			fail("merge.unsupported_type", "the base stores weights as %s, and writing them back so is not offered", out.stored())
		}
		p.refused[out.stored()] = true
	case p.base.Format() == "onnx" && (p.opt.DType != tensor.Invalid || p.opt.Quantize != nil):
		fail("merge.unsupported_type", "the base stores this tensor as %s, which an ONNX graph computes with, so it is not changed", out.stored())
	case p.opt.RefuseRequant:
		fail("merge.requantize", "the base stores this tensor as %s, and --requant refuse was given", out.stored())
	default:
		p.chooseRequant(out, hint)
	}
}

// turned is an update and its place for a base that stores the last two dimensions of a weight exchanged.
func turned(b bound) bound {
	u := *b.u
	u.Swapped, b.place.Transposed = !u.Swapped, !b.place.Transposed
	b.u = &u
	return b
}
