// Package dialect opens an adapter of any ecosystem this program reads.
package dialect

import (
	"os"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/gguflora"
	"github.com/loratool/loratool/adapter/mlx"
	"github.com/loratool/loratool/adapter/peft"
	"github.com/loratool/loratool/finding"
)

// Options are what the dialects' files cannot say for themselves.
type Options struct {
	PEFT peft.Options
}

// Detect names the dialect of a path, or "".
func Detect(path string) string {
	switch {
	case gguflora.Detect(path):
		return "gguf"
	case mlx.Detect(path):
		return "mlx"
	case peft.Detect(path):
		return "peft"
	}
	return ""
}

// Open detects the dialect of a path and decodes it. Factors are read when they are loaded; Close the
// adapter after that.
func Open(path string, opt Options) (*adapter.Adapter, error) {
	switch Detect(path) {
	case "gguf":
		return gguflora.Open(path)
	case "mlx":
		return mlx.Open(path)
	case "peft":
		return peft.Open(path, opt.PEFT)
	}
	if _, err := os.Stat(path); err != nil {
		return nil, finding.Errorf("files.missing", path, "there is no such adapter")
	}
	return nil, finding.Errorf("adapter.unknown_dialect", path, "not an adapter this program reads").
		Expected("no adapter_config.json, and no GGUF adapter", "a PEFT folder, a GGUF LoRA or an MLX folder").
		Hinted("a .safetensors file alone needs its adapter_config.json beside it: name the folder")
}
