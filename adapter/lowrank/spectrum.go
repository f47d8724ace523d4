package lowrank

import "github.com/loratool/loratool/adapter"

// SingularValues are those of the sum of low-rank terms of a rows × cols matrix, with their scales, in falling order:
// by orthonormal bases of both sides and the decomposition of the small core between them. nil where the ranks add up
// to more than most.
func SingularValues(rows, cols int64, terms []adapter.Product, most int64) []float64 {
	rank := int64(0)
	for _, t := range terms {
		rank += t.Rank
	}
	if rank == 0 || rank > most {
		return nil
	}
	b, a := newMatrix(int(rank), int(rows)), newMatrix(int(rank), int(cols))
	first := int64(0)
	for _, t := range terms {
		for k := range t.Rank {
			to := b.row(int(first + k))[t.RowOff:]
			for i := range t.Rows {
				to[i] = float64(t.Scale) * float64(t.L[i*t.Rank+k])
			}
			to = a.row(int(first + k))[t.ColOff:]
			for j, x := range t.R[k*t.Cols : (k+1)*t.Cols] {
				to[j] = float64(x)
			}
		}
		first += t.Rank
	}
	_, cb := orthonormal(b)
	_, ca := orthonormal(a)
	return jacobi(cb.transpose().times(ca)).sorted().s
}
