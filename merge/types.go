package merge

import (
	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// rounding is what the options' peer rounds on the way to an output.
func (p *planner) rounding(u *adapter.Update, out *Output) adapter.Rounding {
	t := out.source.DType
	if !t.IsFloat() || t == tensor.F32 || t == tensor.F64 {
		return adapter.Rounding{}
	}
	switch p.opt.Compat {
	case CompatPEFT:
		if u.Layer == adapter.Embedding {
			return adapter.Rounding{Delta: t}
		}
	case CompatPEFTSafe:
		return adapter.Rounding{Delta: t}
	case CompatPEFTNoAutocast:
		return adapter.Rounding{Factors: t, Delta: t, DoRA: t}
	}
	return adapter.Rounding{}
}

// chooseType sets the type the tensor is stored in and checks that it can be made.
func (p *planner) chooseType(out *Output) {
	if out.weight != nil {
		p.keepPacked(out)
		return
	}
	source := tensor.DType(out.SourceType)
	if p.opt.Quantize == nil {
		out.Type = out.SourceType
	}
	updated := len(out.Updates) > 0
	switch {
	case p.opt.Quantize != nil: // chosen already
	case p.opt.TypeOf != nil:
		out.Type = typeName(p.opt.TypeOf(out.Spec()))
	case p.opt.DType == tensor.Invalid, p.base.Format() == "gguf" && len(out.Shape) < 2, isFloat8(p.opt.DType) && staysWide(out.Name, out.Shape):
	case source.IsFloat(), source.IsBlock() && updated:
		out.Type = typeName(p.opt.DType)
	}
	if p.base.Format() == "onnx" && out.Type != out.SourceType {
		p.fail(finding.Errorf("merge.unsupported_type", p.base.Path(), "an ONNX graph computes in the types its weights have, so none is changed").
			In(out.Name).Expected(tensor.DType(out.Type), source).Hinted("leave --dtype out"))
		return
	}
	if p.base.Format() == "gguf" && isFloat8(tensor.DType(out.Type)) {
		p.fail(finding.Errorf("merge.unsupported_type", p.base.Path(), "GGUF has no type %s", tensor.DType(out.Type)).In(out.Name).
			Hinted("--quantize Q8_0 stores 8 bits a weight"))
		return
	}
	if tensor.DType(out.Type) == out.source.DType && len(out.ops) == 0 {
		return
	}
	for _, t := range []tensor.DType{source, out.source.DType} {
		if _, ok := quant.Of(t); !ok {
			p.fail(finding.Errorf("merge.unsupported_type", p.base.Path(), "type %s cannot be decoded", t).In(out.Name))
			return
		}
	}
	if p.opt.CheckOnly {
		return
	}
	target := tensor.DType(out.Type)
	c, ok := quant.Of(target)
	if ok && c.NeedsImportance() && out.importance == nil && !p.opt.Quantize.preview() {
		p.fail(finding.Errorf("quant.needs_imatrix", p.base.Path(), "the tensor cannot be stored as %s without an importance matrix that has an entry for it", target).In(out.Name).
			Hinted("give one with --imatrix FILE, or choose another type"))
		return
	}
	if !ok || !c.CanEncode() {
		f := finding.Errorf("merge.unsupported_type", p.base.Path(), "the tensor cannot be stored as %s", target).In(out.Name)
		if p.opt.Quantize == nil {
			f.Hinted("--dtype f16 stores updated tensors in float16")
		}
		p.fail(f)
		return
	}
	if _, err := out.Spec().Bytes(); err != nil {
		p.fail(finding.Errorf("merge.unsupported_type", p.base.Path(), "%v", err).In(out.Name))
		return
	}
	if target.IsBlock() && out.frame.Cols%int64(target.BlockLen()) != 0 {
		p.fail(finding.Errorf("merge.unsupported_type", p.base.Path(), "rows of %d elements do not hold whole blocks of %s", out.frame.Cols, target).In(out.Name))
		return
	}
	switch {
	case !updated || !source.IsBlock() || target != source:
	case p.opt.RefuseRequant:
		p.fail(finding.Errorf("merge.requantize", p.base.Path(), "the base stores this tensor as %s, and --requant refuse was given", source).In(out.Name).
			Hinted("--dtype f16 stores updated tensors in float16"))
	default:
		p.chooseRequant(out, "--dtype f16 stores updated tensors in float16")
	}
}
