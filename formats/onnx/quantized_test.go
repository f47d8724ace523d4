package onnx

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/quant/onnxquant"
	"github.com/loratool/loratool/tensor"
)

func floatsOf(t testing.TB, x tensor.Tensor) []float32 {
	t.Helper()
	b, err := x.Read()
	if err != nil {
		t.Fatal(err)
	}
	n, _ := x.Shape.Elements()
	v := make([]float32, n)
	c, ok := quant.Of(x.DType)
	if !ok {
		t.Fatalf("type %s", x.DType)
	}
	c.Decode(v, b)
	return v
}

// TestQuantizedGoldens decodes weights to what ONNX Runtime multiplies with.
func TestQuantizedGoldens(t *testing.T) {
	dir := corpus.Path(t, "onnx/own/quant-golden")
	b, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var index []struct {
		Name, Op        string
		Shape           []int64
		MaxAbsVsFormula float64
	}
	if err := json.Unmarshal(b, &index); err != nil {
		t.Fatal(err)
	}
	if len(index) < 35 {
		t.Fatalf("only %d cases", len(index))
	}
	for _, c := range index {
		m, err := Open(filepath.Join(dir, c.Name+".onnx"))
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		raw, err := os.ReadFile(filepath.Join(dir, c.Name+".expected.f32"))
		if err != nil {
			t.Fatal(err)
		}
		qs := m.Quantized()
		if len(qs) != 1 || qs[0].Err != nil {
			t.Errorf("%s: %+v", c.Name, qs)
			continue
		}
		w := qs[0].Weight
		got := floatsOf(t, w.Tensor("w", false))
		if len(got) != len(raw)/4 {
			t.Errorf("%s: %d values, want %d", c.Name, len(got), len(raw)/4)
			continue
		}
		rows, cols := w.Shape[0], w.Shape[1]
		for i := range got {
			at := i
			if c.Op == "MatMulNBits" { // expected is [K, N], the weight [N, K]
				at = i%int(cols)*int(rows) + i/int(cols)
			}
			want := math.Float32frombits(binary.LittleEndian.Uint32(raw[4*at:]))
			diff := math.Abs(float64(got[i]) - float64(want))
			limit := max(c.MaxAbsVsFormula, 1e-7*math.Abs(float64(want)))
			if c.Op == "DequantizeLinear" {
				limit = 0
			}
			if diff > limit {
				t.Errorf("%s: element %d is %v, want %v", c.Name, i, got[i], want)
				break
			}
		}
	}
}

// TestDequantizeLinearNodes decodes the inputs of the ONNX backend tests to their outputs.
func TestDequantizeLinearNodes(t *testing.T) {
	dirs, err := filepath.Glob(corpus.Path(t, "onnx", "onnx-node-v1.22.0", "test_dequantizelinear*"))
	if err != nil || len(dirs) < 10 {
		t.Fatalf("%d cases, %v", len(dirs), err)
	}
	for _, dir := range dirs {
		load := func(name string) *tensor.Tensor {
			b, err := os.ReadFile(filepath.Join(dir, "test_data_set_0", name))
			if err != nil {
				return nil
			}
			m, err := parse(t, modelOf(str(5, b, text(8, name))), "")
			if err != nil {
				t.Fatal(err)
			}
			x := m.Tensors()[0]
			return &x
		}
		m, err := Open(filepath.Join(dir, "model.onnx"))
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		n := m.Graph().Nodes[0]
		w, err := onnxquant.Linear{
			Axis: n.Int("axis", 1), Block: n.Int("block_size", 0), Codes: load("input_0.pb"), Scale: load("input_1.pb"), Zero: load("input_2.pb"),
		}.Open()
		if err != nil {
			t.Errorf("%s: %v", filepath.Base(dir), err)
			continue
		}
		got, want := w.Tensor("w", false), load("output_0.pb")
		if got.DType != want.DType || !got.Shape.Equal(want.Shape) {
			t.Errorf("%s: %s%v, want %s%v", filepath.Base(dir), got.DType, got.Shape, want.DType, want.Shape)
			continue
		}
		a, b := floatsOf(t, got), floatsOf(t, *want)
		for i := range a {
			if a[i] != b[i] {
				t.Errorf("%s: element %d is %v, want %v", filepath.Base(dir), i, a[i], b[i])
				break
			}
		}
	}
}

// TestIntegerOperators decodes the weights of operators that compute with integers: by one scale, by outputs,
// under a bias of integers.
func TestIntegerOperators(t *testing.T) {
	attr := func(name string, v int64) []byte { return str(5, text(1, name), num(3, v), num(20, 2)) }
	ms := text(7, "com.microsoft")
	codes := func(dims ...int64) []byte { return str(5, proto("w", 3, []byte{1, 2, 0xff, 4, 5, 6}, dims...)) }
	two, one := str(5, proto("s", 1, []byte{0, 0, 0, 0x3f, 0, 0, 0, 0x40}, 2)), str(5, proto("s", 1, []byte{0, 0, 0, 0x40}))
	for _, c := range []struct {
		name   string
		graph  [][]byte
		want   []float32
		stored bool // again
	}{
		{"QGemm", [][]byte{str(1, nodeOf("QGemm", []string{"x", "a", "b", "w", "s", "z"}, []string{"y"}, ms)), codes(3, 2), two}, []float32{0.5, 4, -0.5, 8, 2.5, 12}, true},
		{"QGemm, transposed", [][]byte{str(1, nodeOf("QGemm", []string{"x", "a", "b", "w", "s", ""}, []string{"y"}, ms, attr("transB", 1))), codes(2, 3), two}, []float32{0.5, 1, -0.5, 8, 10, 12}, true},
		{"QGemm with a bias", [][]byte{str(1, nodeOf("QGemm", []string{"x", "a", "b", "w", "s", "", "c"}, []string{"y"}, ms)), codes(3, 2), one}, []float32{2, 4, -2, 8, 10, 12}, false},
		{"QAttention", [][]byte{str(1, nodeOf("QAttention", []string{"x", "w", "c", "a", "s"}, []string{"y"}, ms)), codes(2, 3), one}, []float32{2, 4, -2, 8, 10, 12}, true},
		{"QLinearConv", [][]byte{str(1, nodeOf("QLinearConv", []string{"x", "a", "b", "w", "s", "", "d", "e", "c"}, []string{"y"})), codes(2, 3, 1), two}, []float32{0.5, 1, -0.5, 8, 10, 12}, false},
	} {
		graph := c.graph
		if c.name == "QGemm" {
			graph = append(graph, str(5, proto("z", 3, []byte{0, 0}, 2)))
		}
		m, err := parse(t, modelOf(graph...), "")
		if err != nil {
			t.Fatal(err)
		}
		qs := m.Quantized()
		if len(qs) != 1 || qs[0].Err != nil {
			t.Errorf("%s: %+v", c.name, qs)
			continue
		}
		if got := floatsOf(t, qs[0].Weight.Tensor("w", true)); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
		if e, err := qs[0].Weight.Encoding(); (e != nil) != c.stored || err != nil {
			t.Errorf("%s: an encoding %v, %v", c.name, e != nil, err)
		}
	}
}

// TestQuantizedRefused is about nodes whose weight cannot be read.
func TestQuantizedRefused(t *testing.T) {
	attr := func(name string, v int64) []byte { return str(5, text(1, name), num(3, v), num(20, 2)) }
	node := func(in []string, attrs ...[]byte) []byte {
		return str(1, nodeOf("MatMulNBits", in, []string{"y"}, append(attrs, text(7, "com.microsoft"), attr("K", 32), attr("N", 2), attr("block_size", 32))...))
	}
	codes, scales := str(5, proto("w", 2, make([]byte, 32), 2, 1, 16)), str(5, proto("s", 1, make([]byte, 8), 2))
	for _, c := range []struct {
		name, code, message string
		graph               [][]byte
	}{
		{"sound", "", "", [][]byte{node([]string{"x", "w", "s"}), codes, scales}},
		{"prepacked", "scheme.unsupported", "packed for one provider", [][]byte{node([]string{"x", "w", "s"}, attr("weight_prepacked", 1)), codes, scales}},
		{"g_idx", "scheme.unsupported", "g_idx", [][]byte{node([]string{"x", "w", "s", "", "g"}), codes, scales, str(5, proto("g", 6, make([]byte, 128), 32))}},
		{"bits", "scheme.unsupported", "3 bits", [][]byte{node([]string{"x", "w", "s"}, attr("bits", 3)), codes, scales}},
		{"scales", "scheme.bad_shape", "wrong number", [][]byte{node([]string{"x", "w", "s"}), codes, str(5, proto("s", 1, make([]byte, 12), 3))}},
		{"codes", "scheme.bad_shape", "wrong number", [][]byte{node([]string{"x", "w", "s"}), str(5, proto("w", 2, make([]byte, 16), 1, 1, 16)), scales}},
		{"computed", "scheme.missing_part", "computed", [][]byte{node([]string{"x", "w", "t"}), codes}},
	} {
		m, err := parse(t, modelOf(c.graph...), "")
		if err != nil {
			t.Fatal(err)
		}
		qs := m.Quantized()
		if len(qs) != 1 {
			t.Errorf("%s: %d weights", c.name, len(qs))
			continue
		}
		f := finding.Of(qs[0].Err)
		if c.code == "" {
			if f != nil || !qs[0].Weight.Shape.Equal(tensor.Shape{2, 32}) {
				t.Errorf("%s: %v %v", c.name, f, qs[0].Weight)
			}
			continue
		}
		if f == nil || f.Code != c.code || !strings.Contains(f.Error(), c.message) {
			t.Errorf("%s: %v, want %s %q", c.name, f, c.code, c.message)
		}
	}
}

// FuzzQuantized: no model panics; what is accepted decodes, and where it can be stored again, it can be.
func FuzzQuantized(f *testing.F) {
	attr := func(name string, v int64) []byte { return str(5, text(1, name), num(3, v), num(20, 2)) }
	ms := text(7, "com.microsoft")
	in := func(s ...string) []string { return s }
	codes := func(dataType int64, n int, dims ...int64) []byte {
		return str(5, proto("w", dataType, bytes.Repeat([]byte{0x5a}, n), dims...))
	}
	scales := func(n int, dims ...int64) []byte { return str(5, proto("s", 1, f32s(n), dims...)) }
	f.Add(modelOf(str(1, nodeOf("MatMulNBits", in("x", "w", "s"), in("y"), ms, attr("K", 40), attr("N", 2), attr("block_size", 16), attr("bits", 4))), codes(2, 48, 2, 3, 8), scales(6, 6)))
	f.Add(modelOf(str(1, nodeOf("MatMulNBits", in("x", "w", "s", "z"), in("y"), ms, attr("K", 16), attr("N", 3), attr("block_size", 16), attr("bits", 2))), codes(2, 12, 3, 1, 4), scales(3, 3), str(5, proto("z", 2, []byte{1, 2, 3}, 3, 1))))
	f.Add(modelOf(str(1, nodeOf("DequantizeLinear", in("w", "s"), in("y"), attr("axis", 0), attr("block_size", 2))), codes(22, 6, 4, 3), scales(6, 2, 3)))
	f.Add(modelOf(str(1, nodeOf("DequantizeLinear", in("w", "s"), in("y"), attr("axis", -1))), codes(17, 6, 2, 3), scales(3, 3)))
	f.Add(modelOf(str(1, nodeOf("GatherBlockQuantized", in("w", "i", "s"), in("y"), ms, attr("block_size", 16))), codes(2, 32, 2, 16), scales(4, 2, 2)))
	f.Add(modelOf(str(1, nodeOf("MatMulBnb4", in("x", "w", "s"), in("y"), ms, attr("K", 9), attr("N", 3), attr("block_size", 16))), codes(2, 14, 14), scales(2, 2)))
	f.Add(modelOf(str(1, nodeOf("MatMulInteger", in("x", "w"), in("y"))), str(1, nodeOf("Cast", in("y"), in("c"))), str(1, nodeOf("Mul", in("c", "s"), in("o"))), codes(3, 6, 2, 3), scales(1)))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parse(t, b, dir)
		if err != nil {
			return
		}
		defer m.Close()
		for _, q := range m.Quantized() {
			if q.Err != nil {
				if finding.Of(q.Err) == nil {
					t.Fatalf("no finding: %v", q.Err)
				}
				continue
			}
			w := q.Weight
			rows := floatsOf(t, w.Tensor("w", true))
			e, err := w.Encoding()
			if err != nil {
				t.Fatal(err)
			}
			if e == nil {
				continue
			}
			shown := false
			if err := e.Measure(func() ([]float32, int64, error) {
				if shown {
					return nil, 0, nil
				}
				shown = true
				return rows, 0, nil
			}); err != nil {
				t.Fatal(err)
			}
			cols := w.Shape[len(w.Shape)-1]
			n := int64(len(rows)) / cols
			var dst [][]byte
			for i := range e.Parts() {
				off, size := e.Extent(i, 0, n)
				if off != 0 || size != w.Parts[i].Size {
					t.Fatalf("part %d has %d bytes, %d to %d are written", i, w.Parts[i].Size, off, off+size)
				}
				dst = append(dst, make([]byte, size))
			}
			if err := e.Encode(dst, rows, 0); err != nil {
				if finding.Of(err) == nil {
					t.Fatalf("no finding: %v", err)
				}
				continue
			}
			e.Decode(rows, dst, 0)
		}
	})
}
