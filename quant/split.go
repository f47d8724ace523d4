package quant

import "math"

// A split gives the elements of a sub-block, in ascending order, one of three levels: the lowest to
// those before first, the highest to those from second on.
type split struct {
	first, second int // second is -1 if no split has weight
	down          byte
	scale         float32 // may be negative
}

// ascending sorts the places of x by value. Equal values keep their order, as in the merge sort of the
// C library the reference is linked with.
func ascending(order []byte, x []float32) {
	var keys [32]int32
	for i, v := range x {
		bits := int32(math.Float32bits(v + 0)) // makes both zeros equal
		keys[i] = bits ^ bits>>31&math.MaxInt32
	}
	var ranks [32]uint8
	for i := 1; i < len(x); i++ {
		key, rank := int64(keys[i]), uint8(0)
		for j := range i {
			after := uint8(uint64(key-int64(keys[j])) >> 63) // 1 if element j comes after i
			ranks[j] += after
			rank += 1 - after
		}
		ranks[i] = rank
	}
	for i := range x {
		order[ranks[i]] = byte(i)
	}
}

// splitAlike finds the best split of the 32 elements of IQ1_S with the same shift for all.
func splitAlike(order []byte, x, w []float32) split {
	const n = 32
	// Sums over the elements before each place, and what those from there on contribute to the two
	// sums that score a split, with either shift.
	type place struct{ x, w, upX, upW, downX, downW float32 }
	var places [n + 1]place
	for i, j := range order {
		places[i+1].x = places[i].x + float32(w[j]*x[j])
		places[i+1].w = places[i].w + w[j]
	}
	all := places[n]
	up, down := &shiftedLevels[0], &shiftedLevels[1]
	for i := range places {
		p := &places[i]
		restX, restW := all.x-p.x, all.w-p.w
		p.upX, p.upW = float32(restX*up[2]), float32(float32(restW*up[2])*up[2])
		p.downX, p.downW = float32(restX*down[2]), float32(float32(restW*down[2])*down[2])
	}
	s := split{second: -1}
	best := float32(-math.MaxFloat32)
	for i := range places {
		x1, w1 := places[i].x, places[i].w
		upX, upW := float32(x1*up[0]), float32(float32(w1*up[0])*up[0])
		downX, downW := float32(x1*down[0]), float32(float32(w1*down[0])*down[0])
		for k := range places[i:] {
			p := &places[i+k]
			mx := float32((p.x - x1) * iq1Delta)
			mw := float32(float32((p.w-w1)*iq1Delta) * iq1Delta)
			if xq, qq := upX+mx+p.upX, upW+mw+p.upW; float32(xq*xq) > float32(best*qq) && qq > 0 {
				s = split{i, i + k, 0, xq / qq}
				best = float32(s.scale * xq)
			}
			if xq, qq := downX-mx+p.downX, downW+mw+p.downW; float32(xq*xq) > float32(best*qq) && qq > 0 {
				s = split{i, i + k, 1<<4 - 1, xq / qq}
				best = float32(s.scale * xq)
			}
		}
	}
	return s
}

// splitHalves finds the best split of the 16 elements of IQ1_M, whose halves are shifted on their own.
func splitHalves(order []byte, x, w []float32) split {
	const n = 16
	type sums struct{ x, w [2]float32 } // for each half
	var places [n + 1]sums
	for i, j := range order {
		p, h := &places[i+1], j/8
		*p = places[i]
		p.x[h] += float32(w[j] * x[j])
		p.w[h] += w[j]
	}
	all := &places[n]
	up, down := shiftedLevels[0][2], shiftedLevels[1][2]
	// The sum of squares is that of all elements at the highest level, less what lower levels save.
	upFirst, upSecond, downFirst, downSecond := float32(0.75), float32(-1.25), float32(1.25), float32(-0.75)
	s := split{second: -1}
	best := float32(-math.MaxFloat32)
	for i := range places {
		first := &places[i]
		var upX, downX, upW, downW [2]float32
		for h := range 2 {
			upX[h], downX[h] = float32(all.x[h]*up), float32(all.x[h]*down)
			upW[h] = float32(float32(all.w[h]*up)*up) + float32(first.w[h]*upFirst)
			downW[h] = float32(float32(all.w[h]*down)*down) + float32(first.w[h]*downFirst)
		}
		for k := range places[i:] {
			second := &places[i+k]
			x0, x1 := first.x[0]+second.x[0], first.x[1]+second.x[1]
			upX0, upX1, downX0, downX1 := upX[0]-x0, upX[1]-x1, downX[0]-x0, downX[1]-x1
			upW0, upW1 := upW[0]+float32(second.w[0]*upSecond), upW[1]+float32(second.w[1]*upSecond)
			downW0, downW1 := downW[0]+float32(second.w[0]*downSecond), downW[1]+float32(second.w[1]*downSecond)
			if xq, qq := upX0+upX1, upW0+upW1; float32(xq*xq) > float32(best*qq) && qq > 0 {
				s = split{i, i + k, 0b00, xq / qq}
				best = float32(s.scale * xq)
			}
			if xq, qq := upX0+downX1, upW0+downW1; float32(xq*xq) > float32(best*qq) && qq > 0 {
				s = split{i, i + k, 0b10, xq / qq}
				best = float32(s.scale * xq)
			}
			if xq, qq := downX0+upX1, downW0+upW1; float32(xq*xq) > float32(best*qq) && qq > 0 {
				s = split{i, i + k, 0b01, xq / qq}
				best = float32(s.scale * xq)
			}
			if xq, qq := downX0+downX1, downW0+downW1; float32(xq*xq) > float32(best*qq) && qq > 0 {
				s = split{i, i + k, 0b11, xq / qq}
				best = float32(s.scale * xq)
			}
		}
	}
	return s
}
