// Package ortadapter reads and writes .onnx_adapter files, in which ONNX Runtime (1.20 and later) keeps
// the parameters of a LoRA adapter: a FlatBuffer with the identifier "TORT" that maps names of graph
// inputs to tensors. Format: onnxruntime/lora/adapter_format/adapter_schema.fbs.
package ortadapter

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"unicode/utf8"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/tensor"
)

const (
	identifier    = "TORT"
	formatVersion = 1
	maxFile       = 1<<31 - 1 // a FlatBuffer's offsets reach no further
	maxName       = 64 << 10
	maxRank       = 64
)

// A Header holds the versions in a file. Those of the adapter and the model are the user's own.
type Header struct {
	FormatVersion, AdapterVersion, ModelVersion int32
}

// A Model is an open adapter file. It is read-only and safe for use by many goroutines.
type Model struct {
	path    string
	header  Header
	tensors []tensor.Tensor
	notes   []finding.Finding
	closer  io.Closer
}

// Open opens an adapter file. Only its tables are read. Errors are findings whose code starts with
// "container.", or with "files." for what concerns the file system.
func Open(path string) (*Model, error) {
	info, err := os.Stat(path)
	if err == nil && !info.Mode().IsRegular() {
		return nil, finding.Errorf("files.not_regular", path, "not a regular file").Expected(info.Mode().Type(), "a file")
	}
	if err != nil {
		return nil, fileError(path, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fileError(path, err)
	}
	if info, err = f.Stat(); err != nil {
		f.Close()
		return nil, fileError(path, err)
	}
	m, err := read(f, info.Size(), path)
	if err != nil {
		f.Close()
		return nil, err
	}
	m.closer = f
	return m, nil
}

func fileError(path string, err error) error {
	var pe *os.PathError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return finding.Errorf("files.missing", path, "the file does not exist")
	case errors.As(err, &pe):
		err = pe.Err
	}
	return finding.Errorf("files.unreadable", path, "%v", err)
}

// Path is the path the file was opened with.
func (m *Model) Path() string { return m.path }

// Format is "ortadapter".
func (m *Model) Format() string { return "ortadapter" }

// Header returns the file's versions.
func (m *Model) Header() Header { return m.header }

// Tensors lists the parameters in file order, under the names of the graph inputs they are for.
func (m *Model) Tensors() []tensor.Tensor { return m.tensors }

// Findings are the warnings that opening the file has given.
func (m *Model) Findings() []finding.Finding { return m.notes }

// Close closes the file.
func (m *Model) Close() error {
	if m.closer == nil {
		return nil
	}
	return m.closer.Close()
}

// read parses an adapter of size bytes.
func read(r io.ReaderAt, size int64, path string) (*Model, error) {
	b := buffer{name: path, r: r, size: size}
	m := &Model{path: path}
	head, err := b.bytes(0, min(size, 8))
	if err != nil {
		return nil, err
	}
	switch {
	case len(head) < 8:
		return nil, b.reject("truncated", "a file of %d bytes", size).Expected(size, "at least 8")
	case string(head[4:]) != identifier:
		return nil, b.reject("bad_magic", "not an ONNX Runtime adapter").Expected(fmt.Sprintf("%q", head[4:]), fmt.Sprintf("%q at byte 4", identifier))
	case size > maxFile:
		return nil, b.reject("overflow", "the file is larger than a FlatBuffer may be").Expected(size, maxFile)
	}
	root, err := b.follow(0)
	if err != nil {
		return nil, err
	}
	t, err := b.table(root)
	if err != nil {
		return nil, err
	}
	for i, to := range []*int32{&m.header.FormatVersion, &m.header.AdapterVersion, &m.header.ModelVersion} {
		if *to, err = t.int32(i); err != nil {
			return nil, err
		}
	}
	if m.header.FormatVersion != formatVersion {
		return nil, b.reject("bad_version", "an unknown version of the adapter format").Expected(m.header.FormatVersion, formatVersion)
	}
	at, n, err := t.vector(3, 4)
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for i := range n {
		if err := m.parameter(&b, at+4*i, names); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// parameter reads the table that the vector element at a position points to.
func (m *Model) parameter(b *buffer, element int64, names map[string]bool) error {
	at, err := b.follow(element)
	if err != nil {
		return err
	}
	t, err := b.table(at)
	if err != nil {
		return err
	}
	name, err := m.name(b, t)
	if err != nil {
		return err
	}
	if names[name] {
		return b.reject("duplicate_name", "two parameters have the same name").In(name)
	}
	names[name] = true
	shape, err := m.shape(b, t, name)
	if err != nil {
		return err
	}
	id, err := t.int32(2)
	if err != nil {
		return err
	}
	spec := tensor.Spec{Name: name, DType: onnx.DType(int64(id)), Shape: shape}
	if spec.DType == tensor.Invalid || spec.DType == tensor.String {
		return b.reject("bad_dtype", "no type of numbers").In(name).Expected(id, "1 to 26, without 8")
	}
	if !loadable(spec.DType) {
		m.notes = append(m.notes, *finding.Warnf("container.bad_dtype", b.name, "ONNX Runtime loads no adapter with this type").In(name).Expected(spec.DType, "a float of 8 to 64 bits or an integer of 8 bits or more"))
	}
	want, err := spec.Bytes()
	if err != nil {
		return b.reject("overflow", "%v", err).In(name)
	}
	data, got, err := t.vector(3, 1)
	if err != nil {
		return err
	}
	if got != want {
		return b.reject("size_mismatch", "the data does not fit %s %v", spec.DType, shape).In(name).
			Expected(fmt.Sprintf("%d bytes", got), fmt.Sprintf("%d bytes", want))
	}
	m.tensors = append(m.tensors, tensor.Tensor{Spec: spec, Src: b.r, Off: data, Size: want})
	return nil
}

func (m *Model) name(b *buffer, t table) (string, error) {
	at, n, err := t.vector(0, 1)
	if err != nil {
		return "", err
	}
	if n == 0 || n > maxName {
		return "", b.reject("no_name", "a parameter whose name has %d bytes", n).Expected(n, "1 to 65536")
	}
	text, err := b.bytes(at, n)
	if err != nil {
		return "", err
	}
	// A NUL byte is refused because strings that lie inside each other would need one in their lengths.
	if !utf8.Valid(text) || strings.ContainsRune(string(text), 0) {
		return "", b.reject("bad_utf8", "the name of a parameter is no text").Expected(string(text), "UTF-8 without NUL")
	}
	return string(text), nil
}

func (m *Model) shape(b *buffer, t table, name string) (tensor.Shape, error) {
	at, n, err := t.vector(1, 8)
	switch {
	case err != nil:
		return nil, err
	case n == 0:
		return nil, b.reject("bad_shape", "a parameter without dimensions").In(name).Expected("none", "at least one")
	case n > maxRank:
		return nil, b.reject("rank_too_big", "a parameter with %d dimensions", n).In(name).Expected(n, maxRank)
	}
	shape := make(tensor.Shape, n)
	for i := range shape {
		v, err := b.uint(at+8*int64(i), 8)
		if err != nil {
			return nil, err
		}
		if shape[i] = int64(v); shape[i] < 0 {
			return nil, b.reject("bad_shape", "a negative dimension").In(name).Expected(shape[i], "no dimension below 0")
		}
	}
	return shape, nil
}

// loadable reports whether ONNX Runtime 1.30 accepts a parameter of a type.
func loadable(d tensor.DType) bool {
	switch d {
	case tensor.U8, tensor.I8, tensor.U16, tensor.I16, tensor.I32, tensor.U32, tensor.I64, tensor.U64,
		tensor.F16, tensor.BF16, tensor.F32, tensor.F64, tensor.F8E4M3, tensor.F8E4M3FNUZ, tensor.F8E5M2, tensor.F8E5M2FNUZ:
		return true
	}
	return false
}
