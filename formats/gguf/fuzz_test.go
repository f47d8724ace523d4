package gguf

import (
	"bytes"
	"encoding/binary"
	"runtime"
	"slices"
	"testing"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
)

// checkParsed states what must hold of any bytes.
func checkParsed(t *testing.T, b []byte) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	opt := OpenOptions{AllowBigEndian: true}
	p, err := parse(bytes.NewReader(b), int64(len(b)), "x.gguf", opt)
	runtime.ReadMemStats(&after)
	// The fuzzing engine allocates beside us, hence the wide margin.
	if got, limit := after.TotalAlloc-before.TotalAlloc, uint64(allocations*len(b)+1<<20); got > limit {
		t.Fatalf("allocated %d bytes for a file of %d", got, len(b))
	}
	if err != nil {
		if finding.Of(err) == nil {
			t.Fatalf("not a finding: %v", err)
		}
		return
	}
	m := &Model{path: "x.gguf"}
	m.assemble([]*part{p})
	last := int64(0)
	for _, x := range m.Tensors() {
		if p.big {
			continue // offsets are relative to the tensor there
		}
		if x.Off < last || x.Off%p.align != 0 || x.Size < 0 || x.Off+x.Size > int64(len(b)) {
			t.Fatalf("%q lies at [%d, +%d] of %d, after %d", x.Name, x.Off, x.Size, len(b), last)
		}
		last = x.Off + x.Size
	}
	for _, kv := range m.KVs() {
		_ = kv.Value.Any()
		_ = kv.Value.String()
	}
	h := m.Header()
	h.KVs.Delete(splitNo, splitCount, splitTensors) // a single file has none
	l, err := NewLayout(h, specs(m.Tensors()), layout.Options{Name: "x.gguf"})
	if err != nil {
		f := finding.Of(err)
		if f == nil || f.Code != "container.name_too_long" && f.Code != "container.big_endian" {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		return
	}
	once := assemble(t, l, m.Tensors())["x.gguf"]
	again, err := parse(bytes.NewReader(once), int64(len(once)), "x.gguf", opt)
	if err != nil {
		t.Fatalf("what was written cannot be read: %v", err)
	}
	if !slices.EqualFunc(h.KVs, again.kvs, func(a, b KV) bool {
		return a.Key == b.Key && a.Value.typ == b.Value.typ && a.Value.elem == b.Value.elem && a.Value.n == b.Value.n && bytes.Equal(a.Value.data, b.Value.data)
	}) {
		t.Fatal("key-values changed")
	}
	n := &Model{path: "x.gguf"}
	n.assemble([]*part{again})
	if twice := relay(t, n, n.Header(), layout.Options{Name: "x.gguf"})["x.gguf"]; !bytes.Equal(once, twice) {
		t.Fatal("written twice it differs")
	}
}

func FuzzGGUFOpen(f *testing.F) {
	f.Add([]byte("GGUF"))
	f.Add(build(f, Header{KVs: allKinds()}, sample(), layout.Options{Name: "x.gguf"})["x.gguf"])
	f.Add(build(f, Header{KVs: allKinds(), BigEndian: true}, sample()[1:3], layout.Options{Name: "x.gguf"})["x.gguf"])
	f.Add(build(f, Header{OpenEnd: true, KVs: KVs{{alignmentKey, Of(uint32(1))}}}, nil, layout.Options{Name: "x.gguf"})["x.gguf"])
	f.Fuzz(checkParsed)
}

// FuzzGGUFStruct sets the numbers of an otherwise sound file, where plain mutation seldom gets.
func FuzzGGUFStruct(f *testing.F) {
	f.Add(uint32(3), uint64(1), uint64(2), uint32(9), uint32(4), uint64(2), uint32(2), int64(32), int64(4), uint32(2), uint64(0), uint32(32), uint16(100))
	f.Add(uint32(2), uint64(1), uint64(2), uint32(8), uint32(8), uint64(3), uint32(1), int64(-1), int64(1<<62), uint32(8), uint64(64), uint32(1), uint16(0))
	f.Fuzz(func(t *testing.T, version uint32, tensors, kvs uint64, typ, elem uint32, n uint64, dims uint32, ne0, ne1 int64, dtype uint32, off uint64, align uint32, tail uint16) {
		le := binary.LittleEndian
		text := func(b []byte, s string) []byte { return append(le.AppendUint64(b, uint64(len(s))), s...) }
		b := le.AppendUint32([]byte(magic), version)
		b = le.AppendUint64(le.AppendUint64(b, tensors), kvs)
		b = le.AppendUint32(text(b, alignmentKey), uint32(Uint32))
		b = le.AppendUint32(b, align)
		b = le.AppendUint32(text(b, "k"), typ)
		if typ == uint32(Array) {
			b = le.AppendUint32(b, elem)
		}
		b = le.AppendUint64(b, n)
		b = append(b, make([]byte, min(n, 64)*8)...)
		b = le.AppendUint32(text(b, "w"), dims)
		for i := range min(dims, 6) {
			b = le.AppendUint64(b, uint64([]int64{ne0, ne1}[i%2]))
		}
		b = le.AppendUint64(le.AppendUint32(b, dtype), off)
		checkParsed(t, append(b, make([]byte, tail)...))
	})
}
