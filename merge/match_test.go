package merge_test

import (
	"bytes"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/quant/recipe"
	"github.com/loratool/loratool/tensor"
)

var trained = filepath.Join("..", "testdata", "trained")

// trainedFloats is the trained model as a GGUF file in float32.
func trainedFloats(t *testing.T) formats.Model {
	t.Helper()
	h := gguf.Header{KVs: gguf.KVs{
		{Key: "general.architecture", Value: gguf.Of("llama")}, {Key: "llama.block_count", Value: gguf.Of(uint32(4))},
		{Key: "llama.attention.head_count", Value: gguf.Of(uint32(8))}, {Key: "llama.attention.head_count_kv", Value: gguf.Of(uint32(4))},
	}}
	names := strings.NewReplacer("model.layers.", "blk.", "self_attn.q_proj", "attn_q", "self_attn.k_proj", "attn_k", "self_attn.v_proj", "attn_v",
		"self_attn.o_proj", "attn_output", "mlp.gate_proj", "ffn_gate", "mlp.up_proj", "ffn_up", "mlp.down_proj", "ffn_down", "model.embed_tokens", "token_embd")
	var specs []tensor.Spec
	var data [][]byte
	for _, x := range open(t, filepath.Join(trained, "base")).Tensors() {
		if len(x.Shape) != 2 || strings.Contains(x.Name, "lm_head") {
			continue
		}
		raw, err := x.Read()
		if err != nil {
			t.Fatal(err)
		}
		v, cols := floats(t, x.DType, raw), int(x.Shape[1])
		name := names.Replace(x.Name)
		for part, heads := range map[string]int{"attn_q": 8, "attn_k": 4} {
			if strings.Contains(name, part+".") { // halves of a head are interleaved
				w, d := make([]float32, len(v)), int(x.Shape[0])/heads
				for i := range int(x.Shape[0]) {
					head, j := i/d, i%d
					copy(w[(head*d+j%(d/2)*2+j/(d/2))*cols:][:cols], v[i*cols:])
				}
				v = w
			}
		}
		specs = append(specs, tensor.Spec{Name: name, DType: tensor.F32, Shape: x.Shape})
		data = append(data, bits(v))
	}
	return ggufFile(t, h, specs, data)
}

// ggufFile writes a model and opens it.
func ggufFile(t *testing.T, h gguf.Header, specs []tensor.Spec, data [][]byte) formats.Model {
	t.Helper()
	path := filepath.Join(t.TempDir(), "base.gguf")
	l, err := gguf.NewLayout(h, specs, layout.Options{Name: "base.gguf"})
	if err != nil {
		t.Fatal(err)
	}
	w, err := layout.Create(path, l, false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for i, b := range data {
		if err := w.WriteAt(i, b, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	return open(t, path)
}

// pure stores every tensor in one type.
func pure(t *testing.T, name string) *merge.Quantization {
	return &merge.Quantization{Recipe: recipeOf(t, name), Options: recipe.Options{Pure: true}}
}

// quantizedTo writes a model in one type and opens that.
func quantizedTo(t *testing.T, m formats.Model, name string) formats.Model {
	t.Helper()
	plan, err := merge.NewPlan(m, nil, merge.Options{Quantize: pure(t, name)})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name+".gguf")
	writePlan(t, plan, m.(formats.Writable), path)
	return open(t, path)
}

// relative is the relative error of the updated tensors against the float merge, together.
func relative(t testing.TB, specs map[string]tensor.Spec, data map[string][]byte, want map[string][]byte, stats []merge.Stats) float64 {
	t.Helper()
	var noise, whole float64
	for _, s := range stats {
		x, y := floats(t, specs[s.Tensor].DType, data[s.Tensor]), floats(t, tensor.F32, want[s.Tensor])
		for i := range y {
			d := float64(x[i]) - float64(y[i])
			noise += d * d
			whole += float64(y[i]) * float64(y[i])
		}
	}
	return math.Sqrt(noise / whole)
}

// TestMatchTrained merges a trained adapter into quantized bases of its model. Matched rounding keeps it in
// every module; rounding to the nearest loses most of it where the steps are wide.
func TestMatchTrained(t *testing.T) {
	adapters := []merge.Input{input(t, filepath.Join(trained, "adapters", "python-r8-small"), 1, dialect.Options{})}
	floats := trainedFloats(t)
	_, want, _ := merged(t, floats, adapters, merge.Options{}, merge.RunOptions{})
	for _, c := range []struct {
		recipe  string
		nearest float64 // rounding to the nearest keeps at most this, over all modules
	}{{"Q4_0", 0.35}, {"Q4_K", 0.45}, {"Q3_K", 0.2}, {"IQ4_NL", 0.45}, {"Q8_0", 1.1}} {
		t.Run(c.recipe, func(t *testing.T) {
			base := quantizedTo(t, floats, c.recipe)
			specs, data, stats := merged(t, base, adapters, merge.Options{}, merge.RunOptions{})
			_, near, rtn := merged(t, base, adapters, merge.Options{Requant: merge.RequantNearest}, merge.RunOptions{})
			if len(stats) != 28 || len(rtn) != 28 {
				t.Fatalf("%d and %d modules", len(stats), len(rtn))
			}
			worst, sum, lost, change, noise, nearNoise := 1.0, 0.0, 0.0, 0.0, 0.0, 0.0
			for i, s := range stats {
				worst = min(worst, s.Retention)
				if math.Abs(s.Retention-1) > 0.02 {
					t.Errorf("%s: retention %.4f", s.Module, s.Retention)
				}
				if s.Nearest == nil || s.Nearest.Retention != rtn[i].Retention || s.Nearest.Noise != rtn[i].Noise {
					t.Errorf("%s: nearest is said to keep %v, and keeps %.4f at %.4f", s.Module, s.Nearest, rtn[i].Retention, rtn[i].Noise)
				}
				sum += s.Retention / 28
				lost += rtn[i].Retention / 28
				change += s.Changed / 28
				noise += s.Noise * s.Noise
				nearNoise += rtn[i].Noise * rtn[i].Noise
			}
			err, plain := relative(t, specs, data, want, stats), relative(t, specs, near, want, stats)
			_, fresh, _ := merged(t, floats, adapters, merge.Options{Quantize: pure(t, c.recipe)}, merge.RunOptions{})
			t.Logf("%s: α %.4f, worst %.4f; nearest %.4f; changed %.1f %%; error %.4f, nearest %.4f, from floats %.4f; noise %.3f, nearest %.3f", c.recipe, sum, worst, lost, 100*change, err, plain, relative(t, specs, fresh, want, stats), math.Sqrt(noise/28), math.Sqrt(nearNoise/28))
			if sum < 0.98 || worst < 0.9 {
				t.Errorf("retention %.4f, worst %.4f", sum, worst)
			}
			if err > 1.2*plain {
				t.Errorf("the error is %.4f, that of the nearest codes %.4f", err, plain)
			}
			if lost > c.nearest {
				t.Errorf("rounding to the nearest keeps %.4f", lost)
			}
			if c.recipe != "Q4_0" {
				return
			}
			_, slabs, _ := merged(t, base, adapters, merge.Options{}, merge.RunOptions{Jobs: 3, MaxMemory: 1})
			for name := range data {
				if !bytes.Equal(slabs[name], data[name]) {
					t.Errorf("%s depends on slabs and workers", name)
				}
			}
		})
	}
}

// lowRank is an update with factors of fixed numbers.
func lowRank(module string, out, in, rank int64, size float32, seed uint32) adapter.Update {
	a, b := noise(int(rank*in), seed), noise(int(out*rank), seed+1)
	for i := range b {
		b[i] *= size / 0x1p-6 // against weights of the size of noise
	}
	return adapter.Update{Target: adapter.Target{Module: module, Param: "weight"}, Kind: adapter.LowRank, Layer: adapter.Linear, Rank: int(rank),
		A: adapter.FromValues(rank, in, a), B: adapter.FromValues(out, rank, b), Scale: adapter.Scale{Value: 1, Source: "test"}, Tensors: []string{module}}
}

// TestMatchStacked merges two adapters into a matrix whose rows are reordered, and into some experts of a stack:
// the error keeps away from the directions of both, and an expert without an update keeps its bytes.
func TestMatchStacked(t *testing.T) {
	const rows, cols, experts = 16, 512, 3
	v := noise(experts*rows*cols, 1)
	base := quantizedTo(t, ggufFile(t, gguf.Header{KVs: gguf.KVs{
		{Key: "general.architecture", Value: gguf.Of("llama")}, {Key: "llama.block_count", Value: gguf.Of(uint32(1))},
		{Key: "llama.attention.head_count", Value: gguf.Of(uint32(2))}, {Key: "llama.expert_count", Value: gguf.Of(uint32(experts))},
	}}, []tensor.Spec{
		{Name: "token_embd.weight", DType: tensor.F32, Shape: tensor.Shape{rows, cols}},
		{Name: "blk.0.attn_q.weight", DType: tensor.F32, Shape: tensor.Shape{rows, cols}},
		{Name: "blk.0.ffn_up_exps.weight", DType: tensor.F32, Shape: tensor.Shape{experts, rows, cols}},
	}, [][]byte{bits(v[:rows*cols]), bits(v[rows*cols : 2*rows*cols]), bits(v)}), "Q4_0")
	const q, expert = "model.layers.0.self_attn.q_proj", "model.layers.0.block_sparse_moe.experts."
	first := &adapter.Adapter{Path: "first", Space: naming.HF, Updates: []adapter.Update{
		lowRank(q, rows, cols, 4, 0.012, 10), lowRank(expert+"1.w3", rows, cols, 4, 0.012, 20)}}
	second := &adapter.Adapter{Path: "second", Space: naming.HF, Updates: []adapter.Update{
		lowRank(q, rows, cols, 3, 0.006, 30), lowRank(expert+"1.w3", rows, cols, 3, 0.006, 40), lowRank(expert+"2.w3", rows, cols, 3, 0.015, 50)}}
	inputs := []merge.Input{{Adapter: first, Scale: 1}, {Adapter: second, Scale: -1}}
	_, data, stats := merged(t, base, inputs, merge.Options{Requant: merge.RequantMatch}, merge.RunOptions{Jobs: 2})
	_, near, _ := merged(t, base, inputs, merge.Options{Requant: merge.RequantNearest}, merge.RunOptions{})
	_, want, _ := merged(t, base, inputs, merge.Options{DType: tensor.F32}, merge.RunOptions{})
	for _, s := range stats {
		t.Logf("%s: ratio %.3f, retention %.4f, nearest %.4f", s.Tensor, s.Ratio, s.Retention, s.Nearest.Retention)
		if math.Abs(s.Retention-1) > 0.02 || s.Nearest.Retention > 0.5 {
			t.Errorf("%s: retention %.4f, nearest %.4f", s.Tensor, s.Retention, s.Nearest.Retention)
		}
	}
	at := slices.IndexFunc(base.Tensors(), func(x tensor.Tensor) bool { return x.Name == "blk.0.ffn_up_exps.weight" })
	raw, err := base.Tensors()[at].Read()
	if err != nil {
		t.Fatal(err)
	}
	exps := data["blk.0.ffn_up_exps.weight"]
	if n := len(raw) / experts; !bytes.Equal(exps[:n], raw[:n]) || bytes.Equal(exps[n:2*n], raw[n:2*n]) {
		t.Error("an expert without an update changed, or one with an update did not")
	}
	along := func(b, want []byte, first int, u adapter.Update) (sum float64) {
		a, err := u.A.Load()
		if err != nil {
			t.Fatal(err)
		}
		x, y := floats(t, tensor.Q4_0, b), floats(t, tensor.F32, want)
		for i := first; i < first+rows; i++ {
			for j := range int(u.A.Rows) {
				var d float64
				for k := range cols {
					d += (float64(x[i*cols+k]) - float64(y[i*cols+k])) * float64(a[j*cols+k])
				}
				sum += d * d
			}
		}
		return math.Sqrt(sum)
	}
	for _, c := range []struct {
		tensor string
		first  int
		update adapter.Update
	}{
		{"blk.0.attn_q.weight", 0, first.Updates[0]}, {"blk.0.attn_q.weight", 0, second.Updates[0]},
		{"blk.0.ffn_up_exps.weight", rows, first.Updates[1]}, {"blk.0.ffn_up_exps.weight", rows, second.Updates[1]},
		{"blk.0.ffn_up_exps.weight", 2 * rows, second.Updates[2]},
	} {
		got, plain := along(data[c.tensor], want[c.tensor], c.first, c.update), along(near[c.tensor], want[c.tensor], c.first, c.update)
		if got > 0.05*plain {
			t.Errorf("%s, rows from %d: the error along the adapter is %.3g, of the nearest codes %.3g", c.tensor, c.first, got, plain)
		}
	}
}

// TestMatchRefused asks for matched rounding where it cannot be done.
func TestMatchRefused(t *testing.T) {
	const rows, cols = 16, 256
	v := noise(rows*cols, 1)
	floats := llamaFile(t, []plain{{"token_embd.weight", tensor.Shape{rows, cols}, v}, {"blk.0.attn_q.weight", tensor.Shape{rows, cols}, v}})
	const q = "model.layers.0.self_attn.q_proj"
	for name, c := range map[string]struct {
		base   string
		update adapter.Update
		why    string
	}{
		"codes of several elements": {"IQ3_S", lowRank(q, rows, cols, 4, 0.02, 1), "several elements share"},
		"rank of half a row":        {"Q4_0", lowRank(q, rows, cols, 129, 0.02, 1), "too short"},
	} {
		t.Run(name, func(t *testing.T) {
			base := quantizedTo(t, floats, c.base)
			inputs := []merge.Input{{Adapter: &adapter.Adapter{Path: "a", Space: naming.HF, Updates: []adapter.Update{c.update}}, Scale: 1}}
			_, err := merge.NewPlan(base, inputs, merge.Options{Resolve: merge.Resolvers(base), Requant: merge.RequantMatch})
			if f := finding.Of(err); f == nil || f.Code != "merge.requantize" || !strings.Contains(f.Message, c.why) {
				t.Errorf("error %v", err)
			}
			_, _, stats := merged(t, base, inputs, merge.Options{}, merge.RunOptions{})
			if len(stats) != 1 || stats[0].Nearest != nil {
				t.Errorf("%+v", stats)
			}
		})
	}
}
