package gguf

import (
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// readInfos reads the tensor list. Offsets must be contiguous in file order: no gap, no overlap, no
// other order, each tensor padded to the alignment.
func (p *part) readInfos(c *cursor, n uint64) {
	room := min(n, c.left()/minInfo)
	seen := make(map[string]bool, room)
	p.tensors = make([]tensor.Tensor, 0, room)
	next := int64(0)
	for i := uint64(0); i < n && c.err == nil; i++ {
		name := string(c.text("a tensor name"))
		if c.err != nil {
			return
		}
		if seen[beforeNUL(name)] {
			c.fail("duplicate_name", "two tensors have the same name").In(name)
			return
		}
		seen[beforeNUL(name)] = true
		t := tensor.Tensor{Spec: tensor.Spec{Name: name}}
		p.readShape(c, &t)
		p.readType(c, &t)
		off := c.u64("a tensor offset")
		if c.err != nil {
			return
		}
		end := p.measure(c, &t, next)
		if c.err == nil && off != uint64(next) {
			c.fail("bad_offset", "tensors must follow each other without gap or overlap").In(name).Expected(off, next)
		}
		t.Off, next = next, end
		p.tensors = append(p.tensors, t)
		p.warnTensor(&t)
	}
}

func (p *part) readShape(c *cursor, t *tensor.Tensor) {
	n := c.u32("a number of dimensions")
	if c.err == nil && n > maxDims {
		c.fail("bad_n_dims", "too many dimensions").In(t.Name).Expected(n, fmt.Sprintf("at most %d", maxDims))
	}
	if c.err != nil || n == 0 {
		return
	}
	t.Shape = make(tensor.Shape, n)
	for i := range t.Shape {
		d := int64(c.u64("a dimension"))
		if c.err == nil && d < 0 {
			c.fail("bad_shape", "negative dimension").In(t.Name).Expected(d, "0 or more")
		}
		t.Shape[len(t.Shape)-1-i] = d
	}
	p.ones = p.ones || n > 1 && t.Shape[0] == 1
}

func (p *part) readType(c *cursor, t *tensor.Tensor) {
	id := c.u32("a tensor type")
	if c.err != nil {
		return
	}
	if id < uint32(len(byID)) {
		t.DType = byID[id]
	}
	if t.DType == tensor.Invalid {
		c.fail("bad_tensor_type", "unknown or removed tensor type").In(t.Name).
			Expected(int32(id), fmt.Sprintf("a type below %d", len(byID)))
	}
}

// measure sets the tensor's size and returns where the next one begins if this one begins at off.
func (p *part) measure(c *cursor, t *tensor.Tensor, off int64) (end int64) {
	fail := func(reason, format string, a ...any) int64 {
		c.fail(reason, format, a...).In(t.Name)
		return off
	}
	n, err := t.Shape.Elements()
	if err != nil {
		return fail("overflow", "%v", err)
	}
	row := int64(1)
	if len(t.Shape) > 0 {
		row = t.Shape[len(t.Shape)-1]
	}
	if row%int64(t.DType.BlockLen()) != 0 {
		return fail("bad_block", "rows of %d elements do not hold whole blocks of %d (%s)", row, t.DType.BlockLen(), t.DType)
	}
	t.Size, err = t.DType.Bytes(n)
	if err != nil {
		return fail("overflow", "%v", err)
	}
	if t.Size > hugeTensor && t.Size > c.size {
		return fail("overflow", "shape %v of %s claims %d bytes of a file of %d", t.Shape, t.DType, t.Size, c.size)
	}
	end, ok := padTo(off, t.Size, p.align)
	if !ok {
		return fail("overflow", "the sizes of the tensors overflow 64 bits")
	}
	return end
}

// padTo returns off + size rounded up to a multiple of align.
func padTo(off, size, align int64) (end int64, ok bool) {
	if off > math.MaxInt64-align-size {
		return 0, false
	}
	return (off + size + align - 1) / align * align, true
}

func (p *part) warnTensor(t *tensor.Tensor) {
	warn := func(code, format string, a ...any) {
		p.warnings.add(finding.Warnf("container."+code, p.file, format, a...).In(t.Name))
	}
	if len(t.Name) > maxName {
		warn("name_too_long", "a name of %d bytes is more than the %d that other readers accept", len(t.Name), maxName)
	}
	var odd oddities
	odd.text([]byte(t.Name))
	if odd.nul {
		warn("nul_in_name", "the name contains a NUL, where C programs stop reading")
	}
	if odd.badUTF8 {
		warn("bad_utf8", "the name is not valid UTF-8")
	}
	if len(t.Shape) == 0 {
		warn("n_dims_zero", "the tensor has no dimensions; it reads as one element")
	}
	if n, _ := t.Shape.Elements(); n == 0 {
		warn("zero_dim", "shape %v holds no elements", t.Shape)
	}
}

// locate turns offsets into places in the file and compares them with its real size.
func (p *part) locate(c *cursor) error {
	start, _ := padTo(c.off, 0, p.align)
	p.padded = c.size > c.off
	end, padded := start, start
	if n := len(p.tensors); n > 0 {
		last := p.tensors[n-1]
		if last.Off > math.MaxInt64-p.align-last.Size-start {
			return finding.Errorf("container.overflow", p.file, "the sizes of the tensors overflow 64 bits")
		}
		end = start + last.Off + last.Size
		padded, _ = padTo(end, 0, p.align)
		switch {
		case c.size == end && end < padded:
			p.warnings.add(finding.Warnf("container.missing_final_padding", p.file,
				"the padding after the last tensor is missing; all data is there"))
		case c.size < padded:
			return p.truncated(c.size, start, padded)
		}
	}
	if c.size > padded {
		p.warnings.add(finding.Warnf("container.trailing_bytes", p.file, "%d bytes follow the last tensor", c.size-padded))
	}
	for i := range p.tensors {
		p.attach(&p.tensors[i], start)
	}
	// The reference converter leaves the blocks of a big-endian file little-endian; its own tool that
	// turns files round does not, and neither does a big-endian machine. The file does not tell.
	if p.big && slices.ContainsFunc(p.tensors, func(t tensor.Tensor) bool { return t.DType.IsBlock() }) {
		p.warnings.add(finding.Warnf("container.big_endian", p.file,
			"the numbers in quantized blocks are taken as big-endian, which some writers get wrong").
			Hinted("check that the decoded weights are of a sensible size"))
	}
	return nil
}

func (p *part) truncated(size, start, want int64) error {
	f := finding.Errorf("container.truncated", p.file, "the file is %d bytes short", want-size).
		Expected(fmt.Sprintf("%d bytes", size), fmt.Sprintf("%d bytes", want)).Hinted(cutHint)
	for _, t := range p.tensors {
		if t.Size > size-start-t.Off {
			return f.In(t.Name)
		}
	}
	return f
}

// attach points a tensor at its data. A big-endian file's tensors read through a reader that turns
// numbers round, so nobody else needs to know.
func (p *part) attach(t *tensor.Tensor, start int64) {
	t.Src, t.Off = p.src, start+t.Off
	if !p.big {
		return
	}
	swap, ok := swapOf(t.DType)
	switch {
	case !ok:
		f := finding.Errorf("container.big_endian", p.file, "the big-endian layout of %s is not known", t.DType).In(t.Name)
		t.Src, t.Off = unreadable{f}, 0
		w := *f
		w.Level = finding.Warning
		p.warnings.add(&w)
	case swap != nil:
		t.Src = &swapped{src: io.NewSectionReader(p.src, t.Off, t.Size), block: int64(t.DType.BlockBytes()), swap: swap}
		t.Off = 0
	}
}
