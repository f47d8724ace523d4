package hf

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/loratool/loratool/formats/gguf"
)

// SetOrigin records what the model was merged from, where GGUF has a place for it: the folder's own model
// and the adapters, by their paths, become general.base_model.*, in place of the models that the folder
// itself came from.
func (m *Model) SetOrigin(adapters []string) {
	type origin struct{ name, organization, version, url string }
	text := func(key string) string { s, _ := m.header.KVs.Text("general." + key); return s }
	from := []origin{{text("name"), text("organization"), text("version"), text("repo_url")}}
	for _, path := range adapters {
		name := filepath.Base(filepath.Clean(path))
		if ext := filepath.Ext(name); ext == ".gguf" || ext == ".safetensors" || ext == ".bin" {
			name = strings.TrimSuffix(name, ext)
		}
		from = append(from, origin{name: name})
	}
	var keys gguf.KVs
	add := func(i int, key, value string) {
		if value != "" {
			keys.Set(fmt.Sprintf("general.base_model.%d.%s", i, key), gguf.Of(value))
		}
	}
	keys.Set("general.base_model.count", gguf.Of(uint32(len(from))))
	for i, o := range from {
		add(i, "name", o.name)
		add(i, "version", o.version)
		add(i, "organization", o.organization)
		add(i, "repo_url", o.url)
	}
	// They stand before the keys that come after them in a converted file.
	var out gguf.KVs
	placed := false
	for _, kv := range m.header.KVs {
		if strings.HasPrefix(kv.Key, "general.base_model.") {
			continue
		}
		later := !strings.HasPrefix(kv.Key, "general.") || strings.HasPrefix(kv.Key, "general.dataset") || kv.Key == "general.tags" ||
			kv.Key == "general.languages" || kv.Key == "general.file_type" || kv.Key == "general.quantization_version"
		if later && !placed && len(out) > 1 {
			out, placed = append(out, keys...), true
		}
		out = append(out, kv)
	}
	if !placed {
		out = append(out, keys...)
	}
	m.header.KVs = out
}
