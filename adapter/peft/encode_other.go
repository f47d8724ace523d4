package peft

import (
	"slices"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/tensor"
)

// stacks writes the factors of fused experts, in PEFT's nesting and packing.
func (e *encoder) stacks() error {
	for _, t := range e.order {
		if err := e.stack(t, e.experts[t]); err != nil {
			return err
		}
	}
	return nil
}

// stack writes one parameter, as one pair of factors for all its experts.
func (e *encoder) stack(target string, ups []*adapter.Update) error {
	u := ups[0]
	n := max(u.Experts, 1)
	parts := make([]*adapter.Update, n)
	for _, v := range ups {
		if v.Experts != u.Experts || v.Rank != u.Rank || v.Scale.Value != u.Scale.Value || v.A.Cols != u.A.Cols || v.B.Rows != u.B.Rows || v.Kind != adapter.LowRank {
			return e.refuse(u.Module, "the experts of %q differ in rank, scale or shape, which PEFT cannot say", target)
		}
		if v.Expert < 0 || v.Expert >= n || parts[v.Expert] != nil {
			return e.refuse(u.Module, "expert %d of %q is there twice or out of range", v.Expert, target)
		}
		parts[v.Expert] = v
	}
	if len(ups) != n {
		return e.refuse(u.Module, "%q has updates for %d of %d experts, which PEFT cannot say", target, len(ups), n)
	}
	depth, err := e.depthOf(u)
	if err != nil {
		return err
	}
	name := u.Module + strings.Repeat(".base_layer", depth)
	r, in, out := int64(u.Rank), u.A.Cols, u.B.Rows
	rows := int64(n) * r
	e.add(name+".lora_A.weight", tensor.Shape{rows, in}, adapter.FromFunc(rows, in, func() ([]float32, error) {
		v := make([]float32, 0, rows*in)
		for _, p := range parts {
			a, err := p.A.Load()
			if err != nil {
				return nil, err
			}
			v = append(v, a...)
		}
		return v, nil
	}))
	e.add(name+".lora_B.weight", tensor.Shape{out, rows}, adapter.FromFunc(out, rows, func() ([]float32, error) {
		v := make([]float32, out*rows)
		for i, p := range parts {
			b, err := p.B.Load()
			if err != nil {
				return nil, err
			}
			for o := range out {
				for k := range r {
					v[o*rows+k*int64(n)+int64(i)] = b[o*r+k]
				}
			}
		}
		return v, nil
	}))
	list, _ := e.config["target_parameters"].([]string)
	list = append(list, target)
	slices.Sort(list)
	e.config["target_parameters"] = list
	e.scaled = append(e.scaled, scaled{target, u.Rank, u.Scale, u.Scale.Value})
	return nil
}

// depthOf counts the wrappers outside a parameter's: PEFT wraps the parameters of a module in the order in
// which they are registered, so the last one is outermost.
func (e *encoder) depthOf(u *adapter.Update) (int, error) {
	var params []string
	for i := range e.a.Updates {
		if v := &e.a.Updates[i]; v.Module == u.Module && (v.Kind == adapter.LowRank || v.Kind == adapter.DoRA) && !slices.Contains(params, v.Param) {
			params = append(params, v.Param)
		}
	}
	if len(params) == 1 {
		return 0, nil
	}
	depth := 0
	for _, p := range params {
		at := slices.Index(registered, p)
		if at < 0 {
			return 0, e.refuse(u.Module, "the order in which %q registers its parameters %s is not known", u.Module, strings.Join(params, ", "))
		}
		if at > slices.Index(registered, u.Param) {
			depth++
		}
	}
	return depth, nil
}

// others writes biases, replacements and token rows.
func (e *encoder) others() error {
	saved, tokens := map[string]bool{}, map[string][]int64{}
	for i := range e.a.Updates {
		u := &e.a.Updates[i]
		switch u.Kind {
		case adapter.LowRank, adapter.DoRA:
		case adapter.Bias:
			w := e.at[u.Module+".weight"]
			if w == nil || w.Scale.Value != u.Scale.Value {
				return e.refuse(u.Module, "the bias of %q has another scale than its weight, or no weight beside it", u.Module)
			}
			e.config["lora_bias"] = true
			e.add(u.Module+".lora_B.bias", tensor.Shape{u.Value.Cols}, u.Value)
		case adapter.Replace:
			e.replace(u, saved)
		case adapter.Rows:
			tokens[leafOf(u.Module)] = u.Index
			e.add(u.Module+".token_adapter.trainable_tokens_delta", tensor.Shape{u.Value.Rows, u.Value.Cols}, u.Value)
		default:
			return e.refuse(u.Module, "an update of kind %q has no form in PEFT's LoRA", u.Kind)
		}
	}
	if len(saved) > 0 {
		e.config["modules_to_save"] = sortedKeys(saved)
	}
	if ids := tokens["embed_tokens"]; ids != nil && len(tokens) == 1 {
		e.config["trainable_token_indices"] = ids
	} else if len(tokens) > 0 {
		e.config["trainable_token_indices"] = tokens
	}
	return nil
}

// replace writes a whole parameter: below the wrapper of a module that is adapted too, as a trained bias, or
// as a part of a saved module.
func (e *encoder) replace(u *adapter.Update, saved map[string]bool) {
	shape := tensor.Shape{u.Value.Rows, u.Value.Cols}
	switch {
	case u.Value.Stored != nil:
		shape = u.Value.Stored.Shape
	case u.Layer == "":
		shape = tensor.Shape{u.Value.Rows * u.Value.Cols}
	}
	name := u.Target.String()
	wrapped := e.at[u.Module+".weight"] != nil || e.at[u.Module+".in_proj_weight"] != nil
	if wrapped {
		name = u.Module + ".base_layer." + u.Param
	}
	e.add(name, shape, u.Value)
	alone := !slices.ContainsFunc(e.a.Updates, func(v adapter.Update) bool {
		return v.Kind == adapter.Replace && v.Module == u.Module && !strings.HasSuffix(v.Param, "bias")
	})
	switch bias := strings.HasSuffix(u.Param, "bias"); {
	case bias && wrapped && e.config["bias"] == "none":
		e.config["bias"] = "lora_only"
	case bias && !wrapped && alone:
		e.config["bias"] = "all"
	case !wrapped:
		saved[leafOf(u.Module)] = true
	}
}
