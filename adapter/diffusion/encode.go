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
}

// Files are the contents of an adapter file.
type Files struct {
	Weights  []adapter.Weight // in the order of the adapter
	Metadata [][2]string      // sorted by key
	Findings []finding.Finding
}

// Encode lays an adapter out in a dialect, such that ΔW stays the same: exactly, or with one rounding where
// scales differ that the dialect has one place for, or none. Factors are read where fused projections must be
// compared; the others are read when the weights are. The adapter may be in naming.Diffusers or, where its
// modules are those of a known family, in naming.HF.
func Encode(a *adapter.Adapter, dialect string, opt EncodeOptions) (*Files, error) {
	i := slices.IndexFunc(Dialects, func(d Dialect) bool { return d.Name == dialect })
	if i < 0 || !Dialects[i].Writes() {
		return nil, finding.Errorf("convert.unknown_target", a.Path, "adapters of diffusion pipelines are not written as %q", dialect)
	}
	e := &encoder{a: a, form: Dialects[i].form, title: Dialects[i].Title, opt: opt, byModule: map[*naming.DiffusionModule]*group{}}
	if err := e.canonical(); err != nil {
		return nil, err
	}
	for _, g := range e.groups {
		if err := e.write(g); err != nil {
			return nil, err
		}
	}
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
	ranks    map[string][]ranked // by component
	dims     [][2]float64        // rank and alpha of every module
	doras    int                 // how many of them have a magnitude
	findings []finding.Finding
}

// A group is what an adapter does to one module of the original checkpoint.
type group struct {
	name  naming.DiffusionName
	alone string           // the module in the base's own names instead
	low   []adapter.Update // by part, of kind "" where there is none
	bias  []adapter.Update
	set   *adapter.Update
	own   []own // what the target holds as it is
}

// An own update is written in the tensors of its own algorithm.
type own struct {
	part int // of the module, -1 for the whole of it
	u    adapter.Update
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

// canonical brings all updates into the modules of diffusers and groups them by those of the original.
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
		case e.a.Space == naming.HF && e.form.flat && known == 0 && e.a.Dialect == "kohya":
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
	for i, s := range sites {
		u := e.a.Updates[i]
		n, _, ok := s.find(e.family)
		if !ok {
			d := &decoder{file: e.a.Path, sites: sites}
			return d.unknown([]*site{s}, e.family)
		}
		s.name = n
		if e.native(n, &u, s.spelled() == naming.Original) {
			g := e.group(n)
			g.own = append(g.own, own{n.Part, u})
			continue
		}
		if f, ok := u.Factored(); ok && u.Form() == adapter.Exactly {
			u = f
		}
		us, ok := split(u, n, nil, s.spelled() == naming.Original)
		if !ok {
			return e.a.Refuse(&u, "the rows of module %q do not divide into its parts", u.Module)
		}
		for _, v := range us {
			if err := e.add(n, v); err != nil {
				return err
			}
		}
	}
	return nil
}

// alone groups the updates of a base that no family knows: a flattened file comes out as it went in.
func (e *encoder) alone() error {
	byName := map[string]*group{}
	for _, u := range e.a.Updates {
		if u.Kind != adapter.LowRank || u.Param != "weight" {
			return e.refuse(&u)
		}
		if byName[u.Module] != nil {
			return e.a.Refuse(&u, "module %q has two low-rank updates", u.Module)
		}
		byName[u.Module] = &group{alone: u.Module, low: []adapter.Update{u}}
		e.groups = append(e.groups, byName[u.Module])
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

// add puts an update of one part into its group.
func (e *encoder) add(n naming.DiffusionName, u adapter.Update) error {
	g := e.group(n)
	_, module, _ := strings.Cut(u.Module, ".")
	part := slices.IndexFunc(n.Module.Parts, func(p naming.DiffusionPart) bool { return p.Module == module })
	var slot *adapter.Update
	switch {
	case part < 0:
		return e.refuse(&u)
	case e.holds(&u) && u.Param == "weight":
		slot = &g.low[part]
	case u.Kind == adapter.Bias && e.form.bias != "" && u.Param == "bias":
		slot = &g.bias[part]
	case u.Kind == adapter.Replace && e.form.set != "" && u.Layer == "" && u.Param == "weight" && g.set == nil:
		g.set = &u
		return nil
	default:
		return e.refuse(&u)
	}
	if slot.Kind != "" {
		return e.a.Refuse(&u, "module %q has two updates of kind %q", u.Module, u.Kind).Hinted("combine them into one first")
	}
	*slot = u
	return nil
}

// holds reports whether a dialect can hold an update as a pair of factors: any magnitude where there is a
// tensor for it, those of the output axis alone in the form of PEFT.
func (e *encoder) holds(u *adapter.Update) bool {
	switch u.Kind {
	case adapter.LowRank:
		return !u.Magnitude.Present()
	case adapter.DoRA:
		return e.form.magnitude != "" && (!u.Input || e.form.alpha)
	}
	return false
}

func (e *encoder) refuse(u *adapter.Update) error {
	return e.a.Refuse(u, "%s cannot hold an update of kind %q of parameter %q", e.title, u.Kind, u.Param)
}

// write writes what a group holds in the target's spelling.
func (e *encoder) write(g *group) error {
	if g.alone != "" {
		for _, p := range []string{"model.diffusion_model.", "diffusion_model."} {
			g.alone = strings.TrimPrefix(g.alone, p)
		}
		return e.factors("lora_unet_"+naming.Flatten(g.alone), &g.low[0], kernelOf(g.low[0].A), "")
	}
	c, m := g.name.Component, g.name.Module
	for i := range g.own {
		if err := e.algorithm(g.name, g.own[i].part, &g.own[i].u); err != nil {
			return err
		}
	}
	body := e.form.body(c)
	spell := func(module string) string {
		if e.form.flat {
			module = naming.Flatten(module)
		}
		return e.form.prefix(c) + module
	}
	if body == naming.Renamed {
		if err := trim(g.low); err != nil {
			return err
		}
		for p, part := range m.Parts {
			if err := e.part(spell(part.Module), &g.low[p], &g.bias[p], m, c.Folder); err != nil {
				return err
			}
		}
		if g.set != nil {
			e.put(spell(m.Parts[0].Module)+e.form.set, tensor.Shape{g.set.Value.Cols}, g.set.Value)
		}
		return nil
	}
	if m.Swapped {
		swapBack(&g.low[0])
		swapBack(&g.bias[0])
	}
	low, bias := &g.low[0], &g.bias[0]
	if len(m.Parts) > 1 {
		var err error
		if low, err = fuse(m, g.low); err != nil {
			return err
		}
		if bias, err = fuseBias(m, g.bias); err != nil {
			return err
		}
	}
	if err := e.part(spell(m.Original), low, bias, m, c.Folder); err != nil {
		return err
	}
	if g.set != nil {
		e.put(spell(m.Original)+e.form.set, tensor.Shape{g.set.Value.Cols}, g.set.Value)
	}
	return nil
}

func (e *encoder) part(name string, low, bias *adapter.Update, m *naming.DiffusionModule, folder string) error {
	if low.Kind != "" {
		if err := e.factors(name, low, m.Shape[min(2, len(m.Shape)):], folder); err != nil {
			return err
		}
	}
	if bias.Kind != "" {
		if low.Kind == "" && e.form.bias == ".lora_B.bias" {
			return e.a.Refuse(bias, "%s cannot hold a bias of module %q without factors", e.title, bias.Module)
		}
		v := bias.Value.Scaled(bias.Scale.Value)
		v.DType = bias.Value.DType
		e.put(name+e.form.bias, tensor.Shape{v.Rows * v.Cols}, v)
	}
	return nil
}

// factors writes the factors of a module with a kernel of these dimensions, and its alpha.
func (e *encoder) factors(name string, u *adapter.Update, kernel []int64, folder string) error {
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
	if !e.form.alpha {
		fa, fb = fold(fa, fb, u.Scale.Value)
		if e.ranks == nil {
			e.ranks = map[string][]ranked{}
		}
		e.ranks[folder] = append(e.ranks[folder], ranked{strings.TrimPrefix(name, folder+"."), u.Rank})
	}
	e.put(name+e.form.a, a, fa)
	e.put(name+e.form.b, b, fb)
	if u.Kind == adapter.DoRA {
		e.doras++
		e.magnitude(name, u, kernel)
	}
	e.dims = append(e.dims, [2]float64{float64(u.Rank), alphaOf(u)})
	if e.form.alpha {
		e.weights = append(e.weights, scalar(name+".alpha", alphaOf(u)))
	}
	return nil
}

// magnitude writes the magnitudes of DoRA: as PEFT's vector, or as dora_scale, which keeps the weight's
// dimensions.
func (e *encoder) magnitude(name string, u *adapter.Update, kernel []int64) {
	n := u.Magnitude.Rows * u.Magnitude.Cols
	shape := tensor.Shape{n}
	if e.form.alpha {
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

// kernelOf is the kernel of a factor that is stored as a convolution's.
func kernelOf(f adapter.Factor) []int64 {
	if f.Stored == nil || len(f.Stored.Shape) < 3 {
		return nil
	}
	return f.Stored.Shape[2:]
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
