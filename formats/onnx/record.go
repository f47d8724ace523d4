package onnx

import (
	"fmt"
	"math"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/loratool/loratool/tensor"
)

// A Kind says what role a tensor plays in a model.
type Kind string

// The kinds of tensors.
const (
	Initializer Kind = "initializer" // of a graph
	Attribute   Kind = "attribute"   // of a node, for example of a Constant
	Sparse      Kind = "sparse"      // values or indices of a sparse tensor
)

// Info is what an ONNX file says of a tensor beside its type, shape and data.
type Info struct {
	// Name is the name in the file. The names of Model.Tensors differ from it outside the main graph,
	// where a scope stands before the name to make them unique.
	Name  string
	Scope string
	Kind  Kind
	Props [][2]string
	// Location is the name of the external file that holds the data, "" for data in the model itself.
	Location string
}

// A storage is how a TensorProto holds its data.
type storage int

const (
	storeNone     storage = iota // no elements
	storeRaw                     // raw_data
	storePacked                  // float_data or double_data in one piece: the same bytes as raw_data
	storeTyped                   // a typed field whose bytes differ from raw_data
	storeExternal                // another file
)

// A record is one TensorProto.
type record struct {
	own   string // the name in the file
	scope string
	kind  Kind
	graph *Graph // of initializers
	props [][2]string
	index int // in Model.Tensors

	parts    []*message // more than one where the message comes in pieces
	dataType int64
	dims     tensor.Shape
	elements int64
	size     int64 // of the data as raw_data would hold it

	store    storage
	field    int   // the typed field
	off, len int64 // of raw_data or of the one packed field
	external [][2]string
	file     *dataFile
}

// values is what a TensorProto says about where its data is.
type values struct {
	raw, float, double field // the last one seen
	chunks             [fieldUint64 + 1]int
	count              [fieldUint64 + 1]int64 // values of each typed field
	strings            int64                  // bytes of all strings
	location           int64
}

// tensor reads a TensorProto, which comes in one or more pieces.
func (p *parser) tensor(parts []*message, depth int, scope string) (*record, error) {
	r := &record{parts: parts, scope: scope, dataType: -1}
	var v values
	for _, m := range parts {
		err := p.walk(m, depth, func(f field) (err error) { return p.tensorField(r, &v, m, f, depth) })
		if err != nil {
			return nil, err
		}
	}
	if err := p.checkShape(r); err != nil {
		return nil, err
	}
	if err := p.checkData(r, &v); err != nil {
		return nil, err
	}
	p.records = append(p.records, r)
	return r, nil
}

func (p *parser) tensorField(r *record, v *values, m *message, f field, depth int) (err error) {
	var n int64
	switch f.num {
	case 1:
		r.dims, err = p.numbers(f, r.dims, maxRank, func(n int) error {
			return p.reject("rank_too_big", "a tensor has more than %d dimensions", maxRank).In(r.own).Expected(fmt.Sprintf("%d or more", n), maxRank)
		})
	case 2:
		n, err := p.number(f)
		r.dataType = int64(int32(n)) // as protobuf reads an int32
		return err
	case 3:
		return p.reject("segment", "a tensor in segments, which nothing supports").In(r.own)
	case fieldFloat, fieldDouble:
		width, typ := int64(4), protowire.Fixed32Type
		if f.num == fieldDouble {
			width, typ = 8, protowire.Fixed64Type
		}
		n = 1
		if f.typ != typ {
			if err = p.want(f, protowire.BytesType); err != nil {
				return err
			}
			if n = f.n / width; f.n%width != 0 {
				return p.reject("bad_protobuf", "packed numbers of %d bytes at byte %d", f.n, f.at).In(r.own).Expected(f.n, fmt.Sprintf("a multiple of %d", width))
			}
		}
		if f.num == fieldFloat {
			v.float = f
		} else {
			v.double = f
		}
	case fieldInt32, fieldInt64, fieldUint64:
		n = 1
		if f.typ != protowire.VarintType {
			if err = p.want(f, protowire.BytesType); err == nil {
				n, err = p.count(f)
			}
		}
	case fieldString:
		err = p.want(f, protowire.BytesType)
		n = 1
		v.strings += f.n
	case 8:
		r.own, err = p.text(f)
	case fieldRaw:
		err = p.want(f, protowire.BytesType)
		v.raw = f
	case 13, 16:
		if err = p.want(f, protowire.BytesType); err != nil {
			return err
		}
		if f.num == 16 {
			r.props, err = p.prop(r.props, m.child(f), depth+1)
			return err
		}
		var kv [2]string
		kv, err = p.pair(m.child(f), depth+1)
		r.external = append(r.external, kv)
	case 14:
		n, err := p.number(f)
		v.location = int64(int32(n))
		return err
	}
	if n > 0 {
		v.count[f.num] += n
		v.chunks[f.num]++
	}
	return err
}

// checkShape checks the element type and the shape, and computes the size.
func (p *parser) checkShape(r *record) error {
	switch {
	case r.dataType <= 0:
		return p.reject("bad_dtype", "a tensor without a data type").In(r.own).Expected("UNDEFINED", "1 to 28")
	case DType(r.dataType) == tensor.Invalid:
		return p.reject("bad_dtype", "an unknown data type").In(r.own).Expected(r.dataType, "1 to 28")
	}
	for _, d := range r.dims {
		if d < 0 {
			return p.reject("bad_shape", "a negative dimension").In(r.own).Expected(r.dims, "no dimension below 0")
		}
	}
	var err error
	if r.elements, err = r.dims.Elements(); err == nil && DType(r.dataType) != tensor.String {
		r.size, err = rawSize(tensor.Spec{DType: DType(r.dataType), Shape: r.dims})
	}
	if err != nil || r.elements > math.MaxInt64/16 {
		return p.reject("overflow", "the size of a tensor of shape %v overflows", r.dims).In(r.own)
	}
	return nil
}

// checkData finds the one place the data is in and compares its size with the shape.
func (p *parser) checkData(r *record, v *values) error {
	et := elementTypes[r.dataType]
	var places []int
	for _, n := range []int{fieldFloat, fieldInt32, fieldString, fieldInt64, fieldDouble, fieldUint64} {
		if v.count[n] > 0 {
			places = append(places, n)
		}
	}
	if v.raw.n > 0 {
		places = append(places, fieldRaw)
	}
	switch v.location {
	case 0:
		if len(r.external) > 0 {
			p.warn(p.warning("ambiguous_data", "external_data is given, but data_location says that the data is in the model").In(r.own))
		}
	case 1:
		if err := p.external(r); err != nil {
			return err
		}
		if len(places) > 0 {
			return p.reject("ambiguous_data", "the data is in the model and in an external file").In(r.own).Expected(fieldNames[places[0]]+" and external_data", "one of them")
		}
		if et.dtype == tensor.String {
			return p.reject("bad_dtype", "strings in an external file").In(r.own).Expected("external_data", "string_data")
		}
		r.store = storeExternal
		return nil
	default:
		return p.reject("bad_field", "an unknown data_location").In(r.own).Expected(v.location, "0 or 1")
	}
	switch {
	case len(places) > 1:
		return p.reject("ambiguous_data", "a tensor has data in two fields").In(r.own).Expected(fieldNames[places[0]]+" and "+fieldNames[places[1]], "one of them")
	case len(places) == 0 && r.elements > 0:
		return p.reject("size_mismatch", "a tensor without data").In(r.own).Expected("0 bytes", fmt.Sprintf("%d elements", r.elements))
	case len(places) == 0:
		return nil
	case places[0] == fieldRaw:
		return p.checkRaw(r, v)
	}
	r.field = places[0]
	if r.field != et.field {
		return p.reject("bad_field", "the data of a %s tensor is in %s", et.dtype, fieldNames[r.field]).In(r.own).Expected(fieldNames[r.field], fieldNames[et.field]+" or raw_data")
	}
	want := et.values(r.elements)
	if got := v.count[r.field]; got != want {
		return p.reject("size_mismatch", "%s does not fit the shape %v", fieldNames[r.field], r.dims).In(r.own).
			Expected(fmt.Sprintf("%d values", got), fmt.Sprintf("%d values", want))
	}
	r.store = storeTyped
	if v.chunks[r.field] == 1 {
		for _, f := range []field{v.float, v.double} {
			if f.num != 0 && int(f.num) == r.field && f.typ == protowire.BytesType {
				r.store, r.off, r.len = storePacked, f.off, f.n
			}
		}
	}
	if r.field == fieldString {
		r.size = v.strings + 4*v.count[fieldString]
	}
	return nil
}

func (p *parser) checkRaw(r *record, v *values) error {
	if DType(r.dataType) == tensor.String {
		return p.reject("bad_dtype", "strings in raw_data").In(r.own).Expected("raw_data", "string_data")
	}
	r.store, r.off, r.len = storeRaw, v.raw.off, v.raw.n
	switch {
	case r.len < r.size:
		return p.reject("size_mismatch", "raw_data does not fit the shape %v", r.dims).In(r.own).
			Expected(fmt.Sprintf("%d bytes", r.len), fmt.Sprintf("%d bytes", r.size))
	case r.len > r.size:
		p.warn(p.warning("size_mismatch", "raw_data is longer than the shape %v needs", r.dims).In(r.own).
			Expected(fmt.Sprintf("%d bytes", r.len), fmt.Sprintf("%d bytes", r.size)))
	}
	return nil
}

var fieldNames = map[int]string{
	fieldFloat: "float_data", fieldInt32: "int32_data", fieldString: "string_data", fieldInt64: "int64_data",
	fieldRaw: "raw_data", fieldDouble: "double_data", fieldUint64: "uint64_data",
}

func float32FromBits(v uint64) float32 { return math.Float32frombits(uint32(v)) }
