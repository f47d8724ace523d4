package tensor

import (
	"fmt"
	"io"
)

// A Spec is what an output's layout needs to know of a tensor.
type Spec struct {
	Name  string
	DType DType
	Shape Shape
}

// Bytes is the size of the tensor's data. Block types pack along the last dimension, which must
// hold whole blocks; other types pack the flattened tensor, rounded up to whole bytes.
func (s Spec) Bytes() (int64, error) {
	n, err := s.Shape.Elements()
	if err != nil {
		return 0, err
	}
	b := int64(s.DType.BlockLen())
	if s.DType.IsBlock() && n > 0 {
		if len(s.Shape) == 0 || s.Shape[len(s.Shape)-1]%b != 0 {
			return 0, fmt.Errorf("rows of shape %v do not hold whole blocks of %s (%d elements)", s.Shape, s.DType, b)
		}
	}
	if !s.DType.IsBlock() && n%b != 0 {
		n += b - n%b
	}
	return s.DType.Bytes(n)
}

// A Tensor is a Spec and the section of a file (or of memory) that holds its data, Size bytes at Off.
type Tensor struct {
	Spec
	Src  io.ReaderAt
	Off  int64
	Size int64
}

// ReadAt reads len(p) bytes of the tensor's data from off. Reading past its end is an error, so a
// wrong offset cannot reach a neighbour's bytes.
func (t *Tensor) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || int64(len(p)) > t.Size-off {
		return 0, fmt.Errorf("tensor %q: read of %d bytes at %d exceeds its %d bytes", t.Name, len(p), off, t.Size)
	}
	n, err := t.Src.ReadAt(p, t.Off+off)
	if n == len(p) {
		return n, nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, fmt.Errorf("tensor %q: %w", t.Name, err)
}

// Read returns the whole data. The caller vouches for the size: codecs have checked it against the file.
func (t *Tensor) Read() ([]byte, error) {
	p := make([]byte, t.Size)
	_, err := t.ReadAt(p, 0)
	return p, err
}

// ReadElements reads k elements from element at on, both whole blocks of the type, into buf where that is large
// enough, and returns the bytes.
func (t *Tensor) ReadElements(buf []byte, at, k int64) ([]byte, error) {
	off, err := t.DType.Bytes(at)
	if err != nil {
		return nil, err
	}
	size, err := t.DType.Bytes(k)
	if err != nil {
		return nil, err
	}
	if size > t.Size-off {
		return nil, fmt.Errorf("tensor %q: elements %d to %d lie beyond its %d bytes", t.Name, at, at+k, t.Size)
	}
	if int64(cap(buf)) < size {
		buf = make([]byte, size)
	}
	_, err = t.ReadAt(buf[:size], off)
	return buf[:size], err
}
