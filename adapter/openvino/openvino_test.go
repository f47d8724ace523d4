package openvino

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/evidence"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

const q = "base_model.model.model.layers.0.self_attn.q_proj"

// file writes tensors of float32 that all hold the value 6.
func file(t *testing.T, names []string, shapes [][]int) string {
	t.Helper()
	header, data := map[string]any{}, []byte{}
	for i, n := range names {
		count, start := 1, len(data)
		for _, d := range shapes[i] {
			count *= d
		}
		for range count {
			data = binary.LittleEndian.AppendUint32(data, math.Float32bits(6))
		}
		header[n] = map[string]any{"dtype": "F32", "shape": shapes[i], "data_offsets": []int{start, len(data)}}
	}
	h, err := json.Marshal(header)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "lora.safetensors")
	if err := os.WriteFile(path, append(binary.LittleEndian.AppendUint64(nil, uint64(len(h))), append(h, data...)...), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestOpen(t *testing.T) {
	const k = "base_model.model.model.layers.0.self_attn.k_proj"
	path := file(t, []string{q + suffixA, q + suffixB, q + suffixAlpha, k + suffixA, k + suffixB, "base_model.model.lm_head.weight"},
		[][]int{{2, 3}, {4, 2}, {}, {2, 3}, {4, 2}, {2, 3}})
	if Detect(evidence.Look(path)) == "" {
		t.Error("not detected")
	}
	a, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	scales, kinds := map[string]float64{}, map[string]adapter.Kind{}
	for _, u := range a.Updates {
		scales[u.Module], kinds[u.Module] = u.Scale.Value, u.Kind
	}
	if len(a.Updates) != 3 || scales["model.layers.0.self_attn.q_proj"] != 3 || scales["model.layers.0.self_attn.k_proj"] != 1 || kinds["lm_head"] != adapter.Replace {
		t.Errorf("%v %v", scales, kinds)
	}
	if len(a.Findings) != 1 || a.Findings[0].Code != "adapter.missing_alpha" {
		t.Errorf("findings %v", a.Findings)
	}
	// With a configuration beside it the file is PEFT's.
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), evidence.ConfigName), []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	if e := Detect(evidence.Look(path)); e != "" {
		t.Errorf("a PEFT file is detected: %s", e)
	}
}

func TestOpenErrors(t *testing.T) {
	for _, c := range []struct {
		code   string
		names  []string
		shapes [][]int
	}{
		{"adapter.missing_pair", []string{q + suffixA, q + suffixAlpha}, [][]int{{2, 3}, {}}},
		{"adapter.missing_pair", []string{q + suffixB, q + suffixAlpha}, [][]int{{2, 3}, {}}},
		{"adapter.bad_alpha", []string{q + suffixA, q + suffixB, q + suffixAlpha}, [][]int{{2, 3}, {4, 2}, {2}}},
		{"adapter.rank_mismatch", []string{q + suffixA, q + suffixB, q + suffixAlpha}, [][]int{{2, 3}, {4, 3}, {}}},
		{"adapter.unexpected_tensor", []string{q + suffixA, q + suffixB, q + suffixAlpha, q + ".lora_magnitude_vector"}, [][]int{{2, 3}, {4, 2}, {}, {4}}},
		{"adapter.unexpected_tensor", []string{q + suffixA, q + suffixB, "base_model.model.model.norm.weight"}, [][]int{{2, 3}, {4, 2}, {3}}},
		{"adapter.unexpected_tensor", []string{q + suffixA, q + suffixB, "other.alpha"}, [][]int{{2, 3}, {4, 2}, {}}},
	} {
		if _, err := Open(file(t, c.names, c.shapes)); finding.Of(err) == nil || finding.Of(err).Code != c.code {
			t.Errorf("%v: got %v, expected %s", c.names, err, c.code)
		}
	}
}

func TestEncode(t *testing.T) {
	f := adapter.FromValues(1, 1, []float32{1})
	a := &adapter.Adapter{Space: naming.HF, Updates: []adapter.Update{
		{Target: adapter.Target{Module: "model.layers.0.self_attn.q_proj", Param: "weight"}, Kind: adapter.LowRank, Layer: adapter.Linear, Rank: 4,
			A: f, B: f, Scale: adapter.Scale{Value: 8, Alpha: 16, Rank: 4}}, // rsLoRA: 16/√4
	}}
	w, err := Encode(a, tensor.BF16)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, x := range w {
		names = append(names, x.Name+" "+x.DType.String())
	}
	if !slices.Equal(names, []string{q + ".alpha F32", q + ".lora_A.weight BF16", q + ".lora_B.weight BF16"}) {
		t.Errorf("got %v", names)
	}
	if v, err := w[0].Values.Load(); err != nil || v[0] != 32 || len(w[0].Shape) != 0 {
		t.Errorf("alpha is %v %v, %v", v, w[0].Shape, err)
	}
}
