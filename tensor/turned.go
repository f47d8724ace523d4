package tensor

import (
	"fmt"
	"io"
)

// Turned is a matrix of whole-byte elements with rows and columns exchanged, under the same name. Reading rows
// of it reads a strip of columns of t, one run for each of t's rows.
func Turned(t Tensor) (Tensor, error) {
	size := int64(t.DType.BlockBytes())
	if len(t.Shape) != 2 || t.DType.BlockLen() != 1 || size == 0 {
		return Tensor{}, fmt.Errorf("tensor %q: %s %v is no matrix whose rows and columns can be exchanged", t.Name, t.DType, t.Shape)
	}
	u := t
	u.Shape = Shape{t.Shape[1], t.Shape[0]}
	u.Src, u.Off = &turned{of: t, size: size}, 0
	return u, nil
}

type turned struct {
	of   Tensor
	size int64 // of an element
}

// ReadAt reads any stretch of the exchanged matrix.
func (s *turned) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > s.of.Size {
		return 0, io.EOF
	}
	short := int64(len(p)) > s.of.Size-off
	if short {
		p = p[:s.of.Size-off]
	}
	rows, cols := s.of.Shape[0], s.of.Shape[1] // a column becomes a row of rows elements
	row := rows * s.size
	done := int64(0)
	var strip, out []byte
	for done < int64(len(p)) {
		first, skip := (off+done)/row, (off+done)%row
		n := min((skip+int64(len(p))-done+row-1)/row, max(1, maxStrip/row), cols-first)
		if need := n * row; int64(len(out)) < need {
			out = make([]byte, need)
			strip = make([]byte, n*s.size)
		}
		for k := range rows {
			part := strip[:n*s.size]
			if _, err := s.of.ReadAt(part, (k*cols+first)*s.size); err != nil {
				return int(done), err
			}
			scatter(out[k*s.size:], part, row, s.size)
		}
		done += int64(copy(p[done:], out[skip:n*row]))
	}
	if short {
		return int(done), io.EOF
	}
	return int(done), nil
}

// maxStrip bounds the bytes that are turned at once.
const maxStrip = 32 << 20

// scatter puts elements a row apart.
func scatter(dst, src []byte, row, size int64) {
	switch size {
	case 2:
		for i, at := 0, int64(0); i < len(src); i, at = i+2, at+row {
			dst[at], dst[at+1] = src[i], src[i+1]
		}
	case 4:
		for i, at := 0, int64(0); i < len(src); i, at = i+4, at+row {
			copy(dst[at:at+4], src[i:i+4])
		}
	default:
		for i, at := int64(0), int64(0); i < int64(len(src)); i, at = i+size, at+row {
			copy(dst[at:at+size], src[i:i+size])
		}
	}
}
