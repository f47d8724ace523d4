package safetensors

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

const (
	lengthSize = 8           // the header's length, before the header
	maxHeader  = 100_000_000 // the reference's limit
)

// A header is what a file says about itself, checked against its size.
type header struct {
	tensors  []entry     // in data order
	metadata [][2]string // sorted by key; nil when the file has none, empty when it has an empty map
	data     int64       // where the data begins
	warnings []finding.Finding
}

// An entry is a tensor and its section of the data.
type entry struct {
	tensor.Spec
	begin, end uint64
	size       uint64 // that type and shape ask for
	reason     string // why they have no size
}

// readHeader reads and checks the header of a file of size bytes.
func readHeader(file string, r io.ReaderAt, size int64) (*header, error) {
	var first [64]byte
	start := first[:min(size, int64(len(first)))]
	if _, err := r.ReadAt(start, 0); err != nil && err != io.EOF {
		return nil, unreadable(file, err)
	}
	if isPointer(start) {
		return nil, pointer(file)
	}
	if size < lengthSize {
		return nil, finding.Errorf("container.header_too_small", file, "the file is too short to hold the length of a header").
			Expected(fmt.Sprintf("%d bytes", size), "8 bytes or more").Hinted("download it again")
	}
	n := binary.LittleEndian.Uint64(start)
	if what, hint := sniff(start, n > maxHeader); what != "" && int64(min(n, math.MaxInt64)) > size-lengthSize {
		return nil, finding.Errorf("container.header_too_large", file, "this is %s, not a safetensors file", what).
			Expected(fmt.Sprintf("a header of %d bytes", n), fmt.Sprintf("at most %d", min(maxHeader, size-lengthSize))).Hinted(hint)
	}
	if n > maxHeader {
		return nil, finding.Errorf("container.header_too_large", file, "the header is larger than the format allows").
			Expected(fmt.Sprintf("%d bytes", n), fmt.Sprintf("at most %d", maxHeader))
	}
	if int64(n) > size-lengthSize {
		return nil, finding.Errorf("container.header_truncated", file, "the file ends inside its header").
			Expected(fmt.Sprintf("%d bytes", size), fmt.Sprintf("at least %d", lengthSize+n)).Hinted("the download is incomplete; fetch it again")
	}
	buf := make([]byte, n)
	if _, err := io.ReadFull(io.NewSectionReader(r, lengthSize, int64(n)), buf); err != nil {
		return nil, unreadable(file, err)
	}
	if !utf8.Valid(buf) {
		return nil, finding.Errorf("container.bad_utf8", file, "the header is not UTF-8")
	}
	h := &header{data: lengthSize + int64(n)}
	p := parser{scanner: scanner{file: file, text: string(buf)}, h: h, warn: warnings{file: file}}
	if err := p.parse(); err != nil {
		return nil, err
	}
	if err := p.checkData(size - h.data); err != nil {
		return nil, err
	}
	p.checkNames()
	h.warnings = p.warn.all()
	return h, nil
}

func unreadable(file string, err error) error {
	return finding.Errorf("container.unreadable", file, "cannot read the file: %s", err)
}

// A parser turns the header's text into entries.
type parser struct {
	scanner
	h    *header
	warn warnings
	dims []uint64 // of the tensor at hand
	// Shapes share one array; a section of it is never written again once it belongs to a shape.
	shapes []int64
}

func (p *parser) parse() error {
	if p.text == "" {
		return p.fail("bad_json", "the header is empty")
	}
	if p.peek() != '{' {
		return p.unexpected("the '{' that begins a header")
	}
	if p.pos > 0 {
		p.warn.add("header_not_brace", "", "the header does not begin with '{' but with white space")
	}
	// The shortest entry is 50 bytes long, so the text bounds what is set aside here.
	guess := min(strings.Count(p.text, `"dtype"`), len(p.text)/50)
	p.h.tensors = make([]entry, 0, guess)
	seen := make(map[string]struct{}, guess)
	err := p.object(func(key string) error {
		if _, ok := seen[key]; ok {
			return p.fail("duplicate_key", "the key %q appears twice, found again", key)
		}
		seen[key] = struct{}{}
		if key == "__metadata__" {
			return p.metadata()
		}
		return p.entry(key)
	})
	if err != nil {
		return err
	}
	return p.end()
}

func (p *parser) metadata() error {
	if p.literal("null") {
		p.warn.add("metadata_null", "", "__metadata__ is null")
		return nil
	}
	if p.peek() != '{' {
		if err := p.skip(); err != nil {
			return err
		}
		return p.fail("bad_metadata", "__metadata__ is not a map of strings, found a value that ends")
	}
	m := [][2]string{}
	seen := map[string]struct{}{}
	err := p.object(func(key string) error {
		if _, ok := seen[key]; ok {
			return p.fail("duplicate_key", "the metadata key %q appears twice, found again", key)
		}
		seen[key] = struct{}{}
		if p.peek() != '"' {
			return p.fail("bad_metadata", "the metadata value of %q is not a string", key)
		}
		value, err := p.str()
		m = append(m, [2]string{key, value})
		return err
	})
	slices.SortFunc(m, func(a, b [2]string) int { return cmp.Compare(a[0], b[0]) })
	p.h.metadata = m
	return err
}

// entry reads the entry of one tensor and checks it as far as it can be checked alone.
func (p *parser) entry(name string) error {
	bad := func(reason, format string, a ...any) error { return p.fail(reason, format, a...).In(name) }
	if p.peek() != '{' {
		if err := p.skip(); err != nil {
			return err
		}
		return bad("bad_tensor_entry", "the tensor's entry is not an object, found one that ends")
	}
	const fDtype, fShape, fOffsets = 1, 2, 4
	have, kind := 0, 0
	var offsets [2]uint64
	err := p.object(func(field string) error {
		bit := 0
		switch field {
		case "dtype":
			bit = fDtype
		case "shape":
			bit = fShape
		case "data_offsets":
			bit = fOffsets
		default:
			p.warn.add("unknown_field", name, fmt.Sprintf("the tensor's entry has the unknown field %q, which is ignored", field))
			return p.skip()
		}
		if have&bit != 0 {
			return bad("duplicate_field", "%s appears twice, found again", field)
		}
		have |= bit
		c := p.peek()
		if p.literal("null") {
			return bad("bad_tensor_entry", "%s is null", field)
		}
		if strings.IndexByte(",:]}'", c) >= 0 || p.pos >= len(p.text) {
			return p.unexpected("a value").In(name)
		}
		var err error
		switch bit {
		case fDtype:
			if c != '"' {
				return bad("bad_dtype", "dtype is not a string")
			}
			var word string
			if word, err = p.str(); err != nil {
				return err
			}
			var ok bool
			if kind, ok = kindByName[word]; !ok {
				return bad("bad_dtype", "the type %q is not known", word)
			}
		case fShape:
			p.dims, err = p.integers(name, p.dims[:0], "bad_shape", "shape", math.MaxInt)
		case fOffsets:
			var two []uint64
			if two, err = p.integers(name, offsets[:0], "bad_offsets", "data_offsets", 2); err == nil && (len(two) != 2 || two[0] > two[1]) {
				return bad("bad_offsets", "data_offsets are %v, two ascending numbers expected", two)
			}
		}
		return err
	})
	if err != nil {
		if f := finding.Of(err); f != nil && f.Tensor == "" {
			f.Tensor = name
		}
		return err
	}
	for i, field := range []string{"dtype", "shape", "data_offsets"} {
		if have>>i&1 == 0 {
			return bad("bad_tensor_entry", "%s is missing", field)
		}
	}
	e := entry{Spec: tensor.Spec{Name: name, DType: kinds[kind].dtype, Shape: p.shape(name)}, begin: offsets[0], end: offsets[1]}
	e.size, e.reason = dataSize(kinds[kind].bits, p.dims)
	p.h.tensors = append(p.h.tensors, e)
	return nil
}

// integers reads an array of at most limit integers of 64 bits into the slice to.
func (p *parser) integers(name string, to []uint64, reason, field string, limit int) ([]uint64, error) {
	if p.peek() != '[' {
		return to, p.fail(reason, "%s is not a list of integers", field)
	}
	err := p.array(func() error {
		n, ok := p.uint()
		switch {
		case !ok && (p.pos >= len(p.text) || p.text[p.pos] == ',' || p.text[p.pos] == '}'):
			return p.unexpected("a number")
		case !ok:
			return p.fail(reason, "%s holds something that is not an unsigned integer of 64 bits", field)
		case len(to) == limit:
			return p.fail(reason, "%s has more than %d numbers", field, limit)
		}
		to = append(to, n)
		return nil
	})
	return to, err
}

// shape turns the dimensions at hand into a Shape. Dimensions beyond int64 can only belong to a
// tensor without elements (or to one that is refused later); they become the largest int64.
func (p *parser) shape(name string) tensor.Shape {
	from := len(p.shapes)
	zero, product := false, uint64(1)
	for _, d := range p.dims {
		zero = zero || d == 0
		if d != 0 && product != 0 {
			if product > math.MaxInt64/d {
				product = 0
			} else {
				product *= d
			}
		}
		p.shapes = append(p.shapes, int64(min(d, math.MaxInt64)))
	}
	if zero && product == 0 {
		p.warn.add("shape_overflow", name, fmt.Sprintf("the tensor is empty, but its other dimensions overflow 64 bits: %v", p.dims))
	}
	return tensor.Shape(p.shapes[from:len(p.shapes):len(p.shapes)])
}

// checkData makes sure that the tensors fill the data section: one after the other, without gap or
// overlap, each as large as its type and shape say, and the last up to the end of the file.
func (p *parser) checkData(available int64) error {
	ts := p.h.tensors
	slices.SortStableFunc(ts, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.begin, b.begin), cmp.Compare(a.end, b.end))
	})
	bad := func(reason string, e entry, format string, a ...any) *finding.Finding {
		return finding.Errorf("container."+reason, p.file, format, a...).In(e.Name)
	}
	end := uint64(0)
	for i, e := range ts {
		got := fmt.Sprintf("[%d, %d]", e.begin, e.end)
		switch {
		case e.begin > end:
			return bad("hole", e, "%d bytes before the tensor's data belong to no tensor", e.begin-end).Expected("data_offsets "+got, fmt.Sprintf("a begin of %d", end))
		case e.begin < end:
			return bad("overlap", e, "the tensor's data overlaps that of %q", ts[i-1].Name).Expected("data_offsets "+got, fmt.Sprintf("a begin of %d", end))
		case e.reason == overflow:
			return bad(overflow, e, "the size of %s%v overflows 64 bits", e.DType, e.Shape)
		case e.reason == misaligned:
			return bad(misaligned, e, "%s%v does not fill whole bytes", e.DType, e.Shape)
		case e.end-e.begin != e.size:
			return bad("size_mismatch", e, "the tensor's data has not the size of %s%v", e.DType, e.Shape).
				Expected(fmt.Sprintf("%d bytes", e.end-e.begin), fmt.Sprintf("%d", e.size))
		}
		end = e.end
	}
	switch have := uint64(available); {
	case end > have:
		return finding.Errorf("container.truncated", p.file, "the file is %d bytes short", end-have).
			Expected(fmt.Sprintf("%d bytes of data", have), fmt.Sprintf("%d", end)).Hinted("the download is incomplete; fetch it again")
	case end < have:
		return finding.Errorf("container.trailing_bytes", p.file, "%d bytes after the last tensor belong to nothing", have-end).
			Expected(fmt.Sprintf("%d bytes of data", have), fmt.Sprintf("%d", end))
	}
	return nil
}
