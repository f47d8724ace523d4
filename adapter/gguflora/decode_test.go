package gguflora

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/peft"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/internal/applied"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// TestBadInputs checks verdict and code of the corpus's sound containers with a wrong adapter.
func TestBadInputs(t *testing.T) {
	var m struct {
		Cases []struct{ File, Level, Expect, Reason string }
	}
	corpus.ReadJSON(t, corpus.Path(t, "badinputs", "gguf", "manifest.json"), &m)
	n := 0
	for _, c := range m.Cases {
		if c.Level != "semantic" {
			continue
		}
		n++
		t.Run(c.File, func(t *testing.T) {
			a, err := Open(corpus.Path(t, "badinputs", "gguf", c.File))
			if err != nil {
				if f := finding.Of(err); f == nil || c.Expect != "reject" || f.Code != "adapter."+c.Reason {
					t.Fatalf("got %v (%+v), expected %s %s", err, f, c.Expect, c.Reason)
				}
				return
			}
			defer a.Close()
			if c.Expect == "reject" || c.Expect == "warn" && !hasWarning(a, c.Reason) {
				t.Fatalf("findings %+v, expected %s %s", a.Findings, c.Expect, c.Reason)
			}
		})
	}
	if n != 12 {
		t.Errorf("%d semantic cases, expected 12", n)
	}
}

func hasWarning(a *adapter.Adapter, reason string) bool {
	return slices.ContainsFunc(a.Findings, func(f finding.Finding) bool {
		return f.Level == finding.Warning && f.Code == "adapter."+reason
	})
}

// write puts an encoded adapter into a file of its own and opens it.
func write(t *testing.T, f *File) *adapter.Adapter {
	t.Helper()
	path := filepath.Join(t.TempDir(), "adapter.gguf")
	if err := os.WriteFile(path, bytesOf(t, f), 0o644); err != nil {
		t.Fatal(err)
	}
	if !Detect(path) {
		t.Error("the file is not detected")
	}
	a, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

func near(t *testing.T, name string, got, want []float64, tol float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d values, expected %d", name, len(got), len(want))
	}
	for i := range got {
		if math.Abs(got[i]-want[i]) > tol*(1+math.Abs(want[i])) {
			t.Fatalf("%s: value %d is %v, expected %v", name, i, got[i], want[i])
		}
	}
}

// TestTrainedAdapter decodes the corpus's trained adapter in both forms: the GGUF one, which an
// independent program wrote, must be the PEFT one with the rows of q and k reordered.
func TestTrainedAdapter(t *testing.T) {
	a, err := Open(corpus.Path(t, "trained", "adapters", "python-r8.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	p, err := peft.Open(corpus.Path(t, "trained", "adapters", "python-r8"), peft.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	opt := optionsFor(t, corpus.Path(t, "trained", "base", "config.json"))
	f, err := Encode(p, opt)
	if err != nil {
		t.Fatal(err)
	}
	again := write(t, f)
	if len(a.Updates) != 28 || len(again.Updates) != 28 {
		t.Fatalf("%d and %d updates", len(a.Updates), len(again.Updates))
	}
	for i := range a.Updates {
		u, v := &a.Updates[i], &again.Updates[i]
		if u.Target != v.Target || u.Scale.Value != 2 {
			t.Errorf("%v %v, expected %v", u.Target, u.Scale, v.Target)
		}
		near(t, u.Target.String(), applied.Product(t, u), applied.Product(t, v), 0)
	}
}

func values(r *rand.Rand, rows, cols int64) adapter.Factor {
	v := make([]float32, rows*cols)
	for i := range v {
		v[i] = float32(r.NormFloat64())
	}
	return adapter.FromValues(rows, cols, v)
}

var smallLlama = Options{Arch: "llama", HP: naming.HyperParameters{Layers: 2, Heads: 2, KVHeads: 1, HeadDim: 4, Experts: 3, ExpertWidth: 5}}

// TestScalesSurvive encodes modules with different alphas, ranks and formulas; one alpha cannot say it, but
// the products must stay.
func TestScalesSurvive(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	a := &adapter.Adapter{Space: naming.HF}
	scales := []adapter.Scale{{Value: 2, Alpha: 8, Rank: 4}, {Value: 8 / math.Sqrt(2), Alpha: 8, Rank: 2}, {Value: -0.25, Alpha: -1, Rank: 4}, {Value: 0, Alpha: 0, Rank: 1}}
	for i, m := range []string{"q_proj", "v_proj", "o_proj", "k_proj"} {
		rank := int64(scales[i].Rank)
		a.Updates = append(a.Updates, adapter.Update{Target: adapter.Target{Module: "model.layers.1.self_attn." + m, Param: "weight"},
			Kind: adapter.LowRank, Layer: adapter.Linear, Rank: int(rank), Scale: scales[i], A: values(r, rank, 8), B: values(r, 8, rank)})
	}
	f, err := Encode(a, smallLlama)
	if err != nil {
		t.Fatal(err)
	}
	again := write(t, f)
	for i := range a.Updates {
		u := a.Updates[i]
		u.B = u.B.GatherRows(8, func(j int64) int64 {
			switch i {
			case 0: // two heads of 4: rows 0,2,1,3 of each
				return naming.Place{Heads: 2}.Canonical(j, 8)
			case 3:
				return naming.Place{Heads: 1}.Canonical(j, 8)
			}
			return j
		})
		near(t, u.Module, applied.Product(t, &again.Updates[i]), applied.Product(t, &u), 1e-6)
	}
}

// TestEmbedding checks the one pair that is stored the other way round, and a rank of 1, whose dimension
// the file keeps.
func TestEmbedding(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	a := &adapter.Adapter{Space: naming.HF, Updates: []adapter.Update{{Target: adapter.Target{Module: "model.embed_tokens", Param: "weight"},
		Kind: adapter.LowRank, Layer: adapter.Embedding, Rank: 1, Scale: adapter.Scale{Value: 3, Alpha: 3, Rank: 1}, A: values(r, 1, 11), B: values(r, 8, 1)}}}
	f, err := Encode(a, smallLlama)
	if err != nil {
		t.Fatal(err)
	}
	if w := f.Weights[0]; w.Name != "token_embd.weight.lora_a" || !w.Shape.Equal(tensor.Shape{11, 1}) || !f.Weights[1].Shape.Equal(tensor.Shape{8, 1}) {
		t.Errorf("written as %v, %v", w.Spec, f.Weights[1].Spec)
	}
	u := &write(t, f).Updates[0]
	if u.Layer != adapter.Embedding || u.Rank != 1 {
		t.Errorf("read as %s of rank %d", u.Layer, u.Rank)
	}
	near(t, "token_embd", applied.Product(t, u), applied.Product(t, &a.Updates[0]), 0)
}

// TestStacks checks that experts come back one by one, and that a stack with a gap is refused.
func TestStacks(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	a := &adapter.Adapter{Space: naming.HF}
	for e := range 3 {
		a.Updates = append(a.Updates, adapter.Update{Target: adapter.Target{Module: fmt.Sprintf("model.layers.0.block_sparse_moe.experts.%d.w2", e), Param: "weight"},
			Kind: adapter.LowRank, Layer: adapter.Linear, Rank: 2, Scale: adapter.Scale{Value: 1, Alpha: 2, Rank: 2}, A: values(r, 2, 5), B: values(r, 8, 2)})
	}
	f, err := Encode(a, smallLlama)
	if err != nil {
		t.Fatal(err)
	}
	again := write(t, f)
	if len(again.Updates) != 3 {
		t.Fatalf("%d updates", len(again.Updates))
	}
	for e := range 3 {
		u := &again.Updates[e]
		if u.Module != "blk.0.ffn_down_exps" || u.Expert != e || u.Experts != 3 {
			t.Errorf("expert %d is %v %d/%d", e, u.Target, u.Expert, u.Experts)
		}
		near(t, u.Module, applied.Product(t, u), applied.Product(t, &a.Updates[e]), 0)
	}
	a.Updates = a.Updates[:2]
	if _, err := Encode(a, smallLlama); err == nil || !strings.Contains(err.Error(), "expert 2") {
		t.Errorf("got %v", err)
	}
}

// TestTypes checks the types of the factors, with F16 in place of Q8_0 where rows hold no whole blocks.
func TestTypes(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	a := &adapter.Adapter{Space: naming.HF, Updates: []adapter.Update{{Target: adapter.Target{Module: "model.layers.0.self_attn.o_proj", Param: "weight"},
		Kind: adapter.LowRank, Layer: adapter.Linear, Rank: 4, Scale: adapter.Scale{Value: 1, Alpha: 4, Rank: 4}, A: values(r, 4, 64), B: values(r, 8, 4)}}}
	for want, c := range map[tensor.DType]struct {
		a, b tensor.DType
		tol  float64
	}{
		tensor.Invalid: {tensor.F32, tensor.F32, 0}, tensor.F16: {tensor.F16, tensor.F16, 0.005},
		tensor.BF16: {tensor.BF16, tensor.BF16, 0.04}, tensor.Q8_0: {tensor.Q8_0, tensor.F16, 0.04},
	} {
		opt := smallLlama
		opt.DType = want
		f, err := Encode(a, opt)
		if err != nil {
			t.Fatal(err)
		}
		if f.Weights[0].DType != c.a || f.Weights[1].DType != c.b {
			t.Errorf("%s: written as %s and %s", want, f.Weights[0].DType, f.Weights[1].DType)
		}
		near(t, want.String(), applied.Product(t, &write(t, f).Updates[0]), applied.Product(t, &a.Updates[0]), c.tol)
	}
}

func TestNameOf(t *testing.T) {
	for folder, want := range map[string]string{
		"adapter": "Adapter", "my-lora-v1.2": "My Lora v1.2", "some-data_v1": "Some Data_V1", "LLaMA-7b": "LLaMA 7b", "i2v": "I2V", "": "",
	} {
		if got := NameOf(folder); got != want {
			t.Errorf("%q gives %q, expected %q", folder, got, want)
		}
	}
}

// TestRefusals checks what a GGUF LoRA cannot say and what the base does not have.
func TestRefusals(t *testing.T) {
	one := adapter.FromValues(1, 8, make([]float32, 8))
	col := adapter.FromValues(8, 1, make([]float32, 8))
	update := func(kind adapter.Kind, module, param string) adapter.Update {
		return adapter.Update{Target: adapter.Target{Module: module, Param: param}, Kind: kind, Layer: adapter.Linear, Rank: 1, A: one, B: col, Value: one}
	}
	for name, c := range map[string]struct {
		u    adapter.Update
		code string
	}{
		"DoRA":        {update(adapter.DoRA, "model.layers.0.self_attn.q_proj", "weight"), "adapter.unsupported_feature"},
		"bias":        {update(adapter.Bias, "model.layers.0.self_attn.q_proj", "bias"), "adapter.unsupported_feature"},
		"rows":        {update(adapter.Rows, "model.embed_tokens", "weight"), "adapter.unsupported_feature"},
		"replacement": {update(adapter.Replace, "lm_head", "weight"), "adapter.unsupported_feature"},
		"no module":   {update(adapter.LowRank, "model.layers.0.self_attn.x_proj", "weight"), "match.unmatched_target"},
		"no layer":    {update(adapter.LowRank, "model.layers.7.self_attn.q_proj", "weight"), "match.unmatched_target"},
	} {
		_, err := Encode(&adapter.Adapter{Space: naming.HF, Updates: []adapter.Update{c.u}}, smallLlama)
		if f := finding.Of(err); f == nil || f.Code != c.code {
			t.Errorf("%s: got %v, expected %s", name, err, c.code)
		}
	}
}

// FuzzDecode opens arbitrary GGUF files as adapters: no panic, and every update that comes back must have
// factors that fit each other.
func FuzzDecode(f *testing.F) {
	header := gguf.Header{KVs: gguf.KVs{{Key: keyArch, Value: gguf.Of("llama")}, {Key: keyType, Value: gguf.Of("adapter")}, {Key: keyKind, Value: gguf.Of("lora")}, {Key: keyAlpha, Value: gguf.Of(float32(8))}}}
	r := rand.New(rand.NewPCG(1, 2))
	stack := adapter.Weight{Spec: tensor.Spec{Name: "blk.0.ffn_down_exps.weight.lora_a", DType: tensor.F32, Shape: tensor.Shape{2, 2, 4}}, Values: values(r, 4, 4)}
	stackB := adapter.Weight{Spec: tensor.Spec{Name: "blk.0.ffn_down_exps.weight.lora_b", DType: tensor.F32, Shape: tensor.Shape{2, 4, 2}}, Values: values(r, 8, 2)}
	f.Add(bytesOf(f, &File{Header: header, Weights: []adapter.Weight{stack, stackB}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "a.gguf")
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		a, err := Open(path)
		if err != nil {
			return
		}
		defer a.Close()
		for i := range a.Updates {
			u := &a.Updates[i]
			if u.Kind == adapter.LowRank && (u.A.Rows != u.B.Cols || u.A.Rows == 0 || math.IsNaN(u.Scale.Value)) {
				t.Fatalf("factors %d × %d and %d × %d, scale %v", u.B.Rows, u.B.Cols, u.A.Rows, u.A.Cols, u.Scale)
			}
			if _, err := u.A.Load(); u.A.Present() && err != nil && finding.Of(err) == nil {
				t.Fatal(err)
			}
		}
	})
}
