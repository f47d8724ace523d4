package gguf

import (
	"bytes"
	"io"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/tensor"
)

// Little-endian to big-endian and back gives the same file, for every type whose blocks are known.
func TestEndianRoundTrip(t *testing.T) {
	var ts []tensor.Tensor
	for _, d := range byID {
		if d == tensor.Invalid {
			continue
		}
		if _, ok := swapOf(d); !ok {
			if d != tensor.IQ2_XXS {
				t.Errorf("%s cannot be turned round", d)
			}
			continue
		}
		ts = append(ts, random(d.String(), d, 3, 2*int64(d.BlockLen())))
	}
	if len(ts) != 34 {
		t.Errorf("%d types", len(ts))
	}
	little := build(t, Header{KVs: allKinds()}, ts, layout.Options{Name: "m.gguf"})
	big := build(t, Header{KVs: allKinds(), BigEndian: true}, ts, layout.Options{Name: "m.gguf"})
	if bytes.Equal(little["m.gguf"], big["m.gguf"]) {
		t.Fatal("both orders give the same bytes")
	}
	path := filepath.Join(save(t, big), "m.gguf")
	_, err := Open(path)
	wantCode(t, err, "container.big_endian")
	m := open(t, path, OpenOptions{AllowBigEndian: true})
	if !m.BigEndian() || m.Version() != 3 || m.Arch() != "llama" {
		t.Errorf("%v %d %q", m.BigEndian(), m.Version(), m.Arch())
	}
	sameTensors(t, m.Tensors(), ts)
	if got := relay(t, m, m.Header(), layout.Options{Name: "m.gguf"}); !bytes.Equal(got["m.gguf"], big["m.gguf"]) {
		t.Error("written again it differs")
	}
	h := m.Header()
	h.BigEndian = false
	if got := relay(t, m, h, layout.Options{Name: "m.gguf"}); !bytes.Equal(got["m.gguf"], little["m.gguf"]) {
		t.Error("the little-endian file did not come back")
	}
}

// Which bytes of a block change places: a permutation of its indices, from ggml's block layouts.
func TestSwapMovesFields(t *testing.T) {
	for d, want := range map[tensor.DType][]int{
		tensor.F32: {3, 2, 1, 0}, tensor.BF16: {1, 0}, tensor.F64: {7, 6, 5, 4, 3, 2, 1, 0},
		tensor.Q4_0: {1, 0, 2, 3}, tensor.Q4_1: {1, 0, 3, 2, 4}, tensor.Q5_0: {1, 0, 5, 4, 3, 2, 6}, tensor.Q4_K: {1, 0, 3, 2, 4, 5},
		tensor.IQ4_XS: {1, 0, 3, 2, 4}, tensor.Q8_K: {3, 2, 1, 0, 4}, tensor.IQ1_S: {1, 0, 2, 3},
	} {
		swap, ok := swapOf(d)
		if !ok {
			t.Fatalf("%s is not known", d)
		}
		p := make([]byte, d.BlockBytes())
		for i := range p {
			p[i] = byte(i)
		}
		swap(p)
		for i, w := range want {
			if int(p[i]) != w {
				t.Errorf("%s: byte %d comes from %d, want %d", d, i, p[i], w)
			}
		}
	}
	// The numbers at the end of a block.
	for d, at := range map[tensor.DType]int{tensor.Q2_K: 82, tensor.Q3_K: 108, tensor.Q6_K: 208, tensor.Q8_K: 290, tensor.TQ1_0: 52, tensor.TQ2_0: 64, tensor.IQ1_M: 54, tensor.IQ1_S: 48} {
		swap, _ := swapOf(d)
		p := make([]byte, d.BlockBytes())
		p[at] = 1
		swap(p)
		if p[at] != 0 || p[at+1] != 1 || at+2 != d.BlockBytes() {
			t.Errorf("%s: the last number did not turn round", d)
		}
	}
	for _, d := range []tensor.DType{tensor.I8, tensor.MXFP4, tensor.NVFP4} {
		if swap, ok := swapOf(d); swap != nil || !ok {
			t.Errorf("%s has no byte order", d)
		}
	}
}

// Slabs of any size at any place give the bytes of the whole.
func TestSwappedReads(t *testing.T) {
	for _, d := range []tensor.DType{tensor.F32, tensor.Q5_1, tensor.Q6_K} {
		x := random("w", d, 4, 2*int64(d.BlockLen()))
		whole, _ := x.Read()
		turned := slices.Clone(whole)
		swap, _ := swapOf(d)
		swap(turned)
		r := &swapped{src: bytes.NewReader(turned), block: int64(d.BlockBytes()), swap: swap}
		step := max(1, len(whole)/40)
		for from := 0; from <= len(whole); from += step {
			for to := from; to <= len(whole); to += step {
				p := make([]byte, to-from)
				if n, err := r.ReadAt(p, int64(from)); n != len(p) || err != nil || !bytes.Equal(p, whole[from:to]) {
					t.Fatalf("%s [%d:%d]: %d, %v", d, from, to, n, err)
				}
			}
		}
		if n, err := r.ReadAt(make([]byte, 8), int64(len(whole)-3)); n != 3 && n != 0 || err != io.EOF && err != io.ErrUnexpectedEOF {
			t.Errorf("%s past the end: %d, %v", d, n, err)
		}
	}
}

// Data whose order is not known is never handed out as if it were.
func TestUnknownBlockOrder(t *testing.T) {
	ts := []tensor.Tensor{random("w", tensor.IQ2_XXS, 256), random("v", tensor.F32, 3)}
	file := build(t, Header{}, ts, layout.Options{Name: "m.gguf"})["m.gguf"]
	// Only the header's order matters here: turn it by writing the same tensors as other types of the
	// same size, then put the type back.
	alike := []tensor.Tensor{random("w", tensor.TQ2_0, 256), ts[1]}
	if alike[0].Size != ts[0].Size {
		t.Fatal("sizes differ")
	}
	big := build(t, Header{BigEndian: true}, alike, layout.Options{Name: "m.gguf"})["m.gguf"]
	typeAt := bytes.Index(big, []byte{0, 0, 0, 35})
	big[typeAt+3] = 16
	if len(big) != len(file) {
		t.Fatal("lengths differ")
	}
	m := open(t, filepath.Join(save(t, map[string][]byte{"m.gguf": big}), "m.gguf"), OpenOptions{AllowBigEndian: true})
	if m.Tensors()[0].DType != tensor.IQ2_XXS {
		t.Fatal(m.Tensors()[0].DType)
	}
	_, err := m.Tensors()[0].Read()
	wantCode(t, err, "container.big_endian")
	if !slices.ContainsFunc(m.Findings(), func(f finding.Finding) bool {
		return f.Code == "container.big_endian" && f.Tensor == "w" && f.Level == finding.Warning
	}) {
		t.Errorf("no warning: %v", m.Findings())
	}
	if got, err := m.Tensors()[1].Read(); err != nil {
		t.Error(err)
	} else if want, _ := ts[1].Read(); !bytes.Equal(got, want) {
		t.Error("the other tensor is wrong")
	}
}
