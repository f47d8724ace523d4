package peft

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/evidence"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/formats/torch"
	"github.com/loratool/loratool/tensor"
)

// The names of the files in a PEFT folder.
const (
	ConfigName  = "adapter_config.json"
	WeightsName = "adapter_model.safetensors"
	pickleName  = "adapter_model.bin"
)

// maxConfig bounds the size of adapter_config.json. Real ones have a few kilobytes.
const maxConfig = 16 << 20

// weights is an open weight file of either kind.
type weights interface {
	Tensors() []tensor.Tensor
	Findings() []finding.Finding
	Close() error
}

// Detect reports whether a path looks like a PEFT adapter: a folder with adapter_config.json or
// adapter_model.*, or a weight file that has adapter_config.json beside it.
func Detect(path string) bool {
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return false
	case st.IsDir():
		return isFile(filepath.Join(path, ConfigName)) || isFile(filepath.Join(path, WeightsName)) || isFile(filepath.Join(path, pickleName))
	}
	ext := filepath.Ext(path)
	return (ext == ".safetensors" || ext == ".bin") && isFile(filepath.Join(filepath.Dir(path), ConfigName))
}

// Evidence finds PEFT's tensor names in a file that has its configuration with it.
func Evidence(s *evidence.Subject) string {
	if s.Config == "" || s.Format != "safetensors" && s.Format != "torch" {
		return ""
	}
	e := s.Naming("tensor names of PEFT", func(name string) bool {
		k := parseKey(name)
		return foreign(name) == "" && k.role != roleValue && k.role != roleUnknown && k.role != roleAlpha
	})
	if e == "" {
		return ""
	}
	return e + " and " + ConfigName
}

func isFile(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular()
}

// Open reads an adapter: a folder, or its weight file. Its factors are read when they are loaded; Close
// the adapter after that. Where a folder has weights in both formats, the safetensors file is used and
// the other one, which is a pickle, is not opened.
func Open(path string, opt Options) (*adapter.Adapter, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, finding.Errorf("adapter.missing_file", path, "%v", plain(err))
	}
	dir, file := filepath.Dir(path), path
	both := false
	if st.IsDir() {
		dir, file = path, filepath.Join(path, WeightsName)
		if !isFile(file) {
			file = filepath.Join(path, pickleName)
		} else {
			both = isFile(filepath.Join(path, pickleName))
		}
	}
	config := filepath.Join(dir, ConfigName)
	cfg, err := readConfig(config)
	if err != nil {
		return nil, err
	}
	if !isFile(file) {
		return nil, finding.Errorf("adapter.missing_file", path, "the folder holds no weights").Expected("neither", WeightsName+" or "+pickleName)
	}
	w, err := openWeights(file)
	if err != nil {
		return nil, err
	}
	a, err := Decode(path, config, cfg, file, w.Tensors(), opt)
	if err != nil {
		w.Close()
		return nil, err
	}
	a.OnClose(w.Close)
	if m, ok := w.(*safetensors.Model); ok { // which PEFT writes none of
		for _, kv := range m.Metadata() {
			if strings.HasPrefix(kv[0], adapter.GeneralPrefix) {
				a.Metadata = append(a.Metadata, kv)
			}
		}
	}
	a.Findings = append(a.Findings, w.Findings()...)
	if both {
		a.Findings = append(a.Findings, *finding.Warnf("adapter.ambiguous_weights", path, "the folder has %s and %s; the first is used", WeightsName, pickleName))
	}
	return a, nil
}

func openWeights(file string) (weights, error) {
	if strings.HasSuffix(file, ".safetensors") {
		m, err := safetensors.Open(file)
		if err != nil {
			return nil, err
		}
		return m, nil
	}
	m, err := torch.Open(file)
	if err != nil {
		return nil, err
	}
	return m, nil
}

func readConfig(file string) ([]byte, error) {
	if !isFile(file) {
		return nil, finding.Errorf("adapter.missing_config", file, "there is no such file").
			Hinted("PEFT adapters need it for lora_alpha; other kinds of adapters are read from their weight file alone")
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, finding.Errorf("adapter.missing_config", file, "%v", plain(err))
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err == nil && len(b) > maxConfig {
		err = fmt.Errorf("larger than %d bytes", maxConfig)
	}
	if err != nil {
		return nil, finding.Errorf("adapter.bad_json", file, "%v", plain(err))
	}
	return b, nil
}

// plain drops the path from a system error, since findings name the file themselves.
func plain(err error) error {
	if p, ok := err.(*os.PathError); ok {
		return p.Err
	}
	return err
}
