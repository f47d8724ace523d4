package dialect

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/naming"
)

// A Geometry is what names and row orders depend on in a base model.
type Geometry struct {
	Arch string // llama.cpp's name of the architecture
	HP   naming.HyperParameters
	Tied bool // input and output embeddings are one tensor
}

// maxConfig bounds the size of a base's config.json.
const maxConfig = 16 << 20

// geometry reads the base's geometry. Only its config.json or its key-values are read.
func (t Target) geometry(a *adapter.Adapter) (*Geometry, error) {
	if t.Base == "" {
		return nil, finding.Errorf("convert.needs_base", a.Path, "names and row orders depend on the base model's architecture").
			Hinted("--base BASE: a folder with the base's config.json, or its GGUF file")
	}
	if strings.EqualFold(filepath.Ext(t.Base), ".gguf") {
		return ggufGeometry(t.Base)
	}
	path := filepath.Join(t.Base, "config.json")
	if filepath.Base(t.Base) == "config.json" {
		path = t.Base
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, finding.Errorf("files.missing", path, "the base has no readable config.json")
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfig))
	if err != nil {
		return nil, finding.Errorf("files.unreadable", path, "%v", err)
	}
	var config map[string]any
	if err := json.Unmarshal(b, &config); err != nil {
		return nil, finding.Errorf("base.bad_json", path, "%v", err)
	}
	arch, hp, err := naming.FromConfig(config)
	if err != nil {
		return nil, finding.Errorf("base.unsupported", path, "%v", err)
	}
	return &Geometry{Arch: arch, HP: hp, Tied: config["tie_word_embeddings"] == true}, nil
}

func ggufGeometry(path string) (*Geometry, error) {
	m, err := gguf.Open(path)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	hp, err := naming.FromMetadata(m.Arch(), func(key string) []int64 {
		v, ok := m.Get(key)
		if !ok {
			return nil
		}
		return v.Ints()
	})
	if err != nil {
		return nil, finding.Errorf("base.unsupported", path, "%v", err)
	}
	g := &Geometry{Arch: m.Arch(), HP: hp, Tied: true}
	for _, t := range m.Tensors() {
		if t.Name == "output.weight" {
			g.Tied = false
		}
	}
	return g, nil
}
