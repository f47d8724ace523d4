package tensor

import (
	"encoding/binary"
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
	var strips, out []byte
	for done < int64(len(p)) {
		first, skip := (off+done)/row, (off+done)%row
		n := min((skip+int64(len(p))-done+row-1)/row, max(1, maxStrip/row), cols-first)
		if int64(len(strips)) < together*n*s.size {
			strips = make([]byte, together*n*s.size)
		}
		whole := skip == 0 && n*row <= int64(len(p))-done
		if whole {
			out = p[done:][:n*row]
		} else {
			out = make([]byte, n*row)
		}
		for k := int64(0); k < rows; k += together {
			b := strips[:min(together, rows-k)*n*s.size]
			for i := int64(0); i*n*s.size < int64(len(b)); i++ {
				if _, err := s.of.ReadAt(b[i*n*s.size:][:n*s.size], ((k+i)*cols+first)*s.size); err != nil {
					return int(done), err
				}
			}
			turn(out[k*s.size:], b, row, n*s.size, s.size)
		}
		if whole {
			done += n * row
		} else {
			done += int64(copy(p[done:], out[skip:]))
		}
	}
	if short {
		return int(done), io.EOF
	}
	return int(done), nil
}

// maxStrip bounds the bytes that are turned at once.
const maxStrip = 32 << 20

// together is how many rows are turned at once: what a cache line of the output takes.
const together = 16

// turn writes the columns of some rows, each of stride bytes, as rows that are row bytes apart.
func turn(dst, src []byte, row, stride, size int64) {
	for c := int64(0); c*size < stride; c++ {
		to, at := dst[c*row:], c*size
		switch size {
		case 2:
			for i := int64(0); at < int64(len(src)); i, at = i+2, at+stride {
				to[i], to[i+1] = src[at], src[at+1]
			}
		case 4:
			for i := int64(0); at < int64(len(src)); i, at = i+4, at+stride {
				binary.LittleEndian.PutUint32(to[i:], binary.LittleEndian.Uint32(src[at:]))
			}
		default:
			for i := int64(0); at < int64(len(src)); i, at = i+size, at+stride {
				copy(to[i:i+size], src[at:at+size])
			}
		}
	}
}
