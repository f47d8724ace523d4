package kernel

import (
	"fmt"
	"math"
)

// The loops of the IQ encoders: many scales are tried for a sub-block, and each puts groups of 8 or 4
// elements on the points of a lattice. A lane is one try. A point is known by an element, a number whose
// lower half holds the levels of its coordinates: two bits each of eight, four bits each of four. Level
// l stands for 2l+1.

// NoPoint is what the searches return where no point has a finite cost.
const NoPoint = 1<<32 - 1

// LatticeCodes gives each group and lane the number whose digits are the levels nearest to the elements
// of the group in units of 1/ids[lane]. x holds groups of dims elements; codes[group·lanes + lane] has
// 3 levels a digit for dims 8, and 8 levels for dims 4, the first element lowest. len(ids), the number of
// lanes, is a multiple of 8.
func LatticeCodes(codes []uint32, x, ids []float32, dims int) {
	mustMatch(len(x)/dims*len(ids) == len(codes) && len(x)%dims == 0 && len(ids)%8 == 0 && len(codes) > 0, dims)
	latticeCodes(codes, x, ids, dims)
}

// LatticeSums sums w·x·q and w·q·q over the elements, for each lane, where q is what the level of the
// element's coordinate stands for. points[group·lanes + lane] are elements of the lattice; xq and qq
// hold a sum for each lane, whose number is a multiple of 8.
func LatticeSums(xq, qq []float32, points []uint32, x, w []float32, dims int) {
	mustMatch(len(x)/dims*len(xq) == len(points) && len(x)%dims == 0 && len(xq)%8 == 0 && len(points) > 0 &&
		len(qq) == len(xq) && len(w) == len(x), dims)
	latticeSums(xq, qq, points, x, w, dims)
}

// LatticeNearest returns the first entry of a list for which the sum of w·(scale·q - x)², over its
// coordinates in order, is smallest, or NoPoint. x holds 8 or 4 elements, and q is levels[l], which for
// 8 coordinates repeats after four. The length of the list is a multiple of 8.
func LatticeNearest(list []uint32, x, w []float32, scale float32, levels *[8]float32) uint32 {
	mustMatch(len(list) > 0 && len(list)%8 == 0 && len(w) == len(x), len(x))
	return latticeNearest(list, x, w, scale, levels)
}

func mustMatch(ok bool, dims int) {
	if !ok || dims != 8 && dims != 4 {
		panic(fmt.Sprintf("kernel: lengths do not match for %d coordinates", dims))
	}
}

func latticeCodesGo(codes []uint32, x, ids []float32, dims int) {
	base, top := uint32(3), int32(2)
	if dims == 4 {
		base, top = 8, 7
	}
	for ; len(x) > 0; x, codes = x[dims:], codes[len(ids):] {
		for lane, id := range ids {
			var code uint32
			for j := dims - 1; j >= 0; j-- {
				l := Near(float32(0.5 * (float32(id*x[j]) - 1)))
				code = code*base + uint32(min(max(l, 0), top))
			}
			codes[lane] = code
		}
	}
}

func latticeSumsGo(xq, qq []float32, points []uint32, x, w []float32, dims int) {
	lanes, width := len(xq), 16/dims
	for lane := range lanes {
		var sx, sq float32
		for i := range x {
			q := float32(2*(points[i/dims*lanes+lane]>>(i%dims*width)&(1<<width-1)) + 1)
			sx += float32(float32(w[i]*x[i]) * q)
			sq += float32(float32(w[i]*q) * q)
		}
		xq[lane], qq[lane] = sx, sq
	}
}

func latticeNearestGo(list []uint32, x, w []float32, scale float32, levels *[8]float32) uint32 {
	if len(x) == 4 {
		return nearest4Go(list, (*[4]float32)(x), (*[4]float32)(w), scale, levels)
	}
	best, pick := float32(math.MaxFloat32), uint32(NoPoint)
	var costs [8][4]float32
	for j := range costs {
		for l := range costs[j] {
			diff := float32(scale*levels[l]) - x[j]
			costs[j][l] = float32(float32(w[j]*diff) * diff)
		}
	}
	for _, p := range list {
		sum := costs[0][p&3] + costs[1][p>>2&3] + costs[2][p>>4&3] + costs[3][p>>6&3] +
			costs[4][p>>8&3] + costs[5][p>>10&3] + costs[6][p>>12&3] + costs[7][p>>14&3]
		if sum < best {
			best, pick = sum, p
		}
	}
	return pick
}

func nearest4Go(list []uint32, x, w *[4]float32, scale float32, levels *[8]float32) uint32 {
	var scaled [8]float32
	for l, q := range levels {
		scaled[l] = float32(scale * q)
	}
	best, pick := float32(math.MaxFloat32), uint32(NoPoint)
	for _, p := range list {
		d0, d1, d2, d3 := scaled[p&7]-x[0], scaled[p>>4&7]-x[1], scaled[p>>8&7]-x[2], scaled[p>>12&7]-x[3]
		sum := float32(float32(w[0]*d0)*d0) + float32(float32(w[1]*d1)*d1) + float32(float32(w[2]*d2)*d2) + float32(float32(w[3]*d3)*d3)
		if sum < best {
			best, pick = sum, p
		}
	}
	return pick
}
