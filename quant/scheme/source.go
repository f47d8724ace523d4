package scheme

import (
	"io"
	"sync"

	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// A decoder decodes the whole rows that dst holds, from a row of the matrix. It may be called from
// several goroutines.
type decoder func(dst []float32, first int64) error

// batch is the number of elements decoded at once. It bounds the memory of a read, together with the
// length of a row.
const batch = 1 << 20

// A source is the data of a decoded weight: rows are decoded, and rounded to its type, when they are read.
type source struct {
	rows, cols int64
	codec      quant.Codec
	decode     decoder
}

// tensor presents the weight. Its rows run over all dimensions but the last.
func (w *weight) tensor() tensor.Tensor {
	codec, _ := quant.Of(w.dtype)
	n, _ := w.shape.Elements()
	s := &source{cols: w.shape[len(w.shape)-1], codec: codec, decode: w.decode}
	if s.cols > 0 {
		s.rows = n / s.cols
	}
	return tensor.Tensor{
		Spec: tensor.Spec{Name: w.name, DType: w.dtype, Shape: w.shape},
		Src:  s, Size: n * int64(w.dtype.BlockBytes()),
	}
}

var slabs = sync.Pool{New: func() any { return new([]float32) }}

// ReadAt decodes the rows that p touches. Rows it touches in part are decoded whole.
func (s *source) ReadAt(p []byte, off int64) (int, error) {
	size := int64(s.codec.DType().BlockBytes())
	total := s.rows * s.cols * size
	if off < 0 || off > total {
		return 0, io.EOF
	}
	short := int64(len(p)) > total-off
	if short {
		p = p[:total-off]
	}
	slab := slabs.Get().(*[]float32)
	defer slabs.Put(slab)
	row := s.cols * size
	var edge []byte // a row that p holds a part of
	done := 0
	for done < len(p) {
		first, skip := (off+int64(done))/row, (off+int64(done))%row
		left := int64(len(p) - done)
		n := int64(1)
		if skip == 0 && left >= row {
			n = min(left/row, max(1, batch/s.cols))
		}
		if int64(cap(*slab)) < n*s.cols {
			*slab = make([]float32, n*s.cols)
		}
		dst := (*slab)[:n*s.cols]
		if err := s.decode(dst, first); err != nil {
			return done, err
		}
		if skip == 0 && left >= row {
			if err := s.codec.Encode(p[done:done+int(n*row)], dst); err != nil {
				return done, err
			}
			done += int(n * row)
			continue
		}
		if edge == nil {
			edge = make([]byte, row)
		}
		if err := s.codec.Encode(edge, dst); err != nil {
			return done, err
		}
		done += copy(p[done:], edge[skip:])
	}
	if short {
		return done, io.EOF
	}
	return done, nil
}

// readFloats reads n elements of a float tensor from element first.
func readFloats(t *tensor.Tensor, first, n int64) ([]float32, error) {
	size := int64(t.DType.BlockBytes())
	b := make([]byte, n*size)
	if _, err := t.ReadAt(b, first*size); err != nil {
		return nil, err
	}
	out := make([]float32, n)
	if t.DType == tensor.F8E8M0 || t.DType == tensor.U8 {
		for i, e := range b {
			out[i] = powers[e]
		}
		return out, nil
	}
	codec, _ := quant.Of(t.DType)
	codec.Decode(out, b)
	return out, nil
}

// readFloatRect reads a rectangle of a float matrix with rows of cols elements.
func readFloatRect(t *tensor.Tensor, cols, row, rows, col, n int64) ([]float32, error) {
	size := int64(t.DType.BlockBytes())
	b, err := readRect(t, cols*size, row, rows, col*size, n*size)
	if err != nil {
		return nil, err
	}
	out := make([]float32, rows*n)
	codec, _ := quant.Of(t.DType)
	codec.Decode(out, b)
	return out, nil
}

// readRect reads width bytes at off of each of some rows of rowBytes bytes.
func readRect(t *tensor.Tensor, rowBytes, row, rows, off, width int64) ([]byte, error) {
	out := make([]byte, rows*width)
	if width == rowBytes {
		_, err := t.ReadAt(out, row*rowBytes)
		return out, err
	}
	if width*4 < rowBytes && width >= 512 || rowBytes > 1<<20 {
		for r := range rows {
			if _, err := t.ReadAt(out[r*width:(r+1)*width], (row+r)*rowBytes+off); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	// Short pieces lie close together: reading what is between them costs less than many reads.
	step := max(1, (256<<10)/rowBytes)
	buf := make([]byte, min(step, rows)*rowBytes)
	for r := int64(0); r < rows; r += step {
		n := min(step, rows-r)
		// The last row is read no further than its piece.
		chunk := buf[:(n-1)*rowBytes+width]
		if _, err := t.ReadAt(chunk, (row+r)*rowBytes+off); err != nil {
			return nil, err
		}
		for i := range n {
			copy(out[(r+i)*width:(r+i+1)*width], chunk[i*rowBytes:])
		}
	}
	return out, nil
}

// once reads something of a weight when it is first needed.
func once[T any](read func() (T, error)) func() (T, error) { return sync.OnceValues(read) }
