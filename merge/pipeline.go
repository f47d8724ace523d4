package merge

import (
	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/diffusion"
	"github.com/loratool/loratool/naming"
)

// renamed brings an adapter of a diffusion model that names its modules as the class in diffusers does into the
// names of pipelines, where the base has not got them: a checkpoint with the original names.
func renamed(base Base, a *adapter.Adapter) *adapter.Adapter {
	if a.Space != naming.HF || len(a.Updates) == 0 || base.Format() != "safetensors" {
		return a
	}
	var names []string
	for _, t := range base.Tensors() {
		names = append(names, t.Name)
	}
	u := a.Updates[0]
	if _, err := naming.NewHF(names, nil).Find(u.Module, u.Param); err == nil {
		return a
	}
	if d, ok := diffusion.Canonical(a); ok {
		return d
	}
	return a
}
