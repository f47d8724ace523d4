package gguf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

const (
	magic        = "GGUF"
	alignmentKey = "general.alignment"

	defaultAlignment = 32
	maxAlignment     = 1 << 20
	maxDims          = 4
	maxName          = 63    // bytes; the reference reader has 64 with a NUL
	maxKey           = 65535 // bytes, of the format text

	// hugeTensor is a size that no tensor of a real model has. Beyond it a claim that exceeds the file
	// is a wrong number, not a file cut short.
	hugeTensor = 1 << 40

	minKV   = 8 + 4 + 1     // an empty key, a type and the smallest value
	minInfo = 8 + 4 + 4 + 8 // an empty name and no dimensions
)

// A part is one parsed file.
type part struct {
	file     string
	src      io.ReaderAt
	version  uint32
	big      bool
	kvs      KVs
	align    int64
	tensors  []tensor.Tensor
	ones     bool // some tensor is stored with a dimension of 1 at the end, or with none
	padded   bool // something follows the header
	warnings warnings
}

// warnings collects findings, but no more than a few of a kind from a file.
type warnings struct {
	list  []finding.Finding
	count map[string]int
}

func (w *warnings) add(f *finding.Finding) {
	const perKind = 16
	if w.count == nil {
		w.count = map[string]int{}
	}
	if w.count[f.Code]++; w.count[f.Code] <= perKind {
		w.list = append(w.list, *f)
	}
}

// parse reads and checks the header of a file of size bytes.
func parse(src io.ReaderAt, size int64, file string, opt OpenOptions) (*part, error) {
	c := newCursor(src, size, file)
	p := &part{file: file, src: src, align: defaultAlignment}
	p.preamble(c, opt)
	nTensors := c.u64("the number of tensors")
	nKVs := c.u64("the number of key-values")
	if c.err == nil {
		checkCounts(c, nTensors, nKVs)
	}
	p.readKVs(c, nKVs)
	p.readInfos(c, nTensors)
	if c.err != nil {
		return nil, c.err
	}
	if err := p.locate(c); err != nil {
		return nil, err
	}
	return p, nil
}

// preamble reads magic and version, and finds the byte order. Nothing in the file tells the order: a
// version whose low half is zero is a small number read the wrong way round.
func (p *part) preamble(c *cursor, opt OpenOptions) {
	head, err := c.in.Peek(int(min(c.size, 32)))
	if err != nil && err != io.EOF {
		c.err = fmt.Errorf("%s: %w", c.file, err)
		return
	}
	if !bytes.HasPrefix(head, []byte(magic)) && !strings.HasPrefix(magic, string(head)) {
		c.err = notGGUF(c.file, head)
		return
	}
	c.number(len(magic), "the magic")
	p.version = c.u32("the version")
	if c.err != nil {
		return
	}
	if v := p.version; v&0xffff == 0 && v>>16 != 0 {
		turned := v>>24 | v>>8&0xff00
		if !opt.AllowBigEndian {
			c.fail("big_endian", "the file is big-endian (version %d)", turned).
				Hinted("allow big-endian files explicitly, or convert the file to little-endian")
			return
		}
		p.version, p.big, c.order = turned, true, binary.BigEndian
	}
	if p.version != 2 && p.version != 3 {
		f := c.fail("bad_version", "unsupported GGUF version").Expected(p.version, "2 or 3")
		if p.version == 1 {
			f.Hinted("version 1 was used for a few weeks of 2023 only: convert the model again")
		}
	}
}

func checkCounts(c *cursor, nTensors, nKVs uint64) {
	for _, n := range []struct {
		count, min uint64
		what       string
	}{{nTensors, minInfo, "tensors"}, {nKVs, minKV, "key-values"}} {
		if n.count > math.MaxInt64/n.min || n.count*n.min > c.left() && !cutOff(n.count*n.min, c.left()) {
			c.fail("bad_count", "the file claims more %s than it has room for", n.what).
				Expected(n.count, fmt.Sprintf("at most %d in %d bytes", c.left()/n.min, c.left())).
				Hinted("the file is damaged, or cut off near its beginning")
			return
		}
	}
}

func (p *part) readKVs(c *cursor, n uint64) {
	seen := map[string]bool{}
	for i := uint64(0); i < n && c.err == nil; i++ {
		key := string(c.text("a key"))
		if c.err != nil {
			return
		}
		if key == "" {
			c.fail("empty_key", "key-value %d has an empty key", i)
			return
		}
		if seen[beforeNUL(key)] {
			c.fail("duplicate_key", "the key %q is there twice", key)
			return
		}
		seen[beforeNUL(key)] = true
		v, odd := c.value(key)
		if c.err != nil {
			return
		}
		p.kvs = append(p.kvs, KV{key, v})
		p.warnKV(key, odd)
	}
	if c.err != nil {
		return
	}
	align, err := p.kvs.alignment(c.file)
	if err != nil {
		c.err = err
		return
	}
	p.align = align
}

func (p *part) warnKV(key string, odd oddities) {
	if !canonicalKey(key) {
		p.warnings.add(finding.Warnf("container.non_canonical_key", p.file, "the key %q is not dotted lower_snake_case", key))
	}
	if odd.badBool {
		p.warnings.add(finding.Warnf("container.non_canonical_bool", p.file, "the bool %q is neither 0 nor 1; it reads as true", key))
	}
	if odd.badUTF8 {
		p.warnings.add(finding.Warnf("container.bad_utf8", p.file, "the value of %q is not valid UTF-8", key))
	}
	if odd.nul {
		p.warnings.add(finding.Warnf("container.nul_in_string", p.file, "the value of %q contains a NUL, where C programs stop reading", key))
	}
}

// canonicalKey accepts dotted words of lower-case letters, digits, underscore and hyphen. The format
// text does not name the hyphen, but architectures ("gpt-oss") have it.
func canonicalKey(key string) bool {
	if len(key) > maxKey {
		return false
	}
	word := 0
	for _, r := range []byte(key) {
		switch {
		case 'a' <= r && r <= 'z', '0' <= r && r <= '9', r == '_', r == '-':
			word++
		case r == '.' && word > 0:
			word = 0
		default:
			return false
		}
	}
	return word > 0
}

// beforeNUL is how a C program sees a name.
func beforeNUL(s string) string {
	s, _, _ = strings.Cut(s, "\x00")
	return s
}

// alignment returns the declared alignment of a file's data, or the default.
func (k KVs) alignment(file string) (int64, error) {
	v, ok := k.Get(alignmentKey)
	if !ok {
		return defaultAlignment, nil
	}
	u, ok := v.Uint()
	if v.Type() != Uint32 || !ok || u == 0 || u&(u-1) != 0 || u > maxAlignment {
		return 0, finding.Errorf("container.bad_alignment", file, "%s is unusable", alignmentKey).
			Expected(fmt.Sprintf("%s (%s)", v, v.Type()), "a power of two up to 1048576 (u32)")
	}
	return int64(u), nil
}

// readInfos reads the tensor list. Offsets must be contiguous in file order: no gap, no overlap, no
// other order, each tensor padded to the alignment.
func (p *part) readInfos(c *cursor, n uint64) {
	seen := map[string]bool{}
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
