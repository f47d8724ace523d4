// Command gen writes the amd64 assembly of package kernel and the Go declarations beside it. It is a
// module of its own, so the generator library is no dependency of the program.
package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

func main() {
	ConstraintExpr("!noasm")
	converters()
	encodeFloat8()
	addPanels(4)
	addPanels(1)
	searches()
	blockEncoders()
	Generate()
}

// group is how many elements one pass of a conversion loop handles.
const group = 32

// A converter describes a loop over groups: the sizes of an element and what happens to one group.
type converter struct {
	name, signature, doc string
	dstSize, srcSize     int
	step                 func(dst, src reg.Register)
}

func converters() {
	const (
		widen  = "func(dst *float32, src *byte, groups int)"
		narrow = "func(dst *byte, src *float32, groups int)"
	)
	for _, c := range []converter{
		{"decodeF16AVX2", widen, "widens float16 to float32", 4, 2, func(dst, src reg.Register) {
			for i := range group / 8 {
				v := YMM()
				VCVTPH2PS(Mem{Base: src, Disp: 16 * i}, v)
				VMOVUPS(v, Mem{Base: dst, Disp: 32 * i})
			}
		}},
		{"encodeF16AVX2", narrow, "rounds float32 to float16, nearest even", 2, 4, func(dst, src reg.Register) {
			for i := range group / 8 {
				v := YMM()
				VMOVUPS(Mem{Base: src, Disp: 32 * i}, v)
				VCVTPS2PH(U8(0), v, Mem{Base: dst, Disp: 16 * i})
			}
		}},
		{"decodeBF16AVX2", widen, "widens bfloat16 to float32", 4, 2, func(dst, src reg.Register) {
			for i := range group / 8 {
				v := YMM()
				VPMOVZXWD(Mem{Base: src, Disp: 16 * i}, v)
				VPSLLD(U8(16), v, v)
				VMOVDQU(v, Mem{Base: dst, Disp: 32 * i})
			}
		}},
		{"encodeBF16AVX2", narrow, "rounds float32 to bfloat16, nearest even, NaN made quiet", 2, 4, func(dst, src reg.Register) {
			for i := range group / 16 {
				low := roundBF16(Mem{Base: src, Disp: 64 * i})
				high := roundBF16(Mem{Base: src, Disp: 64*i + 32})
				// Packing works within 128-bit halves; the permutation restores the order.
				VPACKUSDW(high, low, low)
				VPERMQ(U8(0b11_01_10_00), low, low)
				VMOVDQU(low, Mem{Base: dst, Disp: 32 * i})
			}
		}},
	} {
		c.emit()
	}
}

func (c converter) emit() {
	TEXT(c.name, NOSPLIT, c.signature)
	Doc(fmt.Sprintf("%s %s, %d elements a group.", c.name, c.doc, group))
	Pragma("noescape")
	dst, src := Load(Param("dst"), GP64()), Load(Param("src"), GP64())
	groups := Load(Param("groups"), GP64())
	TESTQ(groups, groups)
	JLE(LabelRef("end"))
	Label("next")
	c.step(dst, src)
	ADDQ(U32(group*c.dstSize), dst)
	ADDQ(U32(group*c.srcSize), src)
	DECQ(groups)
	JNZ(LabelRef("next"))
	Label("end")
	VZEROUPPER()
	RET()
}

// roundBF16 loads eight float32 and leaves each one's bfloat16 in the low half of its lane.
func roundBF16(from Mem) reg.VecVirtual {
	v, odd, nan, quiet := YMM(), YMM(), YMM(), YMM()
	VMOVUPS(from, v)
	VCMPPS(U8(3), v, v, nan) // unordered: not equal to itself
	VPSRLD(U8(16), v, odd)
	VPOR(everyLane(0x40), odd, quiet)
	VPAND(everyLane(1), odd, odd)
	VPADDD(everyLane(0x7fff), v, v)
	VPADDD(odd, v, v)
	VPSRLD(U8(16), v, v)
	VPBLENDVB(nan, quiet, v, v)
	return v
}

var constants = map[uint32]Mem{}

// everyLane is a constant repeated over a vector and read from memory, so that it costs no register.
func everyLane(x uint32) Mem {
	if m, ok := constants[x]; ok {
		return m
	}
	m := GLOBL(fmt.Sprintf("lanes_%x", x), RODATA|NOPTR)
	for i := range 8 {
		DATA(4*i, U32(x))
	}
	constants[x] = m
	return m
}

// addPanels emits the low-rank update of a few rows. A tile of rows × 16 sums stays in registers for
// the whole of k, so the weights are read and written once. Products are rounded before they are
// added (a multiply and an add, never fused), which makes each lane equal to the portable code.
func addPanels(rows int) {
	name := fmt.Sprintf("addPanels%dAVX2", rows)
	TEXT(name, NOSPLIT, "func(w *float32, stride int, l, panels *float32, rank, n int, scale float32)")
	Doc(fmt.Sprintf("%s adds scale·L·R to %d rows of w, in n panels of 16 columns.", name, rows),
		"Rows of w lie stride elements apart, rows of l rank elements; rank must be positive.")
	Pragma("noescape")
	w, stride := Load(Param("w"), GP64()), Load(Param("stride"), GP64())
	l, panels := Load(Param("l"), GP64()), Load(Param("panels"), GP64())
	rank, n := Load(Param("rank"), GP64()), Load(Param("n"), GP64())
	TESTQ(n, n)
	JLE(LabelRef("end"))
	SHLQ(U8(2), stride)

	// lrow[i] points past the end of row i of L, so that k can count up from -rank to zero.
	lrow := make([]reg.GPVirtual, rows)
	for i := range lrow {
		lrow[i] = GP64()
		if i == 0 {
			LEAQ(Mem{Base: l, Index: rank, Scale: 4}, lrow[0])
		} else {
			LEAQ(Mem{Base: lrow[i-1], Index: rank, Scale: 4}, lrow[i])
		}
	}
	NEGQ(rank)

	Label("panel")
	sums := make([][2]reg.VecVirtual, rows)
	for i := range sums {
		for h := range sums[i] {
			sums[i][h] = YMM()
			VXORPS(sums[i][h], sums[i][h], sums[i][h])
		}
	}
	k := GP64()
	MOVQ(rank, k)
	Label("k")
	left, right := YMM(), YMM()
	VMOVUPS(Mem{Base: panels}, left)
	VMOVUPS(Mem{Base: panels, Disp: 32}, right)
	for i := range sums {
		x, y := YMM(), YMM()
		VBROADCASTSS(Mem{Base: lrow[i], Index: k, Scale: 4}, x)
		VMULPS(left, x, y)
		VADDPS(y, sums[i][0], sums[i][0])
		VMULPS(right, x, x)
		VADDPS(x, sums[i][1], sums[i][1])
	}
	ADDQ(U8(64), panels)
	INCQ(k)
	JNZ(LabelRef("k"))

	scale := YMM()
	s, err := Param("scale").Resolve()
	if err != nil {
		panic(err)
	}
	VBROADCASTSS(s.Addr, scale)
	row := GP64()
	MOVQ(w, row)
	for i := range sums {
		for h := range sums[i] {
			VMULPS(scale, sums[i][h], sums[i][h])
			VADDPS(Mem{Base: row, Disp: 32 * h}, sums[i][h], sums[i][h])
			VMOVUPS(sums[i][h], Mem{Base: row, Disp: 32 * h})
		}
		if i < rows-1 {
			ADDQ(stride, row)
		}
	}
	ADDQ(U8(64), w)
	DECQ(n)
	JNZ(LabelRef("panel"))
	Label("end")
	VZEROUPPER()
	RET()
}
