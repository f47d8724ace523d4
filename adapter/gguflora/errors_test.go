package gguflora

import (
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/internal/applied"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

func f32(name string, shape ...int64) adapter.Weight {
	n, _ := tensor.Shape(shape).Elements()
	return adapter.Weight{Spec: tensor.Spec{Name: name, DType: tensor.F32, Shape: shape}, Values: adapter.FromValues(1, n, make([]float32, n))}
}

// TestFileErrors builds sound GGUF files that are wrong as adapters.
func TestFileErrors(t *testing.T) {
	good := []adapter.Weight{f32("blk.0.attn_q.weight.lora_a", 2, 6), f32("blk.0.attn_q.weight.lora_b", 4, 2)}
	head := func(kv ...gguf.KV) gguf.KVs {
		kvs := gguf.KVs{{Key: keyArch, Value: gguf.Of("llama")}, {Key: keyType, Value: gguf.Of("adapter")}, {Key: keyKind, Value: gguf.Of("lora")}, {Key: keyAlpha, Value: gguf.Of(float32(4))}}
		for _, x := range kv {
			kvs.Set(x.Key, x.Value)
		}
		return kvs
	}
	for name, c := range map[string]struct {
		kvs     gguf.KVs
		weights []adapter.Weight
		code    string
		warning bool
	}{
		"a model":           {head(gguf.KV{Key: keyType, Value: gguf.Of("model")}), good, "not_an_adapter", false},
		"another kind":      {head(gguf.KV{Key: keyKind, Value: gguf.Of("ia3")}), good, "unsupported_adapter", false},
		"alpha NaN":         {head(gguf.KV{Key: keyAlpha, Value: gguf.Of(float32(math.NaN()))}), good, "bad_alpha", false},
		"alpha of u32":      {head(gguf.KV{Key: keyAlpha, Value: gguf.Of(uint32(4))}), good, "bad_alpha", false},
		"tokens of i32":     {head(gguf.KV{Key: keyTokens, Value: gguf.ArrayOf([]int32{1})}), good, "bad_alora", false},
		"nothing":           {head(), nil, "empty_adapter", false},
		"A alone":           {head(), good[:1], "missing_pair", false},
		"B alone":           {head(), good[1:], "missing_pair", false},
		"stray":             {head(), append(slices.Clone(good), f32("blk.0.attn_q.weight", 4, 6)), "unexpected_tensor", false},
		"not transposed":    {head(), []adapter.Weight{f32("x.weight.lora_a", 6, 2), f32("x.weight.lora_b", 4, 2)}, "rank_mismatch", false},
		"rank 0":            {head(), []adapter.Weight{f32("x.weight.lora_a", 0, 6), f32("x.weight.lora_b", 4, 0)}, "rank_zero", false},
		"other experts":     {head(), []adapter.Weight{f32("x.weight.lora_a", 3, 2, 6), f32("x.weight.lora_b", 2, 4, 2)}, "shape_mismatch", false},
		"stacked embedding": {head(), []adapter.Weight{f32("token_embd.weight.lora_a", 2, 6, 2), f32("token_embd.weight.lora_b", 2, 4, 2)}, "shape_mismatch", false},
		"empty outputs":     {head(), []adapter.Weight{f32("x.weight.lora_a", 2, 6), f32("x.weight.lora_b", 0, 2)}, "shape_mismatch", false},
		"alpha 0":           {head(gguf.KV{Key: keyAlpha, Value: gguf.Of(float32(0))}), good, "alpha_zero", true},
		"alpha below 0":     {head(gguf.KV{Key: keyAlpha, Value: gguf.Of(float32(-4))}), good, "alpha_negative", true},
		"alpha missing":     {head()[:3], good, "missing_alpha", true},
		"a norm vector":     {head(), append(slices.Clone(good), f32("blk.0.attn_norm.weight", 6)), "peer_ignores", true},
	} {
		path := filepath.Join(t.TempDir(), "a.gguf")
		if err := os.WriteFile(path, bytesOf(t, &File{Header: gguf.Header{KVs: c.kvs, KeepDims: true}, Weights: c.weights}), 0o644); err != nil {
			t.Fatal(err)
		}
		a, err := Open(path)
		if !c.warning {
			if f := finding.Of(err); f == nil || f.Code != "adapter."+c.code {
				t.Errorf("%s: got %v, expected %s", name, err, c.code)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !hasWarning(a, c.code) {
			t.Errorf("%s: findings %v, expected %s", name, a.Findings, c.code)
		}
		scale := map[string]float64{"alpha 0": 1, "alpha missing": 1, "alpha below 0": -2, "a norm vector": 2}[name]
		if u := a.Updates[0]; u.Scale.Value != scale {
			t.Errorf("%s: scale %v, expected %v", name, u.Scale, scale)
		}
		a.Close()
	}
}

// TestInvocationTokens checks that an activated LoRA keeps its tokens and is marked as not mergeable.
func TestInvocationTokens(t *testing.T) {
	a := &adapter.Adapter{Space: naming.HF, Metadata: [][2]string{{adapter.InvocationTokens, "5,6,7"}}, Updates: []adapter.Update{{
		Target: adapter.Target{Module: "model.layers.0.self_attn.o_proj", Param: "weight"}, Kind: adapter.LowRank, Layer: adapter.Linear, Rank: 2,
		Scale: adapter.Scale{Value: 1, Alpha: 2, Rank: 2}, A: adapter.FromValues(2, 8, make([]float32, 16)), B: adapter.FromValues(8, 2, make([]float32, 16))}}}
	f, err := Encode(a, smallLlama)
	if err != nil {
		t.Fatal(err)
	}
	again := write(t, f)
	if again.NoMerge == nil || !slices.Contains(again.Metadata, [2]string{adapter.InvocationTokens, "5,6,7"}) {
		t.Errorf("no merge: %v, metadata %v", again.NoMerge, again.Metadata)
	}
	a.Metadata[0][1] = "5,x"
	if _, err := Encode(a, smallLlama); finding.Of(err) == nil {
		t.Errorf("got %v", err)
	}
}

// TestFusedExperts splits the stack gate_up_proj of Qwen3 into gate and up, from factors that lie as the
// module computes, and from those of an old PEFT that laid A over the output.
func TestFusedExperts(t *testing.T) {
	const experts, width, hidden = 2, 3, 4
	opt := Options{Arch: "qwen3moe", HP: naming.HyperParameters{Layers: 1, Heads: 2, KVHeads: 2, HeadDim: 2, Experts: experts, ExpertWidth: width}}
	r := rand.New(rand.NewPCG(11, 12))
	for _, turned := range []bool{false, true} {
		a := &adapter.Adapter{Space: naming.HF}
		want := map[string][]float64{}
		for e := range experts {
			u := adapter.Update{Target: adapter.Target{Module: "model.layers.0.mlp.experts", Param: "gate_up_proj"}, Kind: adapter.LowRank, Layer: adapter.Linear,
				Rank: 2, Scale: adapter.Scale{Value: 0.5, Alpha: 1, Rank: 2}, Expert: e, Experts: experts, A: values(r, 2, hidden), B: values(r, 2*width, 2)}
			d := applied.Product(t, &u)
			want["blk.0.ffn_gate_exps"] = append(want["blk.0.ffn_gate_exps"], d[:width*hidden]...)
			want["blk.0.ffn_up_exps"] = append(want["blk.0.ffn_up_exps"], d[width*hidden:]...)
			if turned {
				u.A, u.B, u.Swapped = u.B.Transpose(), u.A.Transpose(), true
			}
			a.Updates = append(a.Updates, u)
		}
		f, err := Encode(a, opt)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string][]float64{}
		for _, u := range write(t, f).Updates {
			got[u.Module] = append(got[u.Module], applied.Product(t, &u)...)
		}
		for module := range want {
			near(t, module, got[module], want[module], 1e-6)
		}
		// Another width fits neither way round.
		wide := opt
		wide.HP.ExpertWidth = 5
		if _, err := Encode(a, wide); finding.Of(err) == nil || finding.Of(err).Code != "adapter.shape_mismatch" {
			t.Errorf("got %v", err)
		}
	}
}

// TestNorms checks that a Gemma norm is stored with 1 added, as llama.cpp's converter does.
func TestNorms(t *testing.T) {
	a := &adapter.Adapter{Space: naming.HF, Updates: []adapter.Update{{Target: adapter.Target{Module: "model.norm", Param: "weight"}, Kind: adapter.Replace, Value: adapter.FromValues(1, 2, []float32{0.5, -1})}}}
	for arch, want := range map[string][]float32{"llama": {0.5, -1}, "gemma2": {1.5, 0}} {
		opt := smallLlama
		opt.Arch = arch
		f, err := Encode(a, opt)
		if err != nil {
			t.Fatal(err)
		}
		v, err := f.Weights[0].Values.Load()
		if err != nil || f.Weights[0].Name != "output_norm.weight" || !slices.Equal(v, want) {
			t.Errorf("%s: %s is %v, %v", arch, f.Weights[0].Name, v, err)
		}
	}
}
