package config

// longest is how much of a text takes part in a comparison, in bytes.
const longest = 400

// Nearest is the candidate that differs least from a name, for hints about names that are not known; ""
// without candidates. Among equals it is the first.
func Nearest(name string, candidates []string) string {
	best, least := "", 0
	for i, c := range candidates {
		if d := distance(clip(name), clip(c)); i == 0 || d < least {
			best, least = c, d
		}
	}
	return best
}

func clip(s string) string { return s[:min(len(s), longest)] }

// distance is the number of bytes to change, add or leave out to make one text of another.
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
