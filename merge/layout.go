package merge

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/tensor"
)

// A graph is an ONNX model, with quantized weights or without.
type graph interface {
	Base
	Rewrite(specs []tensor.Spec, opt layout.Options, edit onnx.Edit) (*layout.Layout, error)
}

// Layout lays the plan's output out at a path, in the format of the base it was planned for.
func (p *Plan) Layout(base formats.Writable, output string, opt layout.Options) (*layout.Layout, error) {
	opt.Name = filepath.Base(filepath.Clean(output))
	var specs []tensor.Spec
	for i := range p.Tensors {
		specs = append(specs, p.Tensors[i].specs()...)
	}
	switch m := base.(type) {
	case graph:
		edit := onnx.Edit{Dir: filepath.Dir(filepath.Clean(output)), Touched: make([]bool, len(m.Tensors()))}
		for i := range edit.Touched {
			edit.Touched[i] = !p.Tensors[i].copies() || p.Tensors[i].replaced()
		}
		for _, c := range p.clones {
			clone := onnx.Clone{Tensor: c.Tensor, Name: c.Name}
			for _, u := range c.Uses {
				clone.Uses = append(clone.Uses, onnx.Use{Node: u.Node, Input: u.Input})
			}
			edit.Clones = append(edit.Clones, clone)
		}
		return m.Rewrite(specs, opt, edit)
	case LlamaModel:
		h := m.Header()
		if q := p.quantization; q != nil {
			q.header(&h)
			if q.KeepSplit {
				h.Shards = m.Shards()
			}
		} else if t, ok := p.fileType(); ok && !p.typed {
			if _, has := h.KVs.Get("general.file_type"); has {
				h.KVs.Set("general.file_type", gguf.Of(t))
			}
		}
		return gguf.NewLayout(h, specs, opt)
	case interface{ IsFolder() bool }: // safetensors, decoded, packed or neither
		if p.untied && m.IsFolder() {
			config, err := untiedConfig(base.Path())
			if err != nil {
				return nil, err
			}
			opt.SideFiles = map[string][]byte{"config.json": config}
		}
	}
	return base.Layout(specs, opt)
}

// fileTypes are llama.cpp's numbers (general.file_type) of files whose matrices are mostly of one type.
var fileTypes = map[tensor.DType]uint32{
	tensor.F32: 0, tensor.F16: 1, tensor.BF16: 32, tensor.Q4_0: 2, tensor.Q4_1: 3, tensor.Q8_0: 7, tensor.Q5_0: 8, tensor.Q5_1: 9,
}

// fileType is the file type of an output in which types changed: that of most of its elements.
func (p *Plan) fileType() (uint32, bool) {
	elements := map[tensor.DType]int64{}
	changed := false
	var most tensor.DType
	for i := range p.Tensors {
		s := p.Tensors[i].Spec()
		n, err := s.Shape.Elements()
		if err != nil || len(s.Shape) < 2 {
			continue
		}
		changed = changed || p.Tensors[i].Type != p.Tensors[i].SourceType
		if elements[s.DType] += n; elements[s.DType] > elements[most] {
			most = s.DType
		}
	}
	t, ok := fileTypes[most]
	return t, ok && changed
}

var (
	tieKey     = regexp.MustCompile(`("tie_word_embeddings"\s*:\s*)true`)
	objectOpen = regexp.MustCompile(`^\s*\{`)
)

// untiedConfig is the base's config.json with tie_word_embeddings false and everything else as it was.
func untiedConfig(base string) ([]byte, error) {
	path := filepath.Join(base, "config.json")
	if !formats.IsFolder(base) {
		path = filepath.Join(filepath.Dir(base), "config.json")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, finding.Errorf("files.missing", path, "%v", err)
	}
	if tieKey.Match(b) {
		return tieKey.ReplaceAll(b, []byte("${1}false")), nil
	}
	at := objectOpen.FindIndex(b)
	if at == nil {
		return nil, finding.Errorf("base.bad_json", path, "config.json is not an object")
	}
	return bytes.Join([][]byte{b[:at[1]], []byte("\n  \"tie_word_embeddings\": false,"), b[at[1]:]}, nil), nil
}
