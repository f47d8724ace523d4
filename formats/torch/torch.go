// Package torch reads PyTorch checkpoints (.bin, .pt, .pth): zip archives, and the older files that
// are five pickles in a row; it writes archives. Pickles are programs; this package reads them with an interpreter that
// runs nothing and knows only what a state dict of dense tensors needs. Everything else is refused
// where it is named.
package torch

import (
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// A Model is an open checkpoint.
type Model struct {
	path     string
	file     io.ReaderAt
	closer   io.Closer
	tensors  []tensor.Tensor
	records  []*record
	findings []finding.Finding
}

// Open reads a checkpoint's structure and checks it against the file; weights are not read. Errors are
// findings with the code container.<reason>.
//
// A dict of tensors is a state dict. In a dict that holds one under the key of a training program
// (state_dict, model_state_dict, model, module), that one is taken. Dicts within it join their names
// with dots. Values that are no tensors are left aside with a finding.
func Open(path string) (*Model, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, unreadable(path, err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = finding.Errorf("files.not_regular", path, "not a regular file")
	}
	if err != nil {
		f.Close()
		return nil, unreadable(path, err)
	}
	m := &Model{path: path, file: f, closer: f}
	if err := m.load(st.Size()); err != nil {
		f.Close()
		return nil, withHint(path, err)
	}
	return m, nil
}

// OpenAt is Open for a checkpoint that is a section of another file, which path names: size bytes of r.
// Close does nothing.
func OpenAt(path string, r io.ReaderAt, size int64) (*Model, error) {
	m := &Model{path: path, file: io.NewSectionReader(r, 0, size), closer: io.NopCloser(nil)}
	if err := m.load(size); err != nil {
		return nil, withHint(path, err)
	}
	return m, nil
}

func unreadable(path string, err error) error {
	if f := finding.Of(err); f != nil {
		return f
	}
	var p *os.PathError
	if errors.As(err, &p) {
		err = p.Err
	}
	return finding.Errorf("files.unreadable", path, "%v", err)
}

// withHint says what the file most likely is where its name gives it away.
func withHint(path string, err error) error {
	if f := finding.Of(err); f != nil {
		if filepath.Base(path) == "training_args.bin" {
			f.Hint = "this file holds a trainer's arguments, not weights; leave it out"
		}
		return f
	}
	return err
}

// Path is the path the model was opened from.
func (m *Model) Path() string { return m.path }

// Format is "torch".
func (m *Model) Format() string { return "torch" }

// Tensors lists the tensors in the order of the state dict. Their data reads as dense row-major
// little-endian elements, whatever their strides. The first read of a storage checks the archive's
// checksum over all of it and fails with container.bad_crc.
func (m *Model) Tensors() []tensor.Tensor { return m.tensors }

// Findings lists what is odd about the file.
func (m *Model) Findings() []finding.Finding { return m.findings }

// Close closes the file; the tensors cannot be read afterwards.
func (m *Model) Close() error { return m.closer.Close() }

// CheckData reads every storage to its end and compares the checksums, which Open does not.
func (m *Model) CheckData() error {
	for _, r := range m.records {
		if err := r.check(); err != nil {
			return err
		}
	}
	return nil
}

func (m *Model) warn(reason, format string, a ...any) {
	m.findings = append(m.findings, *finding.Warnf("container."+reason, m.path, format, a...))
}

func (m *Model) fail(reason, format string, a ...any) *finding.Finding {
	return finding.Errorf("container."+reason, m.path, format, a...)
}

func (m *Model) load(size int64) error {
	head := make([]byte, 512)
	n, err := m.file.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return unreadable(m.path, err)
	}
	head = head[:n]
	switch kind := sniff(head, size); kind {
	case "zip":
		return m.loadZip(size)
	case "pickle":
		return m.loadLegacy(size)
	case "tar":
		return m.fail("unsupported_container", "a tar archive, which torch wrote before 0.1.10").
			Hinted("load it with an old torch you trust and save it again, or ask for a safetensors file")
	default:
		return m.fail("unknown_container", "not a PyTorch checkpoint").Expected(kind, "a zip archive or a file of torch.save")
	}
}

func sniff(head []byte, size int64) string {
	has := func(at int, s string) bool { return len(head) >= at+len(s) && string(head[at:at+len(s)]) == s }
	switch {
	case has(0, "PK\x03\x04"), has(0, "PK\x05\x06"):
		return "zip"
	case has(257, "ustar"):
		return "tar"
	case has(0, "7z\xbc\xaf\x27\x1c"):
		return "a 7z archive"
	case has(0, "\x1f\x8b"):
		return "a gzip file"
	case has(0, "GGUF"):
		return "a GGUF file"
	case has(8, "{") && le.Uint64(head) <= uint64(size):
		return "a safetensors file"
	case len(head) == 0:
		return "an empty file"
	case head[0] == 0x80, head[0] == 'c', head[0] == '(', head[0] == '}', head[0] == ']':
		return "pickle"
	}
	return "bytes of no format known here"
}

// add makes tensors of the views that a state dict lists, whose storages have found their records.
func (m *Model) add(name string, v *view) {
	size := int64(v.dtype.BlockBytes())
	t := tensor.Tensor{Spec: tensor.Spec{Name: name, DType: v.dtype, Shape: v.shape}, Size: v.count * size}
	if dense(v) {
		t.Src, t.Off = v.storage.data, v.offset*size
	} else {
		t.Src = &gathered{src: v.storage.data, v: v, size: size}
	}
	m.tensors = append(m.tensors, t)
}

// dense reports whether the view's elements lie one after another.
func dense(v *view) bool {
	next := int64(1)
	for i := len(v.shape) - 1; i >= 0; i-- {
		if v.shape[i] != 1 && v.strides[i] != next {
			return v.count == 0
		}
		next *= v.shape[i]
	}
	return true
}
