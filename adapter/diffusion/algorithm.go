package diffusion

import (
	"cmp"
	"slices"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
)

// algorithm decodes a module of another algorithm than plain LoRA.
func (d *decoder) algorithm(s *site) ([]adapter.Update, error) {
	roles := make([]role, 0, len(s.role))
	for r := range s.role {
		if !slices.Contains(plain, r) {
			roles = append(roles, r)
		}
	}
	slices.SortFunc(roles, func(x, y role) int { return cmp.Compare(x, y) })
	f := finding.Errorf("adapter.unsupported_feature", d.file, "tensors of kind %q are not supported", roles[0]).In(s.role[roles[0]].Name)
	return nil, f.Hinted("merge it with the tool it was made with")
}
