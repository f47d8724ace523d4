// Package hf sees a Hugging Face model folder as the GGUF model that llama.cpp's converter makes of it.
//
// Names, shapes and order of the tensors, their transforms and the key-values are those of
// convert_hf_to_gguf.py (llama.cpp v0.5.0). Nothing is converted when a folder is opened: a tensor's data is
// gathered from the folder's tensors while it is read, so a merge plans and writes it like a GGUF file.
package hf

import (
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/hf/config"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// Options are the choices in converting a folder.
type Options struct {
	// DType is the type of the file's matrices, one that Converts accepts; Invalid takes the type of the
	// folder's first 16-bit matrix.
	DType tensor.DType
	// Source are the folder's tensors where they are not what its safetensors files hold as they stand.
	// The model closes it.
	Source Source
}

// A Model is an open folder. It is read-only and safe for use by many goroutines; its tensors can be read
// until Close.
type Model struct {
	dir     string
	source  Source
	arch    string
	hp      naming.HyperParameters
	dtype   tensor.DType
	tensors []tensor.Tensor
	header  gguf.Header
	notes   []finding.Finding
}

// Open opens a model folder. Errors are findings: base.unsupported for an architecture without a table (it
// names the nearest), base.unknown_tensor for a tensor that has no place in GGUF, base.bad_config and
// base.missing_tensor for what the others depend on.
func Open(dir string, opt Options) (*Model, error) {
	m := &Model{dir: dir, source: opt.Source, dtype: opt.DType}
	if err := m.load(); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

func (m *Model) load() error {
	c, err := config.Read(m.dir, false)
	if err != nil {
		return err
	}
	if m.arch, m.hp, err = naming.FromConfig(c.Map()); err != nil {
		return finding.Errorf("base.unsupported", c.File, "%v", err)
	}
	if m.source == nil {
		if err := unpacked(c); err != nil {
			return err
		}
		s, err := safetensors.Open(m.dir)
		if err != nil {
			return err
		}
		m.source = s
	}
	folder := indexed(m.source)
	if m.dtype == tensor.Invalid {
		m.dtype = auto(folder)
	}
	b := builder{dir: m.dir, arch: m.arch, hp: m.hp, config: c}
	if err := b.build(folder); err != nil {
		return err
	}
	m.tensors = b.out
	m.header = gguf.Header{KeepDims: true}
	return nil
}

// unpacked refuses weights that a scheme other than MXFP4 has packed.
func unpacked(c *config.Config) error {
	q, ok := c.Get("quantization_config").(map[string]any)
	if !ok || q["quant_method"] == "mxfp4" {
		return nil
	}
	return finding.Errorf("base.unsupported", c.File, "the weights are quantized").
		Expected(q["quant_method"], "plain floats or mxfp4").Hinted("convert the unquantized model")
}

// Path is the folder.
func (m *Model) Path() string { return m.dir }

// Format is "gguf": what the model is seen as.
func (m *Model) Format() string { return "gguf" }

// Tensors lists the GGUF tensors in the converter's order: matrices in the type the folder has (F16, BF16,
// MXFP4; F32 for all others), vectors and the few matrices that llama.cpp wants so in F32. The slice is
// the model's own.
func (m *Model) Tensors() []tensor.Tensor { return m.tensors }

// Findings lists what is odd about the folder, all of level warning.
func (m *Model) Findings() []finding.Finding { return append(m.source.Findings(), m.notes...) }

// Arch is llama.cpp's name of the architecture.
func (m *Model) Arch() string { return m.arch }

// HyperParameters are the sizes that names and row orders depend on.
func (m *Model) HyperParameters() (naming.HyperParameters, error) { return m.hp, nil }

// KVs lists the key-values in the converter's order. The slice is the model's own.
func (m *Model) KVs() gguf.KVs { return m.header.KVs }

// Get returns the value of a key.
func (m *Model) Get(key string) (gguf.Value, bool) { return m.header.KVs.Get(key) }

// Header is a copy of what a converted file says beside its tensors.
func (m *Model) Header() gguf.Header {
	h := m.header
	h.KVs = append(gguf.KVs(nil), h.KVs...)
	return h
}

// Shards is nil: a folder's shards say nothing about the output's.
func (m *Model) Shards() []int { return nil }

// DType is the type of the file's matrices.
func (m *Model) DType() tensor.DType { return m.dtype }

// Type is the type in which a conversion stores a tensor of the model.
func (m *Model) Type(s tensor.Spec) tensor.DType { return TypeOf(s, m.dtype) }

// Layout lays out the converted file.
func (m *Model) Layout(specs []tensor.Spec, opt layout.Options) (*layout.Layout, error) {
	return gguf.NewLayout(m.Header(), specs, opt)
}

// Close closes the folder's files.
func (m *Model) Close() error {
	if m.source == nil {
		return nil
	}
	return m.source.Close()
}
