package scheme

import (
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// An Encoding says where the rows of a weight lie in the parts it is stored in, and stores them there. The
// numbers of rows and elements are those of the matrix whose rows run over all dimensions but the last.
// It may be used from several goroutines.
type Encoding interface {
	// Parts is how many tensors hold the rows: the packed data, then its scales.
	Parts() int
	// Block is the number of rows that are encoded together: from a multiple of it on, as many as a
	// multiple of it or to the end of the weight.
	Block() int64
	// Extent is the place of rows in a part, in bytes: n rows from first on, whole blocks.
	Extent(part int, first, n int64) (off, size int64)
	// Measure shows the encoding all rows in order, where they have something in common that has to be known
	// before the first is encoded: the scale of the whole weight. next returns the following rows and the
	// number of the first, or no rows at the end; it is not called where nothing is needed. Only the first
	// call counts.
	Measure(next func() (rows []float32, first int64, err error)) error
	// Encode stores whole blocks from row first on. dst are their extents in the parts. What cannot be
	// stored is a *finding.Finding without file and tensor: quant.nonfinite_value, quant.scale_overflow.
	Encode(dst [][]byte, rows []float32, first int64) error
	// Decode is what whole blocks from row first on decode to.
	Decode(rows []float32, src [][]byte, first int64)
}

// Codes is an Encoding of elements that have codes of their own: each can be another one without a scale or
// another element changing. It takes rows or columns apart and puts codes back.
type Codes interface {
	Encoding
	// Span is how many elements of a line, from the first on, share a scale that is for that line alone and can
	// be made anew; 0 where scales stay. ok is false where lines of that kind cannot be taken apart.
	Span(column bool) (n int64, ok bool)
	// ReadGrid sets the grid and the codes of a line, which are indices of levels.
	ReadGrid(g *quant.Grid, codes []int16, l Line) error
	// WriteCodes puts codes into a line.
	WriteCodes(l Line, codes []int16)
	// Stretches reports whether Stretch multiplies the scales of a line by a factor, within the precision of
	// float16.
	Stretches(column bool) bool
	Stretch(l Line, by float32)
	// PutScales puts the scales that Measure has chosen for lines that share them into the extents of rows from
	// row first on, which hold the weight's.
	PutScales(dst [][]byte, first int64)
	// CopyScales gives the span of a line that begins with element lo the scale of another one's.
	CopyScales(dst, src Line, lo int64)
}

// A Line is a row or a column of a weight, in the extents of rows in its parts.
type Line struct {
	Parts  [][]byte // of rows from row First on; of all rows where the line is a column
	First  int64
	Number int64
	Column bool
}

// A Weight is a packed weight.
type Weight struct {
	// Scheme says how it is stored: "GPTQ 4-bit".
	Scheme string
	// Parts are the tensors it is stored in, the packed data first.
	Parts []tensor.Tensor
	// Exact is the weight in the order in which it is stored, decoded to float32 and not rounded further.
	Exact tensor.Tensor
	// Turned tells that Exact has the last two dimensions of the decoded weight exchanged.
	Turned bool
	// Encoding stores rows of Exact in the first of the Parts. It is nil where that is not offered: where
	// finding codes and scales anew is a search that libraries do in ways of their own.
	Encoding Encoding
	// Codes stores them too, by codes that are chosen one by one. It is nil where elements share codes.
	Codes Codes
}

// Stored reports whether the base stores the weight so already. Otherwise the Parts are only what outputs will
// hold, and have no data.
func (w *Weight) Stored() bool { return w.Parts[0].Src != nil }

// String is the weight's scheme.
func (w *Weight) String() string { return w.Scheme }

// maxBlock is the largest number of elements that are encoded together.
const maxBlock = 16 << 20

// rowLocal is embedded by encodings of two parts whose rows have nothing in common.
type rowLocal struct{}

func (rowLocal) Parts() int   { return 2 }
func (rowLocal) Block() int64 { return 1 }
func (rowLocal) Measure(func() ([]float32, int64, error)) error {
	return nil
}

func nonFinite() error {
	return finding.Errorf("quant.nonfinite_value", "", "a value is not finite, so that there is no scale for it")
}

func scaleOverflow(v float32, t tensor.DType) error {
	return finding.Errorf("quant.scale_overflow", "", "the scale %g overflows %s", v, t)
}
