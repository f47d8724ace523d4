package difference

import (
	"bytes"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// A pair is a tensor of the base and the tensor of the same name in the tuned model.
type pair struct{ base, tuned tensor.Tensor }

// chunk is how many elements are compared at once: whole blocks of every type.
const chunk = 1 << 18

// differ reports whether the tuned tensor is more than the base's rounded to its type.
func (p *pair) differ() (bool, error) {
	n, err := p.base.Shape.Elements()
	if err != nil {
		return false, err
	}
	var b, t, rounded []byte
	values := make([]float32, min(n, chunk))
	from, decodes := quant.Of(p.base.DType)
	to, encodes := quant.Of(p.tuned.DType)
	same := p.base.DType == p.tuned.DType
	if !same && !(decodes && encodes) {
		return false, finding.Errorf("extract.unsupported", "", "the types are not comparable").In(p.base.Name).Expected(p.tuned.DType, p.base.DType)
	}
	for at := int64(0); at < n; at += chunk {
		k := min(chunk, n-at)
		if b, err = p.base.ReadElements(b, at, k); err != nil {
			return false, err
		}
		if t, err = p.tuned.ReadElements(t, at, k); err != nil {
			return false, err
		}
		if !same {
			from.Decode(values[:k], b)
			rounded = append(rounded[:0], t...)
			if err := to.Encode(rounded, values[:k]); err != nil {
				return true, nil // a value that the other type cannot hold is a change
			}
			b, rounded = rounded, b
		}
		if !bytes.Equal(b, t) {
			return true, nil
		}
	}
	return false, nil
}

// difference is tuned − base as [rows, the rest], a vector as [1, n], each element rounded once.
func (p *pair) difference() adapter.Factor {
	rows, cols := int64(1), int64(1)
	for i, n := range p.base.Shape {
		if i == 0 && len(p.base.Shape) > 1 {
			rows = n
		} else {
			cols *= n
		}
	}
	return adapter.FromFunc(rows, cols, func() ([]float32, error) {
		v := make([]float32, rows*cols)
		if err := eachChunk(&p.tuned, v, func(to, x []float32) { copy(to, x) }); err != nil {
			return nil, err
		}
		return v, eachChunk(&p.base, v, func(to, x []float32) {
			for i := range to {
				to[i] -= x[i]
			}
		})
	})
}

// eachChunk decodes a tensor piece by piece: do gets the piece and the part of v that it belongs to.
func eachChunk(t *tensor.Tensor, v []float32, do func(to, x []float32)) error {
	c, ok := quant.Of(t.DType)
	if !ok {
		return finding.Errorf("extract.unsupported", "", "values of type %s are not read", t.DType).In(t.Name)
	}
	var b []byte
	x := make([]float32, min(len(v), chunk))
	for at := 0; at < len(v); at += chunk {
		k := min(chunk, len(v)-at)
		var err error
		if b, err = t.ReadElements(b, int64(at), int64(k)); err != nil {
			return err
		}
		c.Decode(x[:k], b)
		do(v[at:at+k], x[:k])
	}
	return nil
}
