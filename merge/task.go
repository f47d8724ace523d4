package merge

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/quant/scheme"
	"github.com/loratool/loratool/tensor"
)

// A task is one tensor on its way from source to output, or a part of a packed tensor that is copied.
type task struct {
	out    *Output
	source tensor.Tensor
	item   int           // of the first part
	frame  adapter.Frame // rows are whole blocks of both types
	rest   bool          // the tensor has an earlier task, which stands for it

	decode quant.Codec
	encode scheme.Encoding // nil: bytes are copied unseen
	inRow  int64           // bytes of a row
	size   int64           // bytes of the output, all parts

	slabRows int64
	slabs    int64

	load   sync.Once
	err    error
	left   atomic.Int64
	sums   []sums // by slab, added up in order
	sample int64  // rows between two measured ones
}

// copyUnit is the row length of a tensor that is copied: any stretch of bytes will do.
const copyUnit = 4096

// newTasks makes the tasks that fill an output's items, the first of which is item.
func newTasks(out *Output, item int, slab int64) ([]*task, error) {
	var size int64
	for _, s := range out.specs() {
		n, err := s.Bytes()
		if err != nil {
			return nil, err
		}
		size += n
	}
	sources := []tensor.Tensor{out.source}
	if out.weight != nil {
		sources = out.weight.Parts
	}
	var tasks []*task
	if _, readable := quant.Of(out.source.DType); !out.copies() || out.finite && readable && out.weight == nil {
		t, err := newTask(out, item, slab)
		if err != nil {
			return nil, err
		}
		tasks, sources = append(tasks, t), sources[t.encode.Parts():]
		item += t.encode.Parts()
	}
	for i, src := range sources {
		t := &task{out: out, source: src, item: item + i, inRow: copyUnit, frame: adapter.Frame{Rows: (src.Size + copyUnit - 1) / copyUnit, Cols: copyUnit}}
		t.cut(slab / copyUnit)
		tasks = append(tasks, t)
	}
	for i, t := range tasks {
		t.size, t.rest = size, i > 0
	}
	return tasks, nil
}

// newTask makes a task that encodes.
func newTask(out *Output, item int, slab int64) (t *task, err error) {
	t = &task{out: out, source: out.source, item: item, frame: out.frame}
	t.decode, _ = quant.Of(out.source.DType)
	if len(out.ops) == 0 && out.importance == nil && out.weight == nil {
		t.frame = flat(t.frame)
	}
	if t.encode, err = out.encoding(t.frame.Cols); err != nil {
		return nil, err
	}
	if t.inRow, err = out.source.DType.Bytes(t.frame.Cols); err != nil {
		return nil, err
	}
	_, outRow := t.encode.Extent(0, 0, 1)
	block := t.encode.Block()
	t.cut(max(1, slab/max(t.inRow, outRow)/block) * block)
	t.sums = make([]sums, t.slabs)
	// An even spread of rows measures a tensor well enough; shared scales lose more, so theirs is denser.
	measured := int64(256)
	if out.shares() && len(out.ops) > 0 {
		measured = 1024
	}
	t.sample = max(1, t.frame.Rows/measured)
	return t, nil
}

// cut divides the task into slabs of some rows.
func (t *task) cut(rows int64) {
	t.slabRows = max(1, rows)
	t.slabs = (t.frame.Rows + t.slabRows - 1) / t.slabRows
	t.left.Store(t.slabs)
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
	if t.encode == nil {
		return t.copy(first*copyUnit, n*copyUnit, b, w)
	}
	if err := t.prepare(); err != nil {
		return 0, err
	}
	in := grow(&b.in, n*t.inRow)
	if _, err := t.source.ReadAt(in, first*t.inRow); err != nil {
		return 0, t.fault(err)
	}
	out, offs := extents(t.encode, first, n, &b.out)
	if err := t.transform(in, out, offs, first, n, b, &t.sums[slab]); err != nil {
		return 0, err
	}
	written := int64(0)
	for i, part := range out {
		if len(part) == 0 {
			continue
		}
		if err := w.WriteAt(t.item+i, part, offs[i]); err != nil {
			return 0, err
		}
		written += int64(len(part))
	}
	if t.left.Add(-1) == 0 {
		for _, op := range t.out.ops {
			op.Release()
		}
		t.encode = nil // with what it holds
	}
	return written, nil
}

func (t *task) copy(off, n int64, b *buffers, w Writer) (int64, error) {
	n = min(n, t.source.Size-off)
	in := grow(&b.in, n)
	if _, err := t.source.ReadAt(in, off); err != nil {
		return 0, t.fault(err)
	}
	return n, w.WriteAt(t.item, in, off)
}

func (t *task) fault(err error) error { return fmt.Errorf("reading the base: %w", err) }

// group is the number of elements worked on at once, so that three float32 copies stay in the cache. What is
// encoded together may take more.
const group = 32 << 10

// transform decodes, updates and encodes n rows, a few at a time.
func (t *task) transform(in []byte, out [][]byte, offs []int64, first, n int64, b *buffers, s *sums) error {
	block := t.encode.Block()
	rows := max(1, group/t.frame.Cols/block) * block
	if block == 1 {
		rows = max(4, rows) &^ 3 // the low-rank kernel takes four rows at a time
	}
	cols, limit := t.frame.Cols, t.out.limit()
	w := grow(&b.w1, min(rows, n)*cols)
	dst := grow(&b.dst, int64(len(out)))
	for r := int64(0); r < n; r += rows {
		k := min(rows, n-r)
		w, src := w[:k*cols], in[r*t.inRow:(r+k)*t.inRow]
		within(dst, t.encode, out, offs, first+r, k)
		t.decode.Decode(w, src)
		if i := t.unfit(w); i >= 0 {
			return t.notFinite(w[i], (first+r)*cols+int64(i))
		}
		if t.out.copies() {
			copy(dst[0], src)
			continue
		}
		for _, op := range t.out.ops {
			op.Apply(w, first+r)
		}
		if kernel.MagnitudeBits(w) >= limit { // else nothing overflows
			if err := t.overflow(src, w, first+r); err != nil {
				return err
			}
		}
		if err := t.encodeRows(dst, w, first+r); err != nil {
			return err
		}
		for i := int64(0); i < k; i += block {
			t.measure(w[i*cols:min(k, i+block)*cols], src[i*t.inRow:], out, offs, first+r+i, b, s)
		}
	}
	return nil
}

// measure adds the sampled rows of a block to the sums. w are its rows from row first on, out what is stored.
func (t *task) measure(w []float32, src []byte, out [][]byte, offs []int64, first int64, b *buffers, s *sums) {
	cols := t.frame.Cols
	rows := int64(len(w)) / cols
	skip := (t.sample - first%t.sample) % t.sample // rows before the first sampled one
	if skip >= rows {
		return
	}
	base, back := grow(&b.w0, cols), grow(&b.back, int64(len(w)))
	dst := grow(&b.dst, int64(len(out)))
	within(dst, t.encode, out, offs, first, rows)
	t.encode.Decode(back, dst, first)
	block := w
	for i := skip; i < rows; i += t.sample {
		w, back := w[i*cols:][:cols], back[i*cols:][:cols]
		if len(t.out.ops) == 0 {
			s.addRounding(w, back)
			continue
		}
		t.decode.Decode(base, src[i*t.inRow:(i+1)*t.inRow])
		s.add(base, w, back)
		t.measureNearest(base, block, first, first+i, b, s)
		t.measureCalibrated(base, w, back, first+i, b, s)
	}
}

// overflow looks for an updated value that does not fit the output's type although the base's, in src, was
// finite.
func (t *task) overflow(src []byte, w []float32, first int64) error {
	base := make([]float32, len(w))
	t.decode.Decode(base, src)
	target := t.out.stored()
	i := overflow(base, w, t.out.limit())
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
func (t *task) encodeRows(dst [][]byte, w []float32, first int64) error {
	err := t.encode.Encode(dst, w, first)
	if err == nil {
		return nil
	}
	// Again by blocks of rows, to tell which one it is.
	cols, block := t.frame.Cols, t.encode.Block()
	bad, at := w, first*cols
	var scratch []byte
	for r := int64(0); r*cols < int64(len(w)); r += block {
		part := w[r*cols : min(int64(len(w)), (r+block)*cols)]
		parts, _ := extents(t.encode, first+r, int64(len(part))/cols, &scratch)
		if e := t.encode.Encode(parts, part, first+r); e != nil {
			bad, at, err = part, (first+r)*cols, e
			break
		}
	}
	f := finding.Of(err)
	if f == nil {
		return fmt.Errorf("tensor %q, elements from %d on: %w", t.out.Name, at, err)
	}
	if i := notFinite(bad); i >= 0 {
		return t.notFinite(bad[i], at+int64(i))
	}
	return finding.Errorf(f.Code, "", "cannot store elements %d to %d as %s (%s): %s", at, at+int64(len(bad))-1, t.out.stored(), t.position(at), f.Message).
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
	if t.out.shares() {
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

// prepare loads the ops once, and lets those that depend on whole columns see the matrix, as well as an encoding
// that has one scale for it.
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
		switch e := t.encode.(type) {
		case nil:
		case *matchedColumns:
			t.err = e.round(t.pass)
		default:
			t.err = e.Measure(t.reader(t.out.ops))
		}
	})
	return t.err
}

// pass begins to hand out all updated rows.
func (t *task) pass() func() ([]float32, int64, error) { return t.reader(t.out.ops) }

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
		if _, err := t.source.ReadAt(in[:n*t.inRow], first*t.inRow); err != nil {
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
