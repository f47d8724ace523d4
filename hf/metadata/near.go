package metadata

import "strconv"

func decimal(n int64) string { return strconv.FormatInt(n, 10) }

// nearest is the candidate with the smallest edit distance to a name.
func nearest(name string, candidates []string) string {
	best, least := "", len(name)+1
	for _, c := range candidates {
		if d := distance(name, c); best == "" || d < least {
			best, least = c, d
		}
	}
	return best
}

func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			next := diagonal
			if a[i] != b[j] {
				next = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], next
		}
	}
	return row[len(b)]
}
