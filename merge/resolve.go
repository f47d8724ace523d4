package merge

import (
	"encoding/json"
	"os"
	"path/filepath"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/gguflora"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/naming"
)

// Resolvers returns the function that finds an adapter's modules in a base, for Options.Resolve.
func Resolvers(base Base) func(*adapter.Adapter) (naming.Resolver, error) {
	return func(a *adapter.Adapter) (naming.Resolver, error) {
		names, shapes := []string{}, map[string][]int64{}
		for _, t := range base.Tensors() {
			names = append(names, t.Name)
			shapes[t.Name] = t.Shape
		}
		if a.Space == naming.Diffusers {
			return diffusionResolver(base, a, names, func(n string) []int64 { return shapes[n] })
		}
		switch m := base.(type) {
		case LlamaModel:
			return ggufResolver(m, a, names)
		case interface{ AsStored() *onnx.Model }:
			return onnxResolver(m.AsStored(), a)
		}
		config := readConfig(base.Path())
		return conv1D{naming.NewHF(names, func(n string) []int64 { return shapes[n] }), config, a}, nil
	}
}

// diffusionResolver finds the modules of a diffusion pipeline. Where the base is one component, its folder's
// name says which.
func diffusionResolver(base Base, a *adapter.Adapter, names []string, shape func(string) []int64) (naming.Resolver, error) {
	family := naming.DiffusionFamilyNamed(a.Arch)
	if family == nil {
		return nil, finding.Errorf("base.unsupported", a.Path, "there is no table of names for the family %q", a.Arch)
	}
	folder := ""
	if path, err := filepath.Abs(base.Path()); err == nil {
		if st, err := os.Stat(path); err == nil && !st.IsDir() {
			path = filepath.Dir(path)
		}
		folder = filepath.Base(path)
	}
	return naming.NewDiffusion(family, names, shape, folder), nil
}

// translate brings a GGUF adapter into Hugging Face names, with rows in Hugging Face order, for bases of
// other formats. The geometry comes from the config.json beside the base.
func translate(base Base, a *adapter.Adapter) (*adapter.Adapter, error) {
	if a.Space != naming.GGUF || base.Format() == "gguf" {
		return a, nil
	}
	config := readConfig(base.Path())
	if config == nil {
		return nil, finding.Errorf("adapter.wrong_ecosystem", a.Path, "a GGUF adapter's row order depends on the base's heads, and there is no config.json beside the base to tell them").
			Hinted("put the base's config.json beside it")
	}
	arch, hp, err := naming.FromConfig(config)
	if err != nil {
		return nil, finding.Errorf("base.unsupported", base.Path(), "%v", err)
	}
	if a.Arch != "" && a.Arch != arch {
		return nil, finding.Errorf("base.mismatch", a.Path, "the adapter was made for another architecture").Expected(a.Arch, arch)
	}
	return gguflora.ToHF(a, arch, hp)
}

func ggufResolver(m LlamaModel, a *adapter.Adapter, names []string) (naming.Resolver, error) {
	if t, _ := m.KVs().Text("general.type"); t == "adapter" {
		return nil, finding.Errorf("base.is_adapter", m.Path(), "the base is itself an adapter").Expected("general.type = adapter", "a model")
	}
	if a.Arch != "" && a.Arch != m.Arch() {
		return nil, finding.Errorf("base.mismatch", a.Path, "the adapter was made for another architecture").Expected(a.Arch, m.Arch())
	}
	hp, err := GGUFParameters(m)
	if err != nil {
		return nil, finding.Errorf("base.unsupported", m.Path(), "%v", err)
	}
	r, err := naming.NewGGUF(m.Arch(), hp, names)
	if err != nil && a.Space != naming.GGUF {
		return nil, finding.Errorf("base.unsupported", m.Path(), "%v", err).
			Hinted("a GGUF adapter names tensors directly and needs no table of names")
	}
	return r, nil
}

// A LlamaModel is a base in llama.cpp's terms: a GGUF file, or what can be written as one. It may know its
// hyper-parameters (HyperParameters) better than its key-values tell them.
type LlamaModel interface {
	Base
	Arch() string
	KVs() gguf.KVs
	Get(key string) (gguf.Value, bool)
	Header() gguf.Header
	Shards() []int
}

// GGUFParameters reads the hyper-parameters that names and row orders depend on from a GGUF model.
func GGUFParameters(m LlamaModel) (naming.HyperParameters, error) {
	if k, ok := m.(interface {
		HyperParameters() (naming.HyperParameters, error)
	}); ok {
		return k.HyperParameters()
	}
	return naming.FromMetadata(m.Arch(), func(key string) []int64 {
		v, ok := m.Get(key)
		if !ok {
			return nil
		}
		return v.Ints()
	})
}

// readConfig is the config.json beside a base, or nil. What it holds is a hint for names and never
// trusted for sizes.
func readConfig(path string) map[string]any {
	if st, err := os.Stat(path); err == nil && !st.IsDir() {
		path = filepath.Dir(path)
	}
	f, err := os.Open(filepath.Join(path, "config.json"))
	if err != nil {
		return nil
	}
	defer f.Close()
	var config map[string]any
	if json.NewDecoder(&limited{f, 16 << 20}).Decode(&config) != nil {
		return nil
	}
	return config
}

type limited struct {
	f *os.File
	n int
}

func (l *limited) Read(p []byte) (int, error) {
	if l.n <= 0 {
		return 0, os.ErrInvalid
	}
	n, err := l.f.Read(p[:min(len(p), l.n)])
	l.n -= n
	return n, err
}

// conv1D adds to a Hugging Face resolver what names do not tell: which weights are stored [in, out].
type conv1D struct {
	naming.Resolver
	config map[string]any
	a      *adapter.Adapter
}

func (c conv1D) Find(module, param string) ([]naming.Place, error) {
	places, err := c.Resolver.Find(module, param)
	if err != nil || param != "weight" || !naming.IsConv1D(module) {
		for i := range places {
			places[i].ByShape = true
		}
		return places, err
	}
	gpt2 := c.config["model_type"] == "gpt2"
	if c.config == nil {
		for i := range c.a.Updates {
			gpt2 = gpt2 || c.a.Updates[i].FanInFanOut
		}
	}
	for i := range places {
		places[i].Transposed = gpt2
		places[i].ByShape = true
	}
	return places, nil
}
