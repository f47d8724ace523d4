package peft

import (
	"encoding/json"
	"strconv"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/tensor"
)

// A tuner is a method of PEFT other than LoRA.
type tuner struct {
	marks  []string // how the names of its tensors begin
	shared []string // tensors that all modules share
	decode func(d *decoder, s *site) ([]adapter.Update, error)
}

// tuners are those that can be merged, by peft_type.
var tuners map[string]*tuner

func init() {
	tuners = map[string]*tuner{
		"LOHA":             {marks: []string{"hada_"}, decode: (*decoder).loha},
		"LOKR":             {marks: []string{"lokr_"}, decode: (*decoder).lokr},
		"IA3":              {marks: []string{"ia3_l"}, decode: (*decoder).ia3},
		"OFT":              {marks: []string{"oft_R", "oft_embedding_R"}, decode: (*decoder).oft},
		"BOFT":             {marks: []string{"boft_R", "boft_s"}, decode: (*decoder).boft},
		"HRA":              {marks: []string{"hra_u"}, decode: (*decoder).hra},
		"ADALORA":          {marks: []string{"lora_A", "lora_B", "lora_E"}, decode: (*decoder).adalora},
		"HIRA":             {marks: []string{"hira_"}, decode: (*decoder).hira},
		"DELORA":           {marks: []string{"delora_"}, decode: (*decoder).delora},
		"VERA":             {marks: []string{"vera_lambda_"}, shared: []string{"vera_A", "vera_B"}, decode: (*decoder).vera},
		"C3A":              {marks: []string{"c3a_kernel"}, decode: (*decoder).c3a},
		"LN_TUNING":        {marks: []string{"ln_tuning_layers"}, decode: (*decoder).replaced},
		"TRAINABLE_TOKENS": {marks: []string{"trainable_tokens_delta"}, decode: (*decoder).rows},
		"BEFT":             {marks: []string{"beft_bias"}, decode: (*decoder).beft},
	}
}

// ofTuner reads the numbers that a tuner's scales depend on.
func (r *reader) ofTuner() {
	for key, to := range map[string]*[]pattern{"rank_pattern": &r.ranks, "alpha_pattern": &r.alphas} {
		if _, ok := r.o.vals[key].(*object); !ok || r.peftType == "ADALORA" {
			continue // AdaLoRA's rank_pattern is a mask that the tensors follow already
		}
		*to = r.patterns(key, r.alphaValue)
	}
	if v := r.o.vals["r"]; v != nil && r.peftType != "OFT" {
		r.rank = r.rankValue("r", v)
	}
	key := "alpha"
	if r.peftType == "ADALORA" {
		key = "lora_alpha"
	}
	if v := r.o.vals[key]; v != nil {
		r.alpha, r.alphaText = r.alphaValue(key, v)
	}
}

// float is a number of the configuration, or its default.
func (c *config) float(key string, standard float64) float64 {
	n, ok := c.stated.vals[key].(json.Number)
	v, err := strconv.ParseFloat(string(n), 64)
	if !ok || err != nil {
		return standard
	}
	return v
}

// on is a switch of the configuration, or its default.
func (c *config) on(key string, standard bool) bool {
	if v, ok := c.stated.vals[key].(bool); ok {
		return v
	}
	return standard
}

// parse takes a tensor name apart, by the marks of the tuner.
func (d *decoder) parse(name string) key {
	if d.tuner == nil {
		return parseKey(name)
	}
	rest := name
	for {
		cut, ok := strings.CutPrefix(rest, "base_model.model.")
		if !ok {
			break
		}
		rest = cut
	}
	for _, s := range d.tuner.shared {
		if rest == s || rest == "base_model."+s || strings.HasSuffix(rest, "."+s) {
			return key{role: roleShared, param: s}
		}
	}
	parts := strings.Split(rest, ".")
	for i := len(parts) - 1; i > 0; i-- {
		for _, m := range d.tuner.marks {
			if strings.HasPrefix(parts[i], m) {
				module := without(without(parts[:i], "base_layer"), "token_adapter")
				return key{role: rolePart, module: strings.Join(module, "."), param: strings.Join(parts[i:], ".")}
			}
		}
	}
	return valueKey(parts)
}

// part adds a tensor to its module.
func (d *decoder) part(k key, t *tensor.Tensor) {
	id := siteID{k.module, 0}
	s := d.byPath[id]
	if s == nil {
		s = &site{key: k, path: k.module, first: t.Name, parts: map[string]*tensor.Tensor{}}
		d.byPath[id] = s
		d.sites = append(d.sites, s)
	}
	s.parts[k.param] = t
}

// changes are the updates of all modules, in file order.
func (d *decoder) changes(a *adapter.Adapter) error {
	if d.tuner == nil {
		return d.factors(a)
	}
	for _, s := range d.sites {
		ups, err := d.tuner.decode(d, s)
		if err != nil {
			return err
		}
		a.Updates = append(a.Updates, ups...)
	}
	return nil
}

// take is a part of a module as a matrix with its first dimension as rows.
func (d *decoder) take(s *site, u *adapter.Update, part string) (adapter.Factor, error) {
	t := s.parts[part]
	if t == nil {
		f := d.errorf("missing_pair", s.first, "module %q has no tensor %s", s.module, part)
		f.Module = s.module
		return adapter.Factor{}, f
	}
	return d.see(u, t)
}

// see adds a tensor to an update, as a matrix.
func (d *decoder) see(u *adapter.Update, t *tensor.Tensor) (adapter.Factor, error) {
	rows, cols, err := t.Shape.Matrix()
	if err != nil || rows == 0 || cols == 0 {
		return adapter.Factor{}, d.errorf("shape_mismatch", t.Name, "an empty tensor")
	}
	u.Tensors = append(u.Tensors, t.Name)
	return adapter.FromTensor(*t, rows, cols, adapter.ReadFloats), nil
}

// begin is an update of a module's parameter with the scale 1.
func (s *site) begin(param string, kind adapter.Kind, source string) adapter.Update {
	return adapter.Update{Target: adapter.Target{Module: s.module, Param: param}, Kind: kind, Layer: adapter.Linear, Scale: adapter.Scale{Value: 1, Source: source}}
}

// product takes the factors of B·A.
func (d *decoder) product(s *site, u *adapter.Update, a, b string) (err error) {
	if u.A, err = d.take(s, u, a); err != nil {
		return err
	}
	if u.B, err = d.take(s, u, b); err != nil {
		return err
	}
	if u.A.Rows != u.B.Cols {
		return d.errorf("rank_mismatch", s.parts[a].Name, "the factors of module %q do not fit each other", s.module).
			Expected(s.parts[a].Shape, "[r, in] for B "+s.parts[b].Shape.String())
	}
	u.Rank = int(u.A.Rows)
	if shape := s.parts[a].Shape; len(shape) > 2 {
		u.Layer = adapter.Conv
	}
	return nil
}

// only checks that a module has no other tensors than the tuner's.
func (d *decoder) only(s *site, parts ...string) error {
	for name, t := range s.parts {
		known := false
		for _, p := range parts {
			known = known || p == name
		}
		if !known {
			return d.errorf("unexpected_tensor", t.Name, "not a part of an adapter of type %s this program knows", d.peftType)
		}
	}
	return nil
}
