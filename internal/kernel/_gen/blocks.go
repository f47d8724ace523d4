package main

import (
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// The encoders of blocks of 32 whose scale needs no search. A block that holds what is not finite,
// whose scale overflows, or whose numbers are too small for the vector form, is left to the caller.

// A block is 32 values on their way, four vectors in the registers; or 16 of NVFP4.
type block struct {
	dst, src reg.Register
	v        []reg.VecVirtual
}

const infinity = 0x7f800000

func blockEncoders() {
	for _, e := range []struct {
		name, like   string
		values, size int
		step         func(b *block)
	}{
		{"encodeQ8_0AVX2", "Q8_0", 32, 34, encodeQ8},
		{"encodeQ4_0AVX2", "Q4_0", 32, 18, func(b *block) { b.symmetric(4) }},
		{"encodeQ5_0AVX2", "Q5_0", 32, 22, func(b *block) { b.symmetric(5) }},
		{"encodeQ4_1AVX2", "Q4_1", 32, 20, func(b *block) { b.affine(4) }},
		{"encodeQ5_1AVX2", "Q5_1", 32, 24, func(b *block) { b.affine(5) }},
		{"encodeMXFP4AVX2", "MXFP4", 32, 17, encodeMXFP4},
		{"encodeNVFP4AVX2", "NVFP4", 64, 36, encodeNVFP4},
	} {
		TEXT(e.name, NOSPLIT, "func(dst *byte, src *float32, blocks int) (left int)")
		Doc(e.name+" encodes blocks of "+e.like+", at least one, up to the first that it cannot do.", "It returns how many it left.")
		Pragma("noescape")
		b := &block{dst: Load(Param("dst"), GP64()), src: Load(Param("src"), GP64())}
		blocks := Load(Param("blocks"), GP64())
		Label("next")
		if e.values == 32 {
			b.v = b.load(0, 4)
		}
		e.step(b)
		ADDQ(U8(e.size), b.dst)
		ADDQ(U32(4*e.values), b.src)
		DECQ(blocks)
		JNZ(LabelRef("next"))
		Label("stop")
		Store(blocks, ReturnIndex(0))
		VZEROUPPER()
		RET()
	}
}

// load takes n vectors from value at on.
func (b *block) load(at, n int) (v []reg.VecVirtual) {
	for i := range n {
		v = append(v, YMM())
		VMOVUPS(Mem{Base: b.src, Disp: 4*at + row*i}, v[i])
	}
	return v
}

// across spreads to all lanes what fold makes of them.
func across(v reg.VecVirtual, fold func(a, b reg.VecVirtual)) {
	other := YMM()
	VPERM2F128(U8(1), v, v, other)
	fold(other, v)
	VPERMILPS(U8(0b01_00_11_10), v, other)
	fold(other, v)
	VPERMILPS(U8(0b10_11_00_01), v, other)
	fold(other, v)
}

// magnitude leaves the largest magnitude in all lanes, and gives up if it is not finite.
func (b *block) magnitude() reg.VecVirtual {
	top, bits := YMM(), GP32()
	VANDPS(noSign(), b.v[0], top)
	for _, v := range b.v[1:] {
		a := YMM()
		VANDPS(noSign(), v, a)
		VPMAXUD(a, top, top)
	}
	across(top, func(a, b reg.VecVirtual) { VPMAXUD(a, b, b) })
	VMOVD(top.AsX(), bits)
	CMPL(bits, U32(infinity))
	JAE(LabelRef("stop"))
	return top
}

// first spreads the first value of which the vectors of equal are true.
func (b *block) first(equal func(v, mask reg.VecVirtual)) reg.VecVirtual {
	all := GP32()
	for i := len(b.v) - 1; i >= 0; i-- {
		mask, bits := YMM(), GP32()
		equal(b.v[i], mask)
		VMOVMSKPS(mask, bits)
		if i == len(b.v)-1 {
			MOVL(bits, all)
			continue
		}
		SHLL(U8(8), all)
		ORL(bits, all)
	}
	BSFL(all, all)
	v := YMM()
	VBROADCASTSS(Mem{Base: b.src, Index: all.As64(), Scale: 4}, v)
	return v
}

// putHalf stores a number as float16, and gives up if it overflows.
func (b *block) putHalf(v reg.VecVirtual, disp int) {
	h, bits, exponent := XMM(), GP32(), GP32()
	VCVTPS2PH(U8(0), v.AsX(), h)
	VMOVD(h, bits)
	MOVL(bits, exponent)
	ANDL(U32(0x7c00), exponent)
	CMPL(exponent, U32(0x7c00))
	JEQ(LabelRef("stop"))
	MOVW(bits.As16(), Mem{Base: b.dst, Disp: disp})
}

// inverse is 1/d, or 0 for 0.
func inverse(d reg.VecVirtual) reg.VecVirtual {
	id, some := YMM(), YMM()
	VMOVUPS(float(1), id)
	VDIVPS(d, id, id)
	VCMPPS(U8(notEqual), float(0), d, some)
	VANDPS(some, id, id)
	return id
}

// truncate makes integers, of 8 bits as C does: what does not fit 32 bits becomes 0.
func truncate(v reg.VecVirtual) {
	VCVTTPS2DQ(v, v)
	VPSLLD(U8(24), v, v)
	VPSRAD(U8(24), v, v)
}

func encodeQ8(b *block) {
	d := b.magnitude()
	VDIVPS(float(127), d, d)
	b.putHalf(d, 0)
	id, small := inverse(d), YMM()
	VCMPPS(U8(less), everyLane(infinity), id, small)
	VANDPS(small, id, id)
	for _, v := range b.v {
		half := YMM()
		VMULPS(id, v, v)
		VANDPS(signBit(), v, half)
		VORPS(everyLane(0x3effffff), half, half) // the number below a half, away from zero
		VADDPS(half, v, v)
		VCVTTPS2DQ(v, v)
	}
	VPACKSSDW(b.v[1], b.v[0], b.v[0])
	VPACKSSDW(b.v[3], b.v[2], b.v[2])
	VPACKSSWB(b.v[2], b.v[0], b.v[0])
	order := YMM()
	VMOVDQU(unpackOrder(), order)
	VPERMD(b.v[0], order, b.v[0])
	VMOVDQU(b.v[0], Mem{Base: b.dst, Disp: 2})
}

func (b *block) symmetric(bits int) {
	half := float32(int(1) << (bits - 1))
	amax := b.magnitude()
	d := b.first(func(v, mask reg.VecVirtual) {
		VANDPS(noSign(), v, mask)
		VPCMPEQD(amax, mask, mask)
	})
	VADDPS(float(0), d, d) // a negative zero is not larger than the zero one starts with
	VDIVPS(float(-half), d, d)
	b.putHalf(d, 0)
	id := inverse(d)
	for _, v := range b.v {
		VMULPS(id, v, v)
		VADDPS(float(half+0.5), v, v)
		truncate(v)
		VPMINSD(everyLane(uint32(2*half-1)), v, v)
	}
	b.pack(bits, 2)
}

func (b *block) affine(bits int) {
	b.magnitude()
	low, high := YMM(), YMM()
	VMINPS(b.v[1], b.v[0], low)
	VMAXPS(b.v[1], b.v[0], high)
	for _, v := range b.v[2:] {
		VMINPS(v, low, low)
		VMAXPS(v, high, high)
	}
	across(low, func(a, b reg.VecVirtual) { VMINPS(a, b, b) })
	across(high, func(a, b reg.VecVirtual) { VMAXPS(a, b, b) })
	// Zeros of both signs are equal; the first one counts.
	low = b.first(func(v, mask reg.VecVirtual) { VCMPPS(U8(0), low, v, mask) })
	d := high
	VSUBPS(low, d, d)
	VADDPS(float(0), d, d) // no negative zero
	top := uint32(1)<<bits - 1
	VDIVPS(float(float32(top)), d, d)
	b.putHalf(d, 0)
	b.putHalf(low, 2)
	id := inverse(d)
	for _, v := range b.v {
		VSUBPS(low, v, v)
		VMULPS(id, v, v)
		VADDPS(float(0.5), v, v)
		truncate(v)
		if bits == 4 {
			VPMINSD(everyLane(top), v, v)
		}
	}
	b.pack(bits, 4)
}

// pack stores codes in split halves, after a word of their fifth bits.
func (b *block) pack(bits, disp int) {
	if bits == 5 {
		all := GP32()
		for i := len(b.v) - 1; i >= 0; i-- {
			fifth, m := YMM(), GP32()
			VPSLLD(U8(27), b.v[i], fifth)
			VMOVMSKPS(fifth, m)
			if i == len(b.v)-1 {
				MOVL(m, all)
				continue
			}
			SHLL(U8(8), all)
			ORL(m, all)
		}
		MOVL(all, Mem{Base: b.dst, Disp: disp})
		disp += 4
	}
	for _, v := range b.v {
		VPAND(everyLane(15), v, v)
	}
	for i := range 2 {
		VPSLLD(U8(4), b.v[2+i], b.v[2+i])
		VPOR(b.v[2+i], b.v[i], b.v[i])
	}
	VPACKUSDW(b.v[1], b.v[0], b.v[0])
	VPERMQ(U8(0b11_01_10_00), b.v[0], b.v[0])
	upper := XMM()
	VEXTRACTI128(U8(1), b.v[0], upper)
	VPACKUSWB(upper, b.v[0].AsX(), upper)
	VMOVDQU(upper, Mem{Base: b.dst, Disp: disp})
}

func encodeMXFP4(b *block) {
	amax, exponent, t := b.magnitude(), GP32(), GP32()
	VMOVD(amax.AsX(), exponent)
	// Just below a power of two the reference's logarithm rounds up.
	MOVL(exponent, t)
	ANDL(U32(0x7fffff), t)
	CMPL(t, U32(0x7fff00))
	JAE(LabelRef("stop"))
	SHRL(U8(23), exponent)
	SUBL(U8(2), exponent)
	CMPL(exponent, I32(28))
	JLT(LabelRef("stop"))
	MOVB(exponent.As8(), Mem{Base: b.dst})
	// In units of half the scale, 2^(exponent-128), magnitudes are compared with the middles of levels.
	MOVL(U32(255), t)
	SUBL(exponent, t)
	SHLL(U8(23), t)
	unit := YMM()
	VMOVD(t, unit.AsX())
	VPBROADCASTD(unit.AsX(), unit)
	var middles [7]Op
	for i, m := range e2m1Middles {
		middles[i] = float(m)
	}
	for _, v := range b.v {
		m := YMM()
		VMULPS(unit, v, m)
		VANDPS(noSign(), m, m)
		e2m1(m, v, middles)
	}
	b.pack(4, 1)
}

// e2m1Middles lie between the values of E2M1, times two. A magnitude in the middle takes the lower one.
var e2m1Middles = [7]float32{0.5, 1.5, 2.5, 3.5, 5, 7, 10}

// e2m1 leaves the code of v, whose magnitude is m, in v.
func e2m1(m, v reg.VecVirtual, middles [7]Op) {
	i, over := YMM(), YMM()
	VPXOR(i, i, i)
	for _, middle := range middles {
		VCMPPS(U8(greater), middle, m, over)
		VPSUBD(over, i, i)
	}
	VPXOR(m, m, m)
	VPCMPGTD(m, i, over) // zero has no sign
	VPSRAD(U8(31), v, v)
	VPAND(over, v, v)
	VPAND(everyLane(8), v, v)
	VPOR(i, v, v)
}

// encodeNVFP4 does four sub-blocks of 16, each with a scale of its own.
func encodeNVFP4(b *block) {
	scales := GLOBL("halfUE4M3", RODATA|NOPTR)
	for c := range 120 {
		value := math.Ldexp(float64(c&7), -9)
		if c >= 8 {
			value = math.Ldexp(1+float64(c&7)/8, c>>3-7)
		}
		DATA(4*c, U32(math.Float32bits(float32(value/2))))
	}
	table := GP64()
	LEAQ(scales, table)
	for s := range 4 {
		b.v = b.load(16*s, 2)
		sixth := b.magnitude()
		VDIVPS(float(6), sixth, sixth)
		// The scale's bits are the number's upper ones, rounded, or a multiple of 2^-9 below 2^-6.
		bits, code, small := GP32(), GP32(), GP32()
		VMOVD(sixth.AsX(), bits)
		LEAL(Mem{Base: bits, Disp: 1 << 19}, code)
		SHRL(U8(20), code)
		SUBL(U32(120<<3), code)
		VMULPS(float(512), sixth, sixth)
		VADDPS(float(0.5), sixth, sixth)
		VCVTTSS2SI(sixth.AsX(), small)
		seven := GP32()
		MOVL(U32(7), seven)
		CMPL(small, seven)
		CMOVLGT(seven, small)
		CMPL(bits, U32(121<<23))
		CMOVLCS(small, code)
		// Zero, and what becomes the largest scale, take another way.
		LEAL(Mem{Base: code, Disp: -1}, small)
		CMPL(small, U32(15<<3-1))
		JAE(LabelRef("stop"))
		MOVB(code.As8(), Mem{Base: b.dst, Disp: s})
		scale := YMM()
		VBROADCASTSS(Mem{Base: table, Index: code.As64(), Scale: 4}, scale)
		var middles [7]Op
		for i, m := range e2m1Middles {
			middle := YMM()
			VMULPS(float(m), scale, middle)
			middles[i] = middle
		}
		for _, v := range b.v {
			m := YMM()
			VANDPS(noSign(), v, m)
			e2m1(m, v, middles)
		}
		VPSLLD(U8(4), b.v[1], b.v[1])
		VPOR(b.v[1], b.v[0], b.v[0])
		upper := XMM()
		VEXTRACTI128(U8(1), b.v[0], upper)
		VPACKUSDW(upper, b.v[0].AsX(), upper)
		VPACKUSWB(upper, upper, upper)
		VMOVQ(upper, Mem{Base: b.dst, Disp: 4 + 8*s})
	}
}
