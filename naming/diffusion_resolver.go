package naming

import (
	"fmt"
	"slices"
	"strings"
)

// diffusion resolves modules of the space Diffusers against the tensors of a pipeline, of one of its
// components, or of a checkpoint in one file.
type diffusion struct {
	family *DiffusionFamily
	stored map[string]bool
	shape  func(string) []int64
	bare   *DiffusionComponent // the component whose names stand without a prefix, nil for none
	near   nameIndex
}

// NewDiffusion returns the resolver for a base whose tensors have these names: a pipeline of diffusers with
// each component's folder before its names ("unet.conv_in.weight"), a single component, or a checkpoint
// in one file with the original names. shape tells a tensor's dimensions. folder is the component's
// folder where the base is known to be one, "" otherwise. A part of a module that the base stores fused has
// the part's rows as its place; a fused module has one place for each part that the base stores.
func NewDiffusion(family *DiffusionFamily, names []string, shape func(name string) []int64, folder string) Resolver {
	r := &diffusion{family: family, stored: make(map[string]bool, len(names)), shape: shape}
	for _, n := range names {
		r.stored[n] = true
	}
	r.near.names = func() []string { return names }
	if r.bare = family.Component(folder); r.bare == nil {
		r.bare = r.unprefixed()
	}
	return r
}

// unprefixed finds the component whose names the base stores without a prefix: the one with most of them,
// and of text encoders that differ in size only, the one of the right size.
func (r *diffusion) unprefixed() *DiffusionComponent {
	var best *DiffusionComponent
	most, fitting := 0, 0
	for _, c := range r.family.Components {
		known, fit := 0, 0
		for i := range c.Modules {
			m := &c.Modules[i]
			name := m.Original + m.Weight
			if !r.stored[name] {
				name = m.Parts[0].Module + ".weight"
			}
			if r.stored[name] {
				if known++; slices.Equal(r.shape(name), m.Shape) {
					fit++
				}
			}
		}
		if known > most || known == most && fit > fitting {
			best, most, fitting = c, known, fit
		}
	}
	return best
}

// prefixes are what may stand before a component's names in the base.
func (r *diffusion) prefixes(c *DiffusionComponent) []string {
	out := []string{c.Folder + ".", c.Native}
	for _, p := range c.Prefixes {
		if p != "" {
			out = append(out, p)
		}
	}
	if c == r.bare {
		out = append(out, "")
	}
	return out
}

func (r *diffusion) Find(module, param string) ([]Place, error) {
	folder, name, _ := strings.Cut(module, ".")
	missing := &NotFound{Module: module, Param: param}
	c := r.family.Component(folder)
	if c == nil {
		missing.Reason = fmt.Sprintf("%s has no component %q", r.family.Name, folder)
		return nil, missing
	}
	prefixes := r.prefixes(c)
	if t := r.find(prefixes, name+"."+param); t != "" { // names that no table needs to know
		return []Place{{Tensor: t, Rule: "name"}}, nil
	}
	n, ok := c.Lookup(Renamed, name)
	whole := !ok
	if whole {
		n, ok = c.Lookup(Original, name)
	}
	if ok {
		if p := r.original(prefixes, n, param, whole); p != nil {
			return p, nil
		}
		if p := r.renamed(prefixes, n, param); whole && p != nil {
			return p, nil
		}
	}
	missing.Nearest = r.near.nearest(name + "." + param)
	if r.bare != nil && r.bare != c && len(r.stored) > 0 && !slices.ContainsFunc(prefixes, r.any) {
		missing.Reason = fmt.Sprintf("the base is a %s and has no %s", r.bare.Folder, c.Folder)
	}
	return nil, missing
}

// any reports whether a stored name has the prefix.
func (r *diffusion) any(prefix string) bool {
	for n := range r.stored {
		if strings.HasPrefix(n, prefix) {
			return true
		}
	}
	return false
}

func (r *diffusion) find(prefixes []string, name string) string {
	for _, p := range prefixes {
		if r.stored[p+name] {
			return p + name
		}
	}
	return ""
}

// original places a module in a base with the names of the original checkpoint. whole says that the module
// was named as it is there.
func (r *diffusion) original(prefixes []string, n DiffusionName, param string, whole bool) []Place {
	m := n.Module
	suffix := "." + param
	switch param {
	case "weight":
		suffix = m.Weight
	case "bias":
		suffix = m.Bias
	}
	t := ""
	for _, name := range []string{m.Original, m.Alias} {
		if t == "" && name != "" && (suffix != "" || param == "weight") {
			t = r.find(prefixes, name+suffix)
		}
	}
	// Some checkpoints store what others transpose as an ordinary layer.
	transposed := m.Transposed && param == "weight"
	if t == "" && m.Transposed {
		t, transposed = r.find(prefixes, m.Original+"."+param), false
	}
	if t == "" {
		return nil
	}
	p := Place{Tensor: t, Rule: "original name", Transposed: transposed}
	shape := r.shape(t)
	if whole || len(shape) == 0 {
		return []Place{p}
	}
	switch rows := shape[0]; {
	case len(m.Parts) > 1:
		var ok bool
		if p.RowOffset, p.Rows, ok = m.Slice(n.Part, rows); !ok {
			return nil
		}
	case m.Swapped:
		swap(&p, rows)
	}
	return []Place{p}
}

// swap makes a place one whose halves are exchanged.
func swap(p *Place, rows int64) {
	if rows%2 == 0 {
		p.Rows, p.Run, p.First, p.Step = rows, rows/2, rows/2, -rows/2
	}
}

// renamed places a whole module of the original checkpoint in a base with the names of diffusers.
func (r *diffusion) renamed(prefixes []string, n DiffusionName, param string) []Place {
	var places []Place
	at := int64(0)
	for _, part := range n.Module.Parts {
		t := r.find(prefixes, part.Module+"."+param)
		if t == "" {
			return nil
		}
		p := Place{Tensor: t, Rule: "diffusers name"}
		if shape := r.shape(t); len(shape) > 0 {
			switch {
			case len(n.Module.Parts) > 1:
				p.First, p.Run, p.Step, p.Rows = at, shape[0], shape[0], shape[0]
				at += shape[0]
			case n.Module.Swapped:
				swap(&p, shape[0])
			}
		}
		places = append(places, p)
	}
	return places
}
