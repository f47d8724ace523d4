package scheme

import (
	"math"
	"sync"

	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// largestE4M3 is the largest finite F8_E4M3.
const largestE4M3 = 448

// A scaling stores FP8 under scales: the scale of a block is its largest magnitude / 448, rounded to the
// type of the scales, and an element is value / scale, rounded to F8_E4M3. This is how DeepSeek and
// compressed-tensors quantize weights. A block of zeros has scale 1.
//
// What was stored so is stored the same again, but for scales that may differ in their last bit, since
// scale · 448 is rounded. Scales that must be powers of two are rounded up, so a block whose largest code came
// out as that of 224 gets half the scale and twice the codes, which are the same values.
type scaling struct {
	*scaled
	whole    bool  // one scale for all
	together int64 // rows a block
	power    bool  // scales are powers of two, rounded up

	scaleCodec quant.Codec
	once       sync.Once
	one        float32 // the scale of all, when measured
	err        error
}

// encoding is how weights are stored so again, or nil where that is not offered: other elements than
// F8_E4M3, zeros, scales that are exponents, and scales over rows far apart.
func (d *scaled) encoding(c config) Encoding {
	power := firstText(c.quant, "scale_fmt") == "ue8m0"
	switch t := d.scale.DType; {
	case d.packed.DType != tensor.F8E4M3, d.zero != nil:
		return nil
	case t != tensor.F32 && (power || t != tensor.F16 && t != tensor.BF16):
		return nil
	}
	e := &scaling{scaled: d, power: power, whole: true, together: 1}
	e.scaleCodec, _ = quant.Of(d.scale.DType)
	for _, n := range d.counts {
		e.whole = e.whole && n == 1
	}
	if e.whole {
		return e
	}
	rows := len(d.block) - 2
	matrices := int64(1)
	for i, b := range d.block[:rows] {
		if b > 1 {
			return nil
		}
		matrices *= d.packed.Shape[i]
	}
	height := d.packed.Shape[rows]
	if e.together = d.block[rows]; matrices > 1 && height%e.together != 0 {
		e.together = height // blocks begin anew with every matrix
	}
	if e.together > maxBlock/d.cols {
		return nil
	}
	return e
}

func (e *scaling) Parts() int   { return 2 }
func (e *scaling) Block() int64 { return e.together }

func (e *scaling) Extent(part int, first, n int64) (off, size int64) {
	each := int64(e.scale.DType.BlockBytes())
	switch {
	case part == 0:
		return first * e.cols, n * e.cols
	case !e.whole:
		line := e.line(first)
		each *= e.counts[len(e.counts)-1]
		return line * each, (e.line(first+n-1) + 1 - line) * each
	case first == 0:
		return 0, each
	}
	return 0, 0 // written with the first rows
}

func (e *scaling) Measure(next func() ([]float32, int64, error)) error {
	if !e.whole {
		return nil
	}
	e.once.Do(func() {
		var top float32
		for {
			var rows []float32
			if rows, _, e.err = next(); e.err != nil {
				return
			}
			if len(rows) == 0 {
				break
			}
			top = larger(top, kernel.Magnitude(rows))
		}
		e.one, e.err = e.scaleOf(top)
	})
	return e.err
}

// larger is the larger of two magnitudes, of which NaN is the largest.
func larger(a, b float32) float32 {
	return math.Float32frombits(max(math.Float32bits(a), math.Float32bits(b)))
}

// scaleOf is the scale of a block with a largest magnitude, as its type stores it.
func (e *scaling) scaleOf(top float32) (float32, error) {
	if top == 0 {
		return 1, nil
	}
	if top-top != 0 {
		return 0, nonFinite()
	}
	s := top / largestE4M3
	if bits := math.Float32bits(s); e.power && bits<<9 != 0 {
		s = math.Float32frombits((bits>>23 + 1) << 23)
	}
	b, one := make([]byte, e.scaleCodec.DType().BlockBytes()), [1]float32{s}
	if err := e.scaleCodec.Encode(b, one[:]); err != nil {
		return 0, err
	}
	if e.scaleCodec.Decode(one[:], b); one[0] == 0 { // the smallest that the type has
		b[0] = 1
		e.scaleCodec.Decode(one[:], b)
	}
	if math.IsInf(float64(one[0]), 0) {
		return 0, scaleOverflow(s, e.scaleCodec.DType())
	}
	return one[0], nil
}

func (e *scaling) Encode(dst [][]byte, rows []float32, first int64) error {
	n := int64(len(rows)) / e.cols
	width := e.counts[len(e.counts)-1]
	lines := int64(1)
	if !e.whole {
		lines = e.line(first+n-1) + 1 - e.line(first)
	}
	scales := make([]float32, lines*width)
	if e.whole {
		scales[0] = e.one
	} else if err := e.scales(scales, rows, first); err != nil {
		return err
	}
	slab := slabs.Get().(*[]float32)
	defer slabs.Put(slab)
	if int64(cap(*slab)) < e.cols {
		*slab = make([]float32, e.cols)
	}
	row := (*slab)[:e.cols]
	for r := range n {
		e.each(rows, r, first, func(part []float32, at, scale int64) {
			s, to := scales[scale], row[at:][:len(part)]
			for i, v := range part {
				to[i] = max(-largestE4M3, min(largestE4M3, v/s))
			}
		})
		if err := e.codec.Encode(dst[0][r*e.cols:][:e.cols], row); err != nil {
			return err
		}
	}
	if len(dst[1]) == 0 {
		return nil
	}
	return e.scaleCodec.Encode(dst[1], scales)
}

// scales finds the scales of whole blocks.
func (e *scaling) scales(scales, rows []float32, first int64) error {
	for r := range int64(len(rows)) / e.cols {
		e.each(rows, r, first, func(part []float32, _, scale int64) {
			scales[scale] = larger(scales[scale], kernel.Magnitude(part))
		})
	}
	for i, top := range scales {
		var err error
		if scales[i], err = e.scaleOf(top); err != nil {
			return err
		}
	}
	return nil
}

// each goes through the parts of row r of some rows from first on that lie under one scale each. at is the
// part's column; scale counts from the first scale of the rows.
func (e *scaling) each(rows []float32, r, first int64, do func(part []float32, at, scale int64)) {
	row := rows[r*e.cols:][:e.cols]
	last := len(e.counts) - 1
	from := int64(0)
	if !e.whole {
		from = (e.line(first+r) - e.line(first)) * e.counts[last]
	}
	for g := range e.counts[last] {
		at := g * e.block[last]
		do(row[at:min(e.cols, at+e.block[last])], at, from+g)
	}
}

func (e *scaling) Decode(rows []float32, src [][]byte, first int64) {
	e.codec.Decode(rows, src[0])
	scales := []float32{e.one}
	if !e.whole {
		scales = make([]float32, len(src[1])/e.scale.DType.BlockBytes())
		e.scaleCodec.Decode(scales, src[1])
	}
	for r := range int64(len(rows)) / e.cols {
		e.each(rows, r, first, func(part []float32, _, scale int64) {
			for i := range part {
				part[i] *= scales[scale]
			}
		})
	}
}
