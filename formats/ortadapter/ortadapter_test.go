package ortadapter

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/tensor"
)

// ortWritten is two_params_lora_model.onnx_adapter of ONNX Runtime's tests: its own writer puts root and
// tables without regard to the alignment that the schema asks for.
const ortWritten = "0c000000544f5254000000008cffffff01000000010000000100000004000000020000006800000004000000acffffff3c00" +
	"0000200000000100000004000000100000000000e04000000041000010410000204102000000010000000000000004000000" +
	"00000000000000000c0000006c6f72615f706172616d5f62000000000c001400040008000c0010000c0000003c0000002000" +
	"000001000000040000001000000000004040000080400000a0400000c0400200000004000000000000000100000000000000" +
	"000000000c0000006c6f72615f706172616d5f6100000000"

func golden(t testing.TB) []byte {
	b, err := hex.DecodeString(ortWritten)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func floats(t testing.TB, ts tensor.Tensor) []float32 {
	t.Helper()
	b, err := ts.Read()
	if err != nil {
		t.Fatal(err)
	}
	w := make([]float32, len(b)/4)
	for i := range w {
		w[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return w
}

func describe(t testing.TB, m *Model) string {
	var b bytes.Buffer
	fmt.Fprint(&b, m.Header())
	for _, ts := range m.Tensors() {
		fmt.Fprintf(&b, " %s %s%v %v", ts.Name, ts.DType, ts.Shape, floats(t, ts))
	}
	return b.String()
}

func TestReadsWhatOnnxRuntimeWrote(t *testing.T) {
	b := golden(t)
	m, err := read(bytes.NewReader(b), int64(len(b)), "a")
	if err != nil {
		t.Fatal(err)
	}
	want := "{1 1 1} lora_param_a F32[4, 1] [3 4 5 6] lora_param_b F32[1, 4] [7 8 9 10]"
	if got := describe(t, m); got != want || len(m.Findings()) > 0 {
		t.Errorf("got %s %v, want %s", got, m.Findings(), want)
	}
}

func TestCorpus(t *testing.T) {
	for file, want := range map[string]string{
		"lora/two_params_lora_model.onnx_adapter": "{1 1 1} lora_param_a F32[4, 1] [3 4 5 6] lora_param_b F32[1, 4] [7 8 9 10]",
		"own/handwritten_two_params.onnx_adapter": "{1 1 1} lora_param_a F32[4, 1] [3 4 5 6] lora_param_b F32[1, 4] [7 8 9 10]",
		"lora/example_lora.onnx_adapter":          "",
	} {
		m, err := Open(corpus.Path(t, "onnx", filepath.FromSlash(file)))
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if got := describe(t, m); want != "" && got != want {
			t.Errorf("%s: %s, want %s", file, got, want)
		}
		again := rewrite(t, m)
		if a, b := describe(t, m), describe(t, again); a != b {
			t.Errorf("%s: written again it reads %s, want %s", file, b, a)
		}
	}
}

// rewrite lays the model out, fills it and reads it again.
func rewrite(t testing.TB, m *Model) *Model {
	t.Helper()
	var specs []tensor.Spec
	for _, ts := range m.Tensors() {
		specs = append(specs, ts.Spec)
	}
	l, err := Layout(m.Header(), specs, layout.Options{Name: "o"})
	if err != nil {
		t.Fatal(err)
	}
	out := assemble(t, l)
	for i, p := range l.Items {
		data, err := m.tensors[i].Read()
		if err != nil {
			t.Fatal(err)
		}
		if p.Off%dataAlign != 0 || int64(len(data)) != p.Size {
			t.Errorf("item %d at %d has %d bytes, want %d", i, p.Off, p.Size, len(data))
		}
		copy(out[p.Off:], data)
	}
	again, err := read(bytes.NewReader(out), int64(len(out)), "o")
	if err != nil {
		t.Fatal(err)
	}
	return again
}

func assemble(t testing.TB, l *layout.Layout) []byte {
	t.Helper()
	out := make([]byte, l.Files[0].Size)
	for _, s := range l.Files[0].Spans {
		if _, err := s.Src.ReadAt(out[s.Off:s.Off+s.Len], s.SrcOff); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func TestRoundTripOfEveryType(t *testing.T) {
	var specs []tensor.Spec
	for d := tensor.Bool; d <= tensor.String; d++ {
		if loadable(d) {
			specs = append(specs, tensor.Spec{Name: "é." + d.String(), DType: d, Shape: tensor.Shape{3, 1, 2}})
		}
	}
	specs = append(specs, tensor.Spec{Name: "empty", DType: tensor.F16, Shape: tensor.Shape{8, 0}})
	if len(specs) != 17 {
		t.Fatalf("%d types", len(specs)-1)
	}
	l, err := Layout(Header{AdapterVersion: 7, ModelVersion: -2}, specs, layout.Options{Name: "a.onnx_adapter"})
	if err != nil {
		t.Fatal(err)
	}
	out := assemble(t, l)
	m, err := read(bytes.NewReader(out), int64(len(out)), "a")
	if err != nil {
		t.Fatal(err)
	}
	if m.Header() != (Header{1, 7, -2}) {
		t.Errorf("header %+v", m.Header())
	}
	for i, ts := range m.Tensors() {
		if ts.Name != specs[i].Name || ts.DType != specs[i].DType || !ts.Shape.Equal(specs[i].Shape) || ts.Off != l.Items[i].Off || ts.Size != l.Items[i].Size {
			t.Errorf("parameter %d: %+v, want %+v at %+v", i, ts, specs[i], l.Items[i])
		}
	}
}

func TestRefused(t *testing.T) {
	put := func(at int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { binary.LittleEndian.PutUint32(b[at:], v); return b }
	}
	for _, c := range []struct {
		name, reason string
		change       func([]byte) []byte
	}{
		{"empty", "truncated", func([]byte) []byte { return nil }},
		{"identifier", "bad_magic", func(b []byte) []byte { b[4] = 't'; return b }},
		{"version", "bad_version", put(0x10, 2)},
		{"root outside", "bad_offset", put(0, 0x7fffffff)},
		{"root at zero", "bad_offset", put(0, 0)},
		{"vtable outside", "bad_offset", put(0x0c, 0x7fffffff)},
		{"vtable before", "bad_offset", put(0x0c, 0x100)},
		{"vtable of odd size", "bad_offset", func(b []byte) []byte { b[0x80] = 13; return b }},
		{"too many parameters", "truncated", put(0x20, 0x7fffffff)},
		{"the same table twice", "duplicate_name", put(0x28, 0x64)},
		{"name outside", "bad_offset", put(0x30, 0xffff)},
		{"long name", "truncated", put(0x6c, 0xffffffff)},
		{"no name", "no_name", put(0x6c, 0)},
		{"NUL in name", "bad_utf8", func(b []byte) []byte { b[0x71] = 0; return b }},
		{"no text in name", "bad_utf8", func(b []byte) []byte { b[0x71] = 0xff; return b }},
		{"no dimensions", "bad_shape", put(0x54, 0)},
		{"many dimensions", "truncated", put(0x54, 1000)},
		{"negative dimension", "bad_shape", put(0x5c, 0x80000000)},
		{"overflow", "overflow", put(0x5c, 0x7fffffff)},
		{"string type", "bad_dtype", put(0x38, 8)},
		{"unknown type", "bad_dtype", put(0x38, 99)},
		{"short data", "size_mismatch", put(0x40, 12)},
		{"data outside", "truncated", put(0x40, 1<<20)},
		{"cut", "bad_offset", func(b []byte) []byte { return b[:0x6e] }},
	} {
		b := c.change(golden(t))
		m, err := read(bytes.NewReader(b), int64(len(b)), "a")
		if f := finding.Of(err); f == nil || f.Code != "container."+c.reason {
			t.Errorf("%s: %v, %v, want %s", c.name, m, err, c.reason)
		}
	}
}

func TestTypesThatOnnxRuntimeDoesNotLoad(t *testing.T) {
	b := golden(t)
	binary.LittleEndian.PutUint32(b[0x38:], 9) // bool
	binary.LittleEndian.PutUint32(b[0x40:], 4)
	m, err := read(bytes.NewReader(b), int64(len(b)), "a")
	if err != nil || len(m.Findings()) != 1 || m.Findings()[0].Code != "container.bad_dtype" {
		t.Errorf("%v, %v", m, err)
	}
	f32 := tensor.Spec{Name: "a", DType: tensor.F32, Shape: tensor.Shape{2}}
	for code, specs := range map[string][]tensor.Spec{
		"output.bad_dtype":      {{Name: "a", DType: tensor.Bool, Shape: tensor.Shape{2}}},
		"output.bad_shape":      {{Name: "a", DType: tensor.F32}},
		"output.bad_name":       {{Name: "a\x00b", DType: tensor.F32, Shape: tensor.Shape{2}}},
		"output.duplicate_name": {f32, f32},
		"output.too_large":      {{Name: "a", DType: tensor.F32, Shape: tensor.Shape{1 << 29}}},
	} {
		if _, err := Layout(Header{}, specs, layout.Options{Name: "o"}); finding.Of(err) == nil || finding.Of(err).Code != code {
			t.Errorf("%v, want %s", err, code)
		}
	}
}

func FuzzAdapter(f *testing.F) {
	f.Add(golden(f))
	l, err := Layout(Header{}, []tensor.Spec{{Name: "a", DType: tensor.F16, Shape: tensor.Shape{2, 3}}, {Name: "b", DType: tensor.I8, Shape: tensor.Shape{1}}}, layout.Options{Name: "o"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(assemble(f, l))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := read(bytes.NewReader(b), int64(len(b)), "a")
		if err != nil {
			if finding.Of(err) == nil {
				t.Fatalf("no finding: %v", err)
			}
			return
		}
		for _, ts := range m.Tensors() {
			if _, err := ts.Read(); err != nil {
				t.Fatal(err)
			}
		}
		if len(m.Findings()) == 0 && len(m.Tensors()) > 0 {
			again := rewrite(t, m)
			if len(again.Tensors()) != len(m.Tensors()) {
				t.Fatal("lost parameters")
			}
		}
	})
}
