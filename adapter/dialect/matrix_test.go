package dialect

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/geometry"
	"github.com/loratool/loratool/adapter/gguflora"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// A family is the dialects that share a kind of base, and adapters that show what each can hold.
type family struct {
	title    string
	dialects []string
	features []feature
}

// A feature is something that adapters have. The first of a family is what the pairs are tested with.
type feature struct {
	name    string
	config  string // the base's config.json
	adapter *adapter.Adapter
}

// values are distinct, of both signs, and of very different sizes.
func values(seed, rows, cols int64) adapter.Factor {
	v := make([]float32, rows*cols)
	x := uint64(seed)*0x9e3779b97f4a7c15 + 1
	for i := range v {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		v[i] = (float32(x>>40)/(1<<24) - 0.5) * float32(1+x%7)
	}
	return adapter.FromValues(rows, cols, v)
}

const llamaConfig = `{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4,
	"num_key_value_heads": 2, "head_dim": 4, "num_hidden_layers": 2, "vocab_size": 32}`

const mixtralConfig = `{"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4,
	"num_key_value_heads": 2, "head_dim": 4, "num_hidden_layers": 2, "num_local_experts": 3, "vocab_size": 32}`

const qwenMoeConfig = `{"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 8,
	"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "num_hidden_layers": 2, "num_experts": 3, "vocab_size": 32}`

// llama makes low-rank updates of every linear layer of the small Llama; change alters each.
func llama(change func(i int, u *adapter.Update)) *adapter.Adapter {
	a := &adapter.Adapter{Path: "synthetic", Space: naming.HF, BaseModel: "some/base"}
	for layer := range 2 {
		for _, m := range []struct {
			name    string
			in, out int64
		}{{"self_attn.q_proj", 16, 16}, {"self_attn.k_proj", 16, 8}, {"self_attn.v_proj", 16, 8}, {"self_attn.o_proj", 16, 16},
			{"mlp.gate_proj", 16, 24}, {"mlp.up_proj", 16, 24}, {"mlp.down_proj", 24, 16}} {
			add(a, fmt.Sprintf("model.layers.%d.%s", layer, m.name), m.in, m.out, 4, change)
		}
	}
	return a
}

func add(a *adapter.Adapter, module string, in, out, rank int64, change func(i int, u *adapter.Update)) {
	i := len(a.Updates)
	u := adapter.Update{Target: adapter.Target{Module: module, Param: "weight"}, Kind: adapter.LowRank, Layer: adapter.Linear, Rank: int(rank)}
	u.Scale = adapter.Scale{Value: 8 / float64(rank), Alpha: 8, Rank: int(rank)}
	u.A, u.B = values(int64(2*i+1), rank, in), values(int64(2*i+2), out, rank)
	if change != nil {
		change(i, &u)
	}
	a.Updates = append(a.Updates, u)
}

// resize gives an update another rank and alpha.
func resize(u *adapter.Update, rank int64, alpha, scale float64) {
	u.A, u.B, u.Rank = values(rank+int64(100*alpha), rank, u.A.Cols), values(rank-int64(100*alpha), u.B.Rows, rank), int(rank)
	u.Scale = adapter.Scale{Value: scale, Alpha: alpha, Rank: int(rank)}
}

var languageModels = family{
	title:    "Language models",
	dialects: []string{"peft", "gguf", "mlx", "torchtune", "ort", "trtllm", "openvino"},
	features: []feature{
		{"ranks, alphas and patterns of all kinds", llamaConfig, llama(func(i int, u *adapter.Update) {
			rank := int64(1 + i%5)
			resize(u, rank, []float64{16, 3, 0.7}[i%3], []float64{16, 3, 0.7}[i%3]/float64(rank))
		})},
		{"one rank, one alpha", llamaConfig, llama(nil)},
		{"rsLoRA", llamaConfig, llama(func(i int, u *adapter.Update) { resize(u, 3, 8, 8/math.Sqrt(3)) })},
		{"DoRA", llamaConfig, llama(func(i int, u *adapter.Update) {
			u.Kind, u.Magnitude = adapter.DoRA, values(int64(i+1000), 1, u.B.Rows)
		})},
		{"output layer (lm_head)", llamaConfig, func() *adapter.Adapter {
			a := llama(nil)
			add(a, "lm_head", 16, 32, 4, nil)
			return a
		}()},
		{"token embedding", llamaConfig, func() *adapter.Adapter {
			a := llama(nil)
			add(a, "model.embed_tokens", 32, 16, 4, func(_ int, u *adapter.Update) { u.Layer = adapter.Embedding })
			return a
		}()},
		{"experts", mixtralConfig, func() *adapter.Adapter {
			a := &adapter.Adapter{Path: "synthetic", Space: naming.HF}
			for e := range 3 {
				for _, w := range []struct {
					name    string
					in, out int64
				}{{"w1", 16, 24}, {"w2", 24, 16}, {"w3", 16, 24}} {
					add(a, fmt.Sprintf("model.layers.0.block_sparse_moe.experts.%d.%s", e, w.name), w.in, w.out, 4, nil)
				}
			}
			return a
		}()},
		{"experts in stacked parameters (target_parameters)", qwenMoeConfig, func() *adapter.Adapter {
			a := &adapter.Adapter{Path: "synthetic", Space: naming.HF}
			for e := range 3 {
				for _, w := range []struct {
					name    string
					in, out int64
				}{{"gate_up_proj", 16, 16}, {"down_proj", 8, 16}} {
					add(a, "model.layers.0.mlp.experts", w.in, w.out, 4, func(_ int, u *adapter.Update) { u.Param, u.Expert, u.Experts = w.name, e, 3 })
				}
			}
			return a
		}()},
		{"replaced output layer (modules_to_save)", llamaConfig, func() *adapter.Adapter {
			a := llama(nil)
			a.Updates = append(a.Updates, adapter.Update{Target: adapter.Target{Module: "lm_head", Param: "weight"}, Kind: adapter.Replace, Layer: adapter.Linear,
				Scale: adapter.Scale{Value: 1}, Value: values(7, 32, 16)})
			return a
		}()},
		{"trained token rows", llamaConfig, func() *adapter.Adapter {
			a := llama(nil)
			a.Updates = append(a.Updates, adapter.Update{Target: adapter.Target{Module: "model.embed_tokens", Param: "weight"}, Kind: adapter.Rows, Layer: adapter.Embedding,
				Scale: adapter.Scale{Value: 1}, Value: values(7, 2, 16), Index: []int64{5, 3}})
			return a
		}()},
		{"biases of lora_B", llamaConfig, func() *adapter.Adapter {
			a := llama(nil)
			u := a.Updates[0]
			a.Updates = append(a.Updates, adapter.Update{Target: adapter.Target{Module: u.Module, Param: "bias"}, Kind: adapter.Bias, Rank: u.Rank, Scale: u.Scale, Value: values(7, 1, 16)})
			return a
		}()},
	},
}

// families are what the table of docs/ecosystems.md is made of.
var families = []family{languageModels}

// pass encodes an adapter, writes it, and reads it again.
func pass(t *testing.T, a *adapter.Adapter, to, base string) (*adapter.Adapter, error) {
	t.Helper()
	name := "out." + map[string]string{"gguf": "gguf", "ort": "onnx_adapter", "openvino": "safetensors"}[to]
	if slices.Contains(pipelineDialects(), to) {
		name = "out.safetensors"
	}
	out, err := Encode(a, to, Target{Name: name, Base: base, DType: tensor.F32})
	if err != nil {
		return nil, err
	}
	path := filepath.Join(t.TempDir(), name)
	w, err := layout.Create(path, out.Layout, false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for i, x := range out.Weights {
		b, err := x.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if err := w.WriteAt(i, b, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	detected := to
	if to == "onetrainer" && slices.Contains(unets, a.Arch) {
		detected = "kohya" // the same names
	}
	if got := Detect(path); got != detected && slices.ContainsFunc(a.Updates, func(u adapter.Update) bool { return u.Kind == adapter.LowRank }) {
		t.Fatalf("%s was written, and detected as %q", to, got)
	}
	again, err := Open(path, Options{Base: base})
	if err != nil {
		t.Fatalf("%s: %v", to, err)
	}
	t.Cleanup(func() { again.Close() })
	return again, nil
}

// A change is what an update adds to each element of its target, and how much its terms amount to.
type change struct{ delta, size []float64 }

// changes computes what an adapter does, in Hugging Face's names.
func changes(t *testing.T, a *adapter.Adapter, base string) map[string]change {
	t.Helper()
	if a.Space == naming.GGUF {
		g, err := geometry.Read(base)
		if err != nil {
			t.Fatal(err)
		}
		if a, err = gguflora.ToHF(a, g.Arch, g.HP); err != nil {
			t.Fatal(err)
		}
	}
	load := func(f adapter.Factor) []float32 {
		v, err := f.Load()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	out := map[string]change{}
	for _, u := range apart(a.Updates) {
		name := fmt.Sprintf("%s %s", u.Target, u.Kind)
		if _, ok := out[name]; ok {
			t.Fatalf("%s is there twice", name)
		}
		c := change{}
		if u.Value.Present() {
			for _, x := range load(u.Value) {
				c.delta = append(c.delta, u.Scale.Value*float64(x))
			}
			c.size = make([]float64, len(c.delta))
			out[name] = c
			continue
		}
		va, vb := load(u.A), load(u.B)
		for i := range u.B.Rows {
			for j := range u.A.Cols {
				d, s := 0.0, 0.0
				for k := range u.A.Rows {
					x := u.Scale.Value * float64(vb[i*u.B.Cols+k]) * float64(va[k*u.A.Cols+j])
					d, s = d+x, s+math.Abs(x)
				}
				c.delta, c.size = append(c.delta, d), append(c.size, s)
			}
		}
		if u.Kind == adapter.DoRA {
			for _, x := range load(u.Magnitude) {
				c.delta, c.size = append(c.delta, float64(x)), append(c.size, 0)
			}
		}
		out[name] = c
	}
	return out
}

// apart gives every expert of a stacked parameter its own modules, since some dialects stack and others do
// not.
func apart(ups []adapter.Update) []adapter.Update {
	var out []adapter.Update
	for _, u := range ups {
		if u.Experts == 0 {
			out = append(out, u)
			continue
		}
		half := u.B.Rows / 2
		parts := map[string]adapter.Factor{u.Param: u.B}
		if u.Param == "gate_up_proj" {
			parts = map[string]adapter.Factor{"gate_proj": u.B.SliceRows(0, half), "up_proj": u.B.SliceRows(half, half)}
		}
		for name, b := range parts {
			v := u
			v.Module, v.Param, v.B = fmt.Sprintf("%s.%d.%s", u.Module, u.Expert, name), "weight", b
			out = append(out, v)
		}
	}
	return out
}

// difference is the largest difference between two sets of changes, as a share of the terms. Values that
// are carried unchanged must be equal.
func difference(t *testing.T, got, want map[string]change) float64 {
	t.Helper()
	worst := 0.0
	for name, w := range want {
		g, ok := got[name]
		if !ok || len(g.delta) != len(w.delta) {
			t.Fatalf("%s is lost or has another size", name)
		}
		for i := range w.delta {
			if d := math.Abs(g.delta[i] - w.delta[i]); d > 0 {
				worst = max(worst, d/w.size[i]) // +Inf where the size is 0
			}
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%d changes became %d", len(want), len(got))
	}
	return worst
}

// What a scale in float64 and one rounding of each element to float32 may differ by.
const (
	scaleRounding = 0x1p-48
	oneRounding   = 0x1p-24
)

func verdict(t *testing.T, d float64, roundings float64) string {
	t.Helper()
	switch {
	case d <= scaleRounding:
		return "exact"
	case d <= roundings*oneRounding*(1+1e-6):
		return "rounded"
	}
	t.Fatalf("ΔW differs by %g of its terms", d)
	return ""
}

func baseOf(t *testing.T, f feature) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(path, []byte(f.config), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// roundTrip takes an adapter in the dialect from to another one and back, and says how ΔW fared. ok is false
// where one of the two refuses it.
func roundTrip(t *testing.T, x feature, from, to string) (v string, ok bool) {
	t.Helper()
	base := baseOf(t, x)
	first, err := pass(t, x.adapter, from, base)
	if err != nil {
		return "", false
	}
	there, err := pass(t, first, to, base)
	if err != nil {
		return "", false
	}
	back, err := pass(t, there, from, base)
	if err != nil {
		t.Errorf("%s: what came from %s does not go back to it from %s: %v", x.name, from, to, err)
		return "", false
	}
	want := present(changes(t, first, base))
	verdict(t, difference(t, want, changes(t, x.adapter, base)), 1)
	verdict(t, difference(t, present(changes(t, back, base)), want), 2)
	return verdict(t, difference(t, present(changes(t, there, base)), want), 1), true
}

// TestMatrix converts between every two dialects of a family, there and back, and writes down how ΔW
// fared; the committed table must say the same.
func TestMatrix(t *testing.T) {
	var doc bytes.Buffer
	doc.WriteString(preamble)
	trips := 0
	for _, f := range families {
		fmt.Fprintf(&doc, "\n## %s\n\n### From any to any\n\n", f.title)
		fmt.Fprintf(&doc, "An adapter with %s, from the dialect of the row to that of the column.\n\n", f.features[0].name)
		fmt.Fprintf(&doc, "| from \\ to | %s |\n|---|%s\n", strings.Join(f.dialects, " | "), strings.Repeat("---|", len(f.dialects)))
		for _, from := range f.dialects {
			fmt.Fprintf(&doc, "| **%s** |", from)
			for _, to := range f.dialects {
				if from == to {
					doc.WriteString(" – |")
					continue
				}
				v, ok := roundTrip(t, f.features[0], from, to)
				if !ok {
					t.Fatalf("%s to %s is refused", from, to)
				}
				fmt.Fprintf(&doc, " %s |", v)
				for _, x := range f.features[1:] {
					if _, ok := roundTrip(t, x, from, to); ok {
						trips++
					}
				}
				trips++
			}
			doc.WriteString("\n")
		}
		f.table(t, &doc)
	}
	doc.WriteString(pipelinePreamble)
	trips += pipelinePairs(t, &doc)
	doc.WriteString("\n### What each dialect holds\n\n" + holdsPreamble)
	pipelineTable(t, &doc)
	t.Logf("%d journeys there and back", trips)
	if trips < 200 {
		t.Errorf("only %d journeys were made", trips)
	}
	const committed = "../../docs/ecosystems.md"
	if os.Getenv("LORATOOL_UPDATE") != "" {
		if err := os.WriteFile(committed, doc.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(committed)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, doc.Bytes()) {
		t.Errorf("docs/ecosystems.md is not current; run this test with LORATOOL_UPDATE=1")
	}
}

// table writes what each dialect can hold.
func (f family) table(t *testing.T, doc *bytes.Buffer) {
	fmt.Fprintf(doc, "\n### What each dialect holds\n\n| | %s |\n|---|%s\n", strings.Join(f.dialects, " | "), strings.Repeat("---|", len(f.dialects)))
	var notes []string
	for _, x := range f.features {
		base := baseOf(t, x)
		fmt.Fprintf(doc, "| %s |", x.name)
		for _, to := range f.dialects {
			there, err := pass(t, x.adapter, to, base)
			if err == nil {
				fmt.Fprintf(doc, " %s |", verdict(t, difference(t, changes(t, there, base), changes(t, x.adapter, base)), 1))
				continue
			}
			found := finding.Of(err)
			if found == nil || !strings.HasPrefix(found.Code, "adapter.") && !strings.HasPrefix(found.Code, "match.") || found.Hint == "" {
				t.Errorf("%s to %s: the refusal %v is no finding with a hint", x.name, to, err)
				continue
			}
			n := len(notes) + 1
			for i, s := range notes {
				if s == found.Message {
					n = i + 1
				}
			}
			if n > len(notes) {
				notes = append(notes, found.Message)
			}
			fmt.Fprintf(doc, " refused [%d] |", n)
		}
		doc.WriteString("\n")
	}
	doc.WriteString("\n")
	for i, s := range notes {
		fmt.Fprintf(doc, "%d. %s\n", i+1, s)
	}
}

const preamble = `# Ecosystems

Which adapters go where, and what becomes of ΔW. This page is written by the tests (adapter/dialect), which
convert synthetic adapters between every two dialects of a family, there and back, and compare ΔW element by
element.

- **exact**: ΔW is the same, up to the last bits of a scale in float64.
- **rounded**: the target has one scale where the adapter has several, or none; the scale is multiplied into
  lora_B, each element of which is rounded once.
- **refused**: the target cannot hold it. The reasons are below the table; merging the adapter into the base
  always works.

Factors are compared as float32. With ` + "`--dtype`" + ` a dialect may store less: TensorRT-LLM's files are f16
unless told otherwise. NeMo and Megatron adapters are read, not written.
`
