// Package torchtune reads and writes the adapters of torchtune in its own names: a .pt or .safetensors
// file of layers.N.attn.q_proj.lora_a.weight and the like, with adapter_config.json beside it for the
// alpha. It is written as a folder or file of the kind that torch.save makes, which torchtune loads, or as a
// .safetensors file.
//
// For models whose attention torchtune computes with interleaved rotary embeddings (Llama, Mistral,
// Gemma), the rows of q_proj and k_proj alternate between the two halves that Hugging Face keeps apart,
// and so do those of their lora_b and magnitude. torchtune's own export to PEFT leaves the magnitude in
// its order, and reorders lora_b for Qwen2 too, whose weights are not; this package does neither. The
// rules are those of torchtune 0.6.
package torchtune

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/evidence"
	"github.com/loratool/loratool/adapter/geometry"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// ConfigName is the file that holds r and lora_alpha.
const ConfigName = evidence.ConfigName

// Detect finds the tensor names of torchtune.
func Detect(s *evidence.Subject) string {
	if s.Format != "safetensors" && s.Format != "torch" {
		return ""
	}
	return s.Naming("tensor names of torchtune", func(name string) bool {
		module, _, ok := split(name)
		return ok && toHF(module) != ""
	})
}

// split takes a tensor name apart.
func split(name string) (module, leaf string, ok bool) {
	for _, leaf := range []string{".lora_a.weight", ".lora_b.weight", ".magnitude"} {
		if m, ok := strings.CutSuffix(name, leaf); ok {
			return m, leaf, true
		}
	}
	return "", "", false
}

// inner are torchtune's names of a layer's modules and Hugging Face's.
var inner = map[string]string{
	"attn.q_proj": "self_attn.q_proj", "attn.k_proj": "self_attn.k_proj", "attn.v_proj": "self_attn.v_proj",
	"attn.output_proj": "self_attn.o_proj", "mlp.w1": "mlp.gate_proj", "mlp.w2": "mlp.down_proj", "mlp.w3": "mlp.up_proj",
}

var outer = map[string]string{"output": "lm_head"}

var layer = regexp.MustCompile(`^layers\.([0-9]+)\.(.+)$`)

// toHF is the Hugging Face path of a module, "" if torchtune adapts no such module.
func toHF(module string) string {
	if m := layer.FindStringSubmatch(module); m != nil {
		if to := inner[m[2]]; to != "" {
			return "model.layers." + m[1] + "." + to
		}
		return ""
	}
	return outer[module]
}

var hfLayer = regexp.MustCompile(`^(?:.*\.)?layers\.([0-9]+)\.(.+)$`)

// fromHF is the inverse of toHF; any prefix before the layers is dropped.
func fromHF(module string) string {
	if m := hfLayer.FindStringSubmatch(module); m != nil {
		for from, to := range inner {
			if to == m[2] {
				return "layers." + m[1] + "." + from
			}
		}
		return ""
	}
	if module == "lm_head" || strings.HasSuffix(module, ".lm_head") {
		return "output"
	}
	return ""
}

// interleaved lists the architectures whose q and k rows torchtune reorders, and others those it does not.
var (
	interleaved = []string{"llama", "mistral", "gemma", "gemma2"}
	straight    = []string{"qwen2", "qwen3", "phi3"}
)

// orderOf is how torchtune orders the rows of a module, in terms of Hugging Face's; heads is 0 where both
// are the same.
func orderOf(g *geometry.Geometry, module string) (heads int64, err error) {
	q, k := strings.HasSuffix(module, ".q_proj"), strings.HasSuffix(module, ".k_proj")
	if !q && !k {
		return 0, nil
	}
	for _, a := range straight {
		if g.Arch == a {
			return 0, nil
		}
	}
	for _, a := range interleaved {
		if g.Arch != a {
			continue
		}
		if k {
			return g.HP.KVHeads, nil
		}
		return g.HP.Heads, nil
	}
	return 0, fmt.Errorf("how torchtune orders the heads of %q is not known", g.Arch)
}

// A settings is what matters of adapter_config.json.
type settings struct {
	Rank   *int64   `json:"r"`
	Alpha  *float64 `json:"lora_alpha"`
	RSLoRA bool     `json:"use_rslora"`
	Base   string   `json:"base_model_name_or_path"`
}

func readConfig(file string) (*settings, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, finding.Errorf("adapter.missing_config", file, "a torchtune adapter needs its configuration for the alpha")
	}
	defer f.Close()
	c := &settings{}
	b, err := io.ReadAll(io.LimitReader(f, 16<<20))
	if err == nil {
		err = json.Unmarshal(b, c)
	}
	if err != nil {
		return nil, finding.Errorf("adapter.bad_json", file, "%v", err)
	}
	if c.Alpha == nil || math.IsInf(*c.Alpha, 0) {
		return nil, finding.Errorf("adapter.missing_alpha", file, "lora_alpha is not stated")
	}
	return c, nil
}

// Open reads an adapter file, or the folder that holds it. base gives the geometry of the base and is
// called only where rows are reordered. Factors are read when they are loaded; Close the adapter after
// that.
func Open(path string, base func() (*geometry.Geometry, error)) (*adapter.Adapter, error) {
	s := evidence.Look(path)
	if s.File == "" {
		return nil, finding.Errorf("adapter.missing_file", path, "there are no torchtune weights here")
	}
	config := s.Config
	if config == "" {
		config = filepath.Join(filepath.Dir(s.File), ConfigName)
	}
	c, err := readConfig(config)
	if err != nil {
		return nil, err
	}
	m, err := formats.Open(s.File)
	if err != nil {
		return nil, err
	}
	a := &adapter.Adapter{Path: path, Dialect: "torchtune", Space: naming.HF, BaseModel: c.Base}
	if err := decode(a, s.File, c, m.Tensors(), base); err != nil {
		m.Close()
		return nil, err
	}
	a.Findings = append(a.Findings, m.Findings()...)
	a.OnClose(m.Close)
	return a, nil
}

// A group is the tensors of one module, under its Hugging Face path.
type group struct {
	module  string
	a, b, m *tensor.Tensor
	first   string
}

func decode(a *adapter.Adapter, file string, c *settings, ts []tensor.Tensor, base func() (*geometry.Geometry, error)) error {
	byModule := map[string]*group{}
	var groups []*group
	for i := range ts {
		t := &ts[i]
		module, leaf, ok := split(t.Name)
		hf := toHF(module)
		if !ok || hf == "" {
			return finding.Errorf("adapter.unexpected_tensor", file, "not a factor of a module that torchtune adapts").In(t.Name)
		}
		g := byModule[module]
		if g == nil {
			g = &group{module: hf, first: t.Name}
			byModule[module] = g
			groups = append(groups, g)
		}
		switch leaf {
		case ".lora_a.weight":
			g.a = t
		case ".lora_b.weight":
			g.b = t
		default:
			g.m = t
		}
	}
	if len(groups) == 0 {
		return finding.Errorf("adapter.empty_adapter", file, "the file holds no update")
	}
	var geo *geometry.Geometry
	for _, g := range groups {
		u, err := g.update(file, c)
		if err != nil {
			return err
		}
		if strings.HasSuffix(g.module, ".q_proj") || strings.HasSuffix(g.module, ".k_proj") {
			if geo == nil {
				if geo, err = base(); err != nil {
					return err
				}
			}
			if err := reorder(u, geo, file, geometry.Halves); err != nil {
				return err
			}
		}
		a.Updates = append(a.Updates, *u)
	}
	return nil
}

// reorder brings the rows of q and k into the order that order makes.
func reorder(u *adapter.Update, g *geometry.Geometry, file string, order func(rows, heads int64) geometry.RowOrder) error {
	heads, err := orderOf(g, u.Module)
	if err != nil {
		return finding.Errorf("base.unsupported", file, "%v", err)
	}
	if heads == 0 {
		return nil
	}
	if rows := u.B.Rows; rows%(2*heads) != 0 {
		f := finding.Errorf("adapter.shape_mismatch", file, "factor B does not have the rows that the base's heads need").
			Expected(fmt.Sprintf("%d rows", rows), fmt.Sprintf("a multiple of 2 × %d heads", heads)).Hinted("the adapter belongs to another base")
		f.Module = u.Module
		return f
	}
	at := order(u.B.Rows, heads)
	u.B = u.B.GatherRows(u.B.Rows, at)
	if u.Kind == adapter.DoRA {
		u.Magnitude = u.Magnitude.Transpose().GatherRows(u.Magnitude.Cols, at).Transpose()
	}
	return nil
}

func (g *group) update(file string, c *settings) (*adapter.Update, error) {
	if g.a == nil && g.b == nil {
		return nil, finding.Errorf("adapter.missing_pair", file, "a magnitude of a module without factors").In(g.first)
	}
	u, err := adapter.PairOf(file, g.module, g.a, g.b)
	if err != nil {
		return nil, err
	}
	if c.Rank != nil && *c.Rank != int64(u.Rank) {
		return nil, finding.Errorf("adapter.rank_mismatch", file, "the rank of the tensors is not the configuration's").In(g.a.Name).Expected(u.Rank, *c.Rank)
	}
	u.Scale = adapter.AlphaScale(*c.Alpha, u.Rank, "lora_alpha")
	if c.RSLoRA {
		u.Scale.Value = *c.Alpha / math.Sqrt(float64(u.Rank))
		u.Scale.Source = fmt.Sprintf("lora_alpha %g / sqrt(r %d), use_rslora", *c.Alpha, u.Rank)
	}
	if g.m != nil {
		return &u, u.SetMagnitude(file, g.m)
	}
	return &u, nil
}
