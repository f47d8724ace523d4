package onnxquant

import (
	"math"
	"slices"
	"sync"

	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/quant/scheme"
)

// levels are what codes stand for before zero points are taken off and scales multiplied, in ascending order:
// the index of one is its code in a quant.Grid.
type levels struct {
	values  []float32
	uniform bool
	index   []int16  // of a stored code
	stored  []uint32 // of an index
}

// levels are those of the weight's codes, without a zero point that all share.
func (w *Weight) levels() *levels {
	n := 1 << w.coding.bits
	l := &levels{index: make([]int16, n), uniform: w.coding.values == nil}
	raw := make([]float32, n)
	for q := range raw {
		switch {
		case w.coding.values != nil:
			raw[q] = w.coding.values[q]
		case w.coding.signed && q >= n/2:
			raw[q] = float32(q - n)
		default:
			raw[q] = float32(q)
		}
		if !w.zeros.stored {
			raw[q] -= float32(w.zeros.constant)
		}
	}
	l.values = slices.Compact(slices.Sorted(slices.Values(raw)))
	l.stored = make([]uint32, len(l.values))
	for q := n - 1; q >= 0; q-- { // of two zeros, the first is written
		i := slices.Index(l.values, raw[q])
		l.index[q], l.stored[i] = int16(i), uint32(q)
	}
	return l
}

// codes is what both encodings share that take lines of a weight apart.
type codes struct {
	w      *Weight
	levels *levels
}

// elements are the number of a line's, its first element in the flattened weight and among the codes of the
// line's parts, and the distances to the next ones.
func (c *codes) elements(l scheme.Line) (n, first, step, code, codeStep int64) {
	w := c.w
	if l.Column {
		return w.rows, l.Number, w.cols, l.Number, w.stride
	}
	return w.cols, l.Number * w.cols, 1, (l.Number - l.First) * w.stride, 1
}

// readLine sets the grid and the codes of a line. scale returns scale and zero point of a number.
func (c *codes) readLine(g *quant.Grid, to []int16, l scheme.Line, scale func(int64) (s, z float32)) {
	w := c.w
	n, first, step, code, codeStep := c.elements(l)
	g.Resize(int(n))
	g.Levels, g.Uniform = c.levels.values, c.levels.uniform
	fill := func(k, n, number int64) {
		s, z := scale(number)
		off := negativeZero
		if z != 0 {
			off = -float32(z * s)
		}
		for ; n > 0; n-- {
			g.Step[k], g.Off[k] = s, off
			k++
		}
	}
	if l.Column {
		for k := int64(0); k < n; {
			run := int64(1)
			switch g := &w.grid; {
			case g.one, !g.each && g.inner == 1:
				run = n
			case g.each && g.inner > 1:
				run = min(g.block-k%g.block, n-k)
			}
			fill(k, run, w.grid.of(first+k*step))
			k += run
		}
	} else {
		w.grid.runs(first, n, func(number, k, n int64) { fill(k, n, number) })
	}
	b := l.Parts[0]
	for k := range to {
		to[k] = c.levels.index[w.coding.code(b, code)]
		code += codeStep
	}
}

// WriteCodes puts codes where the line's are. Codes that mean what is there already change no byte.
func (c *codes) WriteCodes(l scheme.Line, from []int16) {
	_, _, _, code, codeStep := c.elements(l)
	b := l.Parts[0]
	for _, i := range from {
		if c.levels.index[c.w.coding.code(b, code)] != i {
			c.w.coding.set(b, code, c.levels.stored[i])
		}
		code += codeStep
	}
}

// Codes is how the weight is stored by codes that are chosen one by one: on scales made anew where its encoding
// makes such, else under those that are there. It is nil where neither is offered.
func (w *Weight) Codes() (scheme.Codes, error) {
	e, err := w.Encoding()
	switch {
	case err != nil:
		return nil, err
	case e != nil && e.whole:
		return &measured{kept: w.kept(), fresh: e}, nil
	case e != nil:
		return e, nil
	}
	if k := w.kept(); k != nil {
		return k, nil
	}
	return nil, nil
}

// ReadGrid takes a line apart, with the scales that are among its parts.
func (e *Encoding) ReadGrid(g *quant.Grid, to []int16, l scheme.Line) error {
	lo := e.firstScale(l)
	value := make([]float32, 1)
	e.codes().readLine(g, to, l, func(number int64) (s, z float32) {
		at := number - lo
		size := int64(e.scale.DType().BlockBytes())
		e.scale.Decode(value, l.Parts[1][at*size:][:size])
		s = value[0]
		switch zeros := &e.w.zeros; {
		case zeros.floats:
			codec, _ := quant.Of(e.w.Parts[2].DType)
			size := int64(codec.DType().BlockBytes())
			codec.Decode(value, l.Parts[2][at*size:][:size])
			z = value[0]
		case zeros.stored:
			z = e.w.coding.value(l.Parts[2], zeros.at(number)-zeros.at(lo))
		}
		return s, z
	})
	return nil
}

// Span is the length of a block where blocks lie along the line, or the line's where it has a scale.
func (e *Encoding) Span(column bool) (n int64, ok bool) {
	switch g := &e.w.grid; {
	case column && len(e.w.Shape) != 2:
		return 0, false
	case g.each && g.inner > 1 == column:
		return g.block, true
	case !g.each && g.inner == e.w.cols && !column:
		return e.w.cols, true
	}
	return 0, true
}

// CopyScales copies the scale and the zero point of a span.
func (e *Encoding) CopyScales(dst, src scheme.Line, lo int64) {
	_, first, step, _, _ := e.codes().elements(dst)
	from := e.firstScale(dst)
	number := e.w.grid.of(first + lo*step)
	at, size := number-from, int64(e.scale.DType().BlockBytes())
	copy(dst.Parts[1][at*size:][:size], src.Parts[1][at*size:])
	switch zeros := &e.w.zeros; {
	case zeros.floats:
		size := int64(e.w.Parts[2].DType.BlockBytes())
		copy(dst.Parts[2][at*size:][:size], src.Parts[2][at*size:])
	case zeros.stored:
		i := zeros.at(number) - zeros.at(from)
		e.w.coding.set(dst.Parts[2], i, e.w.coding.code(src.Parts[2], i))
	}
}

// Stretches reports whether a line has scales of its own, in blocks or one.
func (e *Encoding) Stretches(column bool) bool {
	n, _ := e.Span(column)
	return n > 0
}

// Stretch multiplies the line's scales. Those that would overflow stay.
func (e *Encoding) Stretch(l scheme.Line, by float32) {
	n, first, step, _, _ := e.codes().elements(l)
	span, _ := e.Span(l.Column)
	from := e.firstScale(l)
	size := int64(e.scale.DType().BlockBytes())
	value, stored := make([]float32, 1), make([]byte, size)
	for lo := int64(0); lo < n; lo += span {
		b := l.Parts[1][(e.w.grid.of(first+lo*step)-from)*size:][:size]
		e.scale.Decode(value, b)
		value[0] *= by
		if e.scale.Encode(stored, value) == nil {
			if e.scale.Decode(value, stored); value[0]-value[0] == 0 {
				copy(b, stored)
			}
		}
	}
}

// firstScale is the number of the first scale among the line's parts.
func (e *Encoding) firstScale(l scheme.Line) int64 {
	n := int64(1)
	if l.Column {
		n = e.w.rows
	}
	lo, _ := e.scales(l.First, n)
	return lo
}

// PutScales has nothing to put: scales are chosen with the lines.
func (e *Encoding) PutScales([][]byte, int64) {}

func (e *Encoding) codes() *codes {
	e.taken.Do(func() { e.apart = codes{w: e.w, levels: e.w.levels()} })
	return &e.apart
}

// WriteCodes puts codes where the line's are.
func (e *Encoding) WriteCodes(l scheme.Line, from []int16) { e.codes().WriteCodes(l, from) }

// A kept encoding changes codes only: scales and zero points stay the weight's. Values go to the nearest codes.
type kept struct {
	codes
	together int64 // rows a block
	load     sync.Once
	scales   []float32
	zero     []float32
	err      error
}

// kept is how the weight is stored again under its scales, or nil where its codes are no integers of at most 8
// bits or values of at most 4.
func (w *Weight) kept() *kept {
	if w.coding.bits > 8 || w.coding.values != nil && w.coding.bits > 4 {
		return nil
	}
	k := &kept{codes: codes{w: w, levels: w.levels()}, together: 1}
	for k.together < 8 && k.together*w.stride*w.coding.bits%8 != 0 {
		k.together *= 2
	}
	return k
}

// Parts is 1: the codes.
func (k *kept) Parts() int { return 1 }

// Block is the number of rows that end with a byte.
func (k *kept) Block() int64 { return k.together }

// Extent is the place of rows in the codes, in bytes.
func (k *kept) Extent(_ int, first, n int64) (off, size int64) {
	off = first * k.w.stride * k.w.coding.bits / 8
	return off, ceil((first+n)*k.w.stride*k.w.coding.bits, 8) - off
}

// Measure needs nothing.
func (k *kept) Measure(func() ([]float32, int64, error)) error { return nil }

// ReadGrid takes a line apart.
func (k *kept) ReadGrid(g *quant.Grid, to []int16, l scheme.Line) error {
	if err := k.loadScales(); err != nil {
		return err
	}
	k.readLine(g, to, l, k.scaleOf)
	return nil
}

func (k *kept) scaleOf(number int64) (s, z float32) {
	if k.zero != nil {
		z = k.zero[number]
	}
	return k.scales[number], z
}

func (k *kept) loadScales() error {
	k.load.Do(func() {
		n := k.w.grid.count
		if k.scales, k.err = k.w.readFloats(1, 0, n); k.err == nil {
			k.zero, k.err = k.w.readZeros(0, n)
		}
	})
	return k.err
}

// Span has no scales of its own.
func (k *kept) Span(column bool) (int64, bool) { return 0, len(k.w.Shape) == 2 || !column }

// Stretches is false: scales stay.
func (k *kept) Stretches(bool) bool { return false }

// Stretch cannot be.
func (k *kept) Stretch(scheme.Line, float32) {}

// PutScales has nothing to put.
func (k *kept) PutScales([][]byte, int64) {}

// CopyScales has nothing to copy.
func (k *kept) CopyScales(_, _ scheme.Line, _ int64) {}

// Encode stores rows by their nearest codes.
func (k *kept) Encode(dst [][]byte, rows []float32, first int64) error {
	clear(dst[0])
	return scheme.EncodeNearest(k, dst, rows, k.w.cols, first)
}

// Decode is what rows decode to.
func (k *kept) Decode(rows []float32, src [][]byte, first int64) {
	lo, hi := k.w.grid.span(first*k.w.cols, first*k.w.cols+int64(len(rows)))
	scales := k.scales[lo:hi]
	zero := k.zero
	if zero != nil {
		zero = zero[lo:hi]
	}
	k.w.apply(rows, src[0], 0, scales, zero, lo, first)
}

// A measured encoding is for scales that all rows share. Each is the weight's, or that of its encoding where
// rounding to the nearest is expected to err less on that.
type measured struct {
	*kept
	fresh  *Encoding
	once   sync.Once
	failed error
	stored [][]byte // scales and zero points
}

// Parts is how many tensors hold the rows.
func (m *measured) Parts() int { return m.fresh.Parts() }

// Extent is the place of rows in a part.
func (m *measured) Extent(part int, first, n int64) (off, size int64) {
	return m.fresh.Extent(part, first, n)
}

// Block is the number of rows that are encoded together.
func (m *measured) Block() int64 { return m.fresh.Block() }

// Measure chooses the scales.
func (m *measured) Measure(next func() ([]float32, int64, error)) error {
	m.once.Do(func() { m.failed = m.measure(next) })
	return m.failed
}

func (m *measured) measure(next func() ([]float32, int64, error)) error {
	if err := m.loadScales(); err != nil {
		return err
	}
	w := m.w
	errors, counts := make([]float64, w.grid.count), make([]int64, w.grid.count)
	err := m.fresh.Measure(func() ([]float32, int64, error) {
		rows, first, err := next()
		for r := int64(0); r*w.cols < int64(len(rows)); r++ {
			row := rows[r*w.cols:][:w.cols]
			w.grid.runs((first+r)*w.cols, w.cols, func(number, k, n int64) {
				s, z := m.scaleOf(number)
				errors[number] += m.levels.squaredError(row[k:k+n], s, z)
				counts[number] += n
			})
		}
		return rows, first, err
	})
	if err != nil {
		return err
	}
	scales, zero, stored, err := m.fresh.choose(m.fresh.ranges)
	if err != nil {
		return err
	}
	for i := range w.Parts[1:] {
		b, err := w.Parts[1+i].Read()
		if err != nil {
			return err
		}
		m.stored = append(m.stored, b)
	}
	size := int64(w.Parts[1].DType.BlockBytes())
	for g, s := range scales {
		if errors[g] <= float64(float64(counts[g])*float64(s)*float64(s)/12) {
			continue
		}
		m.scales[g] = s
		copy(m.stored[0][int64(g)*size:][:size], stored[int64(g)*size:])
		if m.zero != nil {
			m.zero[g] = zero[g]
			w.coding.set(m.stored[1], w.zeros.at(int64(g)), uint32(int32(zero[g])))
		}
	}
	return nil
}

// squaredError is that of the codes nearest to values.
func (l *levels) squaredError(x []float32, s, z float32) (sum float64) {
	low, top := float64(l.values[0]), float64(l.values[len(l.values)-1])
	for _, v := range x {
		q := float64(z)
		if s != 0 {
			q = max(low, min(top, math.RoundToEven(float64(v)/float64(s)+float64(z))))
		}
		d := float64((q-float64(z))*float64(s)) - float64(v)
		sum += float64(d * d)
	}
	return sum
}

// PutScales puts the scales with the first rows.
func (m *measured) PutScales(dst [][]byte, first int64) {
	if first > 0 {
		return
	}
	for i, b := range m.stored {
		copy(dst[1+i], b)
	}
}

// Encode stores rows by their nearest codes, and scales with the first ones.
func (m *measured) Encode(dst [][]byte, rows []float32, first int64) error {
	m.PutScales(dst, first)
	return m.kept.Encode(dst, rows, first)
}
