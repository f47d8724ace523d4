package onnx

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/loratool/loratool/formats/layout"
)

// A chunk is a run of bytes of the output: literal, copied from a reader, or left free for a tensor
// that the caller writes.
type chunk struct {
	lit  []byte
	src  io.ReaderAt
	off  int64
	n    int64
	item int // with neither lit nor src: the tensor that goes here
}

func literal(b []byte) chunk { return chunk{lit: b, n: int64(len(b))} }

func length(cs []chunk) int64 {
	var n int64
	for _, c := range cs {
		n += c.n
	}
	return n
}

// A patch replaces n bytes at a position of the source file, which lie directly in a message.
type patch struct {
	in   *message
	at   int64
	n    int64
	with []chunk
}

// depth counts the messages around m.
func (m *message) depth() int {
	d := 0
	for ; m.up != nil; m = m.up {
		d++
	}
	return d
}

// reprefix adds the patches that correct the length prefixes around the given ones. A prefix whose
// length stays is not touched, so that unusual encodings survive.
func reprefix(patches []patch) []patch {
	grown := map[*message]int64{}
	byDepth := map[int][]*message{}
	deepest := 0
	for _, p := range patches {
		for m := p.in; m != nil; m = m.up {
			if _, known := grown[m]; known {
				break
			}
			grown[m] = 0
			d := m.depth()
			byDepth[d] = append(byDepth[d], m)
			deepest = max(deepest, d)
		}
		grown[p.in] += length(p.with) - p.n
	}
	for d := deepest; d > 0; d-- {
		for _, m := range byDepth[d] {
			if grown[m] == 0 {
				continue
			}
			prefix := protowire.AppendVarint(nil, uint64(m.n+grown[m]))
			patches = append(patches, patch{in: m.up, at: m.pre, n: m.off - m.pre, with: []chunk{literal(prefix)}})
			grown[m.up] += grown[m] + int64(len(prefix)) - (m.off - m.pre)
		}
	}
	return patches
}

// apply lays the patched source file out. Holes are where the items lie in it.
func (s *source) apply(patches []patch) (spans []layout.Span, holes map[int]int64, size int64, err error) {
	patches = reprefix(patches)
	// What is added at one position belongs to the inner message before it belongs to the outer one.
	slices.SortStableFunc(patches, func(a, b patch) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(min(a.n, 1), min(b.n, 1)), cmp.Compare(b.in.depth(), a.in.depth()))
	})
	holes = map[int]int64{}
	put := func(c chunk) {
		switch last := len(spans) - 1; {
		case c.n == 0:
			return
		case c.lit != nil:
			spans = append(spans, layout.Bytes(size, c.lit))
		case c.src == nil:
			holes[c.item] = size
		case last >= 0 && spans[last].Src == c.src && spans[last].Off+spans[last].Len == size && spans[last].SrcOff+spans[last].Len == c.off:
			spans[last].Len += c.n
		default:
			spans = append(spans, layout.Span{Off: size, Len: c.n, Src: c.src, SrcOff: c.off})
		}
		size += c.n
	}
	var at int64
	for _, p := range patches {
		if p.at < at {
			return nil, nil, 0, fmt.Errorf("two changes of %q overlap at byte %d", s.name, p.at)
		}
		put(chunk{src: s.r, off: at, n: p.at - at})
		for _, c := range p.with {
			if c.n > math.MaxInt64/2-size {
				return nil, nil, 0, fmt.Errorf("the output is larger than any file")
			}
			put(c)
		}
		at = p.at + p.n
	}
	put(chunk{src: s.r, off: at, n: s.size - at})
	return spans, holes, size, nil
}
