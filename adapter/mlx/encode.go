package mlx

import (
	"bytes"
	"cmp"
	"encoding/json"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/tensor"
)

// Files are the contents of an MLX folder.
type Files struct {
	Config  []byte           // adapter_config.json
	Weights []adapter.Weight // adapters.safetensors, by name
}

// Options are the choices of Encode.
type Options struct {
	// DType is the type of the factors; Invalid keeps their own, and F32 where they are computed.
	DType tensor.DType
	// Experts is the number of experts in the base's layers. 0 means that the adapter names the last one.
	Experts int64
}

// Encode lays an adapter in Hugging Face names out as an MLX folder. MLX has one scale: the most frequent one is written, and what a module has of
// its own goes into its lora_b. Ranks may differ. Experts that are missing in a stack, and ranks below
// its largest, are filled with zeros. No weight is read.
func Encode(a *adapter.Adapter, opt Options) (*Files, error) {
	if err := a.Within(adapter.Limits{Title: "an MLX adapter", DoRA: true, Embeddings: true, Stacks: true}); err != nil {
		return nil, err
	}
	e := &encoder{a: a, opt: opt, scale: usual(a), stacks: map[string]*stack{}, keys: map[string]bool{}}
	dora, plain := false, false
	for i := range a.Updates {
		u := &a.Updates[i]
		dora, plain = dora || u.Kind == adapter.DoRA, plain || u.Kind != adapter.DoRA
		if dora && plain {
			return nil, a.Refuse(u, "some modules use DoRA and others do not, which an MLX configuration cannot say")
		}
		if err := e.update(u); err != nil {
			return nil, err
		}
	}
	for _, name := range e.order {
		if err := e.stack(name, e.stacks[name]); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(e.weights, func(x, y adapter.Weight) int { return cmp.Compare(x.Name, y.Name) })
	return e.files(dora)
}

type encoder struct {
	a       *adapter.Adapter
	opt     Options
	scale   float64
	rank    int
	weights []adapter.Weight
	keys    map[string]bool // lora_parameters.keys
	stacks  map[string]*stack
	order   []string
}

// A stack is the experts of a switch layer, by number.
type stack struct {
	parts   map[int64]*adapter.Update
	half    int // 1, 2: the updates are of a fused gate_up_proj, and this is its first or second half
	experts int64
}

// usual is the most frequent scale other than 0, the first of several.
func usual(a *adapter.Adapter) float64 {
	count := map[float64]int{}
	for _, u := range a.Updates {
		count[u.Scale.Value]++
	}
	best := 0.0
	for _, u := range a.Updates {
		if v := u.Scale.Value; v != 0 && (best == 0 || count[v] > count[best]) {
			best = v
		}
	}
	return cmp.Or(best, 1)
}

func (e *encoder) add(name string, shape tensor.Shape, f adapter.Factor) {
	t := e.opt.DType
	if t == tensor.Invalid {
		t = cmp.Or(f.DType, tensor.F32)
	}
	e.weights = append(e.weights, adapter.Weight{Spec: tensor.Spec{Name: name, DType: t, Shape: shape}, Values: f})
}

var layerPath = regexp.MustCompile(`^(?:.*\.)?(?:layers|h|blocks)\.[0-9]+\.`)

// use notes the module for lora_parameters.keys, which are paths below a layer, or whole paths.
func (e *encoder) use(module string, rank int) {
	e.keys[strings.TrimPrefix(module, layerPath.FindString(module))] = true
	e.rank = max(e.rank, rank)
}

func (e *encoder) update(u *adapter.Update) error {
	if u.Experts > 0 {
		return e.fused(u)
	}
	if parent, leaf, expert, ok := splitExpert(u.Module); ok && u.Kind == adapter.LowRank {
		return e.expert(parent+switchName+leaf, expert, u, 0)
	}
	e.use(u.Module, u.Rank)
	b := u.B.Scaled(u.Scale.Value / e.scale)
	e.add(u.Module+".lora_a", tensor.Shape{u.A.Cols, u.A.Rows}, u.A.Transpose())
	e.add(u.Module+".lora_b", tensor.Shape{b.Cols, b.Rows}, b.Transpose())
	if u.Kind == adapter.DoRA {
		e.add(u.Module+".m", tensor.Shape{u.Magnitude.Cols}, u.Magnitude)
	}
	return nil
}

// fused puts the update of one expert in a stacked parameter into the stacks of MLX, which keeps gate and
// up apart.
func (e *encoder) fused(u *adapter.Update) error {
	parent, ok := strings.CutSuffix(u.Module, ".experts")
	switch {
	case u.Unsure != "" || u.Swapped && u.Param == "gate_up_proj":
		return e.a.Refuse(u, "how the experts of %q lie in its parameters is not certain enough to split them", u.Module)
	case ok && u.Param == "down_proj":
		return e.expert(parent+switchName+"down_proj", int64(u.Expert), u, 0)
	case ok && u.Param == "gate_up_proj" && u.B.Rows%2 == 0:
		if err := e.expert(parent+switchName+"gate_proj", int64(u.Expert), u, 1); err != nil {
			return err
		}
		return e.expert(parent+switchName+"up_proj", int64(u.Expert), u, 2)
	}
	return e.a.Refuse(u, "MLX has no place for the parameter %q", u.Target)
}

func (e *encoder) expert(name string, expert int64, u *adapter.Update, half int) error {
	s := e.stacks[name]
	if s == nil {
		s = &stack{parts: map[int64]*adapter.Update{}, half: half, experts: e.opt.Experts}
		e.stacks[name] = s
		e.order = append(e.order, name)
	}
	if s.half != half || s.parts[expert] != nil || expert >= mostExperts {
		return e.a.Refuse(u, "expert %d of %q is there twice or out of range", expert, name)
	}
	s.parts[expert] = u
	s.experts = max(s.experts, int64(u.Experts), expert+1)
	return nil
}

// stack writes a switch layer's pair.
func (e *encoder) stack(name string, s *stack) error {
	var like *adapter.Update
	rank := 0
	for i := range s.experts {
		if u := s.parts[i]; u != nil {
			if like = cmp.Or(like, u); u.A.Cols != like.A.Cols || u.B.Rows != like.B.Rows {
				return e.a.Refuse(u, "the experts of %q differ in shape, which one stack cannot hold", name)
			}
			rank = max(rank, u.Rank)
		}
	}
	r, in, out := int64(rank), like.A.Cols, like.B.Rows
	if s.half > 0 {
		out /= 2
	}
	as, bs := make([]adapter.Factor, s.experts), make([]adapter.Factor, s.experts)
	for i := range as {
		u := s.parts[int64(i)]
		if u == nil {
			as[i] = adapter.FromFunc(r, in, func() ([]float32, error) { return make([]float32, r*in), nil })
			bs[i] = adapter.FromFunc(out, r, func() ([]float32, error) { return make([]float32, out*r), nil })
			as[i].DType, bs[i].DType = like.A.DType, like.B.DType
			continue
		}
		a, b := u.PaddedRank(r)
		if s.half > 0 {
			b = b.SliceRows(int64(s.half-1)*out, out)
		}
		as[i], bs[i] = a, b.Scaled(u.Scale.Value/e.scale)
	}
	e.use(name, rank)
	e.add(name+".lora_a", tensor.Shape{s.experts, r, in}, adapter.Stacked(as...))
	e.add(name+".lora_b", tensor.Shape{s.experts, out, r}, adapter.Stacked(bs...))
	return nil
}

var expertPath = regexp.MustCompile(`^(.+)\.experts\.([0-9]{1,5})\.(gate_proj|up_proj|down_proj|w1|w2|w3)$`)

// splitExpert takes PARENT.experts.3.w1 apart; leaf is MLX's name.
func splitExpert(module string) (parent, leaf string, expert int64, ok bool) {
	m := expertPath.FindStringSubmatch(module)
	if m == nil {
		return "", "", 0, false
	}
	leaf = m[3]
	for name, w := range mixtral {
		if leaf == w {
			leaf = name
		}
	}
	expert, err := strconv.ParseInt(m[2], 10, 64)
	return m[1], leaf, expert, err == nil && expertModule(m[1], leaf, expert) == module
}

func (e *encoder) files(dora bool) (*Files, error) {
	keys := []string{}
	for k := range e.keys {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	config := map[string]any{
		"fine_tune_type": "lora",
		// All layers: an adapter layer without tensors starts without effect.
		"num_layers":      -1,
		"lora_parameters": map[string]any{"rank": e.rank, "scale": e.scale, "dropout": 0.0, "keys": keys},
	}
	if dora {
		config["fine_tune_type"] = "dora"
	}
	if e.a.BaseModel != "" {
		config["model"] = e.a.BaseModel
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "    ")
	if err := enc.Encode(config); err != nil {
		return nil, err
	}
	return &Files{Config: bytes.TrimSuffix(b.Bytes(), []byte("\n")), Weights: e.weights}, nil
}
