package scheme

import (
	"math"
	"slices"
	"sync"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/quant"
)

// noOffset changes nothing that it is added to.
var noOffset = float32(math.Copysign(0, -1))

// A codebook is the values of four-bit codes in ascending order.
type codebook struct {
	values []float32
	index  [16]int16 // of a stored code among the values
	codes  []byte    // stored, of a value
}

func newCodebook(values []float32) (c codebook, err error) {
	for _, v := range values {
		if v-v != 0 {
			return c, nonFinite()
		}
	}
	c.values = slices.Compact(slices.Sorted(slices.Values(values)))
	if len(c.values) < 2 {
		return c, finding.Errorf("scheme.bad_state", "", "all codes of the weight mean the same")
	}
	c.codes = make([]byte, len(c.values))
	for code := len(values) - 1; code >= 0; code-- { // of two zeros, the first is written
		i := slices.Index(c.values, values[code])
		c.index[code], c.codes[i] = int16(i), byte(code)
	}
	return c, nil
}

// read takes the codes of a row out of bytes of two: the first in the low half, or the high one.
func (c *codebook) read(codes []int16, b []byte, highFirst bool) {
	for k := range codes {
		codes[k] = c.index[b[k/2]>>half(k, highFirst)&15]
	}
}

// write puts codes there. Those that mean what is there already change no byte.
func (c *codebook) write(b []byte, codes []int16, highFirst bool) {
	for k, i := range codes {
		shift := half(k, highFirst)
		if c.index[b[k/2]>>shift&15] != i {
			b[k/2] = b[k/2]&(0xf0>>shift) | c.codes[i]<<shift
		}
	}
}

func half(k int, highFirst bool) int {
	if highFirst {
		k = ^k
	}
	return 4 * (k & 1)
}

// A keptScales encoding stores four-bit rows again by their codes alone: scales, and what they are quantized by
// themselves, stay byte for byte. Values go to the nearest codes.
type keptScales struct {
	cols      int64 // an even number
	highFirst bool
	values    func() ([]float32, error)               // of the codes
	scales    func(step []float32, first int64) error // of the elements from one on, before the code's value

	once sync.Once
	codebook
	err error
}

// Parts is 1: the codes.
func (e *keptScales) Parts() int { return 1 }

// Block is 1: rows begin with a byte.
func (e *keptScales) Block() int64 { return 1 }

// Extent is the place of rows in the codes.
func (e *keptScales) Extent(_ int, first, n int64) (off, size int64) {
	return first * e.cols / 2, n * e.cols / 2
}

// Measure needs nothing.
func (e *keptScales) Measure(func() ([]float32, int64, error)) error { return nil }

// Span has no scales that can be made anew, and takes no columns.
func (e *keptScales) Span(column bool) (int64, bool) { return 0, !column }

// Stretches is false: scales stay.
func (e *keptScales) Stretches(bool) bool { return false }

// Stretch cannot be.
func (e *keptScales) Stretch(Line, float32) {}

// PutScales has nothing to put.
func (e *keptScales) PutScales([][]byte, int64) {}

// CopyScales has nothing to copy.
func (e *keptScales) CopyScales(_, _ Line, _ int64) {}

// ReadGrid takes a row apart.
func (e *keptScales) ReadGrid(g *quant.Grid, codes []int16, l Line) error {
	e.once.Do(func() {
		var v []float32
		if v, e.err = e.values(); e.err == nil {
			e.codebook, e.err = newCodebook(v)
		}
	})
	if e.err != nil {
		return e.err
	}
	g.Resize(int(e.cols))
	g.Levels, g.Uniform = e.codebook.values, false
	if err := e.scales(g.Step, l.Number*e.cols); err != nil {
		return err
	}
	for k, s := range g.Step {
		if s-s != 0 {
			return nonFinite()
		}
		g.Off[k] = noOffset
	}
	e.read(codes, e.row(l), e.highFirst)
	return nil
}

func (e *keptScales) row(l Line) []byte { return l.Parts[0][(l.Number-l.First)*e.cols/2:] }

// WriteCodes puts the codes of a row.
func (e *keptScales) WriteCodes(l Line, codes []int16) { e.write(e.row(l), codes, e.highFirst) }

// Encode stores rows by their nearest codes.
func (e *keptScales) Encode(dst [][]byte, rows []float32, first int64) error {
	clear(dst[0])
	return EncodeNearest(e, dst, rows, e.cols, first)
}

// EncodeNearest stores rows by the codes that are nearest to them on the scales they have.
func EncodeNearest(e Codes, dst [][]byte, rows []float32, cols, first int64) error {
	var g quant.Grid
	codes := make([]int16, cols)
	for r := int64(0); r*cols < int64(len(rows)); r++ {
		l := Line{Parts: dst, First: first, Number: first + r}
		if err := e.ReadGrid(&g, codes, l); err != nil {
			return err
		}
		for k, x := range rows[r*cols:][:cols] {
			if x-x != 0 {
				return nonFinite()
			}
			codes[k] = g.Nearest(k, x, codes[k])
		}
		e.WriteCodes(l, codes)
	}
	return nil
}

// Decode is what rows decode to.
func (e *keptScales) Decode(rows []float32, src [][]byte, first int64) {
	var g quant.Grid
	codes := make([]int16, e.cols)
	for r := int64(0); r*e.cols < int64(len(rows)); r++ {
		if e.ReadGrid(&g, codes, Line{Parts: src, First: first, Number: first + r}) != nil {
			return // they were read before
		}
		for k, c := range codes {
			rows[r*e.cols+int64(k)] = g.Value(k, c)
		}
	}
}

// e2m1Codebook is that of four-bit floats.
var e2m1Codebook = func() codebook { c, _ := newCodebook(e2m1[:]); return c }()

// Span is a block, whose exponent is its own. Columns are not taken apart.
func (e microscaling) Span(column bool) (int64, bool) { return mxfp4Len, !column }

// row are the codes and the exponents of a row.
func (e microscaling) row(l Line) (codes, exponents []byte) {
	at := (l.Number - l.First) * e.cols
	return l.Parts[0][at/2:][:e.cols/2], l.Parts[1][at/mxfp4Len:][:e.cols/mxfp4Len]
}

// ReadGrid takes a row apart.
func (e microscaling) ReadGrid(g *quant.Grid, to []int16, l Line) error {
	codes, exponents := e.row(l)
	g.Resize(int(e.cols))
	g.Levels, g.Uniform = e2m1Codebook.values, false
	for k := range g.Step {
		s := powers[exponents[k/mxfp4Len]]
		if s-s != 0 {
			return nonFinite()
		}
		g.Step[k], g.Off[k] = s, noOffset
	}
	e2m1Codebook.read(to, codes, false)
	return nil
}

// WriteCodes puts the codes of a row.
func (e microscaling) WriteCodes(l Line, from []int16) {
	codes, _ := e.row(l)
	e2m1Codebook.write(codes, from, false)
}

// Stretches is false: exponents are too coarse.
func (e microscaling) Stretches(bool) bool { return false }

// Stretch cannot be.
func (e microscaling) Stretch(Line, float32) {}

// PutScales has nothing to put.
func (e microscaling) PutScales([][]byte, int64) {}

// CopyScales copies the exponent of a block.
func (e microscaling) CopyScales(dst, src Line, lo int64) {
	_, to := e.row(dst)
	_, from := e.row(src)
	to[lo/mxfp4Len] = from[lo/mxfp4Len]
}
