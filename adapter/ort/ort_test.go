package ort

import (
	"slices"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// spellings are one module's factors as the exporters name them.
var spellings = map[string][2]string{
	"Olive":       {"model.layers.0.self_attn.q_proj.lora_A.weight", "model.layers.0.self_attn.q_proj.lora_B.weight"},
	"genai":       {"model.layers.0.attn.q_proj.lora_A.MatMul.weight", "model.layers.0.attn.q_proj.lora_B.MatMul.weight"},
	"TorchScript": {"/base_model/model/model/layers.0/self_attn/q_proj/default/MatMul", "/base_model/model/model/layers.0/self_attn/q_proj/default_1/MatMul"},
	"numbered":    {"model.layers.0.self_attn.q_proj.default_0.MatMul.weight", "model.layers.0.self_attn.q_proj.default_0_1.MatMul.weight"},
}

func TestNames(t *testing.T) {
	for who, names := range spellings {
		for i, s := range names {
			if n, ok := parse(s); !ok || n.module != "model.layers.0.self_attn.q_proj" || n.b != (i == 1) {
				t.Errorf("%s: %s is %+v, %v", who, s, n, ok)
			}
		}
	}
	for _, s := range []string{"input_ids", "lora_param_a", "past_key_values.0.key", "lora_A.weight", "model.q_proj.lora_A.quant.scale"} {
		if n, ok := parse(s); ok {
			t.Errorf("%s is taken for a factor of %+v", s, n)
		}
	}
	// GPT-2's own attn is no spelling of self_attn.
	if n, _ := parse("transformer.h.0.attn.c_attn.lora_A.weight"); n.module != "transformer.h.0.attn.c_attn" {
		t.Errorf("got %q", n.module)
	}
}

func low(module string) adapter.Update {
	return adapter.Update{Target: adapter.Target{Module: module, Param: "weight"}, Kind: adapter.LowRank, Layer: adapter.Linear, Rank: 2,
		A: adapter.FromValues(2, 3, []float32{1, 2, 3, 4, 5, 6}), B: adapter.FromValues(1, 2, []float32{7, 8}), Scale: adapter.Scale{Value: 0.5}}
}

func inputs(names [2]string, dtype tensor.DType, rank int64, optional bool) []Input {
	return []Input{{names[0], dtype, []int64{3, rank}, optional}, {names[1], dtype, []int64{rank, 1}, optional}}
}

// TestFit writes one adapter for models of every exporter.
func TestFit(t *testing.T) {
	a := &adapter.Adapter{Space: naming.HF, Updates: []adapter.Update{low("model.layers.0.self_attn.q_proj")}}
	for who, names := range spellings {
		for rank, want := range map[int64][2][]float32{
			-1: {{1, 4, 2, 5, 3, 6}, {3.5, 4}},
			0:  {{1, 4, 2, 5, 3, 6}, {3.5, 4}},
			2:  {{1, 4, 2, 5, 3, 6}, {3.5, 4}},
			3:  {{1, 4, 0, 2, 5, 0, 3, 6, 0}, {3.5, 4, 0}},
		} {
			f, err := Encode(a, tensor.Invalid, inputs(names, tensor.F16, rank, rank == 0))
			if err != nil {
				t.Fatal(who, err)
			}
			for i, w := range f.Weights {
				if v, err := w.Values.Load(); err != nil || w.Name != names[i] || w.DType != tensor.F16 || !slices.Equal(v, want[i]) {
					t.Errorf("%s rank %d: %s %s %v is %v, %v", who, rank, w.Name, w.DType, w.Shape, v, err)
				}
			}
		}
	}
}

func TestFitErrors(t *testing.T) {
	q := spellings["genai"]
	a := &adapter.Adapter{Space: naming.HF, Updates: []adapter.Update{low("model.layers.0.self_attn.q_proj")}}
	other := inputs([2]string{"model.layers.0.attn.k_proj.lora_A.MatMul.weight", "model.layers.0.attn.k_proj.lora_B.MatMul.weight"}, tensor.F32, -1, false)
	wrong := inputs(q, tensor.F32, -1, false)
	wrong[0].Dims[0] = 4
	for name, c := range map[string]struct {
		code   string
		inputs []Input
	}{
		"no such module": {"match.unmatched_target", other},
		"another shape":  {"adapter.shape_mismatch", wrong},
		"a smaller rank": {"adapter.unsupported_feature", inputs(q, tensor.F32, 1, false)},
		"quantized":      {"adapter.unsupported_feature", inputs(q, tensor.U8, -1, false)},
		"two spellings":  {"match.ambiguous_target", slices.Concat(inputs(q, tensor.F32, -1, false), inputs(spellings["Olive"], tensor.F32, -1, false))},
	} {
		if _, err := Encode(a, tensor.Invalid, c.inputs); finding.Of(err) == nil || finding.Of(err).Code != c.code {
			t.Errorf("%s: got %v, expected %s", name, err, c.code)
		}
	}
	// An input that the adapter has nothing for gets zeros, or keeps its initializer.
	for _, optional := range []bool{false, true} {
		extra := inputs([2]string{other[0].Name, other[1].Name}, tensor.F32, -1, optional)
		f, err := Encode(a, tensor.Invalid, slices.Concat(inputs(q, tensor.F32, -1, false), extra))
		if err != nil {
			t.Fatal(err)
		}
		want := 4
		if optional {
			want = 2
		}
		if len(f.Weights) != want || len(f.Findings) != 2 || f.Findings[0].Code != "match.unused_input" {
			t.Errorf("optional %v: %d parameters, findings %v", optional, len(f.Weights), f.Findings)
		}
		if v, err := f.Weights[0].Values.Load(); !optional && (err != nil || !slices.Equal(v, []float32{0, 0, 0})) {
			t.Errorf("%s is %v, %v", f.Weights[0].Name, v, err)
		}
	}
}

// TestCorpus reads models that declare LoRA inputs of no exporter, and their adapters.
func TestCorpus(t *testing.T) {
	for _, name := range []string{"example_lora", "two_params_lora_model"} {
		path := corpus.Path(t, "onnx", "lora", name)
		m, err := onnx.Open(path + ".onnx")
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if in := Inputs(m); len(in) != 0 {
			t.Errorf("%s: %v", name, in)
		}
		if _, err := Open(path + ".onnx_adapter"); finding.Of(err) == nil || finding.Of(err).Code != "adapter.unexpected_tensor" {
			t.Errorf("%s: %v", name, err)
		}
	}
}
