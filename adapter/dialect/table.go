package dialect

import (
	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/evidence"
	"github.com/loratool/loratool/adapter/geometry"
	"github.com/loratool/loratool/adapter/gguflora"
	"github.com/loratool/loratool/adapter/mlx"
	"github.com/loratool/loratool/adapter/nemo"
	"github.com/loratool/loratool/adapter/openvino"
	"github.com/loratool/loratool/adapter/ort"
	"github.com/loratool/loratool/adapter/peft"
	"github.com/loratool/loratool/adapter/torchtune"
	"github.com/loratool/loratool/adapter/trtllm"
)

// table is the list of dialects. A new one is a package below adapter/ and an entry here.
func table() []Dialect {
	return append(textModels(), pipelines()...)
}

// textModels are the dialects in the names of Hugging Face.
func textModels() []Dialect {
	return []Dialect{
		{
			Name: "gguf", Title: "a GGUF LoRA",
			Detect: func(s *evidence.Subject) string {
				if s.Format == "gguf" && !s.Dir && gguflora.Detect(s.Path) {
					return "general.type adapter"
				}
				return ""
			},
			Open:   func(path string, _ Options) (*adapter.Adapter, error) { return gguflora.Open(path) },
			Encode: encodeGGUF,
		},
		{
			Name: "mlx", Title: "an MLX folder",
			Detect: mlx.Detect,
			Open:   func(path string, _ Options) (*adapter.Adapter, error) { return mlx.Open(path) },
			Encode: encodeMLX,
		},
		{
			Name: "peft", Title: "a PEFT folder",
			Detect: peft.Evidence,
			Open:   func(path string, opt Options) (*adapter.Adapter, error) { return peft.Open(path, opt.PEFT) },
			Encode: encodePEFT,
		},
		{
			Name: "torchtune", Title: "a torchtune file",
			Detect: torchtune.Detect,
			Open: func(path string, opt Options) (*adapter.Adapter, error) {
				return torchtune.Open(path, func() (*geometry.Geometry, error) { return opt.geometry(path) })
			},
			Encode: encodeTorchtune,
		},
		{
			Name: "ort", Title: "an .onnx_adapter",
			Detect: ort.Detect,
			Open:   func(path string, _ Options) (*adapter.Adapter, error) { return ort.Open(path) },
			Encode: encodeORT,
		},
		{
			Name: "trtllm", Title: "a TensorRT-LLM pair of .npy files",
			Detect: trtllm.Detect,
			Open: func(path string, opt Options) (*adapter.Adapter, error) {
				return trtllm.Open(path, func() (*geometry.Geometry, error) { return opt.geometry(path) })
			},
			Encode: encodeTRTLLM,
		},
		{
			Name: "nemo", Title: "a .nemo archive",
			Detect: nemo.Detect,
			Open: func(path string, opt Options) (*adapter.Adapter, error) {
				return nemo.Open(path, func() (*geometry.Geometry, error) { return opt.geometry(path) })
			},
		},
		{
			Name: "openvino", Title: "an OpenVINO GenAI file",
			Detect: openvino.Detect,
			Open:   func(path string, _ Options) (*adapter.Adapter, error) { return openvino.Open(path) },
			Encode: encodeOpenVINO,
		},
	}
}
