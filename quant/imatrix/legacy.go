package imatrix

import (
	"bufio"
	"encoding/binary"
	"io"
	"math"
	"unicode/utf8"

	"github.com/loratool/loratool/finding"
)

// readLegacy reads the .dat form, little-endian: i32 entries; for each i32 length and a name, i32 calls,
// i32 values, f32 values; then, in newer files, i32 chunks, i32 length and the name of the data set.
func (m *Matrix) readLegacy(f io.ReaderAt, size int64) error {
	r := legacy{in: bufio.NewReaderSize(io.NewSectionReader(f, 0, size), 1<<16), left: size, file: m.Path}
	n := r.count("the number of entries", minEntry)
	for i := int64(0); i < n && r.err == nil; i++ {
		name := r.text("a name")
		calls := r.number("the number of calls")
		values := r.floats(r.count("the number of values", 4))
		if r.err != nil {
			break
		}
		switch {
		case name == "" || !utf8.ValidString(name):
			return finding.Errorf("imatrix.bad_name", m.Path, "entry %d has no usable name", i+1)
		case m.Has(name):
			return finding.Errorf("imatrix.duplicate", m.Path, "the entry is there twice").In(name)
		}
		for j := range values {
			if calls > 0 { // the reference leaves the sums of an entry without calls as they are
				values[j] /= float32(calls)
			}
		}
		if err := m.add(name, values, 0, 0); err != nil {
			return err
		}
	}
	if r.err == nil && r.left > 0 {
		m.Chunks = max(0, r.number("the number of chunks"))
		if set := r.text("the name of the data set"); set != "" {
			m.Datasets = []string{set}
		}
	}
	if r.err == nil && r.left > 0 {
		m.Findings = append(m.Findings, *finding.Warnf("imatrix.trailing_bytes", m.Path, "%d bytes follow the importance matrix", r.left))
	}
	return r.err
}

// minEntry is the size of an entry without name and values.
const minEntry = 12

// A legacy reads numbers and keeps the first error. No count goes beyond the bytes that are there.
type legacy struct {
	in   *bufio.Reader
	left int64
	file string
	err  error
}

func (r *legacy) bytes(n int64, what string) []byte {
	if r.err == nil && n > r.left {
		r.err = finding.Errorf("imatrix.truncated", r.file, "the file ends within %s", what).Expected(r.left, n).
			Hinted("not an importance matrix, or cut off")
	}
	if r.err != nil {
		return nil
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r.in, b); err != nil {
		r.err = finding.Errorf("files.unreadable", r.file, "%v", err)
		return nil
	}
	r.left -= n
	return b
}

func (r *legacy) number(what string) int64 {
	b := r.bytes(4, what)
	if b == nil {
		return 0
	}
	return int64(int32(binary.LittleEndian.Uint32(b)))
}

// count reads a number of things of at least size bytes each.
func (r *legacy) count(what string, size int64) int64 {
	n := r.number(what)
	if r.err == nil && (n < 0 || n > r.left/size) {
		r.err = finding.Errorf("imatrix.bad_count", r.file, "%s is impossible in a file of this size", what).
			Expected(n, r.left/size).Hinted("not an importance matrix, or damaged")
	}
	if r.err != nil {
		return 0
	}
	return n
}

func (r *legacy) text(what string) string { return string(r.bytes(r.count(what, 1), what)) }

func (r *legacy) floats(n int64) []float32 {
	b := r.bytes(4*n, "the values")
	v := make([]float32, len(b)/4)
	for i := range v {
		v[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return v
}
