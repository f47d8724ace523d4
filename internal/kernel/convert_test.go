package kernel

import (
	"encoding/binary"
	"fmt"
	"math"
	"testing"

	"github.com/x448/float16"
)

// atEachLevel runs a test once with the portable code and once with every level the machine has.
func atEachLevel(t *testing.T, test func(t *testing.T)) {
	for l := portable; l <= best(); l++ {
		t.Run(fmt.Sprintf("level=%d", l), func(t *testing.T) {
			defer func(old level) { active = old }(active)
			active = l
			test(t)
		})
	}
}

func TestEveryHalf(t *testing.T) {
	src := make([]byte, 2<<16)
	for h := range 1 << 16 {
		binary.LittleEndian.PutUint16(src[2*h:], uint16(h))
	}
	atEachLevel(t, func(t *testing.T) {
		dst := make([]float32, 1<<16)
		DecodeF16(dst, src)
		for h, f := range dst {
			if got, want := math.Float32bits(f), math.Float32bits(float16.Frombits(uint16(h)).Float32()); got != want {
				t.Fatalf("float16 %#04x decodes to %#08x, want %#08x", h, got, want)
			}
		}
		DecodeBF16(dst, src)
		for h, f := range dst {
			if got, want := math.Float32bits(f), uint32(h)<<16; got != want {
				t.Fatalf("bfloat16 %#04x decodes to %#08x, want %#08x", h, got, want)
			}
		}
	})
}

// patterns are float32 bit patterns of every sign and exponent, with the significands where rounding
// to 16 bits changes its mind: around ties, carries, and the ends.
func patterns() []float32 {
	var p []float32
	for top := range uint32(1 << 9) {
		for _, m := range []uint32{0, 1, 0x0fff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x3001, 0x7fff, 0x8000, 0x8001, 0x17fff, 0x18000,
			0x18001, 0x200000, 0x3fffff, 0x400000, 0x400001, 0x555555, 0x7fdfff, 0x7fefff, 0x7ff000, 0x7f8000, 0x7fffff} {
			p = append(p, math.Float32frombits(top<<23|m))
		}
	}
	x := uint32(1)
	for range 1 << 16 {
		x = x*1664525 + 1013904223
		p = append(p, math.Float32frombits(x))
	}
	return p
}

func TestEncodeEveryExponent(t *testing.T) {
	src := patterns()
	atEachLevel(t, func(t *testing.T) {
		dst := make([]byte, 2*len(src))
		EncodeF16(dst, src)
		for i, f := range src {
			if got, want := binary.LittleEndian.Uint16(dst[2*i:]), float16.Fromfloat32(f).Bits(); got != want {
				t.Fatalf("%#08x encodes to float16 %#04x, want %#04x", math.Float32bits(f), got, want)
			}
		}
		EncodeBF16(dst, src)
		for i, f := range src {
			if got, want := binary.LittleEndian.Uint16(dst[2*i:]), nearestBF16(f); got != want {
				t.Fatalf("%#08x encodes to bfloat16 %#04x, want %#04x", math.Float32bits(f), got, want)
			}
		}
	})
}

// nearestBF16 rounds by comparing distances in float64, independently of the code under test.
func nearestBF16(f float32) uint16 {
	u := math.Float32bits(f)
	down := uint16(u >> 16)
	switch {
	case f != f:
		return down | 0x40
	case math.IsInf(float64(f), 0):
		return down
	}
	value := func(h uint16) float64 {
		if h&0x7fff == 0x7f80 {
			return math.Copysign(0x1p128, float64(f))
		}
		return float64(math.Float32frombits(uint32(h) << 16))
	}
	below, above := math.Abs(float64(f)-value(down)), math.Abs(value(down+1)-float64(f))
	if above < below || above == below && down&1 == 1 {
		return down + 1
	}
	return down
}

func TestConversionLengthsAndAlignment(t *testing.T) {
	all := patterns()
	atEachLevel(t, func(t *testing.T) {
		for _, n := range []int{0, 1, 7, 31, 32, 33, 63, 64, 65, 100, 1000} {
			for offset := range 3 {
				src := all[offset*17:][:n]
				const guard = 0xa5
				buf := make([]byte, offset+2*n+1)
				buf[offset+2*n] = guard
				want := make([]byte, 2*n)
				for _, c := range []struct {
					name          string
					encode, encGo func([]byte, []float32)
					decode, decGo func([]float32, []byte)
				}{
					{"float16", EncodeF16, encodeF16Go, DecodeF16, decodeF16Go},
					{"bfloat16", EncodeBF16, encodeBF16Go, DecodeBF16, decodeBF16Go},
				} {
					data := buf[offset:][:2*n]
					c.encode(data, src)
					c.encGo(want, src)
					if string(data) != string(want) || buf[offset+2*n] != guard {
						t.Fatalf("%s: encoding %d values at offset %d differs or overruns", c.name, n, offset)
					}
					got, ref := make([]float32, n+1), make([]float32, n)
					got[n] = guard
					c.decode(got[:n], data)
					c.decGo(ref, data)
					for i := range ref {
						if math.Float32bits(got[i]) != math.Float32bits(ref[i]) {
							t.Fatalf("%s: decoding %d values at offset %d differs at %d", c.name, n, offset, i)
						}
					}
					if got[n] != guard {
						t.Fatalf("%s: decoding %d values overruns", c.name, n)
					}
				}
			}
		}
	})
}

func TestF32KeepsEveryBit(t *testing.T) {
	src := patterns()
	data, want := make([]byte, 4*len(src)+1)[1:], make([]byte, 4*len(src))
	EncodeF32(data, src)
	encodeF32Go(want, src)
	if string(data) != string(want) {
		t.Fatal("encoded float32 differ")
	}
	got, ref := make([]float32, len(src)), make([]float32, len(src))
	DecodeF32(got, data)
	decodeF32Go(ref, data)
	for i, f := range src {
		if u := math.Float32bits(f); math.Float32bits(got[i]) != u || math.Float32bits(ref[i]) != u {
			t.Fatalf("float32 %#08x came back as %#08x and %#08x", u, math.Float32bits(got[i]), math.Float32bits(ref[i]))
		}
	}
}

func TestWrongLengthPanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Fatal("7 bytes were taken for 4 halves")
		}
	}()
	DecodeF16(make([]float32, 4), make([]byte, 7))
}

func FuzzConversions(f *testing.F) {
	f.Add([]byte("\x00\x7e\x01\x7c\x00\x80\x01\x00 some odd bytes that make more than one group of halves, and a tail.."))
	f.Fuzz(func(t *testing.T, data []byte) {
		halves := data[:len(data)/2*2]
		a, b := make([]float32, len(halves)/2), make([]float32, len(halves)/2)
		equal := func(what string) {
			for i := range a {
				if math.Float32bits(a[i]) != math.Float32bits(b[i]) {
					t.Fatalf("%s differs at %d", what, i)
				}
			}
		}
		DecodeF16(a, halves)
		decodeF16Go(b, halves)
		equal("DecodeF16")
		DecodeBF16(a, halves)
		decodeBF16Go(b, halves)
		equal("DecodeBF16")

		floats := make([]float32, len(data)/4)
		DecodeF32(floats, data[:4*len(floats)])
		x, y := make([]byte, 2*len(floats)), make([]byte, 2*len(floats))
		EncodeF16(x, floats)
		encodeF16Go(y, floats)
		if string(x) != string(y) {
			t.Fatal("EncodeF16 differs")
		}
		EncodeBF16(x, floats)
		encodeBF16Go(y, floats)
		if string(x) != string(y) {
			t.Fatal("EncodeBF16 differs")
		}
	})
}
