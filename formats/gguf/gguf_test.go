package gguf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/tensor"
)

// random makes a tensor with data that no symmetry hides a fault in.
func random(name string, d tensor.DType, shape ...int64) tensor.Tensor {
	t := tensor.Tensor{Spec: tensor.Spec{Name: name, DType: d, Shape: shape}}
	size, err := t.Spec.Bytes()
	if err != nil {
		panic(err)
	}
	r := rand.New(rand.NewPCG(uint64(size), uint64(d)))
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	t.Src, t.Size = bytes.NewReader(b), size
	return t
}

// build makes the files of a model, by name.
func build(t testing.TB, h Header, ts []tensor.Tensor, opt layout.Options) map[string][]byte {
	t.Helper()
	l, err := NewLayout(h, specs(ts), opt)
	if err != nil {
		t.Fatal(err)
	}
	return assemble(t, l, ts)
}

// save writes files to a new folder and returns it.
func save(t testing.TB, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func open(t testing.TB, path string, opt OpenOptions) *Model {
	t.Helper()
	m, err := OpenWith(path, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// wantCode checks that an error is a finding with a code.
func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	if f := finding.Of(err); f == nil || f.Code != code || f.File == "" {
		t.Errorf("got %v, want %s", err, code)
	}
}

func allKinds() KVs {
	return KVs{
		{"general.architecture", Of("llama")},
		{"a.u8", Of(uint8(200))}, {"a.i8", Of(int8(-3))}, {"a.u16", Of(uint16(60000))}, {"a.i16", Of(int16(-300))},
		{"a.u32", Of(uint32(4e9))}, {"a.i32", Of(int32(-5))}, {"a.u64", Of(uint64(math.MaxUint64))}, {"a.i64", Of(int64(math.MinInt64))},
		{"a.f32", Of(float32(0.1))}, {"a.f64", Of(0.1)}, {"a.bool", Of(true)}, {"a.empty", Of("")},
		{"a.nan", Of(math.Float32frombits(0x7fa00001))},
		{"a.strings", ArrayOf([]string{"ab", "", "Grüße"})}, {"a.no_strings", ArrayOf([]string{})},
		{"a.ints", ArrayOf([]int32{-1, 2, 3})}, {"a.shorts", ArrayOf([]uint16{1, 2})}, {"a.none", ArrayOf([]float64{})},
		{"a.bools", ArrayOf([]bool{true, false, true})}, {"a.doubles", ArrayOf([]float64{1, -2})},
	}
}

func sample() []tensor.Tensor {
	return []tensor.Tensor{
		random("token_embd.weight", tensor.F16, 6, 64), random("blk.0.attn_q.weight", tensor.Q8_0, 3, 64),
		random("blk.0.attn_norm.weight", tensor.F32, 5), random("blk.0.ffn_up.weight", tensor.Q4_0, 2, 3, 32),
		random("output.weight", tensor.BF16, 7, 3),
	}
}

func TestValues(t *testing.T) {
	for _, c := range []struct {
		v    Value
		typ  Type
		elem Type
		n    int
		any  any
		text string
	}{
		{Of(uint8(7)), Uint8, Uint8, 1, uint8(7), "7"},
		{Of(int16(-2)), Int16, Int16, 1, int16(-2), "-2"},
		{Of(float32(0.5)), Float32, Float32, 1, float32(0.5), "0.5"},
		{Of("x\ny"), String, String, 1, "x\ny", "x\ny"},
		{Of(false), Bool, Bool, 1, false, "false"},
		{ArrayOf([]int64{1, -1, 5, 6, 7}), Array, Int64, 5, []int64{1, -1, 5, 6, 7}, "5 × i64 [1, -1, 5, 6, …]"},
		{ArrayOf([]string{"a", "b]"}), Array, String, 2, []string{"a", "b]"}, `2 × string ["a", "b]"]`},
		{ArrayOf([]bool(nil)), Array, Bool, 0, []bool{}, "0 × bool []"},
	} {
		if c.v.Type() != c.typ || c.v.Elem() != c.elem || c.v.Len() != c.n || c.v.String() != c.text {
			t.Errorf("%v: %s of %s, %d, %q", c.any, c.v.Type(), c.v.Elem(), c.v.Len(), c.v)
		}
		if d := cmp.Diff(c.any, c.v.Any()); d != "" {
			t.Error(d)
		}
	}
}

func TestTypedAccess(t *testing.T) {
	k := allKinds()
	for _, c := range []struct {
		key    string
		i      int64
		isInt  bool
		u      uint64
		isUint bool
	}{
		{"a.u8", 200, true, 200, true}, {"a.i8", -3, true, 0, false}, {"a.u64", 0, false, math.MaxUint64, true},
		{"a.i64", math.MinInt64, true, 0, false}, {"a.f32", 0, false, 0, false}, {"a.bool", 0, false, 0, false},
		{"a.ints", 0, false, 0, false}, {"a.strings", 0, false, 0, false}, {"missing", 0, false, 0, false},
	} {
		if i, ok := k.Int(c.key); ok != c.isInt || ok && i != c.i {
			t.Errorf("Int(%s) = %d, %v", c.key, i, ok)
		}
		if u, ok := k.Uint(c.key); ok != c.isUint || ok && u != c.u {
			t.Errorf("Uint(%s) = %d, %v", c.key, u, ok)
		}
	}
	if f, ok := k.Float("a.f32"); !ok || f != float64(float32(0.1)) {
		t.Errorf("f32 = %v, %v", f, ok)
	}
	if _, ok := k.Float("a.u8"); ok {
		t.Error("an integer is no float")
	}
	if b, ok := k.Bool("a.bool"); !ok || !b {
		t.Errorf("bool = %v, %v", b, ok)
	}
	if ss, ok := k.Strings("a.strings"); !ok || !slices.Equal(ss, []string{"ab", "", "Grüße"}) {
		t.Errorf("strings = %q, %v", ss, ok)
	}
	if _, ok := k.Text("a.strings"); ok {
		t.Error("an array is no text")
	}
}

func TestEditsKeepOrder(t *testing.T) {
	k := KVs{{"a", Of("1")}, {"b", Of("2")}, {"c", Of("3")}}
	k.Set("b", Of("in place"))
	k.Set("d", Of("new"))
	k.SetLast("a", Of("moved"))
	k.Delete("c", "unknown")
	var got []string
	for _, kv := range k {
		got = append(got, kv.Key+"="+kv.Value.String())
	}
	if want := []string{"b=in place", "d=new", "a=moved"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// The bytes of a small file, written down by hand from the format text.
func TestBytes(t *testing.T) {
	h := Header{KVs: KVs{{"k.s", Of("ab")}, {"k.a", ArrayOf([]uint16{1, 515})}}}
	x := random("w", tensor.F32, 1, 2)
	x.Src = bytes.NewReader([]byte{0, 0, 128, 63, 1, 2, 3, 4})
	got := build(t, h, []tensor.Tensor{x}, layout.Options{Name: "x.gguf"})["x.gguf"]
	want := "GGUF\x03\x00\x00\x00" + "\x01\x00\x00\x00\x00\x00\x00\x00" + "\x02\x00\x00\x00\x00\x00\x00\x00" +
		"\x03\x00\x00\x00\x00\x00\x00\x00k.s\x08\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00ab" +
		"\x03\x00\x00\x00\x00\x00\x00\x00k.a\x09\x00\x00\x00\x02\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x01\x00\x03\x02" +
		"\x01\x00\x00\x00\x00\x00\x00\x00w\x01\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" +
		"\x00\x00\x00\x00\x00\x00\x00\x00"
	want += strings.Repeat("\x00", -len(want)&31) + "\x00\x00\x80\x3f\x01\x02\x03\x04" + strings.Repeat("\x00", 24)
	if d := cmp.Diff([]byte(want), got); d != "" {
		t.Error(d)
	}
	h.BigEndian = true
	got = build(t, h, []tensor.Tensor{x}, layout.Options{Name: "x.gguf"})["x.gguf"]
	want = "GGUF\x00\x00\x00\x03" + "\x00\x00\x00\x00\x00\x00\x00\x01" + "\x00\x00\x00\x00\x00\x00\x00\x02" +
		"\x00\x00\x00\x00\x00\x00\x00\x03k.s\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x02ab" +
		"\x00\x00\x00\x00\x00\x00\x00\x03k.a\x00\x00\x00\x09\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01\x02\x03" +
		"\x00\x00\x00\x00\x00\x00\x00\x01w\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00" +
		"\x00\x00\x00\x00\x00\x00\x00\x00"
	want += strings.Repeat("\x00", -len(want)&31) + "\x3f\x80\x00\x00\x04\x03\x02\x01" + strings.Repeat("\x00", 24)
	if d := cmp.Diff([]byte(want), got); d != "" {
		t.Error(d)
	}
}

func TestReadBack(t *testing.T) {
	for _, align := range []uint32{1, 8, 32, 4096} {
		for _, version := range []uint32{2, 3} {
			t.Run(fmt.Sprintf("align %d version %d", align, version), func(t *testing.T) {
				h := Header{Version: version, KVs: append(allKinds(), KV{"general.alignment", Of(align)})}
				files := build(t, h, sample(), layout.Options{Name: "m.gguf"})
				m := open(t, filepath.Join(save(t, files), "m.gguf"), OpenOptions{})
				if m.Version() != int(version) || m.Alignment() != int64(align) || m.Arch() != "llama" || m.BigEndian() || m.Format() != "gguf" {
					t.Errorf("%d %d %q %v", m.Version(), m.Alignment(), m.Arch(), m.BigEndian())
				}
				if len(m.Findings()) != 0 {
					t.Errorf("findings: %v", m.Findings())
				}
				if !slices.EqualFunc(m.KVs(), h.KVs, func(a, b KV) bool {
					return a.Key == b.Key && a.Value.Type() == b.Value.Type() && a.Value.Elem() == b.Value.Elem() &&
						a.Value.Len() == b.Value.Len() && bytes.Equal(a.Value.data, b.Value.data)
				}) {
					t.Error("key-values changed")
				}
				sameTensors(t, m.Tensors(), sample())
				for _, x := range m.Tensors() {
					if x.Off%int64(align) != 0 {
						t.Errorf("%s at %d", x.Name, x.Off)
					}
				}
				if got := relay(t, m, m.Header(), layout.Options{Name: "m.gguf"}); !bytes.Equal(got["m.gguf"], files["m.gguf"]) {
					t.Error("written again it differs")
				}
			})
		}
	}
}

func sameTensors(t *testing.T, got, want []tensor.Tensor) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d tensors, want %d", len(got), len(want))
	}
	for i := range got {
		if d := cmp.Diff(want[i].Spec, got[i].Spec); d != "" {
			t.Error(d)
		}
		g, err := got[i].Read()
		if err != nil {
			t.Fatal(err)
		}
		if w, _ := want[i].Read(); !bytes.Equal(g, w) {
			t.Errorf("%s: the data differ", want[i].Name)
		}
	}
}

func TestDimensions(t *testing.T) {
	ts := []tensor.Tensor{random("ones", tensor.F32, 1, 1, 3), random("all", tensor.F32, 1, 1), random("inner", tensor.F32, 2, 1), random("scalar", tensor.F32)}
	for _, c := range []struct {
		keep bool
		want []tensor.Shape
	}{
		{true, []tensor.Shape{{1, 1, 3}, {1, 1}, {2, 1}, nil}},
		{false, []tensor.Shape{{3}, {1}, {2, 1}, {1}}},
	} {
		files := build(t, Header{KeepDims: c.keep}, ts, layout.Options{Name: "m.gguf"})
		m := open(t, filepath.Join(save(t, files), "m.gguf"), OpenOptions{})
		for i, x := range m.Tensors() {
			if !x.Shape.Equal(c.want[i]) {
				t.Errorf("%s is %v, want %v", x.Name, x.Shape, c.want[i])
			}
		}
		if got := relay(t, m, m.Header(), layout.Options{Name: "m.gguf"}); !bytes.Equal(got["m.gguf"], files["m.gguf"]) {
			t.Error("written again it differs")
		}
	}
}

func TestNoTensors(t *testing.T) {
	for _, c := range []struct {
		open bool
		size int
	}{{false, 64}, {true, 24 + 8 + 3 + 4 + 1}} {
		h := Header{KVs: KVs{{"k.b", Of(true)}}, OpenEnd: c.open}
		files := build(t, h, nil, layout.Options{Name: "v.gguf"})
		if n := len(files["v.gguf"]); n != c.size {
			t.Errorf("%d bytes, want %d", n, c.size)
		}
		m := open(t, filepath.Join(save(t, files), "v.gguf"), OpenOptions{})
		if got := relay(t, m, m.Header(), layout.Options{Name: "v.gguf"}); !bytes.Equal(got["v.gguf"], files["v.gguf"]) {
			t.Error("written again it differs")
		}
	}
}

func TestProvenance(t *testing.T) {
	h := Header{KVs: KVs{{"a.b", Of("1")}, {"p.q", Of("old")}, {"c.d", Of("2")}}}
	files := build(t, h, nil, layout.Options{Name: "v.gguf", Provenance: [][2]string{{"p.q", "new"}, {"p.r", "x"}}})
	m := open(t, filepath.Join(save(t, files), "v.gguf"), OpenOptions{})
	var got []string
	for _, kv := range m.KVs() {
		got = append(got, kv.Key+"="+kv.Value.String())
	}
	if want := []string{"a.b=1", "c.d=2", "p.q=new", "p.r=x"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if h.KVs[1].Value.String() != "old" {
		t.Error("the caller's header changed")
	}
}

func TestWriterRefuses(t *testing.T) {
	spec := func(name string, d tensor.DType, shape ...int64) []tensor.Spec {
		return []tensor.Spec{{Name: name, DType: d, Shape: shape}}
	}
	for _, c := range []struct {
		code  string
		h     Header
		specs []tensor.Spec
	}{
		{"bad_version", Header{Version: 1}, nil},
		{"empty_key", Header{KVs: KVs{{"", Of("x")}}}, nil},
		{"duplicate_key", Header{KVs: KVs{{"a", Of("x")}, {"a", Of("x")}}}, nil},
		{"bad_kv_type", Header{KVs: KVs{{"a", Value{}}}}, nil},
		{"bad_alignment", Header{KVs: KVs{{"general.alignment", Of(uint32(48))}}}, nil},
		{"bad_alignment", Header{KVs: KVs{{"general.alignment", Of(uint64(32))}}}, nil},
		{"bad_tensor_type", Header{}, spec("w", tensor.U8, 4)},
		{"bad_tensor_type", Header{}, spec("w", tensor.F8E4M3, 4)},
		{"name_too_long", Header{}, spec(strings.Repeat("x", 64), tensor.F32, 4)},
		{"bad_n_dims", Header{}, spec("w", tensor.F32, 2, 1, 1, 1, 1)},
		{"bad_shape", Header{}, spec("w", tensor.Q4_0, 32, 16)},
		{"bad_shape", Header{}, spec("w", tensor.F32, 1<<40, 1<<40)},
		{"overflow", Header{}, append(spec("w", tensor.I8, math.MaxInt64-31), spec("v", tensor.I8, 32)...)},
		{"duplicate_name", Header{}, append(spec("w", tensor.F32, 4), spec("w", tensor.F32, 4)...)},
		{"big_endian", Header{BigEndian: true}, spec("w", tensor.IQ2_XXS, 256)},
		{"bad_split", Header{Shards: []int{1, 1}}, spec("w", tensor.F32, 4)},
	} {
		l, err := NewLayout(c.h, c.specs, layout.Options{Name: "m.gguf"})
		if l != nil {
			t.Errorf("%s: accepted", c.code)
		}
		wantCode(t, err, "container."+c.code)
	}
	five := spec("w", tensor.F32, 1, 2, 1, 1, 1)
	if _, err := NewLayout(Header{}, five, layout.Options{Name: "m.gguf"}); err != nil {
		t.Errorf("five dimensions of which one is dropped: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	_, err := Open(t.TempDir())
	wantCode(t, err, "container.not_regular_file")
	if _, err = Open(filepath.Join(t.TempDir(), "missing")); !os.IsNotExist(err) {
		t.Errorf("a missing file: %v", err)
	}
	for _, c := range []struct{ content, code, says string }{
		{"", "truncated", "magic"}, {"GG", "truncated", "magic"}, {"GGUF\x03\x00\x00\x00\x00", "truncated", "number of tensors"},
		{"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n", "lfs_pointer", "git-lfs"},
		{"tjgg\x03\x00\x00\x00", "bad_magic", "GGJT"}, {"algg\x01\x00\x00\x00", "bad_magic", "GGLA"},
		{"PK\x03\x04.........", "bad_magic", "zip"}, {"<!DOCTYPE html>", "bad_magic", "HTML"},
		{`{"error":"Repository not found"}`, "bad_magic", "JSON"}, {"\x40\x00\x00\x00\x00\x00\x00\x00{\"a\"", "bad_magic", "safetensors"},
		{"GGUF\x04\x00\x00\x00", "bad_version", "4"}, {"GGUF\x00\x00\x00\x03", "big_endian", "version 3"},
	} {
		_, err := Open(filepath.Join(save(t, map[string][]byte{"x": []byte(c.content)}), "x"))
		wantCode(t, err, "container."+c.code)
		if err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v does not mention %s", err, c.says)
		}
	}
}

// Every prefix of a file is refused, without a panic.
func TestCutAnywhere(t *testing.T) {
	file := build(t, Header{KVs: allKinds()}, sample(), layout.Options{Name: "m.gguf"})["m.gguf"]
	whole, err := parse(bytes.NewReader(file), int64(len(file)), "m.gguf", OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	last := whole.tensors[len(whole.tensors)-1]
	dataStart := whole.tensors[0].Off
	for n := range file {
		_, err := parse(bytes.NewReader(file[:n]), int64(n), "m.gguf", OpenOptions{})
		switch f := finding.Of(err); {
		case int64(n) == last.Off+last.Size:
			if err != nil {
				t.Errorf("all data is there at %d bytes: %v", n, err)
			}
		case f == nil:
			t.Errorf("%d bytes: %v", n, err)
		case int64(n) >= dataStart && f.Code != "container.truncated":
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func TestWarningsAreBounded(t *testing.T) {
	var h Header
	for i := range 1000 {
		h.KVs = append(h.KVs, KV{fmt.Sprintf("Key.%d", i), Of("\xff\x00")})
	}
	m := open(t, filepath.Join(save(t, build(t, h, nil, layout.Options{Name: "m.gguf"})), "m.gguf"), OpenOptions{})
	count := map[string]int{}
	for _, f := range m.Findings() {
		count[f.Code]++
	}
	want := map[string]int{"container.non_canonical_key": 16, "container.bad_utf8": 16, "container.nul_in_string": 16}
	if d := cmp.Diff(want, count); d != "" {
		t.Error(d)
	}
}

// The smallest entries a file can have are those that cost most beside their bytes.
func TestDenseHeaderIsCheap(t *testing.T) {
	var h Header
	var ts []tensor.Tensor
	for i := range 3000 {
		h.KVs = append(h.KVs, KV{fmt.Sprintf("k%d", i), Of(uint8(1))})
		ts = append(ts, random(fmt.Sprint(i), tensor.I8, 0))
	}
	h.KVs.Set(alignmentKey, Of(uint32(1)))
	file := build(t, h, ts, layout.Options{Name: "m.gguf"})["m.gguf"]
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := parse(bytes.NewReader(file), int64(len(file)), "m.gguf", OpenOptions{}); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if got, limit := after.TotalAlloc-before.TotalAlloc, uint64(allocations*len(file)+64<<10); got > limit {
		t.Errorf("allocated %d bytes for a file of %d, more than %d", got, len(file), limit)
	}
}

func TestCanonicalKeys(t *testing.T) {
	for key, want := range map[string]bool{
		"general.architecture": true, "gpt-oss.block_count": true, "tokenizer.ggml.tokens": true, "general.base_model.0.name": true, "a": true,
		"General.name": false, "a..b": false, ".a": false, "a.": false, "a b": false, "ä": false, strings.Repeat("k", 65536): false,
	} {
		if canonicalKey(key) != want {
			t.Errorf("%.40q: %v", key, !want)
		}
	}
}

// A length that wraps in 64 bits must not pass for the bytes that are there.
func TestHostileNumbers(t *testing.T) {
	le := binary.LittleEndian
	head := func(kvs uint64) []byte {
		b := le.AppendUint64([]byte("GGUF\x03\x00\x00\x00"), 0)
		return le.AppendUint64(b, kvs)
	}
	key := func(b []byte, typ uint32) []byte {
		return le.AppendUint32(append(le.AppendUint64(b, 1), 'a'), typ)
	}
	for _, c := range []struct {
		name, code string
		file       []byte
	}{
		{"key-values", "bad_count", head(math.MaxUint64)},
		{"text", "bad_string_length", le.AppendUint64(key(head(1), 8), math.MaxUint64)},
		{"u64 array", "bad_array_length", append(le.AppendUint64(le.AppendUint32(key(head(1), 9), 10), 1<<61+1), make([]byte, 8)...)},
		{"string array", "bad_array_length", le.AppendUint64(le.AppendUint32(key(head(1), 9), 8), 1<<61+1)},
		{"element", "bad_string_length", le.AppendUint64(le.AppendUint64(le.AppendUint32(key(head(1), 9), 8), 1), 1<<63)},
		{"element type", "bad_kv_type", le.AppendUint64(le.AppendUint32(key(head(1), 9), 13), 0)},
		{"nested", "nested_array", le.AppendUint64(le.AppendUint32(key(head(1), 9), 9), 0)},
	} {
		_, err := parse(bytes.NewReader(c.file), int64(len(c.file)), "x", OpenOptions{})
		t.Run(c.name, func(t *testing.T) { wantCode(t, err, "container."+c.code) })
	}
}
