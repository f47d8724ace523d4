package diffusion

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/tensor"
)

// ranked is the rank of a module.
type ranked struct {
	module string
	rank   int
}

// stale are metadata keys that no longer hold once an adapter is written anew.
var stale = []string{
	adapterMetadata, "sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256",
	"transformer.lora_alpha", "unet.lora_alpha", "transformer.r", "unet.r", "lora_alpha", "network_alpha", "alpha", "software", "format",
}

// files gathers what was written, with the metadata that holds for it.
func (e *encoder) files(dialect string) (*Files, error) {
	f := &Files{Weights: e.weights, Findings: e.findings}
	set := func(key, value string) { f.Metadata = append(f.Metadata, [2]string{key, value}) }
	for _, m := range e.a.Metadata {
		switch {
		case slices.Contains(stale, m[0]):
		case m[0] == "ss_network_dim" && len(e.dims) > 0:
			set(m[0], e.network(0))
		case m[0] == "ss_network_alpha" && len(e.dims) > 0:
			set(m[0], e.network(1))
		case strings.HasPrefix(m[0], "ss_") || strings.HasPrefix(m[0], "modelspec."):
			set(m[0], m[1])
		}
	}
	switch dialect {
	case "kohya":
		hash, err := modelHash(e.weights)
		if err != nil {
			return nil, err
		}
		set("sshs_model_hash", hash)
	case "diffusers":
		if e.doras > 0 && e.doras < len(e.dims) {
			return nil, finding.Errorf("adapter.unsupported_feature", e.a.Path, "some modules use DoRA and others do not, which a diffusers file cannot say").
				Hinted("convert it for ComfyUI, or merge the adapter into the base instead")
		}
		text, err := e.configs()
		if err != nil {
			return nil, err
		}
		set(adapterMetadata, text)
		set("format", "pt")
	default:
		set("format", "pt")
	}
	slices.SortFunc(f.Metadata, func(x, y [2]string) int { return cmp.Compare(x[0], y[0]) })
	return f, nil
}

// network is the rank (0) or the alpha (1) that all modules have, "Dynamic" where they differ, as kohya's
// tools say.
func (e *encoder) network(which int) string {
	for _, d := range e.dims {
		if d[which] != e.dims[0][which] {
			return "Dynamic"
		}
	}
	return strconv.FormatFloat(e.dims[0][which], 'g', -1, 32)
}

// configs are the components' configurations for diffusers. Scales are folded into the factors, so that
// every alpha is the rank and readers that know only the tensors agree.
func (e *encoder) configs() (string, error) {
	all := map[string]any{}
	for folder, modules := range e.ranks {
		usual, count := 0, map[int]int{}
		for _, m := range modules {
			if count[m.rank]++; count[m.rank] > count[usual] {
				usual = m.rank
			}
		}
		pattern := map[string]int{}
		targets := make([]string, len(modules))
		for i, m := range modules {
			targets[i] = m.module
			if m.rank != usual {
				pattern[m.module] = m.rank
			}
		}
		slices.Sort(targets)
		for key, v := range map[string]any{
			"r": usual, "lora_alpha": usual, "rank_pattern": pattern, "alpha_pattern": pattern, "target_modules": targets,
			"peft_type": "LORA", "bias": "none", "use_dora": e.doras > 0, "use_rslora": false, "lora_bias": false,
		} {
			all[folder+"."+key] = v
		}
	}
	b, err := json.Marshal(all)
	return string(b), err
}

// modelHash is kohya's sshs_model_hash: the SHA-256 of a file's data in the order of a safetensors file.
func modelHash(weights []adapter.Weight) (string, error) {
	specs, order := make([]tensor.Spec, len(weights)), make([]int, len(weights))
	for i, w := range weights {
		specs[i], order[i] = w.Spec, i
	}
	l, err := safetensors.NewLayout(specs, safetensors.Output{}, layout.Options{Name: "adapter.safetensors"})
	if err != nil {
		return "", err
	}
	slices.SortFunc(order, func(x, y int) int {
		return cmp.Or(cmp.Compare(l.Items[x].File, l.Items[y].File), cmp.Compare(l.Items[x].Off, l.Items[y].Off))
	})
	h := sha256.New()
	for _, i := range order {
		b, err := weights[i].Bytes()
		if err != nil {
			return "", err
		}
		h.Write(b)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
