// Package npy reads and writes NumPy's .npy files: one array of plain elements, in C order.
//
// A file is the magic "\x93NUMPY", a version, the length of the header, the header (a Python dict literal
// with descr, fortran_order and shape, padded with blanks to a multiple of 64 bytes) and the elements.
package npy

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

const (
	magic     = "\x93NUMPY"
	maxHeader = 1 << 16
	maxDims   = 32
)

// types are the array types both ways: those of little-endian or single-byte elements.
var types = []struct {
	descr string
	dtype tensor.DType
}{
	{"<f2", tensor.F16}, {"<f4", tensor.F32}, {"<f8", tensor.F64}, {"<i4", tensor.I32}, {"<i8", tensor.I64}, {"<i2", tensor.I16},
	{"|i1", tensor.I8}, {"|u1", tensor.U8}, {"<u2", tensor.U16}, {"<u4", tensor.U32}, {"<u8", tensor.U64}, {"|b1", tensor.Bool},
}

// A File is an open array.
type File struct {
	file   *os.File
	tensor tensor.Tensor
}

// Open reads the header of a file. The array's name is the empty string. Errors are findings with the code
// container.<reason>.
func Open(path string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, finding.Errorf("files.unreadable", path, "%v", err)
	}
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, finding.Errorf("files.not_regular", path, "not a regular file")
	}
	t, err := parse(path, f, st.Size())
	if err != nil {
		f.Close()
		return nil, err
	}
	return &File{f, *t}, nil
}

// Array is the array as a tensor.
func (f *File) Array() tensor.Tensor { return f.tensor }

// Close closes the file; the array cannot be read afterwards.
func (f *File) Close() error { return f.file.Close() }

var (
	descr   = regexp.MustCompile(`'descr':\s*'([^']*)'`)
	fortran = regexp.MustCompile(`'fortran_order':\s*(True|False)`)
	shape   = regexp.MustCompile(`'shape':\s*\(([0-9, ]*)\)`)
)

func parse(path string, r io.ReaderAt, size int64) (*tensor.Tensor, error) {
	fail := func(reason, format string, a ...any) (*tensor.Tensor, error) {
		return nil, finding.Errorf("container."+reason, path, format, a...)
	}
	head := make([]byte, min(size, 12))
	if _, err := r.ReadAt(head, 0); err != nil || len(head) < 12 {
		return fail("truncated", "the file ends in its header")
	}
	if string(head[:6]) != magic {
		return fail("bad_magic", "not a NumPy file")
	}
	start, n := int64(10), int64(binary.LittleEndian.Uint16(head[8:]))
	switch head[6] {
	case 1:
	case 2, 3:
		start, n = 12, int64(binary.LittleEndian.Uint32(head[8:]))
	default:
		return fail("bad_version", "version %d of the format is not known", head[6])
	}
	if n > maxHeader || n > size-start {
		return fail("bad_header", "a header of %d bytes does not fit", n)
	}
	b := make([]byte, n)
	if _, err := r.ReadAt(b, start); err != nil {
		return fail("truncated", "the file ends in its header")
	}
	d, o, s := descr.FindSubmatch(b), fortran.FindSubmatch(b), shape.FindSubmatch(b)
	if d == nil || o == nil || s == nil {
		return fail("bad_header", "the header lacks descr, fortran_order or shape")
	}
	t := &tensor.Tensor{Src: r, Off: start + n}
	for _, x := range types {
		if x.descr == string(d[1]) {
			t.DType = x.dtype
		}
	}
	if t.DType == tensor.Invalid {
		return fail("bad_dtype", "elements of type %q are not read", d[1])
	}
	t.Shape = tensor.Shape{}
	for x := range strings.SplitSeq(string(s[1]), ",") {
		if x = strings.TrimSpace(x); x == "" {
			continue
		}
		v, err := strconv.ParseInt(x, 10, 64)
		if err != nil || len(t.Shape) == maxDims {
			return fail("bad_shape", "a dimension is not a number that fits, or there are too many")
		}
		t.Shape = append(t.Shape, v)
	}
	if string(o[1]) == "True" && len(t.Shape) > 1 {
		return fail("unsupported", "the array is stored in Fortran order")
	}
	bytes, err := t.Spec.Bytes()
	if err != nil {
		return fail("bad_shape", "%v", err)
	}
	if bytes != size-t.Off {
		return nil, finding.Errorf("container.size_mismatch", path, "the data is not as long as the shape says").Expected(size-t.Off, bytes)
	}
	t.Size = bytes
	return t, nil
}

// Header is what stands before the elements of an array. A type that NumPy lacks is output.bad_dtype.
func Header(dtype tensor.DType, dims tensor.Shape) ([]byte, error) {
	name := ""
	for _, x := range types {
		if x.dtype == dtype {
			name = x.descr
		}
	}
	if name == "" {
		return nil, finding.Errorf("output.bad_dtype", "", "NumPy has no type %s", dtype)
	}
	var s strings.Builder
	for i, d := range dims {
		if i > 0 {
			s.WriteString(", ")
		}
		fmt.Fprint(&s, d)
	}
	if len(dims) == 1 {
		s.WriteByte(',')
	}
	text := fmt.Sprintf("{'descr': '%s', 'fortran_order': False, 'shape': (%s), }", name, &s)
	total := (10 + len(text) + 1 + 63) / 64 * 64
	b := append([]byte(magic), 1, 0)
	b = binary.LittleEndian.AppendUint16(b, uint16(total-10))
	b = append(b, text...)
	b = append(b, bytes.Repeat([]byte{' '}, total-1-len(b))...)
	return append(b, '\n'), nil
}
