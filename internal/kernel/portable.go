package kernel

import (
	"encoding/binary"
	"math"
)

// The functions in this file are the specification of the assembly.

func decodeF16Go(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = F16(binary.LittleEndian.Uint16(src[2*i:]))
	}
}

func encodeF16Go(dst []byte, src []float32) {
	for i, f := range src {
		binary.LittleEndian.PutUint16(dst[2*i:], ToF16(f))
	}
}

func decodeBF16Go(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = BF16(binary.LittleEndian.Uint16(src[2*i:]))
	}
}

func encodeBF16Go(dst []byte, src []float32) {
	for i, f := range src {
		binary.LittleEndian.PutUint16(dst[2*i:], ToBF16(f))
	}
}

func decodeF32Go(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
	}
}

func encodeF32Go(dst []byte, src []float32) {
	for i, f := range src {
		binary.LittleEndian.PutUint32(dst[4*i:], math.Float32bits(f))
	}
}

// addPanelsGo adds scale·L·R to rows of w that lie stride apart, in n panels of 16 columns. Row i of l
// holds rank values; a panel holds rank rows of 16. Eight sums at a time stay in registers over k.
func addPanelsGo(w []float32, stride int, l, panels []float32, rank, rows, n int, scale float32) {
	for i := range rows {
		lrow := l[i*rank:][:rank]
		for p := range n {
			panel := panels[p*rank*panelWidth:][:rank*panelWidth]
			out := (*[panelWidth]float32)(w[i*stride+p*panelWidth:])
			addEight((*[8]float32)(out[:8]), lrow, panel, scale)
			addEight((*[8]float32)(out[8:]), lrow, panel[8:], scale)
		}
	}
}

// addEight is eight columns of one row. r holds the columns at the start of each 16 values.
func addEight(w *[8]float32, l, r []float32, scale float32) {
	var s0, s1, s2, s3, s4, s5, s6, s7 float32
	for k, x := range l {
		y := (*[8]float32)(r[k*panelWidth:])
		s0 += float32(x * y[0])
		s1 += float32(x * y[1])
		s2 += float32(x * y[2])
		s3 += float32(x * y[3])
		s4 += float32(x * y[4])
		s5 += float32(x * y[5])
		s6 += float32(x * y[6])
		s7 += float32(x * y[7])
	}
	w[0] += float32(scale * s0)
	w[1] += float32(scale * s1)
	w[2] += float32(scale * s2)
	w[3] += float32(scale * s3)
	w[4] += float32(scale * s4)
	w[5] += float32(scale * s5)
	w[6] += float32(scale * s6)
	w[7] += float32(scale * s7)
}
