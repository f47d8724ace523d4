package gguf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"
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
	room := min(n, c.left()/minKV)
	seen := make(map[string]bool, room)
	p.kvs = make(KVs, 0, room)
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
