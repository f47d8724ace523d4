package torch

import (
	"hash/crc32"
	"maps"
	"slices"
	"sync"
)

// A checksum is the CRC-32 of an entry, of runs that come in any order and do not overlap.
type checksum struct {
	mu    sync.Mutex
	runs  map[int64]summed // by offset
	later func() uint32    // where not nil, the value itself
}

type summed struct {
	n   int64
	crc uint32
}

// add takes a run of bytes at an offset. A run that is written again counts once.
func (c *checksum) add(p []byte, off int64) {
	s := summed{int64(len(p)), crc32.ChecksumIEEE(p)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.runs == nil {
		c.runs = map[int64]summed{}
	}
	c.runs[off] = s
}

// value is the checksum of all runs, which lie one after another.
func (c *checksum) value() uint32 {
	if c.later != nil {
		return c.later()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var crc uint32 // of nothing
	for _, off := range slices.Sorted(maps.Keys(c.runs)) {
		crc = joined(crc, c.runs[off].crc, c.runs[off].n)
	}
	return crc
}

// joined is the checksum of two runs from theirs, and the length of the second: zeros are appended to the first
// by squaring the matrix over GF(2) that appends one, as zlib's crc32_combine does.
func joined(first, second uint32, n int64) uint32 {
	var m [32]uint32
	m[0] = crc32.IEEE // one zero bit
	for i := 1; i < 32; i++ {
		m[i] = 1 << (i - 1)
	}
	for range 3 { // 2, 4, 8 bits
		m = squared(m)
	}
	for ; n > 0; n >>= 1 {
		if n&1 != 0 {
			first = times(&m, first)
		}
		m = squared(m)
	}
	return first ^ second
}

func times(m *[32]uint32, v uint32) (sum uint32) {
	for i := 0; v != 0; i, v = i+1, v>>1 {
		if v&1 != 0 {
			sum ^= m[i]
		}
	}
	return sum
}

func squared(m [32]uint32) (out [32]uint32) {
	for i, row := range m {
		out[i] = times(&m, row)
	}
	return out
}

// combined mixes a value into a hash, as boost::hash_combine does.
func combined(seed, value uint64) uint64 { return seed ^ (value + 0x9e3779b9 + seed<<6 + seed>>2) }

// nameHash is torch's hash of the entries' names. It goes through a set that libstdc++ keeps in the order of
// its buckets, the last that was filled first.
func nameHash(names []string) uint64 {
	order := []string{}
	insert := func(names []string, buckets uint64) []string {
		in := map[uint64][]string{}
		var filled []uint64
		for _, n := range names {
			b := murmur(n) % buckets
			if len(in[b]) == 0 {
				filled = append(filled, b)
			}
			in[b] = append(in[b], n)
		}
		out := make([]string, 0, len(names))
		for _, b := range slices.Backward(filled) {
			for _, n := range slices.Backward(in[b]) {
				out = append(out, n)
			}
		}
		return out
	}
	// A full table is taken over in its order by one of about twice the size, and the rest is added.
	for i, buckets := range libstdcxxPrimes {
		if len(order) == len(names) {
			break
		}
		until := len(names)
		if i+1 < len(libstdcxxPrimes) {
			until = min(until, int(buckets))
		}
		order = insert(inserted(order, names[len(order):until]), buckets)
	}
	var h uint64
	for _, n := range order {
		h = combined(h, murmur(n))
	}
	return h
}

// inserted puts a table's elements, in its order, before those that come after.
func inserted(table, more []string) []string { return append(slices.Clip(table), more...) }

// libstdcxxPrimes are the numbers of buckets that a set grows through.
var libstdcxxPrimes = []uint64{1, 13, 29, 59, 127, 257, 541, 1109, 2357, 5087, 10273, 20753, 42043, 85229, 172933, 351061, 712697, 1447153}

// murmur is libstdc++'s std::hash of strings: MurmurHash2 in 64 bits.
func murmur(s string) uint64 {
	const m, seed = 0xc6a4a7935bd1e995, 0xc70f6907
	h := seed ^ uint64(len(s))*m
	for ; len(s) >= 8; s = s[8:] {
		k := le.Uint64([]byte(s[:8])) * m
		h = (h ^ (k^k>>47)*m) * m
	}
	if len(s) > 0 {
		var last [8]byte
		copy(last[:], s)
		h = (h ^ le.Uint64(last[:])) * m
	}
	h = (h ^ h>>47) * m
	return h ^ h>>47
}
