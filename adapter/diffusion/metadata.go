package diffusion

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
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

// stale are metadata keys that no longer hold once an adapter is written anew: configurations and alphas that the
// tensors say now, hashes, and what tells the tool that wrote the file.
var stale = []string{
	adapterMetadata, "sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256",
	"transformer.lora_alpha", "unet.lora_alpha", "transformer.r", "unet.r", "lora_alpha", "network_alpha", "alpha", "software", "format",
}

// algorithms are the kinds of updates that the "algo" of LyCORIS in ss_network_args names.
var algorithms = map[string]adapter.Kind{
	"loha": adapter.LoHa, "lokr": adapter.LoKr, "glora": adapter.GLoRA, "ia3": adapter.IA3, "full": adapter.Full, "diag-oft": adapter.OFT, "boft": adapter.OFT,
}

// outdated reports whether the metadata names an algorithm of which nothing was written.
func (e *encoder) outdated() bool {
	for _, m := range e.a.Metadata {
		var args struct{ Algo string }
		if m[0] != "ss_network_args" || json.Unmarshal([]byte(m[1]), &args) != nil {
			continue
		}
		kind, ok := algorithms[strings.ToLower(args.Algo)]
		return ok && !e.kinds[kind]
	}
	return false
}

// files gathers what was written, with the metadata that holds for it. Whatever a file of another pipeline's tool says
// beside the tensors is carried, for every dialect is a safetensors file with room for it.
func (e *encoder) files(dialect string) (*Files, error) {
	f := &Files{Weights: e.weights, Findings: e.findings}
	set := func(key, value string) { f.Metadata = append(f.Metadata, [2]string{key, value}) }
	from := slices.IndexFunc(Dialects, func(d Dialect) bool { return d.Name == e.a.Dialect })
	outdated := e.outdated()
	for _, m := range e.a.Metadata {
		switch {
		case slices.Contains(stale, m[0]):
		case strings.HasPrefix(m[0], "ot_") && dialect != "onetrainer": // OneTrainer's files are known by it
		case m[0] == "ss_network_dim" && len(e.dims) > 0:
			set(m[0], e.network(0))
		case m[0] == "ss_network_alpha" && len(e.dims) > 0:
			set(m[0], e.network(1))
		case m[0] == "ss_network_args" && outdated:
		case m[0] == "ss_network_module" && outdated:
			set(m[0], "networks.lora")
		case from >= 0 || strings.HasPrefix(m[0], "ss_") || strings.HasPrefix(m[0], "modelspec."):
			set(m[0], m[1])
		}
	}
	switch dialect {
	case "kohya":
		model, legacy, err := hashes(e.weights, f.Metadata)
		if err != nil {
			return nil, err
		}
		set("sshs_model_hash", model)
		if legacy != "" {
			set("sshs_legacy_hash", legacy)
		}
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

// hashes are kohya's: sshs_model_hash, the SHA-256 of a file's data in the order of a safetensors file, and
// sshs_legacy_hash, of which eight digits remain, over 64 KiB at the first mebibyte of the file with only the ss_ part of
// its metadata (sd-scripts, library/train_util.py, precalculate_safetensors_hashes). Without such metadata there is no
// file to hash.
func hashes(weights []adapter.Weight, metadata [][2]string) (model, legacy string, err error) {
	const first, size = 0x100000, 0x10000
	training := slices.DeleteFunc(slices.Clone(metadata), func(m [2]string) bool { return !strings.HasPrefix(m[0], "ss_") })
	specs, order := make([]tensor.Spec, len(weights)), make([]int, len(weights))
	for i, w := range weights {
		specs[i], order[i] = w.Spec, i
	}
	l, err := safetensors.NewLayout(specs, safetensors.Output{Metadata: training}, layout.Options{Name: "adapter.safetensors"})
	if err != nil {
		return "", "", err
	}
	slices.SortFunc(order, func(x, y int) int { return cmp.Compare(l.Items[x].Off, l.Items[y].Off) })
	window := make([]byte, max(0, min(size, l.Files[0].Size-first)))
	see := func(off int64, b []byte) { // the part of b at an offset of the file that the window shows
		if lo, hi := max(off, first), min(off+int64(len(b)), first+int64(len(window))); lo < hi {
			copy(window[lo-first:hi-first], b[lo-off:hi-off])
		}
	}
	for _, s := range l.Files[0].Spans {
		b := make([]byte, s.Len)
		if _, err := s.Src.ReadAt(b, s.SrcOff); err != nil && err != io.EOF {
			return "", "", err
		}
		see(s.Off, b)
	}
	h := sha256.New()
	for _, i := range order {
		b, err := weights[i].Bytes()
		if err != nil {
			return "", "", err
		}
		h.Write(b)
		see(l.Items[i].Off, b)
	}
	if len(training) > 0 {
		sum := sha256.Sum256(window)
		legacy = hex.EncodeToString(sum[:4])
	}
	return hex.EncodeToString(h.Sum(nil)), legacy, nil
}
