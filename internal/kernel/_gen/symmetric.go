package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// findPeak leaves the value of largest magnitude of each lane in top, and a mask of lanes where it is
// not too small in alive.
func findPeak(r rows, label string, x reg.Register, top, alive reg.VecVirtual) {
	amax := zeroed()
	VXORPS(top, top, top)
	r.each(label, 0, 2, func(at func(reg.Register) Mem) {
		v, a, more := YMM(), YMM(), YMM()
		VMOVUPS(at(x), v)
		VANDPS(noSign(), v, a)
		VCMPPS(U8(greater), amax, a, more)
		VBLENDVPS(more, v, top, top)
		VMAXPS(a, amax, amax)
	})
	VCMPPS(U8(atLeast), float(1e-15), amax, alive)
}

// symmetric emits the search for a scale in one set. Three candidates share a pass over the values.
func symmetric() {
	const together = 3
	TEXT("symmetricAVX2", 0, "func(x, w *float32, rows int, levels float32, shifts *float32, fit *float32)")
	Doc("symmetricAVX2 is symmetricGo for one set. fit are Scales of a SymmetricFit, shifts the 18 numbers of that name.")
	Pragma("noescape")
	x, w := Load(Param("x"), GP64()), Load(Param("w"), GP64())
	r := newRows(Load(Param("rows"), GP64()))
	shift, left := Load(Param("shifts"), GP64()), GP64()
	f := frame(5 + 32)
	minus, most, topM, aliveM, invM := f[0], f[1], f[2], f[3], f[4]
	wx := GP64()
	LEAQ(f[5], wx)
	top, alive := YMM(), YMM()
	findPeak(r, "peak", x, top, alive)
	VMOVUPS(top, topM)
	VMOVUPS(alive, aliveM)
	levels, t := broadcast("levels"), YMM()
	VXORPS(signBit(), levels, t)
	VMOVUPS(t, minus)
	VSUBPS(float(1), levels, levels)
	VMOVUPS(levels, most)
	r.each("products", 0, 2, func(at func(reg.Register) Mem) {
		v := YMM()
		VMOVUPS(at(x), v)
		VMULPS(at(w), v, v)
		VMOVUPS(v, at(wx))
	})

	sums := func(label string, inv []reg.VecVirtual) (xl, ll []reg.VecVirtual) {
		for range inv {
			xl, ll = append(xl, zeroed()), append(ll, zeroed())
		}
		r.each(label, 0, 1, func(at func(reg.Register) Mem) {
			for i := range inv {
				l, u := YMM(), YMM()
				VMULPS(at(x), inv[i], l)
				VROUNDPS(U8(0), l, l)
				VMAXPS(minus, l, l)
				VMINPS(most, l, l)
				VMULPS(at(wx), l, u)
				VADDPS(u, xl[i], xl[i])
				VMULPS(at(w), l, u)
				VMULPS(l, u, u)
				VADDPS(u, ll[i], ll[i])
			}
		})
		return xl, ll
	}
	inv := YMM()
	VMOVUPS(minus, inv)
	VDIVPS(topM, inv, inv)
	VMOVUPS(inv, invM)
	xl, ll := sums("first", []reg.VecVirtual{inv})
	scale, best := YMM(), YMM()
	VDIVPS(ll[0], xl[0], scale)
	VCMPPS(U8(notEqual), float(0), ll[0], t)
	VANDPS(t, scale, scale)
	VMULPS(xl[0], scale, best)

	MOVQ(U32(18/together), left)
	Label("candidates")
	var invs []reg.VecVirtual
	for i := range together {
		v := YMM()
		invs = append(invs, v)
		// -(levels + s) / top, as (-levels - s) / top.
		VBROADCASTSS(Mem{Base: shift, Disp: 4 * i}, v)
		u := YMM()
		VMOVUPS(minus, u)
		VSUBPS(v, u, v)
		VDIVPS(topM, v, v)
	}
	xl, ll = sums("sums", invs)
	for i := range together {
		better, u := YMM(), YMM()
		VMULPS(xl[i], xl[i], better)
		VMULPS(ll[i], best, u)
		VCMPPS(U8(greater), u, better, better)
		VCMPPS(U8(greater), float(0), ll[i], u)
		VANDPS(u, better, better)
		VDIVPS(ll[i], xl[i], ll[i])
		VBLENDVPS(better, ll[i], scale, scale)
		VMULPS(ll[i], xl[i], xl[i])
		VBLENDVPS(better, xl[i], best, best)
		VMOVUPS(invM, u)
		VBLENDVPS(better, invs[i], u, u)
		VMOVUPS(u, invM)
	}
	ADDQ(U8(4*together), shift)
	DECQ(left)
	JNZ(LabelRef("candidates"))

	fit := Load(Param("fit"), GP64())
	VANDPS(aliveM, scale, scale)
	VMOVUPS(scale, Mem{Base: fit})
	VMOVUPS(aliveM, t)
	VANDPS(invM, t, t)
	VMOVUPS(t, Mem{Base: fit, Disp: 64})
	VZEROUPPER()
	RET()
}

// descend emits the search that changes one code after the other in one set. Most steps change nothing
// in any lane: these are passed over by a branch, so that the next step need not wait for them.
func descend() {
	TEXT("descendAVX2", 0, "func(x, codes *float32, rows int, levels float32, scales *float32)")
	Doc("descendAVX2 is descendGo for one set.")
	Pragma("noescape")
	x, codes := Load(Param("x"), GP64()), Load(Param("codes"), GP64())
	r := newRows(Load(Param("rows"), GP64()))
	f := frame(4 + 2*32)
	minus, minusInt, mostInt, aliveM := f[0], f[1], f[2], f[3]
	// Weights x² and weighted values.
	w, wx := GP64(), GP64()
	LEAQ(f[4], w)
	LEAQ(f[4+32], wx)
	most, t := broadcast("levels"), YMM()
	VXORPS(signBit(), most, t)
	VMOVUPS(t, minus)
	VCVTPS2DQ(t, t)
	VMOVUPS(t, minusInt)
	VSUBPS(float(1), most, most)
	VCVTPS2DQ(most, t)
	VMOVUPS(t, mostInt)

	inv, alive := YMM(), YMM()
	findPeak(r, "peak", x, inv, alive)
	VMOVUPS(alive, aliveM)
	VMOVUPS(minus, alive)
	VDIVPS(inv, alive, inv)
	xl, ll := zeroed(), zeroed()
	r.each("first", 0, 2, func(at func(reg.Register) Mem) {
		v, l, u := YMM(), YMM(), YMM()
		VMOVUPS(at(x), v)
		VMULPS(inv, v, l)
		VROUNDPS(U8(0), l, l)
		VMAXPS(minus, l, l)
		VMINPS(most, l, l)
		VMOVUPS(l, at(codes))
		VMULPS(v, v, u)
		VMOVUPS(u, at(w))
		VMULPS(u, v, v)
		VMOVUPS(v, at(wx))
		VMULPS(l, v, v)
		VADDPS(v, xl, xl)
		VMULPS(l, u, u)
		VMULPS(l, u, u)
		VADDPS(u, ll, ll)
	})

	round, changed, bits := GP64(), GP32(), GP32()
	MOVQ(U32(5), round)
	JMP(LabelRef("round"))

	l, xl2, ll2, n, ok, u := YMM(), YMM(), YMM(), YMM(), YMM(), YMM()
	place := func(base reg.Register) Mem { return Mem{Base: base, Index: r.i, Scale: 1} }
	Label("change")
	VMULPS(place(wx), n, u)
	VADDPS(u, xl2, xl2)
	VMULPS(place(w), n, u)
	VMULPS(n, u, u)
	VADDPS(u, ll2, ll2)
	VCMPPS(U8(greater), float(0), ll2, u)
	VANDPS(u, ok, ok)
	left, right := YMM(), u
	VMULPS(xl2, xl2, left)
	VMULPS(ll, left, left)
	VMULPS(xl, xl, right)
	VMULPS(ll2, right, right)
	VCMPPS(U8(greater), right, left, left)
	VANDPS(left, ok, ok)
	VMOVMSKPS(ok, bits)
	ORL(bits, changed)
	VBLENDVPS(ok, xl2, xl, xl)
	VBLENDVPS(ok, ll2, ll, ll)
	VBLENDVPS(ok, n, l, l)
	VMOVUPS(l, place(codes))
	JMP(LabelRef("next"))

	Label("round")
	XORL(changed, changed)
	XORQ(r.i, r.i)
	Label("row")
	VMOVUPS(place(codes), l)
	VMULPS(place(wx), l, u)
	VSUBPS(u, xl, xl2)
	VMULPS(place(w), l, u)
	VMULPS(l, u, u)
	VSUBPS(u, ll, ll2)
	VCMPPS(U8(greater), float(0), xl2, ok)
	VMULPS(place(x), ll2, n)
	VDIVPS(xl2, n, n)
	// The portable code's rounding, by bits: the quotient may be of any size.
	VADDPS(float(3<<22), n, n)
	VPAND(everyLane(0x7fffff), n, n)
	VPSUBD(everyLane(0x400000), n, n)
	VPMAXSD(minusInt, n, n)
	VPMINSD(mostInt, n, n)
	VCVTDQ2PS(n, n)
	VCMPPS(U8(notEqual), l, n, u)
	VANDPS(u, ok, ok)
	VMOVMSKPS(ok, bits)
	TESTL(bits, bits)
	JNZ(LabelRef("change"))
	Label("next")
	ADDQ(U8(row), r.i)
	CMPQ(r.i, r.end)
	JL(LabelRef("row"))
	TESTL(changed, changed)
	JZ(LabelRef("done"))
	DECQ(round)
	JNZ(LabelRef("round"))

	Label("done")
	positive := YMM()
	VCMPPS(U8(greater), float(0), ll, positive)
	VDIVPS(ll, xl, xl)
	VANDPS(positive, xl, xl)
	VMOVUPS(aliveM, alive)
	VANDPS(alive, xl, xl)
	VMOVUPS(xl, Mem{Base: Load(Param("scales"), GP64())})
	r.each("raise", 0, 2, func(at func(reg.Register) Mem) {
		VMOVUPS(at(codes), l)
		VSUBPS(minus, l, l)
		VANDPS(alive, l, l)
		VMOVUPS(l, at(codes))
	})
	VZEROUPPER()
	RET()
}
