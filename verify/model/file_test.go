package model

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/onnxruntime"
	"github.com/loratool/loratool/tensor"
	"github.com/loratool/loratool/verify"
)

func TestReadJSON(t *testing.T) {
	path := filepath.Join(t.TempDir(), "in.json")
	read := func(text string) (map[string]Array, error) {
		if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
		return ReadInputs(path)
	}
	got, err := read(`{"a": [[1, 2], [3, -4]], "b": 1.5, "c": [true, false], "d": [], "e": [[[0.5]], [[1]]]}`)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"a": "I64 [2, 2]", "b": "F64 []", "c": "I64 [2]", "d": "I64 [0]", "e": "F64 [2, 1, 1]"} {
		if a := got[name]; a.DType.String()+" "+a.Shape.String() != want {
			t.Errorf("%s is %s %v, expected %s", name, a.DType, a.Shape, want)
		}
	}
	if a, err := got["a"].as(tensor.I32); err != nil || intAt(tensor.I32, a.Data[12:]) != -4 {
		t.Errorf("%+v %v", a, err)
	}
	if a, err := got["e"].as(tensor.F16); err != nil || string(a.Data) != "\x00\x38\x00\x3c" {
		t.Errorf("%+v %v", a, err)
	}
	if _, err := got["a"].as(tensor.U8); err == nil {
		t.Error("-4 fits U8")
	}
	if _, err := got["e"].as(tensor.I64); err == nil {
		t.Error("0.5 is a whole number")
	}
	for _, bad := range []string{
		``, `[]`, `{`, `{"a": [1, [2]]}`, `{"a": [[1], 2]}`, `{"a": [[1, 2], [3]]}`, `{"a": "x"}`, `{"a": null}`, `{"a": 1e999}`, `{"a": 1, "a": 2}`, `{"a": 1} {}`, `{"a": {}}`,
	} {
		if _, err := read(bad); finding.Of(err) == nil || finding.Of(err).Code != "runtime.bad_input" {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if _, err := ReadInputs("in.txt"); err == nil {
		t.Error("a text file is read")
	}
	if _, err := ReadInputs(filepath.Join(t.TempDir(), "nowhere.json")); finding.Of(err) == nil || finding.Of(err).Code != "files.missing" {
		t.Errorf("%v", err)
	}
}

// TestSizes reads the names that exporters give to open dimensions.
func TestSizes(t *testing.T) {
	s := &sizes{known: map[string]int64{"N": 5}, past: 2}
	for _, c := range []struct {
		param, input string
		axis, rank   int
		want         int64
	}{
		{"batch_size", "x", 0, 2, 1}, {"sequence_length", "input_ids", 1, 2, 8}, {"max_seq_len_in_batch", "input_ids", 1, 2, 8}, {"past_sequence_length", "p", 2, 4, 2},
		{"total_sequence_length", "attention_mask", 1, 2, 10}, {"past_sequence_length + 1", "m", 1, 2, 3}, {"past_seq_len+seq_len", "m", 1, 2, 10}, {"N", "x", 0, 1, 5},
		{"height", "pixel_values", 2, 4, 64}, {"num_channels", "pixel_values", 1, 4, 3},
		{"s0", "input_ids", 0, 2, 1}, {"s1", "input_ids", 1, 2, 8}, {"", "attention_mask", 1, 2, 10}, {"s3", "past_key_values.0.key", 2, 4, 2},
		{"s0", "x", 0, 2, -1}, {"s9", "past_key_values.0.key", 1, 4, -1}, {"a + b", "x", 0, 1, -1},
	} {
		n, ok := s.size(c.param, c.input, c.axis, c.rank)
		if !ok {
			n = -1
		}
		if n != c.want {
			t.Errorf("%q of %s: %d, expected %d", c.param, c.input, n, c.want)
		}
	}
	open := onnx.Value{Name: "x", Kind: "tensor", DType: tensor.F32}
	if _, err := s.shape("m.onnx", open); finding.Of(err) == nil || !strings.Contains(finding.Of(err).Hint, "--inputs") {
		t.Errorf("no shape: %v", err)
	}
	open.Dims = []onnx.Dim{{Size: 1 << 30}, {Size: 1 << 30}}
	if _, err := s.shape("m.onnx", open); err == nil {
		t.Error("a shape of 2⁶⁰ elements is made")
	}
}

// TestCompare judges outputs whose distance is known.
func TestCompare(t *testing.T) {
	base := []float32{1, 2, 3, 4, 5, 6}
	delta := []float32{0.1, -0.2, 0.1, 0.3, -0.1, 0.2}
	other := []float32{0.2, 0.1, -0.3, 0.1, 0.2, 0.1}
	at := func(x float32, d []float32) onnxruntime.Value {
		v := make([]float32, len(base))
		for i := range v {
			v[i] = base[i] + x*d[i]
		}
		return onnxruntime.Floats(v, 2, 3)
	}
	fine := tolerance{noise: 1e-6, limit: 1e-5, typ: "F32"}
	for _, c := range []struct {
		what   string
		merged onnxruntime.Value
		t      tolerance
		pass   bool
		why    string
	}{
		{"right", at(1, delta), fine, true, ""},
		{"not merged", at(0, delta), fine, false, "is not there"},
		{"twice", at(2, delta), fine, false, "too strong"},
		{"half", at(0.5, delta), fine, false, "too weak"},
		{"subtracted", at(-1, delta), fine, false, "wrong sign"},
		{"other", at(1, other), fine, false, "something else"},
		{"inaccurate", at(1.01, delta), fine, false, "differs by"},
		{"coarse", at(1.01, delta), tolerance{noise: 0.01, limit: 0.05, typ: "BF16"}, true, ""},
		// A tolerance that would let a merge pass that never happened: the retention does not.
		{"coarse, not merged", at(0, delta), tolerance{noise: 0.01, limit: 0.2, typ: "BF16"}, false, "is not there"},
		{"too coarse", at(1.3, delta), tolerance{noise: 0.2, limit: 0.5, typ: "Q4_0"}, true, inconclusive},
		{"shape", onnxruntime.Floats(base, 3, 2), fine, false, "shape"},
		{"NaN", onnxruntime.Floats([]float32{1, 2, 3, 4, 5, float32(math.NaN())}, 2, 3), fine, false, "NaN"},
	} {
		o := compare("y", tensor.F32, c.merged, at(1, delta), at(0, delta), c.t)
		if o.Pass != c.pass || (c.why == "") != (o.Why == "") || !strings.Contains(o.Why, c.why) {
			t.Errorf("%s: %+v", c.what, o)
		}
	}
	// Figures against ones by hand: ‖2Δ−Δ‖/‖base+Δ‖, and Δ beside base.
	o := compare("y", tensor.F32, at(2, delta), at(1, delta), at(0, delta), fine)
	if math.Abs(*o.Retention-2) > 1e-5 || math.Abs(o.Effect-math.Sqrt(0.2/91)) > 1e-6 || *o.Argmax != 1 {
		t.Errorf("%+v, retention %g", o, *o.Retention)
	}
	if o := compare("y", tensor.F32, at(0, delta), at(0, delta), at(0, delta), fine); !o.Pass || o.Why != noEffect {
		t.Errorf("0 against 0: %+v", o)
	}
	ids := func(v ...int64) onnxruntime.Value { return onnxruntime.Ints(v, int64(len(v))) }
	if o := compare("y", tensor.I64, ids(1, 2), ids(1, 3), ids(1, 2), fine); o.Pass || o.RelError != 0.5 || o.Effect != 0.5 {
		t.Errorf("whole numbers: %+v", o)
	}
}

// TestTolerance adds noise up as the squares of independent errors.
func TestTolerance(t *testing.T) {
	of := func(typ string, n int, err float64) []verify.Module {
		m := make([]verify.Module, n)
		for i := range m {
			m[i] = verify.Module{Type: typ, RelError: err}
		}
		return m
	}
	for _, c := range []struct {
		modules []verify.Module
		compute []tensor.DType
		int8    int
		want    float64
	}{
		{of("F32", 31, 0), nil, 0, 1e-5}, {of("F16", 4, 0), nil, 0, 5e-3}, {of("BF16", 4, 0), nil, 0, 5e-2}, {of("BF16", 224, 0), nil, 0, 4 * 2.4e-3 * math.Sqrt(224)},
		{of("MatMulNBits", 16, 0.01), nil, 0, 4 * 0.01 * 4}, {of("MatMulNBits", 16, 0.2), nil, 0, 0.5},
		{of("F32", 1, 0), []tensor.DType{tensor.F16}, 0, 5e-3}, {of("F32", 1, 0), nil, 100, 4 * 4e-3 * 10},
	} {
		if got := tolerate(c.modules, c.compute, c.int8).limit; math.Abs(got/c.want-1) > 1e-3 {
			t.Errorf("%s × %d: %g, expected %g", c.modules[0].Type, len(c.modules), got, c.want)
		}
	}
}
