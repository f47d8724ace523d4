package tensor

import (
	"bytes"
	"io"
	"testing"
)

func TestTurned(t *testing.T) {
	for _, d := range []DType{U8, BF16, F32, F64} {
		const rows, cols = 5, 7
		size := d.BlockBytes()
		data := make([]byte, rows*cols*size)
		for i := range data {
			data[i] = byte(i*31 + 7)
		}
		x := Tensor{Spec: Spec{Name: "x", DType: d, Shape: Shape{rows, cols}}, Src: bytes.NewReader(append([]byte("head"), data...)), Off: 4, Size: int64(len(data))}
		u, err := Turned(x)
		if err != nil || !u.Shape.Equal(Shape{cols, rows}) {
			t.Fatal(u.Shape, err)
		}
		want := make([]byte, len(data))
		for i := range rows {
			for j := range cols {
				copy(want[(j*rows+i)*size:][:size], data[(i*cols+j)*size:])
			}
		}
		for off := range len(want) {
			for end := off; end <= len(want); end++ {
				p := make([]byte, end-off)
				if _, err := u.ReadAt(p, int64(off)); err != nil || !bytes.Equal(p, want[off:end]) {
					t.Fatalf("%s: bytes %d to %d are %x (%v), want %x", d, off, end, p, err, want[off:end])
				}
			}
		}
		if n, err := u.Src.ReadAt(make([]byte, 9), int64(len(want)-4)); n != 4 || err != io.EOF {
			t.Errorf("%s: at the end %d, %v", d, n, err)
		}
	}
	for _, s := range []Spec{{"v", F32, Shape{3}}, {"q", Q8_0, Shape{2, 32}}, {"n", I4, Shape{2, 2}}} {
		if _, err := Turned(Tensor{Spec: s}); err == nil {
			t.Errorf("%s %v was turned", s.DType, s.Shape)
		}
	}
}
