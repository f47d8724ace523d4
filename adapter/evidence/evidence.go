// Package evidence looks at a path, once, for what tells the dialects of adapters apart: which files
// there are, and what the tensors in the weight file are called.
package evidence

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/tensor"
)

// ConfigName is the file in which PEFT and MLX keep what their tensors do not say.
const ConfigName = "adapter_config.json"

// A Subject is what was found at a path.
type Subject struct {
	Path string
	Dir  bool
	// Config is the adapter_config.json in the folder, or beside the file; "" if there is none.
	Config string
	// File is the weight file; "" where a folder has none, or several of which none has a known name.
	File string
	// Format is that of File: as formats.Sniff names it, or "npy" or "nemo"; "" where it is unknown.
	Format string
	// Names are the names of the tensors in File, none where it cannot be opened. Shapes are parallel.
	Names    []string
	Shapes   []tensor.Shape
	Metadata [][2]string // of a safetensors file
}

// weightNames are the names under which libraries save adapters, in the order of preference: PEFT, MLX,
// diffusers, TensorRT-LLM, torchtune (which saves a copy for PEFT beside its own).
var weightNames = []string{"adapter_model.safetensors", "adapter_model.bin", "adapters.safetensors",
	"pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin", "model.lora_weights.npy", "adapter_model.pt"}

// modelNames are whole models, which are not looked into.
var modelNames = []string{"model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin"}

// Look looks at a path. Of a weight file only the structure is read. What cannot be read leaves the fields
// empty that it would have filled.
func Look(path string) *Subject {
	s := &Subject{Path: path}
	st, err := os.Stat(path)
	if err != nil {
		return s
	}
	folder := path
	if s.Dir = st.IsDir(); s.Dir {
		s.File = weightsIn(path)
	} else {
		folder, s.File = filepath.Dir(path), path
	}
	if c := filepath.Join(folder, ConfigName); isFile(c) {
		s.Config = c
	}
	if s.File != "" {
		s.open()
	}
	return s
}

func isFile(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular()
}

// weightsIn finds the weight file of a folder: one with a known name, or the only one.
func weightsIn(folder string) string {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return ""
	}
	var names, others []string
	for _, e := range entries {
		switch n := e.Name(); {
		case !isFile(filepath.Join(folder, n)):
		case slices.Contains(weightNames, n):
			names = append(names, n)
		case slices.Contains(modelNames, n) || strings.HasPrefix(n, "."):
		case slices.Contains([]string{".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".nemo", ".onnx_adapter"}, filepath.Ext(n)):
			others = append(others, n)
		}
	}
	for _, n := range weightNames {
		if slices.Contains(names, n) {
			return filepath.Join(folder, n)
		}
	}
	if len(others) == 1 {
		return filepath.Join(folder, others[0])
	}
	return ""
}

func (s *Subject) open() {
	switch filepath.Ext(s.File) {
	case ".npy":
		s.Format = "npy"
		return
	case ".nemo":
		s.Format = "nemo"
		return
	}
	format, err := formats.Sniff(s.File)
	if err != nil {
		return
	}
	s.Format = format
	if format == "onnx" || format == "gguf" { // a model, or told by its key-values
		return
	}
	m, err := formats.Open(s.File)
	if err != nil {
		return
	}
	defer m.Close()
	for _, t := range m.Tensors() {
		s.Names, s.Shapes = append(s.Names, t.Name), append(s.Shapes, t.Shape)
	}
	if m, ok := m.(*safetensors.Model); ok {
		s.Metadata = m.Metadata()
	}
}

// Count says how many names fulfil a condition, and which is the first that does.
func (s *Subject) Count(is func(name string) bool) (n int, first string) {
	for _, name := range s.Names {
		if is(name) {
			if n == 0 {
				first = name
			}
			n++
		}
	}
	return n, first
}

// Ending is evidence that a tensor's name ends in one of the endings: text that says how many do, "" if
// none does.
func (s *Subject) Ending(endings ...string) string {
	return s.Naming("tensor names that end in "+strings.Join(endings, " or "), func(name string) bool {
		return slices.ContainsFunc(endings, func(e string) bool { return strings.HasSuffix(name, e) })
	})
}

// Naming is evidence that names fulfil a condition, which what describes.
func (s *Subject) Naming(what string, is func(name string) bool) string {
	n, first := s.Count(is)
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%d %s (%q)", n, what, first)
}
