package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// A splitter emits a kernel that scores all splits and lists those near the best. Its table consists of
// rows of so many lanes; there are places places, and lanes beyond repeat the last one.
type splitter struct {
	name, doc     string
	places, lanes int
	// begin loads what a first place needs; column is the address of its element in the first row.
	begin func(column Mem)
	// score gives the best scores of eight second places; at is the address of theirs in the first row.
	score func(at Mem) []reg.VecVirtual
}

func (s splitter) row(m Mem, n int) Mem {
	m.Disp += 4 * s.lanes * n
	return m
}

func broadcast(m Mem) reg.VecVirtual {
	v := YMM()
	VBROADCASTSS(m, v)
	return v
}

func splitAlike() splitter {
	s := splitter{name: "splitAlikeAVX2", places: 33, lanes: 40,
		doc: "splitAlikeAVX2 scores the splits of an alikeTable."}
	const x, w, upX, upW, downX, downW, lowUpX, lowUpW, lowDownX, lowDownW = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9
	var first [10]reg.VecVirtual
	s.begin = func(column Mem) {
		for _, n := range []int{x, w, lowUpX, lowUpW, lowDownX, lowDownW} {
			first[n] = broadcast(s.row(column, n))
		}
	}
	s.score = func(at Mem) []reg.VecVirtual {
		eighth := everyLane(0x3e000000)
		mx, mw := YMM(), YMM()
		VMOVUPS(s.row(at, x), mx)
		VSUBPS(first[x], mx, mx)
		VMULPS(eighth, mx, mx)
		VMOVUPS(s.row(at, w), mw)
		VSUBPS(first[w], mw, mw)
		VMULPS(eighth, mw, mw)
		VMULPS(eighth, mw, mw)
		upXQ, upQQ, downXQ, downQQ := YMM(), YMM(), YMM(), YMM()
		VADDPS(mx, first[lowUpX], upXQ)
		VADDPS(s.row(at, upX), upXQ, upXQ)
		VADDPS(mw, first[lowUpW], upQQ)
		VADDPS(s.row(at, upW), upQQ, upQQ)
		VSUBPS(mx, first[lowDownX], downXQ)
		VADDPS(s.row(at, downX), downXQ, downXQ)
		VADDPS(mw, first[lowDownW], downQQ)
		VADDPS(s.row(at, downW), downQQ, downQQ)
		return []reg.VecVirtual{ratio(upXQ, upQQ), ratio(downXQ, downQQ)}
	}
	return s
}

func splitHalves() splitter {
	s := splitter{name: "splitHalvesAVX2", places: 17, lanes: 24,
		doc: "splitHalvesAVX2 scores the splits of a halvesTable."}
	const x, upW, downW, lowUpW, lowDownW, all = 0, 2, 4, 6, 8, 10
	// Broadcast where they are needed: there are too few registers to keep them.
	var column Mem
	s.begin = func(m Mem) { column = m }
	first := func(n int) reg.VecVirtual { return broadcast(s.row(column, n)) }
	s.score = func(at Mem) []reg.VecVirtual {
		table := Mem{Base: tableOf[s.name]}
		var xs, ws [2][2]reg.VecVirtual // by half, and up or down
		for h := range 2 {
			sum := first(x + h)
			VADDPS(s.row(at, x+h), sum, sum)
			for d := range 2 {
				m := s.row(table, all)
				m.Disp += 4 * (2*d + h)
				xs[h][d] = broadcast(m)
				VSUBPS(sum, xs[h][d], xs[h][d])
			}
			ws[h][0], ws[h][1] = first(lowUpW+h), first(lowDownW+h)
			VADDPS(s.row(at, upW+h), ws[h][0], ws[h][0])
			VADDPS(s.row(at, downW+h), ws[h][1], ws[h][1])
		}
		var best reg.VecVirtual
		for d0 := range 2 {
			for d1 := range 2 {
				xq, qq := YMM(), YMM()
				VADDPS(xs[1][d1], xs[0][d0], xq)
				VADDPS(ws[1][d1], ws[0][d0], qq)
				r := ratio(xq, qq)
				if d0+d1 == 0 {
					best = r
				} else {
					larger(r, best)
				}
			}
		}
		return []reg.VecVirtual{best}
	}
	return s
}

// tableOf is the register that holds the address of a kernel's table.
var tableOf = map[string]reg.Register{}

// ratio leaves xq²/qq in xq.
func ratio(xq, qq reg.VecVirtual) reg.VecVirtual {
	VMULPS(xq, xq, xq)
	VDIVPS(qq, xq, xq)
	return xq
}

// larger leaves the larger number in best, and NaN where either is: what cannot be compared is kept and
// looked at later.
func larger(r, best reg.VecVirtual) {
	nan := YMM()
	VCMPPS(U8(3), r, best, nan) // unordered: all ones, which is a NaN
	VMAXPS(r, best, best)
	VORPS(nan, best, best)
}

func (s splitter) emit() {
	TEXT(s.name, NOSPLIT, "func(table, scores *float32, hits *uint32, near float32) (n int, bound float32)")
	Doc(s.doc, "bound is the best score times near; hits gets first<<8 | second for",
		"each vector of eight seconds with a score of at least that, and n is their number.")
	Pragma("noescape")
	table := Load(Param("table"), GP64())
	scores := Load(Param("scores"), GP64())
	tableOf[s.name] = table
	column, offset, next := GP64(), GP64(), GP64()
	MOVQ(table, column)
	MOVQ(scores, next)
	XORQ(offset, offset) // bytes from the first row's start to its first vector with a valid second
	top := YMM()
	VXORPS(top, top, top)
	count := GP64()
	XORQ(count, count)

	Label("row")
	s.begin(Mem{Base: column})
	at, left := GP64(), GP64()
	MOVQ(count, offset)
	ANDQ(I8(-8), offset)
	LEAQ(Mem{Base: table, Index: offset, Scale: 4}, at)
	MOVQ(U32(s.lanes), left)
	SUBQ(offset, left)

	// In the first vector, lanes before the first place do not count.
	inside := YMM()
	within, lane := YMM(), GP64()
	MOVQ(count, lane)
	SUBQ(offset, lane)
	VMOVD(lane.As32(), within.AsX())
	VPBROADCASTD(within.AsX(), within)
	VMOVDQU(lanes("lane_"+s.name, func(lane int) uint32 { return uint32(lane) }), inside)
	VPCMPGTD(inside, within, inside) // lane number below the first place: outside
	Label("vector")
	r := s.score(Mem{Base: at})
	best := r[0]
	for _, other := range r[1:] {
		larger(other, best)
	}
	VANDNPS(best, inside, best)
	VXORPS(inside, inside, inside)
	VMAXPS(top, best, top) // keeps top where best is NaN
	VMOVUPS(best, Mem{Base: next})
	ADDQ(U8(32), next)
	ADDQ(U8(32), at)
	SUBQ(U8(8), left)
	JNZ(LabelRef("vector"))
	ADDQ(U8(4), column)
	INCQ(count)
	CMPQ(count, U32(s.places))
	JNE(LabelRef("row"))

	// The best of all lanes gives the bound.
	other := YMM()
	VPERM2F128(U8(1), top, top, other)
	VMAXPS(other, top, top)
	VPERMILPS(U8(0b01_00_11_10), top, other)
	VMAXPS(other, top, top)
	VPERMILPS(U8(0b10_11_00_01), top, other)
	VMAXPS(other, top, top)
	near, err := Param("near").Resolve()
	if err != nil {
		panic(err)
	}
	VBROADCASTSS(near.Addr, other)
	VMULPS(other, top, top)
	Store(top.AsX(), Return("bound"))

	// Go through the scores in the same order.
	hits := Load(Param("hits"), GP64())
	found, second, hit, mask := GP64(), GP64(), GP64(), GP32()
	XORQ(found, found)
	XORQ(count, count)
	MOVQ(scores, next)
	Label("hitRow")
	MOVQ(count, second)
	ANDQ(I8(-8), second)
	Label("hitVector")
	less := YMM()
	VMOVUPS(Mem{Base: next}, less)
	VCMPPS(U8(0x15), top, less, less) // not less, true for NaN
	VMOVMSKPS(less, mask)
	MOVQ(count, hit)
	SHLQ(U8(8), hit)
	ORQ(second, hit)
	MOVL(hit.As32(), Mem{Base: hits, Index: found, Scale: 4})
	CMPL(mask, U32(1)) // carry if there is no hit
	SBBQ(I8(-1), found)
	ADDQ(U8(32), next)
	ADDQ(U8(8), second)
	CMPQ(second, U32(s.lanes))
	JNE(LabelRef("hitVector"))
	INCQ(count)
	CMPQ(count, U32(s.places))
	JNE(LabelRef("hitRow"))
	Store(found, Return("n"))
	VZEROUPPER()
	RET()
}
