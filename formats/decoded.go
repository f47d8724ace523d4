package formats

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/quant/scheme"
	"github.com/loratool/loratool/tensor"
)

// A Decoded model is a quantized safetensors model seen as a float model: its Tensors are decoded while
// they are read, and its outputs have them as floats, without the configuration of the quantization.
type Decoded struct {
	*safetensors.Model
	view *scheme.View
}

// Decode returns the float view of a model that one of package scheme's schemes quantized, the packed view of an
// ONNX model with quantized weights, and any other model as it is. It takes the model over: closing the result closes it, and so does an error.
func Decode(m Model) (Model, error) {
	if g, ok := m.(*onnx.Model); ok {
		v, err := packGraph(g)
		if err != nil {
			g.Close()
			return nil, err
		}
		return v, nil
	}
	s, ok := m.(*safetensors.Model)
	if !ok {
		return m, nil
	}
	config := readJSON(beside(s, "config.json"))
	if config["quantization_config"] == nil {
		// GPTQ, AWQ and ModelOpt used files of their own before there was a common place.
		for _, name := range quantFiles {
			if q := readJSON(beside(s, name)); q != nil {
				if inner, ok := q["quantization"].(map[string]any); ok {
					q = inner
				}
				if config == nil {
					config = map[string]any{}
				}
				config["quantization_config"] = q
				break
			}
		}
	}
	v, err := scheme.Open(s.Path(), s.Tensors(), config)
	if err != nil {
		s.Close()
		return nil, err
	}
	if v == nil {
		return m, nil
	}
	return &Decoded{Model: s, view: v}, nil
}

// quantFiles describe a quantization beside config.json.
var quantFiles = []string{"quantize_config.json", "quant_config.json", "hf_quant_config.json"}

// Tensors lists the model's tensors with each packed weight as one float tensor.
func (d *Decoded) Tensors() []tensor.Tensor { return d.view.Tensors }

// Stored lists the tensors as they are stored.
func (d *Decoded) Stored() []tensor.Tensor { return d.Model.Tensors() }

// Scheme says how the model's weights are packed: "GPTQ 4-bit".
func (d *Decoded) Scheme() string {
	var names []string
	for _, t := range d.view.Tensors {
		if w := d.view.Packed[t.Name]; w != nil && !slices.Contains(names, w.Scheme) {
			names = append(names, w.Scheme)
		}
	}
	if len(names) > 3 {
		names = append(names[:3], "…")
	}
	return strings.Join(names, ", ")
}

// Findings are the warnings about the model and its quantization, and a note that it is decoded.
func (d *Decoded) Findings() []finding.Finding { return d.findings(" and decoded to float") }

func (d *Decoded) findings(what string) []finding.Finding {
	note := finding.Finding{
		Code: "scheme.decoded", Level: finding.Info, File: d.Path(),
		Message: fmt.Sprintf("%d weights are stored as %s%s", len(d.view.Packed), d.Scheme(), what),
	}
	return slices.Concat(d.Model.Findings(), d.view.Findings, []finding.Finding{note})
}

// Layout lays out an output of float tensors. Its config.json says nothing of a quantization.
func (d *Decoded) Layout(specs []tensor.Spec, opt layout.Options) (*layout.Layout, error) {
	side := map[string][]byte{}
	for name, b := range opt.SideFiles {
		side[name] = b
	}
	for _, name := range quantFiles {
		side[name] = nil
	}
	if d.IsFolder() && !strings.HasSuffix(opt.Name, ".safetensors") {
		b, ok := side["config.json"]
		if !ok {
			b = readLimited(beside(d.Model, "config.json"))
		}
		if b != nil {
			plain, err := withoutQuantization(b, true)
			if err != nil {
				return nil, finding.Errorf("base.bad_json", beside(d.Model, "config.json"), "config.json cannot be read: %v", err)
			}
			side["config.json"] = plain
		}
	}
	opt.SideFiles = side
	return d.Model.Layout(specs, opt)
}

// beside is the path of a file beside a model's weights.
func beside(m *safetensors.Model, name string) string {
	dir := m.Path()
	if !IsFolder(dir) {
		dir = filepath.Dir(dir)
	}
	return filepath.Join(dir, name)
}

const maxConfig = 16 << 20

// readLimited reads a small file, or returns nil.
func readLimited(path string) []byte {
	if fi, err := os.Stat(path); err != nil || !fi.Mode().IsRegular() || fi.Size() > maxConfig {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfig))
	if err != nil {
		return nil
	}
	return b
}

// readJSON reads an object, or returns nil.
func readJSON(path string) (m map[string]any) {
	if json.Unmarshal(readLimited(path), &m) != nil {
		return nil
	}
	return m
}

// withoutQuantization is a JSON object without what it says of a quantization, itself or, where it is the
// root, for its language model. Everything else stays byte for byte.
func withoutQuantization(b []byte, root bool) ([]byte, error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, fmt.Errorf("it is not an object")
	}
	at := dec.InputOffset() // the end of what has been dealt with
	out := bytes.Clone(b[:at])
	kept := 0
	for dec.More() {
		start := at
		key, err := dec.Token()
		if err != nil {
			return nil, err
		}
		afterKey := dec.InputOffset()
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, err
		}
		at = dec.InputOffset()
		entry := b[start:at]
		switch key {
		case "quantization_config", "compression_config":
			continue
		case "text_config", "llm_config", "language_config":
			if root && value[0] == '{' {
				inner, err := withoutQuantization(value, false)
				if err != nil {
					return nil, err
				}
				entry = slices.Concat(b[start:afterKey], b[afterKey:at-int64(len(value))], inner)
			}
		}
		if kept == 0 {
			if head, rest, found := bytes.Cut(entry, []byte(",")); found && len(bytes.TrimSpace(head)) == 0 {
				entry = rest // nothing is left for the comma to follow
			}
		}
		out = append(out, entry...)
		kept++
	}
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	return append(out, b[at:]...), nil
}
