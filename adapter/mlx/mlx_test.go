package mlx

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/evidence"
	"github.com/loratool/loratool/adapter/peft"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// folder writes an adapter of float32 tensors with the values 1, 2, 3, ….
func folder(t *testing.T, config string, names []string, shapes [][]int) string {
	t.Helper()
	type entry struct {
		DType   string `json:"dtype"`
		Shape   []int  `json:"shape"`
		Offsets [2]int `json:"data_offsets"`
	}
	header, data := map[string]entry{}, []byte{}
	for i, n := range names {
		count, start := 1, len(data)
		for _, d := range shapes[i] {
			count *= d
		}
		for k := range count {
			data = binary.LittleEndian.AppendUint32(data, math.Float32bits(float32(k+1)))
		}
		header[n] = entry{"F32", shapes[i], [2]int{start, len(data)}}
	}
	h, err := json.Marshal(header)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := append(binary.LittleEndian.AppendUint64(nil, uint64(len(h))), append(h, data...)...)
	for name, b := range map[string][]byte{"adapters.safetensors": file, ConfigName: []byte(config)} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

var names = []string{"model.layers.0.self_attn.q_proj.lora_a", "model.layers.0.self_attn.q_proj.lora_b"}

func TestOpen(t *testing.T) {
	for config, scale := range map[string]float64{
		`{"fine_tune_type": "lora", "lora_parameters": {"rank": 2, "scale": 20.0}}`:                                 20,
		`{"fine_tune_type": "lora", "lora_layers": 16, "lora_parameters": {"rank": 2, "alpha": 16, "scale": 10.0}}`: 80,
		`{"fine_tune_type": "lora", "num_layers": 16, "lora_parameters": {"rank": 2, "alpha": 16, "scale": 10.0}}`:  10,
		`{"lora_parameters": {"rank": 2, "alpha": 16}}`:                                                             8,
		`{"lora_alpha": 3}`:                     1.5,
		`{"lora_alpha": 3, "use_rslora": true}`: 3 / math.Sqrt2,
	} {
		dir := folder(t, config, names, [][]int{{3, 2}, {2, 1}})
		if Detect(evidence.Look(dir)) == "" || Detect(evidence.Look(filepath.Join(dir, "adapters.safetensors"))) == "" {
			t.Error("not detected")
		}
		a, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		u := a.Updates[0]
		if u.Target.String() != "model.layers.0.self_attn.q_proj.weight" || u.Rank != 2 || u.Scale.Value != scale {
			t.Errorf("got %v, rank %d, scale %v", u.Target, u.Rank, u.Scale)
		}
		x, err := u.A.Load()
		if err != nil || u.A.Rows != 2 || !slices.Equal(x, []float32{1, 3, 5, 2, 4, 6}) {
			t.Errorf("A is %v, %v", x, err)
		}
		if x, err = u.B.Load(); err != nil || u.B.Rows != 1 || !slices.Equal(x, []float32{1, 2}) {
			t.Errorf("B is %v, %v", x, err)
		}
		if f, err := peft.Encode(a, peft.EncodeOptions{}); err != nil || len(f.Weights) != 2 {
			t.Errorf("as PEFT: %v", err)
		}
	}
}

func TestErrors(t *testing.T) {
	const ok = `{"lora_alpha": 3}`
	for _, c := range []struct {
		config string
		names  []string
		shapes [][]int
		code   string
	}{
		{`{}`, names, [][]int{{3, 2}, {2, 1}}, "adapter.missing_alpha"},
		{`[`, names, [][]int{{3, 2}, {2, 1}}, "adapter.bad_json"},
		{`{"fine_tune_type": "full"}`, names, [][]int{{3, 2}, {2, 1}}, "adapter.unsupported_feature"},
		{`{"fine_tune_type": "dora", "lora_alpha": 3}`, names, [][]int{{3, 2}, {2, 1}}, "adapter.missing_magnitude"},
		{ok, names[:1], [][]int{{3, 2}}, "adapter.missing_pair"},
		{ok, names[1:], [][]int{{2, 1}}, "adapter.missing_pair"},
		{ok, names, [][]int{{2, 3}, {2, 1}}, "adapter.rank_mismatch"},
		{ok, names, [][]int{{4, 3, 2}, {4, 2, 1}}, "adapter.unsupported_feature"},
		{ok, append(slices.Clone(names), "model.layers.0.self_attn.q_proj.m"), [][]int{{3, 2}, {2, 1}, {1}}, "adapter.unsupported_feature"},
		{ok, append(slices.Clone(names), "model.norm.weight"), [][]int{{3, 2}, {2, 1}, {1}}, "adapter.unexpected_tensor"},
	} {
		a, err := Open(folder(t, c.config, c.names, c.shapes))
		if f := finding.Of(err); f == nil || f.Code != c.code {
			t.Errorf("%s %v: got %v, %v, expected %s", c.config, c.shapes, a, err, c.code)
		}
	}
	var none *adapter.Adapter
	if a, err := Open(t.TempDir()); a != none || err == nil {
		t.Error("an empty folder opens")
	}
}

// TestEncodeStack lays four experts out, of which one is missing and one has a smaller rank and another
// scale.
func TestEncodeStack(t *testing.T) {
	a := &adapter.Adapter{Space: naming.HF, BaseModel: "some/base"}
	for e, rank := range []int{2, 1, 0, 2} {
		if rank == 0 {
			continue
		}
		v := []float32{1, 2, 3, 4, 5, 6}
		u := adapter.Update{Target: adapter.Target{Module: fmt.Sprintf("model.layers.3.block_sparse_moe.experts.%d.w2", e), Param: "weight"}, Kind: adapter.LowRank, Layer: adapter.Linear,
			Rank: rank, A: adapter.FromValues(int64(rank), 3, v[:3*rank]), B: adapter.FromValues(1, int64(rank), v[:rank]), Scale: adapter.Scale{Value: 4}}
		if rank == 1 {
			u.Scale.Value = 2
		}
		a.Updates = append(a.Updates, u)
	}
	f, err := Encode(a, Options{Experts: 5})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct {
		name   string
		shape  tensor.Shape
		values []float32
	}{
		{"model.layers.3.block_sparse_moe.switch_mlp.down_proj.lora_a", tensor.Shape{5, 2, 3}, []float32{1, 2, 3, 4, 5, 6, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 0, 0, 0, 0, 0, 0}},
		{"model.layers.3.block_sparse_moe.switch_mlp.down_proj.lora_b", tensor.Shape{5, 1, 2}, []float32{1, 2, 0.5, 0, 0, 0, 1, 2, 0, 0}},
	} {
		w := f.Weights[i]
		v, err := w.Values.Load()
		if err != nil || w.Name != want.name || !w.Shape.Equal(want.shape) || !slices.Equal(v, want.values) {
			t.Errorf("%s %v is %v, %v", w.Name, w.Shape, v, err)
		}
	}
	const config = `{
    "fine_tune_type": "lora",
    "lora_parameters": {
        "dropout": 0,
        "keys": [
            "block_sparse_moe.switch_mlp.down_proj"
        ],
        "rank": 2,
        "scale": 4
    },
    "model": "some/base",
    "num_layers": -1
}`
	if string(f.Config) != config {
		t.Errorf("the configuration is\n%s", f.Config)
	}
}

// TestAlphaTwice checks configurations with a scale and an alpha, which only early versions of mlx-lm multiplied.
func TestAlphaTwice(t *testing.T) {
	for config, conflict := range map[string]bool{
		`{"num_layers": 16, "lora_parameters": {"rank": 2, "alpha": 16, "scale": 10.0}}`:  true,
		`{"num_layers": 16, "lora_parameters": {"rank": 2, "alpha": 20, "scale": 10.0}}`:  false,
		`{"lora_layers": 16, "lora_parameters": {"rank": 2, "alpha": 16, "scale": 10.0}}`: false,
		`{"num_layers": 16, "lora_parameters": {"rank": 2, "scale": 10.0}}`:               false,
	} {
		a, err := Open(folder(t, config, names, [][]int{{3, 2}, {2, 1}}))
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		if (a.Doubt != nil) != conflict || (len(a.Findings) > 0) != conflict || conflict && (a.Findings[0].Code != "adapter.alpha_conflict" || a.Findings[0].Level != finding.Warning) {
			t.Errorf("%s: doubt %v, findings %v", config, a.Doubt, a.Findings)
		}
	}
}
