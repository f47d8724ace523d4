package quant

import (
	"encoding/binary"
	"slices"
	"sync"
)

// A lattice answers, for the encoders, which grid point stands for a point of the full lattice. The
// points of the full lattice are all tuples of level numbers; only few of them are on the grid.
//
// An element names a grid point: its index in the upper half, its levels packed as in grids.bin in the
// lower half.
type lattice struct {
	at, points int // place of the packed points in packedGrids, in bytes; number of points
	dims       int // 8 or 4 coordinates
	levels     int // 3 levels for 8 coordinates, 8 levels for 4
	shells     int // how many distinct distances the neighbours of a point may have

	build sync.Once
	// entry holds, for each code (levels as digits of a number in base levels, first coordinate lowest),
	// the element of a point on the grid, or the complement of the start of a list.
	entry []int32
	// lists holds, for each point off the grid, the length of its list and the elements of its
	// neighbours, the nearest first, by index where distances are equal. The last is repeated until
	// there is a multiple of eight.
	lists []uint32
}

var (
	lattice2xxs = lattice{at: 0, points: 256, dims: 8, levels: 3, shells: 2}
	lattice2xs  = lattice{at: 512, points: 512, dims: 8, levels: 3, shells: 2}
	lattice2s   = lattice{at: 1536, points: 1024, dims: 8, levels: 3, shells: 1}
	lattice1    = lattice{at: 3584, points: 2048, dims: 8, levels: 3, shells: 3}
	lattice3xxs = lattice{at: 7680, points: 256, dims: 4, levels: 8, shells: 2}
	lattice3s   = lattice{at: 8192, points: 512, dims: 4, levels: 8, shells: 3}
)

// ready returns the lattice with its neighbour lists, which the first call builds.
func (l *lattice) ready() *lattice {
	l.build.Do(l.buildLists)
	return l
}

// list returns the neighbours of a point whose entry is negative.
func (l *lattice) list(entry int32) []uint32 {
	start := int(^entry)
	return l.lists[start+1 : start+1+int(l.lists[start])]
}

func (l *lattice) buildLists() {
	grid := make([]uint16, l.points)
	for i := range grid {
		grid[i] = binary.LittleEndian.Uint16(packedGrids[l.at+2*i:])
	}
	halves := 1 // tuples of half the coordinates
	for range l.dims / 2 {
		halves *= l.levels
	}
	distance := l.halfDistances(halves)
	l.entry = make([]int32, halves*halves) // one more than the element at first, zero off the grid
	for i, p := range grid {
		l.entry[l.code(p)] = (int32(i)<<16 | int32(p)) + 1
	}
	far := make([]uint8, l.points)
	for code := range l.entry {
		if l.entry[code] > 0 {
			l.entry[code]--
			continue
		}
		low, high := &distance[code%halves], &distance[code/halves]
		var count [256]int
		for i, p := range grid {
			d := low[p&255] + high[p>>8]
			far[i] = d
			count[d]++
		}
		// Turn the counts of the nearest shells into where each begins.
		start := len(l.lists)
		next, limit := start+1, 0
		for d, shells := 0, l.shells; shells > 0; d++ {
			if n := count[d]; n > 0 {
				count[d], limit = next, d
				next += n
				shells--
			}
		}
		padded := (next - start - 1 + 7) / 8 * 8
		l.entry[code] = ^int32(start)
		l.lists = append(l.lists, make([]uint32, 1+padded)...)
		l.lists[start] = uint32(padded)
		for i, d := range far {
			if int(d) <= limit {
				l.lists[count[d]] = uint32(i)<<16 | uint32(grid[i])
				count[d]++
			}
		}
		for i := next; i <= start+padded; i++ {
			l.lists[i] = l.lists[next-1]
		}
	}
	l.lists = slices.Clip(l.lists)
}

// code is the number whose digits are the packed levels of a point.
func (l *lattice) code(packed uint16) int {
	code, width := 0, 16/l.dims
	for j := l.dims - 1; j >= 0; j-- {
		code = code*l.levels + int(packed>>(j*width)&(1<<width-1))
	}
	return code
}

// halfDistances tells how far, in squared levels, each tuple of half the coordinates is from each packed
// byte of levels.
func (l *lattice) halfDistances(halves int) [][256]uint8 {
	table := make([][256]uint8, halves)
	width := 16 / l.dims
	for code := range table {
		for packed := range 256 {
			d, rest := 0, code
			for j := range l.dims / 2 {
				diff := rest%l.levels - packed>>(j*width)&(1<<width-1)
				d += diff * diff
				rest /= l.levels
			}
			table[code][packed] = uint8(d)
		}
	}
	return table
}
