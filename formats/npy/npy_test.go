package npy

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// numpy is what numpy.save writes for numpy.array([[1, 2, 3]], dtype=int32).
var numpy = "\x93NUMPY\x01\x00\x76\x00{'descr': '<i4', 'fortran_order': False, 'shape': (1, 3), }" + strings.Repeat(" ", 58) + "\n" +
	"\x01\x00\x00\x00\x02\x00\x00\x00\x03\x00\x00\x00"

func write(t *testing.T, b string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.npy")
	if err := os.WriteFile(path, []byte(b), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRead(t *testing.T) {
	f, err := Open(write(t, numpy))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	a := f.Array()
	b, err := a.Read()
	if err != nil || a.DType != tensor.I32 || !a.Shape.Equal(tensor.Shape{1, 3}) || !bytes.Equal(b, []byte(numpy[128:])) {
		t.Errorf("%s %v is %v, %v", a.DType, a.Shape, b, err)
	}
}

func TestHeader(t *testing.T) {
	h, err := Header(tensor.I32, tensor.Shape{1, 3})
	if err != nil || string(h) != numpy[:128] {
		t.Errorf("%q, %v", h, err)
	}
	for _, s := range []tensor.Shape{{}, {7}, {1, 2, 3}} {
		h, err := Header(tensor.F16, s)
		if err != nil || len(h)%64 != 0 {
			t.Fatal(len(h), err)
		}
		n, _ := s.Elements()
		f, err := Open(write(t, string(h)+strings.Repeat("x", int(2*n))))
		if err != nil {
			t.Fatal(err)
		}
		if !f.Array().Shape.Equal(s) {
			t.Errorf("%v came back as %v", s, f.Array().Shape)
		}
		f.Close()
	}
	if _, err := Header(tensor.BF16, nil); err == nil {
		t.Error("NumPy has no bfloat16")
	}
}

func TestErrors(t *testing.T) {
	for reason, b := range map[string]string{
		"truncated":     numpy[:9],
		"bad_magic":     "NUMPY" + numpy,
		"bad_version":   numpy[:6] + "\x09" + numpy[7:],
		"bad_header":    numpy[:8] + "\xff\xff" + numpy[10:],
		"bad_dtype":     strings.Replace(numpy, "<i4", "<c8", 1),
		"bad_shape":     strings.Replace(numpy, "(1, 3), }  ", "(1, 99999999999999999999), }", 1),
		"unsupported":   strings.Replace(numpy, "False", "True ", 1),
		"size_mismatch": strings.Replace(numpy, "(1, 3)", "(2, 3)", 1),
	} {
		_, err := Open(write(t, b))
		if f := finding.Of(err); f == nil || f.Code != "container."+reason {
			t.Errorf("%s: got %v", reason, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(numpy))
	f.Add([]byte(numpy[:20]))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parse("a.npy", bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		if x, err := a.Read(); err != nil || int64(len(x)) != a.Size {
			t.Fatalf("an accepted array does not read: %v", err)
		}
	})
}
