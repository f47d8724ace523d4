package main

import (
	"math"

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
