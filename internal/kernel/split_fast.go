//go:build amd64 && !noasm

package kernel

// The scores of all splits are computed eight at a time, and only those near the best are gone through
// in order. Why that finds the same split, u being 2^-24 and all numbers far from overflow and
// underflow: let bound be a little less than the best score, and begin the scan with it as the score to
// beat. A split beats another for certain if its exact score is larger by 3u of it, and its computed
// score is within 3u of the exact one. The splits left out, and those that do not beat bound, leave a
// full scan with a score of at most bound·(1+6u). So a split whose computed score is above
// bound·(1+32u) is taken by both scans, whatever the full one had before, and from then on they agree,
// as long as the score stays above that: no split that was left out can beat it.
const (
	nearBest  = 1 - 0x1p-16
	certainly = 1 + 0x1p-19
)

// trusted reports whether a bound and the total weight keep all products in the normal range: no sum of
// squares is below a hundredth of the weight.
func trusted(bound, weight float32) bool {
	const low, high = 0x1p-80, 0x1p80
	return bound*weight > low && bound*weight < high && weight > low && weight < high && bound > low && bound < high
}

// scanHits scans the vectors of places that hits name. It fails where the reasoning above does not hold.
func scanHits(hits []uint32, bound float32, places int, scan func(s *Split, best float32, first, from, to int) float32) (Split, bool) {
	s, best := Split{Second: -1}, bound
	for _, h := range hits {
		first, from := int(h>>8), int(h&255)
		best = scan(&s, best, first, max(first, from), min(from+8, places))
		if s.Second >= 0 && !(best > bound*certainly) {
			return s, false
		}
	}
	return s, s.Second >= 0
}

func filterAlike(t *alikeTable) (Split, bool) {
	if active < avx2 {
		return Split{}, false
	}
	const vectors = alikeLanes / 8
	var scores [alikePlaces * vectors * 8]float32
	var hits [alikePlaces * vectors]uint32
	n, bound := splitAlikeAVX2(&t.x[0], &scores[0], &hits[0], nearBest)
	if !trusted(bound, t.w[alikePlaces-1]) {
		return Split{}, false
	}
	return scanHits(hits[:n], bound, alikePlaces, t.scan)
}

func filterHalves(t *halvesTable) (Split, bool) {
	if active < avx2 {
		return Split{}, false
	}
	const vectors = halvesLanes / 8
	var scores [halvesPlaces * vectors * 8]float32
	var hits [halvesPlaces * vectors]uint32
	n, bound := splitHalvesAVX2(&t.x[0][0], &scores[0], &hits[0], nearBest)
	if !trusted(bound, t.total) {
		return Split{}, false
	}
	return scanHits(hits[:n], bound, halvesPlaces, t.scan)
}
