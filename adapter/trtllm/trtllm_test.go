package trtllm

import (
	"bytes"
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/evidence"
	"github.com/loratool/loratool/adapter/geometry"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/npy"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

func low(module string, rank, in, out int64, scale float64) adapter.Update {
	v := make([]float32, rank*(in+out))
	for i := range v {
		v[i] = float32(i + 1)
	}
	return adapter.Update{Target: adapter.Target{Module: module, Param: "weight"}, Kind: adapter.LowRank, Layer: adapter.Linear, Rank: int(rank),
		A: adapter.FromValues(rank, in, v[:rank*in]), B: adapter.FromValues(out, rank, v[:rank*out]), Scale: adapter.Scale{Value: scale}}
}

// base has hidden size 2, 2 heads of size 1, 1 key-value head, inner width 3.
func base() (*geometry.Geometry, error) {
	return &geometry.Geometry{Hidden: 2, FFN: 3, HP: naming.HyperParameters{Heads: 2, KVHeads: 1, HeadDim: 1}}, nil
}

func write(t *testing.T, f *Files) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "0")
	w, err := layout.Create(path, f.Layout, false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for i, x := range f.Weights {
		b, err := x.Bytes()
		if err == nil {
			err = w.WriteAt(i, b, 0)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestFiles compares the arrays with what the rules of hf_lora_convert.py give: rows sorted by layer and
// module, A then B times the scale then zeros, the halves of gate_up exchanged.
func TestFiles(t *testing.T) {
	a := &adapter.Adapter{Space: naming.HF, Updates: []adapter.Update{
		low("base.model.layers.1.self_attn.k_proj", 1, 2, 1, 10),
		low("model.layers.0.mlp.gate_up_proj", 1, 2, 6, 2),
		low("model.layers.0.self_attn.o_proj", 2, 2, 2, 1),
	}}
	f, err := Encode(a, tensor.F32)
	if err != nil {
		t.Fatal(err)
	}
	path := write(t, f)
	if Detect(evidence.Look(path)) == "" || Detect(evidence.Look(filepath.Join(path, WeightsName))) == "" {
		t.Error("not detected")
	}
	for name, want := range map[string][]uint32{
		ConfigName: {4, 0, 2, 0, 18, 0, 1, 0, 2, 1, 1, 0},
		WeightsName: bits(1, 2, 3, 4, 1, 2, 3, 4,
			1, 2, 8, 10, 12, 2, 4, 6,
			1, 2, 10, 0, 0, 0, 0, 0),
	} {
		n, err := npy.Open(filepath.Join(path, name))
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		x := n.Array()
		b, err := x.Read()
		var data []byte
		for _, v := range want {
			data = binary.LittleEndian.AppendUint32(data, v)
		}
		if err != nil || len(x.Shape) != 3 || x.Shape[1] != 3 || !bytes.Equal(b, data) {
			t.Errorf("%s %v is %v, %v", name, x.Shape, b, err)
		}
	}
	again, err := Open(path, base)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	for i, want := range map[int][]float32{0: {1, 2, 3, 4}, 1: {2, 4, 6, 8, 10, 12}, 2: {10}} {
		u := again.Updates[i]
		if b, err := u.B.Load(); err != nil || !slices.Equal(b, want) || u.Scale.Value != 1 {
			t.Errorf("%s: B is %v, %v", u.Module, b, err)
		}
	}
	if m := again.Updates[2].Module; m != "model.layers.1.self_attn.k_proj" {
		t.Errorf("the module is %q", m)
	}
}

func bits(v ...float32) []uint32 {
	var out []uint32
	for _, x := range v {
		out = append(out, math.Float32bits(x))
	}
	return out
}

func TestRefuses(t *testing.T) {
	dora := low("model.layers.0.self_attn.q_proj", 1, 2, 2, 1)
	dora.Kind = adapter.DoRA
	q := low("model.layers.0.self_attn.q_proj", 1, 2, 2, 1)
	twice := q
	twice.Module = "other." + q.Module
	for name, c := range map[string]struct {
		code    string
		updates []adapter.Update
		dtype   tensor.DType
	}{
		"DoRA":           {"adapter.unsupported_feature", []adapter.Update{dora}, 0},
		"unknown module": {"match.unmatched_target", []adapter.Update{low("model.layers.0.mixer.in_proj", 1, 2, 2, 1)}, 0},
		"two of one":     {"adapter.unsupported_feature", []adapter.Update{q, twice}, 0},
		"bfloat16":       {"convert.bad_dtype", []adapter.Update{q}, tensor.BF16},
		"nothing":        {"adapter.empty_adapter", nil, 0},
	} {
		if _, err := Encode(&adapter.Adapter{Space: naming.HF, Updates: c.updates}, c.dtype); finding.Of(err) == nil || finding.Of(err).Code != c.code {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	f, err := Encode(&adapter.Adapter{Space: naming.HF, Updates: []adapter.Update{low("model.layers.0.self_attn.q_proj", 1, 2, 2, 1)}}, tensor.F32)
	if err != nil {
		t.Fatal(err)
	}
	for code, row := range map[string][]int32{
		"adapter.unsupported_feature": {1, 0, 1, 1},
		"adapter.shape_mismatch":      {6, 0, 1, 0},
		"adapter.bad_config":          {1, 0, 1, 0, 0},
	} {
		path := write(t, f)
		b, err := npy.Header(tensor.I32, tensor.Shape{1, 1, int64(len(row))})
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range row {
			b = binary.LittleEndian.AppendUint32(b, uint32(x))
		}
		if err := os.WriteFile(filepath.Join(path, ConfigName), b, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path, base); finding.Of(err) == nil || finding.Of(err).Code != code {
			t.Errorf("%v: got %v, expected %s", row, err, code)
		}
	}
}
