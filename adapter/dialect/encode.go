package dialect

import (
	"slices"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/geometry"
	"github.com/loratool/loratool/adapter/gguflora"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// A Target is what an adapter is encoded for.
type Target struct {
	// Name is the last element of the output's path.
	Name string
	// Base is the path of the base model, or of what stands for it: a folder with config.json, that file, a
	// GGUF file, or (for the dialects that fit names to it) an ONNX model; "" if there is none at hand.
	Base string
	// DType is the type of the factors; Invalid leaves the choice to the dialect.
	DType tensor.DType
	// AllowUnmatched leaves out, with a warning, what the base has no tensor for, or the dialect no name.
	AllowUnmatched bool
	// General are the general.* keys of a GGUF. Without any, those that the adapter's files had, or its folder's
	// name.
	General gguf.KVs
}

// An Output is an encoded adapter: where everything goes, and the tensors that fill the layout's items.
type Output struct {
	Layout   *layout.Layout
	Weights  []adapter.Weight
	Findings []finding.Finding
}

// Encode lays an adapter out in the dialect of a name, such that ΔW stays the same. An adapter in the
// names of GGUF is first brought back to those of Hugging Face, for which the base must be known. What
// the dialect cannot hold is refused, and so is an adapter in doubt. No weight is read; the adapter must stay open while the output's
// are loaded.
func Encode(a *adapter.Adapter, to string, t Target) (*Output, error) {
	d := find(to)
	if d == nil || d.Encode == nil {
		return nil, finding.Errorf("convert.unknown_target", a.Path, "adapters are not written as %q", to).Expected(to, strings.Join(Written(), ", "))
	}
	if a.Doubt != nil {
		return nil, a.Doubt
	}
	if a.Space == naming.GGUF {
		g, err := t.geometry(a)
		if err != nil {
			return nil, err
		}
		if a.Arch != "" && a.Arch != g.Arch {
			return nil, finding.Errorf("base.mismatch", a.Path, "the adapter was made for another architecture").Expected(a.Arch, g.Arch)
		}
		if a, err = gguflora.ToHF(a, g.Arch, g.HP); err != nil {
			return nil, err
		}
	}
	return d.Encode(a, t)
}

// geometry reads the geometry of the base, which names and row orders depend on.
func (t Target) geometry(a *adapter.Adapter) (*geometry.Geometry, error) {
	if t.Base == "" {
		return nil, needsBase(a.Path)
	}
	return geometry.Read(t.Base)
}

func needsBase(path string) error {
	return finding.Errorf("convert.needs_base", path, "names and row orders depend on the base model's architecture").
		Hinted("--base BASE: a folder with the base's config.json, or its GGUF file")
}

func find(name string) *Dialect {
	all := table()
	if i := slices.IndexFunc(all, func(d Dialect) bool { return d.Name == name }); i >= 0 {
		return &all[i]
	}
	return nil
}

// Written lists the names of the dialects that can be written.
func Written() []string {
	var out []string
	for _, d := range table() {
		if d.Encode != nil {
			out = append(out, d.Name)
		}
	}
	return out
}

func specsOf(weights []adapter.Weight) []tensor.Spec {
	specs := make([]tensor.Spec, len(weights))
	for i, w := range weights {
		specs[i] = w.Spec
	}
	return specs
}

// plainFloats refuses block types, which only GGUF holds, and others that no program reads factors in.
func (t Target) plainFloats(a *adapter.Adapter, title string) error {
	switch t.DType {
	case tensor.Invalid, tensor.F32, tensor.F16, tensor.BF16, tensor.F64:
	default:
		return finding.Errorf("convert.bad_dtype", a.Path, "%s holds plain floats", title).Expected(t.DType, "f32, f16 or bf16")
	}
	return nil
}

// beside puts a configuration beside the one file of a layout.
func beside(l *layout.Layout, configName string, config []byte) *layout.Layout {
	l.Files = append(l.Files, safetensors.NewFile(configName, config))
	return l
}

// fileMetadata is what a safetensors file says beside the tensors.
func fileMetadata(a *adapter.Adapter) [][2]string {
	return append([][2]string{{"format", "pt"}}, a.General()...)
}

// folder lays weights and a configuration out as a folder.
func (t Target) folder(a *adapter.Adapter, stem, configName string, config []byte, weights []adapter.Weight) (*Output, error) {
	l, err := safetensors.NewLayout(specsOf(weights), safetensors.Output{
		Metadata: fileMetadata(a), Dir: true, Stem: stem,
		Extra: []layout.File{safetensors.NewFile(configName, config)},
	}, layout.Options{Name: t.Name})
	if err != nil {
		return nil, err
	}
	return &Output{Layout: l, Weights: weights}, nil
}
