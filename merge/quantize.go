package merge

import (
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/quant/imatrix"
	"github.com/loratool/loratool/quant/recipe"
	"github.com/loratool/loratool/tensor"
)

// A Quantization makes types, order and metadata of an output what the reference's quantize tool makes
// them. Weights that are not finite are refused, also in tensors that are only copied.
type Quantization struct {
	Recipe  recipe.Recipe
	Options recipe.Options  // HasImatrix follows from Imatrix
	Imatrix *imatrix.Matrix // nil for none
	// NoFallback makes rows that do not divide into the blocks of their type an error.
	NoFallback bool
	// RefuseRequantize makes it an error to give a quantized tensor another type.
	RefuseRequantize bool
	// AllowNaN passes values that are not finite where the type can carry them.
	AllowNaN bool
	// KeepSplit splits a GGUF output as the base is split.
	KeepSplit bool
	// Preview makes a plan that is only shown: what it lacks an importance matrix for is a warning.
	Preview bool
}

func (q *Quantization) preview() bool { return q != nil && q.Preview }

// quantize chooses types and order of the plan's tensors.
func (p *planner) quantize(q *Quantization) error {
	if q.Imatrix != nil {
		p.plan.Findings = append(p.plan.Findings, q.Imatrix.Findings...)
	}
	var choices []recipe.Choice
	var err error
	switch m := p.base.(type) {
	case LlamaModel:
		choices, err = p.byRecipe(m, q)
	default:
		choices, err = p.byType(q)
	}
	if err != nil {
		return err
	}
	tensors, updates := make([]Output, len(choices)), make([][]bound, len(choices))
	for i, c := range choices {
		tensors[i], updates[i] = p.plan.Tensors[c.Tensor], p.updates[c.Tensor]
		out := &tensors[i]
		out.Type, out.finite = typeName(c.Type), !q.AllowNaN
		if q.RefuseRequantize && out.Quantized() && out.Type != out.SourceType {
			return finding.Errorf("quant.requantize", p.base.Path(), "the tensor is quantized already").In(out.Name).
				Expected(tensor.DType(out.SourceType), "F32, F16 or BF16").Hinted("start from the original weights; --allow-requantize decodes and encodes again, which loses quality")
		}
		if q.Imatrix != nil && (out.Type != out.SourceType || len(updates[i]) > 0) {
			if err := p.weigh(out, q); err != nil {
				return err
			}
		}
	}
	p.plan.Tensors, p.updates, p.plan.quantization = tensors, updates, q
	return nil
}

// byRecipe applies the recipe to a GGUF model.
func (p *planner) byRecipe(m LlamaModel, q *Quantization) ([]recipe.Choice, error) {
	model := &recipe.Model{Path: m.Path(), Arch: m.Arch()}
	number := func(key string) int {
		if v, ok := m.Get(m.Arch() + "." + key); ok {
			if ns := v.Ints(); len(ns) > 0 && ns[0] == int64(int32(ns[0])) {
				return int(ns[0])
			}
		}
		return 0
	}
	model.Layers, model.Experts = number("block_count"), number("expert_count")
	model.Heads, model.KVHeads = number("attention.head_count"), number("attention.head_count_kv")
	if _, has := m.Get(m.Arch() + ".attention.head_count_kv"); !has {
		model.KVHeads = model.Heads
	}
	for i := range p.plan.Tensors {
		o := &p.plan.Tensors[i]
		model.Tensors = append(model.Tensors, tensor.Spec{Name: o.Name, DType: tensor.DType(o.SourceType), Shape: o.Shape})
	}
	opt := q.Options
	opt.HasImatrix = q.Imatrix != nil
	opt.KeepOrder = q.KeepSplit
	plan, err := recipe.NewPlan(q.Recipe, model, opt)
	if err != nil {
		return nil, err
	}
	if _, _, f := plan.Fallbacks(q.NoFallback); f != nil {
		if f.Level == finding.Error {
			return nil, f
		}
		p.plan.Findings = append(p.plan.Findings, *f)
	}
	var has func(string) bool
	if q.Imatrix != nil {
		has = q.Imatrix.Has
	}
	if err := plan.CheckImatrix(has); err != nil {
		f := finding.Of(err)
		if !q.Preview {
			return nil, f
		}
		f.Level = finding.Warning
		p.plan.Findings = append(p.plan.Findings, *f)
	}
	return plan.Choices, nil
}

// byType gives a model of another format the recipe's one type: all floats where it has 16 bits or more, those
// that do not stay wide where it has 8. A type that a tensor is given by its name counts before that.
func (p *planner) byType(q *Quantization) ([]recipe.Choice, error) {
	switch opt := q.Options; {
	case p.base.Format() == "onnx":
		return nil, finding.Errorf("quant.unsupported", p.base.Path(), "an ONNX graph is quantized by recipes of its own").
			Expected(q.Recipe.Name(), "matmulnbits:4:32, qdq:int8 and the like")
	case !q.Recipe.Plain() || p.base.Format() != "safetensors":
		return nil, finding.Errorf("quant.unsupported", p.base.Path(), "recipe %s needs a GGUF model", q.Recipe.Name()).
			Expected(p.base.Format(), "GGUF").Hinted("safetensors files can hold F32, F16, BF16, F8_E4M3 and F8_E5M2")
	case q.Imatrix != nil, q.KeepSplit, opt.LeaveOutputTensor, opt.OutputTensorType != tensor.Invalid, opt.TokenEmbeddingType != tensor.Invalid:
		return nil, finding.Errorf("quant.unsupported", p.base.Path(), "the roles of tensors and their importance are known for GGUF models only").
			Hinted("--tensor-type REGEX=TYPE chooses types by name")
	}
	choices := make([]recipe.Choice, len(p.plan.Tensors))
	for i := range choices {
		o := &p.plan.Tensors[i]
		t := tensor.DType(o.SourceType)
		if t.IsFloat() {
			if to := q.Recipe.Base(); !isFloat8(to) || !staysWide(o.Name, o.Shape) {
				t = to
			}
			for _, x := range q.Options.TensorTypes {
				if x.Pattern.MatchString(o.Name) {
					t = x.Type
					break
				}
			}
		}
		if t.IsBlock() {
			return nil, finding.Errorf("quant.unsupported", p.base.Path(), "safetensors cannot hold type %s", t).In(o.Name)
		}
		choices[i] = recipe.Choice{Tensor: i, Type: t, Wanted: t}
	}
	return choices, nil
}

// weigh gives a tensor its importance. A matrix without an entry for it is reported, as is one for the
// token embedding of another size, which the reference ignores, too.
func (p *planner) weigh(out *Output, q *Quantization) error {
	w, err := q.Imatrix.For(tensor.Spec{Name: out.Name, Shape: out.Shape})
	if f := finding.Of(err); f != nil {
		if out.Name != "token_embd.weight" {
			return f
		}
		f.Level = finding.Warning
		p.plan.Findings = append(p.plan.Findings, *f)
	}
	if !tensor.DType(out.Type).IsBlock() {
		return nil // nothing to choose
	}
	if w == nil && err == nil && !strings.HasPrefix(out.Name, "token_embd.") && out.Name != "output.weight" {
		p.plan.Findings = append(p.plan.Findings, *finding.Warnf("imatrix.no_entry", q.Imatrix.Path, "there is no entry for the tensor; its columns count the same").In(out.Name))
	}
	out.importance = w
	return nil
}

// encodeRows encodes rows of cols elements from row first on, each with the importance of its matrix.
func (o *Output) encodeRows(c quant.Codec, dst []byte, w []float32, cols, first int64) error {
	if o.importance == nil {
		return c.Encode(dst, w)
	}
	n, err := o.Shape.Elements()
	if err != nil {
		return err
	}
	size, err := c.DType().Bytes(cols)
	if err != nil {
		return err
	}
	perMatrix := n / int64(len(o.importance)) // rows
	for len(w) > 0 {
		matrix := first / perMatrix
		rows := min(int64(len(w))/cols, (matrix+1)*perMatrix-first)
		if err := c.EncodeRows(dst[:rows*size], w[:rows*cols], int(cols), o.importance[matrix*cols:(matrix+1)*cols]); err != nil {
			return err
		}
		dst, w, first = dst[rows*size:], w[rows*cols:], first+rows
	}
	return nil
}

// EncodeRows is how the plan stores rows of the tensor's frame, from row first on, in a type: with the
// importance of its columns, where it has one.
func (o *Output) EncodeRows(t tensor.DType, dst []byte, w []float32, first int64) error {
	c, ok := quant.Of(t)
	if !ok {
		return finding.Errorf("merge.unsupported_type", "", "type %s cannot be encoded", t).In(o.Name)
	}
	return o.encodeRows(c, dst, w, o.frame.Cols, first)
}

// Weighed reports whether the tensor is stored with the importance of its columns.
func (o *Output) Weighed() bool { return o.importance != nil }

// Weigh lets a plan that was made without a recipe store its tensors by an importance matrix: those that
// have an entry of the right size.
func (p *Plan) Weigh(m *imatrix.Matrix) {
	for i := range p.Tensors {
		o := &p.Tensors[i]
		if w, err := m.For(tensor.Spec{Name: o.Name, Shape: o.Shape}); err == nil && w != nil && o.frame.Cols == o.Shape[len(o.Shape)-1] {
			o.importance = w
		}
	}
}

// header puts the keys of a quantized file where the reference puts them: at the end.
func (q *Quantization) header(h *gguf.Header) {
	h.KeepDims, h.Version = false, 3
	h.KVs.SetLast("general.quantization_version", gguf.Of(uint32(2)))
	if n, ok := q.Recipe.FileType(); ok {
		h.KVs.SetLast("general.file_type", gguf.Of(n))
	} else if v, has := h.KVs.Get("general.file_type"); has {
		h.KVs.SetLast("general.file_type", v)
	}
	if q.Imatrix == nil {
		return
	}
	h.KVs.SetLast("quantize.imatrix.file", gguf.Of(q.Imatrix.Path))
	if len(q.Imatrix.Datasets) > 0 {
		h.KVs.SetLast("quantize.imatrix.dataset", gguf.Of(q.Imatrix.Datasets[0]))
	}
	h.KVs.SetLast("quantize.imatrix.entries_count", gguf.Of(uint32(q.Imatrix.Len())))
	if q.Imatrix.Chunks > 0 {
		h.KVs.SetLast("quantize.imatrix.chunks_count", gguf.Of(uint32(q.Imatrix.Chunks)))
	}
}
