package main

import (
	"fmt"
	"math"
	"sync"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// The searches of the block types work on transposed groups: a vector holds value i of eight groups, a
// set is size such rows. Each lane does what the portable code does for one group, in its order;
// branches of that code become masks.

const row = 32 // bytes of a row of eight lanes

// Comparisons: ordered and quiet, so false where an operand is NaN, except for notEqual.
const (
	less     = 0x11
	greater  = 0x1e
	atLeast  = 0x1d
	atMost   = 0x12
	notEqual = 0x04
)

func float(f float32) Mem { return everyLane(math.Float32bits(f)) }

var (
	signBit = func() Mem { return everyLane(1 << 31) }
	noSign  = func() Mem { return everyLane(1<<31 - 1) }
)

// A frame hands out vectors on the stack, for what is used too rarely to keep in registers.
func frame(vectors int) []Mem {
	local := AllocLocal(row * vectors)
	m := make([]Mem, vectors)
	for i := range m {
		m[i] = local.Offset(row * i)
	}
	return m
}

// broadcast spreads a float parameter.
func broadcast(name string) reg.VecVirtual {
	v := YMM()
	p, err := Param(name).Resolve()
	if err != nil {
		panic(err)
	}
	VBROADCASTSS(p.Addr, v)
	return v
}

func zeroed() reg.VecVirtual {
	v := YMM()
	VXORPS(v, v, v)
	return v
}

// rows is a loop over the rows of a set: i runs from from to end, both in bytes.
type rows struct {
	i, end reg.GPVirtual
}

func newRows(count reg.Register) rows {
	r := rows{GP64(), GP64()}
	MOVQ(count, r.end)
	SHLQ(U8(5), r.end)
	return r
}

// each emits the loop, unrolled. The number of rows must divide by it.
func (r rows) each(label string, from, unroll int, body func(at func(base reg.Register) Mem)) {
	if from == 0 {
		XORQ(r.i, r.i)
	} else {
		MOVQ(U32(from), r.i)
	}
	Label(label)
	for u := range unroll {
		body(func(base reg.Register) Mem { return Mem{Base: base, Index: r.i, Scale: 1, Disp: u * row} })
	}
	ADDQ(U32(unroll*row), r.i)
	CMPQ(r.i, r.end)
	JL(LabelRef(label))
}

func searches() {
	transpose()
	weights()
	affine("affineSquareAVX2", false)
	affine("affineAbsoluteAVX2", true)
	symmetric()
	descend()
	nonLinear()
	quantize()
	magnitude()
}

// transpose emits the exchange of rows and columns in blocks of eight.
func transpose() {
	TEXT("transposeAVX2", NOSPLIT, "func(dst, src *float32, size int)")
	Doc("transposeAVX2 is transposeGo. size is 16 or 32.")
	Pragma("noescape")
	dst, src, size := Load(Param("dst"), GP64()), Load(Param("src"), GP64()), Load(Param("size"), GP64())
	stride, three, left, jump := GP64(), GP64(), GP64(), GP64()
	MOVQ(size, stride)
	SHLQ(U8(2), stride)
	LEAQ(Mem{Base: stride, Index: stride, Scale: 2}, three)
	MOVQ(stride, jump)
	SHLQ(U8(3), jump)
	SUBQ(stride, jump) // from the end of the first group of a set to its last one's
	MOVQ(U32(4), left)
	sets := GP64()
	MOVQ(size, sets)
	Label("block")
	lower := GP64()
	LEAQ(Mem{Base: src, Index: stride, Scale: 4}, lower)
	for h := range 2 {
		var r [4]reg.VecVirtual
		for j := range r {
			r[j] = YMM()
			place := func(base reg.Register) Mem {
				m := Mem{Base: base, Disp: 16 * h}
				switch j {
				case 1, 2:
					m.Index, m.Scale = stride, uint8(j)
				case 3:
					m.Index, m.Scale = three, 1
				}
				return m
			}
			VMOVUPS(place(src), r[j].AsX())
			VINSERTF128(U8(1), place(lower), r[j], r[j])
		}
		t := [4]reg.VecVirtual{YMM(), YMM(), YMM(), YMM()}
		VUNPCKLPS(r[1], r[0], t[0])
		VUNPCKHPS(r[1], r[0], t[1])
		VUNPCKLPS(r[3], r[2], t[2])
		VUNPCKHPS(r[3], r[2], t[3])
		for k := range 4 {
			order := uint8(0x44)
			if k%2 == 1 {
				order = 0xee
			}
			VSHUFPS(U8(order), t[k/2+2], t[k/2], r[k])
			VMOVUPS(r[k], Mem{Base: dst, Disp: row * (4*h + k)})
		}
	}
	ADDQ(U32(8*row), dst)
	ADDQ(U8(32), src)
	SUBQ(U8(8), sets)
	JNZ(LabelRef("same"))
	MOVQ(size, sets)
	ADDQ(jump, src)
	Label("same")
	DECQ(left)
	JNZ(LabelRef("block"))
	VZEROUPPER()
	RET()
}

// weights emits what gives weights to the values, and the sums over groups. Each does one set.
func weights() {
	elementwise := func(name, doc string, body func(x, w Mem, each reg.VecVirtual)) {
		TEXT(name, NOSPLIT, "func(w, x, each *float32, rows int)")
		Doc(name + " " + doc)
		Pragma("noescape")
		w, x, each := Load(Param("w"), GP64()), Load(Param("x"), GP64()), Load(Param("each"), GP64())
		r := newRows(Load(Param("rows"), GP64()))
		e := YMM()
		VMOVUPS(Mem{Base: each}, e)
		r.each("row", 0, 2, func(at func(reg.Register) Mem) { body(at(x), at(w), e) })
		VZEROUPPER()
		RET()
	}
	elementwise("weighMagnitudesAVX2", "is weighMagnitudesGo for one set.", func(x, w Mem, each reg.VecVirtual) {
		v := YMM()
		VMOVUPS(x, v)
		VANDPS(noSign(), v, v)
		VADDPS(v, each, v)
		VMOVUPS(v, w)
	})
	elementwise("weighImportanceAVX2", "is weighImportanceGo for one set.", func(x, w Mem, each reg.VecVirtual) {
		v := YMM()
		VMOVUPS(x, v)
		VMULPS(v, v, v)
		VADDPS(v, each, v)
		VSQRTPS(v, v)
		VMULPS(w, v, v)
		VMOVUPS(v, w)
	})
	elementwise("weighSquaresAVX2", "is weighSquaresGo for one set; each is not used.", func(x, w Mem, _ reg.VecVirtual) {
		v := YMM()
		VMOVUPS(x, v)
		VMULPS(v, v, v)
		VMOVUPS(v, w)
	})

	sums := func(name, doc string, square bool) {
		TEXT(name, NOSPLIT, "func(sums, x *float32, rows int)")
		Doc(name + " " + doc)
		Pragma("noescape")
		out, x := Load(Param("sums"), GP64()), Load(Param("x"), GP64())
		r := newRows(Load(Param("rows"), GP64()))
		sum := zeroed()
		r.each("row", 0, 2, func(at func(reg.Register) Mem) {
			if !square {
				VADDPS(at(x), sum, sum)
				return
			}
			v := YMM()
			VMOVUPS(at(x), v)
			VMULPS(v, v, v)
			VADDPS(v, sum, sum)
		})
		VMOVUPS(sum, Mem{Base: out})
		VZEROUPPER()
		RET()
	}
	sums("sumsAVX2", "sums the values of each lane of one set.", false)
	sums("squaresAVX2", "sums the squares of each lane of one set.", true)
}

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

// unpackOrder restores the order of four vectors packed to bytes.
var unpackOrder = sync.OnceValue(func() Mem {
	m := GLOBL("unpackOrder", RODATA|NOPTR)
	for i, d := range []uint32{0, 4, 1, 5, 2, 6, 3, 7} {
		DATA(4*i, U32(d))
	}
	return m
})

// quantize emits the last rounding, in the values' own order.
func quantize() {
	TEXT("quantizeAVX2", NOSPLIT, "func(codes *byte, x, steps, offsets *float32, low, high int32)")
	Doc("quantizeAVX2 is quantizeGo for 256 values, with a step and an offset for each 16.")
	Pragma("noescape")
	codes, x := Load(Param("codes"), GP64()), Load(Param("x"), GP64())
	steps, offsets := Load(Param("steps"), GP64()), Load(Param("offsets"), GP64())
	spread := func(name string) reg.VecVirtual {
		v := YMM()
		p, err := Param(name).Resolve()
		if err != nil {
			panic(err)
		}
		VBROADCASTSS(p.Addr, v)
		return v
	}
	low, high := spread("low"), spread("high")
	left := GP64()
	MOVQ(U32(8), left)
	Label("next")
	var v [4]reg.VecVirtual
	step, offset := YMM(), YMM()
	for i := range v {
		if i%2 == 0 {
			VBROADCASTSS(Mem{Base: steps, Disp: 2 * i}, step)
			VBROADCASTSS(Mem{Base: offsets, Disp: 2 * i}, offset)
		}
		v[i] = YMM()
		VADDPS(Mem{Base: x, Disp: row * i}, offset, v[i])
		VDIVPS(step, v[i], v[i])
		VADDPS(float(3<<22), v[i], v[i])
		VPAND(everyLane(0x7fffff), v[i], v[i])
		VPSUBD(everyLane(0x400000), v[i], v[i])
		VPMINSD(high, v[i], v[i])
		VPMAXSD(low, v[i], v[i])
		VPSUBD(low, v[i], v[i])
	}
	VPACKSSDW(v[1], v[0], v[0])
	VPACKSSDW(v[3], v[2], v[2])
	VPACKUSWB(v[2], v[0], v[0])
	restore := YMM()
	VMOVDQU(unpackOrder(), restore)
	VPERMD(v[0], restore, v[0])
	VMOVDQU(v[0], Mem{Base: codes})
	ADDQ(U8(32), codes)
	ADDQ(U32(4*row), x)
	ADDQ(U8(8), steps)
	ADDQ(U8(8), offsets)
	DECQ(left)
	JNZ(LabelRef("next"))
	VZEROUPPER()
	RET()
}

// magnitude emits the search for the largest magnitude, by bits, so that NaN is above all.
func magnitude() {
	TEXT("magnitudeAVX2", NOSPLIT, "func(x *float32, groups int) uint32")
	Doc("magnitudeAVX2 is magnitudeGo for groups of 32 values.")
	Pragma("noescape")
	x, groups := Load(Param("x"), GP64()), Load(Param("groups"), GP64())
	var top [4]reg.VecVirtual
	for i := range top {
		top[i] = zeroed()
	}
	mask := YMM()
	VMOVDQU(noSign(), mask)
	Label("next")
	for i := range top {
		v := YMM()
		VPAND(Mem{Base: x, Disp: row * i}, mask, v)
		VPMAXUD(v, top[i], top[i])
	}
	ADDQ(U32(4*row), x)
	DECQ(groups)
	JNZ(LabelRef("next"))
	VPMAXUD(top[1], top[0], top[0])
	VPMAXUD(top[3], top[2], top[2])
	VPMAXUD(top[2], top[0], top[0])
	half := XMM()
	VEXTRACTI128(U8(1), top[0], half)
	VPMAXUD(half, top[0].AsX(), half)
	other := XMM()
	for _, order := range []uint8{0b01_00_11_10, 0b10_11_00_01} {
		VPSHUFD(U8(order), half, other)
		VPMAXUD(other, half, half)
	}
	out := GP32()
	VMOVD(half, out)
	Store(out, ReturnIndex(0))
	VZEROUPPER()
	RET()
}
