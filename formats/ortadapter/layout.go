package ortadapter

import (
	"encoding/binary"
	"strings"
	"unicode/utf8"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/tensor"
)

const (
	dataAlign = 64
	vtable    = 12 // bytes of a vtable with four fields
	tableSize = 20 // bytes of a table with four fields of four bytes
	rootAt    = 8 + 2*vtable
)

// Layout lays out an adapter file with these parameters in this order, their data 64-aligned. The
// format version is 1 whatever the header says. ONNX Runtime wants names, at least one dimension, and
// plain types of 8 bits or more; everything else is refused. The format has no place for provenance.
func Layout(h Header, specs []tensor.Spec, opt layout.Options) (*layout.Layout, error) {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, rootAt)
	b = append(b, identifier...)
	for range 2 { // the vtables of the root and of the parameters are alike
		for _, v := range []uint16{vtable, tableSize, 4, 8, 12, 16} {
			b = le.AppendUint16(b, v)
		}
	}
	root := len(b)
	b = le.AppendUint32(b, uint32(root-8))
	for _, v := range []int32{formatVersion, h.AdapterVersion, h.ModelVersion} {
		b = le.AppendUint32(b, uint32(v))
	}
	b = le.AppendUint32(b, 4) // the vector of parameters is next
	b = le.AppendUint32(b, uint32(len(specs)))
	vector := len(b)
	b = append(b, make([]byte, 4*len(specs))...)
	point := func(from int) { le.PutUint32(b[from:], uint32(len(b)-from)) }
	align := func(n, rest int) {
		for len(b)%n != rest {
			b = append(b, 0)
		}
	}
	raw := make([]int, len(specs)) // where the offset to the data stands
	names := map[string]bool{}
	for i, s := range specs {
		if err := writable(s, opt.Name, names); err != nil {
			return nil, err
		}
		align(4, 0)
		point(vector + 4*i)
		at := len(b)
		b = le.AppendUint32(b, uint32(at-8-vtable))
		b = append(b, make([]byte, tableSize-4)...)
		le.PutUint32(b[at+12:], uint32(onnx.DataType(s.DType)))
		raw[i] = at + 16
		point(at + 4)
		b = le.AppendUint32(b, uint32(len(s.Name)))
		b = append(append(b, s.Name...), 0)
		align(8, 4) // so that the dimensions are 8-aligned
		point(at + 8)
		b = le.AppendUint32(b, uint32(len(s.Shape)))
		for _, d := range s.Shape {
			b = le.AppendUint64(b, uint64(d))
		}
		if len(b) > maxFile {
			return nil, tooLarge(opt.Name)
		}
	}
	end := int64(len(b))
	l := &layout.Layout{}
	spans := []layout.Span{layout.Bytes(0, b)}
	for i, s := range specs {
		size, err := s.Bytes()
		if err != nil {
			return nil, finding.Errorf("output.bad_shape", opt.Name, "%v", err).In(s.Name)
		}
		at := (end + 4 + dataAlign - 1) / dataAlign * dataAlign
		if size > maxFile-at {
			return nil, tooLarge(opt.Name)
		}
		le.PutUint32(b[raw[i]:], uint32(at-4-int64(raw[i])))
		spans = append(spans, layout.Bytes(at-4, le.AppendUint32(nil, uint32(size))))
		l.Items = append(l.Items, layout.Place{Off: at, Size: size})
		end = at + size
	}
	l.Files = []layout.File{{Name: opt.Name, Size: end, Spans: spans}}
	return l, nil
}

func writable(s tensor.Spec, file string, names map[string]bool) error {
	switch {
	case s.Name == "" || len(s.Name) > maxName || !utf8.ValidString(s.Name) || strings.ContainsRune(s.Name, 0):
		return finding.Errorf("output.bad_name", file, "a parameter's name is empty, too long or no text").In(s.Name)
	case names[s.Name]:
		return finding.Errorf("output.duplicate_name", file, "two parameters have the same name").In(s.Name)
	case !loadable(s.DType):
		return finding.Errorf("output.bad_dtype", file, "ONNX Runtime loads no adapter with this type").In(s.Name).Expected(s.DType, "a float of 8 to 64 bits or an integer of 8 bits or more")
	case len(s.Shape) == 0 || len(s.Shape) > maxRank:
		return finding.Errorf("output.bad_shape", file, "ONNX Runtime loads no adapter with this shape").In(s.Name).Expected(s.Shape, "1 to 64 dimensions")
	}
	names[s.Name] = true
	return nil
}

func tooLarge(file string) error {
	return finding.Errorf("output.too_large", file, "the adapter is larger than 2 GiB, which the format cannot hold")
}
