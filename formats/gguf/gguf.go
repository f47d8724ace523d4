// Package gguf reads and writes GGUF files, versions 2 and 3, in both byte orders, whole or split.
//
// Opening reads the header only: key-values keep their encoded bytes, tensors are sections of the file.
// A header is checked as strictly as the reference reader checks it, and a little more: against the
// file's real size, for duplicate names, and with sums that cannot wrap. Writing is a Layout: the same
// key-values in the same order, every tensor at a known offset.
package gguf

import (
	"errors"
	"io"
	"os"
	"slices"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/tensor"
)

// A Model is an open GGUF file, or all files of a split one. It is read-only and safe for use by many
// goroutines; its tensors can be read until Close.
type Model struct {
	path    string
	header  Header
	tensors []tensor.Tensor
	align   int64
	shards  []int
	notes   []finding.Finding
	files   []io.Closer
}

// OpenOptions are the choices in opening a file.
type OpenOptions struct {
	// AllowBigEndian accepts big-endian files. Their tensors read as little-endian. Without it they are
	// refused, since nearly every program that meets one would take its numbers for nonsense.
	AllowBigEndian bool
}

// Open opens a little-endian file. A file that is the first of a split model (name-00001-of-0000N.gguf)
// opens all of them; another one is refused with the name of the first. Errors are findings whose code
// starts with "container.", except for errors of the operating system.
func Open(path string) (*Model, error) { return OpenWith(path, OpenOptions{}) }

// OpenWith opens a file as Open does, with options.
func OpenWith(path string, opt OpenOptions) (*Model, error) {
	m := &Model{path: path}
	if err := m.load(opt); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

func (m *Model) load(opt OpenOptions) error {
	first, err := m.parseFile(m.path, opt)
	if err != nil {
		return err
	}
	parts := []*part{first}
	s, err := splitOf(first)
	if err != nil {
		return err
	}
	if s.count > 1 {
		if parts, err = m.siblings(first, s, opt); err != nil {
			return err
		}
	}
	m.assemble(parts)
	return nil
}

// assemble makes the model of its parsed files, in order.
func (m *Model) assemble(parts []*part) {
	first := parts[0]
	m.header = Header{Version: first.version, BigEndian: first.big, KVs: first.kvs}
	m.align = first.align
	for _, p := range parts {
		m.tensors = append(m.tensors, p.tensors...)
		m.notes = append(m.notes, p.warnings.list...)
		m.header.KeepDims = m.header.KeepDims || p.ones
		m.shards = append(m.shards, len(p.tensors))
	}
	m.header.OpenEnd = len(m.tensors) == 0 && !first.padded
	if len(parts) == 1 {
		m.shards = nil
	}
}

// parseFile opens one file and parses its header. The file stays open until the model is closed.
func (m *Model) parseFile(path string, opt OpenOptions) (*part, error) {
	// A named pipe blocks in open, so its kind is looked up before.
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, finding.Errorf("container.not_regular_file", path, "not a regular file").
			Expected(st.Mode().Type(), "a file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	m.files = append(m.files, f)
	if st, err = f.Stat(); err != nil {
		return nil, err
	}
	return parse(f, st.Size(), path, opt)
}

// Path is the path the model was opened with.
func (m *Model) Path() string { return m.path }

// Format is "gguf".
func (m *Model) Format() string { return "gguf" }

// Tensors lists the tensors in file order, over all shards. Shapes are outermost first, with as many
// dimensions as the file has. Data reads as little-endian, whatever the file is. The slice is the
// model's own.
func (m *Model) Tensors() []tensor.Tensor { return m.tensors }

// KVs lists the key-values in file order; those of the first shard if the model is split. The slice is
// the model's own: edit the copy that Header returns.
func (m *Model) KVs() KVs { return m.header.KVs }

// Get returns the value of a key.
func (m *Model) Get(key string) (Value, bool) { return m.header.KVs.Get(key) }

// Arch is the value of general.architecture, empty if it is missing.
func (m *Model) Arch() string {
	s, _ := m.header.KVs.Text("general.architecture")
	return s
}

// Version is the format version, 2 or 3.
func (m *Model) Version() int { return int(m.header.Version) }

// BigEndian reports whether the file stores numbers most significant byte first.
func (m *Model) BigEndian() bool { return m.header.BigEndian }

// Alignment is what tensor data is aligned to, in bytes.
func (m *Model) Alignment() int64 { return m.align }

// Shards lists how many tensors each file of a split model holds; it is nil for a single file. Set as
// Header.Shards, it keeps an output split as the source is.
func (m *Model) Shards() []int { return slices.Clone(m.shards) }

// Findings lists what is odd about the files, all of level warning.
func (m *Model) Findings() []finding.Finding { return m.notes }

// Header is a copy of what the file says beside its tensors, to edit and write: with the same tensors,
// NewLayout gives the same bytes again. A split model becomes one file unless Shards is set.
func (m *Model) Header() Header {
	h := m.header
	h.KVs = slices.Clone(h.KVs)
	return h
}

// Layout lays out a file like this one with other tensors: NewLayout of the model's Header.
func (m *Model) Layout(specs []tensor.Spec, opt layout.Options) (*layout.Layout, error) {
	return NewLayout(m.Header(), specs, opt)
}

// Close closes the files. Tensors cannot be read any more.
func (m *Model) Close() error {
	var errs []error
	for _, f := range m.files {
		errs = append(errs, f.Close())
	}
	m.files = nil
	return errors.Join(errs...)
}
