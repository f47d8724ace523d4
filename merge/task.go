package merge

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// A task is one tensor on its way from source to output.
type task struct {
	out   *Output
	item  int
	frame adapter.Frame // rows are whole blocks of both types

	decode, encode quant.Codec
	inRow, outRow  int64 // bytes of a row
	size           int64 // bytes of the output
	raw            bool  // bytes are copied unseen
	slabRows       int64
	slabs          int64

	load   sync.Once
	err    error
	left   atomic.Int64
	sums   []sums // by slab, added up in order
	sample int64  // rows between two measured ones
}

// copyUnit is the row length of a tensor that is copied: any stretch of bytes will do.
const copyUnit = 4096

func newTask(out *Output, item int, slab int64) (*task, error) {
	t := &task{out: out, item: item, frame: out.frame}
	size, err := out.Spec().Bytes()
	if err != nil {
		return nil, err
	}
	t.size = size
	t.decode, _ = quant.Of(out.source.DType)
	if t.raw = out.copies() && !(out.finite && t.decode.DType() != tensor.Invalid); t.raw {
		t.frame = adapter.Frame{Rows: (size + copyUnit - 1) / copyUnit, Cols: copyUnit}
		t.inRow, t.outRow = copyUnit, copyUnit
	} else {
		t.encode, _ = quant.Of(tensor.DType(out.Type))
		if len(out.ops) == 0 && out.importance == nil {
			t.frame = flat(t.frame)
		}
		if t.inRow, err = out.source.DType.Bytes(t.frame.Cols); err != nil {
			return nil, err
		}
		if t.outRow, err = tensor.DType(out.Type).Bytes(t.frame.Cols); err != nil {
			return nil, err
		}
		t.sums = make([]sums, 0)
	}
	t.slabRows = max(1, slab/max(t.inRow, t.outRow))
	t.slabs = (t.frame.Rows + t.slabRows - 1) / t.slabRows
	t.left.Store(t.slabs)
	if t.sums != nil {
		t.sums = make([]sums, t.slabs)
		// An even spread of rows measures a tensor well enough; block types lose more, so theirs is denser.
		measured := int64(256)
		if tensor.DType(out.Type).IsBlock() && len(out.ops) > 0 {
			measured = 1024
		}
		t.sample = max(1, t.frame.Rows/measured)
	}
	return t, nil
}

// flat cuts rows into shorter ones where nothing depends on them, so that a slab stays small.
func flat(f adapter.Frame) adapter.Frame {
	const unit = 256 // the longest block
	if n := f.Rows * f.Cols; n%unit == 0 && f.Cols > unit {
		return adapter.Frame{Rows: n / unit, Cols: unit}
	}
	return f
}

// run processes one slab and returns the number of bytes it wrote.
func (t *task) run(slab int64, b *buffers, w Writer) (int64, error) {
	first := slab * t.slabRows
	n := min(t.slabRows, t.frame.Rows-first)
	if t.raw {
		return t.copy(first*copyUnit, n*copyUnit, b, w)
	}
	if err := t.prepare(); err != nil {
		return 0, err
	}
	in := grow(&b.in, n*t.inRow)
	if _, err := t.out.source.ReadAt(in, first*t.inRow); err != nil {
		return 0, t.fault(err)
	}
	out := grow(&b.out, n*t.outRow)
	if err := t.transform(in, out, first, n, b, &t.sums[slab]); err != nil {
		return 0, err
	}
	if err := w.WriteAt(t.item, out, first*t.outRow); err != nil {
		return 0, err
	}
	if t.left.Add(-1) == 0 {
		for _, op := range t.out.ops {
			op.Release()
		}
	}
	return int64(len(out)), nil
}

func (t *task) copy(off, n int64, b *buffers, w Writer) (int64, error) {
	n = min(n, t.out.source.Size-off)
	in := grow(&b.in, n)
	if _, err := t.out.source.ReadAt(in, off); err != nil {
		return 0, t.fault(err)
	}
	return n, w.WriteAt(t.item, in, off)
}

func (t *task) fault(err error) error { return fmt.Errorf("reading the base: %w", err) }

// group is the number of elements worked on at once, so that three float32 copies stay in the cache.
const group = 32 << 10

// transform decodes, updates and encodes n rows, a few at a time.
func (t *task) transform(in, out []byte, first, n int64, b *buffers, s *sums) error {
	rows := max(4, group/t.frame.Cols) &^ 3 // the low-rank kernel takes four rows at a time
	cols, target := t.frame.Cols, tensor.DType(t.out.Type)
	w, base, back := grow(&b.w1, rows*cols), grow(&b.w0, cols), grow(&b.back, cols)
	for r := int64(0); r < n; r += rows {
		k := min(rows, n-r)
		w := w[:k*cols]
		src, dst := in[r*t.inRow:(r+k)*t.inRow], out[r*t.outRow:(r+k)*t.outRow]
		t.decode.Decode(w, src)
		if i := t.unfit(w); i >= 0 {
			return t.notFinite(w[i], (first+r)*cols+int64(i))
		}
		if t.out.copies() {
			copy(dst, src)
			continue
		}
		for _, op := range t.out.ops {
			op.Apply(w, first+r)
		}
		if kernel.MagnitudeBits(w) >= limitOf(target) { // else nothing overflows
			if err := t.overflow(src, w, first+r); err != nil {
				return err
			}
		}
		if err := t.encodeRows(dst, w, first+r); err != nil {
			return err
		}
		for i := range k {
			if (first+r+i)%t.sample != 0 {
				continue
			}
			row := w[i*cols:][:cols]
			t.encode.Decode(back, dst[i*t.outRow:(i+1)*t.outRow])
			if len(t.out.ops) == 0 {
				s.addRounding(row, back)
				continue
			}
			t.decode.Decode(base, src[i*t.inRow:(i+1)*t.inRow])
			s.add(base, row, back)
		}
	}
	return nil
}

// overflow looks for an updated value that does not fit the output's type although the base's, in src, was
// finite.
func (t *task) overflow(src []byte, w []float32, first int64) error {
	base := make([]float32, len(w))
	t.decode.Decode(base, src)
	target := tensor.DType(t.out.Type)
	i := overflow(base, w, target)
	if i < 0 {
		return nil
	}
	at := first*t.frame.Cols + int64(i)
	if len(t.out.ops) == 0 {
		return finding.Errorf("numeric.overflow", "", "element %d (%s) is %g, which does not fit %s", at, t.position(at), w[i], target).
			In(t.out.Name).Hinted("choose a type with a wider range for the tensor: F32 or BF16")
	}
	return finding.Errorf("numeric.overflow", "", "the updated value %g at %s does not fit %s", w[i], t.position(at), target).
		In(t.out.Name).Hinted("the adapter is broken, its scale is wrong, or the type is too narrow (--dtype f32)")
}

// encodeRows encodes rows from first on.
func (t *task) encodeRows(dst []byte, w []float32, first int64) error {
	err := t.out.encodeRows(t.encode, dst, w, t.frame.Cols, first)
	if err == nil {
		return nil
	}
	// Again by rows, to tell which one it is.
	cols, row := t.frame.Cols, int64(0)
	for ; (row+1)*cols < int64(len(w)); row++ {
		if e := t.out.encodeRows(t.encode, dst[row*t.outRow:(row+1)*t.outRow], w[row*cols:(row+1)*cols], cols, first+row); e != nil {
			err = e
			break
		}
	}
	at := (first + row) * cols
	f := finding.Of(err)
	if f == nil {
		return fmt.Errorf("tensor %q, elements from %d on: %w", t.out.Name, at, err)
	}
	if i := notFinite(w[row*cols : (row+1)*cols]); i >= 0 {
		return t.notFinite(w[row*cols+int64(i)], at+int64(i))
	}
	return finding.Errorf(f.Code, "", "cannot store elements %d to %d as %s (%s): %s", at, at+cols-1, t.encode.DType(), t.position(at), f.Message).
		In(t.out.Name).Hinted("choose a floating-point type for the tensor")
}

// unfit is the index of the first value that must not be there, or -1.
func (t *task) unfit(w []float32) int {
	if !t.out.finite {
		return -1
	}
	return notFinite(w)
}

func (t *task) notFinite(v float32, at int64) error {
	f := finding.Errorf("numeric.nan_inf", "", "element %d (%s) is %v", at, t.position(at), v).In(t.out.Name)
	if tensor.DType(t.out.Type).IsBlock() {
		return f.Hinted("repair the weights, or keep the tensor in a floating-point type; block types cannot hold such values")
	}
	return f.Hinted("repair the weights; --allow-nan passes them on")
}

// position is an element's place in the tensor's own shape.
func (t *task) position(at int64) string {
	cols := int64(1)
	if n := len(t.out.Shape); n > 0 {
		cols = max(1, t.out.Shape[n-1])
	}
	return fmt.Sprintf("row %d, column %d", at/cols, at%cols)
}

// prepare loads the ops once, and lets those that depend on whole columns see the matrix.
func (t *task) prepare() error {
	t.load.Do(func() {
		for i, op := range t.out.ops {
			if t.err = op.Load(); t.err != nil {
				if f := finding.Of(t.err); f != nil && f.Tensor == "" {
					f.File, f.Tensor = t.out.Updates[i].Adapter, t.out.Updates[i].Module
				}
				return
			}
			if op.Columns() {
				if t.err = op.Prepare(t.reader(t.out.ops[:i])); t.err != nil {
					return
				}
			}
		}
	})
	return t.err
}

// reader hands out all rows in order with some ops applied.
func (t *task) reader(ops []adapter.Op) func() ([]float32, int64, error) {
	var next int64
	rows := max(1, 4*group/t.frame.Cols)
	in, w := make([]byte, rows*t.inRow), make([]float32, rows*t.frame.Cols)
	return func() ([]float32, int64, error) {
		first := next
		n := min(rows, t.frame.Rows-first)
		if n <= 0 {
			return nil, first, nil
		}
		next += n
		if _, err := t.out.source.ReadAt(in[:n*t.inRow], first*t.inRow); err != nil {
			return nil, 0, t.fault(err)
		}
		w := w[:n*t.frame.Cols]
		t.decode.Decode(w, in[:n*t.inRow])
		for _, op := range ops {
			op.Apply(w, first)
		}
		return w, first, nil
	}
}
