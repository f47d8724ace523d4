package diffusion

import (
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/evidence"
	"github.com/loratool/loratool/naming"
)

// A Dialect is one tool's form of an adapter of a diffusion pipeline.
type Dialect struct {
	Name, Title string
	form        *form
}

// A form is a dialect's choice in each dimension of a file's form.
type form struct {
	families []string // the only ones that it has names for; nil: all
	anyBase  bool     // names of a base that no family knows will do: flattened, or the original checkpoint's
	// prefix is what stands before a component's names. It is false where the dialect has no names for it.
	prefix func(f *naming.DiffusionFamily, c *naming.DiffusionComponent) (string, bool)
	body   func(c *naming.DiffusionComponent) naming.Body // of each component; the original one is fused
	flat   bool
	a, b   string
	// leaf, where not nil, gives the end of a module's name and the suffixes of its factors instead. It is false
	// where the dialect has no name for the module.
	leaf      func(c *naming.DiffusionComponent, module string) (name, a, b string, ok bool)
	bias      string // "" where a bias cannot be held
	magnitude string // of DoRA
	inputs    bool   // magnitudes of inputs, too
	set       string // a replaced vector, "" where it cannot be held
	alpha     bool   // a tensor; otherwise scales are folded into the factors
	// kinds are the updates, beside low-rank ones, that stay as they are.
	kinds      []adapter.Kind
	decomposed bool     // kernels in two parts (lora_mid)
	norms      bool     // differences of norms
	turn       turnForm // of OFT
	uniform    bool     // all modules of a block, of one rank
	alphas     bool     // of every module: LyCORIS does not load one without, even where it does not count
}

// A turnForm is what a dialect stores of rotations.
type turnForm int

const (
	noTurns     turnForm = iota
	outputTurns          // oft_blocks, with a bound and factors of outputs
	plainTurns           // oft_blocks without a bound, and of OFT without factors (ComfyUI, weight_adapter/oft.py, boft.py)
	inputTurns           // oft_R
)

// lycorisKinds are those of LyCORIS.
var lycorisKinds = []adapter.Kind{adapter.LoHa, adapter.LoKr, adapter.Full, adapter.GLoRA, adapter.IA3, adapter.OFT}

// unets are the pipelines that the attention processors of diffusers were written for.
var unets = []string{"sd15", "sd2", "sdxl", "sdxl-refiner"}

// Dialects lists the dialects. Their names are those of adapter.Adapter.Dialect and of Encode.
var Dialects = []Dialect{
	{"kohya", "a kohya file", &form{
		prefix: func(_ *naming.DiffusionFamily, c *naming.DiffusionComponent) (string, bool) { return c.Kohya[0], true },
		body:   func(c *naming.DiffusionComponent) naming.Body { return c.Flat },
		flat:   true, anyBase: true, a: ".lora_down.weight", b: ".lora_up.weight", alpha: true, magnitude: ".dora_scale", inputs: true,
		bias: ".diff_b", kinds: lycorisKinds, decomposed: true, norms: true, turn: outputTurns, alphas: true,
	}},
	{"diffusers", "a diffusers file", &form{
		prefix: folderPrefix, body: renamed,
		a: ".lora_A.weight", b: ".lora_B.weight", bias: ".lora_B.bias", magnitude: ".lora_magnitude_vector",
	}},
	{"comfyui", "a ComfyUI file", &form{
		prefix: nativePrefix, body: nativeBody, anyBase: true, a: ".lora_down.weight", b: ".lora_up.weight", alpha: true,
		bias: ".diff_b", set: ".set_weight", magnitude: ".dora_scale", inputs: true,
		kinds: []adapter.Kind{adapter.LoHa, adapter.LoKr, adapter.Full, adapter.GLoRA, adapter.OFT}, decomposed: true, norms: true, turn: plainTurns,
	}},
	{"ai-toolkit", "an ai-toolkit file", &form{
		prefix: nativePrefix, body: nativeBody, anyBase: true, a: ".lora_A.weight", b: ".lora_B.weight", magnitude: ".magnitude", kinds: []adapter.Kind{adapter.LoKr},
	}},
	{"onetrainer", "a OneTrainer file", &form{
		prefix: mixedPrefix, body: renamed, flat: true, a: ".lora_down.weight", b: ".lora_up.weight", alpha: true,
		magnitude: ".dora_scale", inputs: true, kinds: []adapter.Kind{adapter.LoHa, adapter.LoKr, adapter.OFT}, turn: inputTurns,
	}},
	{"lycoris", "a file of a LyCORIS wrapper", &form{
		prefix: func(_ *naming.DiffusionFamily, c *naming.DiffusionComponent) (string, bool) {
			return "lycoris_", c.Native == "diffusion_model."
		},
		body: renamed, flat: true, anyBase: true, a: ".lora_down.weight", b: ".lora_up.weight", alpha: true, magnitude: ".dora_scale", inputs: true,
		bias: ".diff_b", kinds: lycorisKinds, decomposed: true, norms: true, turn: outputTurns, alphas: true,
	}},
	{"diffusers-old", "a file of diffusers' attention processors", &form{families: unets, prefix: folderPrefix, body: renamed, leaf: processors}},
	{"xlabs", "an XLabs file", &form{families: []string{"flux1"}, prefix: barePrefix, body: original, leaf: xfluxLeaf, uniform: true}},
	{"bfl-control", "a LoRA of Black Forest Labs", &form{
		families: []string{"flux1"}, prefix: barePrefix, body: original, a: ".lora_A.weight", b: ".lora_B.weight", bias: ".lora_B.bias", set: ".scale",
	}},
}

func renamed(*naming.DiffusionComponent) naming.Body  { return naming.Renamed }
func original(*naming.DiffusionComponent) naming.Body { return naming.Original }

func folderPrefix(_ *naming.DiffusionFamily, c *naming.DiffusionComponent) (string, bool) {
	return c.Folder + ".", true
}

func nativePrefix(_ *naming.DiffusionFamily, c *naming.DiffusionComponent) (string, bool) {
	return c.Native, true
}

// barePrefix is none, which leaves no names for text encoders.
func barePrefix(_ *naming.DiffusionFamily, c *naming.DiffusionComponent) (string, bool) {
	return "", c.Native == "diffusion_model."
}

// mixedPrefix is that of OneTrainer's "legacy" output (modules/util/convert_lora_util.py, convert_to_mixture):
// kohya's prefixes with the number of the text encoder's folder, and of its own for transformers.
func mixedPrefix(f *naming.DiffusionFamily, c *naming.DiffusionComponent) (string, bool) {
	switch number, ok := strings.CutPrefix(c.Folder, "text_encoder"); {
	case !ok:
		return "lora_" + c.Folder + "_", true
	case number != "":
		return "lora_te" + number[1:] + "_", true
	case len(f.Components) == 2:
		return "lora_te_", true
	}
	return "lora_te1_", true
}

// processors are the names of diffusers before PEFT: layers of attention processors, LoRALinearLayers nested in
// other modules, and those of text encoders (diffusers 0.17 to 0.21, loaders.py).
func processors(c *naming.DiffusionComponent, module string) (name, a, b string, ok bool) {
	if strings.HasPrefix(c.Folder, "text_encoder") {
		return module, ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight", true
	}
	at, leaf, ok := cutLast(strings.TrimSuffix(module, ".0"))
	if ok && slices.Contains([]string{"to_q", "to_k", "to_v", "to_out"}, leaf) {
		return at + ".processor." + leaf, "_lora.down.weight", "_lora.up.weight", true
	}
	return module, ".lora.down.weight", ".lora.up.weight", true
}

func cutLast(path string) (before, leaf string, ok bool) {
	i := strings.LastIndexByte(path, '.')
	return path[:max(i, 0)], path[i+1:], i >= 0
}

// xfluxLeaf names the projections that x-flux's attention processors adapt.
func xfluxLeaf(_ *naming.DiffusionComponent, module string) (name, a, b string, ok bool) {
	at := strings.SplitN(module, ".", 3) // double_blocks.0.img_attn.qkv
	if len(at) < 3 {
		return "", "", "", false
	}
	leaf := map[string]string{
		"img_attn.qkv": "qkv_lora1", "img_attn.proj": "proj_lora1", "txt_attn.qkv": "qkv_lora2", "txt_attn.proj": "proj_lora2",
		"linear1": "qkv_lora", "linear2": "proj_lora",
	}[at[2]]
	return at[0] + "." + at[1] + ".processor." + leaf, ".down.weight", ".up.weight", leaf != ""
}

// nativeBody is the spelling of ComfyUI: the checkpoint's names for the denoiser, those of transformers for text
// encoders.
func nativeBody(c *naming.DiffusionComponent) naming.Body {
	if c.Native == "diffusion_model." {
		return naming.Original
	}
	return naming.Renamed
}

// Detect names the dialect that the tensors found at a path are in and says what speaks for it, or returns
// "". Files that are like PEFT's in all but the module names count as diffusers' where no adapter_config.json
// makes them a PEFT adapter.
func Detect(s *evidence.Subject) (dialect, why string) {
	if s.Format != "safetensors" && s.Format != "torch" {
		return "", ""
	}
	f := featuresOf(s.Names, s.Metadata)
	if f.dialect == "" || s.Config != "" && f.flat == 0 {
		return "", ""
	}
	return f.dialect, fmt.Sprintf("%d tensor names of its kind (%q)", f.count, f.first)
}

func dialectOf(names []string, metadata [][2]string) string {
	return featuresOf(names, metadata).dialect
}

// features are what tells the dialects apart.
type features struct {
	dialect     string
	count, flat int
	first       string
	voices      []voice // the forms of names, in the order of their first ones
}

// A voice is the names of one form.
type voice struct {
	of, first string
	count     int
}

func (f *features) hear(of, name string) {
	i := slices.IndexFunc(f.voices, func(v voice) bool { return v.of == of })
	if i < 0 {
		i = len(f.voices)
		f.voices = append(f.voices, voice{of: of, first: name})
	}
	f.voices[i].count++
}

func featuresOf(names []string, metadata [][2]string) features {
	var f features
	var transformer, wrapped, processor, old, native, bare, blocks, prefixed, alpha, peft, down, norm, kron int
	known := false
	for _, name := range names {
		k, ok := parse(name)
		if !ok {
			continue
		}
		if f.count++; f.first == "" {
			f.first = name
		}
		switch {
		case k.flat:
			f.flat++
			switch k.prefix {
			case "lora_transformer_":
				transformer++
				f.hear("onetrainer", name)
			case "lycoris_":
				wrapped++
				f.hear("lycoris", name)
			case "lora_unet_", "lora_unet__", "lora_prior_unet_":
				f.hear("kohya", name)
			}
		case strings.Contains(name, ".processor.") && strings.Contains(name, "_blocks.") && k.prefix == "" && !strings.Contains(name, "attentions."):
			processor++
			f.hear("xlabs", name)
		case strings.HasPrefix(k.suffix, "_lora.") || strings.HasPrefix(k.suffix, ".lora.") || strings.HasPrefix(k.suffix, ".lora_linear_layer."):
			old++
			f.hear("diffusers-old", name)
		case strings.HasSuffix(k.prefix, "diffusion_model.") || strings.HasPrefix(k.prefix, "text_encoders."):
			native++
			f.hear("comfyui", name)
		case k.prefix == "":
			if bare++; strings.HasPrefix(k.body, "double_blocks.") || strings.HasPrefix(k.body, "single_blocks.") {
				blocks++
			}
			f.hear("no prefix", name)
		default:
			prefixed++
			f.hear("diffusers", name)
		}
		switch {
		case k.role == roleAlpha:
			alpha++
		case k.role == roleScale && strings.HasSuffix(k.body, "_norm"):
			norm++
		case strings.Contains(k.suffix, "lora_A") || strings.Contains(k.suffix, "lora_B"):
			peft++
		case strings.HasPrefix(k.suffix, ".lora_down") || strings.HasPrefix(k.suffix, ".lora_up"):
			down++
		case strings.HasPrefix(string(k.role), "lokr_w1"):
			kron++
		}
		if !known && !k.flat {
			s := site{at: k.at, body: k.body}
			for _, family := range naming.DiffusionFamilies() {
				if _, _, known = s.find(family); known {
					break
				}
			}
		}
	}
	has := func(key, text string) bool {
		return slices.ContainsFunc(metadata, func(m [2]string) bool { return m[0] == key && strings.Contains(m[1], text) })
	}
	software := has("software", "ai-toolkit") || has("ss_software", "ai-toolkit")
	switch {
	case f.flat > 0 && (transformer > 0 || bare+prefixed > 0 || has("ot_revision", "")):
		f.dialect = "onetrainer"
	case f.flat > 0 && wrapped == f.flat:
		f.dialect = "lycoris"
	case f.flat > 0:
		f.dialect = "kohya"
	case processor > 0:
		f.dialect = "xlabs"
	case native > 0 && (software || peft > 0 && alpha <= kron):
		f.dialect = "ai-toolkit"
	case native > 0:
		f.dialect = "comfyui"
	case !known || alpha == f.count || bare == f.count && peft+down+alpha+old == 0:
		f.dialect = ""
	case old > 0:
		f.dialect = "diffusers-old"
	case bare > 0 && norm > 0, bare == f.count && peft > 0 && blocks > 0 && alpha == 0:
		f.dialect = "bfl-control"
	case prefixed > 0 && down > 0:
		f.dialect = "onetrainer"
	default:
		f.dialect = "diffusers"
	}
	return f
}
