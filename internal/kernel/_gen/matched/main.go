// Command matched writes the assembly of matched rounding of package kernel, a file of its own.
package main

import (
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

func main() {
	ConstraintExpr("!noasm")
	for _, uniform := range []bool{true, false} {
		nearest(uniform)
		move(uniform)
	}
	gridDistances()
	Generate()
}

// gridDistances emits the squared distances of eight elements at a time.
func gridDistances() {
	TEXT("gridDistancesAVX2", NOSPLIT, "func(dst *float64, x, steps, offs *float32, groups int, low, top float32)")
	Doc("gridDistancesAVX2 stores the squared distances of elements to the nearest of their values, eight a group.")
	Pragma("noescape")
	dst, x := Load(Param("dst"), GP64()), Load(Param("x"), GP64())
	steps, offs := Load(Param("steps"), GP64()), Load(Param("offs"), GP64())
	groups := Load(Param("groups"), GP64())
	low, top, zero, round := parameter("low"), parameter("top"), YMM(), YMM()
	VXORPS(zero, zero, zero)
	rounding := GP32()
	MOVL(U32(math.Float32bits(3<<22)), rounding)
	VMOVD(rounding, round.AsX())
	VBROADCASTSS(round.AsX(), round)
	Label("next")
	v, s, o, c := YMM(), YMM(), YMM(), YMM()
	VMOVUPS(Mem{Base: x}, v)
	VMOVUPS(Mem{Base: steps}, s)
	VMOVUPS(Mem{Base: offs}, o)
	VSUBPS(o, v, c)
	VDIVPS(s, c, c)
	VSUBPS(low, c, c)
	VMINPS(top, c, c) // of two, the second where one is no number, which a step of zero makes of any code
	VMAXPS(zero, c, c)
	VADDPS(round, c, c)
	VSUBPS(round, c, c)
	VADDPS(low, c, c)
	VMULPS(s, c, c)
	VADDPS(o, c, c)
	for half := range 2 {
		value, element := YMM(), YMM()
		if half == 0 {
			VCVTPS2PD(c.AsX(), value)
			VCVTPS2PD(v.AsX(), element)
		} else {
			high := XMM()
			VEXTRACTF128(U8(1), c, high)
			VCVTPS2PD(high, value)
			VEXTRACTF128(U8(1), v, high)
			VCVTPS2PD(high, element)
		}
		VSUBPD(element, value, value)
		VMULPD(value, value, value)
		VMOVUPD(value, Mem{Base: dst, Disp: 32 * half})
	}
	for _, p := range []reg.Register{x, steps, offs} {
		ADDQ(U8(32), p)
	}
	ADDQ(U8(64), dst)
	DECQ(groups)
	JNZ(LabelRef("next"))
	VZEROUPPER()
	RET()
}

// The vectors of a column, in bytes.
const (
	target = 32 * iota
	shift
	step
	offset
	code
	err
	size
)

const columns = 4 // worked on together, so that sums do not wait for each other

func broadcast(m Mem) reg.VecVirtual {
	v := YMM()
	VBROADCASTSS(m, v)
	return v
}

func parameter(name string) reg.VecVirtual {
	p, e := Param(name).Resolve()
	if e != nil {
		panic(e)
	}
	return broadcast(p.Addr)
}

func name(what string, uniform bool) string {
	if uniform {
		return what + "UniformAVX2"
	}
	return what + "LevelsAVX2"
}

// begin loads what both functions share: the vectors of Q of the four columns are stride apart.
func begin() (data, q, stride, left reg.Register) {
	data, q, left = Load(Param("data"), GP64()), Load(Param("q"), GP64()), Load(Param("cols"), GP64())
	stride = Load(Param("rank"), GP64())
	SHLQ(U8(2), stride)
	SHRQ(U8(2), left)
	return data, q, stride, left
}

// each runs through the directions of four columns; at is that of the first column, in bytes, and at8 of
// vectors.
func each(label string, q, stride reg.Register, do func(q [columns]Mem, at8 reg.Register)) {
	at, p := GP64(), GP64()
	at8 := GP64()
	XORQ(at8, at8)
	MOVQ(q, p)
	three := GP64()
	LEAQ(Mem{Base: stride, Index: stride, Scale: 2}, three)
	MOVQ(stride, at)
	Label(label)
	do([columns]Mem{{Base: p}, {Base: p, Index: stride, Scale: 1}, {Base: p, Index: stride, Scale: 2}, {Base: p, Index: three, Scale: 1}}, at8)
	ADDQ(U8(4), p)
	ADDQ(U8(32), at8)
	SUBQ(U8(4), at)
	JNZ(LabelRef(label))
}

// lookUp takes levels by their number out of a table of 16.
func lookUp(table reg.Register, disp int, number reg.VecVirtual) reg.VecVirtual {
	low, high, upper := YMM(), YMM(), YMM()
	VPERMPS(Mem{Base: table, Disp: disp}, number, low)
	VPERMPS(Mem{Base: table, Disp: disp + 32}, number, high)
	VPSLLD(U8(28), number, upper) // the bit of 8 is the sign
	VBLENDVPS(upper, high, low, low)
	return low
}

// The tables of levels: levels, borders above them, ways to the next level and to the one before.
const (
	levels = 64 * iota
	borders
	up
	down
)

func nearest(uniform bool) {
	last := "low, top float32"
	if !uniform {
		last = "table *float32"
	}
	TEXT(name("matchNearest", uniform), NOSPLIT, "func(data, q *float32, rank, cols int, z, c *float32, "+last+")")
	Doc(name("matchNearest", uniform)+" rounds the columns of eight rows, in fours, to the codes nearest to target + shift + Q·z.", "It stores codes and errors, and adds the errors times Q to c.")
	Pragma("noescape")
	data, q, stride, left := begin()
	z, c := Load(Param("z"), GP64()), Load(Param("c"), GP64())
	var table reg.Register
	var low, top, zero reg.VecVirtual
	if uniform {
		low, top, zero = parameter("low"), parameter("top"), YMM()
		VXORPS(zero, zero, zero)
	} else {
		table = Load(Param("table"), GP64())
	}
	at := func(i, field int) Mem { return Mem{Base: data, Disp: size*i + field} }
	Label("next")
	var s [columns]reg.VecVirtual
	for i := range s {
		s[i] = YMM()
		VMOVUPS(at(i, shift), s[i])
	}
	each("shift", q, stride, func(q [columns]Mem, at8 reg.Register) {
		zj := YMM()
		VMOVUPS(Mem{Base: z, Index: at8, Scale: 1}, zj)
		for i, m := range q {
			x := broadcast(m)
			VMULPS(zj, x, x)
			VADDPS(x, s[i], s[i])
		}
	})
	for i, x := range s {
		t, st, off := YMM(), YMM(), YMM()
		VMOVUPS(at(i, target), t)
		VMOVUPS(at(i, step), st)
		VMOVUPS(at(i, offset), off)
		VADDPS(x, t, x)
		VSUBPS(off, x, x)
		VDIVPS(st, x, x)
		level := YMM()
		if uniform {
			VSUBPS(low, x, x)
			VROUNDPS(U8(0), x, x)
			VMAXPS(zero, x, x) // what is not a number becomes the second operand
			VMINPS(top, x, x)
			VMOVUPS(x, at(i, code))
			VADDPS(low, x, level)
		} else {
			number := YMM()
			VPXOR(number, number, number)
			for n := range 15 {
				border := broadcast(Mem{Base: table, Disp: borders + 4*n})
				VCMPPS(U8(0x11), x, border, border) // border < x
				VPSUBD(border, number, number)
			}
			f := YMM()
			VCVTDQ2PS(number, f)
			VMOVUPS(f, at(i, code))
			level = lookUp(table, levels, number)
		}
		VMULPS(st, level, level)
		VADDPS(off, level, level)
		VSUBPS(t, level, s[i])
		VMOVUPS(s[i], at(i, err))
	}
	each("sum", q, stride, func(q [columns]Mem, at8 reg.Register) {
		cj := YMM()
		VMOVUPS(Mem{Base: c, Index: at8, Scale: 1}, cj)
		for i, m := range q {
			x := broadcast(m)
			VMULPS(s[i], x, x)
			VADDPS(x, cj, cj)
		}
		VMOVUPS(cj, Mem{Base: c, Index: at8, Scale: 1})
	})
	advance(data, q, stride, left)
	VZEROUPPER()
	RET()
}

func advance(data, q, stride, left reg.Register) {
	ADDQ(U32(columns*size), data)
	LEAQ(Mem{Base: q, Index: stride, Scale: 4}, q)
	DECQ(left)
	JNZ(LabelRef("next"))
}

func constant(name string, x uint32) Mem {
	m := GLOBL(name, RODATA|NOPTR)
	for i := range 8 {
		DATA(4*i, U32(x))
	}
	return m
}

func move(uniform bool) {
	last := ""
	if !uniform {
		last = ", table *float32"
	}
	TEXT(name("matchMove", uniform), NOSPLIT, "func(data, q *float32, rank, cols int, c, curves *float32, top float32, best *float32"+last+")")
	Doc(name("matchMove", uniform)+" finds in each of eight rows the move of one code to a neighbour that gains most.",
		"best are three vectors: gains, changes of the value, and as integers twice the column, plus 1 for the neighbour above.")
	Pragma("noescape")
	data, q, stride, left := begin()
	c, curves := Load(Param("c"), GP64()), Load(Param("curves"), GP64())
	top := parameter("top")
	best := Load(Param("best"), GP64())
	var table reg.Register
	if !uniform {
		table = Load(Param("table"), GP64())
	}
	suffix := name("", uniform)
	weight := constant("matchWeight"+suffix, math.Float32bits(1e4))
	sign := constant("matchSign"+suffix, 1<<31)
	one := constant("matchOne"+suffix, 1)
	least, by, index, now := YMM(), YMM(), YMM(), YMM()
	VXORPS(least, least, least)
	VXORPS(by, by, by)
	VPCMPEQD(index, index, index) // -1
	VPXOR(now, now, now)
	at := func(i, field int) Mem { return Mem{Base: data, Disp: size*i + field} }
	Label("next")
	var s [columns]reg.VecVirtual
	for i := range s {
		s[i] = YMM()
		VXORPS(s[i], s[i], s[i])
	}
	each("dot", q, stride, func(q [columns]Mem, at8 reg.Register) {
		cj := YMM()
		VMOVUPS(Mem{Base: c, Index: at8, Scale: 1}, cj)
		for i, m := range q {
			x := broadcast(m)
			VMULPS(cj, x, x)
			VADDPS(x, s[i], s[i])
		}
	})
	for i, slope := range s {
		VMULPS(weight, slope, slope)
		VADDPS(at(i, err), slope, slope)
		VADDPS(slope, slope, slope)
		k := YMM()
		VMOVUPS(at(i, code), k)
		for _, above := range []bool{false, true} {
			d, gain, square, allowed := YMM(), YMM(), YMM(), YMM()
			VMOVUPS(at(i, step), d)
			switch {
			case !uniform:
				number := YMM()
				VCVTPS2DQ(k, number)
				disp := down
				if above {
					disp = up
				}
				VMULPS(lookUp(table, disp, number), d, d)
			case !above:
				VXORPS(sign, d, d)
			}
			VMULPS(d, d, square)
			VMULPS(broadcast(Mem{Base: curves, Disp: 4 * i}), square, square)
			VMULPS(slope, d, gain)
			VADDPS(square, gain, gain)
			VCMPPS(U8(0x11), least, gain, allowed) // gain < least
			within := YMM()
			if above {
				VCMPPS(U8(0x11), top, k, within) // code < top
			} else {
				VXORPS(within, within, within)
				VCMPPS(U8(0x11), k, within, within) // 0 < code
			}
			VANDPS(within, allowed, allowed)
			VBLENDVPS(allowed, gain, least, least)
			VBLENDVPS(allowed, d, by, by)
			VBLENDVPS(allowed, now, index, index)
			VPADDD(one, now, now)
		}
	}
	ADDQ(U8(4*columns), curves)
	advance(data, q, stride, left)
	VMOVUPS(least, Mem{Base: best})
	VMOVUPS(by, Mem{Base: best, Disp: 32})
	VMOVDQU(index, Mem{Base: best, Disp: 64})
	VZEROUPPER()
	RET()
}
