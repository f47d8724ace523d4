package onnx

import "github.com/loratool/loratool/tensor"

// The fields of TensorProto that hold data.
const (
	fieldFloat  = 4
	fieldInt32  = 5
	fieldString = 6
	fieldInt64  = 7
	fieldRaw    = 9
	fieldDouble = 10
	fieldUint64 = 11
)

// An elementType is one of TensorProto's data types.
type elementType struct {
	dtype tensor.DType
	field int // the typed field that may hold it
	width int // bytes that one value of the typed field stands for
	parts int // values of the typed field an element of at least a byte takes
}

// elementTypes are indexed by TensorProto.DataType.
var elementTypes = [...]elementType{
	1: {tensor.F32, fieldFloat, 4, 1}, 2: {tensor.U8, fieldInt32, 1, 1}, 3: {tensor.I8, fieldInt32, 1, 1},
	4: {tensor.U16, fieldInt32, 2, 1}, 5: {tensor.I16, fieldInt32, 2, 1}, 6: {tensor.I32, fieldInt32, 4, 1},
	7: {tensor.I64, fieldInt64, 8, 1}, 8: {tensor.String, fieldString, 0, 1}, 9: {tensor.Bool, fieldInt32, 1, 1},
	10: {tensor.F16, fieldInt32, 2, 1}, 11: {tensor.F64, fieldDouble, 8, 1}, 12: {tensor.U32, fieldUint64, 4, 1},
	13: {tensor.U64, fieldUint64, 8, 1}, 14: {tensor.C64, fieldFloat, 4, 2}, 15: {tensor.C128, fieldDouble, 8, 2},
	16: {tensor.BF16, fieldInt32, 2, 1}, 17: {tensor.F8E4M3, fieldInt32, 1, 1}, 18: {tensor.F8E4M3FNUZ, fieldInt32, 1, 1},
	19: {tensor.F8E5M2, fieldInt32, 1, 1}, 20: {tensor.F8E5M2FNUZ, fieldInt32, 1, 1}, 21: {tensor.U4, fieldInt32, 1, 1},
	22: {tensor.I4, fieldInt32, 1, 1}, 23: {tensor.F4, fieldInt32, 1, 1}, 24: {tensor.F8E8M0, fieldInt32, 1, 1},
	25: {tensor.U2, fieldInt32, 1, 1}, 26: {tensor.I2, fieldInt32, 1, 1},
	27: {tensor.F6E2M3, fieldInt32, 1, 1}, 28: {tensor.F6E3M2, fieldInt32, 1, 1},
}

// values is how many values of the typed field n elements take: two a value for types of four bits, four
// for types of two, but one for types of six.
func (e elementType) values(n int64) int64 {
	if b := int64(e.dtype.BlockLen()); b > 1 && !sixBits(e.dtype) {
		return n/b + min(n%b, 1)
	}
	return n * int64(e.parts)
}

func sixBits(d tensor.DType) bool { return d == tensor.F6E2M3 || d == tensor.F6E3M2 }

// rawSize is the size of a tensor as raw_data. Elements of six bits may end inside the three bytes of
// four, where other formats want whole ones.
func rawSize(s tensor.Spec) (int64, error) {
	if !sixBits(s.DType) {
		return s.Bytes()
	}
	n, err := s.Shape.Elements()
	return n/4*3 + (n%4*6+7)/8, err
}

// packSix packs six-bit elements, one a byte, lowest bits first.
func packSix(b []byte) []byte {
	w := make([]byte, 0, len(b)/4*3+3)
	acc, bits := 0, 0
	for _, c := range b {
		acc |= int(c&0x3f) << bits
		if bits += 6; bits >= 8 {
			w = append(w, byte(acc))
			acc, bits = acc>>8, bits-8
		}
	}
	if bits > 0 {
		w = append(w, byte(acc))
	}
	return w
}

// DType is the storage type of a TensorProto.DataType, Invalid for UNDEFINED and unknown numbers.
func DType(dataType int64) tensor.DType {
	if dataType < 0 || dataType >= int64(len(elementTypes)) {
		return tensor.Invalid
	}
	return elementTypes[dataType].dtype
}

// DataType is the TensorProto.DataType of a storage type, 0 (UNDEFINED) for types ONNX does not have.
func DataType(d tensor.DType) int64 {
	for i, e := range elementTypes {
		if e.dtype == d && d != tensor.Invalid {
			return int64(i)
		}
	}
	return 0
}
