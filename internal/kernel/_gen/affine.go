package main

import (
	"fmt"
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// affine emits the search for scale and minimum in two sets at once: sums of one set alone would leave
// the processor waiting for each other.
//
// Codes are rounded by VROUNDPS, which equals the rounding of the portable code below 2^22. Where a
// lane could leave that range the function gives up and the portable code does the work.
func affine(name string, absolute bool) {
	const sets = 2
	TEXT(name, 0, "func(x0, x1, w0, w1, numerators *float32, count, rows int, top float32, fit0, fit1 *float32) (ok bool)")
	kind := "square"
	if absolute {
		kind = "absolute"
	}
	Doc(fmt.Sprintf("%s is affineGo for two sets, with %s errors. fit0 and fit1 are Scales of an AffineFit.", name, kind),
		"It reports false, and leaves them undefined, when codes may leave the range it can round.")
	Pragma("noescape")
	pair := func(name string) [sets]reg.Register {
		return [sets]reg.Register{Load(Param(name+"0"), GP64()), Load(Param(name+"1"), GP64())}
	}
	vectors := func() (v [sets]reg.VecVirtual) {
		for s := range v {
			v[s] = YMM()
		}
		return v
	}
	zeros := func() (v [sets]reg.VecVirtual) {
		for s := range v {
			v[s] = zeroed()
		}
		return v
	}
	x, w := pair("x"), pair("w")
	num, left := Load(Param("numerators"), GP64()), Load(Param("count"), GP64())
	r := newRows(Load(Param("rows"), GP64()))
	const perSet = 10
	f := frame(1 + sets*perSet + sets*32)
	topM := f[0]
	// What there is of each set beside the vectors in the loops.
	var hiM, lo0M, loM, sumWM, sumXM, deadM, invM, fromM, scaleM, bestM [sets]Mem
	for s := range sets {
		for i, m := range []*[sets]Mem{&hiM, &lo0M, &loM, &sumWM, &sumXM, &deadM, &invM, &fromM, &scaleM, &bestM} {
			m[s] = f[1+perSet*s+i]
		}
	}
	try := GP64()
	LEAQ(f[1+sets*perSet], try)
	tried := func(at func(reg.Register) Mem, s int) Mem { return at(try).Offset(32 * row * s) }

	top, zero := broadcast("top"), zeroed()
	VMOVUPS(top, topM)
	for s := range sets {
		lo, hi, sumW, sumX := YMM(), YMM(), YMM(), YMM()
		VMOVUPS(Mem{Base: x[s]}, lo)
		VMOVAPS(lo, hi)
		VMOVUPS(Mem{Base: w[s]}, sumW)
		VMULPS(lo, sumW, sumX)
		r.each(fmt.Sprintf("range%d", s), row, 1, func(at func(reg.Register) Mem) {
			v, u := YMM(), YMM()
			VMOVUPS(at(x[s]), v)
			VMOVUPS(at(w[s]), u)
			VMINPS(lo, v, lo)
			VMAXPS(hi, v, hi)
			VADDPS(u, sumW, sumW)
			VMULPS(v, u, u)
			VADDPS(u, sumX, sumX)
		})
		VMOVUPS(lo, lo0M[s])
		VMINPS(lo, zero, lo) // 0 < lo ? 0 : lo
		VMOVUPS(lo, loM[s])
		VMOVUPS(lo, fromM[s])
		VMOVUPS(hi, hiM[s])
		VMOVUPS(sumW, sumWM[s])
		VMOVUPS(sumX, sumXM[s])
		VCMPPS(U8(atMost), lo, hi, hi)
		VMOVUPS(hi, deadM[s])
	}

	// grid sets inv to numerator / (hi - lo), and gives up if that may take a code out of range.
	grid := func(numerator Op) (lo, inv [sets]reg.VecVirtual) {
		lo, inv = vectors(), vectors()
		all, n := GP32(), YMM()
		if m, ok := numerator.(Mem); ok {
			VBROADCASTSS(m, n)
		} else {
			VMOVAPS(numerator, n)
		}
		for s := range sets {
			span, down, good, bits, limit := YMM(), YMM(), YMM(), GP32(), float(4194303)
			VMOVUPS(loM[s], lo[s])
			VMOVUPS(hiM[s], span)
			VSUBPS(lo[s], span, span)
			VDIVPS(span, n, inv[s])
			VMULPS(inv[s], span, span)
			VANDPS(noSign(), span, span)
			VCMPPS(U8(atMost), limit, span, good)
			VMOVUPS(lo0M[s], down)
			VSUBPS(lo[s], down, down)
			VMULPS(inv[s], down, down)
			VANDPS(noSign(), down, down)
			VCMPPS(U8(atMost), limit, down, down)
			VANDPS(down, good, good)
			VORPS(deadM[s], good, good)
			VMOVMSKPS(good, bits)
			if s == 0 {
				MOVL(bits, all)
			} else {
				ANDL(bits, all)
			}
		}
		CMPL(all, U8(0xff))
		JNE(LabelRef("unsure"))
		return lo, inv
	}
	// code leaves the code of v in c.
	code := func(v, lo, inv, c reg.VecVirtual) {
		VSUBPS(lo, v, c)
		VMULPS(inv, c, c)
		VROUNDPS(U8(0), c, c)
		VMAXPS(zero, c, c)
		VMINPS(top, c, c)
	}
	// errorOf adds the weighted error of code c on the grid (s, m) to sum.
	errorOf := func(c, s, m reg.VecVirtual, v, weight Mem, sum reg.VecVirtual) {
		VMULPS(s, c, c)
		VADDPS(m, c, c)
		VSUBPS(v, c, c)
		if absolute {
			VANDPS(noSign(), c, c)
		} else {
			VMULPS(c, c, c)
		}
		VMULPS(weight, c, c)
		VADDPS(c, sum, sum)
	}

	{
		lo, inv := grid(top)
		scale, best := vectors(), zeros()
		for s := range sets {
			VMOVUPS(inv[s], invM[s])
			VMOVUPS(float(1), scale[s])
			VDIVPS(inv[s], scale[s], scale[s])
			VMOVUPS(scale[s], scaleM[s])
		}
		r.each("first", 0, 1, func(at func(reg.Register) Mem) {
			for s := range sets {
				v, c := YMM(), YMM()
				VMOVUPS(at(x[s]), v)
				code(v, lo[s], inv[s], c)
				errorOf(c, scale[s], lo[s], at(x[s]), at(w[s]), best[s])
			}
		})
		// Nothing is better than an error of minus infinity, so dead lanes stay as they are.
		for s := range sets {
			dead := YMM()
			VMOVUPS(deadM[s], dead)
			VBLENDVPS(dead, float(float32(math.Inf(-1))), best[s], best[s])
			VMOVUPS(best[s], bestM[s])
		}
	}

	Label("candidate")
	lo, inv := grid(Mem{Base: num})
	sumL, sumL2, sumXL := zeros(), zeros(), zeros()
	r.each("sums", 0, 1, func(at func(reg.Register) Mem) {
		for s := range sets {
			v, c, wc := YMM(), YMM(), YMM()
			VMOVUPS(at(x[s]), v)
			code(v, lo[s], inv[s], c)
			VMOVUPS(c, tried(at, s))
			VMULPS(at(w[s]), c, wc)
			VADDPS(wc, sumL[s], sumL[s])
			VMULPS(wc, c, c)
			VADDPS(c, sumL2[s], sumL2[s])
			VMULPS(wc, v, v)
			VADDPS(v, sumXL[s], sumXL[s])
		}
	})
	det, scale, m := vectors(), vectors(), vectors()
	for s := range sets {
		t := YMM()
		VMULPS(sumWM[s], sumL2[s], det[s])
		VMULPS(sumL[s], sumL[s], t)
		VSUBPS(t, det[s], det[s])
		VMULPS(sumWM[s], sumXL[s], scale[s])
		VMULPS(sumXM[s], sumL[s], t)
		VSUBPS(t, scale[s], scale[s])
		VDIVPS(det[s], scale[s], scale[s])
		VMULPS(sumXM[s], sumL2[s], m[s])
		VMULPS(sumL[s], sumXL[s], t)
		VSUBPS(t, m[s], m[s])
		VDIVPS(det[s], m[s], m[s])
		VDIVPS(sumL2[s], sumXL[s], sumXL[s]) // the grid through zero, where the minimum came out positive
		VCMPPS(U8(greater), zero, m[s], t)
		VBLENDVPS(t, sumXL[s], scale[s], scale[s])
		VANDNPS(m[s], t, m[s])
		VCMPPS(U8(greater), zero, det[s], det[s])
	}
	sum := zeros()
	r.each("error", 0, 1, func(at func(reg.Register) Mem) {
		for s := range sets {
			c := YMM()
			VMOVUPS(tried(at, s), c)
			errorOf(c, scale[s], m[s], at(x[s]), at(w[s]), sum[s])
		}
	})
	for s := range sets {
		better, t := YMM(), YMM()
		VMOVUPS(bestM[s], t)
		VCMPPS(U8(less), t, sum[s], better)
		VANDPS(det[s], better, better)
		for _, keep := range []struct {
			in  Mem
			now reg.VecVirtual
		}{{bestM[s], sum[s]}, {scaleM[s], scale[s]}, {invM[s], inv[s]}, {fromM[s], lo[s]}, {loM[s], m[s]}} {
			t := YMM()
			VMOVUPS(keep.in, t)
			VBLENDVPS(better, keep.now, t, t)
			VMOVUPS(t, keep.in)
		}
	}
	ADDQ(U8(4), num)
	DECQ(left)
	JNZ(LabelRef("candidate"))

	fit := pair("fit")
	for s := range sets {
		dead, v := YMM(), YMM()
		VMOVUPS(deadM[s], dead)
		for i, m := range []Mem{scaleM[s], loM[s], invM[s], fromM[s]} {
			if i == 1 {
				VMOVUPS(m, v)
				VXORPS(signBit(), v, v)
			} else {
				VANDNPS(m, dead, v)
			}
			VMOVUPS(v, Mem{Base: fit[s], Disp: 64 * i})
		}
	}
	done := GP8()
	MOVB(U8(1), done)
	Store(done, ReturnIndex(0))
	VZEROUPPER()
	RET()
	Label("unsure")
	gone := GP8()
	MOVB(U8(0), gone)
	Store(gone, ReturnIndex(0))
	VZEROUPPER()
	RET()
}
