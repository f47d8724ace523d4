package naming

import (
	"fmt"
	"slices"
	"strings"
)

// A Source is a module's parameter and the place where a GGUF tensor holds it.
type Source struct {
	Module, Param string
	Place         Place
}

// ToGGUF returns where llama.cpp's converter stores a parameter of a Hugging Face module: one place, or
// several where it splits the parameter or reorders its parts. No stored names are needed, so the
// tensors may be missing from a given file. A module that is already a GGUF name is its own place. The
// error is an *UnknownArchitecture, a *NotFound, or says which hyper-parameter is missing.
func ToGGUF(arch string, hp HyperParameters, module, param string) ([]Place, error) {
	a, err := architectures().lookup(arch)
	if err != nil {
		return nil, err
	}
	if err := hp.check(); err != nil {
		return nil, err
	}
	return a.places(hp, module, param)
}

// FromGGUF is the inverse of ToGGUF: the modules' parameters that the GGUF tensor holds. There is one
// Source, or one for each matrix of a stack of experts, or several of one module where the tensor
// regroups its rows.
func FromGGUF(arch string, hp HyperParameters, tensor string) ([]Source, error) {
	a, err := architectures().lookup(arch)
	if err != nil {
		return nil, err
	}
	if err := hp.check(); err != nil {
		return nil, err
	}
	base, param := tensor, ""
	for _, p := range []string{"weight", "bias"} {
		if b, ok := strings.CutSuffix(tensor, "."+p); ok {
			base, param = b, p
		}
	}
	name, layer, _ := generic(tensor)
	at := a.tensors[name]
	if param != "" {
		name, _, _ = generic(base)
		at = append(slices.Clone(at), a.tensors[name]...)
	}
	if len(at) == 0 || layer >= 0 && hp.Layers > 0 && layer >= hp.Layers {
		x := nameIndex{names: func() []string { return a.stored(layer) }}
		return nil, &NotFound{Param: tensor, Nearest: x.nearest(tensor),
			Reason: fmt.Sprintf("%s has no such tensor", arch)}
	}
	r := a.rows[slices.Min(at)]
	if r.param != "" {
		param = r.param
	}
	experts := int64(1)
	if strings.Contains(r.module, "@") {
		if experts = hp.Experts; experts == 0 {
			return nil, missing(arch, "number of experts")
		}
	}
	var out []Source
	for e := range experts {
		module := specific(r.module, layer, e)
		places, err := a.places(hp, module, param)
		if err != nil {
			return nil, err
		}
		for _, p := range places {
			if p.Tensor == tensor {
				out = append(out, Source{module, param, p})
			}
		}
	}
	return out, nil
}

// stored are the tensor names of a layer, for suggestions.
func (a *architecture) stored(layer int64) []string {
	var out []string
	for _, r := range a.rows {
		name := specific(r.tensor, max(layer, 0), 0)
		if r.param == "" {
			name += ".weight"
		}
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

func missing(arch, what string) error {
	return fmt.Errorf("the %s of this %s model is not known", what, arch)
}

// places turns the rows of a parameter into places.
func (a *architecture) places(hp HyperParameters, module, param string) ([]Place, error) {
	if name, layer, expert := generic(module); expert < 0 && (param == "weight" || param == "bias") {
		at := a.tensors[name]
		if at == nil {
			at = a.tensors[name+"."+param]
		}
		if at != nil && (layer < 0 || hp.Layers == 0 || layer < hp.Layers) {
			return []Place{{Tensor: join(module, param), Rule: "name"}}, nil
		}
	}
	rows, layer, expert := a.find(module, param)
	e := &NotFound{Module: module, Param: param}
	switch {
	case len(rows) == 0 && isHead(module) && a.tied:
		e.Reason = tied
	case len(rows) == 0:
		e.Reason = fmt.Sprintf("%s models have no such module in llama.cpp", a.name)
		x := nameIndex{names: func() []string { return a.hfNames(max(layer, 0), max(expert, 0)) }}
		for _, n := range x.nearest(join(module, param)) {
			m, p := leaf(n)
			if found, err := a.places(hp, m, p); err == nil && !slices.Contains(e.Nearest, found[0].Tensor) {
				e.Nearest = append(e.Nearest, found[0].Tensor)
			}
		}
	case hp.Layers > 0 && layer >= hp.Layers:
		e.Reason = fmt.Sprintf("the model has %d layers", hp.Layers)
	case hp.Experts > 0 && expert >= hp.Experts:
		e.Reason = fmt.Sprintf("the model has %d experts", hp.Experts)
	default:
		var out []Place
		for _, r := range rows {
			p := Place{Tensor: specific(r.tensor, layer, expert), Rule: "architecture " + a.name}
			if r.param == "" {
				p.Tensor = join(p.Tensor, param)
			}
			if strings.Contains(r.module, "@") {
				if hp.Experts == 0 {
					return nil, missing(a.name, "number of experts")
				}
				p.Expert, p.Experts = expert, hp.Experts
			}
			parts, err := transform(a.name, hp, r.op, p)
			if err != nil {
				return nil, err
			}
			out = append(out, parts...)
		}
		return out, nil
	}
	return nil, e
}

// hfNames are the parameters of one layer and expert under their Hugging Face names.
func (a *architecture) hfNames(layer, expert int64) []string {
	out := make([]string, len(a.rows))
	for i, r := range a.rows {
		p := r.param
		if p == "" {
			p = "weight"
		}
		out[i] = join(specific(r.module, layer, expert), p)
	}
	return out
}

// transform applies a row's op to the plain place p.
func transform(arch string, hp HyperParameters, op string, p Place) ([]Place, error) {
	need := func(v int64, what string) error {
		if v == 0 {
			return missing(arch, what)
		}
		return nil
	}
	switch op {
	case "heads", "kvheads":
		if p.Heads = hp.Heads; op == "kvheads" {
			p.Heads = hp.KVHeads
		}
		return []Place{p}, need(p.Heads, "number of heads")
	case "qkv":
		return regroup(p, hp.Heads, hp.Heads, hp.HeadDim), need(hp.Heads*hp.HeadDim, "number or size of heads")
	case "kvqkv":
		if hp.KVHeads > 0 && hp.Heads%hp.KVHeads != 0 {
			return nil, fmt.Errorf("%d query heads cannot share %d key-value heads", hp.Heads, hp.KVHeads)
		}
		return regroup(p, hp.Heads, hp.KVHeads, hp.HeadDim), need(hp.KVHeads*hp.HeadDim, "number or size of heads")
	case "gate", "up":
		if p.Rows, p.Run = hp.ExpertWidth, hp.ExpertWidth; op == "up" {
			p.First = hp.ExpertWidth
		}
		return []Place{p}, need(p.Rows, "width of an expert")
	case "even", "odd":
		if p.Rows, p.Run, p.Step = hp.ExpertWidth, 1, 2; op == "odd" {
			p.First = 1
		}
		return []Place{p}, need(p.Rows, "width of an expert")
	case "kpart", "vpart":
		return latent(p, hp, op == "kpart"), need(hp.KVHeads*hp.NopeDim*hp.ValueDim, "number or size of latent heads")
	}
	return []Place{p}, nil
}

// regroup places rows that come in groups of heads/groups query heads, one key head and one value head,
// each of dim rows, in a tensor that stores all queries, then all keys, then all values.
func regroup(p Place, heads, groups, dim int64) []Place {
	if groups == 0 {
		return nil
	}
	queries := heads / groups
	p.Step = (queries + 2) * dim
	q, k, v := p, p, p
	q.Run, q.Rows = queries*dim, heads*dim
	k.First, k.Run, k.Rows, k.RowOffset = queries*dim, dim, groups*dim, heads*dim
	v.First, v.Run, v.Rows, v.RowOffset = (queries+1)*dim, dim, groups*dim, (heads+groups)*dim
	return []Place{q, k, v}
}

// latent places the rows of kv_b_proj that hold the keys, or the values, of each head. The tensor is a
// stack of one matrix per head; those of the keys are stored transposed.
func latent(p Place, hp HyperParameters, keys bool) []Place {
	out := make([]Place, hp.KVHeads)
	for h := range out {
		q := p
		q.Expert, q.Experts = int64(h), hp.KVHeads
		q.First, q.Run = int64(h)*(hp.NopeDim+hp.ValueDim), hp.NopeDim
		if q.Transposed = keys; !keys {
			q.First, q.Run = q.First+hp.NopeDim, hp.ValueDim
		}
		q.Rows = q.Run
		out[h] = q
	}
	return out
}

// gguf resolves modules against the tensor names of one GGUF model.
type gguf struct {
	arch   *architecture // nil: only GGUF names are known
	hp     HyperParameters
	stored map[string]bool
	near   nameIndex
}

// NewGGUF returns the resolver for a GGUF model whose tensors have these names. It understands Hugging
// Face module paths (with the prefixes that NewHF tolerates) through the architecture's table, and
// modules that are GGUF names. Separate q, k and v are also found in an attn_qkv that the base was
// converted with. For an architecture without a table the error is an *UnknownArchitecture, and the
// resolver that comes with it finds GGUF names only.
func NewGGUF(arch string, hp HyperParameters, names []string) (Resolver, error) {
	r := &gguf{hp: hp, stored: make(map[string]bool, len(names))}
	for _, n := range names {
		r.stored[n] = true
	}
	r.near.names = func() []string { return names }
	if err := r.hp.check(); err != nil {
		return nil, err
	}
	var err error
	r.arch, err = architectures().lookup(arch)
	return r, err
}

func (r *gguf) Find(module, param string) ([]Place, error) {
	if name := join(module, param); r.stored[name] {
		return []Place{{Tensor: name, Rule: "name"}}, nil
	}
	if r.arch == nil {
		return nil, &NotFound{Module: module, Param: param, Nearest: r.near.nearest(join(module, param))}
	}
	places, err := r.arch.places(r.hp, module, param)
	if err != nil {
		return nil, err
	}
	lacking := slices.IndexFunc(places, func(p Place) bool { return !r.stored[p.Tensor] })
	if lacking < 0 {
		return places, nil
	}
	if p, ok := r.fused(places); ok {
		return []Place{p}, nil
	}
	tensor := places[lacking].Tensor
	e := &NotFound{Module: module, Param: param, Reason: fmt.Sprintf("it has no %q", tensor)}
	if strings.HasPrefix(tensor, "output.") {
		e.Reason = tied
	}
	e.Nearest = r.near.nearest(tensor)
	return nil, e
}

// fused finds the place of a q, k or v projection in a base that stores the three in one tensor, q
// first, after the rotary reordering of each.
func (r *gguf) fused(places []Place) (Place, bool) {
	p := places[0]
	head, last := leaf(p.Tensor)
	block, name := leaf(head)
	p.Tensor = join(join(block, "attn_qkv"), last)
	q, kv := r.hp.Heads*r.hp.HeadDim, r.hp.KVHeads*r.hp.HeadDim
	if len(places) > 1 || q == 0 || kv == 0 || !r.stored[p.Tensor] {
		return p, false
	}
	switch name {
	case "attn_q":
		p.RowOffset, p.Rows = 0, q
	case "attn_k":
		p.RowOffset, p.Rows = q, kv
	case "attn_v":
		p.RowOffset, p.Rows = q+kv, kv
	default:
		return p, false
	}
	p.Rule += ", fused"
	return p, true
}
