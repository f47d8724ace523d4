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
