package quant

import (
	"encoding/binary"
	"math"
	"slices"

	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/tensor"
)

// A Grid is what the elements of a row can be without its scales being touched: element k is
// Step[k]·Levels[code] + Off[k], each operation float32 and rounded on its own, exactly what the type
// decodes to. Where Step is zero all codes mean the same.
type Grid struct {
	Step, Off []float32 // per element
	Levels    []float32 // ascending; a code is an index into it
	Uniform   bool      // levels are consecutive integers
}

// Value is what a code of element k decodes to.
func (g *Grid) Value(k int, code int16) float32 {
	return float32(g.Step[k]*g.Levels[code]) + g.Off[k]
}

// Nearest is the code whose value lies closest to x, and old where the step is zero. It never fails, but what
// it makes of numbers that are not finite means nothing.
func (g *Grid) Nearest(k int, x float32, old int16) int16 {
	s := g.Step[k]
	if s == 0 {
		return old
	}
	u := (x - g.Off[k]) / s
	top := len(g.Levels) - 1
	if g.Uniform {
		c := math.RoundToEven(float64(u - g.Levels[0]))
		switch {
		case !(c > 0): // also what is not a number
			return 0
		case c > float64(top):
			return int16(top)
		}
		return int16(c)
	}
	lo, hi := 0, top // the first level whose upper midpoint is not below u
	for lo < hi {
		m := (lo + hi) / 2
		if float32(0.5*(g.Levels[m]+g.Levels[m+1])) < u {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return int16(lo)
}

// Squares sets dst to the squared distances of x, as many elements as the grid has, to the values of their nearest
// codes. codes are those of elements whose step is zero.
func (g *Grid) Squares(dst []float64, x []float32, codes []int16) {
	if g.Uniform {
		kernel.GridDistances(dst, x, g.Step, g.Off, g.Levels[0], float32(len(g.Levels)-1))
		return
	}
	for k, v := range x {
		d := float64(g.Value(k, g.Nearest(k, v, codes[k]))) - float64(v)
		dst[k] = float64(d * d)
	}
}

// Resize makes room for n elements.
func (g *Grid) Resize(n int) {
	if cap(g.Step) < n || cap(g.Off) < n {
		g.Step, g.Off = make([]float32, n), make([]float32, n)
	}
	g.Step, g.Off = g.Step[:n], g.Off[:n]
}

// HasGrid reports whether each element of the type has a code of its own, so that ReadGrid and WriteCodes
// work. IQ1, IQ2 and IQ3 have codes of 4 or 8 elements, plain types have none.
func (c Codec) HasGrid() bool { return int(c.dtype) < len(grids) && grids[c.dtype] != nil }

// ReadGrid takes whole blocks apart: the grid of their elements, and the codes, one per element. src holds
// exactly the bytes of len(codes) elements, and the type has a grid; all else is a mistake of the caller and
// panics.
func (c Codec) ReadGrid(g *Grid, codes []int16, src []byte) {
	if err := c.fits(len(src), len(codes)); err != nil {
		panic("quant: " + err.Error())
	}
	t := grids[c.dtype]
	g.Resize(len(codes))
	g.Levels, g.Uniform = t.levels, t.uniform
	n, size := c.dtype.BlockLen(), c.dtype.BlockBytes()
	for i := 0; i < len(codes); i += n {
		t.steps(g.Step[i:i+n], g.Off[i:i+n], src[:size])
		if t.nibbles.n > 0 && t.order == nil {
			t.nibbles.read(codes[i:i+n], src)
		} else {
			for k := range t.table {
				codes[i+k] = t.code(t.table[k].get(src))
			}
		}
		src = src[size:]
	}
}

// WriteCodes puts codes into whole blocks, whose scales stay as they are. Codes that are there already
// change no byte.
func (c Codec) WriteCodes(dst []byte, codes []int16) {
	if err := c.fits(len(dst), len(codes)); err != nil {
		panic("quant: " + err.Error())
	}
	t := grids[c.dtype]
	n, size := c.dtype.BlockLen(), c.dtype.BlockBytes()
	for i := 0; i < len(codes); i += n {
		if t.nibbles.n > 0 && t.order == nil {
			t.nibbles.write(dst, codes[i:i+n])
			dst = dst[size:]
			continue
		}
		for k := range t.table {
			if p, code := &t.table[k], codes[i+k]; t.code(p.get(dst)) != code {
				p.put(dst, t.raw(code))
			}
		}
		dst = dst[size:]
	}
}

// Stretches reports whether the scales of the type's blocks are float16 numbers, so that Stretch works.
func (c Codec) Stretches() bool { return c.HasGrid() && grids[c.dtype].float16s != nil }

// Stretch multiplies the scales and minima of whole blocks by a factor, as near as float16 holds them. Those that
// would overflow stay.
func (c Codec) Stretch(dst []byte, by float32) {
	t, size := grids[c.dtype], c.dtype.BlockBytes()
	for ; len(dst) > 0; dst = dst[size:] {
		for _, at := range t.float16s {
			old := [2]byte(dst[at:])
			if !putHalf(dst[at:], float32(half(dst[at:])*by)) {
				copy(dst[at:], old[:])
			}
		}
	}
}

// A place is where a block keeps the code of an element: some bits of a byte, and above them, in some
// types, more bits of another byte.
type place struct {
	at, shift, bits             int
	highAt, highShift, highBits int
}

func (p *place) get(b []byte) byte {
	v := b[p.at] >> p.shift & (1<<p.bits - 1)
	if p.highBits > 0 {
		v |= b[p.highAt] >> p.highShift & (1<<p.highBits - 1) << p.bits
	}
	return v
}

func (p *place) put(b []byte, v byte) {
	set := func(at, shift, bits int, v byte) {
		mask := byte(1<<bits-1) << shift
		b[at] = b[at]&^mask | v<<shift&mask
	}
	set(p.at, p.shift, p.bits, v)
	if p.highBits > 0 {
		set(p.highAt, p.highShift, p.highBits, v>>p.bits)
	}
}

// A gridType says how a type keeps steps and codes.
type gridType struct {
	levels   []float32
	uniform  bool
	steps    func(step, off []float32, b []byte)
	float16s []int   // where a block has its scale, and its minimum, as float16; nil where they are coarser
	nibbles  nibbles // where all of a code's bits lie, or
	place    func(k int) place
	table    []place // of place, made once
	order    []int16 // index of the level of a stored code, where they are not in order
	stored   []byte  // the stored code of a level then
	flip     byte    // else exclusive-or of the stored code gives the index
}

func (t *gridType) code(raw byte) int16 {
	if t.order != nil {
		return t.order[raw]
	}
	return int16(raw ^ t.flip)
}

func (t *gridType) raw(code int16) byte {
	if t.order != nil {
		return t.stored[code]
	}
	return byte(code) ^ t.flip
}

// consecutive are n integers from low on.
func consecutive(low, n int) []float32 {
	l := make([]float32, n)
	for i := range l {
		l[i] = float32(low + i)
	}
	return l
}

var noOffset = float32(math.Copysign(0, -1)) // added to anything, it changes nothing

// same gives all elements the step and offset of the block.
func same(step, off []float32, s, o float32) {
	for k := range step {
		step[k], off[k] = s, o
	}
}

func scaled(step, off []float32, b []byte) { same(step, off, half(b), noOffset) }
func raised(step, off []float32, b []byte) { same(step, off, half(b), half(b[2:])) }

// nibbles are codes of four bits: byte at and those that follow hold, for each n elements, the first half in their
// low bits and the second in their high ones.
type nibbles struct{ at, n int }

func (h nibbles) place(k int) place {
	return place{at: h.at + k/h.n*(h.n/2) + k%(h.n/2), shift: k % h.n / (h.n / 2) * 4, bits: 4}
}

// read takes the codes of a block.
func (h nibbles) read(codes []int16, b []byte) {
	half := h.n / 2
	for b = b[h.at:]; len(codes) > 0; codes, b = codes[h.n:], b[half:] {
		low, high := codes[:half], codes[half:h.n]
		for j, c := range b[:half] {
			low[j], high[j] = int16(c&15), int16(c>>4)
		}
	}
}

// write puts the codes of a block.
func (h nibbles) write(b []byte, codes []int16) {
	half := h.n / 2
	for b = b[h.at:]; len(codes) > 0; codes, b = codes[h.n:], b[half:] {
		low, high := codes[:half], codes[half:h.n]
		for j := range b[:half] {
			b[j] = byte(low[j]) | byte(high[j])<<4
		}
	}
}

// fives are nibbles with the fifth bits in a word before.
func fives(word int) func(int) place {
	return func(k int) place {
		p := nibbles{word + 4, 32}.place(k)
		p.highAt, p.highShift, p.highBits = word+k/8, k%8, 1
		return p
	}
}

var grids = [...]*gridType{
	tensor.Q4_0: {levels: consecutive(-8, 16), uniform: true, float16s: []int{0}, steps: scaled, nibbles: nibbles{2, 32}},
	tensor.Q4_1: {levels: consecutive(0, 16), uniform: true, float16s: []int{0, 2}, steps: raised, nibbles: nibbles{4, 32}},
	tensor.Q5_0: {levels: consecutive(-16, 32), uniform: true, float16s: []int{0}, steps: scaled, place: fives(2)},
	tensor.Q5_1: {levels: consecutive(0, 32), uniform: true, float16s: []int{0, 2}, steps: raised, place: fives(4)},
	tensor.Q8_0: {levels: consecutive(-128, 256), uniform: true, float16s: []int{0}, steps: scaled, flip: 0x80,
		place: func(k int) place { return place{at: 2 + k, bits: 8} }},
	tensor.Q2_K: {levels: consecutive(0, 4), uniform: true, float16s: []int{80, 82}, steps: stepsQ2_K, place: func(k int) place {
		return place{at: 16 + k/128*32 + k%32, shift: k % 128 / 32 * 2, bits: 2}
	}},
	tensor.Q3_K: {levels: consecutive(-4, 8), uniform: true, float16s: []int{108}, steps: stepsQ3_K, place: func(k int) place {
		return place{at: 32 + k/128*32 + k%32, shift: k % 128 / 32 * 2, bits: 2, highAt: k % 32, highShift: k / 32, highBits: 1}
	}},
	tensor.Q4_K: {levels: consecutive(0, 16), uniform: true, float16s: []int{0, 2}, steps: stepsQ4_K, nibbles: nibbles{16, 64}},
	tensor.Q5_K: {levels: consecutive(0, 32), uniform: true, float16s: []int{0, 2}, steps: stepsQ4_K, place: func(k int) place {
		return place{at: 48 + k/64*32 + k%32, shift: k / 32 % 2 * 4, bits: 4, highAt: 16 + k%32, highShift: k / 32, highBits: 1}
	}},
	tensor.Q6_K: {levels: consecutive(-32, 64), uniform: true, float16s: []int{208}, steps: stepsQ6_K, place: func(k int) place {
		return place{at: k/128*64 + k%64, shift: k % 128 / 64 * 4, bits: 4, highAt: 128 + k/128*32 + k%32, highShift: k % 128 / 32 * 2, highBits: 2}
	}},
	tensor.IQ4_NL: {levels: kernel.NonLinearLevels[:], float16s: []int{0}, steps: scaled, nibbles: nibbles{2, 32}},
	tensor.IQ4_XS: {levels: kernel.NonLinearLevels[:], float16s: []int{0}, steps: stepsIQ4_XS, nibbles: nibbles{8, 32}},
	tensor.MXFP4:  {steps: func(step, off []float32, b []byte) { same(step, off, halfPower(b[0]), noOffset) }, nibbles: nibbles{1, 32}},
	tensor.NVFP4:  {steps: stepsNVFP4, nibbles: nibbles{4, 16}},
}

func init() {
	for d, t := range grids {
		if t == nil {
			continue
		}
		n := tensor.DType(d).BlockLen()
		t.table = make([]place, n)
		if t.place == nil {
			t.place = t.nibbles.place
		}
		for k := range t.table {
			t.table[k] = t.place(k)
		}
		if t.levels == nil {
			t.setFloats()
		}
	}
}

// setFloats gives a type the levels of a four-bit float. There are two zeros: what stands for the second is
// left alone, and none is written.
func (t *gridType) setFloats() {
	t.levels = slices.Compact(slices.Sorted(slices.Values(twiceE2M1[:])))
	t.order, t.stored = make([]int16, 16), make([]byte, len(t.levels))
	for raw := 15; raw >= 0; raw-- { // the first zero comes last
		i := slices.Index(t.levels, twiceE2M1[raw])
		t.order[raw], t.stored[i] = int16(i), byte(raw)
	}
}

func stepsQ2_K(step, off []float32, b []byte) {
	d, dmin := half(b[80:]), half(b[82:])
	for j, s := range b[:16] {
		same(step[16*j:][:16], off[16*j:][:16], d*float32(s&15), -float32(dmin*float32(s>>4)))
	}
}

func stepsQ3_K(step, off []float32, b []byte) {
	scales, d := b[96:108], half(b[108:])
	for j := range 16 {
		s := scales[j%8]>>(j/8*4)&15 | scales[8+j%4]>>(j/4*2)&3<<4
		same(step[16*j:][:16], off[16*j:][:16], d*float32(int(s)-32), noOffset)
	}
}

// stepsQ4_K are also those of Q5_K.
func stepsQ4_K(step, off []float32, b []byte) {
	d, dmin := half(b), half(b[2:])
	for j := range 8 {
		s, m := sixBits(b[4:16], j)
		same(step[32*j:][:32], off[32*j:][:32], d*float32(s), -float32(dmin*float32(m)))
	}
}

func stepsQ6_K(step, off []float32, b []byte) {
	d := half(b[208:])
	for j, s := range b[192:208] {
		same(step[16*j:][:16], off[16*j:][:16], d*float32(int8(s)), noOffset)
	}
}

func stepsIQ4_XS(step, off []float32, b []byte) {
	d, high, low := half(b), binary.LittleEndian.Uint16(b[2:]), b[4:8]
	for j := range 8 {
		s := int(low[j/2]>>(j%2*4)&15) | int(high>>(2*j)&3)<<4
		same(step[32*j:][:32], off[32*j:][:32], d*float32(s-32), noOffset)
	}
}

func stepsNVFP4(step, off []float32, b []byte) {
	for j, s := range b[:4] {
		same(step[16*j:][:16], off[16*j:][:16], 0.5*ue4m3(s), noOffset)
	}
}
