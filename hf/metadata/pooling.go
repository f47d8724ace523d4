package metadata

import (
	"path/filepath"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/hf/config"
)

// poolingType reads modules.json of a sentence-transformers folder and the configuration of its pooling
// module: 1 mean, 2 first token, 3 last token, 0 where there is no modules.json.
func poolingType(dir string) (uint32, error) {
	file := filepath.Join(dir, "modules.json")
	var modules []struct{ Type, Path string }
	if ok, err := config.ReadJSON(file, &modules); !ok || err != nil {
		return 0, err
	}
	path := ""
	for _, m := range modules {
		if strings.HasSuffix(m.Type, "Pooling") {
			path = m.Path
			break
		}
	}
	if path == "" {
		return 0, nil
	}
	if !filepath.IsLocal(filepath.FromSlash(path)) {
		return 0, finding.Errorf("config.bad_value", file, "the pooling module's path leaves the folder").Expected(path, "a folder name")
	}
	file = filepath.Join(dir, filepath.FromSlash(path), "config.json")
	var c map[string]any
	ok, err := config.ReadJSON(file, &c)
	if err != nil {
		return 0, err
	}
	if !ok {
		return 0, finding.Errorf("config.missing", file, "modules.json names a pooling module that is not there")
	}
	mode, _ := c["pooling_mode"].(string)
	switch {
	case config.Truthy(c["pooling_mode_mean_tokens"]):
		return 1, nil
	case config.Truthy(c["pooling_mode_cls_token"]):
		return 2, nil
	case config.Truthy(c["pooling_mode_lasttoken"]):
		return 3, nil
	case mode == "mean":
		return 1, nil
	case mode == "cls":
		return 2, nil
	case mode == "lasttoken":
		return 3, nil
	}
	return 0, finding.Errorf("config.bad_value", file, "the pooling mode is none of those GGUF has").
		Expected(config.Show(c), "mean, cls or lasttoken")
}
