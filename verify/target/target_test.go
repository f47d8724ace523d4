package target

import (
	"fmt"
	"math"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/internal/applied"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

func matrix(rows, cols int64) adapter.Factor {
	v := make([]float32, rows*cols)
	for i := range v {
		v[i] = float32(i%7) - 2.5
	}
	return adapter.FromValues(rows, cols, v)
}

// low makes an update of a module of layer 0.
func low(module string, rank int64, scale float64) adapter.Update {
	return adapter.Update{Target: adapter.Target{Module: "model.layers.0." + module, Param: "weight"}, Kind: adapter.LowRank, Layer: adapter.Linear,
		Rank: int(rank), A: matrix(rank, 6), B: matrix(5, rank), Scale: adapter.Scale{Value: scale, Alpha: scale * float64(rank), Rank: int(rank)}}
}

func with(change func(u *adapter.Update)) adapter.Update {
	u := low("self_attn.v_proj", 8, 2)
	change(&u)
	return u
}

func TestFindings(t *testing.T) {
	all := []adapter.Update{low("self_attn.q_proj", 8, 2), low("self_attn.k_proj", 8, 2), low("self_attn.v_proj", 8, 2)}
	for _, c := range []struct {
		name    string
		updates []adapter.Update
		want    map[string]string // target → codes and levels
	}{
		{"plain", all, map[string]string{"vllm": "", "sglang": "", "lorax": "", "llama.cpp": "", "mlx": "", "trtllm": "", "ort": "", "openvino": ""}},
		{"rank 24", []adapter.Update{low("self_attn.o_proj", 24, 1)}, map[string]string{"vllm": "target.rank warning ", "trtllm": "", "sglang": ""}},
		{"rank 96", []adapter.Update{low("self_attn.o_proj", 96, 1)}, map[string]string{"vllm": "target.rank warning ", "trtllm": "target.rank warning ", "lorax": ""}},
		{"rank 1024", []adapter.Update{low("self_attn.o_proj", 1024, 1)}, map[string]string{"vllm": "target.rank error ", "lorax": "target.rank error ", "llama.cpp": ""}},
		{"DoRA", []adapter.Update{with(func(u *adapter.Update) { u.Kind = adapter.DoRA })}, map[string]string{"vllm": "target.dora error ", "llama.cpp": "target.dora error ", "mlx": ""}},
		{"modules_to_save", append(all, with(func(u *adapter.Update) { u.Kind, u.Module = adapter.Replace, "lm_head" })), map[string]string{"vllm": "target.saved_modules error ", "mlx": "target.saved_modules error ", "openvino": ""}},
		{"token rows", append(all, with(func(u *adapter.Update) { u.Kind = adapter.Rows })), map[string]string{"vllm": "target.token_rows error "}},
		{"bias", append(all, with(func(u *adapter.Update) { u.Kind, u.Param = adapter.Bias, "bias" })), map[string]string{"llama.cpp": "target.bias error "}},
		{"embedding", []adapter.Update{with(func(u *adapter.Update) { u.Layer, u.Module = adapter.Embedding, "model.embed_tokens" })}, map[string]string{"ort": "target.embedding error ", "vllm": ""}},
		{"norm", append(all, with(func(u *adapter.Update) { u.Kind, u.Module = adapter.Replace, "model.norm" })), map[string]string{"llama.cpp": "target.norms warning ", "vllm": "target.saved_modules error "}},
		{"DoRA of an embedding", []adapter.Update{with(func(u *adapter.Update) { u.Kind, u.Layer = adapter.DoRA, adapter.Embedding })}, map[string]string{"mlx": "target.dora error ", "vllm": "target.dora error "}},
		{"output layer", append(all, with(func(u *adapter.Update) { u.Module = "lm_head" })), map[string]string{"trtllm": "target.module error ", "vllm": "", "sglang": "", "lorax": "", "mlx": "", "llama.cpp": "", "ort": ""}},
		{"packed projections", []adapter.Update{low("self_attn.qkv_proj", 8, 2), low("mlp.gate_up_proj", 8, 2)}, map[string]string{"vllm": "", "sglang": "", "trtllm": ""}},
		{"gate without up", []adapter.Update{low("mlp.gate_proj", 8, 2)}, map[string]string{"sglang": "target.incomplete_group error ", "vllm": "", "trtllm": ""}},
		{"stacked experts", []adapter.Update{with(func(u *adapter.Update) { u.Module, u.Param, u.Experts = "model.layers.0.mlp.experts", "down_proj", 4 })},
			map[string]string{"vllm": "", "sglang": "target.experts error ", "lorax": "target.experts error ", "trtllm": "target.experts error ", "ort": "target.experts error ", "openvino": "target.experts error ", "llama.cpp": "", "mlx": ""}},
		{"convolution", []adapter.Update{with(func(u *adapter.Update) { u.Layer = adapter.Conv })}, map[string]string{"vllm": "target.convolution error ", "mlx": "target.convolution error ", "ort": "target.convolution error "}},
		{"rank 1", []adapter.Update{low("self_attn.o_proj", 1, 1)}, map[string]string{"vllm": "", "lorax": "", "trtllm": ""}},
		{"rank 512", []adapter.Update{low("self_attn.o_proj", 512, 1)}, map[string]string{"vllm": "target.rank warning ", "lorax": "target.rank error "}},
		{"rank 513", []adapter.Update{low("self_attn.o_proj", 513, 1)}, map[string]string{"vllm": "target.rank error "}},
		{"q without k and v", all[:1], map[string]string{"sglang": "target.incomplete_group error ", "trtllm": "target.incomplete_group warning ", "vllm": ""}},
		{"another algorithm", []adapter.Update{with(func(u *adapter.Update) { u.Kind = "loha" })}, map[string]string{"vllm": "target.kind error "}},
	} {
		a := &adapter.Adapter{Space: naming.HF, Updates: c.updates}
		for name, want := range c.want {
			got := ""
			for _, f := range Find(name).Check(a) {
				got += fmt.Sprintf("%s %s ", f.Code, f.Level)
				if f.Hint == "" || f.Module == "" {
					t.Errorf("%s for %s: no hint or module: %+v", c.name, name, f)
				}
			}
			if got != want {
				t.Errorf("%s for %s: got %q, expected %q", c.name, name, got, want)
			}
		}
	}
}

// TestRankSteps checks that the advice for vLLM names a value that its option may have.
func TestRankSteps(t *testing.T) {
	for rank, want := range map[int64]string{17: "32", 32: "32", 65: "128", 300: "320", 321: "512"} {
		a := &adapter.Adapter{Space: naming.HF, Updates: []adapter.Update{low("self_attn.o_proj", rank, 1)}}
		if f := Find("vllm").Check(a); len(f) != 1 || f[0].Hint != "start it with --max-lora-rank "+want {
			t.Errorf("rank %d: %+v", rank, f)
		}
	}
}

// TestActivated checks that only a program that knows invocation tokens gets an activated LoRA.
func TestActivated(t *testing.T) {
	a := &adapter.Adapter{Space: naming.HF, Updates: []adapter.Update{low("self_attn.o_proj", 8, 2)}, Metadata: [][2]string{{adapter.InvocationTokens, "1,2"}}}
	for _, name := range Names() {
		f := Find(name).Check(a)
		if name == "llama.cpp" && len(f) != 0 || name != "llama.cpp" && (len(f) != 1 || f[0].Code != "target.activation" || f[0].Level != finding.Error) {
			t.Errorf("%s: got %+v", name, f)
		}
	}
}

// TestLoads checks what a program makes of files as they are.
func TestLoads(t *testing.T) {
	named := func(u adapter.Update, names ...string) adapter.Update {
		u.Tensors = names
		return u
	}
	const q = "model.layers.0.self_attn.q_proj"
	root := low("self_attn.o_proj", 16, 4) // lora_alpha 16 / sqrt(16)
	for _, c := range []struct {
		name    string
		stated  adapter.Scale
		updates []adapter.Update
		want    map[string]string
	}{
		{"patterns", adapter.Scale{}, []adapter.Update{low("self_attn.o_proj", 8, 2), low("mlp.down_proj", 4, 4)},
			map[string]string{"vllm": "target.scale", "sglang": "target.scale", "lorax": "target.scale", "llama.cpp": "target.dialect", "openvino": "target.scale", "trtllm": "target.scale", "ort": "target.dialect", "mlx": "target.dialect"}},
		// Every module has a pattern of its own, and all the same scale, which is not lora_alpha / r.
		{"patterns for all", adapter.Scale{Value: 1, Alpha: 1, Rank: 1}, []adapter.Update{low("self_attn.o_proj", 8, 2), low("mlp.down_proj", 4, 2)}, map[string]string{"vllm": "target.scale"}},
		{"rsLoRA", adapter.Scale{Value: 4, Alpha: 16, Rank: 16}, []adapter.Update{root}, map[string]string{"vllm": "", "sglang": "target.rslora", "lorax": "target.rslora", "trtllm": "target.rslora"}},
		{"one scale", adapter.Scale{Value: 1, Alpha: 8, Rank: 8}, []adapter.Update{low("self_attn.o_proj", 8, 1)}, map[string]string{"vllm": "", "sglang": "", "lorax": "", "openvino": ""}},
		{"name of the adapter", adapter.Scale{}, []adapter.Update{named(low("self_attn.o_proj", 8, 1), "base_model.model."+q+".lora_A.default.weight")}, map[string]string{"vllm": "target.names", "lorax": "target.names", "sglang": ""}},
		{"no prefix", adapter.Scale{}, []adapter.Update{named(low("self_attn.o_proj", 8, 1), q+".lora_A.weight", q+".lora_B.weight")}, map[string]string{"vllm": "", "lorax": "target.names"}},
		{"embedding", adapter.Scale{}, []adapter.Update{named(with(func(u *adapter.Update) { u.Layer = adapter.Embedding }), "base_model.model.model.embed_tokens.lora_embedding_A")}, map[string]string{"vllm": ""}},
	} {
		a := &adapter.Adapter{Space: naming.HF, Dialect: "peft", Updates: c.updates, Stated: c.stated}
		for name, want := range c.want {
			f := Find(name).Loads(a)
			switch {
			case want == "" && len(f) == 0:
			case len(f) != 1 || f[0].Code != want || f[0].Level != finding.Error || f[0].Hint == "":
				t.Errorf("%s for %s: got %+v, expected %s", c.name, name, f, want)
			}
		}
	}
	if Find("excel") != nil || len(Names()) != len(targets) {
		t.Error("the names are wrong")
	}
}

// TestUniform writes an adapter of several ranks and scales for a target that knows one of each.
func TestUniform(t *testing.T) {
	a := &adapter.Adapter{Space: naming.HF, Dialect: "peft", Updates: []adapter.Update{low("self_attn.o_proj", 8, 2), low("mlp.down_proj", 4, 0.3), low("mlp.fc1", 8, 2)}}
	u := uniform(a)
	if f := Find("vllm").Loads(u); len(f) != 0 {
		t.Errorf("what was made for vLLM has findings: %v", f)
	}
	for i := range a.Updates {
		if u.Updates[i].Rank != 8 || u.Updates[i].Scale.Value != 2 {
			t.Errorf("rank %d, scale %v", u.Updates[i].Rank, u.Updates[i].Scale)
		}
		got, want := applied.Product(t, &u.Updates[i]), applied.Product(t, &a.Updates[i])
		for k := range want {
			if d := math.Abs(got[k] - want[k]); d > 0x1p-24*200 { // the terms of a sum amount to less than 200
				t.Fatalf("update %d, element %d is %g, expected %g", i, k, got[k], want[k])
			}
		}
	}
	out, err := Find("vllm").Encode(a, dialect.Target{Name: "out"})
	if err != nil || len(out.Weights) != 6 {
		t.Fatal(err)
	}
	for _, w := range out.Weights {
		if w.DType != tensor.F32 || w.Shape[0] != 8 && w.Shape[1] != 8 {
			t.Errorf("%s is %s %v", w.Name, w.DType, w.Shape)
		}
	}
	a.Updates[0].Kind = adapter.Rows
	if _, err := Find("vllm").Encode(a, dialect.Target{Name: "out"}); finding.Of(err) == nil || finding.Of(err).Code != "target.token_rows" {
		t.Errorf("got %v", err)
	}
}

// TestFits asks for a base that an adapter does not belong to, and one that it does.
func TestFits(t *testing.T) {
	const tiny = "../../testdata/tiny-llama/"
	q := low("self_attn.q_proj", 2, 1)
	q.A, q.B = matrix(2, 64), matrix(64, 2)
	a := &adapter.Adapter{Space: naming.HF, Dialect: "peft", Updates: []adapter.Update{q}}
	if f := Find("llama.cpp").Fits(a, tiny+"base"); len(f) != 0 {
		t.Errorf("got %v", f)
	}
	a.Updates[0].Module = "model.layers.0.mixer.in_proj"
	if f := Find("llama.cpp").Fits(a, tiny+"base"); len(f) != 1 || f[0].Code != "match.unmatched_target" {
		t.Errorf("got %v", f)
	}
	if f := Find("ort").Fits(a, tiny+"base.onnx"); len(f) != 1 || f[0].Code != "match.no_inputs" {
		t.Errorf("got %v", f)
	}
}
