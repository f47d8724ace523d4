package adapter

import (
	"math/bits"
	"sync"
)

// buffers hands memory from one factor to the next: new pages cost more than the arithmetic on them. Each is a
// power of two of elements long.
type buffers[T any] struct{ classes [largest + 1]sync.Pool }

var (
	floats = &buffers[float32]{}
	raw    = &buffers[byte]{}
)

// largest is the class of the largest buffers that are kept.
const largest = 26

// get returns n elements of any value.
func (b *buffers[T]) get(n int64) []T {
	if n > 1<<largest {
		return make([]T, n)
	}
	class := bits.Len64(uint64(max(n, 1) - 1))
	if v, ok := b.classes[class].Get().(*[]T); ok {
		return (*v)[:n]
	}
	return make([]T, n, 1<<class)
}

// put takes back what nobody holds any more.
func (b *buffers[T]) put(v []T) {
	if n := cap(v); n > 0 && n <= 1<<largest && n&(n-1) == 0 {
		v = v[:0]
		b.classes[bits.Len64(uint64(n-1))].Put(&v)
	}
}

// Recycle takes back the bytes of a weight that have been written.
func Recycle(b []byte) { raw.put(b) }
