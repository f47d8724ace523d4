package onnx

import (
	"errors"
	"io"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/loratool/loratool/finding"
)

const (
	// maxDepth is how deep messages may nest, as in the protobuf libraries.
	maxDepth = 100
	// maxMessage is the largest protobuf message any library reads.
	maxMessage = 1<<31 - 1
	// maxText bounds a single name or metadata value.
	maxText = 16 << 20
	// window is how much of a file is read at once while walking it.
	window = 32 << 10
)

// A source is a protobuf file that is walked front to back through a small window, so that payloads
// nobody asks for are never read. It is not safe for concurrent use.
type source struct {
	name string
	r    io.ReaderAt
	size int64
	buf  []byte
	at   int64 // file position of buf[0]
}

// A message is where a sub-message lies: its tag, its length prefix and its payload. The chain of
// parents is what a rewrite needs to correct the prefixes around a changed message.
type message struct {
	up     *message // nil for the whole file
	at     int64    // of the tag
	pre    int64    // of the length prefix
	off, n int64    // of the payload
}

func (m *message) end() int64 { return m.off + m.n }

// A field is one field of a message.
type field struct {
	num    protowire.Number
	typ    protowire.Type
	at     int64  // of the tag
	pre    int64  // of the length prefix, BytesType only
	off, n int64  // of the value
	val    uint64 // of a number
}

func (f field) end() int64 { return f.off + f.n }

func (m *message) child(f field) *message {
	return &message{up: m, at: f.at, pre: f.pre, off: f.off, n: f.n}
}

func (s *source) root() *message { return &message{n: s.size} }

func (s *source) reject(reason, format string, a ...any) *finding.Finding {
	return finding.Errorf("container."+reason, s.name, format, a...)
}

// peek returns n bytes at off, or what the file still has. The slice is valid until the next call.
func (s *source) peek(off int64, n int) ([]byte, error) {
	n = int(min(int64(n), s.size-off))
	if n <= 0 {
		return nil, nil
	}
	if off < s.at || off+int64(n) > s.at+int64(len(s.buf)) {
		want := int(min(window, s.size-off))
		if cap(s.buf) < want {
			s.buf = make([]byte, min(window, s.size))
		}
		s.buf = s.buf[:want]
		s.at = off
		if got, err := s.r.ReadAt(s.buf, off); got < want {
			s.buf = s.buf[:0]
			if err == nil || errors.Is(err, io.EOF) {
				return nil, s.reject("truncated", "the file became shorter while it was read")
			}
			return nil, finding.Errorf("files.unreadable", s.name, "%v", err)
		}
	}
	i := off - s.at
	return s.buf[i : i+int64(n)], nil
}

// varint reads a varint that ends before end.
func (s *source) varint(off, end int64) (v uint64, n int64, err error) {
	b, err := s.peek(off, int(min(end-off, 10)))
	if err != nil {
		return 0, 0, err
	}
	if len(b) == 0 {
		if off >= s.size {
			return 0, 0, s.reject("truncated", "the file ends where a number should stand, at byte %d", off)
		}
		return 0, 0, s.reject("bad_protobuf", "a message ends where a number should stand, at byte %d", off)
	}
	v, k := protowire.ConsumeVarint(b)
	if k < 0 {
		return 0, 0, s.reject("bad_protobuf", "the number at byte %d is longer than ten bytes or has no end", off)
	}
	return v, int64(k), nil
}

// next reads the field at off of a message that ends at end.
func (s *source) next(off, end int64) (field, error) {
	f := field{at: off}
	tag, n, err := s.varint(off, end)
	if err != nil {
		return f, err
	}
	num, typ := protowire.DecodeTag(tag)
	if num < protowire.MinValidNumber || num > protowire.MaxValidNumber {
		return f, s.reject("bad_protobuf", "field number %d at byte %d", tag>>3, off)
	}
	f.num, f.typ, f.off = num, typ, off+n
	switch typ {
	case protowire.VarintType:
		f.val, f.n, err = s.varint(f.off, end)
	case protowire.Fixed32Type, protowire.Fixed64Type:
		f.n = 4
		if typ == protowire.Fixed64Type {
			f.n = 8
		}
		if f.n > end-f.off {
			return f, s.short(f, end)
		}
		var b []byte
		if b, err = s.peek(f.off, int(f.n)); err == nil {
			if f.n == 4 {
				v, _ := protowire.ConsumeFixed32(b)
				f.val = uint64(v)
			} else {
				f.val, _ = protowire.ConsumeFixed64(b)
			}
		}
	case protowire.BytesType:
		var size uint64
		f.pre = f.off
		if size, n, err = s.varint(f.off, end); err != nil {
			return f, err
		}
		f.off += n
		if size > maxMessage {
			return f, s.reject("bad_protobuf", "field %d at byte %d claims %d bytes, more than a protobuf message may have", num, off, size)
		}
		f.n = int64(size)
		if f.n > end-f.off {
			return f, s.short(f, end)
		}
	case protowire.StartGroupType, protowire.EndGroupType:
	default:
		return f, s.reject("bad_protobuf", "wire type %d at byte %d", typ, off)
	}
	return f, err
}

// short is the error for a value that is longer than the message around it.
func (s *source) short(f field, end int64) error {
	if end == s.size {
		return s.reject("truncated", "field %d at byte %d needs %d bytes, the file has %d more", f.num, f.at, f.n, end-f.off)
	}
	return s.reject("bad_protobuf", "field %d at byte %d needs %d bytes, its message has %d more", f.num, f.at, f.n, end-f.off)
}

// walk calls fn for every field of a message at the given depth. A group, which ONNX does not use, is
// checked and comes as one field that runs to its end tag.
func (s *source) walk(m *message, depth int, fn func(field) error) error {
	if depth > maxDepth {
		return s.tooDeep(m.off)
	}
	for off, end := m.off, m.end(); off < end; {
		f, err := s.next(off, end)
		if err != nil {
			return err
		}
		switch f.typ {
		case protowire.StartGroupType:
			behind, err := s.skipGroup(f, end, depth)
			if err != nil {
				return err
			}
			f.n = behind - f.off
		case protowire.EndGroupType:
			return s.reject("bad_protobuf", "the end of a group without its start at byte %d", off)
		}
		if err := fn(f); err != nil {
			return err
		}
		off = f.end()
	}
	return nil
}

func (s *source) tooDeep(off int64) error {
	return s.reject("nesting", "messages nest deeper than %d at byte %d", maxDepth, off)
}

// skipGroup returns the position behind the group that f starts.
func (s *source) skipGroup(f field, end int64, depth int) (int64, error) {
	open := []protowire.Number{f.num}
	for off := f.off; ; {
		if off >= end {
			return 0, s.reject("bad_protobuf", "the group at byte %d has no end", f.at)
		}
		g, err := s.next(off, end)
		if err != nil {
			return 0, err
		}
		off = g.end()
		switch g.typ {
		case protowire.StartGroupType:
			if open = append(open, g.num); depth+len(open) > maxDepth {
				return 0, s.tooDeep(g.at)
			}
		case protowire.EndGroupType:
			if g.num != open[len(open)-1] {
				return 0, s.reject("bad_protobuf", "group %d at byte %d ends as group %d", open[len(open)-1], f.at, g.num)
			}
			if open = open[:len(open)-1]; len(open) == 0 {
				return off, nil
			}
		}
	}
}

// want makes sure that a known field has the wire type its definition says.
func (s *source) want(f field, typ protowire.Type) error {
	if f.typ != typ {
		return s.reject("bad_protobuf", "field %d at byte %d has wire type %d", f.num, f.at, f.typ).Expected(f.typ, typ)
	}
	return nil
}

// data reads the bytes of a field.
func (s *source) data(f field) ([]byte, error) {
	if err := s.want(f, protowire.BytesType); err != nil {
		return nil, err
	}
	if f.n > maxText {
		return nil, s.reject("bad_field", "a text of %d bytes at byte %d", f.n, f.at).Expected(f.n, "at most 16 MiB")
	}
	if f.n <= window {
		return s.peek(f.off, int(f.n))
	}
	b := make([]byte, f.n)
	if n, err := s.r.ReadAt(b, f.off); n < len(b) {
		return nil, finding.Errorf("files.unreadable", s.name, "%v", err)
	}
	return b, nil
}

// text reads a string, which protobuf wants in UTF-8.
func (s *source) text(f field) (string, error) {
	b, err := s.data(f)
	if err != nil {
		return "", err
	}
	if !utf8.Valid(b) {
		return "", s.reject("bad_utf8", "the text of field %d at byte %d is not UTF-8", f.num, f.at).Expected(string(b), "UTF-8")
	}
	return string(b), nil
}

// number reads an integer.
func (s *source) number(f field) (int64, error) {
	return int64(f.val), s.want(f, protowire.VarintType)
}

// numbers reads one occurrence of a repeated integer, packed or not. More than limit is the error that
// tooMany makes.
func (s *source) numbers(f field, to []int64, limit int, tooMany func(int) error) ([]int64, error) {
	if f.typ == protowire.VarintType {
		if to = append(to, int64(f.val)); len(to) > limit {
			return nil, tooMany(len(to))
		}
		return to, nil
	}
	if err := s.want(f, protowire.BytesType); err != nil {
		return nil, err
	}
	for off := f.off; off < f.end(); {
		v, n, err := s.varint(off, f.end())
		if err != nil {
			return nil, err
		}
		if to = append(to, int64(v)); len(to) > limit {
			return nil, tooMany(len(to))
		}
		off += n
	}
	return to, nil
}

// count counts the varints of a packed field without keeping them.
func (s *source) count(f field) (int64, error) {
	var n int64
	run := 0
	for off := f.off; off < f.end(); {
		b, err := s.peek(off, int(min(window, f.end()-off)))
		if err != nil {
			return 0, err
		}
		for _, c := range b {
			if run++; run > 10 {
				return 0, s.reject("bad_protobuf", "a packed number of field %d at byte %d is longer than ten bytes", f.num, f.at)
			}
			if c < 0x80 {
				n++
				run = 0
			}
		}
		off += int64(len(b))
	}
	if run != 0 {
		return 0, s.reject("bad_protobuf", "the last packed number of field %d at byte %d has no end", f.num, f.at)
	}
	return n, nil
}

// pair reads a StringStringEntryProto.
func (s *source) pair(m *message, depth int) (p [2]string, err error) {
	err = s.walk(m, depth, func(f field) (err error) {
		switch f.num {
		case 1, 2:
			p[f.num-1], err = s.text(f)
		}
		return err
	})
	return p, err
}
