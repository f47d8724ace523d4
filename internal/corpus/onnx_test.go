package corpus_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/onnxruntime"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// kinds are the files of the corpus of ONNX models by what is done with them, and the tests that do it.
var kinds = map[string]int{
	"model":              199, // opened and rewritten identically, or refused as expected: formats/onnx
	"tensor of a test":   492, // decoded and encoded again: formats/onnx; fed to ONNX Runtime and compared: TestONNXNodes
	"decoded weight":     36,  // formats/onnx, TestQuantizedGoldens
	"adapter":            3,   // formats/ortadapter, adapter/ort, onnxruntime
	"external data":      8,   // read through its models: formats/onnx
	"verdicts and index": 2,   // formats/onnx
	"about the corpus":   4,
}

// TestONNXFiles: there is no file in the corpus that no test knows.
func TestONNXFiles(t *testing.T) {
	found := map[string]int{}
	root := corpus.Path(t, "onnx")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		kind := map[string]string{
			".onnx": "model", ".pb": "tensor of a test", ".f32": "decoded weight", ".onnx_adapter": "adapter",
			".bin": "external data", ".data": "external data", ".json": "verdicts and index",
			".md": "about the corpus", ".txt": "about the corpus", ".keep": "about the corpus", ".gitattributes": "about the corpus",
		}[filepath.Ext(path)]
		if kind == "" {
			t.Errorf("%s is of no kind that a test is for", path)
		}
		found[kind]++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	for kind, n := range kinds {
		if total += found[kind]; found[kind] != n {
			t.Errorf("%s: %d files, want %d", kind, found[kind], n)
		}
	}
	t.Logf("%d files", total)
}

// A field is one field of a message, and its bytes with the tag.
type field struct {
	num  protowire.Number
	body []byte // of a message or a string
	all  []byte
	n    uint64
}

func fields(t *testing.T, b []byte) (w []field) {
	t.Helper()
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		m := protowire.ConsumeFieldValue(num, typ, b[max(n, 0):])
		if n < 0 || m < 0 {
			t.Fatal("bad protobuf")
		}
		f := field{num: num, all: b[:n+m]}
		switch typ {
		case protowire.BytesType:
			f.body, _ = protowire.ConsumeBytes(b[n:])
		case protowire.VarintType:
			f.n, _ = protowire.ConsumeVarint(b[n:])
		}
		w, b = append(w, f), b[n+m:]
	}
	return w
}

func message(num protowire.Number, parts ...[]byte) []byte {
	var body []byte
	for _, p := range parts {
		body = append(body, p...)
	}
	return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), body)
}

func text(num protowire.Number, s string) []byte { return message(num, []byte(s)) }

func number(num protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, num, protowire.VarintType), v)
}

// named is a TensorProto under another name.
func named(t *testing.T, tensorProto []byte, name string) []byte {
	var b []byte
	for _, f := range fields(t, tensorProto) {
		if f.num != 8 {
			b = append(b, f.all...)
		}
	}
	return append(b, text(8, name)...)
}

const (
	float32Type = 1
	int64Type   = 7
)

const (
	vector = "the shape of a vector"
	extra  = "a run needs an input"
)

// fed is a model whose inputs have the given tensors as defaults, and whose outputs are vectors of float32. It
// has one more input of one value, because a run needs one; outputs end with it, because they must not be empty.
func fed(t *testing.T, model []byte, inputs [][]byte) (out []byte, outputs []string) {
	t.Helper()
	for _, f := range fields(t, model) {
		if f.num != 7 {
			out = append(out, f.all...)
			continue
		}
		var graph, added []byte
		input := 0
		for _, g := range fields(t, f.body) {
			switch g.num {
			case 11:
				for _, v := range fields(t, g.body) {
					if v.num == 1 && input < len(inputs) {
						added = append(added, message(5, named(t, inputs[input], string(v.body)))...)
						input++
					}
				}
			case 12:
				name := string(fields(t, g.body)[0].body)
				float, flat, last := name+"/float32", name+"/flat", name+"/ended"
				added = append(added, message(1, text(1, name), text(2, float), text(4, "Cast"),
					message(5, text(1, "to"), number(3, float32Type), number(20, 2)))...)
				added = append(added, message(1, text(1, float), text(1, vector), text(2, flat), text(4, "Reshape"))...)
				added = append(added, message(1, text(1, flat), text(1, extra), text(2, last), text(4, "Concat"), message(5, text(1, "axis"), number(20, 2)))...)
				added = append(added, message(12, text(1, last), message(2, message(1, number(1, float32Type))))...)
				outputs = append(outputs, last)
			}
			graph = append(graph, g.all...)
		}
		added = append(added, message(5, number(1, 1), number(2, int64Type), text(8, vector), message(9, []byte("\xff\xff\xff\xff\xff\xff\xff\xff")))...)
		added = append(added, message(11, text(1, extra), message(2, message(1, number(1, float32Type), message(2, message(1, number(1, 1))))))...)
		out = append(out, message(7, graph, added)...)
	}
	return out, outputs
}

// floats are the values of a tensor.
func floats(t *testing.T, x *tensor.Tensor) []float64 {
	t.Helper()
	b, err := x.Read()
	if err != nil {
		t.Fatal(err)
	}
	n, err := x.Shape.Elements()
	if err != nil {
		t.Fatal(err)
	}
	w := make([]float64, n)
	packed := func(bits int, signed bool) {
		for i := range w {
			v := int(b[i*bits/8]) >> (i * bits % 8) & (1<<bits - 1)
			if signed && v >= 1<<(bits-1) {
				v -= 1 << bits
			}
			w[i] = float64(v)
		}
	}
	switch x.DType {
	case tensor.U8, tensor.Bool:
		packed(8, false)
	case tensor.I8:
		packed(8, true)
	case tensor.U4:
		packed(4, false)
	case tensor.I4:
		packed(4, true)
	case tensor.U2:
		packed(2, false)
	case tensor.I2:
		packed(2, true)
	case tensor.U16:
		for i := range w {
			w[i] = float64(binary.LittleEndian.Uint16(b[2*i:]))
		}
	case tensor.I16:
		for i := range w {
			w[i] = float64(int16(binary.LittleEndian.Uint16(b[2*i:])))
		}
	case tensor.I32:
		for i := range w {
			w[i] = float64(int32(binary.LittleEndian.Uint32(b[4*i:])))
		}
	case tensor.I64:
		for i := range w {
			w[i] = float64(int64(binary.LittleEndian.Uint64(b[8*i:])))
		}
	case tensor.F8E8M0:
		for i := range w {
			w[i] = math.Ldexp(1, int(b[i])-127)
		}
	case tensor.F64:
		for i := range w {
			w[i] = math.Float64frombits(binary.LittleEndian.Uint64(b[8*i:]))
		}
	default:
		codec, ok := quant.Of(x.DType)
		if !ok {
			t.Fatalf("%s %s has no floats", x.Name, x.DType)
		}
		v := make([]float32, n)
		codec.Decode(v, b)
		for i := range w {
			w[i] = float64(v[i])
		}
	}
	return w
}

// openTensor opens a TensorProto.
func openTensor(t *testing.T, proto []byte) *tensor.Tensor {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tensor.onnx")
	model := append(number(1, 12), message(7, message(5, named(t, proto, "t")))...)
	if err := os.WriteFile(path, append(model, message(8, number(2, 26))...), 0o644); err != nil {
		t.Fatal(err)
	}
	m, err := onnx.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return &m.Tensors()[0]
}

// rewritten is a model written by this program, with a note in it.
func rewritten(t *testing.T, path string) []byte {
	t.Helper()
	m, err := onnx.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var specs []tensor.Spec
	for _, x := range m.Tensors() {
		specs = append(specs, x.Spec)
	}
	out := filepath.Join(t.TempDir(), "out.onnx")
	l, err := m.Rewrite(specs, layout.Options{Name: "out.onnx", Provenance: [][2]string{{"loratool.base", "node test"}}}, onnx.Edit{Touched: make([]bool, len(specs))})
	if err != nil {
		t.Fatal(err)
	}
	w, err := layout.Create(out, l, false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// notRun are the node tests that ONNX Runtime 1.30 has no kernels for on the CPU, and those whose inputs or
// outputs are no tensors. Their models are rewritten, and what they decode is compared in formats/onnx.
var notRun = []string{
	"test_bitcast_bool_to_uint8",
	"test_cast_FLOAT16_to_FLOAT4E2M1", "test_cast_FLOAT4E2M1_to_FLOAT", "test_cast_FLOAT4E2M1_to_FLOAT16", "test_cast_FLOAT_to_FLOAT4E2M1",
	"test_dequantizelinear_float4e2m1", "test_quantizelinear_float4e2m1",
	"test_identity_opt", "test_identity_sequence", "test_if_opt", "test_if_seq",
}

// TestONNXNodes runs every node test, as this program writes its model, and compares with the outputs that come
// with it.
func TestONNXNodes(t *testing.T) {
	dirs, err := filepath.Glob(corpus.Path(t, "onnx", "onnx-node-v1.22.0", "test_*"))
	if err != nil || len(dirs) != 119 {
		t.Fatalf("%d tests, %v", len(dirs), err)
	}
	lib, err := onnxruntime.Locate("")
	var rt *onnxruntime.Runtime
	if err == nil {
		rt, err = onnxruntime.Open(context.Background(), lib, onnxruntime.Options{Device: onnxruntime.Device(onnxruntime.CPU)})
	}
	if err != nil {
		t.Skipf("without ONNX Runtime: %v", err)
	}
	ran, compared := 0, 0
	for _, dir := range dirs {
		name := filepath.Base(dir)
		if slices.Contains(notRun, name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			var inputs [][]byte
			for i := 0; ; i++ {
				b, err := os.ReadFile(filepath.Join(dir, "test_data_set_0", fmt.Sprintf("input_%d.pb", i)))
				if err != nil {
					break
				}
				inputs = append(inputs, b)
			}
			model, outputs := fed(t, rewritten(t, filepath.Join(dir, "model.onnx")), inputs)
			one := map[string]onnxruntime.Value{extra: onnxruntime.Floats([]float32{0}, 1)}
			ys, err := rt.Run(context.Background(), onnxruntime.Model{Bytes: model}, one, outputs)
			if err != nil {
				t.Fatal(strings.SplitN(err.Error(), "\n", 2)[0])
			}
			for k, y := range ys {
				b, err := os.ReadFile(filepath.Join(dir, "test_data_set_0", fmt.Sprintf("output_%d.pb", k)))
				if err != nil {
					t.Fatal(err)
				}
				want := floats(t, openTensor(t, b))
				var got []float64
				for _, v := range y.F32[:len(y.F32)-1] {
					got = append(got, float64(v))
				}
				if len(got) != len(want) {
					t.Fatalf("output %d: %d values, want %d", k, len(got), len(want))
				}
				for i := range want {
					same := got[i] == want[i] || got[i] != got[i] && want[i] != want[i]
					if !same && !(math.Abs(got[i]-want[i]) <= 1e-6+1e-3*math.Abs(want[i])) {
						t.Fatalf("output %d: element %d is %v, want %v", k, i, got[i], want[i])
					}
				}
				compared++
			}
			ran++
		})
	}
	if ran != len(dirs)-len(notRun) || compared < 160 {
		t.Errorf("%d tests ran, %d outputs were compared", ran, compared)
	}
	t.Logf("%d of %d node tests, %d outputs; %d have no kernels or no tensors", ran, len(dirs), compared, len(notRun))
}
