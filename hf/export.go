package hf

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/hf/tokenizer"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// A Folder is a GGUF model seen as the Hugging Face folder that it can be written as: parameters in their
// own names, shapes and row orders, config.json and the tokenizer's files.
type Folder struct {
	gguf    *gguf.Model
	tensors []tensor.Tensor
	files   map[string][]byte
	dtype   tensor.DType
	notes   []finding.Finding
}

// Restore sees a GGUF model as a folder. hp are the model's hyper-parameters. d is the type of the floats,
// Invalid for that of the file's first 16-bit matrix (F16 for quantized files). Errors are findings:
// base.unsupported for an architecture without a table, base.unknown_tensor for a tensor that no parameter
// belongs to. What a GGUF does not hold, such as the padding of a vocabulary, does not come back; findings
// say what had to be left out. The folder reads from m, and closes it.
func Restore(m *gguf.Model, hp naming.HyperParameters, d tensor.DType) (*Folder, error) {
	f := &Folder{gguf: m, dtype: d}
	fam := families()[m.Arch()]
	if fam == nil {
		return nil, finding.Errorf("base.unsupported", m.Path(), "there is no config.json for architecture %q", m.Arch()).
			Expected(m.Arch(), "one of "+knownFamilies())
	}
	if m.Arch() == "llama" && hp.Experts > 0 {
		fam = families()["mixtral"]
	}
	var err error
	if f.tensors, err = restore(m, hp); err != nil {
		return nil, err
	}
	if f.dtype == tensor.Invalid {
		f.dtype = floatOf(m)
	}
	var notes []finding.Finding
	if f.files, notes, err = tokenizer.Restore(m.KVs()); err != nil {
		return nil, err
	}
	c := configuration{m: m, hp: hp, family: fam, values: map[string]any{}, dtype: f.dtype}
	if f.files["config.json"], err = c.write(); err != nil {
		return nil, err
	}
	more, err := c.pooling()
	if err != nil {
		return nil, err
	}
	maps.Copy(f.files, more)
	for _, n := range append(c.notes, notes...) {
		n.File = m.Path()
		f.notes = append(f.notes, n)
	}
	return f, nil
}

func knownFamilies() string {
	names := slices.Sorted(maps.Keys(families()))
	names = slices.DeleteFunc(names, func(n string) bool { return n == "default" || n == "mixtral" })
	return strings.Join(names, ", ")
}

// floatOf is the type that a file's floats have in a folder.
func floatOf(m *gguf.Model) tensor.DType {
	d := tensor.F32
	for _, t := range m.Tensors() {
		switch {
		case len(t.Shape) < 2:
		case t.DType == tensor.F16, t.DType == tensor.BF16:
			return t.DType
		case t.DType == tensor.MXFP4 && m.Arch() == "gpt-oss":
		case t.DType.IsBlock():
			d = tensor.F16
		}
	}
	return d
}

// Path is the GGUF file.
func (f *Folder) Path() string { return f.gguf.Path() }

// Format is "safetensors": what the model is seen as.
func (f *Folder) Format() string { return "safetensors" }

// Tensors lists the parameters by name: F16, BF16 and F32 as they are stored, block types decoded to F32,
// and the packed experts of gpt-oss as bytes.
func (f *Folder) Tensors() []tensor.Tensor { return f.tensors }

// Findings lists what could not be restored, and the file's own warnings.
func (f *Folder) Findings() []finding.Finding { return slices.Concat(f.gguf.Findings(), f.notes) }

// DType is the type of the folder's floats.
func (f *Folder) DType() tensor.DType { return f.dtype }

// Type is the type in which a parameter is written.
func (f *Folder) Type(s tensor.Spec) tensor.DType {
	if s.DType.IsFloat() {
		return f.dtype
	}
	return s.DType
}

// Layout lays out the folder.
func (f *Folder) Layout(specs []tensor.Spec, opt layout.Options) (*layout.Layout, error) {
	out := safetensors.Output{Metadata: [][2]string{{"format", "pt"}}, Dir: true}
	for _, name := range slices.Sorted(maps.Keys(f.files)) {
		out.Extra = append(out.Extra, safetensors.NewFile(name, f.files[name]))
	}
	return safetensors.NewLayout(specs, out, opt)
}

// Close closes the GGUF file.
func (f *Folder) Close() error { return f.gguf.Close() }

// indented is a JSON document as transformers writes config.json: sorted, with an indent of two.
func indented(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(v)
	return b.Bytes(), err
}
