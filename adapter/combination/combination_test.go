package combination

import (
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/adapter/lowrank"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/internal/applied"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/naming"
)

// TestPEFT compares with what PEFT's add_weighted_adapter made of the same adapters, by the products of the
// factors, whose split is not unique. The elements that DARE kept are those of the golden.
func TestPEFT(t *testing.T) {
	var cases []struct {
		Dir, Group string
		Weights    []float64
		Method     string  `json:"combination_type"`
		Density    float64 `json:"density"`
		Majority   string  `json:"majority_sign_method"`
		Rank       int     `json:"new_r"`
	}
	corpus.ReadJSON(t, corpus.Path(t, "peft", "manifest.json"), &cases)
	n := 0
	for _, c := range cases {
		if c.Group != "weighted" {
			continue
		}
		n++
		t.Run(filepath.Base(c.Dir), func(t *testing.T) {
			dir := corpus.Path(t, "peft", c.Dir)
			opt := Options{Method: c.Method, Density: c.Density, Frequency: c.Majority == "frequency", PEFT: true}
			if strings.Contains(c.Method, "dare") {
				opt.mask = replay(t, filepath.Join(dir, "dare_masks_in_call_order.safetensors"))
			}
			inputs := []Input{{open(t, filepath.Join(dir, "a")), c.Weights[0]}, {open(t, filepath.Join(dir, "b")), c.Weights[1]}}
			got, err := Of(inputs, opt)
			if err != nil {
				t.Fatal(err)
			}
			limits := lowrank.Limits{}
			if opt.Limited() {
				limits.Rank = Rank(inputs)
			}
			if got, _, err = lowrank.Convert(t.Context(), got, lowrank.Options{Limits: limits}); err != nil {
				t.Fatal(err)
			}
			want := golden(t, filepath.Join(dir, "combined_adapter.safetensors"))
			if 2*len(got.Updates) != len(want) {
				t.Fatalf("%d updates, want %d tensors", len(got.Updates), len(want))
			}
			for i := range got.Updates {
				u := &got.Updates[i]
				if u.Rank != c.Rank {
					t.Errorf("%s: rank %d, want %d", u.Module, u.Rank, c.Rank)
				}
				w := *u
				prefix := "base_model.model." + u.Module
				w.A, w.B, w.Scale = want[prefix+".lora_A.weight"], want[prefix+".lora_B.weight"], one(c.Rank)
				equal(t, u.Module, applied.Product(t, u), applied.Product(t, &w), 2e-5)
			}
		})
	}
	if n != 20 {
		t.Errorf("%d cases", n)
	}
}

// replay hands out masks in the order in which they were drawn.
func replay(t *testing.T, file string) mask {
	m, err := safetensors.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	names := map[string]int{}
	tensors := m.Tensors()
	for i := range tensors {
		names[tensors[i].Name] = i
	}
	ordered := make([]string, 0, len(names))
	for n := range names {
		ordered = append(ordered, n)
	}
	slices.Sort(ordered)
	next := 0
	return func(_ string, n int, _ float64) []bool {
		v, err := adapter.ReadFloats(&tensors[names[ordered[next]]])
		next++
		if err != nil || len(v) != n {
			t.Fatalf("mask %d has %d elements, want %d (%v)", next, len(v), n, err)
		}
		keep := make([]bool, n)
		for i, x := range v {
			keep[i] = x != 0
		}
		return keep
	}
}

func open(t *testing.T, path string) *adapter.Adapter {
	t.Helper()
	a, err := dialect.Open(path, dialect.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

func golden(t *testing.T, file string) map[string]adapter.Factor {
	t.Helper()
	m, err := safetensors.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	out := map[string]adapter.Factor{}
	for _, x := range m.Tensors() {
		out[x.Name] = adapter.FromTensor(x, x.Shape[0], x.Shape[1], adapter.ReadFloats)
	}
	return out
}

func equal(t *testing.T, what string, got, want []float64, within float64) {
	t.Helper()
	top := 0.0
	for _, x := range want {
		top = max(top, math.Abs(x))
	}
	for i, x := range want {
		if math.Abs(got[i]-x) > within*max(top, 1) {
			t.Fatalf("%s: element %d is %g, want %g", what, i, got[i], x)
		}
	}
}

// factor holds a fixed pattern.
func factor(rows, cols int64, seed float64) adapter.Factor {
	v := make([]float32, rows*cols)
	for i := range v {
		v[i] = float32(math.Sin(seed + float64(3*i)))
	}
	return adapter.FromValues(rows, cols, v)
}

func update(module string, out, in, rank int64, scale, seed float64) adapter.Update {
	return adapter.Update{
		Target: adapter.Target{Module: module, Param: "weight"}, Kind: adapter.LowRank, Layer: adapter.Linear, Rank: int(rank),
		A: factor(rank, in, seed), B: factor(out, rank, seed+1), Scale: adapter.Scale{Value: scale, Alpha: scale * float64(rank), Rank: int(rank)},
	}
}

func from(updates ...adapter.Update) *adapter.Adapter {
	return &adapter.Adapter{Path: "a", Dialect: "peft", Space: naming.HF, Updates: updates}
}

// TestSums has different ranks, scales, a module of one adapter only, and a negative weight: cat, linear and svd
// are Σ w·ΔW. PEFT's linear is not, nor its svd, which counts the scale twice; nor are sums whose strengths
// are squared or whose concatenated alpha stays, as those of other scripts.
func TestSums(t *testing.T) {
	a, b := update("m", 10, 12, 3, 0.5, 1), update("m", 10, 12, 2, 2, 5)
	alone := update("n", 6, 8, 2, 1, 9)
	inputs := []Input{{from(a), 0.75}, {from(b, alone), -2}}
	want := applied.Product(t, &a)
	for i, x := range applied.Product(t, &b) {
		want[i] = 0.75*want[i] - 2*x
	}
	for _, method := range []string{"cat", "linear", "svd"} {
		out, err := Of(inputs, Options{Method: method})
		if err != nil {
			t.Fatal(err)
		}
		if out, _, err = lowrank.Convert(t.Context(), out, lowrank.Options{Limits: lowrank.Limits{Rank: 5}}); err != nil {
			t.Fatal(err)
		}
		equal(t, method, applied.Product(t, &out.Updates[0]), want, 1e-6)
		lone := applied.Product(t, &alone)
		for i := range lone {
			lone[i] *= -2
		}
		equal(t, method+" alone", applied.Product(t, &out.Updates[1]), lone, 1e-7)
	}
	a.Rank, b = 3, update("m", 10, 12, 3, 2, 5)
	inputs = []Input{{from(a), 0.75}, {from(b), -2}}
	right, _ := Of(inputs, Options{Method: "cat"})
	for _, method := range []string{"linear", "svd"} {
		wrong, err := Of(inputs, Options{Method: method, PEFT: true})
		if err != nil {
			t.Fatal(err)
		}
		low, _, err := lowrank.Convert(t.Context(), wrong, lowrank.Options{Limits: lowrank.Limits{Rank: 6}})
		if err != nil {
			t.Fatal(err)
		}
		x, y := applied.Product(t, &low.Updates[0]), applied.Product(t, &right.Updates[0])
		off, whole := 0.0, 0.0
		for i := range y {
			off += (x[i] - y[i]) * (x[i] - y[i])
			whole += y[i] * y[i]
		}
		if off < 0.05*whole {
			t.Errorf("PEFT's %s is the sum here", method)
		}
	}
}

// TestPrune keeps as many elements as the density says, and DARE the same ones whenever it is asked again.
func TestPrune(t *testing.T) {
	v := []float32{1, -3, 2, 2, -2, 0.5}
	keepLargest(v, 3)
	if !slices.Equal(v, []float32{0, -3, 2, 2, 0, 0}) {
		t.Errorf("kept %v", v)
	}
	keepLargest(v, 0)
	if !slices.Equal(v, make([]float32, 6)) {
		t.Errorf("kept %v", v)
	}
	x, y, other := drawn(7, "m/A/0", 10000, 0.3), drawn(7, "m/A/0", 10000, 0.3), drawn(8, "m/A/0", 10000, 0.3)
	n := 0
	for _, keep := range x {
		if keep {
			n++
		}
	}
	if !slices.Equal(x, y) || slices.Equal(x, other) || n < 2850 || n > 3150 {
		t.Errorf("%d of 10000 kept", n)
	}
	ties := side{method: methods["ties"], density: 1, frequency: true}
	if got := ties.merge([][]float32{{1, -5, 0}, {2, 1, 0}, {-9, 1, 4}}, []float64{1, 1, 0.5}); !slices.Equal(got, []float32{1.5, 0.75, 2}) {
		t.Errorf("by number of signs: %v", got)
	}
	ties.frequency = false
	if got := ties.merge([][]float32{{1, -5, 0}, {2, 1, 0}, {-9, 1, 4}}, []float64{1, 1, 0.5}); !slices.Equal(got, []float32{-4.5, -5, 2}) {
		t.Errorf("by sums: %v", got)
	}
}

// TestKinds adds biases and embeddings, takes a replacement from one adapter, and LoHa as a matrix.
func TestKinds(t *testing.T) {
	bias := adapter.Update{Target: adapter.Target{Module: "m", Param: "bias"}, Kind: adapter.Bias, Value: adapter.FromValues(1, 2, []float32{1, 2}), Scale: adapter.Scale{Value: 3}}
	other := bias
	other.Value = adapter.FromValues(1, 2, []float32{10, 20})
	norm := adapter.Update{Target: adapter.Target{Module: "norm", Param: "weight"}, Kind: adapter.Replace, Value: adapter.FromValues(1, 1, []float32{4})}
	emb := update("emb", 3, 7, 2, 1, 2) // dim 3, vocabulary 7
	emb.Layer = adapter.Embedding
	emb2 := update("emb", 3, 7, 2, 2, 4)
	emb2.Layer = adapter.Embedding
	loha := update("h", 5, 6, 2, 1, 3)
	loha.Kind, loha.A2, loha.B2 = adapter.LoHa, factor(2, 6, 11), factor(5, 2, 12)
	out, err := Of([]Input{{from(bias, norm, emb, loha), 1}, {from(other, emb2, loha), 0.5}}, Options{Method: "dare_linear_svd", Density: 1})
	if err != nil {
		t.Fatal(err)
	}
	if v, _ := out.Updates[0].Value.Load(); !slices.Equal(v, []float32{18, 36}) {
		t.Errorf("biases %v", v)
	}
	if v, _ := out.Updates[1].Value.Load(); out.Updates[1].Kind != adapter.Replace || v[0] != 4 {
		t.Errorf("norm %v", v)
	}
	if e := out.Updates[2]; e.Layer != adapter.Embedding || e.Value.Rows != 7 || e.Value.Cols != 3 {
		t.Errorf("embedding [%d, %d]", e.Value.Rows, e.Value.Cols)
	}
	low, _, err := lowrank.Convert(t.Context(), out, lowrank.Options{Limits: lowrank.Limits{Rank: 7}})
	if err != nil {
		t.Fatal(err)
	}
	want := applied.Product(t, &emb)
	for i, x := range applied.Product(t, &emb2) {
		want[i] += 0.5 * x
	}
	equal(t, "embedding", applied.Product(t, &low.Updates[2]), want, 1e-6)
	matrix, err := lowrank.Matrix(&loha)
	if err != nil {
		t.Fatal(err)
	}
	for i, x := range applied.Product(t, &low.Updates[3]) {
		if math.Abs(x-1.5*float64(matrix[i])) > 1e-5 {
			t.Fatalf("LoHa element %d is %g, want %g", i, x, 1.5*matrix[i])
		}
	}
}

func TestRefused(t *testing.T) {
	m := update("m", 4, 4, 2, 1, 0)
	dora := m
	dora.Kind, dora.Magnitude = adapter.DoRA, factor(1, 4, 0)
	norm := adapter.Update{Target: adapter.Target{Module: "m", Param: "weight"}, Kind: adapter.Replace, Value: factor(4, 4, 0)}
	gguf := from(m)
	gguf.Space = naming.GGUF
	sd, xl := from(m), from(m)
	sd.Arch, xl.Arch = "sd15", "sdxl"
	twice := from(m)
	twice.Doubt = finding.Errorf("adapter.alpha_conflict", "b", "two alphas")
	for want, c := range map[string]struct {
		a, b   *adapter.Adapter
		method string
	}{
		"depends on the base":     {from(m), from(dora), "cat"},
		"replace the base's":      {from(norm), from(norm), "cat"},
		"of different kinds":      {from(m), from(func() adapter.Update { u := m; u.Layer = adapter.Conv; return u }()), "cat"},
		"of different sizes":      {from(m), from(update("m", 4, 5, 2, 1, 0)), "cat"},
		"factors of one rank":     {from(m), from(update("m", 4, 4, 3, 1, 0)), "ties"},
		"different worlds":        {from(m), gguf, "cat"},
		"different architectures": {sd, xl, "cat"},
		"two alphas":              {from(m), twice, "cat"},
		"not combined by \"mix\"": {from(m), from(m), "mix"},
	} {
		_, err := Of([]Input{{c.a, 1}, {c.b, 1}}, Options{Method: c.method})
		f := finding.Of(err)
		if f == nil || !strings.Contains(f.Message, want) {
			t.Errorf("%s: got %v", want, err)
		}
	}
	a, b := from(m), from(m)
	a.BaseModel, b.BaseModel = "x", "y"
	if out, err := Of([]Input{{a, 1}, {b, 1}}, Options{Method: "cat"}); err != nil || len(out.Findings) != 1 {
		t.Errorf("%v, %v", out, err)
	}
}
