package diffusion

import (
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// adapterMetadata is the metadata key under which diffusers keeps PEFT's configurations of the components.
const adapterMetadata = "lora_adapter_metadata"

// stated is what a file's metadata says of alphas.
type stated struct {
	components map[string]*config // by folder
	alpha      *float64           // of the whole file
	key        string             // where that stands
}

// A config is the part of PEFT's configuration that scales depend on.
type config struct {
	alpha, rank   float64
	alphas, ranks map[string]float64
	rslora        bool
}

// readStated reads alphas from the metadata: those of diffusers, or one number under a key of other tools.
func readStated(file string, metadata [][2]string) (stated, error) {
	s := stated{components: map[string]*config{}}
	bad := func(key, value string) error {
		return finding.Errorf("adapter.bad_alpha", file, "metadata %q is not usable", key).Expected(strconv.Quote(value), "numbers")
	}
	plain := map[string]string{}
	for _, m := range metadata {
		plain[m[0]] = m[1]
	}
	if text, ok := plain[adapterMetadata]; ok {
		all := map[string]any{}
		if err := json.Unmarshal([]byte(text), &all); err != nil {
			return s, finding.Errorf("adapter.bad_json", file, "metadata %q: %v", adapterMetadata, err)
		}
		for key, v := range all {
			folder, field, ok := strings.Cut(key, ".")
			if !ok {
				continue
			}
			c := s.components[folder]
			if c == nil {
				c = &config{}
				s.components[folder] = c
			}
			switch field {
			case "lora_alpha":
				c.alpha, ok = v.(float64)
			case "r":
				c.rank, ok = v.(float64)
			case "use_rslora":
				c.rslora, _ = v.(bool)
			case "alpha_pattern":
				c.alphas, ok = numbers(v)
			case "rank_pattern":
				c.ranks, ok = numbers(v)
			}
			if !ok {
				return s, bad(adapterMetadata+" "+key, fmt.Sprint(v))
			}
		}
	}
	for _, key := range []string{"transformer.lora_alpha", "unet.lora_alpha", "lora_alpha", "network_alpha", "alpha"} {
		text, ok := plain[key]
		if !ok {
			continue
		}
		v, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return s, bad(key, text)
		}
		if s.alpha != nil && *s.alpha != v {
			return s, finding.Errorf("adapter.alpha_conflict", file, "the metadata gives two alphas").Expected(fmt.Sprintf("%s %g, %s %g", s.key, *s.alpha, key, v), "one alpha")
		}
		s.alpha, s.key = &v, key
	}
	return s, nil
}

func numbers(v any) (map[string]float64, bool) {
	if v == nil {
		return nil, true
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil, false
	}
	out := map[string]float64{}
	for k, x := range m {
		n, ok := x.(float64)
		if !ok {
			return nil, false
		}
		out[k] = n
	}
	return out, true
}

// match finds the value of a pattern that fits the end of a module's path, as PEFT does.
func match(patterns map[string]float64, module string) (float64, string, bool) {
	best := ""
	for p := range patterns {
		re, err := regexp.Compile(`^(.*\.)?(` + p + `)$`)
		if (err == nil && re.MatchString(module) || err != nil && strings.HasSuffix(module, p)) && (best == "" || p < best) {
			best = p
		}
	}
	return patterns[best], best, best != ""
}

// of is the alpha that the metadata gives a module, and whether alpha is divided by the root of the rank.
func (s stated) of(n naming.DiffusionName) (alpha float64, source string, rslora, ok bool) {
	if n.Component == nil {
		return 0, "", false, false
	}
	c := s.components[n.Component.Folder]
	if c == nil {
		return 0, "", false, false
	}
	_, module, _ := strings.Cut(n.Path(), ".")
	if v, p, ok := match(c.alphas, module); ok {
		return v, fmt.Sprintf("alpha_pattern %q: %g", p, v), c.rslora, true
	}
	return c.alpha, fmt.Sprintf("metadata lora_alpha %g", c.alpha), c.rslora, c.alpha != 0
}

// scale finds a module's scale: an explicit one, alpha by the rank, or 1 where no alpha is given. What is
// said twice must agree.
func (d *decoder) scale(s *site, rank int) (adapter.Scale, error) {
	r := float64(rank)
	var found *adapter.Scale
	add := func(t *tensor.Tensor, sc adapter.Scale) error {
		sc.Rank = rank
		if math.IsNaN(sc.Value) || math.IsInf(sc.Value, 0) {
			return finding.Errorf("adapter.bad_alpha", d.file, "the scale of module %q is %v", s.body, sc.Value).In(s.first)
		}
		if found != nil && math.Abs(found.Value-sc.Value) > 1e-6*math.Abs(sc.Value) {
			return finding.Errorf("adapter.alpha_conflict", d.file, "the scale of module %q is given twice and differently", s.body).In(s.first).
				Expected(found.Source+"; "+sc.Source, "one scale").Hinted("remove the wrong one")
		}
		if found == nil {
			found = &sc
		}
		return nil
	}
	if t := s.role[roleScale]; t != nil {
		v, err := d.number(t)
		if err != nil {
			return adapter.Scale{}, err
		}
		if err := add(t, adapter.Scale{Value: v, Alpha: v * r, Source: fmt.Sprintf("scale %g", v)}); err != nil {
			return adapter.Scale{}, err
		}
	}
	if t := s.role[roleAlpha]; t != nil {
		v, err := d.number(t)
		if err != nil {
			return adapter.Scale{}, err
		}
		if err := add(t, adapter.Scale{Value: v / r, Alpha: v, Source: fmt.Sprintf("alpha %g / rank %d", v, rank)}); err != nil {
			return adapter.Scale{}, err
		}
	}
	if v, source, rslora, ok := d.stated.of(s.name); ok {
		sc := adapter.Scale{Value: v / r, Alpha: v, Source: fmt.Sprintf("%s / rank %d", source, rank)}
		if rslora {
			sc.Value, sc.Source = v/math.Sqrt(r), fmt.Sprintf("%s / sqrt(rank %d)", source, rank)
		}
		if err := add(s.role[roleA], sc); err != nil {
			return adapter.Scale{}, err
		}
	}
	if found != nil {
		return *found, nil
	}
	if a := d.stated.alpha; a != nil {
		return adapter.Scale{Value: *a / r, Alpha: *a, Rank: rank, Source: fmt.Sprintf("metadata %s %g / rank %d", d.stated.key, *a, rank)}, nil
	}
	return adapter.Scale{Value: 1, Alpha: r, Rank: rank, Source: "no alpha: the rank"}, nil
}

// number reads a tensor of one element.
func (d *decoder) number(t *tensor.Tensor) (float64, error) {
	if n, err := t.Shape.Elements(); err != nil || n != 1 {
		return 0, d.errorf("bad_alpha", t, "must be one number").Expected(t.Shape, "[]")
	}
	v, err := adapter.ReadFloats(t)
	if err != nil {
		return 0, err
	}
	return float64(v[0]), nil
}
