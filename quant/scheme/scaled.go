package scheme

import (
	"fmt"

	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// matchScaled reads weights whose elements are eight-bit numbers under scales: FP8 of DeepSeek and its
// kin (N_scale_inv, a block of 128 × 128), of fbgemm, ModelOpt and compressed-tensors (N_scale, a tensor,
// a row or a group), MXFP8 (N_scale of exponents), and int8 of compressed-tensors.
//
//	N             F8_E4M3, F8_E5M2 or I8, of any shape
//	N_scale       one, or of N's rank: each dimension 1, N's own, or N's in blocks
//	N_zero_point  the element type, of the scale's shape (optional)
//
// W = (N − zero_point) · scale; also N_scale_inv is multiplied.
func matchScaled(m *model, t *tensor.Tensor) (*weight, error) {
	codec, float8 := quant.Of(t.DType)
	float8 = float8 && t.DType.BlockBytes() == 1 && t.DType.IsFloat()
	if !float8 && t.DType != tensor.I8 || len(t.Shape) < 2 {
		return nil, nil
	}
	var scale *tensor.Tensor
	for _, end := range []string{"_scale_inv", "_scales_inv", "_scale"} {
		if s := m.byName[t.Name+end]; s != nil && scale == nil {
			scale = s
		}
	}
	if scale == nil {
		return nil, nil
	}
	if err := m.check(t, []tensor.DType{t.DType}, t.Shape...); err != nil {
		return nil, err
	}
	types := append([]tensor.DType{tensor.F8E8M0, tensor.U8}, floats...)
	if err := m.check(scale, types, scale.Shape...); err != nil {
		return nil, err
	}
	d := &scaled{packed: t, scale: scale, codec: codec, cols: t.Shape[len(t.Shape)-1]}
	if err := d.blocks(m); err != nil {
		return nil, err
	}
	w := &weight{name: t.Name, shape: t.Shape, dtype: halfOr(scale.DType, m.config.or(tensor.BF16)), parts: []string{t.Name, scale.Name}, decode: d.rows}
	kind := "int8"
	if float8 {
		kind = "FP8 " + t.DType.String()[3:]
	}
	w.scheme = kind + d.granularity()
	if z := m.byName[t.Name+"_zero_point"]; z != nil {
		if _, err := m.part(z.Name, []tensor.DType{t.DType}, scale.Shape...); err != nil {
			return nil, err
		}
		d.zero = z
		w.parts = append(w.parts, z.Name)
	}
	w.encoding = d.encoding(m.config)
	return w, nil
}

type scaled struct {
	packed, scale, zero *tensor.Tensor
	codec               quant.Codec // of FP8
	cols                int64
	block, counts       []int64 // per dimension: elements under a scale, and scales
}

// blocks finds how much of each dimension lies under one scale.
func (d *scaled) blocks(m *model) error {
	shape, s := d.packed.Shape, d.scale.Shape
	n, err := s.Elements()
	if err != nil {
		return m.fault("bad_shape", d.scale.Name, "%v", err)
	}
	switch {
	case n == 1:
		s = nil
		for range shape {
			s = append(s, 1)
		}
	case len(s) == 1 && s[0] == shape[0]:
		s = append(tensor.Shape{s[0]}, make(tensor.Shape, len(shape)-1)...)
		for i := 1; i < len(s); i++ {
			s[i] = 1
		}
	}
	bad := m.fault("bad_shape", d.scale.Name, "the scales do not fit the weight").Expected(d.scale.Shape, fmt.Sprintf("one, or a block each of %v", shape))
	if len(s) != len(shape) {
		return bad
	}
	confRows, confCols, ok := m.config.blocks()
	for i, w := range shape {
		conf := int64(0)
		if ok && i == len(shape)-1 {
			conf = confCols
		} else if ok && i == len(shape)-2 {
			conf = confRows
		}
		var b int64
		switch {
		case w <= 0 || s[i] <= 0:
			return bad
		case s[i] == 1:
			b = w
		case s[i] == w:
			b = 1
		case conf > 0 && ceil(w, conf) == s[i]:
			b = conf
		case ceil(w, 128) == s[i]:
			b = 128
		case w%s[i] == 0:
			b = w / s[i]
		default:
			return bad
		}
		d.block = append(d.block, b)
	}
	d.counts = s
	return nil
}

// granularity says what lies under one scale.
func (d *scaled) granularity() string {
	last := len(d.block) - 1
	rows, cols := d.block[last-1], d.block[last]
	switch {
	case d.counts[last] > 1:
		return fmt.Sprintf(" in blocks of %d × %d", rows, cols)
	case d.counts[last-1] == 1:
		return " under one scale"
	case rows == 1:
		return " by rows"
	}
	return fmt.Sprintf(" in blocks of %d rows", rows)
}

func (d *scaled) rows(dst []float32, first int64) error {
	b := make([]byte, len(dst))
	if _, err := d.packed.ReadAt(b, first*d.cols); err != nil {
		return err
	}
	d.values(dst, b)
	last := len(d.block) - 1
	block, n := d.block[last], d.counts[last]
	known := int64(-1)
	var scales, zeros []float32
	for r := int64(0); len(dst) > 0; r++ {
		if line := d.line(first + r); line != known {
			var err error
			if scales, err = readFloats(d.scale, line*n, n); err != nil {
				return err
			}
			if zeros, err = d.zeros(line*n, n); err != nil {
				return err
			}
			known = line
		}
		row := dst[:d.cols]
		for g, s := range scales {
			part := row[int64(g)*block : min(d.cols, int64(g+1)*block)]
			if zeros != nil {
				for i := range part {
					part[i] -= zeros[g]
				}
			}
			for i := range part {
				part[i] *= s
			}
		}
		dst = dst[d.cols:]
	}
	return nil
}

// line is the row of scales that a row of the weight lies under.
func (d *scaled) line(row int64) int64 {
	line, stride := int64(0), int64(1)
	for i := len(d.block) - 2; i >= 0; i-- {
		at := row % d.packed.Shape[i]
		row /= d.packed.Shape[i]
		line += at / d.block[i] * stride
		stride *= d.counts[i]
	}
	return line
}

func (d *scaled) zeros(at, n int64) ([]float32, error) {
	if d.zero == nil {
		return nil, nil
	}
	b := make([]byte, n)
	if _, err := d.zero.ReadAt(b, at); err != nil {
		return nil, err
	}
	z := make([]float32, n)
	d.values(z, b)
	return z, nil
}

// values widens elements.
func (d *scaled) values(dst []float32, b []byte) {
	if d.packed.DType != tensor.I8 {
		d.codec.Decode(dst, b)
		return
	}
	for i, q := range b {
		dst[i] = float32(int8(q))
	}
}
