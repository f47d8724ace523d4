package diffusion

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// A site is a module of the file with all its tensors.
type site struct {
	prefix string
	at     place
	body   string
	flat   bool
	first  string // the name of its first tensor
	names  []string
	role   map[role]*tensor.Tensor

	name  naming.DiffusionName // what it stands for, once the family is known
	parts []int                // the parts of a fused module that its rows are; nil for all
	alone string               // the module in the base's own names, where no family knows it
}

// collect takes the names apart and groups them by module, in file order. Tensors that are no part of an
// adapter come back in rest.
func collect(file string, tensors []tensor.Tensor) (sites []*site, rest []string, err error) {
	byName := map[string]*site{}
	for i := range tensors {
		t := &tensors[i]
		k, ok := parse(t.Name)
		if !ok {
			rest = append(rest, t.Name)
			continue
		}
		id := string(k.at) + "\x00" + strconv.FormatBool(k.flat) + k.body
		s := byName[id]
		if s == nil {
			s = &site{prefix: k.prefix, at: k.at, body: k.body, flat: k.flat, first: t.Name, role: map[role]*tensor.Tensor{}}
			byName[id] = s
			sites = append(sites, s)
		}
		if other := s.role[k.role]; other != nil {
			return nil, nil, finding.Errorf("adapter.duplicate_target", file, "means the same as %q", other.Name).In(t.Name)
		}
		s.role[k.role] = t
		s.names = append(s.names, t.Name)
	}
	return sites, rest, nil
}

// components are the components of a family that a site's prefix may mean.
func (s *site) components(f *naming.DiffusionFamily) []*naming.DiffusionComponent {
	if s.at == denoiser {
		return f.Components[:1]
	}
	var out []*naming.DiffusionComponent
	for _, c := range f.Components[1:] {
		switch {
		case strings.HasPrefix(string(s.at), "lora_te"):
			if !slices.Contains(c.Kohya, string(s.at)) {
				continue
			}
		case strings.HasPrefix(string(s.at), "text_encoders."):
			if !strings.HasPrefix(c.Native, string(s.at)) {
				continue
			}
		case string(s.at) != c.Folder:
			continue
		}
		out = append(out, c)
	}
	return out
}

// find looks the site up in a family.
func (s *site) find(f *naming.DiffusionFamily) (n naming.DiffusionName, parts []int, ok bool) {
	body := s.body
	if cut, ok := strings.CutSuffix(body, ":3"); ok { // see xlabs
		body, parts = cut, []int{0, 1, 2}
	}
	spellings := [2]naming.Body{naming.Original, naming.Renamed}
	if s.flat {
		spellings = [2]naming.Body{naming.FlatOriginal, naming.FlatRenamed}
	}
	for _, c := range s.components(f) {
		name := body
		if extra := strings.TrimPrefix(c.Native, string(s.at)); extra != c.Native && extra != "" { // text_encoders.….model.
			name = strings.TrimPrefix(name, extra)
		}
		for _, b := range spellings {
			if n, ok := c.Lookup(b, name); ok {
				return n, parts, true
			}
		}
		// OneTrainer numbers the parts of a fused module.
		if i := strings.LastIndexByte(name, '.'); i > 0 && !s.flat {
			p, err := strconv.Atoi(name[i+1:])
			n, ok := c.Lookup(naming.Original, name[:i])
			if err == nil && ok && n.Part < 0 && p >= 0 && p < len(n.Module.Parts) {
				n.Part = p
				return n, nil, true
			}
		}
	}
	return n, nil, false
}

// fits reports whether the factors have the size of the module in the family's model.
func (s *site) fits(n naming.DiffusionName, parts []int) bool {
	a, b := s.role[roleA], s.role[roleB]
	if a == nil || b == nil || len(a.Shape) < 2 || len(b.Shape) < 2 || parts != nil {
		return false
	}
	rows := n.Module.Shape[0]
	if n.Part >= 0 {
		rows = n.Module.Parts[n.Part].Rows
	}
	return b.Shape[0] == rows && len(n.Module.Shape) > 1 && a.Shape[1] == n.Module.Shape[1]
}

// choose finds the family that knows most of the sites, among those the one that fits most of their sizes, then
// of their kernels, and then one whose original checkpoint has the names that stand in the file without a
// prefix. The families that share names stand in the order of naming.DiffusionFamilies.
// Others are those that fit as well.
func choose(sites []*site) (family *naming.DiffusionFamily, known int, others []string) {
	var best [4]int
	for _, f := range naming.DiffusionFamilies() {
		var score [4]int
		for _, s := range sites {
			n, parts, ok := s.find(f)
			if !ok {
				continue
			}
			score[0]++
			if s.fits(n, parts) {
				score[1]++
			}
			if a := s.role[roleA]; a != nil && len(a.Shape) == len(n.Module.Shape) {
				score[2]++
			}
			if s.prefix == "" && s.at == denoiser && s.body == n.Module.Original {
				score[3]++
			}
		}
		switch c := slices.Compare(score[:], best[:]); {
		case score[0] == 0:
		case c > 0:
			family, best, others = f, score, nil
		case c == 0:
			others = append(others, f.Name)
		}
	}
	return family, best[0], others
}

// resolve gives every site the module it stands for: by the family, or where a base is at hand and the family
// does not know them all, by the base's own names.
func (d *decoder) resolve() error {
	family, known, others := choose(d.sites)
	if known < len(d.sites) && d.opt.Base != nil {
		base, err := d.opt.Base()
		if err != nil {
			return err
		}
		return d.byVocabulary(base)
	}
	if family == nil {
		return d.unknown(d.sites, nil)
	}
	d.family = family
	var missing []*site
	for _, s := range d.sites {
		var ok bool
		if s.name, s.parts, ok = s.find(family); !ok {
			missing = append(missing, s)
		}
	}
	if len(others) > 0 {
		d.findings = append(d.findings, finding.Finding{
			Code: "adapter.ambiguous_family", Level: finding.Info, File: d.file,
			Message: fmt.Sprintf("the modules fit %s, and as well %s; the first is taken", family.Name, strings.Join(others, ", ")),
		})
	}
	if len(missing) == 0 {
		return nil
	}
	if d.opt.AllowUnmatched && known > 0 {
		f := finding.Of(d.unknown(missing, family))
		f.Level = finding.Warning
		d.sites = slices.DeleteFunc(d.sites, func(s *site) bool { return slices.Contains(missing, s) })
		d.findings = append(d.findings, *f)
		return nil
	}
	return d.unknown(missing, family)
}

// listed is how many unknown names an error lists.
const listed = 8

// unknown is the error for modules that no table knows. It lists them with the known ones most like them.
func (d *decoder) unknown(missing []*site, family *naming.DiffusionFamily) error {
	f := finding.Errorf("adapter.unknown_module", d.file, "%d of %d modules are not known", len(missing), len(d.sites)).In(missing[0].first)
	f.Module = missing[0].body
	var names []string
	for _, s := range missing[:min(listed, len(missing))] {
		name := strconv.Quote(s.body)
		if family != nil {
			if near := nearest(family, s); near != "" {
				name += " (nearest " + near + ")"
			}
		}
		names = append(names, name)
	}
	if more := len(missing) - listed; more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	want := "modules of a known family"
	if family != nil {
		want = "modules of " + family.Name
	}
	hint := "name the base model with --base: any module of its header is then understood"
	if family != nil && len(missing) < len(d.sites) {
		hint += "; --allow-unmatched leaves them out"
	}
	return f.Expected(strings.Join(names, ", "), want).Hinted(hint)
}

// nearest is the module of the family most like a site's.
func nearest(f *naming.DiffusionFamily, s *site) string {
	var names []string
	for _, c := range s.components(f) {
		for i := range c.Modules {
			names = append(names, c.Modules[i].Original)
			for _, p := range c.Modules[i].Parts {
				names = append(names, p.Module)
			}
		}
	}
	if s.flat {
		for i := range names {
			names[i] = naming.Flatten(names[i])
		}
	}
	if near := naming.Nearest(names, s.body); len(near) > 0 {
		return strconv.Quote(near[0])
	}
	return ""
}

// byVocabulary finds the sites among the base's modules. A flattened name must fit exactly one of them.
func (d *decoder) byVocabulary(base []string) error {
	flat := map[string][]string{}
	dotted := map[string]bool{}
	for _, module := range base {
		for _, p := range []string{"model.diffusion_model.", "diffusion_model.", ""} {
			if name, ok := strings.CutPrefix(module, p); ok {
				if f := naming.Flatten(name); !slices.Contains(flat[f], module) {
					flat[f] = append(flat[f], module)
				}
				break
			}
		}
		dotted[module] = true
	}
	var missing []*site
	for _, s := range d.sites {
		switch m := flat[naming.Flatten(s.body)]; {
		case len(m) > 1 && s.flat:
			return finding.Errorf("adapter.ambiguous_module", d.file, "the flattened name fits several modules of the base").In(s.first).
				Expected(strings.Join(m, ", "), "one module")
		case !s.flat && dotted[s.body]:
			s.alone = s.body
		case len(m) > 0:
			s.alone = m[0]
		default:
			missing = append(missing, s)
		}
	}
	if len(missing) > 0 {
		f := finding.Of(d.unknown(missing, nil))
		near := naming.Nearest(base, missing[0].body)
		return f.Expected(f.Got, fmt.Sprintf("modules of the base, such as %q", near)).Hinted("the adapter belongs to another base")
	}
	return nil
}
