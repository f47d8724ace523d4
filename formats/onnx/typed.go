package onnx

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/loratool/loratool/finding"
)

// typedData presents the numbers of a typed field as raw_data would hold them. They are decoded on the
// first read and kept: such tensors are small in practice, and at most eight times their bytes in the
// file. Strings are presented one after the other, each behind its length as a 32-bit number.
type typedData struct {
	file *source // only its reader, name and size are used
	rec  *record

	once sync.Once
	data []byte
	err  error
}

func (t *typedData) ReadAt(p []byte, off int64) (int, error) {
	t.once.Do(t.decode)
	switch {
	case t.err != nil:
		return 0, t.err
	case off < 0 || off > int64(len(t.data)):
		return 0, fmt.Errorf("read at %d of %d bytes", off, len(t.data))
	}
	n := copy(p, t.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (t *typedData) decode() {
	s := &source{name: t.file.name, r: t.file.r, size: t.file.size}
	data := make([]byte, 0, t.rec.size)
	width := elementTypes[t.rec.dataType].width
	put := func(v uint64) {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], v)
		data = append(data, b[:width]...)
	}
	for _, m := range t.rec.parts {
		err := s.walk(m, 0, func(f field) error {
			switch {
			case int(f.num) != t.rec.field:
				return nil
			case f.num == fieldString:
				b, err := s.data(f)
				data = append(binary.LittleEndian.AppendUint32(data, uint32(len(b))), b...)
				return err
			case f.typ != protowire.BytesType:
				put(f.val)
				return nil
			}
			return s.unpack(f, width, put)
		})
		if err != nil {
			t.err = err
			return
		}
	}
	if sixBits(DType(t.rec.dataType)) {
		data = packSix(data)
	}
	if int64(len(data)) != t.rec.size {
		t.err = finding.Errorf("files.changed", s.name, "the file changed while it was read").In(t.rec.own)
		return
	}
	t.data = data
}

// unpack calls put for every number of a packed field.
func (s *source) unpack(f field, width int, put func(uint64)) error {
	for off := f.off; off < f.end(); {
		if f.num == fieldFloat || f.num == fieldDouble {
			b, err := s.peek(off, width)
			if err != nil {
				return err
			}
			var w [8]byte
			copy(w[:], b)
			put(binary.LittleEndian.Uint64(w[:]))
			off += int64(width)
			continue
		}
		v, n, err := s.varint(off, f.end())
		if err != nil {
			return err
		}
		put(v)
		off += n
	}
	return nil
}

// Strings returns the values of tensor i, which is one of strings.
func (m *Model) Strings(i int) ([]string, error) {
	data, err := m.tensors[i].Read()
	if err != nil {
		return nil, err
	}
	var w []string
	for len(data) >= 4 {
		n := binary.LittleEndian.Uint32(data)
		w = append(w, string(data[4:4+n]))
		data = data[4+n:]
	}
	return w, nil
}
