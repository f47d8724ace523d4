package torch

import (
	"bufio"
	"io"

	"github.com/loratool/loratool/finding"
)

// legacyMagic is the integer that files of torch before 1.6 begin with, little-endian.
const legacyMagic long = "\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"

const legacyProtocol = 1001

// A series is the pickles of a legacy file, one after the other.
type series struct {
	m    *Model
	in   *bufio.Reader
	pos  int64
	size int64
}

func (s *series) next(what string, pids func(*interpreter, *tuple) (any, error)) (any, error) {
	ip := newInterpreter(s.m.path, what, s.in, s.size-s.pos, pids)
	v, err := ip.run()
	s.pos += ip.pos
	return v, err
}

// loadLegacy reads a magic number, a version, facts about the writing system, the object, the keys of
// the storages, and after these five pickles each storage: its number of elements and its data.
func (m *Model) loadLegacy(size int64) error {
	s := &series{m: m, in: bufio.NewReader(io.NewSectionReader(m.file, 0, size)), size: size}
	magic, err := s.next("first pickle", func(*interpreter, *tuple) (any, error) { return opaque("storage"), nil })
	if f := finding.Of(err); f != nil && f.Code == "container.forbidden_global" {
		return err
	}
	switch magic := magic.(type) {
	case int64:
		return m.fail("bad_magic", "the file begins with a wrong magic number")
	case long:
		if magic != legacyMagic {
			return m.fail("bad_magic", "the file begins with a wrong magic number")
		}
	default:
		return m.fail("unknown_container", "not a PyTorch checkpoint").Expected("a bare pickle", "a zip archive or a file of torch.save")
	}
	version, err := s.next("version pickle", nil)
	if err != nil {
		return err
	}
	if version != int64(legacyProtocol) {
		return m.fail("bad_version", "unknown version of the file layout").Expected(describeVersion(version), legacyProtocol)
	}
	system, err := s.next("system pickle", nil)
	if err != nil {
		return err
	}
	if d, ok := system.(*dict); ok && d.values["little_endian"] == false {
		return m.fail("big_endian", "the weights are big-endian").Hinted("save the file again on a little-endian machine")
	}
	ss := &storages{byKey: map[string]*storage{}}
	value, err := s.next("object pickle", ss.named)
	if err != nil {
		return err
	}
	if ss.views {
		m.warn("legacy_view", "storages are parts of others, as torch wrote them before 0.4")
	}
	keys, err := s.next("key pickle", nil)
	if err != nil {
		return err
	}
	if err := m.placeLegacy(s, keys, ss); err != nil {
		return err
	}
	return m.collect(value)
}

func describeVersion(v any) any {
	if n, ok := v.(int64); ok {
		return n
	}
	return describe(v)
}

// placeLegacy walks the storages' data in the order of the keys.
func (m *Model) placeLegacy(s *series, keys any, ss *storages) error {
	l, ok := keys.(*list)
	if !ok {
		return m.fail("bad_storage_key", "the keys of the storages are %s", describe(keys))
	}
	for _, k := range l.items {
		key, ok := k.(string)
		if !ok {
			return m.fail("bad_storage_key", "the key of a storage is %s", describe(k))
		}
		st := ss.byKey[key]
		if st == nil {
			return m.fail("missing_storage", "the file has a storage %q that no tensor uses, and perhaps lacks another", key)
		}
		if st.data != nil {
			return m.fail("duplicate_entry", "storage %q is listed twice", key)
		}
		var count [8]byte
		if s.size-s.pos < int64(len(count)) {
			return m.fail("truncated", "the file ends before storage %q", key)
		}
		if _, err := m.file.ReadAt(count[:], s.pos); err != nil {
			return unreadable(m.path, err)
		}
		s.pos += int64(len(count))
		if n := int64(le.Uint64(count[:])); n != st.elements {
			return m.fail("size_mismatch", "storage %q does not have the elements its tensors count on", key).Expected(n, st.elements)
		}
		if st.bytes() > s.size-s.pos {
			return m.fail("truncated", "the file ends within storage %q", key).Expected(s.size-s.pos, st.bytes())
		}
		st.data = &record{file: m.file, path: m.path, name: key, off: s.pos, stored: st.bytes(), size: st.bytes()}
		m.records = append(m.records, st.data)
		s.pos += st.bytes()
	}
	for _, st := range ss.order {
		if st.data == nil {
			return m.fail("missing_storage", "the file does not list storage %q", st.key)
		}
	}
	if s.pos != s.size {
		return m.fail("trailing_bytes", "%d bytes follow the last storage", s.size-s.pos)
	}
	return nil
}
