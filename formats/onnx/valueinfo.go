package onnx

import (
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/loratool/loratool/tensor"
)

// A Value is the declaration of a graph's input, output or inner value.
type Value struct {
	Name string
	// Kind is "tensor", "sparse_tensor", "sequence", "map", "optional", or "" where no type is given.
	// The element type and the dimensions belong to the first two.
	Kind  string
	DType tensor.DType
	Dims  []Dim // nil where no shape is given
	Props [][2]string

	at *message
}

// A Dim is one dimension: a size, or -1 and perhaps a name.
type Dim struct {
	Size  int64
	Param string
}

// value reads a ValueInfoProto.
func (p *parser) value(to []Value, m *message, depth int, named bool) ([]Value, error) {
	v := Value{at: m}
	err := p.walk(m, depth, func(f field) (err error) {
		switch f.num {
		case 1:
			v.Name, err = p.text(f)
		case 2:
			if err = p.want(f, protowire.BytesType); err == nil {
				err = p.valueType(&v, m.child(f), depth+1)
			}
		case 4:
			if err = p.want(f, protowire.BytesType); err == nil {
				v.Props, err = p.prop(v.Props, m.child(f), depth+1)
			}
		}
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case v.Name != "":
		return append(to, v), nil
	case named:
		return nil, p.reject("graph_rules", "an input or output of a graph has no name")
	}
	return to, nil
}

// valueType reads a TypeProto. Types inside sequences, maps and optionals are walked for their depth only.
func (p *parser) valueType(v *Value, m *message, depth int) error {
	return p.walk(m, depth, func(f field) error {
		kind := map[protowire.Number]string{1: "tensor", 4: "sequence", 5: "map", 8: "sparse_tensor", 9: "optional"}[f.num]
		if kind == "" {
			return nil
		}
		if err := p.want(f, protowire.BytesType); err != nil {
			return err
		}
		v.Kind = kind
		inner := m.child(f)
		return p.walk(inner, depth+1, func(f field) (err error) {
			switch {
			case f.typ != protowire.BytesType:
				if f.num == 1 && (kind == "tensor" || kind == "sparse_tensor") {
					v.DType = DType(int64(f.val))
				}
			case kind == "tensor", kind == "sparse_tensor":
				if f.num == 2 {
					v.Dims = v.Dims[:0:0]
					err = p.dims(v, inner.child(f), depth+2)
				}
			case kind == "map" && f.num == 2, kind != "map" && f.num == 1:
				var element Value
				err = p.valueType(&element, inner.child(f), depth+2)
			}
			return err
		})
	})
}

func (p *parser) dims(v *Value, m *message, depth int) error {
	v.Dims = []Dim{}
	return p.walk(m, depth, func(f field) error {
		if f.num != 1 {
			return nil
		}
		if err := p.want(f, protowire.BytesType); err != nil {
			return err
		}
		d := Dim{Size: -1}
		err := p.walk(m.child(f), depth+1, func(f field) (err error) {
			switch f.num {
			case 1:
				d.Size, err = p.number(f)
			case 2:
				d.Param, err = p.text(f)
			}
			return err
		})
		if err != nil {
			return err
		}
		if len(v.Dims) == maxRank {
			return p.reject("rank_too_big", "value %q has more than %d dimensions", v.Name, maxRank).Expected("more", maxRank)
		}
		v.Dims = append(v.Dims, d)
		return nil
	})
}
