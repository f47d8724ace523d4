package torchtune

import (
	"bytes"
	"cmp"
	"encoding/json"
	"slices"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/geometry"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// WeightsName is the file that torchtune saves an adapter's factors in, and looks for when it goes on.
const WeightsName = "adapter_model.pt"

// Files are a torchtune adapter.
type Files struct {
	Config  []byte           // adapter_config.json, whose target_modules torchtune writes in Hugging Face's names
	Weights []adapter.Weight // by name
}

// Encode lays an adapter in Hugging Face names out in torchtune's names and row order. torchtune has one
// rank and one alpha: modules of a smaller rank are filled up with zeros, and scales that differ go into
// lora_b. dtype is the type of the factors; Invalid keeps their own. base gives the geometry of the base
// and is called only where rows are reordered. No weight is read.
func Encode(a *adapter.Adapter, dtype tensor.DType, base func() (*geometry.Geometry, error)) (*Files, error) {
	if err := a.Within(adapter.Limits{Title: "a torchtune adapter", DoRA: true}); err != nil {
		return nil, err
	}
	e := &encoder{a: a, dtype: dtype, base: base, seen: map[string]bool{}}
	count := map[float64]int{}
	dora, plain := false, false
	for i := range a.Updates {
		u := &a.Updates[i]
		dora, plain = dora || u.Kind == adapter.DoRA, plain || u.Kind != adapter.DoRA
		if dora && plain {
			return nil, a.Refuse(u, "some modules use DoRA and others do not, which torchtune cannot say")
		}
		e.rank = max(e.rank, int64(u.Rank))
		count[u.Scale.Value]++
	}
	for _, u := range a.Updates {
		if v := u.Scale.Value; v != 0 && (e.scale == 0 || count[v] > count[e.scale]) {
			e.scale = v
		}
	}
	e.scale = cmp.Or(e.scale, 1)
	for i := range a.Updates {
		if err := e.update(a.Updates[i]); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(e.weights, func(x, y adapter.Weight) int { return cmp.Compare(x.Name, y.Name) })
	slices.Sort(e.targets)
	config := map[string]any{"peft_type": "LORA", "r": e.rank, "lora_alpha": e.alpha(), "target_modules": slices.Compact(e.targets), "use_dora": dora}
	if a.BaseModel != "" {
		config["base_model_name_or_path"] = a.BaseModel
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(config); err != nil {
		return nil, err
	}
	return &Files{Config: bytes.TrimSuffix(b.Bytes(), []byte("\n")), Weights: e.weights}, nil
}

type encoder struct {
	a       *adapter.Adapter
	dtype   tensor.DType
	base    func() (*geometry.Geometry, error)
	geo     *geometry.Geometry
	rank    int64
	scale   float64
	weights []adapter.Weight
	targets []string
	seen    map[string]bool // torchtune's modules
}

// alpha is the alpha that gives the scale as alpha / rank, the adapter's own where it does.
func (e *encoder) alpha() float64 {
	for _, u := range e.a.Updates {
		if u.Scale.Value == e.scale && u.Scale.Alpha/float64(e.rank) == e.scale {
			return u.Scale.Alpha
		}
	}
	return e.scale * float64(e.rank)
}

func (e *encoder) add(name string, shape tensor.Shape, f adapter.Factor) {
	t := e.dtype
	if t == tensor.Invalid {
		t = cmp.Or(f.DType, tensor.F32)
	}
	e.weights = append(e.weights, adapter.Weight{Spec: tensor.Spec{Name: name, DType: t, Shape: shape}, Values: f})
}

// update writes one module; u is a copy.
func (e *encoder) update(u adapter.Update) error {
	module := fromHF(u.Module)
	if module == "" {
		f := e.a.Refuse(&u, "torchtune has no adapters for module %q", u.Module)
		f.Code = "match.unmatched_target"
		return f
	}
	if m := layer.FindStringSubmatch(module); m != nil && (m[2] == "attn.q_proj" || m[2] == "attn.k_proj") {
		if e.geo == nil {
			var err error
			if e.geo, err = e.base(); err != nil {
				return err
			}
		}
		if err := reorder(&u, e.geo, e.a.Path, geometry.Interleaved); err != nil {
			return err
		}
	}
	if e.seen[module] {
		return finding.Errorf("adapter.duplicate_target", e.a.Path, "two modules have the same name in torchtune").In(module)
	}
	e.seen[module] = true
	a, b := u.PaddedRank(e.rank)
	b = b.Scaled(u.Scale.Value / e.scale)
	e.add(module+".lora_a.weight", tensor.Shape{e.rank, u.A.Cols}, a)
	e.add(module+".lora_b.weight", tensor.Shape{b.Rows, e.rank}, b)
	if u.Kind == adapter.DoRA {
		e.add(module+".magnitude", tensor.Shape{u.Magnitude.Cols}, u.Magnitude)
	}
	e.targets = append(e.targets, u.Module[strings.LastIndexByte(u.Module, '.')+1:])
	return nil
}
