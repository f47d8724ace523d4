package formats

import (
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/quant/scheme"
	"github.com/loratool/loratool/tensor"
)

// A Packed model is a quantized safetensors model whose outputs are quantized like it: its Tensors are those
// of the decoded model, and beside them everything stored that a float model has no use for.
type Packed struct {
	*Decoded
	tensors []tensor.Tensor
}

// Packed returns the model as one that outputs are quantized like. The two are closed together.
func (d *Decoded) Packed() *Packed {
	p := &Packed{Decoded: d}
	first, part := map[string]tensor.Tensor{}, map[string]bool{}
	for _, t := range d.view.Tensors {
		if w := d.view.Packed[t.Name]; w != nil {
			first[w.Parts[0].Name] = t
			for _, x := range w.Parts {
				part[x.Name] = true
			}
		}
	}
	for _, t := range d.Stored() {
		if w, ok := first[t.Name]; ok {
			p.tensors = append(p.tensors, w)
		} else if !part[t.Name] {
			p.tensors = append(p.tensors, t)
		}
	}
	return p
}

// Tensors lists the model's tensors, each packed weight as one float tensor.
func (p *Packed) Tensors() []tensor.Tensor { return p.tensors }

// Weight is how one of the Tensors is packed, nil where it is not.
func (p *Packed) Weight(name string) *scheme.Weight { return p.view.Packed[name] }

// Findings are the warnings about the model and its quantization, and a note that it is kept.
func (p *Packed) Findings() []finding.Finding { return p.findings(", which is kept") }

// Layout lays out an output of stored tensors, packed or not, with the configuration as it is.
func (p *Packed) Layout(specs []tensor.Spec, opt layout.Options) (*layout.Layout, error) {
	return p.Model.Layout(specs, opt)
}
