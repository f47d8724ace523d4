package dialect

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/diffusion"
	"github.com/loratool/loratool/adapter/geometry"
	"github.com/loratool/loratool/adapter/gguflora"
	"github.com/loratool/loratool/adapter/mlx"
	"github.com/loratool/loratool/adapter/openvino"
	"github.com/loratool/loratool/adapter/ort"
	"github.com/loratool/loratool/adapter/peft"
	"github.com/loratool/loratool/adapter/torchtune"
	"github.com/loratool/loratool/adapter/trtllm"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/formats/ortadapter"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/formats/torch"
	"github.com/loratool/loratool/naming"
)

func encodePEFT(a *adapter.Adapter, t Target) (*Output, error) {
	if err := t.plainFloats(a, "a PEFT adapter"); err != nil {
		return nil, err
	}
	if a.Space == naming.Diffusers {
		var err error
		if a, err = diffusion.Component(a); err != nil {
			return nil, err
		}
	}
	f, err := peft.Encode(a, peft.EncodeOptions{DType: t.DType, BaseModel: a.BaseModel})
	if err != nil {
		return nil, err
	}
	return t.folder(a, "adapter_model", peft.ConfigName, f.Config, f.Weights)
}

func encodeGGUF(a *adapter.Adapter, t Target) (*Output, error) {
	g, err := t.geometry(a)
	if err != nil {
		return nil, err
	}
	name := filepath.Base(filepath.Clean(a.Path))
	if st, err := os.Stat(a.Path); err == nil && !st.IsDir() {
		abs, err := filepath.Abs(a.Path)
		if err != nil {
			return nil, err
		}
		name = filepath.Base(filepath.Dir(abs))
	}
	f, err := gguflora.Encode(a, gguflora.Options{Arch: g.Arch, HP: g.HP, Tied: g.Tied, SkipTied: t.AllowUnmatched, DType: t.DType, General: t.General, Name: gguflora.NameOf(name)})
	if err != nil {
		return nil, err
	}
	l, err := gguf.NewLayout(f.Header, specsOf(f.Weights), layout.Options{Name: t.Name})
	if err != nil {
		return nil, err
	}
	return &Output{Layout: l, Weights: f.Weights, Findings: f.Findings}, nil
}

func encodeMLX(a *adapter.Adapter, t Target) (*Output, error) {
	if err := t.plainFloats(a, "an MLX adapter"); err != nil {
		return nil, err
	}
	opt := mlx.Options{DType: t.DType}
	if t.Base != "" {
		g, err := t.geometry(a)
		if err != nil {
			return nil, err
		}
		opt.Experts = g.HP.Experts
	}
	f, err := mlx.Encode(a, opt)
	if err != nil {
		return nil, err
	}
	return t.folder(a, "adapters", mlx.ConfigName, f.Config, f.Weights)
}

func encodeTorchtune(a *adapter.Adapter, t Target) (*Output, error) {
	if err := t.plainFloats(a, "a torchtune adapter"); err != nil {
		return nil, err
	}
	f, err := torchtune.Encode(a, t.DType, func() (*geometry.Geometry, error) { return t.geometry(a) })
	if err != nil {
		return nil, err
	}
	var l *layout.Layout
	switch ending := strings.ToLower(filepath.Ext(t.Name)); ending {
	case ".safetensors":
		l, err = safetensors.NewLayout(specsOf(f.Weights), safetensors.Output{Metadata: fileMetadata(a)}, layout.Options{Name: t.Name})
	default:
		name := t.Name
		if !slices.Contains([]string{".pt", ".pth", ".bin", ".ckpt"}, ending) {
			name = torchtune.WeightsName
		}
		if l, err = torch.Layout(specsOf(f.Weights), layout.Options{Name: name}); err == nil {
			l.Dir = name != t.Name
		}
	}
	if err != nil {
		return nil, err
	}
	return &Output{Layout: beside(l, torchtune.ConfigName, f.Config), Weights: f.Weights}, nil
}

func encodeOpenVINO(a *adapter.Adapter, t Target) (*Output, error) {
	if err := t.plainFloats(a, "an OpenVINO GenAI adapter"); err != nil {
		return nil, err
	}
	w, err := openvino.Encode(a, t.DType)
	if err != nil {
		return nil, err
	}
	l, err := safetensors.NewLayout(specsOf(w), safetensors.Output{Metadata: fileMetadata(a)}, layout.Options{Name: t.Name})
	if err != nil {
		return nil, err
	}
	return &Output{Layout: l, Weights: w}, nil
}

func encodeTRTLLM(a *adapter.Adapter, t Target) (*Output, error) {
	f, err := trtllm.Encode(a, t.DType)
	if err != nil {
		return nil, err
	}
	return &Output{Layout: f.Layout, Weights: f.Weights}, nil
}

// encodeORT fits the adapter to the base where that is an ONNX model.
func encodeORT(a *adapter.Adapter, t Target) (*Output, error) {
	if err := t.plainFloats(a, "an ONNX Runtime adapter"); err != nil {
		return nil, err
	}
	var inputs []ort.Input
	if strings.EqualFold(filepath.Ext(t.Base), ".onnx") {
		m, err := onnx.Open(t.Base)
		if err != nil {
			return nil, err
		}
		inputs = ort.Inputs(m)
		if err := m.Close(); err != nil {
			return nil, err
		}
		if len(inputs) == 0 {
			return nil, finding.Errorf("match.no_inputs", t.Base, "the model declares no LoRA inputs, so no adapter can be loaded beside it").
				Hinted("export it with LoRA inputs, or merge the adapter into it")
		}
	}
	f, err := ort.Encode(a, t.DType, inputs)
	if err != nil {
		return nil, err
	}
	l, err := ortadapter.Layout(ortadapter.Header{}, specsOf(f.Weights), layout.Options{Name: t.Name})
	if err != nil {
		return nil, err
	}
	return &Output{Layout: l, Weights: f.Weights, Findings: f.Findings}, nil
}
