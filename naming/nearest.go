package naming

import (
	"cmp"
	"slices"
	"strings"
	"sync"
)

// A nameIndex finds the stored names most like a wanted one. Names that differ only in their numbers
// share one entry, so that a model of a hundred thousand tensors has a few hundred entries to compare.
type nameIndex struct {
	names    func() []string
	once     sync.Once
	stored   map[string]bool
	patterns []string
	example  []string // a stored name of the pattern
}

// longest is how much of a name takes part in a comparison, counted from its end.
const longest = 200

func (x *nameIndex) build() {
	names := x.names()
	x.stored = make(map[string]bool, len(names))
	seen := make(map[string]bool)
	for _, n := range names {
		x.stored[n] = true
		if p := pattern(n); !seen[p] {
			seen[p] = true
			x.patterns = append(x.patterns, p)
			x.example = append(x.example, n)
		}
	}
}

// nearest returns at most three stored names, nearest first: by edit distance of the names without
// their drifting prefix and numbers, then in stored order. At most half the letters of the
// wanted module may differ.
// The numbers of want are put into a found pattern where such a name is stored.
func (x *nameIndex) nearest(want string) []string {
	x.once.Do(x.build)
	type hit struct{ at, distance int }
	var best []hit
	w := clip(pattern(want))
	limit := len(w) / 2
	if module, _ := leaf(w); module != "" {
		limit = len(module) / 2
	}
	for i, p := range x.patterns {
		bound := limit
		if len(best) == 3 {
			bound = best[2].distance - 1
		}
		d := distance(w, clip(p), bound)
		if d > bound {
			continue
		}
		at, _ := slices.BinarySearchFunc(best, d, func(h hit, d int) int { return cmp.Compare(h.distance, d+1) })
		best = slices.Insert(best, at, hit{i, d})
		best = best[:min(3, len(best))]
	}
	out := make([]string, 0, len(best))
	for _, h := range best {
		name := renumber(x.example[h.at], want)
		if !x.stored[name] {
			name = x.example[h.at]
		}
		out = append(out, name)
	}
	return out
}

func clip(s string) string {
	_, s = split(s, 1)
	return s[max(0, len(s)-longest):]
}

// pattern replaces every all-digit component by '#'.
func pattern(name string) string {
	c := strings.Split(name, ".")
	for i, s := range c {
		if _, ok := number(s); ok {
			c[i] = "#"
		}
	}
	return strings.Join(c, ".")
}

// renumber puts the numbers of from, in order, in the place of those of name.
func renumber(name, from string) string {
	var numbers []string
	for s := range strings.SplitSeq(from, ".") {
		if _, ok := number(s); ok {
			numbers = append(numbers, s)
		}
	}
	c := strings.Split(name, ".")
	for i, s := range c {
		if _, ok := number(s); ok && len(numbers) > 0 {
			c[i], numbers = numbers[0], numbers[1:]
		}
	}
	return strings.Join(c, ".")
}

// distance is the number of single-byte insertions, deletions and replacements that turn a into b, or
// anything above bound when it is larger than bound.
func distance(a, b string, bound int) int {
	if d := len(a) - len(b); d > bound || -d > bound {
		return bound + 1
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal, least := row[0], i+1
		row[0] = i + 1
		for j := range len(b) {
			d := diagonal
			if a[i] != b[j] {
				d = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], d
			least = min(least, d)
		}
		if least > bound {
			return bound + 1
		}
	}
	return row[len(b)]
}

// Nearest returns at most three of the names, those most like the wanted one, nearest first.
func Nearest(names []string, want string) []string {
	x := nameIndex{names: func() []string { return names }}
	return x.nearest(want)
}
