package scheme

import (
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// A microscaling stores MXFP4 in two parts, codes and exponents, by ggml's rule: the exponent of a block
// of 32 is ⌊log₂ of its largest magnitude⌋ − 2, a code that of the nearest value, the first of equals.
//
// What decodes from stored blocks is stored without loss again. The bytes are the same where a block's
// largest code is that of 4 or 6 and no zero has a sign.
type microscaling struct {
	rowLocal
	cols int64
}

const (
	mxfp4Len   = 32
	mxfp4Bytes = 17 // of a block as ggml stores it: the exponent, then element i beside element i + 16
)

func (e microscaling) Extent(part int, first, n int64) (off, size int64) {
	row := e.cols / 2
	if part == 1 {
		row = e.cols / mxfp4Len
	}
	return first * row, n * row
}

func (e microscaling) Encode(dst [][]byte, rows []float32, _ int64) error {
	codec, _ := quant.Of(tensor.MXFP4)
	const most = 64
	var packed [most * mxfp4Bytes]byte
	codes, exponents := dst[0], dst[1]
	for len(rows) > 0 {
		n := min(most, len(rows)/mxfp4Len)
		if err := codec.Encode(packed[:n*mxfp4Bytes], rows[:n*mxfp4Len]); err != nil {
			return err
		}
		for i := range n {
			b, to := packed[i*mxfp4Bytes:][:mxfp4Bytes], codes[16*i:][:16]
			exponents[i] = b[0]
			for j := range 8 {
				first, second := b[1+2*j], b[2+2*j]
				to[j] = first&15 | second<<4
				to[8+j] = first>>4 | second&0xf0
			}
		}
		rows, codes, exponents = rows[n*mxfp4Len:], codes[16*n:], exponents[n:]
	}
	return nil
}

func (e microscaling) Decode(rows []float32, src [][]byte, _ int64) {
	for g, x := range src[1] {
		scale, block := powers[x], rows[g*mxfp4Len:][:mxfp4Len]
		for i, c := range src[0][g*16:][:16] {
			block[2*i] = e2m1[c&15] * scale
			block[2*i+1] = e2m1[c>>4] * scale
		}
	}
}
