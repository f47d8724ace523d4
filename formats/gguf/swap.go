package gguf

import (
	"io"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// A field is count numbers of width bytes each, from off in a block. Everything else in a block is
// single bytes and has no byte order.
type field struct{ off, width, count int }

// blockFields lists the numbers in ggml's blocks that are wider than a byte. IQ2_XXS is missing: ggml
// writes the same 8 bytes as two 32-bit words and reads half of them as single bytes, so a big-endian
// block has no certain meaning.
var blockFields = map[tensor.DType][]field{
	tensor.Q4_0: {{0, 2, 1}}, tensor.Q4_1: {{0, 2, 2}},
	tensor.Q5_0: {{0, 2, 1}, {2, 4, 1}}, tensor.Q5_1: {{0, 2, 2}, {4, 4, 1}},
	tensor.Q8_0: {{0, 2, 1}}, tensor.Q8_1: {{0, 2, 2}},
	tensor.Q2_K: {{80, 2, 2}}, tensor.Q3_K: {{108, 2, 1}}, tensor.Q4_K: {{0, 2, 2}}, tensor.Q5_K: {{0, 2, 2}},
	tensor.Q6_K: {{208, 2, 1}}, tensor.Q8_K: {{0, 4, 1}, {260, 2, 16}},
	tensor.IQ2_XS: {{0, 2, 33}}, tensor.IQ2_S: {{0, 2, 1}},
	tensor.IQ3_XXS: {{0, 2, 1}, {66, 4, 8}}, tensor.IQ3_S: {{0, 2, 1}},
	tensor.IQ1_S: {{0, 2, 1}, {34, 2, 8}}, tensor.IQ1_M: {{48, 2, 4}},
	tensor.IQ4_NL: {{0, 2, 1}}, tensor.IQ4_XS: {{0, 2, 2}},
	tensor.TQ1_0: {{52, 2, 1}}, tensor.TQ2_0: {{64, 2, 1}},
	tensor.MXFP4: nil, tensor.NVFP4: nil,
	tensor.Q1_0: {{0, 2, 1}}, tensor.Q2_0: {{0, 2, 1}},
}

// swapOf returns what turns whole blocks (or elements) of the type from one byte order to the other,
// in place; it is nil where the order does not matter. ok is false where the order is not known.
func swapOf(d tensor.DType) (swap func([]byte), ok bool) {
	fields, ok := blockFields[d]
	if !d.IsBlock() {
		fields, ok = []field{{0, d.BlockBytes(), 1}}, true
		if d.BlockBytes() == 1 {
			fields = nil
		}
	}
	if len(fields) == 0 {
		return nil, ok
	}
	block := d.BlockBytes()
	return func(p []byte) {
		for len(p) >= block {
			for _, f := range fields {
				for i := range f.count {
					reverse(p[f.off+i*f.width:][:f.width])
				}
			}
			p = p[block:]
		}
	}, true
}

func reverse(p []byte) {
	for i, j := 0, len(p)-1; i < j; i, j = i+1, j-1 {
		p[i], p[j] = p[j], p[i]
	}
}

// A swapped reader shows the data of a big-endian tensor in little-endian order. Offset 0 is the first
// byte of the tensor, so blocks are found without knowing where in the file it lies.
type swapped struct {
	src   io.ReaderAt
	block int64
	swap  func([]byte)
}

// ReadAt reads any range. Whole blocks are read straight into p; a block that the range cuts goes
// through a buffer of one block.
func (s *swapped) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		at := off + int64(n)
		rest := p[n:]
		skip := at % s.block
		if whole := int64(len(rest)) / s.block * s.block; skip == 0 && whole > 0 {
			k, err := s.src.ReadAt(rest[:whole], at)
			k -= k % int(s.block)
			s.swap(rest[:k])
			n += k
			if int64(k) < whole {
				return n, err
			}
			continue
		}
		one := make([]byte, s.block)
		if k, err := s.src.ReadAt(one, at-skip); int64(k) < s.block {
			return n, err
		}
		s.swap(one)
		n += copy(rest, one[skip:])
	}
	return n, nil
}

// unreadable stands for data whose meaning is not known.
type unreadable struct{ err *finding.Finding }

func (u unreadable) ReadAt([]byte, int64) (int, error) { return 0, u.err }
