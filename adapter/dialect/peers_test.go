package dialect

import (
	"math"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/naming"
)

const gpt2Config = `{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 16, "n_head": 4, "n_layer": 2, "vocab_size": 32}`

const qwenConfig = `{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4,
	"num_key_value_heads": 2, "head_dim": 4, "num_hidden_layers": 2, "vocab_size": 32}`

// A factors is what is known of a module: A [r, in] and B [out, r], row by row, and how the configuration scales.
type factors struct {
	a, b       []float64
	r, in, out int
	alpha      float64
}

// times is x·B·A.
func (f factors) times(x float64) []float64 {
	d := make([]float64, f.out*f.in)
	for i := range f.out {
		for j := range f.in {
			for k := range f.r {
				d[i*f.in+j] += x * f.b[i*f.r+k] * f.a[k*f.in+j]
			}
		}
	}
	return d
}

// turned is the transpose of a square ΔW.
func (f factors) turned(d []float64) []float64 {
	out := make([]float64, len(d))
	for i := range f.out {
		for j := range f.in {
			out[j*f.in+i] = d[i*f.in+j]
		}
	}
	return out
}

// TestPeers takes adapters that other programs get wrong from PEFT to a dialect. ΔW, of the module that is named, must
// be the right one and not theirs.
func TestPeers(t *testing.T) {
	// one is a module of an adapter whose other modules have rank 4 and alpha 8.
	one := func(module string, in, out, rank int64, alpha, scale float64) []adapter.Update {
		a := &adapter.Adapter{}
		for _, m := range []string{"mlp.down_proj", "mlp.up_proj"} {
			add(a, "model.layers.1."+m, 16, 16, 4, nil)
		}
		add(a, module, in, out, rank, func(_ int, u *adapter.Update) { u.Scale = adapter.Scale{Value: scale, Alpha: alpha, Rank: int(rank)} })
		return a.Updates
	}
	const q, o = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.o_proj"
	// The whole adapter is rsLoRA where one module is: PEFT has one flag.
	rooted := func(ups []adapter.Update) []adapter.Update {
		for i := range ups {
			s := &ups[i].Scale
			s.Value = s.Alpha / math.Sqrt(float64(s.Rank))
		}
		return ups
	}
	pattern := func(f factors) []float64 { return f.times(8.0 / 4) } // the configuration's lora_alpha / r
	plain := func(f factors) []float64 { return f.times(f.alpha / float64(f.r)) }
	root := func(f factors) []float64 { return f.times(f.alpha / math.Sqrt(float64(f.r))) }
	for _, c := range []struct {
		name, to, config string
		updates          []adapter.Update
		right, wrong     func(f factors) []float64
	}{
		{"llama.cpp's converter ignores use_rslora", "gguf", llamaConfig, rooted(one(o, 16, 16, 4, 8, 0)), root, plain},
		{"llama.cpp's converter ignores alpha_pattern", "gguf", llamaConfig, one(o, 16, 16, 4, 3, 0.75), plain, pattern},
		{"llama.cpp's converter swaps the factors of Conv1D", "gguf", gpt2Config, one("transformer.h.0.attn.c_proj", 16, 16, 4, 8, 2)[2:], plain,
			func(f factors) []float64 { return f.turned(f.times(2)) }},
		{"Olive ignores alpha_pattern", "ort", llamaConfig, one(q, 16, 16, 4, 3, 0.75), plain, pattern},
		{"Olive ignores rank_pattern", "ort", llamaConfig, one(q, 16, 16, 2, 8, 4), plain, pattern},
		{"TensorRT-LLM ignores use_rslora", "trtllm", llamaConfig, rooted(one(q, 16, 16, 4, 8, 0))[2:], root, plain},
		{"TensorRT-LLM ignores alpha_pattern", "trtllm", llamaConfig, one(q, 16, 16, 4, 3, 0.75)[2:], plain, pattern},
		{"MLX converters write alpha as the scale", "mlx", llamaConfig, one(o, 16, 16, 4, 8, 2), plain, func(f factors) []float64 { return f.times(f.alpha) }},
		{"MLX converters multiply the scale by alpha / rank again", "mlx", llamaConfig, one(o, 16, 16, 4, 12, 3), plain, func(f factors) []float64 { return f.times(3 * 12 / 4.0) }},
		// A square factor that nobody transposed loads without a complaint.
		{"MLX converters leave square factors as they are", "mlx", llamaConfig, one(o, 16, 16, 16, 8, 0.5)[2:], plain, func(f factors) []float64 {
			return f.turned(factors{a: f.b, b: f.a, r: f.r, in: f.in, out: f.out}.times(0.5))
		}},
		{"Ollama transposes factors with more rows than columns", "gguf", llamaConfig, one(o, 16, 16, 24, 8, 8.0/24)[2:], plain, func(f factors) []float64 { return f.turned(f.times(8.0 / 24)) }},
		{"OpenVINO GenAI ignores the configuration", "openvino", llamaConfig, one(o, 16, 16, 4, 8, 2), plain, func(f factors) []float64 { return f.times(1) }},
		{"OpenVINO GenAI divides alphas of rsLoRA by the rank", "openvino", llamaConfig, rooted(one(o, 16, 16, 4, 8, 0)), root, plain},
		{"torchtune's export reorders q of Qwen2", "torchtune", qwenConfig, one(q, 16, 16, 4, 8, 2)[2:], plain, func(f factors) []float64 {
			d := f.times(2)
			out := make([]float64, len(d))
			for i := range f.out { // heads of 4 rows, pairs to halves
				h, k := i/4, i%4
				copy(out[(h*4+k%2*2+k/2)*f.in:][:f.in], d[i*f.in:][:f.in])
			}
			return out
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := feature{c.name, c.config, &adapter.Adapter{Path: "synthetic", Space: naming.HF, Updates: c.updates}}
			base := baseOf(t, x)
			first, err := pass(t, x.adapter, "peft", base)
			if err != nil {
				t.Fatal(err)
			}
			there, err := pass(t, first, c.to, base)
			if err != nil {
				t.Fatal(err)
			}
			u := c.updates[len(c.updates)-1]
			f := factors{r: u.Rank, in: int(u.A.Cols), out: int(u.B.Rows), alpha: u.Scale.Alpha, a: wide(t, u.A), b: wide(t, u.B)}
			got := changes(t, there, base)[u.Target.String()+" "+string(u.Kind)]
			if len(got.delta) != f.in*f.out {
				t.Fatalf("%s is not there", u.Target)
			}
			size := 0.0
			for _, s := range got.size {
				size = max(size, s)
			}
			if d := farthest(got.delta, c.right(f)); d > size*4*oneRounding {
				t.Errorf("ΔW is %g off the right one", d)
			}
			if d := farthest(got.delta, c.wrong(f)); d < size/100 {
				t.Errorf("ΔW is the wrong one")
			}
		})
	}
}

func wide(t *testing.T, f adapter.Factor) []float64 {
	t.Helper()
	v, err := f.Load()
	if err != nil {
		t.Fatal(err)
	}
	out := make([]float64, len(v))
	for i, x := range v {
		out[i] = float64(x)
	}
	return out
}

// farthest is the largest difference of two elements.
func farthest(x, y []float64) float64 {
	worst := 0.0
	for i := range x {
		worst = max(worst, math.Abs(x[i]-y[i]))
	}
	return worst
}
