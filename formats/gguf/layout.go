package gguf

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/tensor"
)

// A Header is everything a file says beside its tensors. The zero Header writes a single little-endian
// file of version 3 with the alignment its key-values declare (general.alignment, u32; 32 without it).
type Header struct {
	Version   uint32 // 2 or 3; 0 means 3
	BigEndian bool
	KVs       KVs
	// KeepDims writes every dimension of a shape, as the Python converter does. Otherwise dimensions of
	// 1 at a shape's outer end are dropped as long as one remains, as the C library does.
	KeepDims bool
	// OpenEnd ends a file without tensors after its last key-value, not at the alignment (files of the
	// Python converter that hold a vocabulary only).
	OpenEnd bool
	// Shards, where not nil, splits the output: so many tensors in each file. Options.MaxShardSize goes
	// before it.
	Shards []int
}

// NewLayout lays out a file, or a split model, with the tensors in the order given. Every tensor is
// padded with zeros to the alignment, also the last.
//
// Options.MaxShardSize (bytes of padded tensor data a file) or Header.Shards splits the output into
// files named NAME-00001-of-0000N.gguf after Options.Name (NAME.gguf); the first holds all metadata, all
// hold the split keys, which keep their place in KVs that have them and come last otherwise. A single
// file has no split keys. The first shard is the last of Files, since it is the one that is opened: its
// name is the output path to give to layout.Create. Options.Provenance becomes string values, moved to
// the end.
//
// Errors are findings about what the format cannot store: types, names longer than 63 bytes, more than
// four dimensions, duplicate names or keys, a bad alignment.
func NewLayout(h Header, specs []tensor.Spec, opt layout.Options) (*layout.Layout, error) {
	w := writer{Header: h, name: opt.Name, order: binary.LittleEndian}
	w.KVs = slices.Clone(h.KVs)
	for _, p := range opt.Provenance {
		w.KVs.SetLast(p[0], Of(p[1]))
	}
	if w.BigEndian {
		w.order = binary.BigEndian
	}
	if w.Version == 0 {
		w.Version = 3
	}
	if err := w.check(specs); err != nil {
		return nil, err
	}
	counts, err := w.shards(specs, opt.MaxShardSize)
	if err != nil {
		return nil, err
	}
	return w.layOut(specs, counts)
}

// A writer makes one output's headers.
type writer struct {
	Header
	name  string
	align int64
	order interface {
		binary.ByteOrder
		binary.AppendByteOrder
	}
}

// check refuses what could not be read back, and finds the alignment.
func (w *writer) check(specs []tensor.Spec) (err error) {
	if w.Version != 2 && w.Version != 3 {
		return finding.Errorf("container.bad_version", w.name, "cannot write this GGUF version").Expected(w.Version, "2 or 3")
	}
	seen := map[string]bool{}
	for _, kv := range w.KVs {
		switch key := kv.Key; {
		case key == "":
			return finding.Errorf("container.empty_key", w.name, "a key is empty")
		case seen[beforeNUL(key)]:
			return finding.Errorf("container.duplicate_key", w.name, "the key %q is there twice", key)
		case kv.Value.data == nil && kv.Value.Elem().size() > 0 && kv.Value.Len() > 0:
			return finding.Errorf("container.bad_kv_type", w.name, "the key %q has no value", key)
		}
		seen[beforeNUL(kv.Key)] = true
	}
	if w.align, err = w.KVs.alignment(w.name); err != nil {
		return err
	}
	clear(seen)
	for i := range specs {
		if err := w.checkSpec(&specs[i]); err != nil {
			return err.In(specs[i].Name)
		}
		name := beforeNUL(specs[i].Name)
		if seen[name] {
			return finding.Errorf("container.duplicate_name", w.name, "two tensors have the same name").In(name)
		}
		seen[name] = true
	}
	return nil
}

func (w *writer) checkSpec(s *tensor.Spec) *finding.Finding {
	switch _, known := swapOf(s.DType); {
	case !Stores(s.DType):
		return finding.Errorf("container.bad_tensor_type", w.name, "GGUF cannot store type %s", s.DType).
			Hinted("convert the tensor to F32, F16 or BF16")
	case w.BigEndian && !known:
		return finding.Errorf("container.big_endian", w.name, "the big-endian layout of %s is not known", s.DType).
			Hinted("write a little-endian file or choose another type")
	case len(s.Name) > maxName:
		return finding.Errorf("container.name_too_long", w.name, "GGUF readers refuse names this long").
			Expected(fmt.Sprintf("%d bytes", len(s.Name)), fmt.Sprintf("at most %d", maxName))
	case len(w.dims(s.Shape)) > maxDims:
		return finding.Errorf("container.bad_n_dims", w.name, "GGUF cannot store shape %v", s.Shape).
			Expected(len(w.dims(s.Shape)), fmt.Sprintf("at most %d dimensions", maxDims))
	}
	return nil
}

// dims is the shape as it is written, outermost first.
func (w *writer) dims(s tensor.Shape) tensor.Shape {
	if w.KeepDims {
		return s
	}
	if len(s) == 0 {
		return tensor.Shape{1}
	}
	for len(s) > 1 && s[0] == 1 {
		s = s[1:]
	}
	return s
}

// shards decides how many tensors go to each file.
func (w *writer) shards(specs []tensor.Spec, limit int64) ([]int, error) {
	if limit > 0 {
		return w.bySize(specs, limit)
	}
	if w.Shards == nil {
		return []int{len(specs)}, nil
	}
	total := 0
	for _, n := range w.Shards {
		total += n
	}
	if total != len(specs) || slices.Min(w.Shards) < 0 {
		return nil, finding.Errorf("container.bad_split", w.name, "the shards do not hold all tensors").Expected(total, len(specs))
	}
	return w.Shards, nil
}

// bySize starts a new file before a tensor that would take the data of the current one over the limit.
// A file holds at least one tensor.
func (w *writer) bySize(specs []tensor.Spec, limit int64) ([]int, error) {
	counts := []int{0}
	var size int64
	for i := range specs {
		_, end, err := w.extent(&specs[i], 0)
		if err != nil {
			return nil, err
		}
		if last := &counts[len(counts)-1]; *last > 0 && end > limit-size {
			counts, size = append(counts, 0), 0
		}
		counts[len(counts)-1]++
		size += end
	}
	return counts, nil
}

// extent returns a tensor's size, and where the next begins if this one begins at off.
func (w *writer) extent(s *tensor.Spec, off int64) (size, end int64, err error) {
	size, err = s.Bytes()
	if err != nil {
		return 0, 0, finding.Errorf("container.bad_shape", w.name, "%v", err).In(s.Name)
	}
	end, ok := padTo(off, size, w.align)
	if !ok {
		return 0, 0, finding.Errorf("container.overflow", w.name, "the sizes of the tensors overflow 64 bits").In(s.Name)
	}
	return size, end, nil
}

func (w *writer) layOut(specs []tensor.Spec, counts []int) (*layout.Layout, error) {
	n := len(counts)
	if n > maxShards || len(specs) > math.MaxInt32 {
		return nil, finding.Errorf("container.bad_split", w.name, "too many shards or tensors for a split model").
			Expected(fmt.Sprintf("%d and %d", n, len(specs)), fmt.Sprintf("at most %d and %d", maxShards, math.MaxInt32)).
			Hinted("choose a larger shard size")
	}
	l := &layout.Layout{Items: make([]layout.Place, 0, len(specs))}
	rest := specs
	for i, count := range counts {
		name, kvs := w.shard(i, n, len(specs))
		file, err := w.file(name, kvs, rest[:count], n-1-i, l)
		if err != nil {
			return nil, err
		}
		l.Files = append(l.Files, file)
		rest = rest[count:]
	}
	// Items were numbered for this order.
	slices.Reverse(l.Files)
	return l, nil
}

// shard gives name and key-values of shard i of n.
func (w *writer) shard(i, n, tensors int) (name string, kvs KVs) {
	prefix, _, _, ok := parseShardName(w.name)
	if !ok {
		prefix = strings.TrimSuffix(w.name, ".gguf")
	}
	kvs = slices.Clone(w.KVs)
	if n == 1 {
		kvs.Delete(splitNo, splitCount, splitTensors)
		return w.name, kvs
	}
	if i > 0 {
		// The data of every shard is aligned as the model declares, so every shard declares it.
		kvs = slices.DeleteFunc(kvs, func(kv KV) bool {
			return !slices.Contains([]string{splitNo, splitCount, splitTensors, alignmentKey}, kv.Key)
		})
	}
	kvs.Set(splitNo, Of(uint16(i)))
	kvs.Set(splitCount, Of(uint16(n)))
	kvs.Set(splitTensors, Of(int32(tensors)))
	return shardName(prefix, i, n), kvs
}

// file lays out one file and adds the places of its tensors to l.
func (w *writer) file(name string, kvs KVs, specs []tensor.Spec, index int, l *layout.Layout) (layout.File, error) {
	head := append([]byte(magic), w.order.AppendUint32(nil, w.Version)...)
	head = w.order.AppendUint64(head, uint64(len(specs)))
	head = w.order.AppendUint64(head, uint64(len(kvs)))
	for _, kv := range kvs {
		head = w.appendKV(head, kv)
	}
	first, off := len(l.Items), int64(0)
	for i := range specs {
		size, end, err := w.extent(&specs[i], off)
		if err != nil {
			return layout.File{}, err
		}
		head = w.appendInfo(head, &specs[i], off)
		place := layout.Place{File: index, Off: off, Size: size}
		if w.BigEndian {
			place.Swap, _ = swapOf(specs[i].DType)
		}
		l.Items = append(l.Items, place)
		off = end
	}
	start, _ := padTo(int64(len(head)), 0, w.align)
	if off > math.MaxInt64-start {
		return layout.File{}, finding.Errorf("container.overflow", name, "the sizes of the tensors overflow 64 bits")
	}
	for i := first; i < len(l.Items); i++ {
		l.Items[i].Off += start
	}
	size := start + off
	if len(specs) == 0 && w.OpenEnd {
		size = int64(len(head))
	}
	return layout.File{Name: name, Size: size, Spans: []layout.Span{layout.Bytes(0, head)}}, nil
}

func (w *writer) appendText(b []byte, s string) []byte {
	return append(w.order.AppendUint64(b, uint64(len(s))), s...)
}

func (w *writer) appendKV(b []byte, kv KV) []byte {
	v := kv.Value
	b = w.appendText(b, kv.Key)
	b = w.order.AppendUint32(b, uint32(v.typ))
	switch {
	case v.typ == String:
		return w.appendText(b, string(v.data))
	case v.typ == Array:
		b = w.order.AppendUint32(b, uint32(v.elem))
		b = w.order.AppendUint64(b, uint64(v.n))
	}
	at := len(b)
	b = append(b, v.data...)
	if w.BigEndian {
		swapElements(b[at:], v.Elem())
	}
	return b
}

// swapElements turns the encoded elements of a value from little-endian to big-endian.
func swapElements(p []byte, elem Type) {
	for len(p) > 0 {
		width, whole := elem.size(), elem.size()
		if elem == String {
			width, whole = 8, 8+int(binary.LittleEndian.Uint64(p))
		}
		reverse(p[:width])
		p = p[whole:]
	}
}

func (w *writer) appendInfo(b []byte, s *tensor.Spec, off int64) []byte {
	dims := w.dims(s.Shape)
	b = w.appendText(b, s.Name)
	b = w.order.AppendUint32(b, uint32(len(dims)))
	for _, d := range slices.Backward(dims) {
		b = w.order.AppendUint64(b, uint64(d))
	}
	b = w.order.AppendUint32(b, idOf[s.DType])
	return w.order.AppendUint64(b, uint64(off))
}
