//go:build !noasm

package kernel

import "golang.org/x/sys/cpu"

func best() level {
	if cpu.X86.HasAVX2 && cpu.X86.HasF16C {
		return avx2
	}
	return portable
}

// group is how many elements the assembly converts at a time; the portable code does what is left.
const group = 32

func decodeF16(dst []float32, src []byte) {
	n := vectorPart(len(dst))
	if n > 0 {
		decodeF16AVX2(&dst[0], &src[0], n/group)
	}
	decodeF16Go(dst[n:], src[2*n:])
}

func decodeBF16(dst []float32, src []byte) {
	n := vectorPart(len(dst))
	if n > 0 {
		decodeBF16AVX2(&dst[0], &src[0], n/group)
	}
	decodeBF16Go(dst[n:], src[2*n:])
}

func encodeF16(dst []byte, src []float32) {
	n := vectorPart(len(src))
	if n > 0 {
		encodeF16AVX2(&dst[0], &src[0], n/group)
	}
	encodeF16Go(dst[2*n:], src[n:])
}

func encodeBF16(dst []byte, src []float32) {
	n := vectorPart(len(src))
	if n > 0 {
		encodeBF16AVX2(&dst[0], &src[0], n/group)
	}
	encodeBF16Go(dst[2*n:], src[n:])
}

func encodeFloat8(f *Float8, dst []byte, src []float32) {
	n := vectorPart(len(src))
	if n > 0 {
		encodeFloat8AVX2(&dst[0], &src[0], n/group, &f.lanes)
	}
	encodeFloat8Go(f, dst[n:], src[n:])
}

// vectorPart is how many of n elements go to the assembly.
func vectorPart(n int) int {
	if active < avx2 {
		return 0
	}
	return n / group * group
}

func addPanels(w []float32, stride int, l, panels []float32, rank, rows, n int, scale float32) {
	if active < avx2 {
		addPanelsGo(w, stride, l, panels, rank, rows, n, scale)
		return
	}
	for ; rows >= 4; rows -= 4 {
		addPanels4AVX2(&w[0], stride, &l[0], &panels[0], rank, n, scale)
		if rows == 4 {
			return
		}
		w, l = w[4*stride:], l[4*rank:]
	}
	for ; rows > 0; rows-- {
		addPanels1AVX2(&w[0], stride, &l[0], &panels[0], rank, n, scale)
		if rows > 1 {
			w, l = w[stride:], l[rank:]
		}
	}
}
