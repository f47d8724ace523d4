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
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/trained"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/quant/recipe"
	"github.com/loratool/loratool/tensor"
)

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
	if testing.Short() {
		t.Skip("takes long with the race detector or an emulator")
	}
	adapters := []merge.Input{input(t, trained.Adapter(t), 1, dialect.Options{})}
	floats := trained.GGUF(t)
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
	base := quantizedTo(t, trained.GGUFFile(t, gguf.Header{KVs: gguf.KVs{
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

// TestMatchKinds gives the trained adapter other forms, and merges those: what a magnitude scales goes into the scales
// of a row, and a difference without factors has the directions that hold most of it.
func TestMatchKinds(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long with the race detector or an emulator")
	}
	in := input(t, trained.Adapter(t), 1, dialect.Options{})
	weights := trained.Weights(t)
	form := func(change func(u *adapter.Update, w, sum []float32)) []merge.Input {
		a := *in.Adapter
		a.Updates = slices.Clone(a.Updates)
		for i := range a.Updates {
			u := &a.Updates[i]
			down, _ := u.A.Load()
			up, _ := u.B.Load()
			w := weights[u.Module+".weight"]
			sum := slices.Clone(w)
			kernel.NewLowRank(up, down, int(u.B.Rows), int(u.A.Cols), u.Rank, float32(u.Scale.Value)).Apply(sum, int(u.A.Cols), 0, int(u.B.Rows))
			change(u, w, sum)
		}
		return []merge.Input{{Adapter: &a, Scale: 1}}
	}
	base := quantizedTo(t, trained.GGUF(t), "Q4_0")
	for _, c := range []struct {
		name string
		in   []merge.Input
	}{
		{"DoRA", form(func(u *adapter.Update, _, sum []float32) {
			m, r := make([]float32, u.B.Rows), noise(int(u.B.Rows), 3)
			for i := range m {
				var square float64
				for _, x := range sum[int64(i)*u.A.Cols:][:u.A.Cols] {
					square += float64(x) * float64(x)
				}
				m[i] = float32(math.Sqrt(square)) * (1 + 0.02*r[i]*0x1p6)
			}
			u.Kind, u.Magnitude = adapter.DoRA, adapter.FromValues(u.B.Rows, 1, m)
		})},
		{"full difference", form(func(u *adapter.Update, w, sum []float32) {
			for i := range sum {
				sum[i] -= w[i]
			}
			u.Kind, u.Value, u.Scale = adapter.Full, adapter.FromValues(u.B.Rows, u.A.Cols, sum), adapter.Scale{Value: 1}
			u.A, u.B, u.Rank = adapter.Factor{}, adapter.Factor{}, 0
		})},
		{"GLoRA", form(func(u *adapter.Update, _, _ []float32) {
			a2, b2 := noise(int(2*u.A.Cols), 4), noise(int(2*u.A.Cols), 5)
			u.Kind, u.A2, u.B2 = adapter.GLoRA, adapter.FromValues(2, u.A.Cols, a2), adapter.FromValues(u.A.Cols, 2, b2)
		})},
	} {
		_, _, stats := merged(t, base, c.in, merge.Options{}, merge.RunOptions{})
		sum, worst, nearest := 0.0, 1.0, 0.0
		for _, s := range stats {
			sum += s.Retention / 28
			worst = min(worst, s.Retention)
			nearest += s.Nearest.Retention / 28
		}
		t.Logf("%s: α %.4f, worst %.4f; nearest %.4f", c.name, sum, worst, nearest)
		_, err := merge.NewPlan(base, c.in, merge.Options{Resolve: merge.Resolvers(base), Requant: merge.RequantMatch})
		if f := finding.Of(err); (f != nil) != (c.name == "full difference") || f != nil && !strings.Contains(f.Message, "more directions") {
			t.Errorf("%s: matching alone gives %v", c.name, err)
		}
		if len(stats) != 28 || math.Abs(sum-1) > 0.02 || worst < 0.95 || nearest > 0.5 {
			t.Errorf("%s: %d modules, α %.4f, worst %.4f, nearest %.4f", c.name, len(stats), sum, worst, nearest)
		}
	}
}

// ofKind is an update of another kind with the factors of a low-rank one.
func ofKind(module string, out, in int64, kind adapter.Kind) adapter.Update {
	u := lowRank(module, out, in, 4, 0.02, 1)
	if u.Kind = kind; kind == adapter.DoRA {
		m := make([]float32, out)
		for i := range m {
			m[i] = 1
		}
		u.Magnitude = adapter.FromValues(out, 1, m)
	}
	return u
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
		"magnitudes on exponents":   {"MXFP4", ofKind(q, rows, cols, adapter.DoRA), "too coarse"},
		"products with the weight":  {"Q4_0", ofKind(q, rows, cols, adapter.HiRA), "kind hira has no directions"},
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
