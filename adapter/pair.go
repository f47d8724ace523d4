package adapter

import (
	"fmt"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// PairOf makes the update of a linear module from the tensors of its factors, A [r, in] and B [out, r]. One
// of them may be nil, which is the error that a file with half a pair deserves. The scale is left to the
// caller.
func PairOf(file, module string, a, b *tensor.Tensor) (Update, error) {
	u := Update{Target: Target{Module: module, Param: "weight"}, Kind: LowRank, Layer: Linear}
	if a == nil || b == nil {
		t := a
		if t == nil {
			t = b
		}
		return u, finding.Errorf("adapter.missing_pair", file, "the other factor of the pair is missing").In(t.Name)
	}
	fail := func(reason, message string) (Update, error) {
		return u, finding.Errorf("adapter."+reason, file, "%s", message).In(a.Name).
			Expected(fmt.Sprintf("A %s %v, B %s %v", a.DType, a.Shape, b.DType, b.Shape), "A [r, in], B [out, r]")
	}
	switch {
	case !a.DType.IsFloat() || !b.DType.IsFloat():
		return fail("bad_dtype", "the factors are not of a floating-point type")
	case len(a.Shape) != 2 || len(b.Shape) != 2:
		return fail("shape_mismatch", "the factors are no matrices")
	case a.Shape[0] == 0:
		return fail("rank_zero", "the rank is 0")
	case a.Shape[0] != b.Shape[1]:
		return fail("rank_mismatch", "the factors have different ranks")
	case a.Shape[1] == 0 || b.Shape[0] == 0:
		return fail("shape_mismatch", "a factor is empty")
	}
	u.A, u.B = FromTensor(*a, a.Shape[0], a.Shape[1], ReadFloats), FromTensor(*b, b.Shape[0], b.Shape[1], ReadFloats)
	u.Rank, u.Tensors = int(a.Shape[0]), []string{a.Name, b.Name}
	return u, nil
}

// SetMagnitude makes a DoRA update of a low-rank one.
func (u *Update) SetMagnitude(file string, m *tensor.Tensor) error {
	if n, err := m.Shape.Elements(); err != nil || n != u.B.Rows || !m.DType.IsFloat() {
		return finding.Errorf("adapter.shape_mismatch", file, "one magnitude an output is needed").In(m.Name).
			Expected(fmt.Sprintf("%s %v", m.DType, m.Shape), fmt.Sprintf("floats [%d]", u.B.Rows))
	}
	u.Kind, u.Magnitude = DoRA, FromTensor(*m, 1, u.B.Rows, ReadFloats)
	u.Tensors = append(u.Tensors, m.Name)
	return nil
}

// AlphaScale is the scale alpha / rank; source says where the alpha comes from.
func AlphaScale(alpha float64, rank int, source string) Scale {
	return Scale{Value: alpha / float64(rank), Alpha: alpha, Rank: rank, Source: fmt.Sprintf("%s %g / r %d", source, alpha, rank)}
}

// PaddedRank is the update's factors filled up with zeros to a larger rank: the product is the same.
func (u *Update) PaddedRank(rank int64) (a, b Factor) {
	b = u.B
	if b.Cols < rank {
		b = b.Transpose().Padded(rank).Transpose()
	}
	return u.A.Padded(rank), b
}
