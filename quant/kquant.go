package quant

import (
	"encoding/binary"
	"math"
)

// The K types: super-blocks of 256 with sub-blocks of 16 or 32, whose scales (and minima) are small
// integers times a float16 of the super-block.

func decodeQ2_K(y []float32, b []byte) {
	scales, qs := b[:16], b[16:80]
	d, dmin := half(b[80:]), half(b[82:])
	for k, s := range scales {
		scale, low := float32(d*float32(s&15)), float32(dmin*float32(s>>4))
		q, shift := qs[k/8*32+k%2*16:], k%8/2*2
		for i := range 16 {
			y[k*16+i] = float32(scale*float32(q[i]>>shift&3)) - low
		}
	}
}

func decodeQ3_K(y []float32, b []byte) {
	hmask, qs, scales, d := b[:32], b[32:96], b[96:108], half(b[108:])
	for k := range 16 {
		low := scales[k%8] >> (k / 8 * 4) & 15
		high := scales[8+k%4] >> (k / 4 * 2) & 3
		scale := d * float32(int(low|high<<4)-32)
		at, shift := k%2*16, k%8/2*2
		q, h := qs[k/8*32+at:], hmask[at:]
		for i := range 16 {
			v := int(q[i] >> shift & 3)
			if h[i]>>(k/2)&1 == 0 {
				v -= 4
			}
			y[k*16+i] = scale * float32(v)
		}
	}
}

// sixBits unpacks scale and minimum g of the eight pairs that Q4_K and Q5_K keep in twelve bytes.
func sixBits(s []byte, g int) (scale, low byte) {
	if g < 4 {
		return s[g] & 63, s[g+4] & 63
	}
	return s[g+4]&15 | s[g-4]>>6<<4, s[g+4]>>4 | s[g]>>6<<4
}

func decodeQ4_K(y []float32, b []byte) {
	d, dmin, scales, qs := half(b), half(b[2:]), b[4:16], b[16:144]
	for g := range 8 {
		s, m := sixBits(scales, g)
		scale, low := float32(d*float32(s)), float32(dmin*float32(m))
		q, shift := qs[g/2*32:], g%2*4
		for i := range 32 {
			y[g*32+i] = float32(scale*float32(q[i]>>shift&15)) - low
		}
	}
}

func decodeQ5_K(y []float32, b []byte) {
	d, dmin, scales, qh, qs := half(b), half(b[2:]), b[4:16], b[16:48], b[48:176]
	for g := range 8 {
		s, m := sixBits(scales, g)
		scale, low := float32(d*float32(s)), float32(dmin*float32(m))
		q, shift := qs[g/2*32:], g%2*4
		for i := range 32 {
			y[g*32+i] = float32(scale*float32(q[i]>>shift&15|qh[i]>>g&1<<4)) - low
		}
	}
}

func decodeQ6_K(y []float32, b []byte) {
	ql, qh, scales, d := b[:128], b[128:192], b[192:208], half(b[208:])
	for k, s := range scales {
		scale := d * float32(int8(s))
		t, at := k%8/2, k%2*16
		low, high := ql[k/8*64+t%2*32+at:], qh[k/8*32+at:]
		for i := range 16 {
			q := low[i]>>(t/2*4)&15 | high[i]>>(t*2)&3<<4
			y[k*16+i] = scale * float32(int(q)-32)
		}
	}
}

// decodeQ8_K decodes what ggml keeps activations in. After the codes come sums of 16, which are not
// needed.
func decodeQ8_K(y []float32, b []byte) {
	d := math.Float32frombits(binary.LittleEndian.Uint32(b))
	for i, q := range b[4:260] {
		y[i] = d * float32(int8(q))
	}
}
