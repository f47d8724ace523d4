package diffusion

import (
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/naming"
)

// Component is an adapter of one component of a pipeline in the names of that component's class in diffusers or
// transformers, naming.HF, as PEFT's folders have it. Canonical is the way back. Updates of other algorithms than
// LoRA and DoRA are written out as factors where they have exact ones. An adapter of several components is
// refused: PEFT wraps one model.
func Component(a *adapter.Adapter) (*adapter.Adapter, error) {
	e := &encoder{
		a: a, title: "a PEFT folder", byModule: map[*naming.DiffusionModule]*group{},
		form: &form{prefix: folderPrefix, body: renamed, a: ".lora_A.weight", b: ".lora_B.weight", magnitude: ".lora_magnitude_vector", bias: ".lora_B.bias"},
	}
	if err := e.canonical(); err != nil {
		return nil, err
	}
	out := *a
	out.Space, out.Arch, out.Updates = naming.HF, "", nil
	folders := map[string]bool{}
	var names []string
	for _, g := range e.groups {
		m, folder := g.name.Module, g.name.Component.Folder
		if !folders[folder] {
			folders[folder], names = true, append(names, folder)
		}
		if err := trim(g.low); err != nil {
			return nil, err
		}
		for p, part := range m.Parts {
			low, bias := &g.low[p], &g.bias[p]
			if low.Kind != "" {
				u := *low
				u.Module, u.Layer = part.Module, adapter.Linear
				if m.Kind == "conv" {
					u.Layer, u.Kernel = adapter.Conv, m.Shape[2:]
				}
				out.Updates = append(out.Updates, u)
			}
			if bias.Kind != "" { // PEFT scales it with the product
				u := *bias
				u.Module = part.Module
				if s := low.Scale.Value; s != 0 && s != u.Scale.Value {
					u.Value, u.Scale = scaled(u.Value, u.Scale.Value/s), low.Scale
				}
				out.Updates = append(out.Updates, u)
			}
		}
	}
	if len(names) > 1 {
		return nil, finding.Errorf("adapter.unsupported_feature", a.Path, "a PEFT folder is for one model, and the adapter changes several").
			Expected(strings.Join(names, ", "), "one component").Hinted("convert it to diffusers or another dialect of whole pipelines")
	}
	return &out, nil
}
