package scheme

import (
	"math"

	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// An int8 weight of bitsandbytes: rows of bytes under the largest magnitude of each row, SCB.
//
// It is stored as the library does: SCB is the row's largest magnitude, an element value · (127 / SCB),
// rounded to nearest even. What was stored so gets the same bytes again; its SCB may come back a few units
// in the last place away, since decoding rounds twice.
type int8Rows struct {
	rowLocal
	packed, scb *tensor.Tensor
	cols        int64
	scale       quant.Codec
}

func (e *int8Rows) Extent(part int, first, n int64) (off, size int64) {
	row := e.cols
	if part == 1 {
		row = int64(e.scb.DType.BlockBytes())
	}
	return first * row, n * row
}

// rows decodes whole rows: weight · SCB · (1/127), each product rounded, as the library computes it.
func (e *int8Rows) rows(dst []float32, first int64) error {
	n := int64(len(dst)) / e.cols
	scales, err := readFloats(e.scb, first, n)
	if err != nil {
		return err
	}
	b := make([]byte, len(dst))
	if _, err := e.packed.ReadAt(b, first*e.cols); err != nil {
		return err
	}
	e.decode(dst, b, scales)
	return nil
}

func (e *int8Rows) decode(dst []float32, b []byte, scales []float32) {
	for r, s := range scales {
		row := dst[int64(r)*e.cols:][:e.cols]
		for i, q := range b[int64(r)*e.cols:][:e.cols] {
			row[i] = float32(float32(int8(q))*s) * float32(1.0/127)
		}
	}
}

func (e *int8Rows) Decode(rows []float32, src [][]byte, _ int64) {
	scales := make([]float32, int64(len(rows))/e.cols)
	e.scale.Decode(scales, src[1])
	e.decode(rows, src[0], scales)
}

func (e *int8Rows) Encode(dst [][]byte, rows []float32, _ int64) error {
	scales := make([]float32, int64(len(rows))/e.cols)
	for r := range scales {
		top := kernel.Magnitude(rows[int64(r)*e.cols:][:e.cols])
		if top-top != 0 {
			return nonFinite()
		}
		scales[r] = top
	}
	tops := append([]float32{}, scales...)
	if err := e.scale.Encode(dst[1], scales); err != nil {
		return err
	}
	e.scale.Decode(scales, dst[1])
	for r, s := range scales {
		if s-s != 0 {
			return scaleOverflow(tops[r], e.scb.DType)
		}
		inverse := min(127/s, math.MaxFloat32) // of a row of zeros, too
		to := dst[0][int64(r)*e.cols:][:e.cols]
		for i, v := range rows[int64(r)*e.cols:][:e.cols] {
			// By the bits of a sum, whose last place is worth 1.
			const big = 3 << 22
			to[i] = byte(math.Float32bits(max(-127, min(127, float32(v*inverse))) + big))
		}
	}
	return nil
}
