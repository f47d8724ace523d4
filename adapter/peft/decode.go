// Package peft reads and writes adapters of Hugging Face's PEFT library: a folder with
// adapter_config.json and adapter_model.safetensors (or .bin).
//
// It covers the LoRA family: LoRA, rsLoRA, DoRA, BD-LoRA, patterns, biases, saved modules, trained
// token rows and target_parameters. Ranks and shapes come from the tensors, alphas from the
// configuration. Of the other tuners it reads those in tuners.go and refuses the rest by name. The rules
// are those of PEFT 0.20.
package peft

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// Options say what the files of an adapter cannot. The zero value is right for all but adapters on
// fused experts and on residual bases.
type Options struct {
	// ParameterOrder lists parameter names in the order in which the model class registers them. PEFT
	// nests target_parameters of one module in this order and does not store it. Empty means the usual
	// one: gate_up_proj (or gate_proj, up_proj), then down_proj.
	ParameterOrder []string
	// Transposed says whether the experts module computes x·W (is_transposed, as in gpt-oss and Llama 4).
	// It matters only where the two dimensions of an expert's matrix are equal; nil means not known.
	Transposed *bool
	// MoEB is the order of lora_B's columns for fused experts.
	MoEB MoEBLayout
	// ResidualBase says that the base at hand is the one that the initialisation of PiSSA, OLoRA, CorDA,
	// LoftQ or LoRA-GA saved; without it such adapters are refused.
	ResidualBase bool
}

// A MoEBLayout is how lora_B of a stack of experts orders its r·E columns.
type MoEBLayout string

// The layouts in use. Shapes do not tell them apart.
const (
	PEFTLayout    MoEBLayout = ""        // column k·E + e, as PEFT reads it
	UnslothLayout MoEBLayout = "unsloth" // column e·r + k: Unsloth's grouped experts before unsloth-zoo#1269
)

// Decode makes an adapter from the bytes of adapter_config.json and the tensors of the weight file. path
// names the adapter in findings; configFile and weightFile are the files. No tensor data is read.
func Decode(path, configFile string, cfg []byte, weightFile string, tensors []tensor.Tensor, opt Options) (*adapter.Adapter, error) {
	c, err := parseConfig(configFile, cfg)
	if err != nil {
		return nil, err
	}
	if err := c.checkInitialisation(opt.ResidualBase); err != nil {
		return nil, err
	}
	d := &decoder{config: c, opt: opt, file: weightFile}
	if err := d.collect(tensors); err != nil {
		return nil, err
	}
	a := &adapter.Adapter{Path: path, Dialect: "peft", Space: naming.HF, BaseModel: c.baseModel}
	for _, step := range []func(*adapter.Adapter) error{d.values, d.tokenRows, d.changes, d.checkTargets} {
		if err := step(a); err != nil {
			return nil, err
		}
	}
	// A module's base parameter is replaced before anything is added to it.
	slices.SortStableFunc(a.Updates, func(x, y adapter.Update) int { return cmp.Compare(phase(x.Kind), phase(y.Kind)) })
	a.Metadata = c.metadata()
	a.Stated = c.scale()
	a.Findings = c.findings
	if len(c.alora) > 0 {
		a.NoMerge = finding.Errorf("adapter.unsupported_feature", configFile, "aLoRA acts only after its invocation tokens, so no fixed weight equals it").
			Hinted("convert it for a runtime that activates it, such as llama.cpp")
	}
	return a, nil
}

func phase(k adapter.Kind) int {
	switch k {
	case adapter.Replace:
		return 0
	case adapter.Rows:
		return 1
	}
	return 2
}

// scale is the one that lora_alpha and r give.
func (c *config) scale() adapter.Scale {
	if c.rank == 0 || c.tuner != nil {
		return adapter.Scale{}
	}
	s := adapter.Scale{Value: c.alpha / float64(c.rank), Alpha: c.alpha, Rank: int(c.rank), Source: fmt.Sprintf("lora_alpha %s / r %d", c.alphaText, c.rank)}
	if c.rslora {
		s.Value, s.Source = c.alpha/math.Sqrt(float64(c.rank)), fmt.Sprintf("lora_alpha %s / sqrt(r %d), use_rslora", c.alphaText, c.rank)
	}
	return s
}

func (c *config) metadata() [][2]string {
	var m [][2]string
	add := func(k, v string) {
		if v != "" {
			m = append(m, [2]string{k, v})
		}
	}
	add("peft_version", c.version)
	add("task_type", c.taskType)
	if c.tied {
		add("ensure_weight_tying", "true")
	}
	if len(c.alora) > 0 {
		add(adapter.InvocationTokens, strings.Trim(strings.ReplaceAll(fmt.Sprint(c.alora), " ", ","), "[]"))
	}
	return m
}

// A site is a set of factors at one place of the module tree.
type site struct {
	key
	path     string // what patterns and target_modules match
	a, b     *tensor.Tensor
	bias     *tensor.Tensor
	mag      *tensor.Tensor
	parts    map[string]*tensor.Tensor // of another tuner than LoRA, by name
	embedded bool
	first    string // the name of its first tensor
}

type decoder struct {
	*config
	opt  Options
	file string

	sites  []*site
	shared map[string]*tensor.Tensor // tensors that all modules of a tuner share, by name
	byPath map[siteID]*site
	whole  []value
	tokens []value
	alphas []value
}

type siteID struct {
	module string
	depth  int
}

// A value is a tensor that is not a factor.
type value struct {
	key
	t *tensor.Tensor
}

func (d *decoder) errorf(reason string, t string, format string, a ...any) *finding.Finding {
	return finding.Errorf("adapter."+reason, d.file, format, a...).In(t)
}

// collect sorts the tensors into sites and values.
func (d *decoder) collect(tensors []tensor.Tensor) error {
	d.byPath, d.shared = map[siteID]*site{}, map[string]*tensor.Tensor{}
	seen := map[[3]string]string{}
	name := ""
	for i := range tensors {
		t := &tensors[i]
		if e := foreign(t.Name); e != "" {
			return d.errorf("wrong_ecosystem", t.Name, "this is a tensor name of %s in a PEFT adapter", e).Hinted("remove adapter_config.json and read the weight file on its own, if it really is one")
		}
		k := d.parse(t.Name)
		id := [3]string{k.module, fmt.Sprint(k.depth, k.role), k.param}
		if other, ok := seen[id]; ok && k.role != roleIgnored && k.role != roleOriginal {
			return d.errorf("duplicate_target", t.Name, "names the same parameter as %q", other)
		}
		seen[id] = t.Name
		if k.name != "" && name != "" && k.name != name {
			return d.errorf("unexpected_tensor", t.Name, "the file holds two adapters, %q and %q", name, k.name)
		}
		name = cmp.Or(name, k.name)
		if err := d.sort(k, t); err != nil {
			return err
		}
	}
	if len(d.sites)+len(d.whole)+len(d.tokens) == 0 {
		return finding.Errorf("adapter.empty_adapter", d.file, "the file holds no update")
	}
	return nil
}

func (d *decoder) sort(k key, t *tensor.Tensor) error {
	switch k.role {
	case roleUnknown:
		return d.errorf("unexpected_tensor", t.Name, "not a part of a LoRA adapter this program knows")
	case roleDiagonal:
		return d.errorf("unsupported_feature", t.Name, "a KaSA diagonal: KaSA truncates the base's singular values, which is not supported")
	case roleIgnored:
		if slices.Contains(trainingState, strings.SplitN(t.Name, ".", 2)[0]) {
			d.findings = append(d.findings, *finding.Warnf("adapter.unexpected_tensor", d.file, "training state, not used").In(t.Name))
		}
		return nil
	case roleOriginal:
		return nil
	case roleAlpha:
		d.alphas = append(d.alphas, value{k, t})
		return nil
	}
	if !t.DType.IsFloat() {
		if k.role == roleValue && k.param == "num_batches_tracked" {
			return nil
		}
		return d.errorf("bad_dtype", t.Name, "a weight cannot be of type %s", t.DType).Expected(t.DType, "a floating-point type")
	}
	switch k.role {
	case rolePart:
		d.part(k, t)
	case roleShared:
		d.shared[k.param] = t
	case roleValue:
		d.whole = append(d.whole, value{k, t})
	case roleTokens:
		d.tokens = append(d.tokens, value{k, t})
	default:
		d.site(k, t)
	}
	return nil
}

func (d *decoder) site(k key, t *tensor.Tensor) {
	id := siteID{k.module, k.depth}
	s := d.byPath[id]
	if s == nil {
		s = &site{key: k, path: k.module, first: t.Name}
		if k.inner {
			s.path = k.outer // PEFT configures the parts of an attention module by the module's own path
		}
		d.byPath[id] = s
		d.sites = append(d.sites, s)
	}
	switch k.role {
	case roleA:
		s.a = t
	case roleB:
		s.b = t
	case roleEmbedA:
		s.a, s.embedded = t, true
	case roleEmbedB:
		s.b, s.embedded = t, true
	case roleBias:
		s.bias = t
	case roleMagnitude:
		s.mag = t
	}
}
