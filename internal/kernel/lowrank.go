package kernel

import "fmt"

const (
	panelWidth = 16      // columns in a panel of R
	blockBytes = 1 << 18 // panels that are reused over all rows of a slab before the next ones
)

// A LowRank is an update W += scale·L·R, packed once per tensor and applied to slabs of W's rows.
//
// Every element becomes w + scale·acc, where acc starts at zero and takes the products L[i][k]·R[k][j]
// in the order of k. All of it is float32, and each operation is rounded on its own.
type LowRank struct {
	rows, cols, rank int
	scale            float32
	l                []float32
	panels           []float32 // R as panels of rank × 16 columns, the last one filled up with zeros
}

// NewLowRank packs an update of a matrix of rows × cols. l is rows × rank and r is rank × cols, both
// row-major. l is kept, not copied, and must not change while the update is in use.
func NewLowRank(l, r []float32, rows, cols, rank int, scale float32) *LowRank {
	if rows < 0 || cols < 0 || rank < 0 || len(l) != rows*rank || len(r) != rank*cols {
		panic(fmt.Sprintf("kernel: factors of %d and %d values for a rank-%d update of %d×%d", len(l), len(r), rank, rows, cols))
	}
	u := &LowRank{rows: rows, cols: cols, rank: rank, scale: scale, l: l}
	padded := (cols + panelWidth - 1) / panelWidth * panelWidth
	u.panels = make([]float32, padded*rank)
	for k := range rank {
		for j := 0; j < cols; j += panelWidth {
			copy(u.panels[j*rank+k*panelWidth:][:panelWidth], r[k*cols+j:(k+1)*cols])
		}
	}
	return u
}

// Apply adds the update's rows first to first+n to the slab. Row first starts at slab[0], and rows lie
// stride elements apart, so a slab of wider rows is passed from the column where the update begins.
// The result does not depend on how rows are cut into slabs; slabs may be processed concurrently.
func (u *LowRank) Apply(slab []float32, stride, first, n int) {
	if first < 0 || n < 0 || n > u.rows-first || (n > 1 && stride < u.cols) || (n > 0 && len(slab) < (n-1)*stride+u.cols) {
		panic(fmt.Sprintf("kernel: rows %d to %d of a %d×%d update do not fit a slab of %d values with rows %d apart",
			first, first+n, u.rows, u.cols, len(slab), stride))
	}
	if n == 0 || u.rank == 0 || u.cols == 0 {
		return
	}
	l := u.l[first*u.rank:]
	whole := u.cols / panelWidth
	block := max(1, blockBytes/(4*panelWidth*u.rank))
	for p := 0; p < whole; p += block {
		addPanels(slab[p*panelWidth:], stride, l, u.panels[p*panelWidth*u.rank:], u.rank, n, min(block, whole-p), u.scale)
	}
	if u.cols%panelWidth != 0 {
		u.applyRest(slab[whole*panelWidth:], stride, l, n)
	}
}

// applyRest handles the last columns, fewer than a panel, by way of a tile of whole panel rows.
func (u *LowRank) applyRest(slab []float32, stride int, l []float32, n int) {
	const rows = 4
	var tile [rows * panelWidth]float32
	width := u.cols % panelWidth
	panel := u.panels[u.cols/panelWidth*panelWidth*u.rank:]
	for i := 0; i < n; i += rows {
		m := min(rows, n-i)
		for t := range m {
			copy(tile[t*panelWidth:][:width], slab[(i+t)*stride:])
		}
		addPanels(tile[:], panelWidth, l[i*u.rank:], panel, u.rank, m, 1, u.scale)
		for t := range m {
			copy(slab[(i+t)*stride:][:width], tile[t*panelWidth:])
		}
	}
}
