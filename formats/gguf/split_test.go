package gguf

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/tensor"
)

func TestShardNames(t *testing.T) {
	if got := shardName("x", 0, 12); got != "x-00001-of-00012.gguf" {
		t.Error(got)
	}
	for name, want := range map[string]string{
		"x-00001-of-00012.gguf": "x 0 12 true", "a-b-00012-of-00012.gguf": "a-b 11 12 true",
		"x-00000-of-00002.gguf": " 0 0 false", "x-00003-of-00002.gguf": " 0 0 false", "x-0001-of-00002.gguf": " 0 0 false",
		"-00001-of-00002.gguf": " 0 0 false", "x-+0001-of-00002.gguf": " 0 0 false", "x-00001-of-00002.bin": " 0 0 false", "x.gguf": " 0 0 false",
		"x-00001-of-70000.gguf": " 0 0 false",
	} {
		prefix, i, n, ok := parseShardName(name)
		if got := fmt.Sprint(prefix, " ", i, " ", n, " ", ok); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

func TestSplitAndJoin(t *testing.T) {
	ts := sample()
	for _, c := range []struct {
		name  string
		limit int64
		want  []int
	}{
		// Padded sizes: 768, 224, 32, 128, 64.
		{"a byte", 1, []int{1, 1, 1, 1, 1}},
		{"exact", 768, []int{1, 4}},
		{"two", 992, []int{2, 3}},
		{"all", 1216, nil},
	} {
		for _, big := range []bool{false, true} {
			t.Run(fmt.Sprint(c.name, big), func(t *testing.T) {
				h := Header{KVs: allKinds(), BigEndian: big}
				opt := OpenOptions{AllowBigEndian: big}
				whole := build(t, h, ts, layout.Options{Name: "m.gguf"})
				files := build(t, h, ts, layout.Options{Name: "m.gguf", MaxShardSize: c.limit})
				first := "m.gguf"
				if c.want != nil {
					first = shardName("m", 0, len(c.want))
				}
				m := open(t, filepath.Join(save(t, files), first), opt)
				if !slices.Equal(m.Shards(), c.want) {
					t.Errorf("shards of %v, want %v", m.Shards(), c.want)
				}
				sameTensors(t, m.Tensors(), ts)
				if got := relay(t, m, m.Header(), layout.Options{Name: "m.gguf"}); !maps.EqualFunc(got, whole, bytes.Equal) {
					t.Error("joined it differs from the whole")
				}
				keep := m.Header()
				keep.Shards = m.Shards()
				// The name of a shard as output name stands for all of them.
				for _, name := range []string{"m.gguf", first} {
					if got := relay(t, m, keep, layout.Options{Name: name}); !maps.EqualFunc(got, files, bytes.Equal) {
						t.Errorf("kept split it differs, as %s", name)
					}
				}
			})
		}
	}
}

// The first shard has all metadata, others the split keys and the alignment, in the order and of the
// types the reference writes. The first file is the last to be committed.
func TestShardMetadata(t *testing.T) {
	h := Header{KVs: KVs{{"general.architecture", Of("llama")}, {"general.alignment", Of(uint32(64))}, {"a.b", Of("x")}}, Shards: []int{0, 2, 3}}
	l, err := NewLayout(h, specs(sample()), layout.Options{Name: "m.gguf"})
	if err != nil {
		t.Fatal(err)
	}
	if l.Dir || l.Files[2].Name != "m-00001-of-00003.gguf" || l.Files[0].Name != "m-00003-of-00003.gguf" {
		t.Errorf("files %v", l.Files)
	}
	files := assemble(t, l, sample())
	for i, want := range [][]string{
		{"general.architecture string llama", "general.alignment u32 64", "a.b string x", "split.no u16 0", "split.count u16 3", "split.tensors.count i32 5"},
		{"general.alignment u32 64", "split.no u16 1", "split.count u16 3", "split.tensors.count i32 5"},
		{"general.alignment u32 64", "split.no u16 2", "split.count u16 3", "split.tensors.count i32 5"},
	} {
		b := files[shardName("m", i, 3)]
		p, err := parse(bytes.NewReader(b), int64(len(b)), "m", OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, kv := range p.kvs {
			got = append(got, fmt.Sprint(kv.Key, " ", kv.Value.Type(), " ", kv.Value))
		}
		if !slices.Equal(got, want) {
			t.Errorf("shard %d: %q", i, got)
		}
	}
	// Keys that are there keep their place.
	h.KVs = KVs{{"split.count", Of(uint16(9))}, {"a.b", Of("x")}, {"split.no", Of(uint16(9))}}
	files = build(t, h, sample(), layout.Options{Name: "m.gguf"})
	m := open(t, filepath.Join(save(t, files), "m-00001-of-00003.gguf"), OpenOptions{})
	var keys []string
	for _, kv := range m.KVs() {
		keys = append(keys, kv.Key)
	}
	if want := []string{"split.count", "a.b", "split.no", "split.tensors.count"}; !slices.Equal(keys, want) {
		t.Errorf("%q", keys)
	}
}

func TestBrokenSplits(t *testing.T) {
	const one, two, three = "m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"
	h := Header{KVs: KVs{{"a.b", Of("x")}}, Shards: []int{1, 2, 2}}
	good := build(t, h, sample(), layout.Options{Name: "m.gguf"})
	other := build(t, h, []tensor.Tensor{
		random("other", tensor.F32, 3), random("token_embd.weight", tensor.F32, 3), random("x", tensor.F32, 3), random("y", tensor.F32, 3), random("z", tensor.F32, 3),
	}, layout.Options{Name: "m.gguf"})
	fewer := build(t, Header{Shards: []int{1, 2, 1}}, sample()[:4], layout.Options{Name: "m.gguf"})
	pair := build(t, Header{Shards: []int{1, 4}}, sample(), layout.Options{Name: "m.gguf"})
	big := build(t, Header{BigEndian: true, Shards: []int{1, 2, 2}}, sample(), layout.Options{Name: "m.gguf"})
	extra := relabel(t, good[two], "split.no", "extra.no")
	for _, c := range []struct {
		name, open, code, says string
		files                  map[string][]byte
	}{
		{"second opened", two, "not_first_shard", one, good},
		{"missing", one, "missing_file", three, map[string][]byte{one: good[one], two: good[two]}},
		{"renamed", "model.gguf", "bad_split", "m", map[string][]byte{"model.gguf": good[one]}},
		{"renamed pattern", "m-00001-of-00002.gguf", "bad_split", one, map[string][]byte{"m-00001-of-00002.gguf": good[one]}},
		{"exchanged", one, "bad_split", "shard 3 of 3", map[string][]byte{one: good[one], two: good[three], three: good[two]}},
		{"twice", one, "duplicate_name", "token_embd.weight", map[string][]byte{one: good[one], two: other[two], three: good[three]}},
		{"of fewer tensors", one, "bad_split", "4 tensors", map[string][]byte{one: good[one], two: fewer[two], three: good[three]}},
		{"of another count", one, "bad_split", "shard 2 of 2", map[string][]byte{one: good[one], two: pair["m-00002-of-00002.gguf"], three: good[three]}},
		{"other byte order", one, "bad_split", "byte order", map[string][]byte{one: good[one], two: big[two], three: good[three]}},
		{"no number", one, "bad_split", "shard 1 of 3", map[string][]byte{one: good[one], two: extra, three: good[three]}},
		{"cut", one, "truncated", "short", map[string][]byte{one: good[one], two: good[two][:len(good[two])-1], three: good[three]}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := OpenWith(filepath.Join(save(t, c.files), c.open), OpenOptions{AllowBigEndian: c.name == "other byte order"})
			wantCode(t, err, "container."+c.code)
			if f := finding.Of(err); f != nil && !strings.Contains(f.Error()+f.Hint, c.says) {
				t.Errorf("%v (hint %q) does not mention %s", f, f.Hint, c.says)
			}
		})
	}
	for _, v := range []Value{Of("0"), Of(int16(-1)), Of(uint32(70000)), ArrayOf([]uint16{0})} {
		files := build(t, Header{KVs: KVs{{"split.x", v}}}, nil, layout.Options{Name: "m.gguf"})
		b := relabel(t, files["m.gguf"], "split.x", "split.n")
		b = bytes.Replace(b, []byte("\x07\x00\x00\x00\x00\x00\x00\x00split.n"), []byte("\x08\x00\x00\x00\x00\x00\x00\x00split.no"), 1)
		_, err := Open(filepath.Join(save(t, map[string][]byte{"m.gguf": b}), "m.gguf"))
		wantCode(t, err, "container.bad_split")
	}
}

// relabel renames a key in a file's bytes.
func relabel(t *testing.T, file []byte, from, to string) []byte {
	t.Helper()
	if bytes.Count(file, []byte(from)) != 1 {
		t.Fatalf("%s is there %d times", from, bytes.Count(file, []byte(from)))
	}
	return bytes.Replace(file, []byte(from), []byte(to), 1)
}

// A wrong number of tensors in all is found although each shard agrees with the others.
func TestSplitTotal(t *testing.T) {
	files := build(t, Header{Shards: []int{1, 4}}, sample(), layout.Options{Name: "m.gguf"})
	for name, b := range files {
		at := bytes.Index(b, []byte("split.tensors.count")) + len("split.tensors.count") + 4
		if b[at] != 5 {
			t.Fatalf("%d is not the count", b[at])
		}
		b[at] = 6
		files[name] = b
	}
	_, err := Open(filepath.Join(save(t, files), "m-00001-of-00002.gguf"))
	wantCode(t, err, "container.bad_split")
}

// A split model on the disk, written by the layout's own writer under the name of its first shard.
func TestWrittenSplit(t *testing.T) {
	for _, big := range []bool{false, true} {
		h := Header{KVs: allKinds(), Shards: []int{0, 2, 3}, BigEndian: big}
		l, err := NewLayout(h, specs(sample()), layout.Options{Name: "m.gguf"})
		if err != nil {
			t.Fatal(err)
		}
		first := filepath.Join(t.TempDir(), l.Files[len(l.Files)-1].Name)
		w, err := layout.Create(first, l, false)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Abort()
		for i, x := range sample() {
			b, err := x.Read()
			if err != nil {
				t.Fatal(err)
			}
			if err := w.WriteAt(i, b, 0); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(w.WriteSpans(t.Context()), w.Commit()); err != nil {
			t.Fatal(err)
		}
		m := open(t, first, OpenOptions{AllowBigEndian: big})
		sameTensors(t, m.Tensors(), sample())
		// Both shards with tensors hold quantized ones.
		want := 0
		if big {
			want = 2
		}
		if fs := m.Findings(); len(fs) != want || slices.ContainsFunc(fs, func(f finding.Finding) bool { return f.Code != "container.big_endian" }) {
			t.Errorf("findings: %v", fs)
		}
	}
}
