package quant

import (
	"encoding/binary"
	"math"

	"github.com/loratool/loratool/internal/kernel"
)

// The IQ1 types store -1, 0 or 1 plus a shift of an eighth up or down for each element, as points of a
// grid. All splits of the sorted elements of a sub-block into the three levels are scored with both
// shifts; then groups of 8 that are not on the grid go to a neighbour.

// shiftedLevels are what the three levels stand for, shifted up and down.
var shiftedLevels = [2][8]float32{
	{-1 + iq1Delta, iq1Delta, 1 + iq1Delta, 0, -1 + iq1Delta, iq1Delta, 1 + iq1Delta, 0},
	{-1 - iq1Delta, -iq1Delta, 1 - iq1Delta, 0, -1 - iq1Delta, -iq1Delta, 1 - iq1Delta, 0},
}

// A shiftedFit is what is found for a sub-block of an IQ1 type: 32 elements of IQ1_S, 16 of IQ1_M.
type shiftedFit struct {
	point [4]uint32 // elements of the lattice, one for each 8
	down  byte      // a bit for each point, set where the shift is down
	scale float32   // not negative
}

// q is what element j of the sub-block stands for, in units of the scale.
func (f *shiftedFit) q(j int) float32 {
	return shiftedLevels[f.down>>(j/8)&1][f.point[j/8]>>(j%8*2)&3]
}

// fit finds points, shifts and scale for 32 elements of IQ1_S or 16 of IQ1_M.
func (f *shiftedFit) fit(x, w []float32) outcome {
	var orders [32]byte
	order := orders[:len(x)]
	ascending(order, x)
	split := kernel.SplitAlike
	if len(x) == 16 {
		split = kernel.SplitHalves
	}
	s := split(order, x, w)
	if s.Second < 0 {
		return empty
	}
	f.scale, f.down = s.Scale, s.Down
	groups := len(x) / 8
	low, high := 0, 2
	if f.scale < 0 {
		f.scale = -f.scale
		f.down ^= 1<<groups - 1
		low, high = 2, 0
	}
	var codes [4]int
	for rank, j := range order {
		level := 1
		if rank < s.First {
			level = low
		} else if rank >= s.Second {
			level = high
		}
		codes[j/8] += level * threes[j%8]
	}
	offGrid := false
	for k, code := range codes[:groups] {
		entry := lattice1.entry[code]
		if entry >= 0 {
			f.point[k] = uint32(entry)
			continue
		}
		offGrid = true
		levels := &shiftedLevels[f.down>>k&1]
		f.point[k] = kernel.LatticeNearest(lattice1.list(entry), x[8*k:8*k+8], w[8*k:8*k+8], f.scale, levels)
		if f.point[k] == kernel.NoPoint {
			return lost
		}
	}
	if offGrid {
		var xq, qq float32
		for j, v := range x {
			q := f.q(j)
			xq += float32(float32(w[j]*q) * v)
			qq += float32(float32(w[j]*q) * q)
		}
		if xq > 0 && qq > 0 {
			f.scale = xq / qq
		}
	}
	return snapped
}

// threes are what a level is worth in a code of the lattice.
var threes = [8]int{1, 3, 9, 27, 81, 243, 729, 2187}

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

func weighIQ1_S(b []byte, x, importance []float32) bool {
	lattice1.ready()
	clear(b)
	var fits [8]shiftedFit
	var weights [32]float32
	w := weights[:]
	variance := meanSquare(x, 2)
	var high float32
	for i := range fits {
		part := x[32*i:][:32]
		if magnitude(part) < 1e-12 {
			continue
		}
		weighLattice(w, part, importance[32*i:], variance)
		f := &fits[i]
		switch f.fit(part, w) {
		case lost:
			return false
		case empty:
			continue
		}
		high = max(high, f.scale)
		var extra uint16
		for k, p := range f.point {
			b[2+4*i+k] = byte(p >> 16)
			extra |= uint16(p>>24) << (3 * k)
		}
		binary.LittleEndian.PutUint16(b[34+2*i:], extra)
	}
	if high == 0 {
		return true
	}
	d := high / 15
	id := 1 / d
	for i := range fits {
		f := &fits[i]
		b[35+2*i] |= scaleCode(id, f.scale, 7)<<4 | f.down&1<<7
	}
	return putHalf(b, float32(d*1.125))
}

func encodeIQ1_M(b []byte, x []float32) bool { return weighIQ1_M(b, x, nil) }

func weighIQ1_M(b []byte, x, importance []float32) bool {
	lattice1.ready()
	clear(b)
	var fits [16]shiftedFit
	var w [256]float32
	variance := meanSquare(x, 2)
	if importance != nil {
		weighLattice(w[:], x, importance, variance)
	} else {
		weighSquares(w[:], x, variance)
	}
	var high float32
	for i := range fits {
		part := x[16*i:][:16]
		if magnitude(part) < 1e-7 {
			continue
		}
		f := &fits[i]
		switch f.fit(part, w[16*i:][:16]) {
		case lost:
			return false
		case empty:
			continue
		}
		high = max(high, f.scale)
		b[2*i], b[2*i+1] = byte(f.point[0]>>16), byte(f.point[1]>>16)
		b[32+i] = byte(f.point[0]>>24) | byte(f.point[1]>>24)<<4
	}
	if high == 0 {
		return true
	}
	d := high / 15
	codes := scaleCodesIQ1_M(fits[:], 1/d)
	d = rescaleIQ1_M(fits[:], codes, x, w[:], d)
	var stored [2]byte
	finite := putHalf(stored[:], float32(d*1.1125))
	for i := range fits {
		b[32+i] |= fits[i].down&1<<3 | fits[i].down>>1<<7
	}
	for i := range 4 {
		packed := binary.LittleEndian.Uint16(stored[:]) >> (4 * i) << 12
		for j := range 4 {
			packed |= uint16(codes[4*i+j]) << (3 * j)
		}
		binary.LittleEndian.PutUint16(b[48+2*i:], packed)
	}
	return finite
}

func scaleCodesIQ1_M(fits []shiftedFit, id float32) (codes [16]byte) {
	for i := range fits {
		codes[i] = scaleCode(id, fits[i].scale, 7)
	}
	return codes
}

// rescaleIQ1_M is the scale of the super-block that fits best, all else being chosen. Sub-blocks that
// are not stored count as what their bytes decode to: the first point of the grid, shifted up.
func rescaleIQ1_M(fits []shiftedFit, codes [16]byte, x, w []float32, d float32) float32 {
	var xq, qq float32
	for i, v := range x {
		f := &fits[i/16]
		q := float32(f.q(i%16) * float32(2*codes[i/16]+1))
		xq += float32(float32(w[i]*q) * v)
		qq += float32(float32(w[i]*q) * q)
	}
	if qq > 0 {
		return xq / qq
	}
	return d
}
