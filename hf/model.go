// Package hf sees a Hugging Face model folder as the GGUF model that llama.cpp's converter makes of it.
//
// Names, shapes and order of the tensors, their transforms and the key-values are those of
// convert_hf_to_gguf.py (llama.cpp v0.5.0). Nothing is converted when a folder is opened: a tensor's data is
// gathered from the folder's tensors while it is read, so a merge plans and writes it like a GGUF file.
package hf

import (
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/hf/config"
	"github.com/loratool/loratool/hf/metadata"
	"github.com/loratool/loratool/hf/tokenizer"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// Options are the choices in converting a folder.
type Options struct {
	// DType is the type of the file's matrices, one that Converts accepts; Invalid takes the type of the
	// folder's first 16-bit matrix.
	DType tensor.DType
	// VocabOnly leaves the tensors out.
	VocabOnly bool
	// Metadata are the choices for the key-values.
	Metadata metadata.Options
}

// A Model is an open folder. It is read-only and safe for use by many goroutines; its tensors can be read
// until Close.
type Model struct {
	dir     string
	source  formats.Model // nil where only the vocabulary is wanted
	arch    string
	hp      naming.HyperParameters
	dtype   tensor.DType
	tensors []tensor.Tensor
	header  gguf.Header
	notes   []finding.Finding
}

// Open opens a model folder. Errors are findings: config.unknown_architecture names the nearest,
// base.unknown_tensor is a tensor that has no place in GGUF, base.vocabulary_mismatch a tokenizer with more or
// fewer tokens than there are embeddings; others come from the packages config, tokenizer and metadata.
func Open(dir string, opt Options) (*Model, error) {
	m := &Model{dir: dir, dtype: opt.DType}
	if err := m.load(opt); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

func (m *Model) load(opt Options) error {
	meta, err := metadata.Read(m.dir, opt.Metadata)
	if err != nil {
		return err
	}
	m.arch, m.hp, m.notes = meta.Arch, meta.HyperParameters, meta.Findings()
	m.header = gguf.Header{KeepDims: true, OpenEnd: opt.VocabOnly}
	var folder []*tensor.Tensor
	if !opt.VocabOnly || m.dtype == tensor.Invalid {
		if m.source, err = openWeights(m.dir, meta.Config); err != nil {
			return err
		}
		folder = indexed(m.source)
	}
	if m.dtype == tensor.Invalid {
		m.dtype = auto(folder)
	}
	if !opt.VocabOnly {
		b := builder{dir: m.dir, arch: m.arch, hp: m.hp, config: meta.Config, tokens: int64(meta.Tokenizer.BaseCount)}
		if err := b.build(folder); err != nil {
			return err
		}
		m.tensors = b.out
		if err := m.fits(meta.Tokenizer); err != nil {
			return err
		}
	}
	m.header.KVs, err = meta.KVs(fileType(m.tensors, m.dtype), parameters(m.tensors))
	return err
}

// fits refuses a tokenizer that numbers more or fewer tokens than the model has embeddings for.
func (m *Model) fits(t *tokenizer.Tokenizer) error {
	for i := range m.tensors {
		x := &m.tensors[i]
		if x.Name == "token_embd.weight" && len(x.Shape) == 2 && x.Shape[0] != int64(t.Count) {
			return finding.Errorf("base.vocabulary_mismatch", m.dir, "the tokenizer and the model have vocabularies of different sizes").In(x.Name).
				Expected(fmt.Sprintf("%d embeddings", x.Shape[0]), fmt.Sprintf("%d tokens", t.Count)).
				Hinted("vocab_size in config.json is what the tokenizer is padded to")
		}
	}
	return nil
}

// parameters are the sums that a model's name and size label depend on.
func parameters(tensors []tensor.Tensor) metadata.Parameters {
	var p metadata.Parameters
	var experts, stacks int64
	for i := range tensors {
		t := &tensors[i]
		n, err := t.Shape.Elements()
		if err != nil {
			continue // emit has checked it
		}
		p.Total += n
		if strings.Contains(t.Name, "_exps.") && len(t.Shape) >= 3 && t.Shape[len(t.Shape)-3] > 0 {
			e := t.Shape[len(t.Shape)-3]
			p.Experts += n / e
			experts, stacks = experts+e, stacks+1
			continue
		}
		p.Shared += n
	}
	if stacks > 0 {
		p.ExpertCount = experts / stacks
	}
	return p
}

// openWeights opens the folder's tensors. Those of a quantized folder are decoded while they are read,
// except MXFP4, which GGUF can hold.
func openWeights(dir string, c *config.Config) (formats.Model, error) {
	s, err := safetensors.Open(dir)
	if err != nil {
		return nil, err
	}
	if q, _ := c.Get("quantization_config").(map[string]any); q["quant_method"] == "mxfp4" {
		return s, nil
	}
	return formats.Decode(s)
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
func (m *Model) Findings() []finding.Finding {
	if m.source == nil {
		return m.notes
	}
	return slices.Concat(m.source.Findings(), m.notes)
}

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
