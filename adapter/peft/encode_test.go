package peft

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// reread decodes what Encode made, as if it had been written to files.
func reread(t *testing.T, f *Files, opt Options) *adapter.Adapter {
	t.Helper()
	var ts []tensor.Tensor
	for _, w := range f.Weights {
		b, err := w.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		ts = append(ts, tensor.Tensor{Spec: w.Spec, Src: bytes.NewReader(b), Size: int64(len(b))})
	}
	a, err := Decode("again", "adapter_config.json", f.Config, "adapter_model.safetensors", ts, opt)
	if err != nil {
		t.Fatalf("%v\n%s", err, f.Config)
	}
	return a
}

func load(t *testing.T, f adapter.Factor) []float32 {
	t.Helper()
	if !f.Present() {
		return nil
	}
	v, err := f.Load()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// sameUpdates compares two adapters update by update, bit for bit in the factors.
func sameUpdates(t *testing.T, got, want *adapter.Adapter) {
	t.Helper()
	id := func(u *adapter.Update) string {
		return fmt.Sprint(u.Target, " ", u.Kind, " ", u.Layer, " ", u.Expert, "/", u.Experts)
	}
	rest := map[string]*adapter.Update{}
	for i := range got.Updates {
		rest[id(&got.Updates[i])] = &got.Updates[i]
	}
	for i := range want.Updates {
		w := &want.Updates[i]
		g := rest[id(w)]
		if g == nil {
			t.Errorf("%s is missing", id(w))
			continue
		}
		delete(rest, id(w))
		if g.Rank != w.Rank || math.Abs(g.Scale.Value-w.Scale.Value) > 1e-15*math.Abs(w.Scale.Value) || !slices.Equal(g.Index, w.Index) || g.Swapped != w.Swapped {
			t.Errorf("%s: got rank %d, scale %v; expected %d, %v", id(w), g.Rank, g.Scale, w.Rank, w.Scale)
		}
		for _, f := range [][2]adapter.Factor{{g.A, w.A}, {g.B, w.B}, {g.Magnitude, w.Magnitude}, {g.Value, w.Value}} {
			if f[0].Rows != f[1].Rows || f[0].Cols != f[1].Cols || !slices.Equal(load(t, f[0]), load(t, f[1])) {
				t.Errorf("%s: a factor differs", id(w))
			}
		}
	}
	for k := range rest {
		t.Errorf("%s is new", k)
	}
}

// TestRoundTripGoldens decodes, encodes and decodes every LoRA case of the corpus.
func TestRoundTripGoldens(t *testing.T) {
	n := 0
	for _, c := range goldenCases(t) {
		dir := corpus.Path(t, "peft", c.Dir)
		if _, err := os.Stat(filepath.Join(dir, ConfigName)); err != nil || c.Type != "LORA" {
			continue
		}
		a, err := Open(dir, c.options())
		if err != nil {
			continue // TestGoldenMerges says which
		}
		t.Run(c.ID, func(t *testing.T) {
			defer a.Close()
			f, err := Encode(a, EncodeOptions{})
			if err != nil {
				t.Fatal(err)
			}
			sameUpdates(t, reread(t, f, c.options()), a)
			n++
		})
	}
	if n < 80 {
		t.Errorf("only %d adapters went round", n)
	}
}

// random makes an adapter as other dialects would decode it.
func random(r *rand.Rand) *adapter.Adapter {
	matrix := func(rows, cols int64) adapter.Factor {
		v := make([]float32, rows*cols)
		for i := range v {
			v[i] = float32(r.NormFloat64())
		}
		return adapter.FromValues(rows, cols, v)
	}
	a := &adapter.Adapter{Dialect: "kohya", Space: naming.HF, BaseModel: "some/base"}
	for layer := range 1 + r.IntN(4) {
		for _, m := range []string{"self_attn.q_proj", "self_attn.o_proj", "mlp.fc.0", "proj"} {
			if r.IntN(4) == 0 {
				continue
			}
			rank := int64(1 + r.IntN(5))
			if r.IntN(2) == 0 {
				rank = 4
			}
			alpha := []float64{8, 8, 8, 2.5, 0.3, -1}[r.IntN(6)]
			u := adapter.Update{Target: adapter.Target{Module: fmt.Sprintf("model.layers.%d.%s", layer, m), Param: "weight"},
				Kind: adapter.LowRank, Layer: adapter.Linear, Rank: int(rank), A: matrix(rank, 6), B: matrix(5, rank)}
			u.Scale = adapter.Scale{Value: alpha / float64(rank), Alpha: alpha, Rank: int(rank)}
			if r.IntN(5) == 0 {
				u.Scale = adapter.Scale{Value: r.Float64()} // a dialect with a direct multiplier
			}
			a.Updates = append(a.Updates, u)
		}
	}
	if r.IntN(2) == 0 {
		a.Updates = append(a.Updates, adapter.Update{Target: adapter.Target{Module: "proj", Param: "weight"}, Kind: adapter.LowRank, Layer: adapter.Linear,
			Rank: 2, A: matrix(2, 6), B: matrix(5, 2), Scale: adapter.Scale{Value: 1, Alpha: 2, Rank: 2}})
	}
	for e := range 3 {
		for _, p := range []string{"gate_up_proj", "down_proj"} {
			a.Updates = append(a.Updates, adapter.Update{Target: adapter.Target{Module: "mlp.experts", Param: p}, Kind: adapter.LowRank, Layer: adapter.Linear,
				Rank: 2, A: matrix(2, 4), B: matrix(7, 2), Scale: adapter.Scale{Value: 3, Alpha: 6, Rank: 2}, Expert: e, Experts: 3, Swapped: true})
		}
	}
	a.Updates = append(a.Updates,
		adapter.Update{Target: adapter.Target{Module: "lm_head", Param: "weight"}, Kind: adapter.Replace, Layer: adapter.Linear, Scale: replacement, Value: matrix(3, 4)},
		adapter.Update{Target: adapter.Target{Module: "model.embed_tokens", Param: "weight"}, Kind: adapter.Rows, Layer: adapter.Embedding, Scale: replacement, Value: matrix(2, 4), Index: []int64{7, 3}})
	return a
}

// TestRoundTripRandom is the property that an encoded adapter decodes to the same updates, for patterns,
// scales and stacks that no file of the corpus has.
func TestRoundTripRandom(t *testing.T) {
	for seed := range uint64(200) {
		a := random(rand.New(rand.NewPCG(seed, 1)))
		f, err := Encode(a, EncodeOptions{})
		if err != nil {
			t.Fatal(err)
		}
		again := reread(t, f, Options{})
		sameUpdates(t, again, a)
		if again.BaseModel != a.BaseModel {
			t.Errorf("base model is %q", again.BaseModel)
		}
		if t.Failed() {
			t.Fatalf("seed %d\n%s", seed, f.Config)
		}
	}
}

func TestEncodeTypes(t *testing.T) {
	a := random(rand.New(rand.NewPCG(1, 1)))
	f, err := Encode(a, EncodeOptions{DType: tensor.BF16, BaseModel: "other/base"})
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range f.Weights {
		if n, err := w.Spec.Bytes(); w.DType != tensor.BF16 || err != nil {
			t.Errorf("%s is %s", w.Name, w.DType)
		} else if b, err := w.Bytes(); err != nil || int64(len(b)) != n {
			t.Errorf("%s: %d bytes, %v", w.Name, len(b), err)
		}
	}
	if !bytes.Contains(f.Config, []byte("\n  \"base_model_name_or_path\": \"other/base\",\n  \"bias\": \"none\",\n")) {
		t.Errorf("configuration is\n%s", f.Config)
	}
}

func TestEncodeRefuses(t *testing.T) {
	one := adapter.FromValues(1, 1, []float32{1})
	low := func(module string, kind adapter.Kind) adapter.Update {
		return adapter.Update{Target: adapter.Target{Module: module, Param: "weight"}, Kind: kind, Layer: adapter.Linear, Rank: 1, A: one, B: one, Magnitude: one}
	}
	expert := low("experts", adapter.LowRank)
	expert.Param, expert.Experts = "w", 2
	conv := low("conv", adapter.LowRank)
	conv.Layer = adapter.Conv
	for name, a := range map[string]adapter.Adapter{
		"GGUF names":         {Space: naming.GGUF},
		"one target twice":   {Space: naming.HF, Updates: []adapter.Update{low("a", adapter.LowRank), low("a", adapter.LowRank)}},
		"DoRA in part":       {Space: naming.HF, Updates: []adapter.Update{low("a", adapter.LowRank), low("b", adapter.DoRA)}},
		"half a stack":       {Space: naming.HF, Updates: []adapter.Update{expert}},
		"unknown kernel":     {Space: naming.HF, Updates: []adapter.Update{conv}},
		"bias alone":         {Space: naming.HF, Updates: []adapter.Update{{Target: adapter.Target{Module: "a", Param: "bias"}, Kind: adapter.Bias, Value: one}}},
		"an unknown formula": {Space: naming.HF, Updates: []adapter.Update{{Target: adapter.Target{Module: "a", Param: "weight"}, Kind: "loha"}}},
	} {
		if _, err := Encode(&a, EncodeOptions{}); err == nil || finding.Of(err).Code != "adapter.unsupported_feature" {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
