package torch

import (
	"bufio"
	"fmt"
	"io"
	"strings"
)

// loadZip reads an archive: <root>/data.pkl names storages, <root>/data/<key> holds them.
func (m *Model) loadZip(size int64) error {
	a, err := readArchive(m.file, m.path, size)
	if err != nil {
		return err
	}
	if a.trailing > 0 {
		m.warn("bad_zip", "%d bytes follow the end of the archive; nothing reads them", a.trailing)
	}
	root, err := a.root()
	if err != nil {
		return err
	}
	byName := make(map[string]*entry, len(a.entries))
	for i := range a.entries {
		name := a.entries[i].name[len(root):]
		if name == "constants.pkl" || strings.HasPrefix(name, "code/") {
			return m.fail("torchscript", "a TorchScript program, not a state dict").Hinted("save model.state_dict() instead")
		}
		byName[name] = &a.entries[i]
	}
	program := byName["data.pkl"]
	if program == nil || program.isFolder {
		return m.fail("no_data_pkl", "an archive without data.pkl is no PyTorch checkpoint")
	}
	if err := m.checkByteOrder(a, byName["byteorder"]); err != nil {
		return err
	}
	ss := &storages{byKey: map[string]*storage{}}
	value, err := m.runProgram(a, *program, ss)
	if err != nil {
		return err
	}
	known := map[string]bool{"data.pkl": true, "byteorder": true, "version": true, ".data/serialization_id": true,
		".format_version": true, ".storage_alignment": true}
	compressed := program.method != 0
	for _, s := range ss.order {
		name := "data/" + s.key
		e := byName[name]
		if e == nil || e.isFolder {
			return m.fail("missing_storage", "the archive has no entry for storage %q", s.key)
		}
		if err := m.place(a, *e, s); err != nil {
			return err
		}
		known[name] = true
		compressed = compressed || e.method != 0
	}
	if compressed {
		m.warn("compressed_record", "entries are compressed, which torch does not do; each is held in memory once it is read")
	}
	m.reportUnexpected(a, root, known)
	return m.collect(value)
}

// root is the folder that all entries lie in, with its slash.
func (a *archive) root() (string, error) {
	root := ""
	for i, e := range a.entries {
		first, _, _ := strings.Cut(e.name, "/")
		if i == 0 {
			root = first
		} else if first != root {
			return "", a.fail("multiple_roots", "entries lie in the folders %q and %q, so readers differ about the content", root, first)
		}
	}
	for _, e := range a.entries {
		if !strings.HasPrefix(e.name, root+"/") {
			return "", a.fail("no_data_pkl", "entry %q lies in no folder; this is no PyTorch checkpoint", e.name)
		}
	}
	return root + "/", nil
}

func (m *Model) checkByteOrder(a *archive, e *entry) error {
	if e == nil {
		return nil
	}
	const longest = 16
	if e.size > longest {
		return m.fail("bad_byteorder", "the byte order takes %d bytes", e.size)
	}
	b := make([]byte, e.size)
	if _, err := a.record(*e).ReadAt(b, 0); err != nil && err != io.EOF {
		return err
	}
	switch order := strings.TrimSpace(string(b)); order {
	case "little":
		return nil
	case "big":
		return m.fail("big_endian", "the weights are big-endian").Hinted("save the file again on a little-endian machine")
	default:
		return m.fail("bad_byteorder", "unknown byte order").Expected(fmt.Sprintf("%q", order), "little")
	}
}

// runProgram interprets data.pkl. Text does not deflate to less than a hundredth; a bomb does.
func (m *Model) runProgram(a *archive, e entry, ss *storages) (any, error) {
	const ratio, free = 200, 64 << 10
	if e.method != 0 && (e.size > maxPickle || e.size > free+ratio*e.stored) {
		return nil, m.fail("zip_bomb", "data.pkl inflates from %d to %d bytes", e.stored, e.size)
	}
	r := a.record(e)
	if err := r.check(); err != nil {
		return nil, err
	}
	in := bufio.NewReader(io.NewSectionReader(r, 0, e.size))
	ip := newInterpreter(m.path, "data.pkl", in, e.size, ss.named)
	v, err := ip.run()
	if err != nil {
		return nil, err
	}
	if left := e.size - ip.pos; left > 0 {
		f := m.fail("trailing_bytes", "%d bytes follow the end of the pickle in data.pkl", left)
		if name := suspect(in, left); name != "" {
			f.Message += fmt.Sprintf("; they name %q", name)
		}
		return nil, f
	}
	return v, nil
}

// place connects a storage with its entry.
func (m *Model) place(a *archive, e entry, s *storage) error {
	const largestInflated = 256 << 20
	want := s.bytes()
	switch {
	case e.size < want:
		return m.fail("size_mismatch", "storage %q is too small for its %d elements of %s", s.key, s.elements, s.dtype).
			Expected(e.size, want)
	case e.method != 0 && (e.size > want || e.size > largestInflated):
		return m.fail("zip_bomb", "storage %q inflates from %d to %d bytes, its tensors need %d", s.key, e.stored, e.size, want)
	case e.size > want:
		m.warn("size_mismatch", "storage %q has %d bytes more than its %d elements of %s need", s.key, e.size-want, s.elements, s.dtype)
	}
	s.data = a.record(e)
	m.records = append(m.records, s.data)
	return nil
}

// reportUnexpected names entries that nothing refers to. They are looked at only to say what they are.
func (m *Model) reportUnexpected(a *archive, root string, known map[string]bool) {
	const named = 3
	var text strings.Builder
	n := 0
	for _, e := range a.entries {
		name := e.name[len(root):]
		if known[name] || e.isFolder {
			continue
		}
		if n++; n > named {
			continue
		}
		if n > 1 {
			text.WriteString(", ")
		}
		fmt.Fprintf(&text, "%q", name)
		if bad := a.suspect(e); bad != "" {
			fmt.Fprintf(&text, " (a pickle that names %q)", bad)
		}
	}
	if n == 0 {
		return
	}
	if n > named {
		fmt.Fprintf(&text, " and %d more", n-named)
	}
	m.warn("unexpected_entry", "the archive has entries that belong to no tensor: %s", text.String())
}
