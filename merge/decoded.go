package merge

import (
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/tensor"
)

// refusePacked refuses to keep the types of a base that is decoded from a scheme of quantized
// checkpoints: it is seen as floats, which are not what it stores.
func (p *planner) refusePacked() {
	d, ok := p.base.(*formats.Decoded)
	if !ok || p.opt.DType != tensor.Invalid || p.opt.Quantize != nil || p.opt.TypeOf != nil || p.opt.CheckOnly {
		return
	}
	p.fail(finding.Errorf("merge.unsupported_type", p.base.Path(), "the base is stored as %s, and writing it back so is not offered", d.Scheme()).
		Hinted("--dtype bf16 writes a float model"))
}
