package dialect

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/naming"
)

// A tableRow is one of naming's table of architectures.
type tableRow struct{ module, param, tensor, op string }

// A tableArch is an architecture there.
type tableArch struct {
	name, class string
	rows        []tableRow
}

// readTable reads naming/architectures.txt, whose grammar it explains.
func readTable(t *testing.T) []tableArch {
	t.Helper()
	b, err := os.ReadFile("../../naming/architectures.txt")
	if err != nil {
		t.Fatal(err)
	}
	groups := map[string][]tableRow{}
	var archs []tableArch
	group := ""
	add := func(rows ...tableRow) {
		if group != "" {
			groups[group] = append(groups[group], rows...)
			return
		}
		a := &archs[len(archs)-1]
		a.rows = append(a.rows, rows...)
	}
	for line := range strings.Lines(string(b)) {
		w := strings.Fields(line)
		switch {
		case len(w) == 0 || w[0] == "#" || w[0] == "tied" || w[0] == "type":
		case w[0] == "group":
			group = w[1]
		case w[0] == "arch":
			group = ""
			archs = append(archs, tableArch{name: w[1]})
		case w[0] == "hf":
			if a := &archs[len(archs)-1]; a.class == "" {
				a.class = w[1]
			}
		case w[0] == "use":
			for _, g := range w[1:] {
				add(groups[g]...)
			}
		default:
			r := tableRow{tensor: w[1]}
			r.module, r.param, _ = strings.Cut(w[0], ":")
			if len(w) > 2 {
				r.op = w[2]
			}
			add(r)
		}
	}
	return archs
}

// The sizes of the small models. One head has 4 rows.
const (
	smallHidden, smallHeads, smallKV, smallHead, smallExperts, smallWidth, smallVocab = 16, 4, 2, 4, 3, 6, 32
)

func smallConfig(t *testing.T, class string) string {
	t.Helper()
	b, err := json.Marshal(map[string]any{
		"architectures": []string{class}, "hidden_size": smallHidden, "num_attention_heads": smallHeads, "num_key_value_heads": smallKV, "num_kv_heads": smallKV,
		"new_decoder_architecture": true, "head_dim": smallHead, "num_hidden_layers": 2, "num_experts": smallExperts, "moe_intermediate_size": smallWidth,
		"intermediate_size": 24, "qk_nope_head_dim": 4, "v_head_dim": 4, "vocab_size": smallVocab,
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// shapeOf is the [out, in] of a row's module in a small model.
func (r tableRow) shapeOf() (out, in int64) {
	_, name, _ := strings.Cut(r.tensor, "blk.#.")
	name = strings.TrimSuffix(name, ".weight")
	switch {
	case r.op == "qkv":
		return 3 * smallHeads * smallHead, smallHidden
	case r.op == "kvqkv":
		return (smallHeads + 2*smallKV) * smallHead, smallHidden
	case r.op == "kpart" || r.op == "vpart":
		return smallKV * 8, smallHidden
	case r.op != "" && r.op != "heads" && r.op != "kvheads": // fused halves of an expert
		return 2 * smallWidth, smallHidden
	case name == "attn_k" || name == "attn_v":
		return smallKV * smallHead, smallHidden
	case name == "ffn_down_exps":
		return smallHidden, smallWidth
	case strings.HasSuffix(name, "_exps"):
		return smallWidth, smallHidden
	case strings.HasPrefix(name, "ffn_down"):
		return smallHidden, 24
	case strings.HasPrefix(name, "ffn_gate_inp"):
		return smallExperts, smallHidden
	case strings.HasPrefix(name, "ffn_"):
		return 24, smallHidden
	}
	return smallHidden, smallHidden
}

// updates makes low-rank updates of a row's parameter in layer 1: one, or one for every expert. Ranks, alphas and
// kinds of scales differ from module to module.
func (r tableRow) updates(seed int64) []adapter.Update {
	out, in := r.shapeOf()
	u := adapter.Update{Target: adapter.Target{Module: strings.Replace(r.module, "#", "1", 1), Param: "weight"}, Kind: adapter.LowRank, Layer: adapter.Linear}
	if r.param != "" {
		u.Param = r.param
	}
	if strings.HasPrefix(r.tensor, "token_") || strings.HasPrefix(r.tensor, "position_") {
		u.Layer, out, in = adapter.Embedding, smallHidden, smallVocab
	}
	rank := 1 + seed%4
	alpha := []float64{16, 3, 0.7}[seed%3]
	scale := alpha / float64(rank)
	if seed%2 == 0 {
		scale = alpha / math.Sqrt(float64(rank))
	}
	stacked := strings.HasSuffix(strings.TrimSuffix(r.tensor, ".weight"), "_exps")
	n := 1
	if stacked {
		n = smallExperts
	}
	var ups []adapter.Update
	for e := range n {
		v := u
		v.Module = strings.Replace(u.Module, "@", fmt.Sprint(e), 1)
		if stacked && v.Module == u.Module {
			v.Expert, v.Experts = e, n
		}
		v.Rank = int(rank)
		v.A, v.B = values(seed*100+int64(2*e+1), rank, in), values(seed*100+int64(2*e+2), out, rank)
		v.Scale = adapter.Scale{Value: scale, Alpha: alpha, Rank: int(rank)}
		ups = append(ups, v)
	}
	return ups
}

// inGroups puts the matrices among an architecture's rows into groups: one with the modules that a GGUF's tensors
// are first of all, which go together, and one for each module that shares its tensor with an earlier one, or
// that llama.cpp cannot adapt.
func (a *tableArch) inGroups() (groups [][]tableRow, norms []tableRow) {
	groups = append(groups, nil)
	tensors, modules := map[string]bool{}, map[string]bool{}
	for _, r := range a.rows {
		key := r.module + ":" + r.param
		switch {
		case strings.Contains(r.tensor, "_norm"):
			norms = append(norms, r)
		case modules[key], strings.HasSuffix(r.tensor, ".bias"), strings.HasSuffix(r.tensor, "sinks.weight"):
		case tensors[r.tensor], unserved[r.tensor] != "":
			groups = append(groups, []tableRow{r})
		default:
			groups[0] = append(groups[0], r)
		}
		modules[key], tensors[r.tensor] = true, true
		tensors[r.tensor+".weight"] = true // the raw parameter of the same stack
	}
	return groups, norms
}

// unserved are the tensors of matrices to which llama.cpp applies no factors, and what is said about them.
var unserved = map[string]string{
	"position_embd": "applies no factors to the embedding", "token_types": "applies no factors to the embedding",
	"blk.#.attn_k_b": "multiplies with the heads", "blk.#.attn_v_b": "multiplies with the heads",
}

// TestArchitectures takes updates of every module of every architecture from PEFT to GGUF and back, with ranks,
// alphas and rsLoRA that differ from module to module, and compares ΔW.
func TestArchitectures(t *testing.T) {
	trips, refusals, norms := 0, 0, 0
	for _, arch := range readTable(t) {
		base := smallConfig(t, arch.class)
		groups, vectors := arch.inGroups()
		for _, rows := range groups {
			name := arch.name + " " + rows[0].module
			a := &adapter.Adapter{Path: "synthetic", Space: naming.HF}
			for i, r := range rows {
				a.Updates = append(a.Updates, r.updates(int64(i+1+len(name)))...)
			}
			first, err := pass(t, a, "peft", base)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			there, err := pass(t, first, "gguf", base)
			if reason := unserved[rows[0].tensor]; reason != "" {
				if f := finding.Of(err); f == nil || !strings.Contains(f.Message, reason) || f.Hint == "" {
					t.Errorf("%s: got %v, expected %q", name, err, reason)
				}
				refusals++
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			back, err := pass(t, there, "peft", base)
			if err != nil {
				t.Errorf("%s: does not come back: %v", name, err)
				continue
			}
			want, got := changes(t, first, base), changes(t, back, base)
			if len(rows) == 1 { // comes back under the name of the tensor's first module
				want, got = unnamed(want), unnamed(got)
			}
			if d := difference(t, got, want); d > 2*oneRounding {
				t.Errorf("%s: ΔW differs by %g of its terms", name, d)
			}
			trips += len(rows)
		}
		for _, r := range vectors {
			a := &adapter.Adapter{Path: "synthetic", Space: naming.HF, Updates: groups[0][0].updates(1)}
			module := strings.Replace(r.module, "#", "1", 1)
			a.Updates = append(a.Updates, adapter.Update{Target: adapter.Target{Module: module, Param: "weight"}, Kind: adapter.Replace,
				Scale: adapter.Scale{Value: 1}, Value: values(7, 1, smallHidden)})
			out, err := Encode(a, "gguf", Target{Name: "out.gguf", Base: base})
			switch {
			case !strings.Contains(module, "norm"): // PEFT saves it like any other module
				if f := finding.Of(err); f == nil || f.Module != module {
					t.Errorf("%s %s: got %v", arch.name, module, err)
				}
			case err != nil:
				t.Errorf("%s %s: %v", arch.name, module, err)
			case !slices.ContainsFunc(out.Findings, func(f finding.Finding) bool { return f.Code == "adapter.peer_ignores" && f.Tensor != "" }):
				t.Errorf("%s %s: the norm is not reported", arch.name, module)
			}
			norms++
		}
	}
	if trips < 360 || refusals < 6 || norms < 130 {
		t.Errorf("%d modules went there and back, %d were refused, %d norms", trips, refusals, norms)
	}
}

// unnamed replaces the modules of changes by their number in the order of names.
func unnamed(byName map[string]change) map[string]change {
	out := map[string]change{}
	for i, n := range slices.Sorted(maps.Keys(byName)) {
		out[fmt.Sprint(i)] = byName[n]
	}
	return out
}
