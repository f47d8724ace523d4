package diffusion

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/internal/applied"
	"github.com/loratool/loratool/tensor"
)

// TestKinds sends every algorithm to every dialect: where it stays as it is (=), where it is written out as factors
// (~), and where it is refused (-). What it makes of a base's weights must be the same each time, and after the
// way back.
func TestKinds(t *testing.T) {
	parts := func(specs ...string) (out []string) {
		for _, p := range []string{"q", "k", "v"} {
			for _, s := range specs {
				out = append(out, applied.Part+p+s)
			}
		}
		return out
	}
	order := []string{"kohya", "diffusers", "comfyui", "ai-toolkit", "onetrainer", "lycoris", "bfl-control", "xlabs", "diffusers-old"}
	// A few modules might be those of several families.
	decode := func(t *testing.T, ts []tensor.Tensor, metadata [][2]string, shapes applied.Base) *adapter.Adapter {
		t.Helper()
		a, err := Decode("file", "file", ts, metadata, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if a.Arch = "flux1"; len(shapes["model.diffusion_model.input_blocks.1.0.in_layers.0.bias"]) > 0 {
			a.Arch = "sdxl"
		}
		return a
	}
	for name, c := range map[string]struct {
		specs []string
		base  applied.Base
		want  string // one sign a dialect, in the order above
	}{
		"LoHa":                   {[]string{applied.Proj + ".hada_w1_a [4 1]", applied.Proj + ".hada_w1_b [1 4]", applied.Proj + ".hada_w2_a [4 1]", applied.Proj + ".hada_w2_b [1 4]", applied.Proj + ".alpha =0.5"}, applied.Flux, "=~=~==~~-"},
		"LoHa of a large rank":   {[]string{applied.Proj + ".hada_w1_a [4 3]", applied.Proj + ".hada_w1_b [3 4]", applied.Proj + ".hada_w2_a [4 3]", applied.Proj + ".hada_w2_b [3 4]", applied.Proj + ".alpha =2"}, applied.Flux, "=-=-==---"},
		"LoHa, fused":            {[]string{applied.QKV + ".hada_w1_a [12 3]", applied.QKV + ".hada_w1_b [3 4]", applied.QKV + ".hada_w2_a [12 3]", applied.QKV + ".hada_w2_b [3 4]", applied.QKV + ".alpha =2"}, applied.Flux, "=-=-==---"},
		"LoHa, parts":            {parts(".hada_w1_a [4 3]", ".hada_w1_b [3 4]", ".hada_w2_a [4 3]", ".hada_w2_b [3 4]", ".alpha =2"), applied.Flux, "=-=-==---"},
		"LoHa, a part":           {parts(".hada_w1_a [4 3]", ".hada_w1_b [3 4]", ".hada_w2_a [4 3]", ".hada_w2_b [3 4]", ".alpha =2")[:5], applied.Flux, "=-=-==---"},
		"LoHa, swapped":          {[]string{applied.Final + ".hada_w1_a [8 3]", applied.Final + ".hada_w1_b [3 4]", applied.Final + ".hada_w2_a [8 3]", applied.Final + ".hada_w2_b [3 4]"}, applied.Flux, "=-=-==---"},
		"LoHa, DoRA":             {[]string{applied.QKV + ".hada_w1_a [12 3]", applied.QKV + ".hada_w1_b [3 4]", applied.QKV + ".hada_w2_a [12 3]", applied.QKV + ".hada_w2_b [3 4]", applied.QKV + ".dora_scale [12 1]"}, applied.Flux, "=-=-==---"},
		"LoHa of a kernel":       {[]string{applied.Conv + ".hada_w1_a [3 4]", applied.Conv + ".hada_w1_b [3 2]", applied.Conv + ".hada_t1 [3 3 3 3]", applied.Conv + ".hada_w2_a [3 4]", applied.Conv + ".hada_w2_b [3 2]", applied.Conv + ".hada_t2 [3 3 3 3]", applied.Conv + ".alpha =2"}, applied.SDXL, "=-=-==---"},
		"LoKr":                   {[]string{applied.Proj + ".lokr_w1 [2 2]", applied.Proj + ".lokr_w2_a [2 1]", applied.Proj + ".lokr_w2_b [1 2]", applied.Proj + ".alpha =0.5"}, applied.Flux, "=~====~~-"},
		"LoKr, whole":            {[]string{applied.Proj + ".lokr_w1 [2 2]", applied.Proj + ".lokr_w2 [2 2]", applied.Proj + ".alpha =1e10"}, applied.Flux, "=~====~~-"},
		"LoKr, infinite alpha":   {[]string{applied.Proj + ".lokr_w1 [2 2]", applied.Proj + ".lokr_w2 [2 2]", applied.Proj + ".alpha =inf"}, applied.Flux, "=~====~~-"},
		"LoKr, fused, aligned":   {[]string{applied.QKV + ".lokr_w1 [6 2]", applied.QKV + ".lokr_w2_a [2 1]", applied.QKV + ".lokr_w2_b [1 2]", applied.QKV + ".alpha =0.5"}, applied.Flux, "=~====~~-"},
		"LoKr, fused, across":    {[]string{applied.QKV + ".lokr_w1 [2 2]", applied.QKV + ".lokr_w2_a [6 1]", applied.QKV + ".lokr_w2_b [1 2]", applied.QKV + ".alpha =0.5"}, applied.Flux, "=~==~~~~-"},
		"LoKr, parts":            {parts(".lokr_w1 [2 2]", ".lokr_w2_a [2 1]", ".lokr_w2_b [1 2]", ".alpha =0.5"), applied.Flux, "~~~~==~~-"},
		"LoKr, swapped":          {[]string{applied.Final + ".lokr_w1 [4 2]", applied.Final + ".lokr_w2 [2 2]"}, applied.Flux, "=~====~--"},
		"LoKr, DoRA of inputs":   {[]string{applied.Proj + ".lokr_w1 [2 2]", applied.Proj + ".lokr_w2 [2 2]", applied.Proj + ".dora_scale [1 4]"}, applied.Flux, "=-=-==---"},
		"LoKr of a kernel":       {[]string{applied.Conv + ".lokr_w1 [2 2]", applied.Conv + ".lokr_w2_a [3 2]", applied.Conv + ".lokr_w2_b [3 1]", applied.Conv + ".lokr_t2 [3 3 3 3]", applied.Conv + ".alpha =1"}, applied.SDXL, "=~====--~"},
		"LoCon":                  {[]string{applied.Conv + ".lora_down.weight [3 2 3 3]", applied.Conv + ".lora_up.weight [4 3 1 1]", applied.Conv + ".alpha =1"}, applied.SDXL, "======--="},
		"LoCon of a kernel":      {[]string{applied.Conv + ".lora_down.weight [3 2 1 1]", applied.Conv + ".lora_up.weight [4 3 1 1]", applied.Conv + ".lora_mid.weight [3 3 3 3]", applied.Conv + ".alpha =1"}, applied.SDXL, "======--="},
		"difference":             {[]string{applied.Proj + ".diff [4 4]", applied.Proj + ".diff_b [4]"}, applied.Flux, "=-=--=---"},
		"difference, fused":      {[]string{applied.QKV + ".diff [12 4]"}, applied.Flux, "=-=--=---"},
		"difference, swapped":    {[]string{applied.Final + ".diff [8 4]"}, applied.Flux, "=-=--=---"},
		"difference of a kernel": {[]string{applied.Conv + ".diff [4 2 3 3]"}, applied.SDXL, "=-=--=---"},
		"bias":                   {[]string{applied.Proj + ".lora_down.weight [2 4]", applied.Proj + ".lora_up.weight [4 2]", applied.Proj + ".diff_b [4]"}, applied.Flux, "===--==--"},
		"norm":                   {[]string{applied.Norm + ".w_norm [6]", applied.Norm + ".b_norm [6]"}, applied.SDXL, "=-=--=---"},
		"IA3 of inputs":          {[]string{applied.Proj + ".weight [4]", applied.Proj + ".on_input =1"}, applied.Flux, "=----=---"},
		"IA3 of a kernel":        {[]string{applied.Conv + ".weight [1 4 1 1]", applied.Conv + ".on_input =0"}, applied.SDXL, "=----=---"},
		"IA3 of outputs":         {[]string{applied.Proj + ".weight [4]", applied.Proj + ".on_input =0"}, applied.Flux, "=----=---"},
		"IA3 of inputs, fused":   {[]string{applied.QKV + ".weight [4]", applied.QKV + ".on_input =1"}, applied.Flux, "=----=---"},
		"IA3 of outputs, fused":  {[]string{applied.QKV + ".weight [12]", applied.QKV + ".on_input =0"}, applied.Flux, "=----=---"},
		"GLoRA":                  {[]string{applied.Proj + ".a1.weight [4 2]", applied.Proj + ".a2.weight [2 4]", applied.Proj + ".b1.weight [4 2]", applied.Proj + ".b2.weight [2 4]", applied.Proj + ".alpha =1"}, applied.Flux, "=-=--=---"},
		"GLoRA, old":             {[]string{applied.Proj + ".a2.weight [4 2]", applied.Proj + ".a1.weight [2 4]", applied.Proj + ".b2.weight [4 2]", applied.Proj + ".b1.weight [2 4]", applied.Proj + ".alpha =1"}, applied.Flux, "=-=--=---"},
		"GLoRA of a kernel":      {[]string{applied.Conv + ".a1.weight [2 1 1 1]", applied.Conv + ".a2.weight [1 2 1 1]", applied.Conv + ".b1.weight [4 1 1 1]", applied.Conv + ".b2.weight [1 2 3 3]", applied.Conv + ".alpha =1"}, applied.SDXL, "=-=--=---"},
		"GLoRA, fused":           {[]string{applied.QKV + ".a1.weight [4 2]", applied.QKV + ".a2.weight [2 4]", applied.QKV + ".b1.weight [12 2]", applied.QKV + ".b2.weight [2 4]", applied.QKV + ".alpha =1"}, applied.Flux, "=-=--=---"},
		"OFT":                    {[]string{applied.Proj + ".oft_blocks [2 2 2]", applied.Proj + ".alpha =0.01"}, applied.Flux, "=-=--=---"},
		"OFT, rescaled":          {[]string{applied.Proj + ".oft_blocks [2 2 2]", applied.Proj + ".rescale [4 1]"}, applied.Flux, "=----=---"},
		"OFT, fused":             {[]string{applied.QKV + ".oft_blocks [6 2 2]"}, applied.Flux, "=-=--=---"},
		"OFT, fused, across":     {[]string{applied.QKV + ".oft_blocks [2 6 6]"}, applied.Flux, "=-=------"},
		"OFT, fused, bound":      {[]string{applied.QKV + ".oft_blocks [6 2 2]", applied.QKV + ".alpha =0.01"}, applied.Flux, "=-=--=---"},
		"OFT, swapped":           {[]string{applied.Final + ".oft_blocks [4 2 2]"}, applied.Flux, "=-=--=---"},
		"BOFT":                   {[]string{applied.Proj + ".oft_blocks [2 2 2 2]"}, applied.Flux, "=-=--=---"},
		"BOFT, rescaled":         {[]string{applied.Proj + ".oft_blocks [2 2 2 2]", applied.Proj + ".rescale [4 1]", applied.Proj + ".alpha =0.01"}, applied.Flux, "=-=--=---"},
		"BOFT, fused":            {[]string{applied.QKV + ".oft_blocks [2 6 2 2]"}, applied.Flux, "=-=------"},
		"OFT of inputs":          {[]string{"lora_transformer_transformer_blocks_0_attn_to_out_0.oft_R.weight [2 1]"}, applied.Flux, "----=----"},
		"OFT of inputs, parts":   {parts(".oft_R.weight [2 1]", ".oft_R.scaled_oft =1"), applied.Flux, "----=----"},
		"OFT of inputs, kernel":  {[]string{"lora_unet_down_blocks_1_resnets_0_conv_shortcut.oft_R.weight [2 3]"}, applied.SDXL, "----=----"},
		"DoRA":                   {[]string{applied.Proj + ".lora_down.weight [2 4]", applied.Proj + ".lora_up.weight [4 2]", applied.Proj + ".dora_scale [4 1]"}, applied.Flux, "======---"},
		"DoRA, fused":            {[]string{applied.QKV + ".lora_down.weight [2 4]", applied.QKV + ".lora_up.weight [12 2]", applied.QKV + ".dora_scale [12 1]"}, applied.Flux, "======---"},
		"DoRA of inputs":         {[]string{applied.Proj + ".lora_down.weight [2 4]", applied.Proj + ".lora_up.weight [4 2]", applied.Proj + ".dora_scale [1 4]"}, applied.Flux, "=-=-==---"},
		"DoRA of inputs, fused":  {[]string{applied.QKV + ".lora_down.weight [2 4]", applied.QKV + ".lora_up.weight [12 2]", applied.QKV + ".dora_scale [1 4]"}, applied.Flux, "=-=------"},
		"DoRA of inputs, parts":  {parts(".lora_down.weight [2 4]", ".lora_up.weight [4 2]", ".dora_scale [1 4]"), applied.Flux, "----==---"},
		"DoRA of a kernel":       {[]string{applied.Conv + ".lora_down.weight [3 2 3 3]", applied.Conv + ".lora_up.weight [4 3 1 1]", applied.Conv + ".dora_scale [4 1 1 1]"}, applied.SDXL, "======---"},
		"replaced norm":          {[]string{"double_blocks.0.img_attn.norm.query_norm.scale [4]", "double_blocks.0.img_attn.proj.lora_A.weight [2 4]", "double_blocks.0.img_attn.proj.lora_B.weight [4 2]"}, applied.Flux, "--=---=--"},
	} {
		t.Run(name, func(t *testing.T) {
			a := decode(t, tensors(t, c.specs...), nil, c.base)
			want := applied.To(t, a, c.base)
			got := ""
			for _, to := range order {
				f, err := Encode(a, to, EncodeOptions{})
				if err != nil {
					if x := finding.Of(err); x == nil || x.Code != "adapter.unsupported_feature" || x.Hint == "" {
						t.Errorf("%s: %v is no refusal with a hint", to, err)
					}
					t.Logf("%s: %v", to, err)
					got += "-"
					continue
				}
				b := decode(t, memory(t, f.Weights), f.Metadata, c.base)
				close(t, to, applied.To(t, b, c.base), want)
				sign := "="
				for _, u := range b.Updates {
					if u.Kind == adapter.LowRank && !slices.ContainsFunc(a.Updates, func(v adapter.Update) bool { return v.Kind == adapter.LowRank }) {
						sign = "~"
					}
				}
				got += sign
				from := a.Dialect
				if to == "onetrainer" {
					from = to // of a unet, its files are read as kohya's
				}
				back, err := Encode(b, from, EncodeOptions{})
				if err != nil {
					t.Errorf("%s and back: %v", to, err)
					continue
				}
				close(t, to+" and back", applied.To(t, decode(t, memory(t, back.Weights), back.Metadata, c.base), c.base), want)
			}
			if got != c.want {
				t.Errorf("got %q, expected %q for %s", got, c.want, strings.Join(order, ", "))
			}
		})
	}
}

// close compares the tensors of merged bases.
func close(t *testing.T, where string, got, want map[string][]float64) {
	t.Helper()
	for name, w := range want {
		for i, x := range w {
			if d := math.Abs(got[name][i] - x); d > 4e-6 || math.IsNaN(d) {
				t.Errorf("%s: %s[%d] is %v, expected %v", where, name, i, got[name][i], x)
				break
			}
		}
	}
}
