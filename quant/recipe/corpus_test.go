package recipe

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/tensor"
)

type goldenModel struct {
	Arch    string `json:"arch"`
	Layers  int    `json:"block_count"`
	Heads   int    `json:"head_count"`
	KVHeads int    `json:"head_count_kv"`
	Experts int    `json:"expert_count"`
	Tensors []struct {
		Name string
		NE   []int64 `json:"ne"`
		Type string
	}
	Order []int `json:"output_order"`
	Cases []goldenCase
}

type goldenCase struct {
	Recipe    string `json:"ftype"`
	Options   string
	Fallbacks int
	Types     []string
	Error     string
	Tensor    string `json:"error_tensor"`
}

var goldenOptions = map[string]Options{
	"default":      {},
	"imatrix":      {HasImatrix: true},
	"pure":         {Pure: true},
	"leave_output": {LeaveOutputTensor: true},
	"out_embd":     {OutputTensorType: tensor.Q8_0, TokenEmbeddingType: tensor.Q5_0},
	"tensor_type":  {TensorTypes: []Override{override("attn_v=q8_0"), override(`blk\.1\.ffn_down=f16`)}},
}

func override(s string) Override {
	o, err := ParseOverride(s)
	if err != nil {
		panic(err)
	}
	return o
}

// TestCorpus compares with the dry runs of llama.cpp v0.5.0 on synthetic models.
func TestCorpus(t *testing.T) {
	files, err := filepath.Glob(corpus.Path(t, "recipes", "*_*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no models: %v", err)
	}
	cases, equal, refused := 0, 0, 0
	for _, file := range files {
		g := readGolden(t, file)
		for _, c := range g.Cases {
			cases++
			if !t.Run(filepath.Base(file)+"/"+c.Recipe+"/"+c.Options, func(t *testing.T) { checkCase(t, g, c) }) {
				continue
			}
			equal++
			if c.Error != "" {
				refused++
			}
		}
	}
	t.Logf("recipes: %d models, %d of %d cases as the reference, %d of them errors", len(files), equal, cases, refused)
}

func readGolden(t *testing.T, file string) *goldenModel {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var g goldenModel
	if err := json.Unmarshal(b, &g); err != nil {
		t.Fatal(err)
	}
	return &g
}

func (g *goldenModel) model(t *testing.T) *Model {
	t.Helper()
	m := &Model{Arch: g.Arch, Layers: g.Layers, Heads: g.Heads, KVHeads: g.KVHeads, Experts: g.Experts}
	for _, x := range g.Tensors {
		d, ok := tensor.ParseDType(x.Type)
		if !ok {
			t.Fatalf("type %q", x.Type)
		}
		shape := slices.Clone(x.NE)
		slices.Reverse(shape)
		m.Tensors = append(m.Tensors, tensor.Spec{Name: x.Name, DType: d, Shape: shape})
	}
	return m
}

func checkCase(t *testing.T, g *goldenModel, c goldenCase) {
	opt, known := goldenOptions[c.Options]
	if !known {
		t.Fatalf("unknown options %q", c.Options)
	}
	r, err := Of(c.Recipe)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := NewPlan(r, g.model(t), opt)
	if c.Error != "" {
		if f := finding.Of(err); f == nil || f.Code != "quant.no_fallback_type" || f.Tensor != c.Tensor {
			t.Fatalf("gives %v, the reference refuses %s: %s", err, c.Tensor, c.Error)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	for i, choice := range plan.Choices {
		x := g.Tensors[choice.Tensor]
		if choice.Tensor != g.Order[i] {
			t.Fatalf("tensor %d of the output is %s, want %s", i, x.Name, g.Tensors[g.Order[i]].Name)
		}
		if want, _ := tensor.ParseDType(c.Types[choice.Tensor]); choice.Type != want {
			t.Errorf("%s gets %s, want %s", x.Name, choice.Type, want)
		}
	}
	n, _, f := plan.Fallbacks(false)
	if n != c.Fallbacks || (f != nil) != (n > 0) {
		t.Errorf("%d fallbacks (%v), want %d", n, f, c.Fallbacks)
	}
}
