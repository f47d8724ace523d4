package recipe

import (
	"slices"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// A planner walks over the tensors in output order. Some rules depend on how many of a kind came before.
type planner struct {
	recipe Recipe
	model  *Model
	opt    Options
	tied   bool // no output layer of its own
	nV     int

	iV, iUp, iGate, iDown int
}

// choose applies the rules in their order of precedence.
func (p *planner) choose(s tensor.Spec) (Choice, error) {
	keep := Choice{Type: s.DType, Wanted: s.DType}
	if p.recipe.base == tensor.Invalid || !quantizable(s) || p.opt.LeaveOutputTensor && s.Name == outputName {
		return keep, nil
	}
	cat := categoryOf(s.Name)
	override := p.override(s.Name)
	var t tensor.DType
	var err error
	switch {
	case cat == embedding && p.opt.TokenEmbeddingType != tensor.Invalid && !(s.Name == perLayerEmbedding && override != tensor.Invalid):
		return p.needs(Choice{Type: p.opt.TokenEmbeddingType, Wanted: p.opt.TokenEmbeddingType}, cat), nil
	case cat == output && p.opt.OutputTensorType != tensor.Invalid:
		return p.needs(Choice{Type: p.opt.OutputTensorType, Wanted: p.opt.OutputTensorType}, cat), nil
	case p.recipe.Plain():
		return Choice{Type: p.recipe.base, Wanted: p.recipe.base}, nil
	case override != tensor.Invalid:
		t = override
	case p.opt.Pure:
		t = p.recipe.base
	default:
		if t, err = p.mixture(s, cat); err != nil {
			return Choice{}, err
		}
	}
	c := Choice{Type: t, Wanted: t}
	if c.Type, err = p.fit(s, t); err != nil {
		return Choice{}, err
	}
	return p.needs(c, cat), nil
}

func (p *planner) override(name string) tensor.DType {
	for _, o := range p.opt.TensorTypes {
		if o.Pattern.MatchString(name) {
			return o.Type
		}
	}
	return tensor.Invalid
}

// needs marks types that must not be used without an importance matrix: some cannot be encoded at all,
// others come out too bad to be of use. The reference spares embedding and output layer the latter.
func (p *planner) needs(c Choice, cat category) Choice {
	switch c.Type {
	case tensor.IQ2_XXS, tensor.IQ2_XS, tensor.IQ1_S:
		c.NeedsOwn = true
	case tensor.IQ3_XXS, tensor.IQ2_S, tensor.IQ1_M:
		c.NeedsOwn = cat != embedding && cat != output
	case tensor.Q2_K:
		c.NeedsOwn = p.recipe.name == "Q2_K_S" && cat != embedding && cat != output
	}
	return c
}

// fit returns the type that stands in for one whose blocks do not divide the rows.
func (p *planner) fit(s tensor.Spec, t tensor.DType) (tensor.DType, error) {
	cols := columns(s.Shape)
	divides := func(t tensor.DType) bool { return cols%int64(t.BlockLen()) == 0 }
	if divides(t) {
		return t, nil
	}
	switch t {
	case tensor.IQ1_S, tensor.IQ1_M, tensor.IQ2_XXS, tensor.IQ2_XS, tensor.IQ2_S, tensor.IQ3_XXS, tensor.IQ3_S, tensor.IQ4_XS:
		t = tensor.IQ4_NL
	case tensor.Q2_0, tensor.Q2_K, tensor.Q3_K, tensor.TQ1_0, tensor.TQ2_0:
		t = tensor.Q4_0
	case tensor.Q4_K:
		t = tensor.Q5_0
	case tensor.Q5_K:
		t = tensor.Q5_1
	case tensor.Q6_K:
		t = tensor.Q8_0
	case tensor.Q1_0, tensor.NVFP4:
		return t, finding.Errorf("quant.no_fallback_type", p.model.Path, "rows of %d do not divide into blocks of %s (%d), and no other type stands in for it", cols, t, t.BlockLen()).
			In(s.Name).Hinted("choose a type for the tensor: --tensor-type 'NAME=q8_0'")
	}
	if !divides(t) {
		t = tensor.F16
	}
	return t, nil
}

// more picks the layers that get more bits: the first and last eighth, and every third between.
func more(i, n int) bool { return i < n/8 || i >= 7*n/8 || (i-n/8)%3 == 2 }

// is reports whether the recipe is one of these.
func (p *planner) is(names ...string) bool { return slices.Contains(names, p.recipe.name) }

// gqa is how many query heads share a key-value head.
func (p *planner) gqa() int {
	if p.model.KVHeads == 0 {
		return 0
	}
	return p.model.Heads / p.model.KVHeads
}

// is70 reports whether the model is one of the large ones whose few value heads deserve more bits.
func (p *planner) is70() bool {
	m := p.model
	switch m.Arch {
	case "llama":
		return m.Layers == 80 && m.Heads != m.KVHeads
	case "qwen2", "deci", "olmo":
		return m.Layers == 80
	case "jais2":
		return m.Layers == 68
	}
	return false
}

// place is the position that rules for feed-forward tensors look at: how many came before, or the layer
// in a mixture of experts, whose order by name is not the order of layers.
func (p *planner) place(s tensor.Spec, count int) (int, error) {
	if p.model.Experts <= 1 {
		return count, nil
	}
	i := layerOf(s.Name)
	if i < 0 || i >= p.model.Layers {
		return 0, finding.Errorf("quant.bad_layer", p.model.Path, "the tensor's layer is not one of the model's").In(s.Name).
			Expected(i, p.model.Layers)
	}
	return i, nil
}

// mixture is the type of a tensor in a mixture.
func (p *planner) mixture(s tensor.Spec, cat category) (tensor.DType, error) {
	t := p.recipe.base
	switch {
	case cat == output || cat == embedding && p.tied:
		return p.head(s, t), nil
	case p.is("MXFP4_MOE"):
		part := cat == ffnUp || cat == ffnGate || cat == ffnDown
		if matrices(s.Shape) > 1 && (p.model.Arch != "bailingmoe3" || part) {
			return tensor.MXFP4, nil
		}
		return tensor.Q8_0, nil
	case cat == embedding:
		return p.embedding(t), nil
	case p.is("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M"):
		return p.tiny(t, cat), nil
	case cat == attnV:
		defer func() { p.iV++ }()
		return p.values(t), nil
	case cat == attnK && p.model.Experts == 8:
		return tensor.Q8_0, nil
	case cat == attnK || cat == attnQ:
		if p.is("IQ3_XS") {
			return tensor.IQ3_XXS, nil
		}
		if p.is("IQ3_XXS") {
			return tensor.IQ2_S, nil
		}
		return t, nil
	case cat == ffnDown:
		i, err := p.place(s, p.iDown)
		p.iDown++
		return p.down(t, i), err
	case cat == attnOut:
		return p.attentionOut(t), nil
	case cat == ffnGate:
		i, err := p.place(s, p.iGate)
		p.iGate++
		return p.wide(t, i), err
	case cat == ffnUp:
		i, err := p.place(s, p.iUp)
		p.iUp++
		return p.wide(t, i), err
	}
	return t, nil
}

// head is the output layer, or the embedding that stands for it.
func (p *planner) head(s tensor.Spec, t tensor.DType) tensor.DType {
	switch {
	case p.opt.OutputTensorType != tensor.Invalid:
		return p.opt.OutputTensorType
	case p.is("MXFP4_MOE"), p.model.Arch == "falcon", columns(s.Shape)%int64(t.BlockLen()) != 0:
		return tensor.Q8_0
	case p.is("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS"):
		return tensor.Q5_K
	case t != tensor.Q8_0:
		return tensor.Q6_K
	}
	return t
}

func (p *planner) embedding(t tensor.DType) tensor.DType {
	switch {
	case p.is("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"):
		return tensor.Q2_K
	case p.is("IQ2_S", "IQ2_M", "IQ3_XXS"):
		return tensor.IQ3_S
	case p.is("TQ1_0", "TQ2_0", "Q2_0"):
		return tensor.Q4_K
	}
	return t
}

// tiny are the rules of the recipes of one and two bits.
func (p *planner) tiny(t tensor.DType, cat category) tensor.DType {
	small := p.is("IQ2_S", "IQ2_M")
	better := tensor.Q2_K
	if small {
		better = tensor.IQ3_S
	}
	switch cat {
	case attnV:
		p.iV++
		if p.gqa() >= 4 || p.model.Experts >= 4 {
			return tensor.Q4_K
		}
		return better
	case attnK:
		if p.model.Experts == 8 {
			return tensor.Q4_K
		}
	case ffnDown:
		i := p.iDown
		p.iDown++
		if i < p.model.Layers/8 {
			return better
		}
	case attnOut:
		switch {
		case p.model.Experts == 8:
			return tensor.Q5_K
		case p.is("IQ1_S", "IQ1_M"):
			return tensor.IQ2_XXS
		case small:
			return tensor.IQ3_S
		}
	}
	return t
}

// values are the rules for attention values, which matter most for their size.
func (p *planner) values(t tensor.DType) tensor.DType {
	shared := p.gqa() >= 4
	switch {
	case p.is("Q2_K"):
		t = tensor.Q3_K
		if shared {
			t = tensor.Q4_K
		}
	case p.is("Q2_K_S") && shared:
		t = tensor.Q4_K
	case p.is("IQ3_XXS"):
		t = tensor.IQ3_S
		if shared {
			t = tensor.Q4_K
		} else if p.opt.HasImatrix {
			t = tensor.IQ3_XXS
		}
	case p.is("IQ3_XS", "IQ3_S") && shared, p.is("IQ3_M"):
		t = tensor.Q4_K
	case p.is("Q3_K_M"):
		t = tensor.Q4_K
		if p.iV < 2 {
			t = tensor.Q5_K
		}
	case p.is("Q3_K_L"), p.is("IQ4_NL", "IQ4_XS") && shared:
		t = tensor.Q5_K
	case p.is("Q4_K_M", "Q5_K_M") && more(p.iV, p.nV):
		t = tensor.Q6_K
	case p.is("Q4_K_S") && p.iV < 4:
		t = tensor.Q5_K
	}
	if p.is70() && (t == tensor.Q3_K || t == tensor.Q4_K) {
		t = tensor.Q5_K
	}
	if p.model.Experts == 8 {
		t = tensor.Q8_0
	}
	return t
}

// down are the rules for the second half of the feed-forward part.
func (p *planner) down(t tensor.DType, i int) tensor.DType {
	n, falcon := p.model.Layers, p.model.Arch == "falcon"
	early := i < n/8
	switch {
	case p.is("Q2_K"):
		return tensor.Q3_K
	case p.is("Q2_K_S") && early:
		return tensor.Q4_K
	case p.is("IQ3_XXS") && !p.opt.HasImatrix:
		if early {
			return tensor.Q4_K
		}
		return tensor.Q3_K
	case p.is("Q3_K_M"):
		switch {
		case i < n/16:
			return tensor.Q5_K
		case !falcon || more(i, n):
			return tensor.Q4_K
		}
		return tensor.Q3_K
	case p.is("IQ3_M") && (early || p.model.Experts == 8 && more(i, n)):
		return tensor.Q4_K
	case p.is("Q3_K_L"):
		if falcon {
			return tensor.Q4_K
		}
		return tensor.Q5_K
	case p.is("Q4_K_M") && falcon:
		switch {
		case i < n/16:
			return tensor.Q6_K
		case more(i, n):
			return tensor.Q5_K
		}
		return tensor.Q4_K
	case p.is("Q4_K_M", "Q5_K_M") && more(i, n):
		return tensor.Q6_K
	case p.is("IQ4_NL", "IQ4_XS") && early && !p.opt.HasImatrix, p.is("Q4_K_S") && !falcon && early:
		return tensor.Q5_K
	case p.is("Q4_0") && p.opt.HasImatrix && early:
		return tensor.Q4_1
	case p.is("Q5_0") && p.opt.HasImatrix && early:
		return tensor.Q5_1
	}
	return t
}

func (p *planner) attentionOut(t tensor.DType) tensor.DType {
	switch {
	case p.model.Arch == "falcon":
		if p.is("Q3_K_L") {
			return tensor.Q4_K
		}
	case p.model.Experts == 8:
		if p.is("Q2_K", "IQ3_XS", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ3_S", "IQ3_M", "IQ4_XS") {
			return tensor.Q5_K
		}
	case p.is("Q2_K"):
		return tensor.Q3_K
	case p.is("IQ3_XXS"):
		return tensor.IQ3_S
	case p.is("Q3_K_M", "IQ3_M"):
		return tensor.Q4_K
	case p.is("Q3_K_L"):
		return tensor.Q5_K
	}
	return t
}

// wide are the rules for the first half of the feed-forward part.
func (p *planner) wide(t tensor.DType, i int) tensor.DType {
	n := p.model.Layers
	if p.is("IQ3_XS") && i >= n/8 && i < 7*n/8 {
		return tensor.IQ3_XXS
	}
	return t
}
