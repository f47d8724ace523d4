package hf

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/hf/config"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// memory is an F32 tensor whose elements are numbered from 0 on, plus an offset that tells tensors apart.
func memory(name string, from float32, shape ...int64) *tensor.Tensor {
	n := int64(1)
	for _, d := range shape {
		n *= d
	}
	b := make([]byte, 4*n)
	for i := range n {
		binary.LittleEndian.PutUint32(b[4*i:], math.Float32bits(from+float32(i)))
	}
	return &tensor.Tensor{Spec: tensor.Spec{Name: name, DType: tensor.F32, Shape: shape}, Src: bytes.NewReader(b), Size: 4 * n}
}

// built maps tensors by a config.json.
func built(t testing.TB, text string, folder ...*tensor.Tensor) ([]tensor.Tensor, error) {
	t.Helper()
	c, err := config.Parse("config.json", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	arch, hp, err := naming.FromConfig(c.Map())
	if err != nil {
		t.Fatal(err)
	}
	b := builder{dir: "model", arch: arch, hp: hp, config: c}
	err = b.build(folder)
	return b.out, err
}

func floats(t testing.TB, x *tensor.Tensor) []float32 {
	t.Helper()
	b, err := x.Read()
	if err != nil {
		t.Fatal(err)
	}
	out := make([]float32, len(b)/4)
	for i := range out {
		out[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return out
}

// TestGeometry compares transforms with their definitions, element by element.
func TestGeometry(t *testing.T) {
	const neox = `{"architectures": ["GPTNeoXForCausalLM"], "num_hidden_layers": 1, "num_attention_heads": 3, "hidden_size": 6}`
	const falcon = `{"architectures": ["FalconForCausalLM"], "num_hidden_layers": 1, "num_attention_heads": 4, "num_kv_heads": 2, "hidden_size": 8, "new_decoder_architecture": true}`
	const deepseek = `{"architectures": ["DeepseekV3ForCausalLM"], "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "hidden_size": 8, "qk_nope_head_dim": 3, "v_head_dim": 2}`
	for _, tt := range []struct {
		name, config string
		in           *tensor.Tensor
		out          string // the GGUF tensor that is looked at
		shape        string
		want         func(i []int64) float32 // of the element at these indexes
	}{
		{"NeoX weight", neox, memory("gpt_neox.layers.0.attention.query_key_value.weight", 0, 18, 6), "blk.0.attn_qkv.weight", "[18, 6]", func(i []int64) float32 {
			part, h, r := i[0]/6, i[0]%6/2, i[0]%2
			return float32(((h*3+part)*2+r)*6 + i[1])
		}},
		{"NeoX bias", neox, memory("gpt_neox.layers.0.attention.query_key_value.bias", 0, 18), "blk.0.attn_qkv.bias", "[18]", func(i []int64) float32 {
			part, h, r := i[0]/6, i[0]%6/2, i[0]%2
			return float32((h*3+part)*2 + r)
		}},
		{"Falcon groups", falcon, memory("transformer.h.0.self_attention.query_key_value.weight", 0, 16, 8), "blk.0.attn_qkv.weight", "[16, 8]", func(i []int64) float32 {
			row := i[0] // q: 4 heads of 2, k: 2, v: 2; stored in 2 groups of q q k v
			h, r := row/2, row%2
			stored := h/2*8 + h%2*2 + r
			if h >= 4 {
				stored = (h-4)%2*8 + 4 + (h-4)/2*2 + r
			}
			return float32(stored*8 + i[1])
		}},
		{"DeepSeek keys", deepseek, memory("model.layers.0.self_attn.kv_b_proj.weight", 0, 10, 4), "blk.0.attn_k_b.weight", "[2, 4, 3]", func(i []int64) float32 {
			return float32((i[0]*5+i[2])*4 + i[1])
		}},
		{"DeepSeek values", deepseek, memory("model.layers.0.self_attn.kv_b_proj.weight", 0, 10, 4), "blk.0.attn_v_b.weight", "[2, 2, 4]", func(i []int64) float32 {
			return float32((i[0]*5+3+i[1])*4 + i[2])
		}},
		{"GPT-2 weight", `{"architectures": ["GPT2LMHeadModel"], "n_layer": 1, "n_head": 2, "n_embd": 4}`, memory("h.0.mlp.c_fc.weight", 0, 4, 16), "blk.0.ffn_up.weight", "[16, 4]",
			func(i []int64) float32 { return float32(i[1]*16 + i[0]) }},
		{"Gemma norm", `{"architectures": ["Gemma2ForCausalLM"], "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 4}`, memory("model.layers.0.pre_feedforward_layernorm.weight", 0, 4),
			"blk.0.ffn_norm.weight", "[4]", func(i []int64) float32 { return float32(i[0] + 1) }},
		{"rotary rows", `{"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 8}`,
			memory("model.layers.0.self_attn.q_proj.weight", 0, 8, 2), "blk.0.attn_q.weight", "[8, 2]", func(i []int64) float32 {
				h, j := i[0]/4, i[0]%4
				return float32((h*4+j%2*2+j/2)*2 + i[1])
			}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, err := built(t, tt.config, tt.in)
			if err != nil {
				t.Fatal(err)
			}
			found := false
			for i := range out {
				if out[i].Name != tt.out {
					continue
				}
				found = true
				if out[i].Shape.String() != tt.shape {
					t.Fatalf("shape %s, want %s", out[i].Shape, tt.shape)
				}
				for at, x := range floats(t, &out[i]) {
					index := make([]int64, len(out[i].Shape))
					for d, rest := len(index)-1, int64(at); d >= 0; d-- {
						index[d], rest = rest%out[i].Shape[d], rest/out[i].Shape[d]
					}
					if want := tt.want(index); x != want {
						t.Fatalf("element %v is %g, want %g", index, x, want)
					}
				}
			}
			if !found {
				t.Fatalf("no %s among %d tensors", tt.out, len(out))
			}
		})
	}
}

const qwenMoE = `{"architectures": ["Qwen2MoeForCausalLM"], "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 4, "num_experts": 2, "moe_intermediate_size": 3}`

func experts(layer int) []*tensor.Tensor {
	var out []*tensor.Tensor
	for e := range 2 {
		for i, leaf := range []string{"down_proj", "gate_proj", "up_proj"} {
			shape := []int64{3, 4}
			if leaf == "down_proj" {
				shape = []int64{4, 3}
			}
			out = append(out, memory(fmt.Sprintf("model.layers.%d.mlp.experts.%d.%s.weight", layer, e, leaf), float32(100*e+1000*i), shape...))
		}
	}
	return out
}

// TestExperts stacks single experts where the last one comes.
func TestExperts(t *testing.T) {
	folder := append(experts(0), memory("model.layers.0.mlp.shared_expert_gate.weight", 0, 1, 4))
	out, err := built(t, qwenMoE, folder...)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, x := range out {
		names = append(names, fmt.Sprintf("%s %v", x.Name, x.Shape))
	}
	want := "blk.0.ffn_down_exps.weight [2, 4, 3]; blk.0.ffn_gate_exps.weight [2, 3, 4]; blk.0.ffn_up_exps.weight [2, 3, 4]; blk.0.ffn_gate_inp_shexp.weight [1, 4]"
	if got := strings.Join(names, "; "); got != want {
		t.Fatalf("%s\nwant %s", got, want)
	}
	for i, from := range []float32{0, 1000, 2000} {
		for at, x := range floats(t, &out[i]) {
			if want := from + float32(at/12*100+at%12); x != want {
				t.Fatalf("%s: element %d is %g, want %g", out[i].Name, at, x, want)
			}
		}
	}
}

// TestHeadNorms stacks the norms that StableLM has for each head.
func TestHeadNorms(t *testing.T) {
	out, err := built(t, `{"architectures": ["StableLmForCausalLM"], "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 8}`,
		memory("model.layers.0.self_attn.k_layernorm.norms.0.weight", 50, 4),
		memory("model.layers.0.self_attn.q_layernorm.norms.0.weight", 0, 4), memory("model.layers.0.self_attn.q_layernorm.norms.1.weight", 4, 4))
	if err != nil {
		t.Fatal(err)
	}
	if len(out) != 2 || out[0].Name != "blk.0.attn_k_norm.weight" || out[0].Shape.String() != "[1, 4]" || out[1].Name != "blk.0.attn_q_norm.weight" || out[1].Shape.String() != "[2, 4]" {
		t.Fatalf("%v", out)
	}
	for i, x := range floats(t, &out[1]) {
		if x != float32(i) {
			t.Fatalf("element %d is %g", i, x)
		}
	}
}

// TestClassifier names a classifier's layers by whether its outputs have names.
func TestClassifier(t *testing.T) {
	const bert = `{"architectures": ["BertForSequenceClassification"], "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8%s}`
	for labels, want := range map[string]string{
		``: "cls.weight", `, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}`: "cls.weight", `, "id2label": {"0": "bad", "1": "good"}`: "cls.output.weight",
	} {
		out, err := built(t, fmt.Sprintf(bert, labels), memory("classifier.weight", 0, 2, 8))
		if err != nil || len(out) != 1 || out[0].Name != want {
			t.Errorf("%s: %v, %v, want %s", labels, out, err, want)
		}
	}
}

// TestRefused says what is wrong with folders that cannot be converted.
func TestRefused(t *testing.T) {
	const llama = `{"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 8}`
	const cohere = `{"architectures": ["Cohere2ForCausalLM"], "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8}`
	const oss = `{"architectures": ["GptOssForCausalLM"], "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8, "num_local_experts": 1, "intermediate_size": 32}`
	packed := memory("model.layers.0.mlp.experts.down_proj_blocks", 0, 1, 8, 1, 16)
	for _, tt := range []struct {
		name, config, code, in string
		folder                 []*tensor.Tensor
	}{
		{"no place", llama, "base.unknown_tensor", "model.layers.0.self_attn.x_proj.weight", []*tensor.Tensor{memory("model.layers.0.self_attn.x_proj.weight", 0, 4, 4)}},
		{"a layer too many", llama, "base.unknown_tensor", "model.layers.1.self_attn.o_proj.weight", []*tensor.Tensor{memory("model.layers.1.self_attn.o_proj.weight", 0, 4, 4)}},
		{"odd heads", llama, "base.unsupported", "model.layers.0.self_attn.q_proj.weight", []*tensor.Tensor{memory("model.layers.0.self_attn.q_proj.weight", 0, 6, 4)}},
		{"no elements", llama, "base.unsupported", "model.layers.0.self_attn.q_proj.weight", []*tensor.Tensor{memory("model.layers.0.self_attn.q_proj.weight", 0, 8, 0)}},
		{"no dimensions", llama, "base.unsupported", "model.norm.weight", []*tensor.Tensor{memory("model.norm.weight", 0)}},
		{"twice", llama, "base.duplicate_tensor", "norm.weight", []*tensor.Tensor{memory("model.norm.weight", 0, 8), memory("norm.weight", 0, 8)}},
		{"an expert lost", qwenMoE, "base.missing_tensor", "model.layers.1.mlp", experts(1)[1:]},
		{"a kind of matrix lost", qwenMoE, "base.missing_tensor", "model.layers.1.mlp", []*tensor.Tensor{experts(1)[0], experts(1)[3]}},
		{"a bias that counts", cohere, "base.unsupported", "model.layers.0.self_attn.q_proj.bias", []*tensor.Tensor{memory("model.layers.0.self_attn.q_proj.bias", 1, 8)}},
		{"blocks without scales", oss, "base.missing_tensor", packed.Name, []*tensor.Tensor{packed}},
		{"blocks of floats", oss, "base.bad_shape", packed.Name, []*tensor.Tensor{packed, memory("model.layers.0.mlp.experts.down_proj_scales", 0, 1, 8, 1)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := built(t, tt.config, tt.folder...)
			f := finding.Of(err)
			if f == nil || f.Code != tt.code || f.Tensor != tt.in {
				t.Fatalf("%v, want %s about %s", err, tt.code, tt.in)
			}
		})
	}
	if out, err := built(t, cohere, memory("model.layers.0.self_attn.q_proj.bias", 0, 1)); err != nil || len(out) != 0 {
		t.Errorf("a zero bias gives %v, %v", out, err)
	}
}

// FuzzBuild maps tensors of any name and shape by any configuration, and reads what comes out.
func FuzzBuild(f *testing.F) {
	f.Add([]byte(qwenMoE), "model.layers.0.mlp.experts.gate_up_proj", int64(2), int64(6), int64(4))
	f.Add([]byte(`{"architectures": ["GPT2LMHeadModel"], "n_layer": 1, "n_head": 2, "n_embd": 4}`), "h.0.attn.c_attn.weight", int64(4), int64(12), int64(0))
	f.Add([]byte(`{"architectures": ["DeepseekV3ForCausalLM"], "num_attention_heads": 2, "qk_nope_head_dim": 3, "v_head_dim": 2}`), "layers.0.self_attn.kv_b_proj.weight", int64(10), int64(4), int64(-1))
	f.Add([]byte(`{"architectures": ["FalconForCausalLM"], "num_attention_heads": 4, "num_kv_heads": 2, "hidden_size": 8, "new_decoder_architecture": true}`), "h.0.self_attention.query_key_value.bias", int64(16), int64(-1), int64(-1))
	f.Add([]byte(`{"architectures": ["LlamaForCausalLM"], "num_attention_heads": 2, "hidden_size": 8, "rope_scaling": {"rope_type": "llama3", "factor": 0}}`), "layers.0.self_attn.q_proj.weight", int64(8), int64(2), int64(-1))
	f.Add([]byte(`{"architectures": ["GptOssForCausalLM"], "num_attention_heads": 2, "num_local_experts": 2, "intermediate_size": 3}`), "layers.0.mlp.experts.gate_up_proj_bias", int64(2), int64(6), int64(-1))
	f.Fuzz(func(t *testing.T, text []byte, name string, a, b, c int64) {
		shape := []int64{}
		n := int64(1)
		for _, d := range []int64{a, b, c} {
			if d < 0 {
				break
			}
			if d > 1<<10 || n > 1<<16 {
				t.Skip()
			}
			shape, n = append(shape, d), n*d
		}
		if !json.Valid(text) {
			t.Skip()
		}
		cfg, err := config.Parse("config.json", text)
		if err != nil {
			t.Skip()
		}
		arch, hp, err := naming.FromConfig(cfg.Map())
		if err != nil {
			t.Skip()
		}
		build := builder{dir: "model", arch: arch, hp: hp, config: cfg}
		if build.build([]*tensor.Tensor{memory(name, 0, shape...)}) != nil {
			return
		}
		for _, x := range build.out {
			if x.Size > 1<<24 {
				t.Fatalf("%s has %d bytes", x.Name, x.Size)
			}
			if _, err := x.Read(); err != nil {
				t.Fatalf("%s: %v", x.Name, err)
			}
		}
	})
}
