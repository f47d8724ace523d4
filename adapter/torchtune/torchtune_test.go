package torchtune

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/evidence"
	"github.com/loratool/loratool/adapter/geometry"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// file writes tensors of float32 with the values 1, 2, 3, … and a configuration.
func file(t *testing.T, config string, names []string, shapes [][]int) string {
	t.Helper()
	header, data := map[string]any{}, []byte{}
	for i, n := range names {
		count, start := 1, len(data)
		for _, d := range shapes[i] {
			count *= d
		}
		for k := range count {
			data = binary.LittleEndian.AppendUint32(data, math.Float32bits(float32(k+1)))
		}
		header[n] = map[string]any{"dtype": "F32", "shape": shapes[i], "data_offsets": []int{start, len(data)}}
	}
	h, err := json.Marshal(header)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	b := append(binary.LittleEndian.AppendUint64(nil, uint64(len(h))), append(h, data...)...)
	for name, b := range map[string][]byte{"adapter_0.safetensors": b, ConfigName: []byte(config)} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "adapter_0.safetensors")
}

// base is a model with 2 query heads and 1 key-value head of size 4.
func base(arch string) func() (*geometry.Geometry, error) {
	return func() (*geometry.Geometry, error) {
		return &geometry.Geometry{Arch: arch, HP: naming.HyperParameters{Heads: 2, KVHeads: 1, HeadDim: 4}}, nil
	}
}

func load(t *testing.T, f adapter.Factor) []float32 {
	t.Helper()
	v, err := f.Load()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestOrder checks the row order of every module against the reshape written out in torchtune:
// view(heads, d/2, 2, r).transpose(1, 2). Qwen2 keeps its rows, and the magnitude goes with lora_b.
func TestOrder(t *testing.T) {
	names := []string{"layers.5.attn.q_proj.lora_a.weight", "layers.5.attn.q_proj.lora_b.weight", "layers.5.attn.q_proj.magnitude",
		"layers.5.attn.k_proj.lora_a.weight", "layers.5.attn.k_proj.lora_b.weight", "layers.5.attn.output_proj.lora_a.weight", "layers.5.attn.output_proj.lora_b.weight"}
	path := file(t, `{"r": 1, "lora_alpha": 3}`, names, [][]int{{1, 3}, {8, 1}, {8}, {1, 3}, {4, 1}, {1, 3}, {8, 1}})
	if Detect(evidence.Look(path)) == "" || Detect(evidence.Look(filepath.Dir(path))) == "" {
		t.Error("not detected")
	}
	half, straight := []float32{1, 3, 2, 4, 5, 7, 6, 8}, []float32{1, 2, 3, 4, 5, 6, 7, 8}
	for arch, q := range map[string][]float32{"llama": half, "qwen2": straight} {
		a, err := Open(path, base(arch))
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		want := map[string][]float32{"self_attn.q_proj": q, "self_attn.k_proj": q[:4], "self_attn.o_proj": straight}
		for _, u := range a.Updates {
			if b := load(t, u.B); !slices.Equal(b, want[strings.TrimPrefix(u.Module, "model.layers.5.")]) || u.Scale.Value != 3 {
				t.Errorf("%s %s: rows %v, scale %v", arch, u.Module, b, u.Scale.Value)
			}
			if u.Kind == adapter.DoRA && !slices.Equal(load(t, u.Magnitude), q) {
				t.Errorf("%s: magnitude %v", arch, load(t, u.Magnitude))
			}
		}
	}
	if _, err := Open(path, base("mamba")); finding.Of(err) == nil || finding.Of(err).Code != "base.unsupported" {
		t.Errorf("got %v", err)
	}
}

func TestEncode(t *testing.T) {
	low := func(module string, rank, out int64, scale float64) adapter.Update {
		v := make([]float32, rank*out)
		for i := range v {
			v[i] = float32(i + 1)
		}
		return adapter.Update{Target: adapter.Target{Module: module, Param: "weight"}, Kind: adapter.LowRank, Layer: adapter.Linear, Rank: int(rank),
			A: adapter.FromValues(rank, 1, v[:rank]), B: adapter.FromValues(out, rank, v), Scale: adapter.Scale{Value: scale}}
	}
	a := &adapter.Adapter{Space: naming.HF, Updates: []adapter.Update{
		low("model.layers.0.self_attn.q_proj", 1, 8, 2), low("model.layers.0.mlp.down_proj", 2, 2, 2), low("lm_head", 1, 2, 3)}}
	f, err := Encode(a, tensor.Invalid, base("llama"))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]float32{
		"layers.0.attn.q_proj.lora_a.weight": {1, 0}, "layers.0.attn.q_proj.lora_b.weight": {1, 0, 3, 0, 2, 0, 4, 0, 5, 0, 7, 0, 6, 0, 8, 0},
		"layers.0.mlp.w2.lora_a.weight": {1, 2}, "layers.0.mlp.w2.lora_b.weight": {1, 2, 3, 4},
		"output.lora_a.weight": {1, 0}, "output.lora_b.weight": {1.5, 0, 3, 0},
	}
	for _, w := range f.Weights {
		if got := load(t, w.Values); !slices.Equal(got, want[w.Name]) {
			t.Errorf("%s is %v, expected %v", w.Name, got, want[w.Name])
		}
	}
	const config = `{
  "lora_alpha": 4,
  "peft_type": "LORA",
  "r": 2,
  "target_modules": [
    "down_proj",
    "lm_head",
    "q_proj"
  ],
  "use_dora": false
}`
	if string(f.Config) != config || len(f.Weights) != len(want) {
		t.Errorf("%d tensors, configuration\n%s", len(f.Weights), f.Config)
	}
}

func TestErrors(t *testing.T) {
	none := func() (*geometry.Geometry, error) { return nil, errors.New("no base") }
	a, b := "layers.0.mlp.w1.lora_a.weight", "layers.0.mlp.w1.lora_b.weight"
	const ok = `{"lora_alpha": 3}`
	for _, c := range []struct {
		config, code string
		names        []string
		shapes       [][]int
	}{
		{`{}`, "adapter.missing_alpha", []string{a, b}, [][]int{{2, 3}, {4, 2}}},
		{`[`, "adapter.bad_json", []string{a, b}, [][]int{{2, 3}, {4, 2}}},
		{`{"r": 8, "lora_alpha": 3}`, "adapter.rank_mismatch", []string{a, b}, [][]int{{2, 3}, {4, 2}}},
		{ok, "adapter.rank_mismatch", []string{a, b}, [][]int{{2, 3}, {4, 1}}},
		{ok, "adapter.missing_pair", []string{a}, [][]int{{2, 3}}},
		{ok, "adapter.unexpected_tensor", []string{a, b, "layers.0.sa_norm.scale"}, [][]int{{2, 3}, {4, 2}, {3}}},
		{ok, "adapter.shape_mismatch", []string{a, b, "layers.0.mlp.w1.magnitude"}, [][]int{{2, 3}, {4, 2}, {3}}},
		{ok, "adapter.shape_mismatch", []string{"layers.0.attn.q_proj.lora_a.weight", "layers.0.attn.q_proj.lora_b.weight"}, [][]int{{2, 3}, {6, 2}}},
	} {
		geo := none
		if c.names[0] != a {
			geo = base("llama")
		}
		_, err := Open(file(t, c.config, c.names, c.shapes), geo)
		if f := finding.Of(err); f == nil || f.Code != c.code {
			t.Errorf("%s %v: got %v, expected %s", c.config, c.shapes, err, c.code)
		}
	}
}
