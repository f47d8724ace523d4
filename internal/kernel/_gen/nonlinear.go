package main

import (
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// nonLinear emits the search for the scale of values in the levels of the IQ4 types.
func nonLinear() {
	levels := [16]float32{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}
	border := func(i int) float32 { return (levels[i-1] + levels[i]) / 2 }
	table := func(name string, at func(i int) float32) Mem {
		m := GLOBL(name, RODATA|NOPTR)
		for i := range 8 {
			DATA(4*i, U32(math.Float32bits(at(i))))
		}
		return m
	}
	// A level is found by halving: each table has the borders for what is known so far.
	second := table("nonLinearSecond", func(i int) float32 { return border(4 + 8*(i&1)) })
	third := table("nonLinearThird", func(i int) float32 { return border(2 + 4*(i&3)) })
	fourth := table("nonLinearFourth", func(i int) float32 { return border(1 + 2*i) })
	even := table("nonLinearEven", func(i int) float32 { return levels[2*i] })
	odd := table("nonLinearOdd", func(i int) float32 { return levels[2*i+1] })

	TEXT("nonLinearAVX2", 0, "func(x, w *float32, rows int, tries *float32, scales *float32)")
	Doc("nonLinearAVX2 is nonLinearGo for one set. tries are the 15 numbers of nonLinearTries.")
	Pragma("noescape")
	x, w := Load(Param("x"), GP64()), Load(Param("w"), GP64())
	r := newRows(Load(Param("rows"), GP64()))
	try, left := Load(Param("tries"), GP64()), GP64()
	f := frame(2)
	topM, aliveM := f[0], f[1]
	top, alive := YMM(), YMM()
	findPeak(r, "peak", x, top, alive)
	VMOVUPS(top, topM)
	VMOVUPS(alive, aliveM)

	sums := func(label string, inv reg.VecVirtual) (xq, qq reg.VecVirtual) {
		xq, qq = zeroed(), zeroed()
		r.each(label, 0, 2, func(at func(reg.Register) Mem) {
			v, t, i, b, q := YMM(), YMM(), YMM(), YMM(), YMM()
			VMOVUPS(at(x), v)
			VMULPS(v, inv, t)
			VCMPPS(U8(atLeast), float(border(8)), t, i)
			VPSRLD(U8(31), i, i)
			for _, borders := range []Mem{second, third} {
				VPERMPS(borders, i, b)
				VCMPPS(U8(atLeast), b, t, b)
				VPADDD(i, i, i)
				VPSUBD(b, i, i)
			}
			VPERMPS(fourth, i, b)
			VCMPPS(U8(atLeast), b, t, b)
			VPERMPS(even, i, q)
			VPERMPS(odd, i, i)
			VBLENDVPS(b, i, q, q)
			VMULPS(at(w), q, t)
			VMULPS(t, v, v)
			VADDPS(v, xq, xq)
			VMULPS(t, q, q)
			VADDPS(q, qq, qq)
		})
		return xq, qq
	}
	inv, scale, best, t := YMM(), YMM(), YMM(), YMM()
	VXORPS(signBit(), top, t)
	VDIVPS(float(levels[0]), t, t)
	VMOVUPS(float(1), inv)
	VDIVPS(t, inv, inv)
	xq, qq := sums("first", inv)
	VDIVPS(qq, xq, scale)
	VCMPPS(U8(greater), float(0), qq, t)
	VANDPS(t, scale, scale)
	VMULPS(xq, scale, best)

	MOVQ(U32(15), left)
	Label("candidate")
	VBROADCASTSS(Mem{Base: try}, inv)
	VDIVPS(topM, inv, inv)
	xq, qq = sums("sums", inv)
	better, u := YMM(), YMM()
	VMULPS(xq, xq, better)
	VMULPS(qq, best, u)
	VCMPPS(U8(greater), u, better, better)
	VCMPPS(U8(greater), float(0), qq, u)
	VANDPS(u, better, better)
	VDIVPS(qq, xq, qq)
	VBLENDVPS(better, qq, scale, scale)
	VMULPS(qq, xq, xq)
	VBLENDVPS(better, xq, best, best)
	ADDQ(U8(4), try)
	DECQ(left)
	JNZ(LabelRef("candidate"))
	VANDPS(aliveM, scale, scale)
	VMOVUPS(scale, Mem{Base: Load(Param("scales"), GP64())})
	VZEROUPPER()
	RET()
}
