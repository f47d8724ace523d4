package naming

import (
	"slices"
	"strings"
	"sync"
)

// Diffusers is the space of diffusion pipelines: the folder of a component (unet, transformer,
// text_encoder, text_encoder_2 …) and the module's path in diffusers or transformers:
// unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q. A module that diffusers splits may also
// be named whole, by its path in the original checkpoint: transformer.double_blocks.0.img_attn.qkv.
const Diffusers Space = "diffusers"

// A DiffusionFamily is a pipeline whose adapters fit one another.
type DiffusionFamily struct {
	Name       string // "sdxl", "flux1"
	Components []*DiffusionComponent
}

// A DiffusionComponent is one model of a pipeline.
type DiffusionComponent struct {
	Name   string // "sdxl_unet", "clip_l"
	Folder string // the component's folder in diffusers: "unet", "transformer", "text_encoder_2"
	// Kohya are the prefixes of flattened names, the usual one first: "lora_te1_".
	Kohya []string
	// Prefixes are what stands before the original names in checkpoints of one file, the usual one first.
	Prefixes []string
	// Native is what stands before the names in ComfyUI: "diffusion_model.", "text_encoders.clip_l.transformer.".
	Native string
	// Flat says which names the trainers of flattened files start from: Original or Renamed.
	Flat    Body
	Modules []DiffusionModule

	once  sync.Once
	index map[Body]map[string]DiffusionName
}

// A Body is a spelling of module paths inside a component.
type Body int

// The spellings. Flattened ones have "_" for every ".".
const (
	Original     Body = iota // the original checkpoint's: input_blocks.4.1.proj_in
	Renamed                  // diffusers': down_blocks.1.attentions.0.proj_in
	FlatOriginal             // input_blocks_4_1_proj_in
	FlatRenamed              // down_blocks_1_attentions_0_proj_in
)

// A DiffusionModule is a module of a component as the original checkpoint has it, and what diffusers made of
// it.
type DiffusionModule struct {
	Original string
	Alias    string // another name of the original in use, "" for none
	// Parts are the modules of diffusers, in the order of the original's rows: one, or several where the
	// original is fused. Rows are their output rows in the model of that size; smaller and larger models
	// keep the proportions.
	Parts []DiffusionPart
	Kind  string // linear, conv, norm
	Shape []int64
	// Group is what trainers make of it: attn (the usual targets), conv, extra, norm.
	Group string
	// Swapped: the two halves of the original's output rows are exchanged in diffusers.
	Swapped bool
	// Transposed: the original stores [in, out].
	Transposed bool
	// Weight and Bias are what follows Original in the names of the tensors.
	Weight, Bias string
}

// A DiffusionPart is a module of diffusers inside one of the original checkpoint.
type DiffusionPart struct {
	Module string
	Rows   int64
}

// A DiffusionName is what a name of a component stands for: a part of a module, or, with Part < 0, the
// whole module.
type DiffusionName struct {
	Component *DiffusionComponent
	Module    *DiffusionModule
	Part      int
}

// Path is the module in the space Diffusers.
func (n DiffusionName) Path() string {
	if n.Part < 0 {
		return n.Component.Folder + "." + n.Module.Original
	}
	return n.Component.Folder + "." + n.Module.Parts[n.Part].Module
}

// Slice is where the part's rows lie among rows of the whole module. It is false where rows does not divide in
// the parts' proportions.
func (m *DiffusionModule) Slice(part int, rows int64) (first, n int64, ok bool) {
	total, before := int64(0), int64(0)
	for i, p := range m.Parts {
		if i < part {
			before += p.Rows
		}
		total += p.Rows
	}
	unit := total
	for _, p := range m.Parts {
		unit = gcd(unit, p.Rows)
	}
	shares := total / unit
	if rows%shares != 0 {
		return 0, 0, false
	}
	per := rows / shares
	return before / unit * per, m.Parts[part].Rows / unit * per, true
}

func gcd(a, b int64) int64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// Flatten is a module path as kohya's trainers write it.
func Flatten(path string) string { return strings.ReplaceAll(path, ".", "_") }

// Lookup finds a name of the component in one spelling. A module that is not fused is found as its part 0
// in every spelling; a fused one as a whole by its original name.
func (c *DiffusionComponent) Lookup(b Body, name string) (DiffusionName, bool) {
	c.once.Do(c.build)
	n, ok := c.index[b][name]
	return n, ok
}

func (c *DiffusionComponent) build() {
	c.index = map[Body]map[string]DiffusionName{}
	for b := Original; b <= FlatRenamed; b++ {
		c.index[b] = make(map[string]DiffusionName, len(c.Modules))
	}
	for i := range c.Modules {
		m := &c.Modules[i]
		whole := DiffusionName{c, m, 0}
		if len(m.Parts) > 1 {
			whole.Part = -1
		}
		for _, name := range []string{m.Alias, m.Original} {
			c.index[Original][name] = whole
			c.index[FlatOriginal][Flatten(name)] = whole
		}
		for p, part := range m.Parts {
			c.index[Renamed][part.Module] = DiffusionName{c, m, p}
			c.index[FlatRenamed][Flatten(part.Module)] = DiffusionName{c, m, p}
		}
	}
	for b := range c.index {
		delete(c.index[b], "") // no alias
	}
}

// Component finds a component by its folder.
func (f *DiffusionFamily) Component(folder string) *DiffusionComponent {
	i := slices.IndexFunc(f.Components, func(c *DiffusionComponent) bool { return c.Folder == folder })
	if i < 0 {
		return nil
	}
	return f.Components[i]
}

// Denoiser is the family's unet or transformer.
func (f *DiffusionFamily) Denoiser() *DiffusionComponent { return f.Components[0] }

// Find finds a module named in the space Diffusers.
func (f *DiffusionFamily) Find(path string) (DiffusionName, bool) {
	folder, name, _ := strings.Cut(path, ".")
	c := f.Component(folder)
	if c == nil {
		return DiffusionName{}, false
	}
	if n, ok := c.Lookup(Renamed, name); ok {
		return n, true
	}
	return c.Lookup(Original, name)
}

// DiffusionFamilies lists the families. Of families that share names the more usual one comes first.
var DiffusionFamilies = sync.OnceValue(func() []*DiffusionFamily { return diffusionFamilies() })

// DiffusionFamilyNamed finds a family by its name, or returns nil.
func DiffusionFamilyNamed(name string) *DiffusionFamily {
	for _, f := range DiffusionFamilies() {
		if f.Name == name {
			return f
		}
	}
	return nil
}
