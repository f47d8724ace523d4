package adapter

import (
	"bytes"
	"slices"
	"testing"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

func stored(d tensor.DType, shape tensor.Shape, b ...byte) *tensor.Tensor {
	return &tensor.Tensor{Spec: tensor.Spec{Name: "t", DType: d, Shape: shape}, Src: bytes.NewReader(b), Size: int64(len(b))}
}

func TestReadFloats(t *testing.T) {
	for _, c := range []struct {
		t    *tensor.Tensor
		want []float32
		code string
	}{
		{stored(tensor.F32, tensor.Shape{2}, 0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0), []float32{1, -2}, ""},
		{stored(tensor.BF16, tensor.Shape{2, 1}, 0x80, 0x3f, 0, 0xc0), []float32{1, -2}, ""},
		{stored(tensor.F16, tensor.Shape{1}, 0, 0x3c), []float32{1}, ""},
		{stored(tensor.F64, tensor.Shape{}, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f), []float32{1}, ""},
		{stored(tensor.F8E4M3, tensor.Shape{1}, 0x38), []float32{1}, ""},
		{stored(tensor.I32, tensor.Shape{1}, 1, 0, 0, 0), nil, "adapter.bad_dtype"},
		{stored(tensor.F32, tensor.Shape{1 << 40}, 0, 0, 0, 0), nil, "adapter.shape_mismatch"},
	} {
		got, err := ReadFloats(c.t)
		if c.code != "" {
			if f := finding.Of(err); f == nil || f.Code != c.code {
				t.Errorf("%s %v: got %v, expected %s", c.t.DType, c.t.Shape, err, c.code)
			}
		} else if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, %v", c.t.DType, got, err)
		}
	}
}

func TestWeightBytes(t *testing.T) {
	src := stored(tensor.F16, tensor.Shape{1, 2}, 0, 0x3c, 0, 0x40)
	values := FromTensor(*src, 1, 2, ReadFloats)
	for d, want := range map[tensor.DType][]byte{
		tensor.F16:  {0, 0x3c, 0, 0x40}, // the very bytes
		tensor.BF16: {0x80, 0x3f, 0, 0x40},
		tensor.F32:  {0, 0, 0x80, 0x3f, 0, 0, 0, 0x40},
	} {
		w := Weight{tensor.Spec{Name: "w", DType: d, Shape: src.Shape}, values}
		if got, err := w.Bytes(); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: got %x, %v", d, got, err)
		}
	}
	for _, d := range []tensor.DType{tensor.I8, tensor.Q8_0} {
		w := Weight{tensor.Spec{Name: "w", DType: d, Shape: src.Shape}, values}
		if _, err := w.Bytes(); err == nil {
			t.Errorf("%s: no error", d)
		}
	}
}
