// Package quant converts stored elements to and from float32: the plain floating-point types and all
// block types of ggml. Decoding is exact, or one rounding for F64. Block types give the bytes and the
// floats of the reference, ggml 0.25.1 built without contraction: every operation is float32, in the
// reference's order, and rounded on its own.
package quant

import (
	"fmt"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/tensor"
)

// A Codec converts one storage type. The zero Codec is of no use; get one from Of.
type Codec struct {
	dtype  tensor.DType
	decode func(dst []float32, src []byte)
	encode func(dst []byte, src []float32) error // nil: not without importance
	weigh  rowEncoder                            // nil: importance changes nothing
}

// A rowEncoder encodes rows of cols elements whose columns matter as importance says.
type rowEncoder func(dst []byte, src []float32, cols int, importance []float32) error

// Of returns the codec of a type, or false for types that hold no numbers of this kind: integers and
// packed sub-byte floats. The types ggml keeps for activations, Q8_1 and Q8_K, can only be decoded.
func Of(d tensor.DType) (Codec, bool) {
	if int(d) >= len(codecs) || codecs[d].decode == nil {
		return Codec{}, false
	}
	c := codecs[d]
	c.dtype = d
	return c, true
}

// DType is the type the codec converts.
func (c Codec) DType() tensor.DType { return c.dtype }

// CanEncode reports whether the type can be written; some need importance for it.
func (c Codec) CanEncode() bool { return c.encode != nil || c.weigh != nil }

// NeedsImportance reports whether the type can be written only with importance, as the reference
// demands for IQ1_S, IQ2_XXS and IQ2_XS.
func (c Codec) NeedsImportance() bool { return c.encode == nil && c.weigh != nil }

// Decode converts whole blocks to float32. src holds exactly the bytes of len(dst) elements; other
// lengths are a mistake of the caller and panic.
func (c Codec) Decode(dst []float32, src []byte) {
	if err := c.fits(len(src), len(dst)); err != nil {
		panic("quant: " + err.Error())
	}
	c.decode(dst, src)
}

// Encode converts float32 to whole blocks; dst holds exactly the bytes of len(src) elements. Rows may
// be encoded together or one by one, the bytes are the same.
//
// Plain types follow IEEE: values that do not fit become an infinity, or NaN where the type has none.
// Block types cannot hold what is not finite: a block with such a value
// (quant.nonfinite_value), or whose scale overflows its type (quant.scale_overflow), is an error, a
// *finding.Finding without file and tensor, and leaves dst undefined.
func (c Codec) Encode(dst []byte, src []float32) error {
	switch {
	case c.NeedsImportance():
		return finding.Errorf("quant.needs_importance", "", "type %s cannot be written without an importance matrix", c.dtype).
			Hinted("give an importance matrix, or choose another type")
	case c.encode == nil:
		return finding.Errorf("quant.no_encoder", "", "type %s cannot be written", c.dtype)
	}
	if err := c.fits(len(dst), len(src)); err != nil {
		return err
	}
	return c.encode(dst, src)
}

// EncodeRows is Encode for whole rows of cols elements, whose columns weigh in the choice of scales
// and codes as importance says: cols finite numbers, none negative, or nil for none. Types that
// cannot use it ignore it. Rows may come one by one or together, but never in parts: Q4_0, Q4_1, Q5_0
// and Q5_1 look at the whole row.
func (c Codec) EncodeRows(dst []byte, src []float32, cols int, importance []float32) error {
	if cols <= 0 || len(src)%cols != 0 || cols%c.dtype.BlockLen() != 0 {
		return finding.Errorf("quant.row_length", "", "%d elements in rows of %d do not make blocks of %d", len(src), cols, c.dtype.BlockLen())
	}
	if importance == nil {
		return c.Encode(dst, src)
	}
	if len(importance) != cols {
		return finding.Errorf("quant.importance_size", "", "the importance matrix does not fit the rows").
			Expected(len(importance), cols)
	}
	for i, w := range importance {
		if !(w >= 0) || !isFinite(w) {
			return finding.Errorf("quant.bad_importance", "", "column %d has importance %v, which is not a finite number from zero up", i, w)
		}
	}
	if c.weigh == nil {
		return c.Encode(dst, src)
	}
	if err := c.fits(len(dst), len(src)); err != nil {
		return err
	}
	return c.weigh(dst, src, cols, importance)
}

func (c Codec) fits(bytes, elements int) error {
	n, err := c.dtype.Bytes(int64(elements))
	if err == nil && n != int64(bytes) {
		err = fmt.Errorf("%d bytes for %d elements of %s, which take %d", bytes, elements, c.dtype, n)
	}
	return err
}

var codecs = [...]Codec{
	tensor.F32:        {decode: decodeF32, encode: encodeF32},
	tensor.F16:        {decode: decodeF16, encode: encodeF16},
	tensor.BF16:       {decode: decodeBF16, encode: encodeBF16},
	tensor.F64:        {decode: decodeF64, encode: encodeF64},
	tensor.F8E4M3:     {decode: e4m3.decode, encode: e4m3.encode},
	tensor.F8E5M2:     {decode: e5m2.decode, encode: e5m2.encode},
	tensor.F8E4M3FNUZ: {decode: e4m3fnuz.decode, encode: e4m3fnuz.encode},
	tensor.F8E5M2FNUZ: {decode: e5m2fnuz.decode, encode: e5m2fnuz.encode},

	tensor.Q4_0:    {decode: blocks(32, 18, decodeQ4_0), encode: toQuickBlocks(32, 18, kernel.QuickQ4_0, encodeQ4_0), weigh: toWeighedRows(18, weighQ4_0)},
	tensor.Q4_1:    {decode: blocks(32, 20, decodeQ4_1), encode: toQuickBlocks(32, 20, kernel.QuickQ4_1, encodeQ4_1), weigh: toWeighedRows(20, weighQ4_1)},
	tensor.Q5_0:    {decode: blocks(32, 22, decodeQ5_0), encode: toQuickBlocks(32, 22, kernel.QuickQ5_0, encodeQ5_0), weigh: toWeighedRows(22, weighQ5_0)},
	tensor.Q5_1:    {decode: blocks(32, 24, decodeQ5_1), encode: toQuickBlocks(32, 24, kernel.QuickQ5_1, encodeQ5_1), weigh: toWeighedRows(24, weighQ5_1)},
	tensor.Q8_0:    {decode: blocks(32, 34, decodeQ8_0), encode: toQuickBlocks(32, 34, kernel.QuickQ8_0, encodeQ8_0)},
	tensor.Q8_1:    {decode: blocks(32, 36, decodeQ8_1)},
	tensor.Q8_K:    {decode: blocks(256, 292, decodeQ8_K)},
	tensor.Q2_K:    {decode: blocks(256, 84, decodeQ2_K), encode: toBlocks(256, 84, encodeQ2_K), weigh: toWeighedBlocks(256, 84, weighQ2_K)},
	tensor.Q3_K:    {decode: blocks(256, 110, decodeQ3_K), encode: toBlocks(256, 110, encodeQ3_K), weigh: toWeighedBlocks(256, 110, weighQ3_K)},
	tensor.Q4_K:    {decode: blocks(256, 144, decodeQ4_K), encode: plainly(toBatches(256, 144, 2, encodeQ4_K)), weigh: toBatches(256, 144, 2, encodeQ4_K)},
	tensor.Q5_K:    {decode: blocks(256, 176, decodeQ5_K), encode: plainly(toBatches(256, 176, 2, encodeQ5_K)), weigh: toBatches(256, 176, 2, encodeQ5_K)},
	tensor.Q6_K:    {decode: blocks(256, 210, decodeQ6_K), encode: toBlocks(256, 210, encodeQ6_K), weigh: toWeighedBlocks(256, 210, weighQ6_K)},
	tensor.IQ1_S:   {decode: blocks(256, 50, decodeIQ1_S), weigh: toWeighedBlocks(256, 50, weighIQ1_S)},
	tensor.IQ1_M:   {decode: blocks(256, 56, decodeIQ1_M), encode: toBlocks(256, 56, encodeIQ1_M), weigh: toWeighedBlocks(256, 56, weighIQ1_M)},
	tensor.IQ2_XXS: {decode: blocks(256, 66, decodeIQ2_XXS), weigh: toWeighedBlocks(256, 66, weighIQ2_XXS)},
	tensor.IQ2_XS:  {decode: blocks(256, 74, decodeIQ2_XS), weigh: toWeighedBlocks(256, 74, weighIQ2_XS)},
	tensor.IQ2_S:   {decode: blocks(256, 82, decodeIQ2_S), encode: toBlocks(256, 82, encodeIQ2_S), weigh: toWeighedBlocks(256, 82, weighIQ2_S)},
	tensor.IQ3_XXS: {decode: blocks(256, 98, decodeIQ3_XXS), encode: toBlocks(256, 98, encodeIQ3_XXS), weigh: toWeighedBlocks(256, 98, weighIQ3_XXS)},
	tensor.IQ3_S:   {decode: blocks(256, 110, decodeIQ3_S), encode: toBlocks(256, 110, encodeIQ3_S), weigh: toWeighedBlocks(256, 110, weighIQ3_S)},
	tensor.IQ4_NL:  {decode: blocks(32, 18, decodeIQ4_NL), encode: plainly(toBatches(32, 18, 8, encodeIQ4_NL)), weigh: toBatches(32, 18, 8, encodeIQ4_NL)},
	tensor.IQ4_XS:  {decode: blocks(256, 136, decodeIQ4_XS), encode: toBlocks(256, 136, encodeIQ4_XS), weigh: toWeighedBlocks(256, 136, weighIQ4_XS)},
	tensor.TQ1_0:   {decode: blocks(256, 54, decodeTQ1_0), encode: toBlocks(256, 54, encodeTQ1_0)},
	tensor.TQ2_0:   {decode: blocks(256, 66, decodeTQ2_0), encode: toBlocks(256, 66, encodeTQ2_0)},
	tensor.MXFP4:   {decode: blocks(32, 17, decodeMXFP4), encode: toQuickBlocks(32, 17, kernel.QuickMXFP4, encodeMXFP4)},
	tensor.NVFP4:   {decode: blocks(64, 36, decodeNVFP4), encode: toQuickBlocks(64, 36, kernel.QuickNVFP4, encodeNVFP4)},
	tensor.Q1_0:    {decode: blocks(128, 18, decodeQ1_0), encode: toBlocks(128, 18, encodeQ1_0)},
	tensor.Q2_0:    {decode: blocks(64, 18, decodeQ2_0), encode: toBlocks(64, 18, encodeQ2_0)},
}
