package dialect

import (
	"path/filepath"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/diffusion"
	"github.com/loratool/loratool/adapter/evidence"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/safetensors"
)

// pipelines are the dialects of diffusion pipelines. The tensors' names decide between them at once.
func pipelines() []Dialect {
	var seen *evidence.Subject
	var name, why string
	var out []Dialect
	for _, x := range diffusion.Dialects {
		d := Dialect{Name: x.Name, Title: x.Title, Open: openPipeline}
		d.Detect = func(s *evidence.Subject) string {
			if s.Config != "" && strings.HasPrefix(filepath.Base(s.File), "adapter_model.") {
				return "" // other names in a PEFT folder are a mistake, which its decoder explains
			}
			if s != seen {
				name, why = diffusion.Detect(s)
				seen = s
			}
			if name != d.Name {
				return ""
			}
			return why
		}
		d.Encode = func(a *adapter.Adapter, t Target) (*Output, error) { return encodePipeline(a, d, t) }
		out = append(out, d)
	}
	return out
}

func openPipeline(path string, opt Options) (*adapter.Adapter, error) {
	o := diffusion.Options{AllowUnmatched: opt.AllowUnmatched}
	if opt.Base != "" {
		o.Base = func() ([]string, error) { return modulesOf(opt.Base) }
	}
	return diffusion.Open(path, evidence.Look(path).File, o)
}

// modulesOf lists the modules whose parameters a model stores.
func modulesOf(path string) ([]string, error) {
	m, err := formats.Open(path)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	var out []string
	for _, t := range m.Tensors() {
		if module, ok := strings.CutSuffix(t.Name, ".weight"); ok {
			out = append(out, module)
		}
	}
	return out, nil
}

func encodePipeline(a *adapter.Adapter, d Dialect, t Target) (*Output, error) {
	if err := t.plainFloats(a, d.Title); err != nil {
		return nil, err
	}
	f, err := diffusion.Encode(a, d.Name, diffusion.EncodeOptions{DType: t.DType, AllowUnmatched: t.AllowUnmatched})
	if err != nil {
		return nil, err
	}
	l, err := safetensors.NewLayout(specsOf(f.Weights), safetensors.Output{Metadata: f.Metadata}, layout.Options{Name: t.Name})
	if err != nil {
		return nil, err
	}
	return &Output{Layout: l, Weights: f.Weights, Findings: f.Findings}, nil
}
