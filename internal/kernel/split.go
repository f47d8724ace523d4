package kernel

import "math"

// The IQ1 types give each element one of three levels: -1, 0 and 1 plus a shift of an eighth, up or
// down. Once the elements are sorted, a choice of levels is a pair of places between them, and sums over
// the elements before each place score every pair.

// A Split says which elements, in ascending order, get the lowest level (those before First) and the
// highest (those from Second on).
type Split struct {
	First, Second int  // Second is -1 if no split has weight
	Down          byte // a bit for each 8 elements in their own order, set where the shift is down
	Scale         float32
}

const shift = 0.125

var shiftUp, shiftDown = [3]float32{-1 + shift, shift, 1 + shift}, [3]float32{-1 - shift, -shift, 1 - shift}

// SplitAlike finds the best split of 32 elements that are all shifted alike: the first one, by places
// and then up before down, that maximizes (Σw·x·q)²/Σw·q². order lists the elements in ascending order.
func SplitAlike(order []byte, x, w []float32) Split {
	var t alikeTable
	t.fill(order, x, w)
	if s, ok := filterAlike(&t); ok {
		return s
	}
	s, best := Split{Second: -1}, float32(-math.MaxFloat32)
	for i := range alikePlaces {
		best = t.scan(&s, best, i, i, alikePlaces)
	}
	return s
}

const (
	alikePlaces = 33
	alikeLanes  = 40 // places, the last one repeated up to a multiple of 8
)

// An alikeTable holds sums for each place between elements. The assembly knows its layout.
type alikeTable struct {
	x, w                   [alikeLanes]float32 // over the elements before the place
	upX, upW, downX, downW [alikeLanes]float32 // what the highest level adds if it begins here
	lowUpX, lowUpW         [alikeLanes]float32 // what the lowest level adds if it ends here
	lowDownX, lowDownW     [alikeLanes]float32
}

func (t *alikeTable) fill(order []byte, x, w []float32) {
	for i, j := range order {
		t.x[i+1] = t.x[i] + float32(w[j]*x[j])
		t.w[i+1] = t.w[i] + w[j]
	}
	const last = alikePlaces - 1
	for i := last + 1; i < alikeLanes; i++ {
		t.x[i], t.w[i] = t.x[last], t.w[last]
	}
	for i := range alikeLanes {
		x, w := t.x[i], t.w[i]
		t.lowUpX[i], t.lowUpW[i] = float32(x*shiftUp[0]), float32(float32(w*shiftUp[0])*shiftUp[0])
		t.lowDownX[i], t.lowDownW[i] = float32(x*shiftDown[0]), float32(float32(w*shiftDown[0])*shiftDown[0])
		x, w = t.x[last]-x, t.w[last]-w
		t.upX[i], t.upW[i] = float32(x*shiftUp[2]), float32(float32(w*shiftUp[2])*shiftUp[2])
		t.downX[i], t.downW[i] = float32(x*shiftDown[2]), float32(float32(w*shiftDown[2])*shiftDown[2])
	}
}

// scan goes through the splits with the given first and a second from from up to before to, replaces s
// by each one that beats best, and returns the new best.
func (t *alikeTable) scan(s *Split, best float32, first, from, to int) float32 {
	x, w := t.x[first], t.w[first]
	upX, upW, downX, downW := t.lowUpX[first], t.lowUpW[first], t.lowDownX[first], t.lowDownW[first]
	for k := from; k < to; k++ {
		mx := float32((t.x[k] - x) * shift)
		mw := float32(float32((t.w[k]-w)*shift) * shift)
		if xq, qq := upX+mx+t.upX[k], upW+mw+t.upW[k]; float32(xq*xq) > float32(best*qq) && qq > 0 {
			*s = Split{first, k, 0, xq / qq}
			best = float32(s.Scale * xq)
		}
		if xq, qq := downX-mx+t.downX[k], downW+mw+t.downW[k]; float32(xq*xq) > float32(best*qq) && qq > 0 {
			*s = Split{first, k, 0b1111, xq / qq}
			best = float32(s.Scale * xq)
		}
	}
	return best
}

// SplitHalves finds the best split of 16 elements of which each half has its own shift: the first one,
// by places, then the first half up before down, then the second.
func SplitHalves(order []byte, x, w []float32) Split {
	var t halvesTable
	t.fill(order, x, w)
	if s, ok := filterHalves(&t); ok {
		return s
	}
	s, best := Split{Second: -1}, float32(-math.MaxFloat32)
	for i := range halvesPlaces {
		best = t.scan(&s, best, i, i, halvesPlaces)
	}
	return s
}

const (
	halvesPlaces = 17
	halvesLanes  = 24
)

// A halvesTable holds sums for each place between elements and each half. The sums of squares are those
// with all elements at the highest level, less what the places save. The assembly knows its layout.
type halvesTable struct {
	x              [2][halvesLanes]float32 // over the elements before the place
	upW, downW     [2][halvesLanes]float32 // what changes if the highest level begins here
	lowUpW         [2][halvesLanes]float32 // the sum for all, and what changes if the lowest level ends here
	lowDownW       [2][halvesLanes]float32
	allUp, allDown [2]float32 // the sum of x for all elements at the highest level
	total          float32    // weight
}

func (t *halvesTable) fill(order []byte, x, w []float32) {
	var sums [2][halvesLanes]float32
	for i, j := range order {
		for h := range 2 {
			t.x[h][i+1], sums[h][i+1] = t.x[h][i], sums[h][i]
		}
		h := j / 8
		t.x[h][i+1] += float32(w[j] * x[j])
		sums[h][i+1] += w[j]
	}
	const last = halvesPlaces - 1
	up, down := shiftUp[2], shiftDown[2]
	for h := range 2 {
		all := sums[h][last]
		t.total += all
		t.allUp[h], t.allDown[h] = float32(t.x[h][last]*up), float32(t.x[h][last]*down)
		allUpW, allDownW := float32(float32(all*up)*up), float32(float32(all*down)*down)
		for i := range halvesLanes {
			if i > last {
				t.x[h][i], sums[h][i] = t.x[h][last], all
			}
			// The factors are differences of the squares of neighbouring levels.
			t.upW[h][i], t.downW[h][i] = float32(sums[h][i]*-1.25), float32(sums[h][i]*-0.75)
			t.lowUpW[h][i], t.lowDownW[h][i] = allUpW+float32(sums[h][i]*0.75), allDownW+float32(sums[h][i]*1.25)
		}
	}
}

func (t *halvesTable) scan(s *Split, best float32, first, from, to int) float32 {
	for k := from; k < to; k++ {
		x0, x1 := t.x[0][first]+t.x[0][k], t.x[1][first]+t.x[1][k]
		upX0, upX1, downX0, downX1 := t.allUp[0]-x0, t.allUp[1]-x1, t.allDown[0]-x0, t.allDown[1]-x1
		upW0, upW1 := t.lowUpW[0][first]+t.upW[0][k], t.lowUpW[1][first]+t.upW[1][k]
		downW0, downW1 := t.lowDownW[0][first]+t.downW[0][k], t.lowDownW[1][first]+t.downW[1][k]
		if xq, qq := upX0+upX1, upW0+upW1; float32(xq*xq) > float32(best*qq) && qq > 0 {
			*s = Split{first, k, 0b00, xq / qq}
			best = float32(s.Scale * xq)
		}
		if xq, qq := upX0+downX1, upW0+downW1; float32(xq*xq) > float32(best*qq) && qq > 0 {
			*s = Split{first, k, 0b10, xq / qq}
			best = float32(s.Scale * xq)
		}
		if xq, qq := downX0+upX1, downW0+upW1; float32(xq*xq) > float32(best*qq) && qq > 0 {
			*s = Split{first, k, 0b01, xq / qq}
			best = float32(s.Scale * xq)
		}
		if xq, qq := downX0+downX1, downW0+downW1; float32(xq*xq) > float32(best*qq) && qq > 0 {
			*s = Split{first, k, 0b11, xq / qq}
			best = float32(s.Scale * xq)
		}
	}
	return best
}
