package torch

import (
	"bytes"
	"encoding/binary"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/loratool/loratool/finding"
)

// An archive is the directory of a zip file, checked against the file before anything is read from
// an entry: readers that disagree about an archive are how malicious files slip past scanners.
type archive struct {
	file     io.ReaderAt
	path     string
	size     int64
	entries  []entry
	listed   int64 // offset of the directory
	trailing int64 // bytes after the end record
}

type entry struct {
	name     string
	method   uint16
	flags    uint16
	crc      uint32
	stored   int64
	size     int64
	header   int64 // offset of the local header
	data     int64 // offset of the content
	isFolder bool
}

const (
	endSize, end64Size, locatorSize = 22, 56, 20
	centralSize, localSize          = 46, 30

	endMark, end64Mark, locatorMark = 0x06054b50, 0x06064b50, 0x07064b50
	centralMark, localMark          = 0x02014b50, 0x04034b50
)

var le = binary.LittleEndian

func (a *archive) fail(reason, format string, args ...any) *finding.Finding {
	return finding.Errorf("container."+reason, a.path, format, args...)
}

func readArchive(file io.ReaderAt, path string, size int64) (*archive, error) {
	a := &archive{file: file, path: path, size: size}
	directory, err := a.directory()
	if err != nil {
		return nil, err
	}
	for _, step := range []func() error{
		func() error { return a.parse(directory) },
		a.checkNames, a.checkOverlap, a.checkLocals,
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return a, nil
}

func (a *archive) read(off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || off > a.size || n > a.size-off {
		return nil, a.fail("bad_zip", "the archive points outside the file").Expected(off, a.size)
	}
	b := make([]byte, n)
	if _, err := a.file.ReadAt(b, off); err != nil {
		return nil, finding.Errorf("files.unreadable", a.path, "%v", err)
	}
	return b, nil
}

// directory finds the end record and returns the central directory it points to.
func (a *archive) directory() ([]byte, error) {
	tail, err := a.read(max(0, a.size-endSize-0xffff), min(a.size, endSize+0xffff))
	if err != nil {
		return nil, err
	}
	mark := le.AppendUint32(nil, endMark)
	at := bytes.LastIndex(tail[:max(0, len(tail)-endSize+len(mark))], mark)
	if at < 0 {
		return nil, a.fail("bad_zip", "no end record: the file is cut off, or no archive").Hinted("fetch the file again")
	}
	if before := bytes.LastIndex(tail[:at], mark); before >= 0 && before+endSize <= len(tail) {
		if before+endSize+int(le.Uint16(tail[before+20:])) > at {
			return nil, a.fail("bad_zip", "one end record hides in the comment of another, so readers differ about the content")
		}
	}
	base := a.size - int64(len(tail))
	end := tail[at:]
	a.trailing = int64(len(end)) - endSize - int64(le.Uint16(end[20:]))
	if a.trailing < 0 {
		return nil, a.fail("bad_zip", "the comment reaches beyond the end of the file")
	}
	count, size, off := uint64(le.Uint16(end[10:])), uint64(le.Uint32(end[12:])), uint64(le.Uint32(end[16:]))
	disks := uint64(le.Uint16(end[4:])) | uint64(le.Uint16(end[6:]))
	here := uint64(le.Uint16(end[8:]))
	stop := base + int64(at)
	if at >= locatorSize && le.Uint32(tail[at-locatorSize:]) == locatorMark {
		stop64 := le.Uint64(tail[at-locatorSize+8:])
		if stop64 > uint64(a.size) {
			return nil, a.fail("bad_zip", "the zip64 end record lies outside the file")
		}
		end64, err := a.read(int64(stop64), end64Size)
		if err != nil {
			return nil, err
		}
		if le.Uint32(end64) != end64Mark {
			return nil, a.fail("bad_zip", "no zip64 end record where the archive says it is")
		}
		stop = int64(stop64)
		disks = uint64(le.Uint32(end64[16:])) | uint64(le.Uint32(end64[20:]))
		c, s, o := le.Uint64(end64[32:]), le.Uint64(end64[40:]), le.Uint64(end64[48:])
		if count != 0xffff && count != c || size != 0xffffffff && size != s || off != 0xffffffff && off != o {
			return nil, a.fail("zip_inconsistent", "the two end records of the archive contradict each other")
		}
		here, count, size, off = le.Uint64(end64[24:]), c, s, o
	}
	switch {
	case disks != 0 || here != count:
		return nil, a.fail("bad_zip", "the archive is one part of several")
	case off > uint64(stop) || size != uint64(stop)-off:
		return nil, a.fail("bad_zip", "the directory does not lie before the end record").Expected(off, uint64(stop)-min(size, uint64(stop)))
	case count > size/centralSize:
		return nil, a.fail("bad_zip", "%d entries in a directory of %d bytes", count, size)
	}
	a.entries, a.listed = make([]entry, 0, count), int64(off)
	return a.read(int64(off), int64(size))
}

func (a *archive) parse(b []byte) error {
	for len(a.entries) < cap(a.entries) {
		if len(b) < centralSize || le.Uint32(b) != centralMark {
			return a.fail("bad_zip", "entry %d of the directory is none", len(a.entries))
		}
		nameLen, extraLen, commentLen := int(le.Uint16(b[28:])), int(le.Uint16(b[30:])), int(le.Uint16(b[32:]))
		whole := centralSize + nameLen + extraLen + commentLen
		if len(b) < whole {
			return a.fail("bad_zip", "entry %d reaches beyond the directory", len(a.entries))
		}
		e := entry{
			flags: le.Uint16(b[8:]), method: le.Uint16(b[10:]), crc: le.Uint32(b[16:]),
			name: string(b[centralSize:][:nameLen]),
		}
		stored, size, header := uint64(le.Uint32(b[20:])), uint64(le.Uint32(b[24:])), uint64(le.Uint32(b[42:]))
		if !wide(b[centralSize+nameLen:][:extraLen], &size, &stored, &header) {
			return a.fail("bad_zip", "entry %q lacks its 64-bit sizes", e.name)
		}
		if stored > uint64(a.size) || header > uint64(a.size) || size > 1<<62 {
			return a.fail("bad_zip", "entry %q lies outside the file", e.name)
		}
		e.stored, e.size, e.header = int64(stored), int64(size), int64(header)
		e.isFolder = strings.HasSuffix(e.name, "/") && size == 0
		a.entries = append(a.entries, e)
		b = b[whole:]
	}
	if len(b) > 0 {
		return a.fail("bad_zip", "%d bytes of the directory belong to no entry", len(b))
	}
	return nil
}

// wide replaces the values that do not fit 32 bits by those of the zip64 field, in its order.
func wide(extra []byte, values ...*uint64) bool {
	var field []byte
	for len(extra) >= 4 {
		n := int(le.Uint16(extra[2:]))
		if n > len(extra)-4 {
			break
		}
		if le.Uint16(extra) == 1 {
			field = extra[4:][:n]
		}
		extra = extra[4+n:]
	}
	for _, v := range values {
		if *v != 0xffffffff {
			continue
		}
		if len(field) < 8 {
			return false
		}
		*v, field = le.Uint64(field), field[8:]
	}
	return true
}

func (a *archive) checkNames() error {
	seen := make(map[string]int, len(a.entries))
	for i, e := range a.entries {
		if e.name == "" || strings.ContainsAny(e.name, "\\\x00") || e.name[0] == '/' || !utf8.ValidString(e.name) ||
			slices.ContainsFunc(strings.Split(strings.TrimSuffix(e.name, "/"), "/"), func(s string) bool { return s == "" || s == "." || s == ".." }) {
			return a.fail("bad_entry_name", "an entry is called %q", e.name)
		}
		if first, twice := seen[e.name]; twice {
			return a.duplicate(a.entries[first], e)
		}
		seen[e.name] = i
		if e.flags&1 != 0 {
			return a.fail("encrypted", "entry %q is marked as encrypted", e.name)
		}
		if e.method != 0 && e.method != 8 {
			return a.fail("bad_zip", "entry %q is compressed by method %d", e.name, e.method)
		}
		if e.method == 0 && e.stored != e.size {
			return a.fail("zip_inconsistent", "entry %q is stored, but its two sizes differ", e.name).Expected(e.stored, e.size)
		}
	}
	return nil
}

// duplicate reports two entries of one name, and what a pickle among them would call.
func (a *archive) duplicate(one, other entry) error {
	f := a.fail("duplicate_entry", "two entries are called %q, so readers differ about the content", one.name)
	for _, e := range []entry{one, other} {
		if name := a.suspect(e); name != "" {
			f.Message += "; one of them names \"" + name + "\""
		}
	}
	return f
}

// suspect is the forbidden global that an entry names, should it be a pickle.
func (a *archive) suspect(e entry) string {
	const enough = 64 << 10
	if e.method != 0 || e.stored > a.size-e.header {
		return ""
	}
	local, err := a.read(e.header, localSize)
	if err != nil {
		return ""
	}
	at := e.header + localSize + int64(le.Uint16(local[26:])) + int64(le.Uint16(local[28:]))
	return suspect(io.NewSectionReader(a.file, at, e.stored), min(e.stored, enough))
}

// checkOverlap refuses entries that share bytes, going by the directory.
func (a *archive) checkOverlap() error {
	order := make([]*entry, len(a.entries))
	for i := range a.entries {
		order[i] = &a.entries[i]
	}
	slices.SortStableFunc(order, func(x, y *entry) int {
		switch {
		case x.header < y.header:
			return -1
		case x.header > y.header:
			return 1
		}
		return 0
	})
	for i := 1; i < len(order); i++ {
		if e := order[i-1]; order[i].header < e.header+localSize+int64(len(e.name))+e.stored {
			return a.fail("overlap", "entries %q and %q share bytes of the file", e.name, order[i].name)
		}
	}
	return nil
}

// checkLocals compares each local header with the directory and finds where the content begins.
func (a *archive) checkLocals() error {
	for i := range a.entries {
		e := &a.entries[i]
		fixed, err := a.read(e.header, localSize)
		if err != nil {
			return err
		}
		if le.Uint32(fixed) != localMark {
			return a.fail("bad_zip", "entry %q has no local header", e.name)
		}
		nameLen, extraLen := int64(le.Uint16(fixed[26:])), int64(le.Uint16(fixed[28:]))
		rest, err := a.read(e.header+localSize, nameLen+extraLen)
		if err != nil {
			return err
		}
		if name := string(rest[:nameLen]); name != e.name {
			return a.fail("zip_inconsistent", "an entry is %q in the directory and %q in its own header", e.name, name)
		}
		flags, method, crc := le.Uint16(fixed[6:]), le.Uint16(fixed[8:]), le.Uint32(fixed[14:])
		stored, size := uint64(le.Uint32(fixed[18:])), uint64(le.Uint32(fixed[22:]))
		wide(rest[nameLen:], &size, &stored)
		// With bit 3 the header was written before the sizes were known: they are left open there.
		unknown := func(n uint64, known int64) bool { return n == 0 || n == 0xffffffff || n == uint64(known) }
		later := flags&8 != 0 && crc == 0 && unknown(stored, e.stored) && unknown(size, e.size)
		if method != e.method || flags&1 != 0 || !later && (crc != e.crc || stored != uint64(e.stored) || size != uint64(e.size)) {
			return a.fail("zip_inconsistent", "the directory and the header of entry %q contradict each other", e.name)
		}
		e.data = e.header + localSize + nameLen + extraLen
		if e.stored > a.size-e.data {
			return a.fail("truncated", "entry %q reaches beyond the end of the file", e.name)
		}
	}
	slices.SortStableFunc(a.entries, func(x, y entry) int {
		if x.header < y.header {
			return -1
		}
		return 1
	})
	for i, e := range a.entries {
		next, what := a.listed, "the directory"
		if i+1 < len(a.entries) {
			next, what = a.entries[i+1].header, "entry "+strconv.Quote(a.entries[i+1].name)
		}
		if next < e.data+e.stored {
			return a.fail("overlap", "entry %q and %s share bytes of the file", e.name, what)
		}
	}
	return nil
}

// record makes an entry's content readable.
func (a *archive) record(e entry) *record {
	return &record{file: a.file, path: a.path, name: e.name, off: e.data, stored: e.stored, size: e.size, crc: e.crc,
		checked: true, deflated: e.method == 8}
}
