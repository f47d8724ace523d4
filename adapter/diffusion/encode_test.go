package diffusion

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// through decodes tensors and encodes them for a dialect.
func through(t *testing.T, ts []tensor.Tensor, metadata [][2]string, to string) (map[string]tensor.Tensor, *Files) {
	t.Helper()
	a, err := Decode("file", "file", ts, metadata, Options{})
	if err != nil {
		t.Fatal(err)
	}
	f, err := Encode(a, to, EncodeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]tensor.Tensor{}
	for _, x := range memory(t, f.Weights) {
		out[x.Name] = x
	}
	return out, f
}

func floats(t *testing.T, x tensor.Tensor) []float32 {
	t.Helper()
	v, err := adapter.ReadFloats(&x)
	if err != nil {
		t.Fatalf("%s: %v", x.Name, err)
	}
	return v
}

// values is a float32 tensor in memory.
func values(t *testing.T, name string, shape tensor.Shape, v ...float32) tensor.Tensor {
	rows, cols := int64(1), int64(len(v))
	if len(shape) > 1 {
		rows, cols = shape[0], cols/shape[0]
	}
	return memory(t, []adapter.Weight{{Spec: tensor.Spec{Name: name, DType: tensor.F32, Shape: shape}, Values: adapter.FromValues(rows, cols, v)}})[0]
}

// TestRanks checks ranks and alphas where projections are split and fused.
func TestRanks(t *testing.T) {
	const fused = "lora_unet_double_blocks_0_img_attn_qkv"
	const q, k, v = "transformer.transformer_blocks.0.attn.to_q", "transformer.transformer_blocks.0.attn.to_k", "transformer.transformer_blocks.0.attn.to_v"
	dense := []tensor.Tensor{
		values(t, fused+".lora_down.weight", tensor.Shape{3, 2}, 1, 2, 3, 4, 5, 6),
		values(t, fused+".lora_up.weight", tensor.Shape{3, 3}, 1, 2, 3, 4, 5, 6, 7, 8, 9),
		values(t, fused+".alpha", tensor.Shape{}, 3),
	}
	diagonal := slices.Clone(dense)
	diagonal[1] = values(t, fused+".lora_up.weight", tensor.Shape{3, 3}, 1, 0, 0, 0, 5, 0, 0, 0, 9)

	// A dense A is never cut by its rank, though that divides by three.
	got, _ := through(t, dense, nil, "diffusers")
	for i, part := range []string{q, k, v} {
		if a, b := got[part+".lora_A.weight"], floats(t, got[part+".lora_B.weight"]); a.Shape[0] != 3 || b[0] != float32(3*i+1) {
			t.Errorf("%s: A %v, B %v", part, a.Shape, b)
		}
	}
	// A block-diagonal B gives every part its own rows of A.
	got, _ = through(t, diagonal, nil, "diffusers")
	for i, part := range []string{q, k, v} {
		a, b := floats(t, got[part+".lora_A.weight"]), floats(t, got[part+".lora_B.weight"])
		if len(a) != 2 || a[0] != float32(2*i+1) || len(b) != 1 || b[0] != float32(4*i+1) {
			t.Errorf("%s: A %v, B %v", part, a, b)
		}
	}
	// Parts with A's of their own: the ranks add up, and alpha with them.
	split := []tensor.Tensor{
		values(t, q+".lora_A.weight", tensor.Shape{1, 2}, 1, 2), values(t, q+".lora_B.weight", tensor.Shape{1, 1}, 3),
		values(t, v+".lora_A.weight", tensor.Shape{2, 2}, 4, 5, 6, 7), values(t, v+".lora_B.weight", tensor.Shape{1, 2}, 8, 9),
		// A module that only Flux has: three attentions alone might be any transformer's.
		values(t, "transformer.single_transformer_blocks.0.norm.linear.lora_A.weight", tensor.Shape{1, 2}, 1, 2),
		values(t, "transformer.single_transformer_blocks.0.norm.linear.lora_B.weight", tensor.Shape{1, 1}, 1),
	}
	got, _ = through(t, split, nil, "kohya") // k is missing, which is no fault
	if a, b, alpha := floats(t, got[fused+".lora_down.weight"]), floats(t, got[fused+".lora_up.weight"]), floats(t, got[fused+".alpha"]); !slices.Equal(a, []float32{1, 2, 4, 5, 6, 7}) ||
		!slices.Equal(b, []float32{3, 0, 0, 0, 0, 0, 0, 8, 9}) || alpha[0] != 3 {
		t.Errorf("A %v, B %v, alpha %v", a, b, alpha)
	}
	// Parts with equal A's, as exported from a fused file: the rank stays.
	split[2] = values(t, v+".lora_A.weight", tensor.Shape{1, 2}, 1, 2)
	split[3] = values(t, v+".lora_B.weight", tensor.Shape{1, 1}, 8)
	got, _ = through(t, split, nil, "kohya")
	if a, b, alpha := floats(t, got[fused+".lora_down.weight"]), floats(t, got[fused+".lora_up.weight"]), floats(t, got[fused+".alpha"]); !slices.Equal(a, []float32{1, 2}) ||
		!slices.Equal(b, []float32{3, 0, 8}) || alpha[0] != 1 {
		t.Errorf("A %v, B %v, alpha %v", a, b, alpha)
	}
	// Different scales: they are folded into B, and the scale is 1.
	split = append(split, values(t, q+".alpha", tensor.Shape{}, 0.5))
	split[2] = values(t, v+".lora_A.weight", tensor.Shape{1, 2}, 4, 5)
	got, _ = through(t, split, nil, "kohya")
	if b, alpha := floats(t, got[fused+".lora_up.weight"]), floats(t, got[fused+".alpha"]); !slices.Equal(b, []float32{1.5, 0, 0, 0, 0, 8}) || alpha[0] != 2 {
		t.Errorf("B %v, alpha %v", b, alpha)
	}
}

// TestGroupedHeads cuts the projection of Lumina 2, whose keys and values have a third of the queries' heads, and
// leaves that of Flux.2's feed-forward whole.
func TestGroupedHeads(t *testing.T) {
	const fused = "lora_unet_layers_3_attention_qkv"
	b := make([]float32, 10) // two rows a head group: 6 of q, 2 of k, 2 of v
	for i := range b {
		b[i] = float32(i)
	}
	got, _ := through(t, []tensor.Tensor{
		values(t, fused+".lora_down.weight", tensor.Shape{1, 2}, 1, 2), values(t, fused+".lora_up.weight", tensor.Shape{10, 1}, b...),
		values(t, "lora_unet_layers_3_adaLN_modulation_1.lora_down.weight", tensor.Shape{1, 2}, 1, 2), values(t, "lora_unet_layers_3_adaLN_modulation_1.lora_up.weight", tensor.Shape{4, 1}, 1, 2, 3, 4),
	}, nil, "diffusers")
	for name, want := range map[string][]float32{"to_q": b[:6], "to_k": b[6:8], "to_v": b[8:]} {
		if v := floats(t, got["transformer.layers.3.attn."+name+".lora_B.weight"]); !slices.Equal(v, want) {
			t.Errorf("%s: %v, expected %v", name, v, want)
		}
	}
	const gated = "transformer.transformer_blocks.0.ff.linear_in"
	back, _ := through(t, tensors(t, gated+".lora_A.weight [2 3]", gated+".lora_B.weight [6 2]"), nil, "kohya")
	if x, ok := back["lora_unet_double_blocks_0_img_mlp_0.lora_up.weight"]; !ok || x.Shape[0] != 6 {
		t.Errorf("%s became %v", gated, back)
	}
}

// TestPeerErrors are conversions that other tools get wrong.
func TestPeerErrors(t *testing.T) {
	const final, embed = "lora_unet_final_layer_adaLN_modulation_1", "lora_unet_img_in"
	got, _ := through(t, []tensor.Tensor{
		values(t, final+".lora_down.weight", tensor.Shape{2, 2}, 1, 2, 3, 4), values(t, final+".lora_up.weight", tensor.Shape{4, 2}, 1, 2, 3, 4, 5, 6, 7, 8),
		values(t, final+".alpha", tensor.Shape{}, 1), // half the rank: diffusers loses it
		values(t, embed+".lora_down.weight", tensor.Shape{1, 2}, 1, 2), values(t, embed+".lora_up.weight", tensor.Shape{1, 1}, 5),
	}, nil, "diffusers")
	const name = "transformer.norm_out.linear.lora_"
	// The halves of B change places, not those of A, and the scale of one half is in the factors.
	if a, b := floats(t, got[name+"A.weight"]), floats(t, got[name+"B.weight"]); !slices.Equal(a, []float32{1, 2, 3, 4}) || !slices.Equal(b, []float32{2.5, 3, 3.5, 4, 0.5, 1, 1.5, 2}) {
		t.Errorf("A %v, B %v", a, b)
	}
	// Modules outside the blocks keep the component's prefix.
	if _, ok := got["transformer.x_embedder.lora_A.weight"]; !ok {
		t.Errorf("no transformer.x_embedder among %d tensors", len(got))
	}
	// The way back restores alpha/rank, not alpha = rank.
	var ts []tensor.Tensor
	for _, x := range got {
		ts = append(ts, x)
	}
	back, _ := through(t, ts, [][2]string{{adapterMetadata, `{"transformer.r": 2, "transformer.lora_alpha": 6}`}}, "kohya")
	if alpha := floats(t, back[final+".alpha"]); alpha[0] != 6 {
		t.Errorf("alpha %v, expected that of the metadata", alpha)
	}
	if b := floats(t, back[final+".lora_up.weight"]); !slices.Equal(b, []float32{0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4}) {
		t.Errorf("B comes back as %v", b)
	}
	// SDXL is written in the names that its trainers and loaders use.
	const block = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
	sdxl, _ := through(t, tensors(t, block+".lora_A.weight [2 2048]", block+".lora_B.weight [640 2]"), nil, "kohya")
	if _, ok := sdxl["lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_up.weight"]; !ok {
		t.Errorf("not in SDXL's names: %v", sdxl)
	}
}

// TestFold keeps small factors in the range of their type.
func TestFold(t *testing.T) {
	a, b := adapter.FromValues(1, 1, []float32{1}), adapter.FromValues(1, 1, []float32{1})
	for _, s := range []float64{1, 0, 0.5, 0.25, 0.125, 3, -0.75, 1.0 / 3} {
		x, y := fold(a, b, s)
		v, _ := x.Load()
		w, _ := y.Load()
		if d := float64(v[0])*float64(w[0]) - s; d > 1e-8 || d < -1e-8 {
			t.Errorf("%v becomes %v · %v", s, v[0], w[0])
		}
	}
	x, y := fold(a, b, 1.0/64)
	v, _ := x.Load()
	w, _ := y.Load()
	if v[0] != 0.125 || w[0] != 0.125 {
		t.Errorf("1/64 becomes %v · %v", v[0], w[0])
	}
}

func TestMetadata(t *testing.T) {
	const module = "lora_unet_double_blocks_0_img_attn_qkv"
	ts := append(tensors(t, pair(module, ".lora_down.weight", ".lora_up.weight", 6, 4)...), tensors(t, module+".alpha =1")...)
	source := [][2]string{
		{"format", "pt"}, {"modelspec.title", "Style"}, {"modelspec.hash_sha256", "0xold"}, {"other", "x"}, {"ss_network_alpha", "1.0"}, {"ss_network_dim", "2"},
		{"ss_tag_frequency", "{}"}, {"sshs_legacy_hash", "old"}, {"sshs_model_hash", "old"},
	}
	get := func(f *Files, key string) string {
		for _, m := range f.Metadata {
			if m[0] == key {
				return m[1]
			}
		}
		return ""
	}
	_, f := through(t, ts, source, "kohya")
	h := sha256.New()
	// The order of a safetensors file: type, then name.
	weights := slices.Clone(f.Weights)
	slices.SortFunc(weights, func(x, y adapter.Weight) int { return strings.Compare(x.Name, y.Name) })
	for _, w := range weights {
		b, err := w.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		h.Write(b)
	}
	for key, want := range map[string]string{
		"modelspec.title": "Style", "ss_tag_frequency": "{}", "ss_network_dim": "2", "ss_network_alpha": "1", "sshs_model_hash": hex.EncodeToString(h.Sum(nil)),
		"sshs_legacy_hash": "e3b0c442" /* of nothing: the file ends before its first mebibyte */, "modelspec.hash_sha256": "", "other": "x", "format": "",
	} {
		if got := get(f, key); got != want {
			t.Errorf("kohya: %s is %q, expected %q", key, got, want)
		}
	}
	if !slices.IsSortedFunc(f.Metadata, func(x, y [2]string) int { return strings.Compare(x[0], y[0]) }) {
		t.Errorf("not sorted: %v", f.Metadata)
	}
	_, f = through(t, ts, source, "diffusers")
	var config map[string]any
	if err := json.Unmarshal([]byte(get(f, adapterMetadata)), &config); err != nil {
		t.Fatal(err)
	}
	if config["transformer.r"] != 2.0 || config["transformer.lora_alpha"] != 2.0 || get(f, "format") != "pt" || get(f, "modelspec.title") != "Style" || get(f, "sshs_model_hash") != "" {
		t.Errorf("diffusers: %v", f.Metadata)
	}
}

// TestLegacyHash compares the hash of a window of a file with that of a file written by hand.
func TestLegacyHash(t *testing.T) {
	const module = "lora_unet_double_blocks_0_img_attn_proj"
	const in = 150000
	ts := tensors(t, fmt.Sprintf("%s.lora_down.weight [2 %d]", module, in), module+".lora_up.weight [4 2]", module+".alpha =1")
	_, f := through(t, ts, [][2]string{{"ss_output_name", "größer \"a\""}, {"ss_v2", "False"}, {"modelspec.title", "not hashed"}, {"sshs_legacy_hash", "old"}}, "kohya")
	header := fmt.Sprintf(`{"__metadata__":{"ss_output_name":"größer \"a\"","ss_v2":"False"},`+
		`"%[1]s.alpha":{"dtype":"F32","shape":[],"data_offsets":[0,4]},`+
		`"%[1]s.lora_down.weight":{"dtype":"F32","shape":[2,%[2]d],"data_offsets":[4,%[3]d]},`+
		`"%[1]s.lora_up.weight":{"dtype":"F32","shape":[4,2],"data_offsets":[%[3]d,%[4]d]}}`, module, in, 4+8*in, 4+8*in+32)
	for len(header)%8 != 0 {
		header += " "
	}
	file := append(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), header...)
	for _, name := range []string{".alpha", ".lora_down.weight", ".lora_up.weight"} {
		i := slices.IndexFunc(f.Weights, func(w adapter.Weight) bool { return w.Name == module+name })
		b, err := f.Weights[i].Bytes()
		if err != nil {
			t.Fatal(err)
		}
		file = append(file, b...)
	}
	sum := sha256.Sum256(file[0x100000:min(len(file), 0x110000)])
	data := sha256.Sum256(file[8+len(header):])
	got := map[string]string{}
	for _, m := range f.Metadata {
		got[m[0]] = m[1]
	}
	if got["sshs_legacy_hash"] != hex.EncodeToString(sum[:4]) || got["sshs_model_hash"] != hex.EncodeToString(data[:]) {
		t.Errorf("got %s and %s", got["sshs_legacy_hash"], got["sshs_model_hash"])
	}
}

// TestOutdated says no longer which algorithm a file had when it has been written out as factors.
func TestOutdated(t *testing.T) {
	const module = "lora_unet_double_blocks_0_img_attn_proj"
	ts := tensors(t, module+".lokr_w1 [2 3]", module+".lokr_w2 [2 2]")
	source := [][2]string{{"ss_network_module", "lycoris.kohya"}, {"ss_network_args", `{"algo": "lokr", "factor": "8"}`}, {"ot_revision", "1"}}
	for to, want := range map[string]string{"comfyui": "lycoris.kohya", "diffusers": "networks.lora"} {
		_, f := through(t, ts, source, to)
		got := map[string]string{}
		for _, m := range f.Metadata {
			got[m[0]] = m[1]
		}
		if got["ss_network_module"] != want || (got["ss_network_args"] == "") != (want == "networks.lora") || got["ot_revision"] != "" {
			t.Errorf("%s: %v", to, f.Metadata)
		}
	}
}

// TestRefusals are what a dialect cannot hold.
func TestRefusals(t *testing.T) {
	control := tensors(t, append(pair("double_blocks.0.img_attn.qkv", ".lora_A.weight", ".lora_B.weight", 6, 4),
		"double_blocks.0.img_attn.qkv.lora_B.bias [6]", "double_blocks.0.img_attn.norm.key_norm.scale [2]")...)
	a, err := Decode("file", "file", control, nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"kohya", "diffusers", "ai-toolkit"} {
		if _, err := Encode(a, to, EncodeOptions{}); finding.Of(err) == nil || finding.Of(err).Code != "adapter.unsupported_feature" {
			t.Errorf("%s: got %v", to, err)
		}
	}
	f, err := Encode(a, "comfyui", EncodeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range f.Weights {
		if w.Name == "diffusion_model.double_blocks.0.img_attn.qkv.diff_b" || w.Name == "diffusion_model.double_blocks.0.img_attn.norm.key_norm.set_weight" {
			b, err := w.Values.Load()
			if err != nil || int64(len(b)) != w.Shape[0] {
				t.Errorf("%s: %v, %v", w.Name, b, err)
			}
		}
	}
	if len(f.Weights) != 5 {
		t.Errorf("%d tensors", len(f.Weights))
	}
	for to, b := range map[string]*adapter.Adapter{
		"xlabs": a, "nonsense": a, "kohya": {Space: naming.GGUF},
		"diffusers": {Space: naming.HF, Updates: []adapter.Update{{Target: adapter.Target{Module: "model.layers.0.self_attn.q_proj", Param: "weight"}, Kind: adapter.LowRank}}},
	} {
		if _, err := Encode(b, to, EncodeOptions{}); finding.Of(err) == nil {
			t.Errorf("%s: got %v", to, err)
		}
	}
}

// TestWidened keeps the inputs that a control LoRA adds to the first layer: for ComfyUI with the shape that the base's
// weight is filled up to.
func TestWidened(t *testing.T) {
	specs := append(pair("img_in", ".lora_A.weight", ".lora_B.weight", 3072, 128), pair("double_blocks.0.img_mod.lin", ".lora_A.weight", ".lora_B.weight", 18432, 3072)...)
	got, f := through(t, tensors(t, specs...), nil, "comfyui")
	const name = "diffusion_model.img_in.reshape_weight"
	x, ok := got[name]
	if !ok || x.DType != tensor.I64 {
		t.Fatalf("%s is %v", name, x)
	}
	b, err := x.Read()
	if err != nil || binary.LittleEndian.Uint64(b) != 3072 || binary.LittleEndian.Uint64(b[8:]) != 128 || len(b) != 16 {
		t.Errorf("%v, %v", b, err)
	}
	stored := memory(t, f.Weights)
	back, _ := through(t, stored, f.Metadata, "bfl-control")
	if a := back["img_in.lora_A.weight"]; len(back) != 4 || !a.Shape.Equal(tensor.Shape{2, 128}) {
		t.Errorf("comes back as %v", back)
	}
	for i := range stored {
		if stored[i].Name == name {
			stored[i] = memory(t, []adapter.Weight{integers(name, tensor.Shape{2}, 3072, 64)})[0]
		}
	}
	if _, err := Decode("file", "file", stored, f.Metadata, Options{}); finding.Of(err) == nil || finding.Of(err).Code != "adapter.shape_mismatch" {
		t.Errorf("another shape: got %v", err)
	}
}

// TestUnnamed leaves out, where that is allowed, what x-flux has no place for, and says so.
func TestUnnamed(t *testing.T) {
	specs := slices.Concat(pair("lora_unet_double_blocks_0_img_attn_proj", ".lora_down.weight", ".lora_up.weight", 4, 4),
		pair("lora_unet_double_blocks_0_img_mlp_0", ".lora_down.weight", ".lora_up.weight", 4, 4), pair("lora_unet_single_blocks_0_linear1", ".lora_down.weight", ".lora_up.weight", 7, 4))
	a, err := Decode("file", "file", tensors(t, specs...), nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Encode(a, "xlabs", EncodeOptions{}); finding.Of(err) == nil || !strings.Contains(finding.Of(err).Hint, "--allow-unmatched") {
		t.Errorf("got %v", err)
	}
	f, err := Encode(a, "xlabs", EncodeOptions{AllowUnmatched: true})
	if err != nil {
		t.Fatal(err)
	}
	var got, left []string
	for _, w := range f.Weights {
		got = append(got, w.Name)
		// One rank for the file, and all projections of a block.
		if rank := w.Shape[0]; strings.HasSuffix(w.Name, ".down.weight") && rank != 2 {
			t.Errorf("%s: rank %d", w.Name, rank)
		}
	}
	for _, x := range f.Findings {
		left = append(left, x.Module)
	}
	if len(got) != 12 || !slices.Contains(got, "double_blocks.0.processor.qkv_lora2.up.weight") || !slices.Contains(got, "single_blocks.0.processor.proj_lora.down.weight") {
		t.Errorf("wrote %v", got)
	}
	if want := []string{"transformer.transformer_blocks.0.ff.net.0.proj", "transformer.single_transformer_blocks.0.proj_mlp"}; !slices.Equal(left, want) {
		t.Errorf("left out %v, expected %v", left, want)
	}
}

// TestFromPEFT encodes an adapter in the names of a component alone, as PEFT's folders have them.
func TestFromPEFT(t *testing.T) {
	a := &adapter.Adapter{Path: "peft", Dialect: "peft", Space: naming.HF, Updates: []adapter.Update{{
		Target: adapter.Target{Module: "transformer_blocks.0.attn.add_k_proj", Param: "weight"}, Kind: adapter.LowRank, Layer: adapter.Linear, Rank: 1,
		Scale: adapter.Scale{Value: 1, Alpha: 1, Rank: 1}, A: adapter.FromValues(1, 3072, make([]float32, 3072)), B: adapter.FromValues(3072, 1, make([]float32, 3072)),
	}, {
		Target: adapter.Target{Module: "single_transformer_blocks.0.proj_mlp", Param: "weight"}, Kind: adapter.LowRank, Layer: adapter.Linear, Rank: 1,
		Scale: adapter.Scale{Value: 1, Alpha: 1, Rank: 1}, A: adapter.FromValues(1, 3072, make([]float32, 3072)), B: adapter.FromValues(12288, 1, make([]float32, 12288)),
	}}}
	got, err := Encode(a, "kohya", EncodeOptions{DType: tensor.BF16})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, w := range got.Weights {
		names = append(names, w.Name)
	}
	want := []string{"lora_unet_double_blocks_0_txt_attn_qkv.lora_down.weight", "lora_unet_double_blocks_0_txt_attn_qkv.lora_up.weight", "lora_unet_double_blocks_0_txt_attn_qkv.alpha",
		"lora_unet_single_blocks_0_linear1.lora_down.weight", "lora_unet_single_blocks_0_linear1.lora_up.weight", "lora_unet_single_blocks_0_linear1.alpha"}
	if !slices.Equal(names, want) || got.Weights[1].Shape[0] != 9216 || got.Weights[4].Shape[0] != 21504 || got.Weights[1].DType != tensor.BF16 {
		t.Errorf("got %v, %v", names, got.Weights)
	}
}
