package torch

import (
	"hash/crc32"
	"path/filepath"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/tensor"
)

// Layout lays tensors out as torch.save writes a dict of them to a file, with the same bytes as torch 2.15 on
// Linux: a zip archive whose entries are stored, begin at multiples of 64 and lie in a folder named after
// the file; data.pkl, which says what the tensors are; and their elements, little-endian, each tensor a
// storage of its own. Names must be unique. The checksums of the elements and the identifier that torch
// derives from them are known once the items have been written, so spans that hold them come last.
//
// A type that PyTorch stores in no typed storage is output.bad_dtype.
func Layout(specs []tensor.Spec, opt layout.Options) (*layout.Layout, error) {
	program, err := pickleOf(specs, opt.Name)
	if err != nil {
		return nil, err
	}
	z := newZip(rootOf(opt.Name))
	z.add("data.pkl", program)
	z.add(".format_version", []byte("1"))
	z.add(".storage_alignment", []byte("64"))
	z.add("byteorder", []byte("little"))
	for i, s := range specs {
		n, err := s.Bytes()
		if err != nil {
			return nil, finding.Errorf("output.bad_shape", opt.Name, "%v", err).In(s.Name)
		}
		z.item("data/"+strconv.Itoa(i), n)
	}
	z.add("version", []byte("3\n"))
	z.identify()
	return z.finish(opt.Name), nil
}

// rootOf is the folder within an archive of a name: the file's name without its ending, or what torch takes
// where it does not open the file by its name.
func rootOf(name string) string {
	stem := strings.TrimSuffix(name, filepath.Ext(name))
	ascii := strings.IndexFunc(stem, func(r rune) bool { return r >= utf8.RuneSelf || r < ' ' || r == '/' || r == '\\' }) < 0
	if stem == "" || !ascii {
		return "archive"
	}
	return stem
}

// A zipFile lays an archive out, entry by entry.
type zipFile struct {
	root    string
	at      int64
	spans   []layout.Span
	items   []layout.Place
	entries []*stored
}

// A stored entry is one that the archive will hold.
type stored struct {
	name   string // with the root
	header int64
	size   int64
	sum    checksum
}

func newZip(root string) *zipFile { return &zipFile{root: root} }

const (
	flags       = 0x0800 // names are UTF-8
	descriptor  = 0x0008 // checksum and sizes follow the content
	alignment   = 64
	descriptors = 0x08074b50
	limit32     = 0xffffffff
)

func (z *zipFile) bytes(b []byte) {
	z.spans = append(z.spans, layout.Bytes(z.at, b))
	z.at += int64(len(b))
}

// late is a span of n bytes that are known once all items are written.
func (z *zipFile) late(n int64, make func() []byte) {
	z.spans = append(z.spans, layout.Span{Off: z.at, Len: n, Src: lateBytes(make)})
	z.at += n
}

// lateBytes reads as what it makes.
type lateBytes func() []byte

func (f lateBytes) ReadAt(p []byte, off int64) (int, error) { return copy(p, f()[off:]), nil }

// open begins an entry: its header, and padding in a field of its own that brings the content to a multiple of
// the alignment.
func (z *zipFile) open(name string, size int64) *stored {
	e := &stored{name: z.root + "/" + name, header: z.at, size: size}
	z.entries = append(z.entries, e)
	b := le.AppendUint32(nil, localMark)
	b = append(b, make([]byte, localSize-4)...)
	le.PutUint16(b[6:], e.flags())
	le.PutUint16(b[26:], uint16(len(e.name)))
	b = append(b, e.name...)
	extra := e.wide()
	b = append(b, extra...)
	start := z.at + int64(len(b)) + 4
	padding := int((alignment - start%alignment) % alignment)
	le.PutUint16(b[28:], uint16(len(extra)+4+padding))
	b = append(b, 'F', 'B')
	b = le.AppendUint16(b, uint16(padding))
	b = append(b, strings.Repeat("Z", padding)...)
	z.bytes(b)
	return e
}

// flags: an empty entry has nothing to describe.
func (e *stored) flags() uint16 {
	if e.size == 0 {
		return flags
	}
	return flags | descriptor
}

// wide is the extra field with what 32 bits cannot hold: the size, twice, and the place of the header.
func (e *stored) wide() []byte {
	var b []byte
	if e.size >= limit32 {
		b = le.AppendUint64(le.AppendUint64(b, uint64(e.size)), uint64(e.size))
	}
	if e.header >= limit32 {
		b = le.AppendUint64(b, uint64(e.header))
	}
	if b == nil {
		return nil
	}
	return append(le.AppendUint16(le.AppendUint16(nil, 1), uint16(len(b))), b...)
}

// close ends an entry.
func (z *zipFile) close(e *stored) {
	if e.size == 0 {
		return
	}
	n := int64(16)
	if e.size >= limit32 {
		n = 24
	}
	z.late(n, func() []byte {
		b := le.AppendUint32(le.AppendUint32(nil, descriptors), e.sum.value())
		if n == 24 {
			return le.AppendUint64(le.AppendUint64(b, uint64(e.size)), uint64(e.size))
		}
		return le.AppendUint32(le.AppendUint32(b, uint32(e.size)), uint32(e.size))
	})
}

// add is an entry whose content is known.
func (z *zipFile) add(name string, content []byte) {
	e := z.open(name, int64(len(content)))
	e.sum.add(content, 0)
	z.bytes(content)
	z.close(e)
}

// item is an entry that the next item fills.
func (z *zipFile) item(name string, size int64) {
	e := z.open(name, size)
	z.items = append(z.items, layout.Place{Off: z.at, Size: size, Seen: e.sum.add})
	z.at += size
	z.close(e)
}

// identify adds the entry that tells archives apart: what torch makes of the names, and of the checksums.
func (z *zipFile) identify() {
	const digits = 20
	before := z.entries
	var names []string
	for _, e := range before {
		names = append(names, e.name[len(z.root)+1:])
	}
	id := func() []byte {
		var sums uint64
		for _, e := range before {
			if e.size > 0 {
				sums = combined(sums, uint64(e.sum.value()))
			}
		}
		out := make([]byte, 0, 2*digits)
		for _, n := range []uint64{nameHash(names), sums} {
			s := strconv.FormatUint(n, 10)
			out = append(append(out, strings.Repeat("0", digits-len(s))...), s...)
		}
		return out
	}
	e := z.open(".data/serialization_id", 2*digits)
	e.sum.later = func() uint32 { return crc32.ChecksumIEEE(id()) }
	z.late(2*digits, id)
	z.close(e)
}

// finish adds the directory, and its end in both widths, as torch writes it whatever the size.
func (z *zipFile) finish(name string) *layout.Layout {
	directory := z.at
	for _, e := range z.entries {
		extra := e.wide()
		z.late(int64(centralSize+len(e.name)+len(extra)), func() []byte {
			b := le.AppendUint32(nil, centralMark)
			b = append(b, make([]byte, centralSize-4)...)
			le.PutUint16(b[8:], e.flags())
			le.PutUint32(b[16:], e.sum.value())
			le.PutUint32(b[20:], narrow(e.size))
			le.PutUint32(b[24:], narrow(e.size))
			le.PutUint16(b[28:], uint16(len(e.name)))
			le.PutUint16(b[30:], uint16(len(extra)))
			le.PutUint32(b[42:], narrow(e.header))
			return append(append(b, e.name...), extra...)
		})
	}
	size, end := z.at-directory, z.at
	n := uint64(len(z.entries))
	const madeBy, needed = 0x031e, 45
	b := le.AppendUint64(le.AppendUint32(nil, end64Mark), end64Size-12)
	b = le.AppendUint64(le.AppendUint16(le.AppendUint16(b, madeBy), needed), 0)
	for _, x := range []uint64{n, n, uint64(size), uint64(directory)} {
		b = le.AppendUint64(b, x)
	}
	b = le.AppendUint32(le.AppendUint64(le.AppendUint32(le.AppendUint32(b, locatorMark), 0), uint64(end)), 1)
	b = le.AppendUint32(le.AppendUint32(b, endMark), 0)
	count := uint16(min(n, 0xffff))
	b = le.AppendUint16(le.AppendUint16(b, count), count)
	b = le.AppendUint16(le.AppendUint32(le.AppendUint32(b, narrow(size)), narrow(directory)), 0)
	z.bytes(b)
	return &layout.Layout{Files: []layout.File{{Name: name, Size: z.at, Spans: z.spans}}, Items: z.items}
}

func narrow(n int64) uint32 { return uint32(min(n, limit32)) }
