package safetensors

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/tensor"
)

// DefaultShardSize is the size in bytes of tensor data at which Hugging Face libraries begin a new
// shard: 5 GB.
const DefaultShardSize = 5_000_000_000

// An Output describes what a safetensors output holds beside its tensors.
type Output struct {
	// Metadata becomes the __metadata__ of every file, sorted by key; nil leaves it out. PyTorch
	// libraries expect {"format": "pt"}.
	Metadata [][2]string
	// Dir makes the output a folder: weights named after Stem, in shards where they are too large for
	// one file, and Extra. Otherwise the output is one file.
	Dir bool
	// Stem is the name of a folder's weights without ending: "adapter_model", "diffusion_pytorch_model".
	// "" means "model". An adapter_model is never sharded, because PEFT does not read shards of it.
	Stem string
	// Extra are further files of a folder, such as adapter_config.json.
	Extra []layout.File
}

// NewFile is a file of an output with known bytes, for Output.Extra.
func NewFile(name string, b []byte) layout.File {
	return layout.File{Name: name, Size: int64(len(b)), Spans: []layout.Span{layout.Bytes(0, b)}}
}

// Layout lays out these tensors in the place of the model's own, with its metadata kept and
// opt.Provenance added. A folder model gives a folder, with its side files copied, unless opt.Name
// ends in ".safetensors"; a single file gives a single file.
func (m *Model) Layout(specs []tensor.Spec, opt layout.Options) (*layout.Layout, error) {
	out := Output{Metadata: m.metadata, Stem: m.stem, Dir: m.IsFolder() && !strings.HasSuffix(opt.Name, ".safetensors")}
	if out.Dir {
		side, err := m.SideFiles()
		if err != nil {
			return nil, err
		}
		for _, s := range side {
			if b, ok := opt.SideFiles[s.Name]; ok {
				if b != nil {
					out.Extra = append(out.Extra, NewFile(s.Name, b))
				}
				continue
			}
			out.Extra = append(out.Extra, layout.File{Name: s.Name, Size: s.Size, Spans: []layout.Span{{Len: s.Size, Src: s}}})
		}
	}
	return NewLayout(specs, out, opt)
}

// NewLayout lays out a safetensors output. Its bytes follow from the arguments alone: inside a file
// tensors are ordered by type (descending alignment), then name. Shards are filled in the order of
// specs as Hugging Face fills them: a tensor that does not fit begins the next shard, and one that is
// larger than a whole shard gets its own. The index comes last.
//
// A type that the format lacks (output.bad_dtype), a shape without a size in whole bytes
// (output.bad_shape), a name that cannot be written or comes twice (output.bad_name,
// output.duplicate_name) and a header beyond 100 MB (output.header_too_large) are *finding.Finding.
func NewLayout(specs []tensor.Spec, out Output, opt layout.Options) (*layout.Layout, error) {
	sizes, err := measure(specs, opt.Name)
	if err != nil {
		return nil, err
	}
	meta, err := mergeMetadata(out.Metadata, opt)
	if err != nil {
		return nil, err
	}
	l := &layout.Layout{Dir: out.Dir, Items: make([]layout.Place, len(specs))}
	if !out.Dir {
		name := opt.Name
		if name == "" {
			name = cmp.Or(out.Stem, "model") + ".safetensors"
		}
		return l, place(l, name, specs, sizes, all(len(specs)), meta)
	}
	stem := cmp.Or(out.Stem, "model")
	l.Files = append(l.Files, out.Extra...)
	limit := cmp.Or(opt.MaxShardSize, DefaultShardSize)
	shards := [][]int{all(len(specs))}
	if stem != "adapter_model" {
		shards = divide(sizes, limit)
	}
	if len(shards) == 1 {
		return l, place(l, stem+".safetensors", specs, sizes, shards[0], meta)
	}
	shardOf := make([]string, len(specs))
	for i, items := range shards {
		name := fmt.Sprintf("%s-%05d-of-%05d.safetensors", stem, i+1, len(shards))
		for _, item := range items {
			shardOf[item] = name
		}
		if err := place(l, name, specs, sizes, items, meta); err != nil {
			return nil, err
		}
	}
	l.Files = append(l.Files, NewFile(stem+indexSuffix, formatIndex(specs, sizes, shardOf)))
	return l, nil
}

func all(n int) []int {
	items := make([]int, n)
	for i := range items {
		items[i] = i
	}
	return items
}

// measure checks the specs and returns the size of each tensor.
func measure(specs []tensor.Spec, file string) ([]int64, error) {
	sizes := make([]int64, len(specs))
	seen := make(map[string]bool, len(specs))
	total := int64(0)
	var dims []uint64
	for i, s := range specs {
		bad := func(code, format string, a ...any) error {
			return finding.Errorf("output."+code, file, format, a...).In(s.Name)
		}
		switch {
		case !utf8.ValidString(s.Name):
			return nil, bad("bad_name", "the tensor's name is not UTF-8")
		case s.Name == "__metadata__":
			return nil, bad("bad_name", "the tensor has the name that safetensors uses for metadata")
		case seen[s.Name]:
			return nil, bad("duplicate_name", "two tensors have this name")
		}
		seen[s.Name] = true
		kind, ok := kindOf(s.DType)
		if !ok {
			return nil, finding.Errorf("output.bad_dtype", file, "safetensors has no type %s", s.DType).In(s.Name).
				Hinted("choose a plain type such as F32, F16 or BF16, or write GGUF")
		}
		dims = dims[:0]
		for _, d := range s.Shape {
			if d < 0 {
				return nil, bad("bad_shape", "the shape %v has a negative dimension", s.Shape)
			}
			dims = append(dims, uint64(d))
		}
		size, reason := dataSize(kinds[kind].bits, dims)
		switch {
		case reason == misaligned:
			return nil, bad("bad_shape", "%s%v does not fill whole bytes", s.DType, s.Shape)
		case reason == overflow || size > uint64(math.MaxInt64-maxHeader-lengthSize-total):
			return nil, bad("bad_shape", "the size of %s%v overflows 64 bits", s.DType, s.Shape)
		}
		sizes[i] = int64(size)
		total += int64(size)
	}
	return sizes, nil
}

// mergeMetadata adds the provenance to the metadata, sorted by key. Where both have a key, the
// provenance wins. The result is nil only if
// there is nothing to write, not even an empty map.
func mergeMetadata(meta [][2]string, opt layout.Options) ([][2]string, error) {
	if len(opt.Provenance) == 0 && meta == nil {
		return nil, nil
	}
	values := map[string]string{}
	for _, kv := range slices.Concat(meta, opt.Provenance) {
		if !utf8.ValidString(kv[0]) || !utf8.ValidString(kv[1]) {
			return nil, finding.Errorf("output.bad_metadata", opt.Name, "the metadata %q is not UTF-8", kv[0])
		}
		values[kv[0]] = kv[1]
	}
	out := make([][2]string, 0, len(values))
	for _, key := range slices.Sorted(maps.Keys(values)) {
		out = append(out, [2]string{key, values[key]})
	}
	return out, nil
}

// divide distributes tensors over shards of at most limit bytes of data.
func divide(sizes []int64, limit int64) [][]int {
	var shards [][]int
	var shard []int
	var size int64
	for i, n := range sizes {
		if n > limit {
			shards = append(shards, []int{i})
			continue
		}
		if len(shard) > 0 && size > limit-n {
			shards = append(shards, shard)
			shard, size = nil, 0
		}
		shard = append(shard, i)
		size += n
	}
	if len(shard) > 0 || len(shards) == 0 {
		shards = append(shards, shard)
	}
	return shards
}

// place adds a file with the given items to the layout.
func place(l *layout.Layout, name string, specs []tensor.Spec, sizes []int64, items []int, meta [][2]string) error {
	items = slices.Clone(items)
	slices.SortFunc(items, func(a, b int) int {
		ka, _ := kindOf(specs[a].DType)
		kb, _ := kindOf(specs[b].DType)
		return cmp.Or(cmp.Compare(kb, ka), cmp.Compare(specs[a].Name, specs[b].Name))
	})
	h := make([]byte, lengthSize, lengthSize+64+96*len(items))
	h = append(h, '{')
	if meta != nil {
		h = append(h, `"__metadata__":{`...)
		for i, kv := range meta {
			if i > 0 {
				h = append(h, ',')
			}
			h = appendString(h, kv[0])
			h = append(h, ':')
			h = appendString(h, kv[1])
		}
		h = append(h, '}')
	}
	end := int64(0)
	for i, item := range items {
		if i > 0 || meta != nil {
			h = append(h, ',')
		}
		s := specs[item]
		h = appendString(h, s.Name)
		h = append(h, `:{"dtype":"`...)
		h = append(h, s.DType.String()...)
		h = append(h, `","shape":[`...)
		for j, d := range s.Shape {
			if j > 0 {
				h = append(h, ',')
			}
			h = strconv.AppendInt(h, d, 10)
		}
		h = append(h, `],"data_offsets":[`...)
		h = strconv.AppendInt(h, end, 10)
		h = append(h, ',')
		l.Items[item] = layout.Place{File: len(l.Files), Off: end, Size: sizes[item]}
		end += sizes[item]
		h = strconv.AppendInt(h, end, 10)
		h = append(h, `]}`...)
	}
	h = append(h, '}')
	for len(h)%8 != 0 {
		h = append(h, ' ')
	}
	if len(h)-lengthSize > maxHeader {
		return finding.Errorf("output.header_too_large", name, "the header would be larger than the format allows").
			Expected(fmt.Sprintf("%d bytes", len(h)-lengthSize), fmt.Sprintf("at most %d", maxHeader)).Hinted("write smaller shards or less metadata")
	}
	binary.LittleEndian.PutUint64(h, uint64(len(h)-lengthSize))
	for _, item := range items {
		l.Items[item].Off += int64(len(h))
	}
	l.Files = append(l.Files, layout.File{Name: name, Size: int64(len(h)) + end, Spans: []layout.Span{layout.Bytes(0, h)}})
	return nil
}

// formatIndex writes an index as Hugging Face does: Python's JSON with an indent of two, keys sorted.
func formatIndex(specs []tensor.Spec, sizes []int64, shardOf []string) []byte {
	order := all(len(specs))
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(specs[a].Name, specs[b].Name) })
	total := int64(0)
	for _, n := range sizes {
		total += n
	}
	b := fmt.Appendf(nil, "{\n  \"metadata\": {\n    \"total_size\": %d\n  },\n  \"weight_map\": {", total)
	for i, item := range order {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, "\n    "...)
		b = appendASCII(b, specs[item].Name)
		b = append(b, ": "...)
		b = appendASCII(b, shardOf[item])
	}
	return append(b, "\n  }\n}\n"...)
}
