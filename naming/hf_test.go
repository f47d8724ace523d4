package naming_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/loratool/loratool/naming"
)

func notFound(t *testing.T, err error) *naming.NotFound {
	t.Helper()
	var e *naming.NotFound
	if !errors.As(err, &e) {
		t.Fatalf("error is %v, expected a *NotFound", err)
	}
	return e
}

func TestHFNames(t *testing.T) {
	tests := []struct {
		name          string
		stored        []string
		module, param string
		want          string // "" = not found
		reason        string
	}{
		{"exact", []string{"model.layers.0.mlp.up_proj.weight"}, "model.layers.0.mlp.up_proj", "weight", "model.layers.0.mlp.up_proj.weight", ""},
		{"raw parameter", []string{"attn.in_proj_weight"}, "attn", "in_proj_weight", "attn.in_proj_weight", ""},
		{"stored without model.", []string{"layers.3.mlp.up_proj.weight"}, "model.layers.3.mlp.up_proj", "weight", "layers.3.mlp.up_proj.weight", ""},
		{"stored with transformer.", []string{"transformer.h.0.attn.c_attn.weight"}, "h.0.attn.c_attn", "weight", "transformer.h.0.attn.c_attn.weight", ""},
		{"peft wrapper", []string{"lm_head.weight", "model.norm.weight"}, "base_model.model.lm_head", "weight", "lm_head.weight", ""},
		{"vision language, new adapter on old base", []string{"language_model.model.layers.0.mlp.up_proj.weight"}, "model.language_model.layers.0.mlp.up_proj", "weight", "language_model.model.layers.0.mlp.up_proj.weight", ""},
		{"vision language, old adapter on new base", []string{"model.language_model.layers.0.mlp.up_proj.weight"}, "language_model.model.layers.0.mlp.up_proj", "weight", "model.language_model.layers.0.mlp.up_proj.weight", ""},
		{"language model of a bigger model, base without parts", []string{"model.layers.0.mlp.up_proj.weight"}, "language_model.model.layers.0.mlp.up_proj", "weight", "", ""},
		{"plain adapter on the language model of a bigger one", []string{"model.language_model.layers.0.mlp.up_proj.weight"}, "model.layers.0.mlp.up_proj", "weight", "model.language_model.layers.0.mlp.up_proj.weight", ""},
		{"the vision tower is another module", []string{"vision_tower.layers.0.mlp.up_proj.weight"}, "model.layers.0.mlp.up_proj", "weight", "", ""},
		{"two fit", []string{"language_model.layers.0.fc.weight", "text_model.layers.0.fc.weight"}, "model.layers.0.fc", "weight", "", "more than one stored tensor fits"},
		{"the base has this family under the module's own prefix", []string{"model.layers.0.fc.weight", "language_model.layers.1.fc.weight"}, "model.layers.1.fc", "weight", "", ""},
		{"tied", []string{"model.embed_tokens.weight"}, "lm_head", "weight", "", "the output layer is tied to the token embedding and not stored by itself"},
		{"a prefix is not a suffix", []string{"layers.0.mlp.up_proj.weight"}, "layers.10.mlp.up_proj", "weight", "", ""},
		{"no module", []string{"weight"}, "", "weight", "weight", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			places, err := naming.NewHF(tt.stored, nil).Find(tt.module, tt.param)
			if tt.want == "" {
				if e := notFound(t, err); e.Reason != tt.reason {
					t.Errorf("reason %q, expected %q", e.Reason, tt.reason)
				}
				return
			}
			if err != nil || len(places) != 1 || places[0].Tensor != tt.want {
				t.Errorf("found %v, %v, expected %q", places, err, tt.want)
			}
		})
	}
}

func TestHFExperts(t *testing.T) {
	// 2 experts of width 3 on a hidden size of 5, stacked and one by one.
	stack := map[string][]int64{
		"model.layers.0.mlp.experts.gate_up_proj": {2, 6, 5},
		"model.layers.0.mlp.experts.down_proj":    {2, 5, 3},
	}
	single := map[string][]int64{}
	for e := range 2 {
		p := fmt.Sprintf("model.layers.0.block_sparse_moe.experts.%d.", e)
		single[p+"w1.weight"], single[p+"w3.weight"], single[p+"w2.weight"] = []int64{3, 5}, []int64{3, 5}, []int64{5, 3}
	}
	tests := []struct {
		name          string
		stored        map[string][]int64
		module, param string
		want          []naming.Place
	}{
		{"gate in a stack", stack, "model.layers.0.block_sparse_moe.experts.1.w1", "weight", []naming.Place{
			{Tensor: "model.layers.0.mlp.experts.gate_up_proj", Expert: 1, Experts: 2, Rows: 3, Rule: "name"}}},
		{"up in a stack", stack, "model.layers.0.mlp.experts.0.up_proj", "weight", []naming.Place{
			{Tensor: "model.layers.0.mlp.experts.gate_up_proj", Experts: 2, RowOffset: 3, Rows: 3, Rule: "name"}}},
		{"down in a stack", stack, "model.layers.0.mlp.experts.1.down_proj", "weight", []naming.Place{
			{Tensor: "model.layers.0.mlp.experts.down_proj", Expert: 1, Experts: 2, Rule: "name"}}},
		{"a stack as single gates and ups", single, "model.layers.0.mlp.experts", "gate_up_proj", []naming.Place{
			{Tensor: "model.layers.0.block_sparse_moe.experts.0.w1.weight", Rows: 3, Run: 3, Matrices: 2, Rule: "name"},
			{Tensor: "model.layers.0.block_sparse_moe.experts.0.w3.weight", First: 3, Rows: 3, Run: 3, Matrices: 2, Rule: "name"},
			{Tensor: "model.layers.0.block_sparse_moe.experts.1.w1.weight", Rows: 3, Run: 3, Matrix: 1, Matrices: 2, Rule: "name"},
			{Tensor: "model.layers.0.block_sparse_moe.experts.1.w3.weight", First: 3, Rows: 3, Run: 3, Matrix: 1, Matrices: 2, Rule: "name"}}},
		{"a stack as single downs", single, "model.layers.0.mlp.experts", "down_proj", []naming.Place{
			{Tensor: "model.layers.0.block_sparse_moe.experts.0.w2.weight", Matrices: 2, Rule: "name"},
			{Tensor: "model.layers.0.block_sparse_moe.experts.1.w2.weight", Matrix: 1, Matrices: 2, Rule: "name"}}},
		{"expert out of range", stack, "model.layers.0.mlp.experts.2.up_proj", "weight", nil},
		{"a stack of [in, out] matrices is not split", map[string][]int64{
			"model.layers.0.mlp.experts.gate_up_proj": {2, 5, 6},
			"model.layers.0.mlp.experts.down_proj":    {2, 3, 5},
		}, "model.layers.0.mlp.experts.0.up_proj", "weight", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var names []string
			for n := range tt.stored {
				names = append(names, n)
			}
			slices.Sort(names)
			places, err := naming.NewHF(names, func(n string) []int64 { return tt.stored[n] }).Find(tt.module, tt.param)
			if tt.want == nil {
				notFound(t, err)
			} else if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, places); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestNearestNames(t *testing.T) {
	var names []string
	for layer := range 1000 {
		for _, m := range []string{"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj"} {
			names = append(names, fmt.Sprintf("model.layers.%d.%s.weight", layer, m))
		}
	}
	// Names that share no pattern cost a comparison each.
	for i := range 100_000 {
		names = append(names, fmt.Sprintf("model.junk%d.weight", i))
	}
	r := naming.NewHF(names, nil)
	tests := []struct {
		module string
		want   []string
	}{
		{"model.layers.17.self_attn.q_prj", []string{"model.layers.17.self_attn.q_proj.weight", "model.layers.17.self_attn.k_proj.weight", "model.layers.17.self_attn.v_proj.weight"}},
		{"layers.999.attn.o_proj", []string{"model.layers.999.self_attn.o_proj.weight", "model.layers.999.self_attn.q_proj.weight", "model.layers.999.self_attn.k_proj.weight"}},
		// A layer that is not there: the same module of one that is.
		{"model.layers.1000.mlp.up_proj", []string{"model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.gate_proj.weight", "model.layers.0.self_attn.q_proj.weight"}},
		{"zzz", nil},
	}
	for _, tt := range tests {
		_, err := r.Find(tt.module, "weight")
		e := notFound(t, err)
		if d := cmp.Diff(tt.want, e.Nearest); d != "" && len(tt.want)+len(e.Nearest) > 0 {
			t.Errorf("%s: %s", tt.module, d)
		}
		for _, n := range e.Nearest {
			if !strings.Contains(e.Error(), n) {
				t.Errorf("%q does not name %q", e.Error(), n)
			}
		}
	}
}

func TestIsEmbedding(t *testing.T) {
	for module, want := range map[string]bool{
		"model.embed_tokens": true, "transformer.wte": true, "bert.embeddings.word_embeddings": true, "text_model.embeddings.token_embedding": true,
		"token_embd": true, "lm_head": false, "output": false, "model.layers.0.mlp.up_proj": false, "embedder.linear_1": false,
	} {
		if naming.IsEmbedding(module) != want {
			t.Errorf("%s: %v, expected %v", module, !want, want)
		}
	}
}

func TestIsConv1D(t *testing.T) {
	for module, want := range map[string]bool{
		"transformer.h.0.attn.c_attn":           true,
		"h.11.attn.c_proj":                      true,
		"transformer.h.0.mlp.c_fc":              true,
		"transformer.h.0.mlp.c_proj":            true,
		"transformer.h.0.crossattention.q_attn": true,
		"transformer.h.0.crossattention.c_attn": true,
		"transformer.wte":                       false,
		"lm_head":                               false,
		"model.layers.0.self_attn.q_proj":       false,
		"c_attn":                                false,
	} {
		if naming.IsConv1D(module) != want {
			t.Errorf("%s: %v, expected %v", module, !want, want)
		}
	}
}
