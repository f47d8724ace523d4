package gguf

import (
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// A Type is the type of a key-value as the file stores it.
type Type uint32

// The value types. Their numbers are part of the format.
const (
	Uint8 Type = iota
	Int8
	Uint16
	Int16
	Uint32
	Int32
	Float32
	Bool
	String
	Array
	Uint64
	Int64
	Float64

	numTypes
)

var types = [numTypes]struct {
	name string
	size int // bytes of one value, 0 where the value says so itself
}{
	Uint8: {"u8", 1}, Int8: {"i8", 1}, Uint16: {"u16", 2}, Int16: {"i16", 2}, Uint32: {"u32", 4}, Int32: {"i32", 4},
	Float32: {"f32", 4}, Bool: {"bool", 1}, String: {"string", 0}, Array: {"array", 0},
	Uint64: {"u64", 8}, Int64: {"i64", 8}, Float64: {"f64", 8},
}

// String returns the short name of the type, for example "u32".
func (t Type) String() string {
	if t >= numTypes {
		return fmt.Sprintf("type %d", uint32(t))
	}
	return types[t].name
}

// size is the number of bytes of a value of a fixed size, 0 for strings and arrays.
func (t Type) size() int { return types[t].size }

// A Value is the value of a key: a scalar, a string, or an array of either. It keeps the encoded bytes,
// little-endian, so that copying is exact to the bit and a large vocabulary costs nothing until it is
// asked for. Values do not change once made.
type Value struct {
	typ  Type
	elem Type // of an array
	n    int  // elements of an array
	// data is the scalar, the text of a string, or an array's elements one after the other, where each
	// string has its length (u64) in front.
	data []byte
}

// A Scalar is a Go type that has a value type of its own.
type Scalar interface {
	uint8 | int8 | uint16 | int16 | uint32 | int32 | uint64 | int64 | float32 | float64 | bool | string
}

// Of makes a scalar or string value of the type that goes with T: Of(uint32(2)) is a u32.
func Of[T Scalar](x T) Value {
	if s, ok := any(x).(string); ok {
		return Value{typ: String, data: []byte(s)}
	}
	typ, data := encodeScalar(nil, x)
	return Value{typ: typ, data: data}
}

// ArrayOf makes an array value with elements of the type that goes with T.
func ArrayOf[T Scalar](xs []T) Value {
	var zero T
	elem, _ := encodeScalar(nil, zero)
	v := Value{typ: Array, elem: elem, n: len(xs)}
	for _, x := range xs {
		_, v.data = encodeScalar(v.data, x)
	}
	return v
}

// encodeScalar appends x as an array element and names its type.
func encodeScalar(b []byte, x any) (Type, []byte) {
	le := binary.LittleEndian
	switch x := x.(type) {
	case uint8:
		return Uint8, append(b, x)
	case int8:
		return Int8, append(b, byte(x))
	case uint16:
		return Uint16, le.AppendUint16(b, x)
	case int16:
		return Int16, le.AppendUint16(b, uint16(x))
	case uint32:
		return Uint32, le.AppendUint32(b, x)
	case int32:
		return Int32, le.AppendUint32(b, uint32(x))
	case uint64:
		return Uint64, le.AppendUint64(b, x)
	case int64:
		return Int64, le.AppendUint64(b, uint64(x))
	case float32:
		return Float32, le.AppendUint32(b, math.Float32bits(x))
	case float64:
		return Float64, le.AppendUint64(b, math.Float64bits(x))
	case bool:
		if x {
			return Bool, append(b, 1)
		}
		return Bool, append(b, 0)
	case string:
		return String, append(le.AppendUint64(b, uint64(len(x))), x...)
	}
	panic("gguf: not a scalar")
}

// Type is the value's type; for an array, Elem tells the type of its elements.
func (v Value) Type() Type { return v.typ }

// Elem is the element type of an array, and the type itself of anything else.
func (v Value) Elem() Type {
	if v.typ == Array {
		return v.elem
	}
	return v.typ
}

// Len is the number of elements of an array, 1 for anything else.
func (v Value) Len() int {
	if v.typ == Array {
		return v.n
	}
	return 1
}

// Any decodes the value to the Go type that goes with its type: uint32, string, []float32, []string …
// Any non-zero byte is a true bool.
func (v Value) Any() any {
	le := binary.LittleEndian
	switch v.Elem() {
	case Uint8:
		return decode(v, func(b []byte) uint8 { return b[0] })
	case Int8:
		return decode(v, func(b []byte) int8 { return int8(b[0]) })
	case Uint16:
		return decode(v, le.Uint16)
	case Int16:
		return decode(v, func(b []byte) int16 { return int16(le.Uint16(b)) })
	case Uint32:
		return decode(v, le.Uint32)
	case Int32:
		return decode(v, func(b []byte) int32 { return int32(le.Uint32(b)) })
	case Uint64:
		return decode(v, le.Uint64)
	case Int64:
		return decode(v, func(b []byte) int64 { return int64(le.Uint64(b)) })
	case Float32:
		return decode(v, func(b []byte) float32 { return math.Float32frombits(le.Uint32(b)) })
	case Float64:
		return decode(v, func(b []byte) float64 { return math.Float64frombits(le.Uint64(b)) })
	case Bool:
		return decode(v, func(b []byte) bool { return b[0] != 0 })
	}
	if v.typ == String {
		return string(v.data)
	}
	ss, _ := v.Strings()
	return ss
}

func decode[T any](v Value, one func([]byte) T) any {
	if v.typ != Array {
		return one(v.data)
	}
	size := v.elem.size()
	xs := make([]T, v.n)
	for i := range xs {
		xs[i] = one(v.data[i*size:])
	}
	return xs
}

// Int returns an integer of any width, ok only if it is one and fits.
func (v Value) Int() (i int64, ok bool) {
	switch x := v.scalar().(type) {
	case uint8:
		return int64(x), true
	case int8:
		return int64(x), true
	case uint16:
		return int64(x), true
	case int16:
		return int64(x), true
	case uint32:
		return int64(x), true
	case int32:
		return int64(x), true
	case int64:
		return x, true
	case uint64:
		return int64(x), x <= math.MaxInt64
	}
	return 0, false
}

// Ints returns the integers of a value: one of a scalar, all of an array of u32 or i32, none of anything
// else.
func (v Value) Ints() []int64 {
	if n, ok := v.Int(); ok {
		return []int64{n}
	}
	var ns []int64
	switch xs := v.Any().(type) {
	case []uint32:
		for _, x := range xs {
			ns = append(ns, int64(x))
		}
	case []int32:
		for _, x := range xs {
			ns = append(ns, int64(x))
		}
	}
	return ns
}

// Uint returns an integer of any width, ok only if it is one and not negative.
func (v Value) Uint() (u uint64, ok bool) {
	if x, is := v.scalar().(uint64); is {
		return x, true
	}
	i, ok := v.Int()
	return uint64(i), ok && i >= 0
}

// Float returns a float32 or float64; integers are not floats.
func (v Value) Float() (f float64, ok bool) {
	switch x := v.scalar().(type) {
	case float32:
		return float64(x), true
	case float64:
		return x, true
	}
	return 0, false
}

// Bool returns a bool.
func (v Value) Bool() (b, ok bool) {
	b, ok = v.scalar().(bool)
	return b, ok
}

// Text returns a string.
func (v Value) Text() (s string, ok bool) {
	if v.typ != String {
		return "", false
	}
	return string(v.data), true
}

// scalar is Any for what is no array and no string, so that a big value is not decoded in vain.
func (v Value) scalar() any {
	if v.typ == Array || v.typ == String {
		return nil
	}
	return v.Any()
}

// Strings returns an array of strings. They share one copy of the text.
func (v Value) Strings() (ss []string, ok bool) {
	if v.typ != Array || v.elem != String {
		return nil, false
	}
	all := string(v.data)
	ss = make([]string, v.n)
	at := 0
	for i := range ss {
		n := int(binary.LittleEndian.Uint64(v.data[at:]))
		ss[i] = all[at+8 : at+8+n]
		at += 8 + n
	}
	return ss, true
}

// String prints the value for people: long arrays are shortened.
func (v Value) String() string {
	if v.typ != Array {
		return fmt.Sprint(v.Any())
	}
	const shown = 4
	head := v
	head.n = min(v.n, shown)
	var b strings.Builder
	fmt.Fprintf(&b, "%d × %s [", v.n, v.elem)
	if ss, ok := head.Strings(); ok {
		for i, s := range ss {
			if i > 0 {
				b.WriteString(", ")
			}
			b.WriteString(strconv.Quote(s))
		}
	} else {
		b.WriteString(strings.ReplaceAll(strings.Trim(fmt.Sprint(head.Any()), "[]"), " ", ", "))
	}
	if v.n > shown {
		b.WriteString(", …")
	}
	b.WriteString("]")
	return b.String()
}
