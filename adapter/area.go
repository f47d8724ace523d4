package adapter

import "fmt"

// An area is the block of the frame that a canonical matrix lands in.
type area struct {
	rowOff, colOff, rows, cols int64
	width                      int64 // columns of the frame
	transposed                 bool  // the block stores [in, out]
}

// Area is the block that the op changes.
func (a area) Area() Block {
	return Block{RowOff: a.rowOff, ColOff: a.colOff, Rows: a.rows, Cols: a.cols, Transposed: a.transposed}
}

// overlap returns the rows [lo, hi) of the block that lie in a slab of n rows from first on.
func (a area) overlap(n, first int64) (lo, hi int64) {
	return max(0, first-a.rowOff), min(a.rows, first+n-a.rowOff)
}

// blockRow is row i of the block in a slab that begins at row first of the frame.
func blockRow[T float32 | float64](a area, slab []T, i, first int64) []T {
	return slab[(a.rowOff+i-first)*a.width+a.colOff:][:a.cols]
}

// sides are the numbers of outputs and of inputs in the block.
func (a area) sides() (outputs, inputs int64) {
	if a.transposed {
		return a.cols, a.rows
	}
	return a.rows, a.cols
}

// order lists the canonical output of each of the place's outputs, nil where they are the same.
func (b *binding) order(outputs int64) ([]int64, error) {
	if b.p.Heads == 0 && b.p.Run == 0 {
		return nil, nil
	}
	if h := b.p.Heads; h > 0 && outputs%(2*h) != 0 {
		return nil, b.mismatch(fmt.Sprintf("%d rows", outputs), fmt.Sprintf("a multiple of 2 × %d heads", h))
	}
	o := make([]int64, outputs)
	for i := range o {
		o[i] = b.p.Canonical(int64(i), outputs)
	}
	return o, nil
}

func anyInputs(int64) bool { return true }

// find is search with the error for what does not fit; what says what was searched.
func (b *binding) find(n int64, in func(inputs int64) bool, what string) (area, error) {
	at, ok, err := b.search(n, in)
	if !ok && err == nil {
		err = b.mismatch(what, fmt.Sprintf("stored %v", b.stored.Shape))
	}
	return at, err
}
