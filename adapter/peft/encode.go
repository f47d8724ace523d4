package peft

import (
	"bytes"
	"cmp"
	"encoding/json"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// prefix stands before every tensor name that PEFT writes.
const prefix = "base_model.model."

// EncodeOptions are the choices of Encode.
type EncodeOptions struct {
	// DType is the type of the written tensors; Invalid keeps each tensor's own, and F32 where a factor is
	// computed.
	DType tensor.DType
	// BaseModel is written as base_model_name_or_path; "" keeps the adapter's own.
	BaseModel string
}

// Files are the contents of a PEFT folder.
type Files struct {
	Config  []byte           // adapter_config.json
	Weights []adapter.Weight // adapter_model.safetensors, by name
}

// Encode lays an adapter in Hugging Face names out as a PEFT folder, such that Decode gives the same
// updates. No weight is read. What PEFT's LoRA cannot express is refused.
func Encode(a *adapter.Adapter, opt EncodeOptions) (*Files, error) {
	e := &encoder{a: a, opt: opt, config: map[string]any{
		"peft_type": "LORA", "base_model_name_or_path": nil, "bias": "none", "auto_mapping": nil, "revision": nil,
		"fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true, "layers_pattern": nil,
		"layers_to_transform": nil, "lora_dropout": 0.0, "modules_to_save": nil, "task_type": nil, "use_dora": false,
		"use_rslora": false, "rank_pattern": map[string]any{}, "alpha_pattern": map[string]any{},
	}}
	if a.Space != naming.HF {
		return nil, e.refuse("", "module names are those of %q, and PEFT needs Hugging Face's", a.Space).Hinted("convert with the base model at hand, so that names can be translated")
	}
	for _, step := range []func() error{e.gather, e.pairs, e.stacks, e.others, e.numbers} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	e.facts()
	slices.SortFunc(e.weights, func(x, y adapter.Weight) int { return cmp.Compare(x.Name, y.Name) })
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(e.config); err != nil {
		return nil, err
	}
	return &Files{Config: bytes.TrimSuffix(b.Bytes(), []byte("\n")), Weights: e.weights}, nil
}

type encoder struct {
	a       *adapter.Adapter
	opt     EncodeOptions
	config  map[string]any
	weights []adapter.Weight

	low     []*adapter.Update            // LowRank and DoRA, one a module
	at      map[string]*adapter.Update   // by target
	experts map[string][]*adapter.Update // by target, the whole stack
	order   []string                     // targets of experts, in file order
	scaled  []scaled
	targets map[string]bool
}

// scaled is what r and lora_alpha, or their patterns, must say of a path.
type scaled struct {
	path  string
	rank  int
	scale adapter.Scale
	value float64 // the scale to write, which differs from scale.Value for the parts of an attention
}

func (e *encoder) refuse(module, format string, a ...any) *finding.Finding {
	f := finding.Errorf("adapter.unsupported_feature", e.a.Path, format, a...)
	f.Module = module
	return f
}

// gather sorts the low-rank updates and checks what only the whole adapter shows.
func (e *encoder) gather() error {
	e.at, e.experts, e.targets = map[string]*adapter.Update{}, map[string][]*adapter.Update{}, map[string]bool{}
	dora, plain := false, false
	for i := range e.a.Updates {
		u := &e.a.Updates[i]
		if u.Kind != adapter.LowRank && u.Kind != adapter.DoRA {
			continue
		}
		dora, plain = dora || u.Kind == adapter.DoRA, plain || u.Kind == adapter.LowRank
		t := u.Target.String()
		if u.Experts > 0 {
			if e.experts[t] == nil {
				e.order = append(e.order, t)
			}
			e.experts[t] = append(e.experts[t], u)
			continue
		}
		if e.at[t] != nil {
			return e.refuse(u.Module, "module %q has two low-rank updates", u.Module).Hinted("combine them into one first")
		}
		e.at[t] = u
		e.low = append(e.low, u)
	}
	if dora && plain {
		return e.refuse("", "some modules use DoRA and others do not, which one PEFT configuration cannot say")
	}
	e.config["use_dora"] = dora
	return nil
}

func (e *encoder) add(name string, shape tensor.Shape, f adapter.Factor) {
	t := e.opt.DType
	if t == tensor.Invalid {
		t = tensor.F32
		if f.DType.IsFloat() {
			t = f.DType
		}
	}
	e.weights = append(e.weights, adapter.Weight{Spec: tensor.Spec{Name: prefix + name, DType: t, Shape: shape}, Values: f})
}

// pairs writes the factors of modules and of plain parameters.
func (e *encoder) pairs() error {
	for _, u := range e.low {
		name, path, value := u.Module, u.Module, u.Scale.Value
		parent := strings.TrimSuffix(u.Module, ".out_proj")
		switch {
		case u.Param == "in_proj_weight":
		case parent != u.Module && e.at[parent+".in_proj_weight"] != nil:
			name, path, value = parent+".base_layer.out_proj", parent, value/2 // PEFT applies it twice
			if in := e.at[parent+".in_proj_weight"]; in.Scale.Value != value || in.Rank != u.Rank {
				return e.refuse(u.Module, "the parts of attention %q have different scales or ranks, which PEFT cannot say", parent)
			}
		case u.Param != "weight":
			if err := e.stack(u.Target.String(), []*adapter.Update{u}); err != nil {
				return err
			}
			continue
		}
		if err := e.pair(u, name); err != nil {
			return err
		}
		if name == path {
			e.targets[leafOf(path)] = true
			e.scaled = append(e.scaled, scaled{path, u.Rank, u.Scale, value})
		}
	}
	return nil
}

func (e *encoder) pair(u *adapter.Update, name string) error {
	a, b := tensor.Shape{u.A.Rows, u.A.Cols}, tensor.Shape{u.B.Rows, u.B.Cols}
	magnitude := tensor.Shape{u.Magnitude.Rows * u.Magnitude.Cols}
	switch u.Layer {
	case adapter.Embedding:
		e.add(name+".lora_embedding_A", a, u.A)
		e.add(name+".lora_embedding_B", b, u.B)
	case adapter.Conv:
		a = u.ConvShape()
		if a == nil {
			return e.refuse(u.Module, "the kernel of convolution %q is not known", u.Module)
		}
		magnitude = tensor.Shape{1, u.B.Rows}
		for range a[2:] {
			b, magnitude = append(b, 1), append(magnitude, 1)
		}
		fallthrough
	default:
		e.add(name+".lora_A.weight", a, u.A)
		e.add(name+".lora_B.weight", b, u.B)
	}
	if u.Kind == adapter.DoRA {
		e.add(name+".lora_magnitude_vector", magnitude, u.Magnitude)
	}
	if u.FanInFanOut {
		e.config["fan_in_fan_out"] = true
	}
	return nil
}

// numbers chooses r and lora_alpha, and patterns for the paths that differ.
func (e *encoder) numbers() error {
	root := len(e.scaled) > 0
	plain := true
	for _, s := range e.scaled {
		root = root && s.value == s.scale.Alpha/math.Sqrt(float64(s.rank))
		plain = plain && s.value == s.scale.Alpha/float64(s.rank)
	}
	root = root && !plain
	e.config["use_rslora"] = root
	alpha := func(s scaled) float64 {
		if a := s.scale.Alpha; root || s.value == a/float64(s.rank) {
			return a
		}
		return s.value * float64(s.rank)
	}
	paths := make([]string, len(e.scaled))
	ranks, alphas := make([]float64, len(e.scaled)), make([]float64, len(e.scaled))
	for i, s := range e.scaled {
		paths[i], ranks[i], alphas[i] = s.path, float64(s.rank), alpha(s)
	}
	e.config["r"], e.config["rank_pattern"] = patternsOf(paths, ranks)
	e.config["lora_alpha"], e.config["alpha_pattern"] = patternsOf(paths, alphas)
	return nil
}

// patternsOf chooses the most frequent value (the first of several) as the default and names the paths
// with another one, by their last component where that is enough.
func patternsOf(paths []string, values []float64) (float64, map[string]float64) {
	count, byLeaf := map[float64]int{}, map[string]map[float64]bool{}
	usual := 8.0 // PEFT's own default, for an adapter without factors
	for i, v := range values {
		count[v]++
		l := leafOf(paths[i])
		if byLeaf[l] == nil {
			byLeaf[l] = map[float64]bool{}
		}
		byLeaf[l][v] = true
	}
	for _, v := range values {
		if count[v] > count[usual] {
			usual = v
		}
	}
	out := map[string]float64{}
	for i, v := range values {
		l := leafOf(paths[i])
		switch {
		case len(byLeaf[l]) > 1:
			// PEFT searches the keys in alphabetical order for the end of the path. The anchor keeps a path from
			// matching longer ones, and sorts before letters.
			if v != usual || slices.ContainsFunc(paths, func(p string) bool { return p != paths[i] && endsWith(paths[i], p) }) {
				out["^"+escape(paths[i])] = v
			}
		case v != usual:
			out[escape(l)] = v
		}
	}
	return usual, out
}

// escape makes a path a regular expression for itself. Dots stay, as in the patterns people write.
func escape(path string) string {
	var b strings.Builder
	for _, r := range path {
		if strings.ContainsRune(`\+*?()|[]{}^$`, r) {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	return b.String()
}

// leafOf is the shortest useful end of a path: its last component, with the ones before it as long as
// they are numbers.
func leafOf(path string) string {
	i := len(path)
	for {
		j := strings.LastIndexByte(path[:i], '.')
		if j < 0 {
			return path
		}
		if strings.Trim(path[j+1:i], "0123456789") != "" {
			return path[j+1:]
		}
		i = j
	}
}

// facts fills in what the adapter says of itself.
func (e *encoder) facts() {
	if b := cmp.Or(e.opt.BaseModel, e.a.BaseModel); b != "" {
		e.config["base_model_name_or_path"] = b
	}
	e.config["target_modules"] = sortedKeys(e.targets)
	for _, m := range e.a.Metadata {
		switch m[0] {
		case "task_type":
			e.config["task_type"] = m[1]
		case "ensure_weight_tying":
			e.config["ensure_weight_tying"] = true
		case "peft_version":
			e.config["peft_version"] = m[1]
		case adapter.InvocationTokens:
			var ids []json.Number
			for s := range strings.SplitSeq(m[1], ",") {
				ids = append(ids, json.Number(s))
			}
			e.config["alora_invocation_tokens"] = ids
		}
	}
}

func sortedKeys(m map[string]bool) []string {
	out := []string{}
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
