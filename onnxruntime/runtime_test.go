package onnxruntime

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/internal/corpus"
)

// The expected rows are those of ONNX Runtime's own LoRA test model (its README in the corpus).
func TestRunModelWithAdapterInputs(t *testing.T) {
	run := need(t)
	path := corpus.Path(t, "onnx", "lora", "two_params_lora_model.onnx")
	ones := slices.Repeat([]float32{1}, 16)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []Model{{Path: path}, {Bytes: b}} {
		for _, tt := range []struct {
			a, b Value
			want []float32
		}{
			{Floats(nil, 4, 0), Floats(nil, 0, 4), []float32{28, 32, 36, 40}},
			{Floats([]float32{3, 4, 5, 6}, 4, 1), Floats([]float32{7, 8, 9, 10}, 1, 4), []float32{154, 176, 198, 220}},
		} {
			in := map[string]Value{"input_x": Floats(ones, 4, 4), "lora_param_a": tt.a, "lora_param_b": tt.b}
			ys, err := run.Run(t.Context(), m, in, []string{"output"})
			if err != nil {
				t.Fatal(err)
			}
			if got := ys[0].F32; len(got) != 16 || !slices.Equal(got[:4], tt.want) {
				t.Errorf("output %v, expected rows of %v", got, tt.want)
			}
			if !slices.Equal(ys[0].Shape, []int64{4, 4}) {
				t.Errorf("shape %v", ys[0].Shape)
			}
		}
	}
}

// The inputs and outputs are the ONNX project's own (backend node tests of 1.22.0).
func TestRunNodeTests(t *testing.T) {
	run := need(t)
	for name, inputs := range map[string][]string{
		"test_gemm_all_attributes": {"a", "b", "c"},
		"test_gemm_transposeA":     {"a", "b", "c"},
		"test_matmul_3d":           {"a", "b"},
	} {
		dir := corpus.Path(t, "onnx", "onnx-node-v1.22.0", name)
		in := map[string]Value{}
		for i, n := range inputs {
			v, err := os.ReadFile(filepath.Join(dir, "test_data_set_0", fmt.Sprintf("input_%d.pb", i)))
			if err != nil {
				t.Fatal(err)
			}
			in[n] = floatProto(t, v)
		}
		b, err := os.ReadFile(filepath.Join(dir, "test_data_set_0", "output_0.pb"))
		if err != nil {
			t.Fatal(err)
		}
		want := floatProto(t, b)
		out := "y"
		if name == "test_matmul_3d" {
			out = "c"
		}
		ys, err := run.Run(t.Context(), Model{Path: filepath.Join(dir, "model.onnx")}, in, []string{out})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for i, v := range ys[0].F32 {
			if d := math.Abs(float64(v - want.F32[i])); d > 1e-5 {
				t.Errorf("%s: element %d is %g, expected %g", name, i, v, want.F32[i])
				break
			}
		}
		if !slices.Equal(ys[0].Shape, want.Shape) {
			t.Errorf("%s: shape %v, expected %v", name, ys[0].Shape, want.Shape)
		}
	}
}

// floatProto reads a TensorProto of float32 in raw form.
func floatProto(t *testing.T, b []byte) Value {
	t.Helper()
	var v Value
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		m := protowire.ConsumeFieldValue(num, typ, b[max(n, 0):])
		if n < 0 || m < 0 {
			t.Fatal("bad TensorProto")
		}
		body := b[n : n+m]
		switch num {
		case 1:
			d, _ := protowire.ConsumeVarint(body)
			v.Shape = append(v.Shape, int64(d))
		case 9:
			raw, _ := protowire.ConsumeBytes(body)
			for i := 0; i+4 <= len(raw); i += 4 {
				v.F32 = append(v.F32, math.Float32frombits(binary.LittleEndian.Uint32(raw[i:])))
			}
		}
		b = b[n+m:]
	}
	return v
}

// adder is Y = X + X for matrices of the given type.
func adder(elem int64) Model {
	var g graph
	g.input("X", elem, "m", "n")
	g.node("Add", []string{"X", "X"}, "Y")
	g.outputs = append(g.outputs, valueInfo("Y", elem, []string{"m", "n"}))
	return Model{Bytes: g.model()}
}

func TestRunIntegers(t *testing.T) {
	run := need(t)
	ys, err := run.Run(t.Context(), adder(7), map[string]Value{"X": Ints([]int64{1, -2, 1 << 40, 0}, 2, 2)}, []string{"Y"})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(ys[0].I64, []int64{2, -4, 1 << 41, 0}) {
		t.Errorf("output %v", ys[0].I64)
	}
}

func TestRunReportsBadCalls(t *testing.T) {
	run := need(t)
	x := Floats([]float32{1, 2}, 1, 2)
	for name, tt := range map[string]struct {
		model Model
		in    map[string]Value
		out   string
		code  string
	}{
		"no inputs":     {adder(1), nil, "Y", "runtime.run_failed"},
		"unknown input": {adder(1), map[string]Value{"Z": x}, "Y", "runtime.run_failed"},
		"wrong output":  {adder(1), map[string]Value{"X": x}, "Q", "runtime.run_failed"},
		"wrong type":    {adder(7), map[string]Value{"X": x}, "Y", "runtime.run_failed"},
		"short data":    {adder(1), map[string]Value{"X": Floats([]float32{1}, 1, 2)}, "Y", "runtime.bad_input"},
		"negative size": {adder(1), map[string]Value{"X": Floats(nil, -1, 2)}, "Y", "runtime.bad_input"},
		"no model":      {Model{}, map[string]Value{"X": x}, "Y", "runtime.run_failed"},
		"not a model":   {Model{Bytes: []byte("GGUF")}, map[string]Value{"X": x}, "Y", "runtime.run_failed"},
		"no file":       {Model{Path: filepath.Join(t.TempDir(), "gone.onnx")}, map[string]Value{"X": x}, "Y", "runtime.run_failed"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := run.Run(t.Context(), tt.model, tt.in, []string{tt.out})
			expectCode(t, err, tt.code)
		})
	}
}

func TestOpenRefusesSecondLibrary(t *testing.T) {
	run := need(t)
	other := Library{Path: run.Library().Path + ".other", Source: "flag"}
	_, err := Open(t.Context(), other, Options{})
	expectCode(t, err, "runtime.second_library")
}

// A device that was asked for by name is never replaced by the CPU; auto is.
func TestOpenDevices(t *testing.T) {
	run := need(t)
	state := map[Provider]Probe{}
	prober := func(_ context.Context, _ Library, p Provider) Probe { return state[p] }
	open := func(d Device) (Provider, error) {
		r, err := Open(t.Context(), run.Library(), Options{Device: d, Prober: prober})
		if err != nil {
			return "", err
		}
		return r.Provider(), nil
	}
	state[CPU] = Probe{Usable: true}
	state[CUDA] = Probe{Reason: "no driver"}
	state[WebGPU] = Probe{Usable: true, Software: true}
	for d, want := range map[Device]Provider{Auto: CPU, "": CPU, "webgpu": WebGPU, "cpu": CPU} {
		if got, err := open(d); got != want || err != nil {
			t.Errorf("device %q: %q, %v; expected %s", d, got, err, want)
		}
	}
	if _, err := open("cuda"); finding.Of(err) == nil || finding.Of(err).Code != "runtime.no_device" {
		t.Errorf("cuda: %v", err)
	}
	state[WebGPU] = Probe{Usable: true}
	if got, _ := open(Auto); got != WebGPU {
		t.Errorf("auto with a GPU took %s", got)
	}
	state[CUDA] = Probe{Usable: true}
	if got, _ := open(Auto); got != CUDA {
		t.Errorf("auto with CUDA took %s", got)
	}
}

func TestParseDevice(t *testing.T) {
	for s, want := range map[string]Device{"": Auto, "AUTO": Auto, "cpu": "cpu", "Cuda": "cuda", "webgpu": "webgpu"} {
		if got, err := ParseDevice(s); got != want || err != nil {
			t.Errorf("%q: %q, %v", s, got, err)
		}
	}
	_, err := ParseDevice("tpu")
	expectCode(t, err, "runtime.bad_device")
}
