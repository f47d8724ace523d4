package dialect

import (
	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/evidence"
	"github.com/loratool/loratool/adapter/gguflora"
	"github.com/loratool/loratool/adapter/mlx"
	"github.com/loratool/loratool/adapter/peft"
)

// table is the list of dialects. A new one is a package below adapter/ and an entry here.
func table() []Dialect {
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
	}
}
