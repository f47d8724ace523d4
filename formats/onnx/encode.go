package onnx

import (
	"slices"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
)

// A numbered chunk list is one encoded field, tag included.
type encoded struct {
	num    protowire.Number
	chunks []chunk
}

func varintField(num protowire.Number, v int64) encoded {
	return encoded{num, []chunk{literal(protowire.AppendVarint(protowire.AppendTag(nil, num, protowire.VarintType), uint64(v)))}}
}

func bytesField(num protowire.Number, content ...chunk) encoded {
	head := protowire.AppendTag(nil, num, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(length(content)))
	return encoded{num, append([]chunk{literal(head)}, content...)}
}

func stringField(num protowire.Number, s string) encoded { return bytesField(num, literal([]byte(s))) }

// pairField encodes a StringStringEntryProto.
func pairField(num protowire.Number, key, value string) encoded {
	b := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), key)
	b = protowire.AppendString(protowire.AppendTag(b, 2, protowire.BytesType), value)
	return bytesField(num, literal(b))
}

// A tensorForm is how a TensorProto is to be written: everything that is not named here stays.
type tensorForm struct {
	rename   string // "" keeps the name
	dataType int64
	data     chunk // the data as raw_data, unless external
	external bool
	location string
	offset   int64
}

// encodeTensor writes the content of a TensorProto anew, with its data in raw_data or external_data.
// Fields come in the order of their numbers, as protobuf libraries write them; fields this program does
// not know keep their bytes.
func (s *source) encodeTensor(r *record, form tensorForm) ([]chunk, error) {
	fields := []encoded{varintField(2, form.dataType)}
	if form.rename != "" {
		fields = append(fields, stringField(8, form.rename))
	}
	fields = append(fields, form.dataFields()...)
	err := s.walk(r.parts[0], 0, func(f field) error {
		switch f.num {
		case 2, fieldFloat, fieldInt32, fieldString, fieldInt64, fieldRaw, fieldDouble, fieldUint64, 13, 14:
			return nil
		case 8:
			if form.rename != "" {
				return nil
			}
		}
		fields = append(fields, encoded{f.num, []chunk{{src: s.r, off: f.at, n: f.end() - f.at}}})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return inOrder(fields), nil
}

// dataFields are the fields of a TensorProto that hold its data or say where it is.
func (form tensorForm) dataFields() (fields []encoded) {
	switch {
	case form.external:
		for _, kv := range [][2]string{
			{"location", form.location},
			{"offset", strconv.FormatInt(form.offset, 10)},
			{"length", strconv.FormatInt(form.data.n, 10)},
		} {
			fields = append(fields, pairField(13, kv[0], kv[1]))
		}
		fields = append(fields, varintField(14, 1))
	case form.data.n > 0:
		fields = append(fields, bytesField(fieldRaw, form.data))
	}
	return fields
}

// inOrder is the content of a message with the fields in the order of their numbers.
func inOrder(fields []encoded) []chunk {
	slices.SortStableFunc(fields, func(a, b encoded) int { return int(a.num) - int(b.num) })
	var w []chunk
	for _, f := range fields {
		w = append(w, f.chunks...)
	}
	return w
}
