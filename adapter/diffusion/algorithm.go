package diffusion

import (
	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/lycoris"
	"github.com/loratool/loratool/tensor"
)

// algorithm decodes a module of another algorithm than plain LoRA.
func (d *decoder) algorithm(s *site) ([]adapter.Update, error) {
	m := lycoris.Module{Name: s.target("").Module, File: d.file, Tensors: map[string]*tensor.Tensor{}}
	var any *tensor.Tensor
	for r, t := range s.role {
		m.Tensors[string(r)] = t
		if any == nil || t.Name < any.Name {
			any = t
		}
	}
	m.Conv = s.alone == "" && s.name.Module.Kind == "conv"
	m.Scale = func(rank int) (adapter.Scale, error) { return d.scale(s, rank) }
	us, err := lycoris.Decode(m)
	if err != nil {
		return nil, err
	}
	var out []adapter.Update
	for _, u := range us {
		if u.Layer == adapter.Linear {
			u.Layer = s.layer()
		}
		split, err := d.canonical(s, any, u)
		if err != nil {
			return nil, err
		}
		out = append(out, split...)
	}
	return out, nil
}
