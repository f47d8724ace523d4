package quant

import (
	_ "embed"
	"encoding/binary"
	"math/bits"
)

// The IQ1, IQ2 and IQ3 types store indices into fixed sets of lattice points, 8 or 4 coordinates each.

// packedGrids holds the coordinates as level numbers, two bits each for the points of 8, four bits for
// the points of 4, lowest bits first. _gen/grids.go wrote it from the constants of ggml 0.25.1.
//
//go:embed grids.bin
var packedGrids []byte

var (
	iq2xxsGrid = grid8(0, 256, [4]int8{8, 25, 43})
	iq2xsGrid  = grid8(512, 512, [4]int8{8, 25, 43})
	iq2sGrid   = grid8(1536, 1024, [4]int8{8, 25, 43})
	iq1Grid    = grid8(3584, 2048, [4]int8{-1, 0, 1})
	iq3xxsGrid = grid4(7680, 256, [8]int8{4, 12, 20, 28, 36, 44, 52, 62})
	iq3sGrid   = grid4(8192, 512, [8]int8{1, 3, 5, 7, 9, 11, 13, 15})
)

func grid8(at, points int, levels [4]int8) [][8]int8 {
	g := make([][8]int8, points)
	for i := range g {
		code := binary.LittleEndian.Uint16(packedGrids[at+2*i:])
		for j := range 8 {
			g[i][j] = levels[code>>(2*j)&3]
		}
	}
	return g
}

func grid4(at, points int, levels [8]int8) [][4]int8 {
	g := make([][4]int8, points)
	for i := range g {
		code := binary.LittleEndian.Uint16(packedGrids[at+2*i:])
		for j := range 4 {
			g[i][j] = levels[code>>(4*j)&7]
		}
	}
	return g
}

// evenSigns completes seven sign bits to eight with an even number of ones.
func evenSigns(low uint32) byte {
	low &= 127
	return byte(low) | byte(bits.OnesCount32(low)&1)<<7
}

// putPoint writes scale times the coordinates of a point, negative where a bit of signs is set.
func putPoint(y []float32, point []int8, signs byte, scale float32) {
	for j, c := range point {
		v := scale * float32(c)
		if signs>>j&1 == 1 {
			v = -v
		}
		y[j] = v
	}
}

func decodeIQ2_XXS(y []float32, b []byte) {
	d := half(b)
	for g := range 8 {
		idx, a := b[2+8*g:], binary.LittleEndian.Uint32(b[2+8*g+4:])
		scale := float32(d*(0.5+float32(a>>28))) * 0.25
		for k := range 4 {
			putPoint(y[32*g+8*k:], iq2xxsGrid[idx[k]][:], evenSigns(a>>(7*k)), scale)
		}
	}
}

func decodeIQ2_XS(y []float32, b []byte) {
	d, qs, scales := half(b), b[2:66], b[66:74]
	for k := range 32 {
		u := binary.LittleEndian.Uint16(qs[2*k:])
		putPoint(y[8*k:], iq2xsGrid[u&511][:], evenSigns(uint32(u>>9)), nibbleScale(d, scales, k))
	}
}

func decodeIQ2_S(y []float32, b []byte) {
	d, qs, signs, qh, scales := half(b), b[2:34], b[34:66], b[66:74], b[74:82]
	for k := range 32 {
		index := int(qs[k]) | int(qh[k/4]>>(k%4*2)&3)<<8
		putPoint(y[8*k:], iq2sGrid[index][:], signs[k], nibbleScale(d, scales, k))
	}
}

// nibbleScale is the scale of point k of IQ2_XS and IQ2_S: a nibble for each 16 elements.
func nibbleScale(d float32, scales []byte, k int) float32 {
	s := scales[k/4] >> (k % 4 / 2 * 4) & 15
	return float32(d*(0.5+float32(s))) * 0.25
}

func decodeIQ3_XXS(y []float32, b []byte) {
	d, qs, extra := half(b), b[2:66], b[66:98]
	for g := range 8 {
		a := binary.LittleEndian.Uint32(extra[4*g:])
		scale := float32(d*(0.5+float32(a>>28))) * 0.5
		for k := range 8 {
			signs := evenSigns(a>>(k/2*7)) >> (k % 2 * 4)
			putPoint(y[32*g+4*k:], iq3xxsGrid[qs[8*g+k]][:], signs, scale)
		}
	}
}

func decodeIQ3_S(y []float32, b []byte) {
	d, qs, qh, signs, scales := half(b), b[2:66], b[66:74], b[74:106], b[106:110]
	for g := range 8 {
		scale := d * float32(1+2*int(scales[g/2]>>(g%2*4)&15))
		for k := range 8 {
			index := int(qs[8*g+k]) | int(qh[g]>>k&1)<<8
			putPoint(y[32*g+4*k:], iq3sGrid[index][:], signs[4*g+k/2]>>(k%2*4), scale)
		}
	}
}

const iq1Delta = 0.125

// putShifted writes scale·(point + delta), the form of the IQ1 types.
func putShifted(y []float32, index int, negative bool, scale float32) {
	delta := float32(iq1Delta)
	if negative {
		delta = -iq1Delta
	}
	for j, c := range iq1Grid[index] {
		y[j] = scale * (float32(c) + delta)
	}
}

func decodeIQ1_S(y []float32, b []byte) {
	d, qs := half(b), b[2:34]
	for g := range 8 {
		qh := binary.LittleEndian.Uint16(b[34+2*g:])
		scale := d * float32(2*int(qh>>12&7)+1)
		for k := range 4 {
			putShifted(y[32*g+8*k:], int(qs[4*g+k])|int(qh>>(3*k)&7)<<8, qh>>15 == 1, scale)
		}
	}
}

func decodeIQ1_M(y []float32, b []byte) {
	qs, qh := b[:32], b[32:48]
	var scales [4]uint16
	var dbits uint16
	for i := range scales {
		scales[i] = binary.LittleEndian.Uint16(b[48+2*i:])
		dbits |= scales[i] >> 12 << (4 * i)
	}
	d := half([]byte{byte(dbits), byte(dbits >> 8)})
	for k := range 32 {
		g, part := k/4, k%4/2
		s := scales[g/2] >> (g%2*6 + part*3) & 7
		n := qh[k/2] >> (k % 2 * 4)
		putShifted(y[8*k:], int(qs[k])|int(n&7)<<8, n&8 != 0, d*float32(2*int(s)+1))
	}
}
