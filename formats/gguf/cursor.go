package gguf

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"unicode/utf8"

	"github.com/loratool/loratool/finding"
)

// maxText is the longest string and the largest number of array elements, a limit of the reference
// reader. maxArray bounds the bytes of an array in the same spirit.
const (
	maxText  = 1 << 30
	maxArray = 1 << 30
)

// A cursor reads a header front to back. Every length is compared with the bytes that are left before
// anything is allocated. The first failure sticks: later reads return zero values.
type cursor struct {
	in      *bufio.Reader
	file    string
	off     int64
	size    int64
	order   binary.ByteOrder
	scratch [8]byte
	err     error
}

func newCursor(src io.ReaderAt, size int64, file string) *cursor {
	const window = 64 << 10
	in := bufio.NewReaderSize(io.NewSectionReader(src, 0, size), int(min(window, max(size, 16))))
	return &cursor{in: in, file: file, size: size, order: binary.LittleEndian}
}

func (c *cursor) left() uint64 { return uint64(c.size - c.off) }

func (c *cursor) fail(reason, format string, a ...any) *finding.Finding {
	f := finding.Errorf("container."+reason, c.file, format, a...)
	if c.err == nil {
		c.err = f
	}
	return f
}

// read fills p, which the caller has found to be within the file.
func (c *cursor) read(p []byte) {
	if c.err != nil {
		clear(p)
		return
	}
	n, err := io.ReadFull(c.in, p)
	c.off += int64(n)
	if err != nil {
		clear(p)
		c.err = fmt.Errorf("%s: read the header at byte %d: %w", c.file, c.off, err)
	}
}

// number returns the n bytes of a number (at most 8), as they stand in the file.
func (c *cursor) number(n int, what string) []byte {
	p := c.scratch[:n]
	if c.err == nil && uint64(n) > c.left() {
		c.fail("truncated", "the file ends inside %s", what).
			Expected(fmt.Sprintf("%d bytes", c.left()), fmt.Sprintf("%d bytes", n)).Hinted(cutHint)
	}
	if c.err != nil {
		clear(p)
		return p
	}
	c.read(p)
	return p
}

func (c *cursor) u32(what string) uint32 { return c.order.Uint32(c.number(4, what)) }
func (c *cursor) u64(what string) uint64 { return c.order.Uint64(c.number(8, what)) }

const cutHint = "the file looks cut off: compare its size with the original and fetch it again"

// cutOff judges a claim of need bytes where only left remain. A cut file still holds a fair part of
// what it announces, or lacks a few bytes; a claim far beyond the end is a wrong number.
func cutOff(need, left uint64) bool { return need <= 256 || need/16 <= left }

// text reads a length and as many bytes.
func (c *cursor) text(what string) []byte {
	n := c.u64("the length of " + what)
	if c.err != nil {
		return nil
	}
	if n > maxText || n > c.left() {
		reason, hint := "bad_string_length", ""
		if n <= maxText && cutOff(n, c.left()) {
			reason, hint = "truncated", cutHint
		}
		c.fail(reason, "%s is longer than the file", what).
			Expected(fmt.Sprintf("%d bytes", n), fmt.Sprintf("at most %d bytes", min(c.left(), maxText))).Hinted(hint)
		return nil
	}
	p := make([]byte, n)
	c.read(p)
	return p
}

// oddities are what a value may contain and a careful reader mentions.
type oddities struct{ badBool, badUTF8, nul bool }

func (o *oddities) text(p []byte) {
	o.badUTF8 = o.badUTF8 || !utf8.Valid(p)
	o.nul = o.nul || bytes.IndexByte(p, 0) >= 0
}

func (o *oddities) bools(p []byte) {
	for _, b := range p {
		o.badBool = o.badBool || b > 1
	}
}

// value reads the value of a key.
func (c *cursor) value(key string) (v Value, odd oddities) {
	v.typ = Type(c.u32("a value type"))
	if c.err != nil {
		return v, odd
	}
	switch {
	case v.typ >= numTypes:
		c.fail("bad_kv_type", "key %q has an unknown value type", key).Expected(int32(v.typ), "0 to 12")
	case v.typ == Array:
		v.elem = Type(c.u32("an element type"))
		n := c.u64("an array length")
		if c.err != nil {
			break
		}
		switch {
		case v.elem == Array:
			c.fail("nested_array", "key %q is an array of arrays, which no reader supports", key)
		case v.elem >= numTypes:
			c.fail("bad_kv_type", "the array %q has an unknown element type", key).Expected(int32(v.elem), "0 to 12")
		case v.elem == String:
			v.data = c.strings(key, n, &odd)
		default:
			v.data = c.scalars(key, n, v.elem, &odd)
		}
		if c.err == nil {
			v.n = int(n)
		}
	case v.typ == String:
		v.data = c.text("the value of a key")
		odd.text(v.data)
	default:
		p := c.number(v.typ.size(), "a value")
		v.data = append(make([]byte, 0, len(p)), p...)
		c.littleEndian(v.data, len(p))
		if v.typ == Bool {
			odd.bools(v.data)
		}
	}
	return v, odd
}

// littleEndian turns numbers of width bytes from the file's order to the one values are kept in.
func (c *cursor) littleEndian(p []byte, width int) {
	if c.order == binary.LittleEndian || width == 1 {
		return
	}
	for ; len(p) >= width; p = p[width:] {
		reverse(p[:width])
	}
}

func (c *cursor) scalars(key string, n uint64, elem Type, odd *oddities) []byte {
	need := n * uint64(elem.size())
	if n > maxText || need > maxArray || need > c.left() {
		reason, hint := "bad_array_length", ""
		if n <= maxText && cutOff(need, c.left()) {
			reason, hint = "truncated", cutHint
		}
		c.fail(reason, "the array %q is longer than the file", key).
			Expected(fmt.Sprintf("%d × %s", n, elem), fmt.Sprintf("at most %d bytes", min(c.left(), maxArray))).Hinted(hint)
		return nil
	}
	p := make([]byte, need)
	c.read(p)
	c.littleEndian(p, elem.size())
	if elem == Bool {
		odd.bools(p)
	}
	return p
}

// strings reads the elements of an array of strings in their encoded form. The space grows with what
// is really read: the count alone says nothing about the size.
func (c *cursor) strings(key string, n uint64, odd *oddities) []byte {
	if n > maxText {
		c.fail("bad_array_length", "the array %q has more elements than any reader accepts", key).Expected(n, maxText)
		return nil
	}
	if n > c.left()/8 {
		c.fail("truncated", "the file ends inside the strings of %q", key).
			Expected(fmt.Sprintf("%d bytes", c.left()), fmt.Sprintf("at least 8 bytes for each of %d", n)).Hinted(cutHint)
		return nil
	}
	var data []byte
	for range n {
		size := c.u64("the length of an array element")
		if c.err != nil {
			return nil
		}
		at := len(data) + 8
		switch {
		case size > maxText || size > c.left():
			reason, hint := "bad_string_length", ""
			if size <= maxText && cutOff(size, c.left()) {
				reason, hint = "truncated", cutHint
			}
			c.fail(reason, "an element of the array %q is longer than the file", key).
				Expected(fmt.Sprintf("%d bytes", size), fmt.Sprintf("at most %d bytes", min(c.left(), maxText))).Hinted(hint)
			return nil
		case uint64(at)+size > maxArray:
			c.fail("bad_array_length", "the array %q is larger than 1 GiB", key)
			return nil
		}
		if end := at + int(size); end > cap(data) {
			data = slices.Grow(data, max(end, 2*cap(data))-len(data))
		}
		data = binary.LittleEndian.AppendUint64(data, size)
		data = data[:at+int(size)]
		c.read(data[at:])
		odd.text(data[at:])
	}
	return data
}
