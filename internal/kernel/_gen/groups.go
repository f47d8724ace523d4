package main

import (
	"sync"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

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
