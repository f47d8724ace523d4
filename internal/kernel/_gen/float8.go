package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// encodeFloat8 emits the rounding to an 8-bit float. Every lane goes both ways, the one of normal values and
// the one of subnormals, and takes the result that is its own. lanes holds the constants of the format.
func encodeFloat8() {
	TEXT("encodeFloat8AVX2", NOSPLIT, "func(dst *byte, src *float32, groups int, lanes *[10][8]uint32)")
	Doc("encodeFloat8AVX2 rounds float32 to an 8-bit float, 32 elements a group.")
	Pragma("noescape")
	dst, src := Load(Param("dst"), GP64()), Load(Param("src"), GP64())
	groups, lanes := Load(Param("groups"), GP64()), Load(Param("lanes"), GP64())
	constant := func(i int) Mem { return Mem{Base: lanes, Disp: 32 * i} }
	magnitude, infinity, drop, normal, step := YMM(), YMM(), YMM(), YMM(), YMM()
	for _, c := range []struct {
		at int
		to reg.VecVirtual
	}{{0, magnitude}, {1, infinity}, {2, drop}, {4, normal}, {5, step}} {
		VMOVDQU(constant(c.at), c.to)
	}
	TESTQ(groups, groups)
	JLE(LabelRef("end"))
	Label("next")
	var codes [4]reg.VecVirtual
	for i := range codes {
		codes[i] = float8Codes(Mem{Base: src, Disp: 32 * i}, constant, magnitude, infinity, drop, normal, step)
	}
	// Packing works within 128-bit halves; the permutation restores the order.
	VPACKUSDW(codes[1], codes[0], codes[0])
	VPACKUSDW(codes[3], codes[2], codes[2])
	VPACKUSWB(codes[2], codes[0], codes[0])
	order := YMM()
	VMOVDQU(packedOrder(), order)
	VPERMD(codes[0], order, codes[0])
	VMOVDQU(codes[0], Mem{Base: dst})
	ADDQ(U8(32), dst)
	SUBQ(I32(-128), src)
	DECQ(groups)
	JNZ(LabelRef("next"))
	Label("end")
	VZEROUPPER()
	RET()
}

// float8Codes loads eight float32 and leaves the code of each in the low byte of its lane.
func float8Codes(from Mem, constant func(int) Mem, magnitude, infinity, drop, normal, step reg.VecVirtual) reg.VecVirtual {
	u, a, code, sub, mask := YMM(), YMM(), YMM(), YMM(), YMM()
	VMOVDQU(from, u)
	VPAND(magnitude, u, a)
	VPSRLVD(drop, a, code)
	VPAND(everyLane(1), code, code)
	VPADDD(constant(3), code, code)
	VPADDD(a, code, code)
	VPSRLVD(drop, code, code)
	VADDPS(step, a, sub)
	VPSUBD(step, sub, sub)
	VPCMPGTD(a, normal, mask) // below the smallest normal value
	VPBLENDVB(mask, sub, code, code)
	VPCMPGTD(constant(6), code, mask)
	VPBLENDVB(mask, constant(7), code, code)
	VPCMPGTD(infinity, a, mask)
	VPBLENDVB(mask, constant(8), code, code)
	// The sign of a code of zero stays only where there is a negative zero.
	zero := YMM()
	VPXOR(zero, zero, zero)
	VPCMPEQD(zero, code, mask)
	VPSRLD(U8(24), u, u)
	VPAND(everyLane(0x80), u, u)
	VPAND(constant(9), u, zero)
	VPBLENDVB(mask, zero, u, u)
	VPOR(u, code, code)
	return code
}

// packedOrder is where the dwords of four vectors of eight lie after they were packed to bytes.
func packedOrder() Mem {
	m := GLOBL("float8_order", RODATA|NOPTR)
	for i, x := range []uint32{0, 4, 1, 5, 2, 6, 3, 7} {
		DATA(4*i, U32(x))
	}
	return m
}
