package torch

import (
	"fmt"
	"io"
	"slices"
)

// A gathered view reads elements that do not lie in order, as if they did. It holds no weights: each
// read walks the storage from low to high addresses through a small window.
type gathered struct {
	src  io.ReaderAt
	v    *view
	size int64 // bytes of an element
}

// An axis is a dimension of a box of elements: how many, how far apart in the storage, and how far
// apart in the output, in elements.
type axis struct{ n, from, to int64 }

// ReadAt reads bytes of the elements in row-major order.
func (g *gathered) ReadAt(p []byte, off int64) (int, error) {
	total := g.v.count * g.size
	if off < 0 || off >= total {
		return 0, io.EOF
	}
	n := min(int64(len(p)), total-off)
	first, last := off/g.size, (off+n-1)/g.size+1
	out := p[:n]
	if off%g.size != 0 || n%g.size != 0 {
		out = make([]byte, (last-first)*g.size)
	}
	w := &window{src: g.src}
	if err := g.span(w, out, 0, g.v.offset, first, last); err != nil {
		return 0, err
	}
	if len(out) != int(n) {
		copy(p[:n], out[off-first*g.size:])
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// span copies elements first to last of the sub-tensor of dimensions d and later, whose first element
// is at base. It cuts the span into a partial row, a box of whole rows and a partial row.
func (g *gathered) span(w *window, out []byte, d int, base, first, last int64) error {
	if d == len(g.v.shape) {
		return g.box(w, out, base, nil)
	}
	row := int64(1)
	for _, n := range g.v.shape[d+1:] {
		row *= n
	}
	i, end := first/row, last/row
	if part := first % row; part != 0 {
		stop := min(row, part+last-first)
		if err := g.span(w, out, d+1, base+i*g.v.strides[d], part, stop); err != nil {
			return err
		}
		out = out[(stop-part)*g.size:]
		i++
	}
	if i < end {
		axes := []axis{{end - i, g.v.strides[d], row}}
		for k := d + 1; k < len(g.v.shape); k++ {
			below := int64(1)
			for _, n := range g.v.shape[k+1:] {
				below *= n
			}
			axes = append(axes, axis{g.v.shape[k], g.v.strides[k], below})
		}
		if err := g.box(w, out, base+i*g.v.strides[d], axes); err != nil {
			return err
		}
		out = out[(end-i)*row*g.size:]
	}
	if part := last % row; part != 0 && i <= end {
		return g.span(w, out, d+1, base+end*g.v.strides[d], 0, part)
	}
	return nil
}

// box copies a box of elements, in the order of the storage.
func (g *gathered) box(w *window, out []byte, base int64, axes []axis) error {
	slices.SortStableFunc(axes, func(a, b axis) int {
		switch {
		case a.from > b.from:
			return -1
		case a.from < b.from:
			return 1
		}
		return 0
	})
	at := make([]int64, len(axes))
	from, to := base, int64(0)
	for {
		src, err := w.at(from*g.size, g.size)
		if err != nil {
			return err
		}
		copy(out[to*g.size:][:g.size], src)
		k := len(axes) - 1
		for ; k >= 0; k-- {
			at[k]++
			from += axes[k].from
			to += axes[k].to
			if at[k] < axes[k].n {
				break
			}
			from -= axes[k].from * axes[k].n
			to -= axes[k].to * axes[k].n
			at[k] = 0
		}
		if k < 0 {
			return nil
		}
	}
}

// A window is a piece of a record in memory. It grows while reads follow one another and is small
// again after a leap.
type window struct {
	src  io.ReaderAt
	off  int64
	buf  []byte
	next int // bytes to read next time
}

const smallWindow, largeWindow = 4 << 10, 256 << 10

func (w *window) at(off, size int64) ([]byte, error) {
	if off >= w.off && off+size <= w.off+int64(len(w.buf)) {
		return w.buf[off-w.off:][:size], nil
	}
	if gap := off - (w.off + int64(len(w.buf))); gap >= 0 && gap <= smallWindow && w.next > 0 {
		w.next = min(2*w.next, largeWindow)
	} else {
		w.next = smallWindow
	}
	if cap(w.buf) < w.next {
		w.buf = make([]byte, w.next)
	}
	n, err := w.src.ReadAt(w.buf[:w.next], off)
	w.off, w.buf = off, w.buf[:n]
	if int64(n) < size {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("gathering at byte %d: %w", off, err)
	}
	return w.buf[:size], nil
}
