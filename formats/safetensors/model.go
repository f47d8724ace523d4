package safetensors

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// A Model is an opened safetensors file, or all shards of a model. Only headers have been read.
type Model struct {
	path     string
	folder   string // of a model folder or index, "" for a single file
	stem     string // "model" of model.safetensors and model.safetensors.index.json
	shards   []*os.File
	tensors  []tensor.Tensor
	metadata [][2]string
	findings []finding.Finding
}

// Open opens a .safetensors file, the index of a sharded model (*.safetensors.index.json), or a model
// folder. In a folder it looks for model.safetensors, model.safetensors.index.json, the same for
// adapter_model and diffusion_pytorch_model, and takes any other *.safetensors if it is the only one.
//
// Errors are *finding.Finding; the codes of what is wrong with a file are container.<reason>.
func Open(path string) (*Model, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, missing(path, err)
	}
	m := &Model{path: path, stem: "model"}
	switch {
	case fi.IsDir():
		m.folder = path
		err = m.openFolder()
	case isIndex(filepath.Base(path)):
		m.folder = filepath.Dir(path)
		err = m.openIndex(filepath.Base(path))
	default:
		m.stem = strings.TrimSuffix(filepath.Base(path), ".safetensors")
		err = m.openSingle(path)
	}
	if err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

func missing(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return finding.Errorf("container.missing_file", path, "there is no such file")
	}
	return unreadable(path, errors.Unwrap(err))
}

// Path is the path that was opened.
func (m *Model) Path() string { return m.path }

// Format is "safetensors".
func (m *Model) Format() string { return "safetensors" }

// Tensors lists all tensors: shard after shard, by shard name, each in the order of its data. Of a
// tensor that lies in two shards it is the one that the index names. A dimension that does not fit int64 (of a tensor without elements) is
// given as the largest int64.
func (m *Model) Tensors() []tensor.Tensor { return m.tensors }

// Metadata is the __metadata__ of the first shard, sorted by key; nil if it has none.
func (m *Model) Metadata() [][2]string { return m.metadata }

// Findings are the warnings about the model.
func (m *Model) Findings() []finding.Finding { return m.findings }

// IsFolder reports whether a model folder or an index was opened, so that there may be side files.
func (m *Model) IsFolder() bool { return m.folder != "" }

// Close closes the files. Tensors cannot be read afterwards.
func (m *Model) Close() error {
	var first error
	for _, f := range m.shards {
		if err := f.Close(); err != nil && first == nil {
			first = err
		}
	}
	m.shards = nil
	return first
}

// openSingle opens a model that is one file.
func (m *Model) openSingle(path string) error {
	f, h, err := openShard(path, path)
	if err != nil {
		return err
	}
	m.add(f, h, func(string) bool { return true })
	return nil
}

// add takes a shard's tensors, those that keep wants, and its warnings.
func (m *Model) add(f *os.File, h *header, keep func(name string) bool) {
	if len(m.shards) == 0 {
		m.metadata = h.metadata
		m.tensors = make([]tensor.Tensor, 0, len(h.tensors))
	}
	m.shards = append(m.shards, f)
	m.findings = append(m.findings, h.warnings...)
	for _, e := range h.tensors {
		if keep(e.Name) {
			m.tensors = append(m.tensors, tensor.Tensor{Spec: e.Spec, Src: f, Off: h.data + int64(e.begin), Size: int64(e.size)})
		}
	}
}

// openShard opens a file and reads its header. It looks before it opens: opening a pipe would hang.
func openShard(path, name string) (*os.File, *header, error) {
	if fi, err := os.Stat(path); err != nil {
		return nil, nil, missing(name, err)
	} else if !fi.Mode().IsRegular() {
		return nil, nil, notRegular(name, fi)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, missing(name, err)
	}
	h, err := readOpen(f, name)
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, h, nil
}

func readOpen(f *os.File, name string) (*header, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, unreadable(name, err)
	}
	if !fi.Mode().IsRegular() {
		return nil, notRegular(name, fi)
	}
	return readHeader(name, f, fi.Size())
}

func notRegular(name string, fi fs.FileInfo) error {
	what := "a device, pipe or socket"
	if fi.IsDir() {
		what = "a folder"
	}
	return finding.Errorf("container.not_regular_file", name, "this is %s, not a file", what)
}

// list names some files for a message.
func list(names []string) string {
	const most = 12
	if len(names) == 0 {
		return "nothing"
	}
	s := fmt.Sprintf("%q", names[:min(len(names), most)])
	if len(names) > most {
		s += fmt.Sprintf(" and %d more", len(names)-most)
	}
	return s
}
