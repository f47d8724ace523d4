package adapter

import (
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// ReadFloats reads a whole tensor as float32 values: any type that package quant decodes. 8-bit and
// 16-bit floats are widened exactly, float64 is rounded. It is the decode function of factors stored in
// files.
func ReadFloats(t *tensor.Tensor) ([]float32, error) {
	c, ok := quant.Of(t.DType)
	if !ok {
		return nil, finding.Errorf("adapter.bad_dtype", "", "values of type %s are not read", t.DType).In(t.Name)
	}
	n, err := t.Shape.Elements()
	if err != nil {
		return nil, err
	}
	if size, err := t.DType.Bytes(n); err != nil || size != t.Size {
		return nil, finding.Errorf("adapter.shape_mismatch", "", "%d bytes do not hold the values of shape %v and type %s", t.Size, t.Shape, t.DType).In(t.Name)
	}
	b := raw.get(t.Size)
	defer raw.put(b)
	if _, err := t.ReadAt(b, 0); err != nil {
		return nil, err
	}
	v := floats.get(n)
	c.Decode(v, b)
	return v, nil
}

// A Weight is a tensor of an adapter file to be written: what its place in the file depends on, and its
// values.
type Weight struct {
	tensor.Spec
	Values Factor
}

// Bytes loads the values and encodes them as the weight's type. Values that are stored in that type
// already are copied. Recycle takes the bytes back.
func (w Weight) Bytes() ([]byte, error) {
	if s := w.Values.Stored; s != nil && s.DType == w.DType {
		b := raw.get(s.Size)
		_, err := s.ReadAt(b, 0)
		return b, err
	}
	v, err := w.Values.Load()
	if err != nil {
		return nil, err
	}
	c, ok := quant.Of(w.DType)
	if !ok {
		return nil, finding.Errorf("adapter.bad_dtype", "", "values are not written as %s", w.DType).In(w.Name)
	}
	n, err := w.Spec.Bytes()
	if err != nil {
		return nil, err
	}
	defer w.Values.done(v)
	b := raw.get(n)
	if err := c.Encode(b, v); err != nil {
		if f := finding.Of(err); f != nil {
			return nil, f.In(w.Name)
		}
		return nil, err
	}
	return b, nil
}
