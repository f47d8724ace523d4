package scheme_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/quant/scheme"
	"github.com/loratool/loratool/tensor"
)

// memory is a copy of a case's tensors that a test may change.
func memory(t testing.TB, name string) []tensor.Tensor {
	t.Helper()
	var out []tensor.Tensor
	for _, x := range load(t, filepath.Join("testdata", name+".safetensors")) {
		b, err := x.Read()
		if err != nil {
			t.Fatal(err)
		}
		x.Shape = slices.Clone(x.Shape)
		out = append(out, with(x, b))
	}
	return out
}

// with gives a tensor other bytes.
func with(x tensor.Tensor, b []byte) tensor.Tensor {
	x.Src, x.Off, x.Size = bytes.NewReader(b), 0, int64(len(b))
	return x
}

// TestBroken takes one thing of a checkpoint away or makes it wrong: an error that names the tensor.
func TestBroken(t *testing.T) {
	type edit func(x *tensor.Tensor)
	text := func(s string) edit {
		return func(x *tensor.Tensor) { *x = with(*x, []byte(s)); x.Shape = tensor.Shape{int64(len(s))} }
	}
	shape := func(s ...int64) edit { return func(x *tensor.Tensor) { x.Shape = s } }
	dtype := func(d tensor.DType) edit { return func(x *tensor.Tensor) { x.DType = d } }
	zero := func(n int64) edit { // an empty but well-formed tensor of another shape
		return func(x *tensor.Tensor) {
			x.Shape = tensor.Shape{n, 1}
			*x = with(*x, make([]byte, n*int64(x.DType.BlockBytes())))
		}
	}
	state := "model.layers.1.q_proj.weight.quant_state.bitsandbytes__nf4"
	for _, c := range []struct {
		name, file, tensor string
		edit               edit // nil takes the tensor away
		code, in           string
	}{
		{"no absmax", "bnb-nf4", "model.layers.0.q_proj.weight.absmax", nil, "missing_part", "model.layers.0.q_proj.weight.absmax"},
		{"no state", "bnb-nf4", state, nil, "missing_part", state},
		{"no nested map", "bnb-nf4", "model.layers.1.q_proj.weight.nested_quant_map", nil, "missing_part", ""},
		{"no weight", "bnb-nf4", "model.layers.0.q_proj.weight", nil, "missing_part", ""},
		{"state is no JSON", "bnb-nf4", state, text(`{"quant_type": "nf4", `), "bad_state", state},
		{"state of another kind", "bnb-nf4", state, text(`{"quant_type": "fp4", "blocksize": 64, "dtype": "float16", "shape": [40, 96]}`), "bad_state", state},
		{"shape overflows", "bnb-nf4", state, text(`{"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [4611686018427387904, 4611686018427387904]}`), "bad_state", state},
		{"shape is negative", "bnb-nf4", state, text(`{"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [-40, -96]}`), "bad_state", state},
		{"shape is another", "bnb-nf4", state, text(`{"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [400, 96]}`), "bad_shape", "model.layers.1.q_proj.weight"},
		{"no blocksize", "bnb-nf4", state, text(`{"quant_type": "nf4", "dtype": "float16", "shape": [40, 96]}`), "bad_state", state},
		{"huge nested offset", "bnb-nf4", state, text(`{"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [40, 96], "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 1e300}`), "bad_state", state},
		{"half a nested state", "bnb-nf4", state, text(`{"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [40, 96], "nested_blocksize": 256}`), "bad_state", state},
		{"short absmax", "bnb-nf4", "model.layers.0.q_proj.weight.absmax", zero(3), "bad_shape", ""},
		{"no SCB", "bnb-int8", "model.layers.0.q_proj.SCB", nil, "unsupported", "model.layers.0.q_proj.weight"},
		{"another layout", "bnb-int8", "model.layers.0.q_proj.weight_format", func(x *tensor.Tensor) { *x = with(*x, []byte{1}) }, "unsupported", ""},
		{"no scales", "gptq-v1", "model.layers.1.q_proj.scales", nil, "missing_part", ""},
		{"no weight", "gptq-v1", "model.layers.1.q_proj.qweight", nil, "missing_part", ""},
		{"floats for words", "gptq-v1", "model.layers.1.q_proj.qweight", dtype(tensor.F32), "bad_dtype", ""},
		{"weight does not fit", "gptq-v1", "model.layers.1.q_proj.qweight", shape(4, 80), "bad_shape", ""},
		{"index too short", "gptq-v1", "model.layers.1.q_proj.g_idx", func(x *tensor.Tensor) { x.Shape[0] = 63; x.Size = 63 * 4 }, "bad_shape", ""},
		{"zeros do not fit", "gptq-v1", "model.layers.1.q_proj.qzeros", shape(2, 10), "bad_shape", ""},
		{"no zeros", "awq", "model.layers.0.q_proj.qzeros", nil, "missing_part", ""},
		{"scales too long", "fp8-nvfp4", "model.layers.0.q_proj.weight_scale_inv", zero(4), "bad_shape", ""},
		{"experts' scales", "fp8-nvfp4", "model.layers.1.mlp.experts.gate_up_proj_scale", zero(72), "bad_shape", ""},
		{"no second scale", "fp8-nvfp4", "model.layers.2.q_proj.weight_scale_2", nil, "unsupported", ""},
		{"no shape", "ct-int4", "model.layers.0.q_proj.weight_shape", nil, "missing_part", ""},
		{"huge shape", "ct-int4", "model.layers.0.q_proj.weight_shape", func(x *tensor.Tensor) {
			*x = with(*x, binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, 24), 1<<62))
		}, "bad_state", ""},
		{"wide shape", "ct-int4", "model.layers.0.q_proj.weight_shape", func(x *tensor.Tensor) {
			*x = with(*x, binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, 24), 1<<40))
		}, "bad_shape", ""},
		{"no scale", "ct-int4", "model.layers.0.q_proj.weight_scale", nil, "missing_part", ""},
		{"no global scale", "ct-nvfp4", "model.layers.0.q_proj.weight_global_scale", nil, "missing_part", ""},
		{"scales of another width", "ct-mxfp4", "model.layers.0.q_proj.weight_scale", zero(24), "bad_shape", ""},
		{"no zero", "hqq", "model.layers.2.q_proj.zero", nil, "missing_part", ""},
		{"another shape", "hqq", "model.layers.2.q_proj.W_q", shape(8, 80), "", ""},
		{"scale of the other axis", "hqq", "model.layers.2.q_proj.scale", shape(1, 80), "bad_shape", ""},
	} {
		t.Run(c.file+" "+c.name, func(t *testing.T) {
			ts := memory(t, c.file)
			i := slices.IndexFunc(ts, func(x tensor.Tensor) bool { return x.Name == c.tensor })
			if i < 0 {
				t.Fatal("no such tensor")
			}
			if c.edit == nil {
				ts = slices.Delete(ts, i, i+1)
			} else {
				c.edit(&ts[i])
			}
			_, err := scheme.Open("model", ts, config(t, filepath.Join("testdata", c.file+".json")))
			f := finding.Of(err)
			if f == nil || f.Tensor == "" || f.File != "model" || !strings.HasPrefix(f.Code, "scheme.") || c.code != "" && f.Code != "scheme."+c.code || c.in != "" && f.Tensor != c.in {
				t.Errorf("error %v (%+v), want scheme.%s", err, f, c.code)
			}
		})
	}
}

// TestBadIndex reads a weight whose inputs name groups that do not exist.
func TestBadIndex(t *testing.T) {
	read := 0
	for _, index := range []int32{-1, 4, 1 << 30} {
		ts := memory(t, "gptq-v1")
		for i := range ts {
			if ts[i].Name == "model.layers.1.q_proj.g_idx" {
				b, _ := ts[i].Read()
				binary.LittleEndian.PutUint32(b[4*17:], uint32(index))
				ts[i] = with(ts[i], b)
			}
		}
		v, err := scheme.Open("model", ts, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range v.Tensors {
			if x.Name != "model.layers.1.q_proj.weight" {
				continue
			}
			_, err := x.Read()
			if f := finding.Of(err); f == nil || f.Code != "scheme.bad_index" || f.Tensor != "model.layers.1.q_proj.g_idx" {
				t.Errorf("index %d: error %v", index, err)
			}
			read++
		}
	}
	if read != 3 {
		t.Errorf("%d of 3 weights were read", read)
	}
}

// TestPlain checks that float models, whatever their configuration says, are left alone.
func TestPlain(t *testing.T) {
	ts := []tensor.Tensor{
		{Spec: tensor.Spec{Name: "model.layers.0.q_proj.weight", DType: tensor.BF16, Shape: tensor.Shape{2, 2}}, Size: 8},
		{Spec: tensor.Spec{Name: "model.layers.0.q_proj.weight_scale_inv", DType: tensor.F32, Shape: tensor.Shape{1, 1}}, Size: 4},
		{Spec: tensor.Spec{Name: "logit_scale", DType: tensor.F32}, Size: 4},
	}
	for _, c := range []map[string]any{nil, {"quantization_config": map[string]any{"quant_method": "fp8"}}} {
		if v, err := scheme.Open("model", ts, c); v != nil || err != nil {
			t.Errorf("view %v, error %v", v, err)
		}
	}
}

// TestMixed checks that a packed and a plain weight of one name are not both taken.
func TestMixed(t *testing.T) {
	ts := memory(t, "awq")
	ts = append(ts, tensor.Tensor{Spec: tensor.Spec{Name: "model.layers.0.q_proj.weight", DType: tensor.F16, Shape: tensor.Shape{1}}, Size: 2})
	if _, err := scheme.Open("model", ts, nil); finding.Of(err) == nil || finding.Of(err).Code != "scheme.name_taken" {
		t.Errorf("error %v", err)
	}
}

// TestScrambled changes shapes, types and sizes at random, and reads whatever is still accepted.
func TestScrambled(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	types := []tensor.DType{tensor.U8, tensor.I8, tensor.I32, tensor.I64, tensor.F32, tensor.F16, tensor.BF16, tensor.F8E4M3, tensor.F8E8M0}
	accepted := 0
	for name := range cases {
		conf := config(t, filepath.Join("testdata", name+".json"))
		original := memory(t, name)
		for range 150 {
			ts := make([]tensor.Tensor, len(original))
			for i, x := range original {
				x.Shape = slices.Clone(x.Shape)
				ts[i] = x
			}
			for range 1 + rng.IntN(2) {
				x := &ts[rng.IntN(len(ts))]
				if rng.IntN(3) == 0 {
					x.DType = types[rng.IntN(len(types))]
				}
				if len(x.Shape) > 0 && rng.IntN(2) == 0 {
					x.Shape[rng.IntN(len(x.Shape))] = []int64{0, 1, 2, 8, 16, 33, 1 << 40, 1<<63 - 1}[rng.IntN(8)]
				}
				n, err := x.Spec.Bytes()
				if err != nil || n > 1<<20 {
					n = int64(rng.IntN(200))
					x.Shape = tensor.Shape{n / int64(max(1, x.DType.BlockBytes()))}
					n = x.Shape[0] * int64(max(1, x.DType.BlockBytes()))
				}
				b := make([]byte, n)
				for i := range b {
					b[i] = byte(rng.Uint32())
				}
				*x = with(*x, b)
			}
			v, err := scheme.Open("model", ts, conf)
			if err != nil || v == nil {
				continue
			}
			accepted++
			for _, x := range v.Tensors {
				if _, err := x.Read(); err != nil && v.Packed[x.Name] == nil {
					t.Fatal(err)
				}
			}
		}
	}
	if accepted == 0 {
		t.Error("nothing was accepted, so nothing was read")
	}
}

// FuzzState gives bitsandbytes' description other bytes. What is accepted can be read.
func FuzzState(f *testing.F) {
	f.Add([]byte(`{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [40, 96], "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.04}`))
	f.Add([]byte(`{"quant_type": "nf4", "blocksize": 60, "dtype": "float16", "shape": [3840]}`))
	f.Add([]byte(`{"quant_type": "nf4", "blocksize": 9223372036854775807, "dtype": "float32", "shape": [9223372036854775807, 2, 0]}`))
	f.Add([]byte(`[`))
	original := memory(f, "bnb-nf4")
	f.Fuzz(func(t *testing.T, b []byte) {
		ts := slices.Clone(original)
		for i := range ts {
			if ts[i].Name == "model.layers.1.q_proj.weight.quant_state.bitsandbytes__nf4" {
				ts[i] = with(ts[i], b)
				ts[i].Shape = tensor.Shape{int64(len(b))}
			}
		}
		v, err := scheme.Open("model", ts, nil)
		if err != nil {
			if finding.Of(err) == nil {
				t.Errorf("%v is not a finding", err)
			}
			return
		}
		for _, x := range v.Tensors {
			if _, err := x.Read(); err != nil {
				t.Error(err)
			}
		}
	})
}
