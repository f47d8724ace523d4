package layout

import (
	"slices"
	"sync"
)

// coverage remembers which bytes of a tensor have been written, as sorted runs that do not touch.
// Slabs come in any order, but neighbours merge, so the list stays as short as the number of workers.
type coverage struct {
	mu   sync.Mutex
	runs [][2]int64
}

func (c *coverage) add(from, to int64) {
	if from == to {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	i, _ := slices.BinarySearchFunc(c.runs, from, func(r [2]int64, x int64) int {
		if r[1] < x {
			return -1
		}
		return 1
	})
	j := i
	for ; j < len(c.runs) && c.runs[j][0] <= to; j++ {
		from, to = min(from, c.runs[j][0]), max(to, c.runs[j][1])
	}
	c.runs = slices.Replace(c.runs, i, j, [2]int64{from, to})
}

// written is the number of different bytes written so far.
func (c *coverage) written() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	var n int64
	for _, r := range c.runs {
		n += r[1] - r[0]
	}
	return n
}
