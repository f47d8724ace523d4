package tensor

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strconv"
	"strings"
)

// A Shape lists dimensions outermost first (row-major), so a linear weight is [out, in]. A nil or
// empty shape is a scalar. GGUF files store the reverse order; its codec turns it round.
type Shape []int64

// Elements is the product of the dimensions. It fails on negative dimensions and when the product
// does not fit int64, also where a zero dimension follows (or precedes) an overflow.
func (s Shape) Elements() (int64, error) {
	n, zero := uint64(1), false
	for _, d := range s {
		if d < 0 {
			return 0, fmt.Errorf("negative dimension in shape %v", s)
		}
		if d == 0 {
			zero = true
			continue
		}
		hi, lo := bits.Mul64(n, uint64(d))
		if hi != 0 || lo > math.MaxInt64 {
			return 0, fmt.Errorf("shape %v overflows 64 bits", s)
		}
		n = lo
	}
	if zero {
		return 0, nil
	}
	return int64(n), nil
}

// Matrix views the shape as rows × cols: the first dimension by the product of the others. A vector
// is one row, a scalar 1×1. It fails as Elements does.
func (s Shape) Matrix() (rows, cols int64, err error) {
	switch len(s) {
	case 0:
		return 1, 1, nil
	case 1:
		_, err = s.Elements()
		return 1, s[0], err
	}
	if _, err = s.Elements(); err != nil {
		return 0, 0, err
	}
	cols, err = s[1:].Elements()
	return s[0], cols, err
}

// Equal reports whether both shapes have the same dimensions.
func (s Shape) Equal(t Shape) bool { return slices.Equal(s, t) }

// String prints the shape as [out, in].
func (s Shape) String() string {
	w := make([]string, len(s))
	for i, d := range s {
		w[i] = strconv.FormatInt(d, 10)
	}
	return "[" + strings.Join(w, ", ") + "]"
}
