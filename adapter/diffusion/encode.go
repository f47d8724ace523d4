package diffusion

import (
	"slices"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// EncodeOptions are the choices of Encode.
type EncodeOptions struct {
	// DType is the type of the written factors; Invalid keeps each one's own, and F32 where it has none.
	DType tensor.DType
	// AllowUnmatched leaves out, with a warning, modules that the dialect has no names for.
	AllowUnmatched bool
}

// Files are the contents of an adapter file.
type Files struct {
	Weights  []adapter.Weight // in the order of the adapter
	Metadata [][2]string      // sorted by key
	Findings []finding.Finding
}

// Encode lays an adapter out in a dialect, such that ΔW stays the same: exactly, or with one rounding where
// scales differ that the dialect has one place for, or none, and where an algorithm's difference is written
// out as factors. Factors are read where fused projections must be compared; the others are read when the
// weights are. The adapter may be in naming.Diffusers or, where its modules are those of a known family, in
// naming.HF.
func Encode(a *adapter.Adapter, dialect string, opt EncodeOptions) (*Files, error) {
	i := slices.IndexFunc(Dialects, func(d Dialect) bool { return d.Name == dialect })
	if i < 0 {
		return nil, finding.Errorf("convert.unknown_target", a.Path, "adapters of diffusion pipelines are not written as %q", dialect)
	}
	e := &encoder{a: a, form: Dialects[i].form, title: Dialects[i].Title, opt: opt, byModule: map[*naming.DiffusionModule]*group{}, kinds: map[adapter.Kind]bool{}}
	if err := e.canonical(); err != nil {
		return nil, err
	}
	for _, g := range e.groups {
		if err := e.write(g); err != nil {
			return nil, err
		}
	}
	e.even()
	return e.files(dialect)
}

type encoder struct {
	a     *adapter.Adapter
	form  *form
	title string
	opt   EncodeOptions

	family   *naming.DiffusionFamily
	groups   []*group
	byModule map[*naming.DiffusionModule]*group
	weights  []adapter.Weight
	pairs    []pairing           // of a uniform dialect, until all are known
	ranks    map[string][]ranked // by component
	dims     [][2]float64        // rank and alpha of every module
	doras    int                 // how many of them have a magnitude
	kinds    map[adapter.Kind]bool
	findings []finding.Finding
}

// A group is what an adapter does to one module of the original checkpoint.
type group struct {
	name  naming.DiffusionName
	low   []adapter.Update // of the weight, by part, of kind "" where there is none
	bias  []adapter.Update
	set   *adapter.Update
	whole adapter.Update // of the weight of a fused module as a whole, where the target stores it so
	kept  bool           // low has the rows of the original checkpoint, though diffusers swaps them
}

// siteOf is the module of an update as a site, for its lookup.
func siteOf(u *adapter.Update) *site {
	s := &site{at: denoiser, body: u.Module, first: u.Module, role: map[role]*tensor.Tensor{}}
	for _, p := range prefixes {
		if rest, ok := strings.CutPrefix(u.Module, p.text); ok && strings.HasSuffix(p.text, ".") {
			s.at, s.body = p.at, rest
			break
		}
	}
	for r, f := range map[role]adapter.Factor{roleA: u.A, roleB: u.B} {
		if f.Present() {
			s.role[r] = &tensor.Tensor{Spec: tensor.Spec{Shape: tensor.Shape{f.Rows, f.Cols}}}
		}
	}
	return s
}

// canonical groups all updates by the modules of the original checkpoint.
func (e *encoder) canonical() error {
	if e.a.Space != naming.Diffusers && e.a.Space != naming.HF {
		return finding.Errorf("adapter.unsupported_feature", e.a.Path, "module names are those of %q, and %s is for diffusion pipelines", e.a.Space, e.title)
	}
	sites := make([]*site, len(e.a.Updates))
	for i := range e.a.Updates {
		sites[i] = siteOf(&e.a.Updates[i])
	}
	e.family = naming.DiffusionFamilyNamed(e.a.Arch)
	if e.family == nil {
		family, known, _ := choose(sites)
		switch {
		case known == len(sites):
			e.family = family
		case e.a.Space == naming.HF && e.form.anyBase && known == 0 && slices.ContainsFunc(Dialects, func(d Dialect) bool { return d.Name == e.a.Dialect }):
			return e.alone()
		default:
			d := &decoder{file: e.a.Path, sites: sites}
			missing := slices.DeleteFunc(slices.Clone(sites), func(s *site) bool {
				if family == nil {
					return false
				}
				_, _, ok := s.find(family)
				return ok
			})
			return d.unknown(missing, family)
		}
	}
	if f := e.form.families; f != nil && !slices.Contains(f, e.family.Name) {
		return finding.Errorf("adapter.unsupported_feature", e.a.Path, "%s has no names for the modules of %s", e.title, e.family.Name).
			Expected(e.family.Name, strings.Join(f, ", ")).Hinted("convert it to another dialect, or " + mergeInstead)
	}
	for i, s := range sites {
		n, _, ok := s.find(e.family)
		if !ok {
			d := &decoder{file: e.a.Path, sites: sites}
			return d.unknown([]*site{s}, e.family)
		}
		s.name = n
		if err := e.place(n, e.a.Updates[i], s.spelled() == naming.Original); err != nil {
			return err
		}
	}
	return nil
}

// alone groups the updates of a base that no family knows, in the base's own names.
func (e *encoder) alone() error {
	c := &naming.DiffusionComponent{Folder: "transformer", Kohya: []string{"lora_unet_"}, Native: "diffusion_model.", Flat: naming.Original}
	byName := map[string]*naming.DiffusionModule{}
	for _, u := range e.a.Updates {
		name := strings.TrimPrefix(strings.TrimPrefix(u.Module, "model."), "diffusion_model.")
		m := byName[name]
		if m == nil {
			m = &naming.DiffusionModule{Original: name, Parts: []naming.DiffusionPart{{Module: name, Rows: 1}}, Kind: "linear"}
			byName[name] = m
		}
		if k := u.KernelShape(); k != nil {
			m.Shape = append([]int64{0, 0}, k...)
		}
		if u.Kind == adapter.Bias && u.Param == "weight" {
			m.Kind = "norm"
		}
		if err := e.place(naming.DiffusionName{Component: c, Module: m}, u, true); err != nil {
			return err
		}
	}
	return nil
}

// group is the group of a module.
func (e *encoder) group(n naming.DiffusionName) *group {
	g := e.byModule[n.Module]
	if g == nil {
		g = &group{name: n, low: make([]adapter.Update, len(n.Module.Parts)), bias: make([]adapter.Update, len(n.Module.Parts))}
		e.byModule[n.Module] = g
		e.groups = append(e.groups, g)
	}
	return g
}

// write writes what a group holds in the target's spelling.
func (e *encoder) write(g *group) error {
	c, m := g.name.Component, g.name.Module
	if e.form.body(c) == naming.Renamed {
		if err := trim(g.low); err != nil {
			return err
		}
		for p, part := range m.Parts {
			var set *adapter.Update
			if p == 0 {
				set = g.set
			}
			if err := e.part(c, m, part.Module, &g.low[p], &g.bias[p], set); err != nil {
				return err
			}
		}
		return nil
	}
	low, bias := &g.low[0], &g.bias[0]
	if m.Swapped {
		if !g.kept && low.Kind != "" {
			var ok bool
			if *low, ok = swapped(low); !ok {
				return e.uncut(low, m)
			}
		}
		if bias.Kind != "" {
			*bias, _ = swapped(bias)
		}
	}
	if len(m.Parts) > 1 {
		var err error
		if low, err = e.fused(g); err != nil {
			return err
		}
		if bias, err = fuseBias(m, g.bias); err != nil {
			return err
		}
	}
	return e.part(c, m, m.Original, low, bias, g.set)
}

// A spelling is a module's name in a file and the suffixes of its factors.
type spelling struct{ name, a, b string }

// spell spells a module of a component. It is false where the dialect has no name for it.
func (e *encoder) spell(c *naming.DiffusionComponent, module string) (spelling, bool) {
	prefix, ok := e.form.prefix(e.family, c)
	s := spelling{"", e.form.a, e.form.b}
	if ok && e.form.leaf != nil {
		module, s.a, s.b, ok = e.form.leaf(c, module)
	}
	if e.form.flat {
		module = naming.Flatten(module)
	}
	s.name = prefix + module
	return s, ok
}

// part writes the updates of one module of the target.
func (e *encoder) part(c *naming.DiffusionComponent, m *naming.DiffusionModule, module string, low, bias, set *adapter.Update) error {
	var any *adapter.Update
	for _, u := range []*adapter.Update{set, bias, low} {
		if u != nil && u.Kind != "" {
			any = u
		}
	}
	if any == nil {
		return nil
	}
	s, ok := e.spell(c, module)
	if !ok {
		return e.unnamed(any, c.Folder+"."+module)
	}
	kernel := m.Shape[min(2, len(m.Shape)):]
	e.kinds[low.Kind] = true
	switch low.Kind {
	case "":
	case adapter.LowRank, adapter.DoRA:
		if err := e.factors(s, low, kernel, c.Folder); err != nil {
			return err
		}
	default:
		if err := e.algorithm(s.name, low, kernel); err != nil {
			return err
		}
	}
	if bias.Kind != "" {
		if err := e.vector(s.name, bias, m, low.Kind != ""); err != nil {
			return err
		}
	}
	if set != nil {
		e.put(s.name+e.form.set, tensor.Shape{set.Value.Rows * set.Value.Cols}, set.Value)
	}
	return nil
}

// unnamed is the error for a module that the target has no name for, and where that is allowed a warning.
func (e *encoder) unnamed(u *adapter.Update, module string) error {
	f := e.a.Refuse(u, "%s has no name for module %q", e.title, module).Hinted("--allow-unmatched leaves such modules out; or " + mergeInstead)
	if !e.opt.AllowUnmatched {
		return f
	}
	f.Level, f.Hint = finding.Warning, ""
	e.findings = append(e.findings, *f)
	return nil
}

// vector writes the difference of a bias, of a linear layer or a norm.
func (e *encoder) vector(name string, u *adapter.Update, m *naming.DiffusionModule, factors bool) error {
	if !factors && e.form.bias == ".lora_B.bias" {
		return e.a.Refuse(u, "%s cannot hold a bias of module %q without factors", e.title, u.Module)
	}
	suffix := e.form.bias
	if m.Kind == "norm" {
		suffix = ".b_norm"
	}
	e.put(name+suffix, tensor.Shape{u.Value.Rows * u.Value.Cols}, scaled(u.Value, u.Scale.Value))
	return nil
}

// factors writes the factors of a module with a kernel of these dimensions, and its alpha.
func (e *encoder) factors(s spelling, u *adapter.Update, kernel []int64, folder string) error {
	area := int64(1)
	for _, k := range kernel {
		area *= k
	}
	if area == 0 || u.A.Cols%area != 0 {
		return e.a.Refuse(u, "the factors of module %q do not fit a kernel of %v", u.Module, kernel)
	}
	a, b := tensor.Shape{u.A.Rows, u.A.Cols / area}, tensor.Shape{u.B.Rows, u.B.Cols}
	for _, k := range kernel {
		a, b = append(a, k), append(b, 1)
	}
	fa, fb := u.A, u.B
	if k := fa.Kernel; k != nil && e.form.decomposed {
		fa, a = k.Down, tensor.Shape{k.Down.Rows, k.Down.Cols}
		for range kernel {
			a = append(a, 1)
		}
		e.put(s.name+".lora_mid.weight", k.Shape, k.Core)
	}
	if !e.form.alpha {
		fa, fb = fold(fa, fb, u.Scale.Value)
		if e.ranks == nil {
			e.ranks = map[string][]ranked{}
		}
		e.ranks[folder] = append(e.ranks[folder], ranked{strings.TrimPrefix(s.name, folder+"."), u.Rank})
	}
	if e.form.uniform {
		e.pairs = append(e.pairs, pairing{s, fa, fb})
		return nil
	}
	e.put(s.name+s.a, a, fa)
	e.put(s.name+s.b, b, fb)
	if u.Kind == adapter.DoRA {
		e.doras++
		e.magnitude(s.name, u, kernel)
	}
	e.dims = append(e.dims, [2]float64{float64(u.Rank), alphaOf(u)})
	if e.form.alpha {
		e.weights = append(e.weights, scalar(s.name+".alpha", alphaOf(u)))
	}
	if e.form.set == ".set_weight" && len(kernel) == 0 && e.widened(u) {
		e.weights = append(e.weights, integers(s.name+".reshape_weight", tensor.Shape{2}, u.B.Rows, u.A.Cols))
	}
	return nil
}

// widened reports whether factors are for a layer with more inputs than the family's model has, which is filled
// up with zeros: the inputs that a control image is given to.
func (e *encoder) widened(u *adapter.Update) bool {
	if e.family == nil {
		return false
	}
	n, ok := e.family.Find(u.Module)
	if !ok || n.Module.Original != "img_in" {
		return false
	}
	return u.B.Rows == n.Module.Shape[0] && u.A.Cols > n.Module.Shape[1]
}

// magnitude writes the magnitudes of DoRA: as PEFT's vector, or as dora_scale, which keeps the weight's
// dimensions.
func (e *encoder) magnitude(name string, u *adapter.Update, kernel []int64) {
	n := u.Magnitude.Rows * u.Magnitude.Cols
	shape := tensor.Shape{n}
	if e.form.magnitude == ".dora_scale" {
		if shape = (tensor.Shape{n, 1}); u.Input {
			shape = tensor.Shape{1, n}
		}
		for range kernel {
			shape = append(shape, 1)
		}
	}
	e.put(name+e.form.magnitude, shape, u.Magnitude)
}

// alphaOf is the alpha that gives an update's scale at its rank.
func alphaOf(u *adapter.Update) float64 {
	if r := float64(u.Rank); u.Scale.Value != u.Scale.Alpha/r {
		return u.Scale.Value * r
	}
	return u.Scale.Alpha
}

func (e *encoder) put(name string, shape tensor.Shape, f adapter.Factor) {
	t := e.opt.DType
	if t == tensor.Invalid {
		if t = f.DType; !t.IsFloat() || t.IsBlock() {
			t = tensor.F32
		}
	}
	e.weights = append(e.weights, adapter.Weight{Spec: tensor.Spec{Name: name, DType: t, Shape: shape}, Values: f})
}
