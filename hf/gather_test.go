package hf

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/hf/metadata"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/tensor"
)

// counting is a source of n bytes that tell where they come from.
func counting(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// TestGather reads sections in odd pieces and compares with the element by element definition.
func TestGather(t *testing.T) {
	const rows, cols, elem = 48, 40, 2
	data := counting(rows * cols * elem)
	at := func(r, c int64) []byte { return data[(r*cols+c)*elem:][:elem] }
	src := bytes.NewReader(data)
	identity := func(i int64) int64 { return i }
	perm := func(i int64) int64 { // heads of 12 rows
		h, j := i/12, i%12
		return h*12 + j%2*6 + j/2
	}
	far := func(i int64) int64 { return i % 2 * 40 }
	odd := func(i int64) int64 { return 2*i + 1 }
	for _, tt := range []struct {
		name      string
		s         section
		n, length int64 // rows of the section, elements of a row
		want      func(r, c int64) []byte
	}{
		{"whole", whole{src, 5 * cols * elem, 7 * cols * elem}, 7, cols, func(r, c int64) []byte { return at(r+5, c) }},
		{"permuted", gathered{src, cols * elem, rows, perm}, rows, cols, func(r, c int64) []byte { return at(perm(r), c) }},
		{"scattered", gathered{src, cols * elem, 9, far}, 9, cols, func(r, c int64) []byte { return at(far(r), c) }},
		{"odd rows", gathered{src, cols * elem, rows / 2, odd}, rows / 2, cols, func(r, c int64) []byte { return at(odd(r), c) }},
		{"transposed", transposed{src, cols * elem, elem, rows, identity, cols, identity}, cols, rows, func(r, c int64) []byte { return at(c, r) }},
		{"odd columns", transposed{src, cols * elem, elem, rows, identity, cols / 2, odd}, cols / 2, rows, func(r, c int64) []byte { return at(c, odd(r)) }},
		{"transposed block", transposed{src, cols * elem, elem, 6, func(j int64) int64 { return j + 30 }, cols, identity}, cols, 6,
			func(r, c int64) []byte { return at(c+30, r) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var want []byte
			for r := range tt.n {
				for c := range tt.length {
					want = append(want, tt.want(r, c)...)
				}
			}
			if tt.s.size() != int64(len(want)) {
				t.Fatalf("size %d, want %d", tt.s.size(), len(want))
			}
			v := newView([]section{whole{src, 0, 3}, tt.s, whole{src, 9, 4}})
			want = append(append(append([]byte(nil), data[:3]...), want...), data[9:13]...)
			rnd := rand.New(rand.NewPCG(1, 2))
			for range 300 {
				off := rnd.IntN(len(want) + 1)
				p := make([]byte, rnd.IntN(len(want)-off+1))
				if n, err := v.ReadAt(p, int64(off)); n != len(p) || err != nil {
					t.Fatalf("ReadAt(%d bytes, %d) = %d, %v", len(p), off, n, err)
				}
				if !bytes.Equal(p, want[off:off+len(p)]) {
					t.Fatalf("wrong bytes at %d, %d bytes", off, len(p))
				}
			}
			if _, err := v.ReadAt(make([]byte, 5), int64(len(want)-4)); err == nil {
				t.Fatal("a read beyond the end succeeds")
			}
		})
	}
}

func TestGatherShortSource(t *testing.T) {
	src := bytes.NewReader(counting(100))
	identity := func(i int64) int64 { return i }
	for _, s := range []section{
		whole{src, 0, 200}, gathered{src, 10, 20, identity}, transposed{src, 10, 2, 20, identity, 5, identity},
	} {
		if _, err := newView([]section{s}).ReadAt(make([]byte, s.size()), 0); err == nil {
			t.Errorf("%T reads more than its source has", s)
		}
	}
}

func TestRepack(t *testing.T) {
	codes := make([]byte, mxCodes) // element i has the value i%16 in its half byte
	for i := range codes {
		codes[i] = byte(2*i%16) | byte((2*i+1)%16)<<4
	}
	got := make([]byte, mxBlock)
	repack(got, codes, 77)
	if got[0] != 77 {
		t.Fatalf("the scale is %d", got[0])
	}
	for j, x := range got[1:] {
		if int(x&15) != j || int(x>>4) != j {
			t.Errorf("byte %d holds elements %d and %d, want %d and %d", j, x&15, x>>4, j, j)
		}
	}
}

// TestLlama3Factors compares with the converter's answers, bit for bit.
func TestLlama3Factors(t *testing.T) {
	var units struct {
		RopeFreqs []struct {
			Base, Factor, Low, High, Original json.Number
			Dim                               int64
			Bits                              []string `json:"f32_bits"`
		} `json:"rope_freqs"`
	}
	corpus.ReadJSON(t, corpus.Path(t, "hf2gguf", "units.json"), &units)
	n := 0
	for _, u := range units.RopeFreqs {
		got := llama3Factors(u.Dim, map[string]any{"rope_theta": u.Base, "factor": u.Factor, "low_freq_factor": u.Low,
			"high_freq_factor": u.High, "original_max_position_embeddings": u.Original})
		if len(got) != len(u.Bits) {
			t.Fatalf("%d factors, want %d", len(got), len(u.Bits))
		}
		for i, s := range u.Bits {
			if want, _ := strconv.ParseUint(s, 16, 32); math.Float32bits(got[i]) != uint32(want) {
				t.Errorf("%v: factor %d is %08x, want %s", u, i, math.Float32bits(got[i]), s)
			}
			n++
		}
	}
	if n == 0 {
		t.Fatal("no factors")
	}
	t.Logf("%d factors equal", n)
}

// TestTinyLlama compares with the F16 file that another program wrote of the same folder.
func TestTinyLlama(t *testing.T) {
	dir := filepath.Join("..", "testdata", "tiny-llama")
	m, err := Open(filepath.Join(dir, "base"), Options{DType: tensor.F16, Metadata: metadata.Options{Pre: anyPre}})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	want, err := gguf.Open(filepath.Join(dir, "base-f16.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer want.Close()
	if len(m.Tensors()) != len(want.Tensors()) {
		t.Fatalf("%d tensors, want %d", len(m.Tensors()), len(want.Tensors()))
	}
	for i, w := range want.Tensors() {
		got := m.Tensors()[i]
		typ := m.Type(got.Spec)
		if got.Name != w.Name || fmt.Sprint(got.Shape) != fmt.Sprint(w.Shape) || typ != w.DType {
			t.Fatalf("tensor %d is %s %v %s, want %s %v %s", i, got.Name, got.Shape, typ, w.Name, w.Shape, w.DType)
		}
		data, err := w.Read()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(encoded(t, &got, typ), data) {
			t.Errorf("the data of %s differ", w.Name)
		}
	}
}
