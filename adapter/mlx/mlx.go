// Package mlx reads and writes the adapters of Apple's mlx-lm: a folder with adapters.safetensors and
// adapter_config.json.
//
// MODULE.lora_a is [in, r] and MODULE.lora_b is [r, out], both transposed against PEFT; of an embedding
// they are [vocab, r] and [r, dim]. Stacks of experts, MODULE.switch_mlp.gate_proj and the like, are not
// transposed: [experts, r, in] and [experts, out, r]. DoRA adds MODULE.m, [out]. One scale serves all
// modules. The rules are those of mlx-lm 0.31.
package mlx

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/evidence"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/safetensors"
)

// The names of the files in an MLX folder.
const (
	ConfigName  = "adapter_config.json"
	WeightsName = "adapters.safetensors"
)

// weightNames are the weight files a folder may hold: MLX's own, and PEFT's with MLX tensors in it.
var weightNames = []string{WeightsName, "adapter_model.safetensors"}

// Detect finds the tensor names of MLX.
func Detect(s *evidence.Subject) string {
	if s.Format != "safetensors" {
		return ""
	}
	return s.Ending(".lora_a", ".lora_b")
}

func locate(path string) (config, file string) {
	st, err := os.Stat(path)
	if err != nil {
		return "", ""
	}
	if !st.IsDir() {
		return filepath.Join(filepath.Dir(path), ConfigName), path
	}
	for _, n := range weightNames {
		if s, err := os.Stat(filepath.Join(path, n)); err == nil && s.Mode().IsRegular() {
			return filepath.Join(path, ConfigName), filepath.Join(path, n)
		}
	}
	return filepath.Join(path, ConfigName), ""
}

// Open reads an adapter folder or weight file. Its factors are read when they are loaded; Close the
// adapter after that.
func Open(path string) (*adapter.Adapter, error) {
	config, file := locate(path)
	if file == "" {
		return nil, finding.Errorf("adapter.missing_file", path, "there are no MLX weights here").Expected("none of them", strings.Join(weightNames, ", "))
	}
	c, err := readConfig(config)
	if err != nil {
		return nil, err
	}
	m, err := safetensors.Open(file)
	if err != nil {
		return nil, err
	}
	a, err := c.decode(path, file, m.Tensors())
	if err != nil {
		m.Close()
		return nil, err
	}
	a.Findings = append(a.Findings, m.Findings()...)
	c.twice(a, config)
	a.OnClose(m.Close)
	return a, nil
}
