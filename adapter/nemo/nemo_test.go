package nemo

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/evidence"
	"github.com/loratool/loratool/adapter/geometry"
	"github.com/loratool/loratool/finding"
)

// A stored tensor holds the values first, first + 1, …
type stored struct {
	name       string
	rows, cols int
	first      float32
}

func (s stored) bytes() []byte {
	var b []byte
	for i := range s.rows * s.cols {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(s.first+float32(i)))
	}
	return b
}

// checkpoint is what torch.save writes for a state dict of these tensors.
func checkpoint(t *testing.T, ts []stored) []byte {
	t.Helper()
	var p bytes.Buffer
	text := func(s string) string {
		return "X" + string(binary.LittleEndian.AppendUint32(nil, uint32(len(s)))) + s
	}
	number := func(n int) string { return "J" + string(binary.LittleEndian.AppendUint32(nil, uint32(n))) }
	p.WriteString("\x80\x02}(")
	for i, s := range ts {
		p.WriteString(text(s.name) + "ctorch._utils\n_rebuild_tensor_v2\n(")
		p.WriteString("(" + text("storage") + "ctorch\nFloatStorage\n" + text(fmt.Sprint(i)) + text("cpu") + number(s.rows*s.cols) + "tQ")
		p.WriteString(number(0) + "(" + number(s.rows) + number(s.cols) + "t(" + number(s.cols) + number(1) + "t\x89ccollections\nOrderedDict\n)RtR")
	}
	p.WriteString("u.")
	var out bytes.Buffer
	w := zip.NewWriter(&out)
	add := func(name string, b []byte) {
		f, err := w.CreateHeader(&zip.FileHeader{Name: "archive/" + name})
		if err == nil {
			_, err = f.Write(b)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	add("data.pkl", p.Bytes())
	for i, s := range ts {
		add(fmt.Sprintf("data/%d", i), s.bytes())
	}
	add("version", []byte("3\n"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func archive(t *testing.T, files map[string][]byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lora.nemo")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	for _, name := range []string{"./model_config.yaml", "./model_weights.ckpt"} {
		if files[name] == nil {
			continue
		}
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(files[name]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(files[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

const yaml = `mcore_gpt: true
num_attention_heads: 4
num_query_groups: 2
hidden_size: 4
ffn_hidden_size: 6
kv_channels: null
optim:
  name: fused_adam
  betas:
  - 0.9
peft:
  peft_scheme: lora
  lora_tuning:
    adapter_dim: 2
    alpha: 6  # scale 3
    target_modules:
    - attention_qkv
`

func noBase() (*geometry.Geometry, error) { return nil, errors.New("the base was asked for") }

// TestArchive reads an archive whose rows of the fused projection are q0 q1 k0 v0 q2 q3 k1 v1.
func TestArchive(t *testing.T) {
	const layer = "model.decoder.layers.3."
	path := archive(t, map[string][]byte{"./model_config.yaml": []byte(yaml), "./model_weights.ckpt": checkpoint(t, []stored{
		{layer + "self_attention.adapter_layer.lora_kqv_adapter.linear_in.weight", 2, 4, 1},
		{layer + "self_attention.adapter_layer.lora_kqv_adapter.linear_out.weight", 8, 2, 0},
		{layer + "mlp.adapter_layer.lora_hto4h_adapter.linear_in.weight", 2, 4, 1},
		{layer + "mlp.adapter_layer.lora_hto4h_adapter.linear_out.weight", 12, 2, 0},
		{layer + "mlp.adapter_layer.lora_4htoh_adapter.linear_in.weight", 2, 6, 1},
		{layer + "mlp.adapter_layer.lora_4htoh_adapter.linear_out.weight", 4, 2, 50},
	})})
	if Detect(evidence.Look(path)) == "" {
		t.Error("not detected")
	}
	a, err := Open(path, noBase)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	want := map[string][]float32{ // the first column of B
		"self_attn.q_proj": {0, 2, 8, 10}, "self_attn.k_proj": {4, 12}, "self_attn.v_proj": {6, 14},
		"mlp.gate_proj": {0, 2, 4, 6, 8, 10}, "mlp.up_proj": {12, 14, 16, 18, 20, 22}, "mlp.down_proj": {50, 52, 54, 56},
	}
	if len(a.Updates) != len(want) {
		t.Errorf("%d updates", len(a.Updates))
	}
	for _, u := range a.Updates {
		b := column(t, &u)
		if w := want[u.Module[len("model.layers.3."):]]; !slices.Equal(b, w) || u.Scale.Value != 3 || u.Rank != 2 {
			t.Errorf("%s: rows %v, scale %v, expected %v and 3", u.Module, b, u.Scale, w)
		}
		if x, err := u.A.Load(); err != nil || x[0] != 1 || x[1] != 2 {
			t.Errorf("%s: A is %v, %v", u.Module, x, err)
		}
	}
}

func column(t *testing.T, u *adapter.Update) []float32 {
	t.Helper()
	x, err := u.B.Load()
	if err != nil {
		t.Fatal(err)
	}
	var out []float32
	for i := range u.B.Rows {
		out = append(out, x[i*u.B.Cols])
	}
	return out
}

func TestArchiveErrors(t *testing.T) {
	ok := checkpoint(t, []stored{
		{"layers.0.self_attention.adapter_layer.lora_kqv_adapter.linear_in.weight", 2, 4, 1},
		{"layers.0.self_attention.adapter_layer.lora_kqv_adapter.linear_out.weight", 8, 2, 0},
	})
	for code, files := range map[string]map[string][]byte{
		"container.bad_archive":     {"./model_config.yaml": []byte(yaml)},
		"adapter.missing_alpha":     {"./model_config.yaml": []byte("hidden_size: 4\n"), "./model_weights.ckpt": ok},
		"adapter.shape_mismatch":    {"./model_config.yaml": []byte("num_attention_heads: 4\nhidden_size: 4\npeft:\n  lora_tuning:\n    alpha: 1\n"), "./model_weights.ckpt": ok},
		"adapter.unexpected_tensor": {"./model_config.yaml": []byte(yaml), "./model_weights.ckpt": checkpoint(t, []stored{{"layers.0.input_layernorm.weight", 1, 4, 0}})},
		"adapter.missing_pair":      {"./model_config.yaml": []byte(yaml), "./model_weights.ckpt": checkpoint(t, []stored{{"layers.0.mlp.adapter_layer.lora_4htoh_adapter.linear_in.weight", 2, 4, 0}})},
	} {
		_, err := Open(archive(t, files), noBase)
		if f := finding.Of(err); f == nil || f.Code != code {
			t.Errorf("%s: got %v", code, err)
		}
	}
	zipped := filepath.Join(t.TempDir(), "a.nemo")
	if err := os.WriteFile(zipped, []byte("\x1f\x8b\x08\x00\x00"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(zipped, noBase); finding.Of(err) == nil || finding.Of(err).Code != "container.unsupported" {
		t.Errorf("got %v", err)
	}
}

func TestNames(t *testing.T) {
	for name, want := range map[string]string{
		"decoder.layers.7.self_attention.linear_qkv.adapter.linear_in.weight":                         "7 qkv false",
		"module.decoder.layers.7.self_attention.linear_qkv.adapter.linear_out.weight":                 "7 qkv true",
		"decoder.layers.7.self_attention.linear_qkv.to_wrap.adapter.linear_out.weight":                "7 qkv true",
		"decoder.layers.7.self_attention.linear_qkv.adapter.adapter_k.linear_out.weight":              "7 self_attn.k_proj true",
		"decoder.layers.7.self_attention.linear_qkv.adapter_k.linear_out.weight":                      "7 self_attn.k_proj true",
		"decoder.layers.7.self_attention.linear_proj.adapter.linear_in.weight":                        "7 self_attn.o_proj false",
		"decoder.layers.7.mlp.linear_fc1.adapter.linear_in.weight":                                    "7 gate_up false",
		"decoder.layers.7.mlp.linear_fc1.adapter.adapter_gate.linear_in.weight":                       "7 mlp.gate_proj false",
		"decoder.layers.7.mlp.linear_fc2.adapter.linear_in.weight":                                    "7 mlp.down_proj false",
		"model.language_model.encoder.layers.1.mlp.adapter_layer.lora_4htoh_adapter.linear_in.weight": "1 mlp.down_proj false",
		"decoder.layers.7.mlp.linear_fc3.adapter.linear_in.weight":                                    "",
		"decoder.layers.7.mlp.linear_fc1.weight":                                                      "",
	} {
		layer, p, b, ok := parse(name)
		got := ""
		if ok {
			what := p.fused
			if what == "" {
				what = p.modules[0]
			}
			got = fmt.Sprint(layer, " ", what, " ", b)
		}
		if got != want {
			t.Errorf("%s: got %q, expected %q", name, got, want)
		}
	}
}

func FuzzScalars(f *testing.F) {
	f.Add([]byte(yaml))
	f.Fuzz(func(t *testing.T, b []byte) { (&source{}).configure(scalars(b)) })
}
