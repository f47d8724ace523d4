package adapter

import "testing"

// TestTranspose compares with the definition, for shapes on both sides of the tiles' size.
func TestTranspose(t *testing.T) {
	for _, s := range [][2]int{{1, 1}, {1, 40}, {40, 1}, {16, 16}, {17, 33}, {33, 17}, {3, 50}, {50, 3}, {0, 4}} {
		rows, cols := s[0], s[1]
		v := make([]float32, rows*cols)
		for i := range v {
			v[i] = float32(i + 1)
		}
		out := transpose(make([]float32, len(v)), v, rows, cols)
		for i := range rows {
			for j := range cols {
				if out[j*rows+i] != v[i*cols+j] {
					t.Fatalf("%v: element %d, %d is %v", s, i, j, out[j*rows+i])
				}
			}
		}
	}
}
