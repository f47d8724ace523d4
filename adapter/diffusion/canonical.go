package diffusion

import (
	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/naming"
)

// Canonical is an adapter in naming.HF, as PEFT's folders are, in naming.Diffusers. It is false where not all
// of its modules are those of one family of pipelines.
func Canonical(a *adapter.Adapter) (*adapter.Adapter, bool) {
	if a.Space != naming.HF || len(a.Updates) == 0 {
		return nil, false
	}
	sites := make([]*site, len(a.Updates))
	for i := range a.Updates {
		sites[i] = siteOf(&a.Updates[i])
	}
	family, known, _ := choose(sites)
	if known < len(sites) {
		return nil, false
	}
	out := *a
	out.Space, out.Arch, out.Updates = naming.Diffusers, family.Name, nil
	for i, s := range sites {
		s.name, _, _ = s.find(family)
		us, ok := split(a.Updates[i], s.name, nil, s.spelled() == naming.Original)
		if !ok {
			return nil, false
		}
		out.Updates = append(out.Updates, us...)
	}
	return &out, true
}
