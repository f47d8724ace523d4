package diffusion

import (
	"math"
	"strings"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/internal/applied"
	"github.com/loratool/loratool/tensor"
)

// contents are all numbers of an update.
func contents(t *testing.T, u *adapter.Update) []float32 {
	t.Helper()
	out := []float32{float32(u.Scale.Value)}
	for _, f := range []adapter.Factor{u.A, u.B, u.A2, u.B2, u.Kron[0].Full, u.Kron[0].A, u.Kron[0].B, u.Kron[1].Full, u.Kron[1].A, u.Kron[1].B, u.Value, u.Magnitude} {
		if !f.Present() {
			out = append(out, float32(math.Inf(1)))
			continue
		}
		v, err := f.Load()
		if err != nil {
			t.Fatal(err)
		}
		out = append(append(out, float32(f.Rows), float32(f.Cols)), v...)
	}
	return out
}

// TestAlgorithms sends the algorithms of LyCORIS through the dialects that have their tensors.
func TestAlgorithms(t *testing.T) {
	const q = "lora_unet_double_blocks_0_img_attn_proj" // 4 × 6
	const qkv = "lora_unet_double_blocks_0_img_attn_qkv"
	for name, c := range map[string]struct {
		specs []string
		kinds []adapter.Kind
		not   string // a dialect that refuses it
	}{
		"LoHa":         {[]string{q + ".hada_w1_a [4 2]", q + ".hada_w1_b [2 6]", q + ".hada_w2_a [4 2]", q + ".hada_w2_b [2 6]", q + ".alpha =1"}, []adapter.Kind{adapter.LoHa}, ""},
		"LoKr":         {[]string{q + ".lokr_w1 [2 3]", q + ".lokr_w2_a [2 1]", q + ".lokr_w2_b [1 2]", q + ".alpha =0.5"}, []adapter.Kind{adapter.LoKr}, ""},
		"whole LoKr":   {[]string{q + ".lokr_w1 [2 3]", q + ".lokr_w2 [2 2]", q + ".alpha =1e10"}, []adapter.Kind{adapter.LoKr}, ""},
		"fused LoKr":   {[]string{qkv + ".lokr_w1_a [4 2]", qkv + ".lokr_w1_b [2 3]", qkv + ".lokr_w2 [3 2]", qkv + ".alpha =3"}, []adapter.Kind{adapter.LoKr}, ""},
		"difference":   {[]string{q + ".diff [4 6]", q + ".diff_b [4]"}, []adapter.Kind{adapter.Full, adapter.Bias}, "diffusers"},
		"GLoRA":        {[]string{q + ".a1.weight [6 2]", q + ".a2.weight [2 6]", q + ".b1.weight [4 2]", q + ".b2.weight [2 6]", q + ".alpha =1"}, []adapter.Kind{adapter.GLoRA}, "diffusers"},
		"inputs":       {[]string{q + ".weight [6]", q + ".on_input =1"}, []adapter.Kind{adapter.IA3}, "comfyui"},
		"outputs":      {[]string{q + ".weight [4]", q + ".on_input =0"}, []adapter.Kind{adapter.IA3}, "comfyui"},
		"norm":         {[]string{"lora_unet_blocks_0_norm3.w_norm [6]", "lora_unet_blocks_0_norm3.b_norm [6]"}, []adapter.Kind{adapter.Bias, adapter.Bias}, "diffusers"},
		"DoRA":         {[]string{q + ".lora_down.weight [2 6]", q + ".lora_up.weight [4 2]", q + ".dora_scale [4 1]"}, []adapter.Kind{adapter.DoRA}, "bfl-control"},
		"DoRA, inputs": {[]string{q + ".lora_down.weight [2 6]", q + ".lora_up.weight [4 2]", q + ".dora_scale [1 6]"}, []adapter.Kind{adapter.DoRA}, "diffusers"},
		"LoKr, DoRA":   {[]string{q + ".lokr_w1 [2 3]", q + ".lokr_w2 [2 2]", q + ".dora_scale [1 6]"}, []adapter.Kind{adapter.LoKr}, "diffusers"},
		"fused LoHa": {[]string{qkv + ".hada_w1_a [6 2]", qkv + ".hada_w1_b [2 6]", qkv + ".hada_w2_a [6 2]", qkv + ".hada_w2_b [2 6]"},
			[]adapter.Kind{adapter.LoHa}, "diffusers"},
		"DoRA of a fused module by inputs": {[]string{qkv + ".lora_down.weight [2 6]", qkv + ".lora_up.weight [6 2]", qkv + ".dora_scale [1 6]"}, []adapter.Kind{adapter.DoRA}, "diffusers"},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := Decode("file", "file", tensors(t, c.specs...), nil, Options{})
			if err != nil {
				t.Fatal(err)
			}
			if len(a.Updates) != len(c.kinds) {
				t.Fatalf("%d updates, expected %v", len(a.Updates), c.kinds)
			}
			for _, to := range []string{"kohya", "comfyui"} {
				files, err := Encode(a, to, EncodeOptions{})
				if to == c.not {
					if f := finding.Of(err); f == nil || f.Code != "adapter.unsupported_feature" {
						t.Errorf("%s: got %v", to, err)
					}
					continue
				}
				if err != nil {
					t.Fatalf("%s: %v", to, err)
				}
				b, err := Decode("file", "file", memory(t, files.Weights), files.Metadata, Options{})
				if err != nil {
					t.Fatalf("%s: %v", to, err)
				}
				for i := range a.Updates {
					u, v := &a.Updates[i], &b.Updates[i]
					got, want := contents(t, v), contents(t, u)
					if u.Kind != c.kinds[i] || v.Kind != u.Kind || v.Target != u.Target || v.Input != u.Input || len(got) != len(want) {
						t.Fatalf("%s: %s %s became %s %s", to, u.Kind, u.Target, v.Kind, v.Target)
					}
					for k := range want {
						if got[k] != want[k] {
							t.Fatalf("%s: number %d of %s is %v, expected %v", to, k, u.Target, got[k], want[k])
						}
					}
				}
			}
			if c.not == "diffusers" || c.not == "bfl-control" {
				if _, err := Encode(a, c.not, EncodeOptions{}); finding.Of(err) == nil {
					t.Errorf("%s: got %v", c.not, err)
				}
			}
		})
	}
}

// TestExpandedLoKr writes a Kronecker product as a LoRA with the same difference for a dialect that has no
// tensors for it, cut into the parts of a fused module.
func TestExpandedLoKr(t *testing.T) {
	const qkv = "lora_unet_single_blocks_0_linear1"
	a, err := Decode("file", "file", tensors(t, qkv+".lokr_w1 [2 3]", qkv+".lokr_w2_a [7 1]", qkv+".lokr_w2_b [1 2]", qkv+".alpha =0.5"), nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	u, ok := a.Updates[0].Factored()
	if !ok {
		t.Fatal("no factors")
	}
	want := delta(t, &u)
	files, err := Encode(a, "diffusers", EncodeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := Decode("file", "file", memory(t, files.Weights), files.Metadata, Options{})
	if err != nil {
		t.Fatal(err)
	}
	var got []float64
	for _, u := range b.Updates {
		got = append(got, delta(t, &u)...)
	}
	if len(b.Updates) != 4 || len(got) != len(want) {
		t.Fatalf("%d updates of %d values, expected 4 of %d", len(b.Updates), len(got), len(want))
	}
	for i := range want {
		if math.Abs(got[i]-want[i]) > 1e-6 {
			t.Fatalf("value %d is %v, expected %v", i, got[i], want[i])
		}
	}
}

// TestLoadedByLyCORIS checks what its loader asks for: an alpha of every module, and the dimensions of the base.
func TestLoadedByLyCORIS(t *testing.T) {
	for _, c := range []struct {
		specs  []string
		suffix string
		shape  tensor.Shape
	}{
		{[]string{applied.Proj + ".lokr_w1 [2 2]", applied.Proj + ".lokr_w2 [2 2]"}, ".alpha", tensor.Shape{}},
		{[]string{applied.Proj + ".oft_blocks [2 2 2]"}, ".alpha", tensor.Shape{}},
		{[]string{applied.Conv + ".weight [2]", applied.Conv + ".on_input =1"}, ".weight", tensor.Shape{1, 2, 1, 1}},
		{[]string{applied.Conv + ".a1.weight [2 1]", applied.Conv + ".a2.weight [1 2]", applied.Conv + ".b1.weight [4 1]", applied.Conv + ".b2.weight [1 2 3 3]"}, ".b1.weight", tensor.Shape{4, 1, 1, 1}},
	} {
		got, _ := through(t, tensors(t, c.specs...), nil, "kohya")
		found := false
		for name, x := range got {
			if strings.HasSuffix(name, c.suffix) {
				found = x.Shape.Equal(c.shape)
			}
		}
		if !found {
			t.Errorf("no %s of shape %v in %v", c.suffix, c.shape, got)
		}
	}
}
