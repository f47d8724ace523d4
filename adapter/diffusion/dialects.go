package diffusion

import (
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/adapter/evidence"
	"github.com/loratool/loratool/naming"
)

// A Dialect is one tool's form of an adapter of a diffusion pipeline.
type Dialect struct {
	Name, Title string
	form        *form // how it is written; nil where it is only read
}

// Writes reports whether Encode knows the dialect.
func (d Dialect) Writes() bool { return d.form != nil }

// A form is a dialect's choice in each dimension of a file's form.
type form struct {
	prefix       func(c *naming.DiffusionComponent) string
	body         func(c *naming.DiffusionComponent) naming.Body // of each component; the original one is fused
	flat         bool
	a, b         string
	bias         string // "" where a bias cannot be held
	magnitude    string // of DoRA
	set          string // a replaced vector, "" where it cannot be held
	alpha        bool   // a tensor; otherwise scales are folded into the factors
	lycoris, ia3 bool   // tensors of LyCORIS algorithms; of (IA)³, too
}

// Dialects lists the dialects. Their names are those of adapter.Adapter.Dialect and of Encode.
var Dialects = []Dialect{
	{"kohya", "a kohya file", &form{
		prefix: func(c *naming.DiffusionComponent) string { return c.Kohya[0] },
		body:   func(c *naming.DiffusionComponent) naming.Body { return c.Flat },
		flat:   true, a: ".lora_down.weight", b: ".lora_up.weight", alpha: true, magnitude: ".dora_scale",
		bias: ".diff_b", lycoris: true, ia3: true,
	}},
	{"diffusers", "a diffusers file", &form{
		prefix: func(c *naming.DiffusionComponent) string { return c.Folder + "." },
		body:   func(*naming.DiffusionComponent) naming.Body { return naming.Renamed },
		a:      ".lora_A.weight", b: ".lora_B.weight", bias: ".lora_B.bias", magnitude: ".lora_magnitude_vector",
	}},
	{"comfyui", "a ComfyUI file", &form{
		prefix: func(c *naming.DiffusionComponent) string { return c.Native }, body: nativeBody,
		a: ".lora_down.weight", b: ".lora_up.weight", bias: ".diff_b", set: ".set_weight", alpha: true, magnitude: ".dora_scale", lycoris: true,
	}},
	{"ai-toolkit", "an ai-toolkit file", &form{
		prefix: func(c *naming.DiffusionComponent) string { return c.Native }, body: nativeBody,
		a: ".lora_A.weight", b: ".lora_B.weight",
	}},
	{"onetrainer", "a OneTrainer file", nil},
	{"xlabs", "an XLabs file", nil},
	{"bfl-control", "a control LoRA of Black Forest Labs", nil},
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
}

func featuresOf(names []string, metadata [][2]string) features {
	var f features
	var transformer, processor, native, bare, prefixed, alpha, peft, down, norm int
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
			if k.prefix == "lora_transformer_" {
				transformer++
			}
		case strings.Contains(name, ".processor.") && strings.Contains(name, "_blocks.") && k.prefix == "" && !strings.Contains(name, "attentions."):
			processor++
		case strings.HasSuffix(k.prefix, "diffusion_model.") || strings.HasPrefix(k.prefix, "text_encoders."):
			native++
		case k.prefix == "":
			bare++
		default:
			prefixed++
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
	software := slices.ContainsFunc(metadata, func(m [2]string) bool {
		return (m[0] == "software" || m[0] == "ss_software") && strings.Contains(m[1], "ai-toolkit")
	})
	switch {
	case f.flat > 0 && (transformer > 0 || bare+prefixed > 0):
		f.dialect = "onetrainer"
	case f.flat > 0:
		f.dialect = "kohya"
	case processor > 0:
		f.dialect = "xlabs"
	case native > 0 && (software || peft > 0 && alpha == 0):
		f.dialect = "ai-toolkit"
	case native > 0:
		f.dialect = "comfyui"
	case !known || alpha == f.count || bare == f.count && peft+down+alpha == 0:
		f.dialect = ""
	case bare > 0 && norm > 0:
		f.dialect = "bfl-control"
	case prefixed > 0 && down > 0:
		f.dialect = "onetrainer"
	default:
		f.dialect = "diffusers"
	}
	return f
}
