package ortadapter

import (
	"encoding/binary"
	"io"

	"github.com/loratool/loratool/finding"
)

// A buffer is a FlatBuffer that is read by position. Every offset in it is checked before it is
// followed; alignment is not asked for, since writers do not agree on it.
type buffer struct {
	name string
	r    io.ReaderAt
	size int64
}

func (b *buffer) reject(reason, format string, a ...any) *finding.Finding {
	return finding.Errorf("container."+reason, b.name, format, a...)
}

func (b *buffer) bytes(at, n int64) ([]byte, error) {
	if at < 0 || n < 0 || n > b.size-at {
		return nil, b.reject("bad_offset", "%d bytes at %d lie outside the file", n, at).Expected(at, b.size)
	}
	w := make([]byte, n)
	if got, err := b.r.ReadAt(w, at); int64(got) < n {
		return nil, finding.Errorf("files.unreadable", b.name, "%v", err)
	}
	return w, nil
}

// uint reads a number of n bytes.
func (b *buffer) uint(at int64, n int) (uint64, error) {
	w, err := b.bytes(at, int64(n))
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(append(w, make([]byte, 8-n)...)), nil
}

// follow reads the offset at a position and returns the position it points to.
func (b *buffer) follow(at int64) (int64, error) {
	v, err := b.uint(at, 4)
	to := at + int64(v)
	if err == nil && (v == 0 || to > b.size-4) {
		err = b.reject("bad_offset", "the offset at byte %d points outside the file", at).Expected(v, b.size-at)
	}
	return to, err
}

// A table is a table's position and the part of its vtable that names fields.
type table struct {
	buffer *buffer
	at     int64
	fields []byte
}

func (b *buffer) table(at int64) (table, error) {
	back, err := b.uint(at, 4)
	if err != nil {
		return table{}, err
	}
	vt := at - int64(int32(back))
	size, err := b.uint(vt, 2)
	if err != nil {
		return table{}, err
	}
	if size < 4 || size%2 != 0 {
		return table{}, b.reject("bad_offset", "the table at byte %d has no sound vtable", at).Expected(size, "an even size of 4 or more")
	}
	fields, err := b.bytes(vt+4, int64(min(size-4, 8))) // none of the tables here has more than four fields
	return table{b, at, fields}, err
}

// field is the position of a field, 0 for one that is left out.
func (t table) field(slot int) int64 {
	if 2*slot+2 > len(t.fields) {
		return 0
	}
	off := binary.LittleEndian.Uint16(t.fields[2*slot:])
	if off == 0 {
		return 0
	}
	return t.at + int64(off)
}

func (t table) int32(slot int) (int32, error) {
	at := t.field(slot)
	if at == 0 {
		return 0, nil
	}
	v, err := t.buffer.uint(at, 4)
	return int32(v), err
}

// vector is the position and number of the elements of a vector or string, none for one that is left out.
func (t table) vector(slot int, width int64) (at, n int64, err error) {
	field := t.field(slot)
	if field == 0 {
		return 0, 0, nil
	}
	if at, err = t.buffer.follow(field); err != nil {
		return 0, 0, err
	}
	v, err := t.buffer.uint(at, 4)
	if err != nil {
		return 0, 0, err
	}
	at, n = at+4, int64(v)
	if n > (t.buffer.size-at)/width {
		return 0, 0, t.buffer.reject("truncated", "a vector of %d elements at byte %d is longer than the file", n, at).
			Expected(t.buffer.size-at, n*width)
	}
	return at, n, nil
}
