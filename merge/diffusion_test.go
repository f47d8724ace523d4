package merge

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/tensor"
)

// A matrix is a float32 tensor of a test's file.
type matrix struct {
	name  string
	shape []int64
	v     []float32
}

// numbered is a tensor of distinct values.
func numbered(name string, seed int, shape ...int64) matrix {
	n := int64(1)
	for _, d := range shape {
		n *= d
	}
	m := matrix{name, shape, make([]float32, n)}
	for i := range m.v {
		m.v[i] = float32((seed*977+i*31)%509-254) / 128
	}
	return m
}

func (m matrix) rows(first, n int64) []float32 {
	cols := int64(len(m.v)) / m.shape[0]
	return m.v[first*cols : (first+n)*cols]
}

// saveTensors writes a safetensors file.
func saveTensors(t *testing.T, path string, tensors ...matrix) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	header, data := map[string]any{}, []byte{}
	for _, m := range tensors {
		start := len(data)
		for _, x := range m.v {
			data = binary.LittleEndian.AppendUint32(data, math.Float32bits(x))
		}
		shape := m.shape
		if shape == nil {
			shape = []int64{}
		}
		header[m.name] = map[string]any{"dtype": "F32", "shape": shape, "data_offsets": []int{start, len(data)}}
	}
	h, err := json.Marshal(header)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, slices.Concat(binary.LittleEndian.AppendUint64(nil, uint64(len(h))), h, data), 0o644); err != nil {
		t.Fatal(err)
	}
}

// baked merges an adapter file into a base and reads the result.
func baked(t *testing.T, base, lora string) (map[string][]float32, error) {
	t.Helper()
	got, _, err := bakedAs(t, base, lora, tensor.Invalid)
	return got, err
}

// bakedAs is baked with a type for the output, and says how each tensor is stored.
func bakedAs(t *testing.T, base, lora string, dtype tensor.DType) (map[string][]float32, map[string]tensor.DType, error) {
	t.Helper()
	m, err := formats.Open(base)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	a, err := dialect.Open(lora, dialect.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	p, err := NewPlan(m, []Input{{Adapter: a, Scale: 1}}, Options{Resolve: Resolvers(m), DType: dtype})
	if err != nil {
		return nil, nil, err
	}
	out := filepath.Join(t.TempDir(), "merged")
	if !formats.IsFolder(base) {
		out += ".safetensors"
	}
	l, err := p.Layout(m.(formats.Writable), out, layout.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := layout.Create(out, l, false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if _, err := Run(context.Background(), p, l, w, RunOptions{}); err != nil {
		return nil, nil, err
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	merged, err := formats.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer merged.Close()
	got, types := map[string][]float32{}, map[string]tensor.DType{}
	for _, x := range merged.Tensors() {
		if got[x.Name], err = adapter.ReadFloats(&x); err != nil {
			t.Fatal(err)
		}
		types[x.Name] = x.DType
	}
	return got, types, nil
}

// plus is a matrix with s·B·A added to it; other stands for the rows' order in the factors.
func plus(w []float32, b, a matrix, s float32, order func(i int64) int64) []float32 {
	out := slices.Clone(w)
	rank := a.shape[0]
	cols := int64(len(a.v)) / rank
	for i := range int64(len(w)) / cols {
		for j := range cols {
			var sum float32
			for k := range rank {
				sum += float32(b.v[order(i)*rank+k] * a.v[k*cols+j])
			}
			out[i*cols+j] += float32(s * sum)
		}
	}
	return out
}

func near(t *testing.T, name string, got, want []float32) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s has %d values, expected %d", name, len(got), len(want))
	}
	for i := range want {
		if math.Abs(float64(got[i]-want[i])) > 1e-5 {
			t.Fatalf("%s: value %d is %v, expected %v", name, i, got[i], want[i])
		}
	}
}

// TestMergeFlux merges one kohya file of Flux.1 into a checkpoint with fused projections and into a
// pipeline that splits them, with a text encoder beside. The bytes of corresponding rows are the same.
func TestMergeFlux(t *testing.T) {
	dir := t.TempDir()
	qkv, linear1 := numbered("double_blocks.0.img_attn.qkv.weight", 1, 12, 4), numbered("single_blocks.0.linear1.weight", 2, 28, 4)
	swapped, text := numbered("final_layer.adaLN_modulation.1.weight", 3, 8, 4), numbered("text_model.encoder.layers.0.mlp.fc1.weight", 4, 6, 3)
	other := numbered("img_in.weight", 5, 4, 4)
	lora := filepath.Join(dir, "lora.safetensors")
	var tensors []matrix
	factors := map[string][2]matrix{}
	for i, x := range []struct {
		name    string
		out, in int64
	}{{"lora_unet_double_blocks_0_img_attn_qkv", 12, 4}, {"lora_unet_single_blocks_0_linear1", 28, 4},
		{"lora_unet_final_layer_adaLN_modulation_1", 8, 4}, {"lora_te1_text_model_encoder_layers_0_mlp_fc1", 6, 3}} {
		a, b := numbered(x.name+".lora_down.weight", 10+i, 2, x.in), numbered(x.name+".lora_up.weight", 20+i, x.out, 2)
		factors[x.name] = [2]matrix{a, b}
		tensors = append(tensors, a, b, matrix{x.name + ".alpha", nil, []float32{3}})
	}
	saveTensors(t, lora, tensors...)
	straight := func(i int64) int64 { return i }
	want := func(w matrix, key string) []float32 {
		return plus(w.v, factors[key][1], factors[key][0], 1.5, straight)
	}

	single := filepath.Join(dir, "flux.safetensors")
	saveTensors(t, single, qkv, linear1, swapped, other, matrix{"text_encoders.clip_l.transformer." + text.name, text.shape, text.v})
	fused, err := baked(t, single, lora)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "qkv", fused[qkv.name], want(qkv, "lora_unet_double_blocks_0_img_attn_qkv"))
	near(t, "linear1", fused[linear1.name], want(linear1, "lora_unet_single_blocks_0_linear1"))
	near(t, "modulation", fused[swapped.name], want(swapped, "lora_unet_final_layer_adaLN_modulation_1"))
	near(t, "text", fused["text_encoders.clip_l.transformer."+text.name], want(text, "lora_te1_text_model_encoder_layers_0_mlp_fc1"))
	if !slices.Equal(fused[other.name], other.v) {
		t.Error("a tensor without an update changed")
	}

	pipeline := filepath.Join(dir, "pipeline")
	var parts []matrix
	cut := func(name string, w matrix, first, n int64) {
		parts = append(parts, matrix{name + ".weight", []int64{n, w.shape[1]}, w.rows(first, n)})
	}
	for i, name := range []string{"to_q", "to_k", "to_v"} {
		cut("transformer_blocks.0.attn."+name, qkv, int64(4*i), 4)
		cut("single_transformer_blocks.0.attn."+name, linear1, int64(4*i), 4)
	}
	cut("single_transformer_blocks.0.proj_mlp", linear1, 12, 16)
	parts = append(parts, matrix{"norm_out.linear.weight", swapped.shape, slices.Concat(swapped.rows(4, 4), swapped.rows(0, 4))})
	saveTensors(t, filepath.Join(pipeline, "transformer", "diffusion_pytorch_model.safetensors"), parts...)
	saveTensors(t, filepath.Join(pipeline, "text_encoder", "model.safetensors"), text)
	if err := os.WriteFile(filepath.Join(pipeline, "model_index.json"), []byte(`{"transformer": ["a", "b"], "text_encoder": ["a", "b"]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	split, err := baked(t, pipeline, lora)
	if err != nil {
		t.Fatal(err)
	}
	if d := split["text_encoder."+text.name]; !slices.Equal(d, fused["text_encoders.clip_l.transformer."+text.name]) {
		t.Error("the text encoders differ")
	}
	join := func(names ...string) (v []float32) {
		for _, n := range names {
			v = append(v, split["transformer."+n+".weight"]...)
		}
		return v
	}
	const b = "transformer_blocks.0.attn."
	if !slices.Equal(join(b+"to_q", b+"to_k", b+"to_v"), fused[qkv.name]) {
		t.Error("q, k and v differ from the fused projection")
	}
	if !slices.Equal(join("single_"+b+"to_q", "single_"+b+"to_k", "single_"+b+"to_v", "single_transformer_blocks.0.proj_mlp"), fused[linear1.name]) {
		t.Error("the parts of linear1 differ from it")
	}
	if m := split["transformer.norm_out.linear.weight"]; !slices.Equal(slices.Concat(m[16:], m[:16]), fused[swapped.name]) {
		t.Error("the halves of the modulation are not where they belong")
	}

	// One component alone has no place for the text encoder's update.
	_, err = baked(t, filepath.Join(pipeline, "transformer"), lora)
	if f := finding.Of(err); f == nil || f.Code != "match.unmatched_target" {
		t.Errorf("got %v", err)
	}
}

// TestMergeSDXL merges convolutions, a Tucker-free LoCon, and both text encoders into a checkpoint in which
// OpenCLIP's q, k and v are one parameter and its projection is transposed.
func TestMergeSDXL(t *testing.T) {
	dir := t.TempDir()
	const g = "conditioner.embedders.1.model."
	conv := numbered("model.diffusion_model.input_blocks.1.0.in_layers.2.weight", 1, 4, 3, 3, 3)
	in := numbered(g+"transformer.resblocks.2.attn.in_proj_weight", 2, 12, 4)
	projection := numbered(g+"text_projection", 3, 5, 4) // [in, out]
	base := filepath.Join(dir, "sdxl.safetensors")
	saveTensors(t, base, conv, in, projection, numbered("first_stage_model.decoder.conv_in.weight", 4, 2, 2))
	var tensors []matrix
	factors := map[string][2]matrix{}
	pair := func(i int, name string, a, b []int64) {
		f := [2]matrix{numbered(name+".lora_down.weight", 10+i, a...), numbered(name+".lora_up.weight", 20+i, b...)}
		factors[name] = f
		tensors = append(tensors, f[0], f[1])
	}
	const layer = "lora_te2_text_model_encoder_layers_2_self_attn_"
	pair(0, "lora_unet_input_blocks_1_0_in_layers_2", []int64{2, 3, 3, 3}, []int64{4, 2, 1, 1})
	pair(1, layer+"v_proj", []int64{1, 4}, []int64{4, 1}) // q and k have none
	pair(2, "lora_te2_text_projection", []int64{2, 5}, []int64{4, 2})
	lora := filepath.Join(dir, "lora.safetensors")
	saveTensors(t, lora, tensors...)
	got, err := baked(t, base, lora)
	if err != nil {
		t.Fatal(err)
	}
	straight := func(i int64) int64 { return i }
	f := factors["lora_unet_input_blocks_1_0_in_layers_2"]
	near(t, "conv", got[conv.name], plus(conv.v, f[1], f[0], 1, straight))
	f = factors[layer+"v_proj"]
	near(t, "in_proj", got[in.name], slices.Concat(in.rows(0, 8), plus(in.rows(8, 4), f[1], f[0], 1, straight)))
	f = factors["lora_te2_text_projection"]
	canonical := make([]float32, 20)
	for i := range 4 {
		for j := range 5 {
			canonical[i*5+j] = projection.v[j*4+i]
		}
	}
	canonical = plus(canonical, f[1], f[0], 1, straight)
	stored := make([]float32, 20)
	for i := range 4 {
		for j := range 5 {
			stored[j*4+i] = canonical[i*5+j]
		}
	}
	near(t, "text_projection", got[projection.name], stored)
	if fmt.Sprint(got["first_stage_model.decoder.conv_in.weight"]) == "[]" {
		t.Error("the VAE is gone")
	}
}

// TestMergeWhole merges algorithms that stay whole on a fused module into a base that splits it.
func TestMergeWhole(t *testing.T) {
	const module = "lora_unet_double_blocks_0_img_attn_qkv."
	for name, tensors := range map[string][]matrix{
		"loha": {numbered(module+"hada_w1_a", 1, 12, 2), numbered(module+"hada_w1_b", 2, 2, 4), numbered(module+"hada_w2_a", 3, 12, 2), numbered(module+"hada_w2_b", 4, 2, 4)},
		"lokr": {numbered(module+"lokr_w1", 1, 2, 2), numbered(module+"lokr_w2", 2, 6, 2)},
		"diff": {numbered(module+"diff", 1, 12, 4)},
		"ia3":  {numbered(module+"weight", 1, 4), {module + "on_input", []int64{1}, []float32{1}}},
		"dora": {numbered(module+"lora_down.weight", 1, 2, 4), numbered(module+"lora_up.weight", 2, 12, 2), numbered(module+"dora_scale", 3, 12, 1)},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			w := numbered("double_blocks.0.img_attn.qkv.weight", 9, 12, 4)
			lora, single, folder := filepath.Join(dir, "lora.safetensors"), filepath.Join(dir, "flux.safetensors"), filepath.Join(dir, "transformer")
			saveTensors(t, lora, tensors...)
			saveTensors(t, single, w)
			var parts []matrix
			for i, p := range []string{"to_q", "to_k", "to_v"} {
				parts = append(parts, matrix{"transformer_blocks.0.attn." + p + ".weight", []int64{4, 4}, w.rows(int64(4*i), 4)})
			}
			saveTensors(t, filepath.Join(folder, "diffusion_pytorch_model.safetensors"), parts...)
			fused, err := baked(t, single, lora)
			if err != nil {
				t.Fatal(err)
			}
			split, err := baked(t, folder, lora)
			if err != nil {
				t.Fatal(err)
			}
			got := slices.Concat(split[parts[0].name], split[parts[1].name], split[parts[2].name])
			if slices.Equal(fused[w.name], w.v) {
				t.Error("nothing changed")
			}
			near(t, "the parts", got, fused[w.name])
		})
	}
}

// TestMergePEFT merges a PEFT folder whose modules are those of the class in diffusers into a checkpoint with
// the original names.
func TestMergePEFT(t *testing.T) {
	dir := t.TempDir()
	w := numbered("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", 9, 12, 4)
	single, folder := filepath.Join(dir, "flux.safetensors"), filepath.Join(dir, "peft")
	saveTensors(t, single, w, numbered("model.diffusion_model.single_blocks.0.modulation.lin.weight", 8, 12, 4))
	const k, lin = "base_model.model.transformer_blocks.0.attn.to_k.", "base_model.model.single_transformer_blocks.0.norm.linear."
	a, b := numbered(k+"lora_A.weight", 1, 2, 4), numbered(k+"lora_B.weight", 2, 4, 2)
	saveTensors(t, filepath.Join(folder, "adapter_model.safetensors"), a, b, numbered(lin+"lora_A.weight", 3, 2, 4), numbered(lin+"lora_B.weight", 4, 12, 2))
	config := `{"peft_type": "LORA", "r": 2, "lora_alpha": 1, "target_modules": ["to_k", "norm.linear"]}`
	if err := os.WriteFile(filepath.Join(folder, "adapter_config.json"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := baked(t, single, folder)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "qkv", got[w.name], slices.Concat(w.rows(0, 4), plus(w.rows(4, 4), b, a, 0.5, func(i int64) int64 { return i }), w.rows(8, 4)))
}
