package kernel

import "testing"

// TestFloat8 rounds all patterns to 8-bit floats of every kind of format, at all levels: the same codes as the
// specification, and no byte beyond them.
func TestFloat8(t *testing.T) {
	src := patterns()
	for _, f := range []Float8{
		{Mantissa: 3, Bias: 7, Max: 0x7e, Overflow: 0x7f, NaN: 0x7f},
		{Mantissa: 2, Bias: 15, Max: 0x7b, Overflow: 0x7c, NaN: 0x7f},
		{Mantissa: 3, Bias: 8, Max: 0x7f, Overflow: 0x80, NaN: 0x80, FNUZ: true},
		{Mantissa: 2, Bias: 16, Max: 0x7f, Overflow: 0x80, NaN: 0x80, FNUZ: true},
	} {
		f := f.Ready()
		want := make([]byte, len(src))
		encodeFloat8Go(&f, want, src)
		atEachLevel(t, func(t *testing.T) {
			got := make([]byte, len(src)+1)
			got[len(src)] = 0xa5
			f.Encode(got[:len(src)], src)
			for i, c := range want {
				if got[i] != c {
					t.Fatalf("mantissa of %d bits: %v is %#02x, want %#02x", f.Mantissa, src[i], got[i], c)
				}
			}
			for _, n := range []int{0, 1, 31, 32, 33, 95, 96} {
				for offset := range 3 {
					buf := make([]byte, offset+n+1)
					buf[offset+n] = 0xa5
					f.Encode(buf[offset:][:n], src[17*offset:][:n])
					if string(buf[offset:][:n]) != string(want[17*offset:][:n]) || buf[offset+n] != 0xa5 {
						t.Fatalf("%d values at offset %d differ or overrun", n, offset)
					}
				}
			}
			if got[len(src)] != 0xa5 {
				t.Fatal("overruns")
			}
		})
	}
}
