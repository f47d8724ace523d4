// Command lattice writes the assembly of the lattice searches of package kernel. It lies apart from the
// other generator because its output is a file of its own.
package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

func main() {
	ConstraintExpr("!noasm")
	for _, dims := range []int{8, 4} {
		codes(dims)
		sums(dims)
		nearest(dims)
	}
	splitAlike().emit()
	splitHalves().emit()
	Generate()
}

// everyLane is a constant repeated over a vector and read from memory, so that it costs no register.
func everyLane(x uint32) Mem {
	if m, ok := constants[x]; ok {
		return m
	}
	m := lanes(fmt.Sprintf("lanes_%x", x), func(int) uint32 { return x })
	constants[x] = m
	return m
}

var constants = map[uint32]Mem{}

func lanes(name string, value func(lane int) uint32) Mem {
	m := GLOBL(name, RODATA|NOPTR)
	for i := range 8 {
		DATA(4*i, U32(value(i)))
	}
	return m
}

const (
	half  = 0x3f000000
	one   = 0x3f800000
	magic = 0x4b400000 // 1.5·2^23: adding it rounds to an integer
)

// codes emits, for each group and each vector of eight scales, the level of each element and the number
// those make.
func codes(dims int) {
	name := fmt.Sprintf("latticeCodes%dAVX2", dims)
	TEXT(name, NOSPLIT, "func(codes *uint32, x, ids *float32, groups, vectors int)")
	Doc(name + " finds codes for groups of elements and vectors of 8 inverse scales, at least one of each.")
	Pragma("noescape")
	out, x, ids := Load(Param("codes"), GP64()), Load(Param("x"), GP64()), Load(Param("ids"), GP64())
	groups, vectors := Load(Param("groups"), GP64()), Load(Param("vectors"), GP64())
	zero := YMM()
	VPXOR(zero, zero, zero)
	Label("group")
	from, left := GP64(), GP64()
	MOVQ(ids, from)
	MOVQ(vectors, left)
	Label("vector")
	id, code := YMM(), YMM()
	VMOVUPS(Mem{Base: from}, id)
	for j := dims - 1; j >= 0; j-- {
		v := YMM()
		VBROADCASTSS(Mem{Base: x, Disp: 4 * j}, v)
		VMULPS(id, v, v)
		VSUBPS(everyLane(one), v, v)
		VMULPS(everyLane(half), v, v)
		VADDPS(everyLane(magic), v, v)
		VPAND(everyLane(0x7fffff), v, v)
		VPSUBD(everyLane(0x400000), v, v)
		VPMAXSD(zero, v, v)
		top := uint32(2)
		if dims == 4 {
			top = 7
		}
		VPMINSD(everyLane(top), v, v)
		switch {
		case j == dims-1:
			VMOVDQA(v, code)
		case dims == 8: // times three
			twice := YMM()
			VPSLLD(U8(1), code, twice)
			VPADDD(code, v, v)
			VPADDD(twice, v, code)
		default:
			VPSLLD(U8(3), code, code)
			VPADDD(v, code, code)
		}
	}
	VMOVDQU(code, Mem{Base: out})
	ADDQ(U8(32), out)
	ADDQ(U8(32), from)
	DECQ(left)
	JNZ(LabelRef("vector"))
	ADDQ(U8(4*dims), x)
	DECQ(groups)
	JNZ(LabelRef("group"))
	VZEROUPPER()
	RET()
}

// sums emits, for each vector of eight tries, the two sums over all elements in order.
func sums(dims int) {
	name := fmt.Sprintf("latticeSums%dAVX2", dims)
	TEXT(name, NOSPLIT, "func(xq, qq *float32, points *uint32, x, w *float32, groups, vectors int)")
	Doc(name + " sums over groups of elements for vectors of 8 tries, at least one of each.")
	Pragma("noescape")
	xqs, qqs, points := Load(Param("xq"), GP64()), Load(Param("qq"), GP64()), Load(Param("points"), GP64())
	x, w := Load(Param("x"), GP64()), Load(Param("w"), GP64())
	groups, vectors := Load(Param("groups"), GP64()), Load(Param("vectors"), GP64())
	stride := GP64()
	MOVQ(vectors, stride)
	SHLQ(U8(5), stride)
	odd := lanes(fmt.Sprintf("odd%d", dims), func(lane int) uint32 {
		if dims == 8 {
			lane %= 4 // the third bit of an index belongs to the next coordinate
		}
		return []uint32{0x3f800000, 0x40400000, 0x40a00000, 0x40e00000, 0x41100000, 0x41300000, 0x41500000, 0x41700000}[lane]
	})
	Label("vector")
	xq, qq := YMM(), YMM()
	VXORPS(xq, xq, xq)
	VXORPS(qq, qq, qq)
	from, left, xp, wp := GP64(), GP64(), GP64(), GP64()
	MOVQ(points, from)
	MOVQ(groups, left)
	MOVQ(x, xp)
	MOVQ(w, wp)
	Label("group")
	point := YMM()
	VMOVDQU(Mem{Base: from}, point)
	for j := range dims {
		q, weight, product := YMM(), YMM(), YMM()
		VPERMPS(odd, point, q)
		VBROADCASTSS(Mem{Base: wp, Disp: 4 * j}, weight)
		VBROADCASTSS(Mem{Base: xp, Disp: 4 * j}, product)
		VMULPS(weight, product, product)
		VMULPS(q, product, product)
		VADDPS(product, xq, xq)
		VMULPS(q, weight, weight)
		VMULPS(q, weight, weight)
		VADDPS(weight, qq, qq)
		if j < dims-1 {
			VPSRLD(U8(16/dims), point, point)
		}
	}
	ADDQ(stride, from)
	ADDQ(U8(4*dims), xp)
	ADDQ(U8(4*dims), wp)
	DECQ(left)
	JNZ(LabelRef("group"))
	VMOVUPS(xq, Mem{Base: xqs})
	VMOVUPS(qq, Mem{Base: qqs})
	ADDQ(U8(32), xqs)
	ADDQ(U8(32), qqs)
	ADDQ(U8(32), points)
	DECQ(vectors)
	JNZ(LabelRef("vector"))
	VZEROUPPER()
	RET()
}

// nearest emits the search of a list, eight entries at a time. Each coordinate has its table of costs by
// level in a register; a permutation looks up the costs of eight entries at once.
func nearest(dims int) {
	name := fmt.Sprintf("latticeNearest%dAVX2", dims)
	TEXT(name, NOSPLIT, "func(list *uint32, vectors int, x, w *float32, scale float32, levels *float32) uint32")
	Doc(name + " searches a list of vectors of 8 entries, at least one.")
	Pragma("noescape")
	list, vectors := Load(Param("list"), GP64()), Load(Param("vectors"), GP64())
	x, w := Load(Param("x"), GP64()), Load(Param("w"), GP64())
	s, err := Param("scale").Resolve()
	if err != nil {
		panic(err)
	}
	levels := Load(Param("levels"), GP64())
	scaled := YMM()
	VBROADCASTSS(s.Addr, scaled)
	VMULPS(Mem{Base: levels}, scaled, scaled)
	cost := make([]reg.VecVirtual, dims)
	for j := range cost {
		cost[j] = YMM()
		weight, diff := YMM(), YMM()
		VBROADCASTSS(Mem{Base: x, Disp: 4 * j}, diff)
		VBROADCASTSS(Mem{Base: w, Disp: 4 * j}, weight)
		VSUBPS(diff, scaled, diff)
		VMULPS(diff, weight, weight)
		VMULPS(diff, weight, cost[j])
	}
	best, place, count := YMM(), YMM(), YMM()
	VMOVUPS(everyLane(0x7f7fffff), best) // the largest float32
	VPCMPEQD(place, place, place)
	VMOVDQU(lanes(fmt.Sprintf("places%d", dims), func(lane int) uint32 { return uint32(lane) }), count)
	next := GP64()
	MOVQ(list, next)
	Label("vector")
	point, d, less := YMM(), YMM(), YMM()
	VMOVDQU(Mem{Base: next}, point)
	VPERMPS(cost[0], point, d)
	for j := 1; j < dims; j++ {
		c := YMM()
		VPSRLD(U8(16/dims), point, point)
		VPERMPS(cost[j], point, c)
		VADDPS(c, d, d)
	}
	VCMPPS(U8(0x11), best, d, less) // d < best, false for NaN
	VMINPS(best, d, best)
	VBLENDVPS(less, count, place, place)
	VPADDD(everyLane(8), count, count)
	ADDQ(U8(32), next)
	DECQ(vectors)
	JNZ(LabelRef("vector"))

	// The smallest cost of all lanes, and the first place that has it.
	low, high, where := YMM(), YMM(), YMM()
	VPERM2F128(U8(1), best, best, high)
	VMINPS(best, high, low)
	VPERMILPS(U8(0b01_00_11_10), low, high)
	VMINPS(low, high, low)
	VPERMILPS(U8(0b10_11_00_01), low, high)
	VMINPS(low, high, low)
	VCMPPS(U8(4), low, best, high) // not equal
	VPOR(high, place, where)
	VEXTRACTI128(U8(1), where, high.AsX())
	VPMINUD(high.AsX(), where.AsX(), where.AsX())
	VPSHUFD(U8(0b01_00_11_10), where.AsX(), high.AsX())
	VPMINUD(high.AsX(), where.AsX(), where.AsX())
	VPSHUFD(U8(0b10_11_00_01), where.AsX(), high.AsX())
	VPMINUD(high.AsX(), where.AsX(), where.AsX())
	at := GP32()
	VMOVD(where.AsX(), at)
	VZEROUPPER()
	CMPL(at, I8(-1))
	JEQ(LabelRef("none"))
	MOVL(Mem{Base: list, Index: at.As64(), Scale: 4}, at)
	Label("none")
	Store(at, ReturnIndex(0))
	RET()
}
