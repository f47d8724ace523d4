package tensor

import (
	"bytes"
	"math"
	"strings"
	"testing"
)

func TestElements(t *testing.T) {
	for _, c := range []struct {
		shape Shape
		n     int64
		fails bool
	}{
		{nil, 1, false},
		{Shape{3, 4}, 12, false},
		{Shape{0, math.MaxInt64, math.MaxInt64}, 0, true}, // an overflow hides behind the zero
		{Shape{math.MaxInt64, math.MaxInt64, 0}, 0, true},
		{Shape{5, 0}, 0, false},
		{Shape{1 << 32, 1 << 31}, 0, true},
		{Shape{1 << 31, 1 << 31}, 1 << 62, false},
		{Shape{1<<62 + 4, 4}, 0, true}, // wraps to 16 in 64 bits
		{Shape{-1}, 0, true},
		{Shape{-1, -1}, 0, true},
	} {
		n, err := c.shape.Elements()
		if (err != nil) != c.fails || err == nil && n != c.n {
			t.Errorf("%v: got %d, %v; want %d, failure %v", c.shape, n, err, c.n, c.fails)
		}
	}
}

// TestSpecBytes uses the block sizes of ggml 0.25.1 and safetensors.
func TestSpecBytes(t *testing.T) {
	for _, c := range []struct {
		dtype DType
		shape Shape
		n     int64
		fails bool
	}{
		{F32, Shape{2, 3}, 24, false},
		{BF16, nil, 2, false},
		{Q4_0, Shape{2, 64}, 72, false},
		{Q4_0, Shape{64, 2}, 0, true}, // 128 elements, but rows hold no whole block
		{Q4_K, Shape{3, 256}, 432, false},
		{Q6_K, Shape{1, 512}, 420, false},
		{Q8_0, Shape{4, 32}, 136, false},
		{IQ1_M, Shape{256}, 56, false},
		{NVFP4, Shape{64}, 36, false},
		{U4, Shape{3}, 2, false}, // the flattened tensor, rounded up
		{I2, Shape{5}, 2, false},
		{F4, Shape{2, 2}, 2, false},
		{String, Shape{2}, 0, true},
		{F64, Shape{1 << 61}, 0, true},
	} {
		n, err := Spec{DType: c.dtype, Shape: c.shape}.Bytes()
		if (err != nil) != c.fails || err == nil && n != c.n {
			t.Errorf("%s%v: got %d, %v; want %d, failure %v", c.dtype, c.shape, n, err, c.n, c.fails)
		}
	}
}

func TestParseDType(t *testing.T) {
	for name, want := range map[string]DType{
		"bf16": BF16, "BFloat16": BF16, "q4_k": Q4_K, "IQ2_xxs": IQ2_XXS, "float32": F32, "F8_E4M3": F8E4M3, "nvfp4": NVFP4, "int8": I8,
	} {
		if d, ok := ParseDType(name); !ok || d != want {
			t.Errorf("%s: got %s, %v", name, d, ok)
		}
	}
	for _, name := range []string{"", "q4", "invalid", "Q4_K_M"} {
		if d, ok := ParseDType(name); ok {
			t.Errorf("%q is read as %s", name, d)
		}
	}
	for d := Bool; d < numDTypes; d++ {
		if got, ok := ParseDType(strings.ToLower(d.String())); !ok || got != d {
			t.Errorf("%s does not come back", d)
		}
	}
}

// TestReadAt checks that a tensor's neighbours cannot be reached through it.
func TestReadAt(t *testing.T) {
	x := Tensor{Spec: Spec{Name: "x"}, Src: bytes.NewReader([]byte("0123456789")), Off: 2, Size: 4}
	p := make([]byte, 4)
	if n, err := x.ReadAt(p, 0); n != 4 || err != nil || string(p) != "2345" {
		t.Errorf("got %q, %d, %v", p, n, err)
	}
	for _, off := range []int64{1, 4, -1, math.MaxInt64} {
		if _, err := x.ReadAt(p, off); err == nil {
			t.Errorf("a read of 4 bytes at %d succeeded", off)
		}
	}
	short := Tensor{Spec: Spec{Name: "x"}, Src: bytes.NewReader([]byte("01")), Size: 4}
	if _, err := short.Read(); err == nil || !strings.Contains(err.Error(), "unexpected EOF") {
		t.Errorf("a truncated file reads as %v", err)
	}
}

// TestReadElements reads whole elements and blocks, into the buffer that is given where it is large enough, and
// allocates nothing for elements that are not there.
func TestReadElements(t *testing.T) {
	x := Tensor{Spec: Spec{Name: "x", DType: F16, Shape: Shape{4}}, Src: bytes.NewReader([]byte("0123456789")), Off: 1, Size: 8}
	buf := make([]byte, 6)
	if b, err := x.ReadElements(buf, 1, 2); err != nil || string(b) != "3456" || &b[0] != &buf[0] {
		t.Errorf("%q, %v", b, err)
	}
	if b, err := x.ReadElements(buf, 0, 4); err != nil || string(b) != "12345678" {
		t.Errorf("%q, %v", b, err)
	}
	for _, k := range []int64{5, 1 << 40} {
		if _, err := x.ReadElements(nil, 0, k); err == nil {
			t.Errorf("%d elements were read of 4", k)
		}
	}
	x.DType = Q8_0
	if _, err := x.ReadElements(nil, 16, 16); err == nil {
		t.Error("half a block was read")
	}
}
