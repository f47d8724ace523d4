package merge

import (
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// A site is a module of a diffusion model, and where two forms of the base keep its weight.
type site struct {
	key    string  // kohya's
	shape  []int64 // [out, in], and the kernel of a convolution
	single holder  // in a checkpoint with the original names
	parts  holder  // in a folder of diffusers
}

// A holder is a stored tensor and the weight's place in it: rows from first on, of rows altogether (0: the
// weight alone), or the transpose.
type holder struct {
	tensor      string
	first, rows int64
	turned      bool
}

func in(tensor string) holder { return holder{tensor: tensor} }

// bakeFamilies are the bases of the four families that users bake into, each with modules of every part.
var bakeFamilies = map[string][]site{
	"sd1": {
		{"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", []int64{8, 4},
			in("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"), in("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight")},
		{"lora_unet_down_blocks_0_resnets_0_conv1", []int64{8, 4, 3, 3},
			in("model.diffusion_model.input_blocks.1.0.in_layers.2.weight"), in("unet.down_blocks.0.resnets.0.conv1.weight")},
		{"lora_te_text_model_encoder_layers_0_self_attn_q_proj", []int64{8, 4},
			in("cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"), in("text_encoder.text_model.encoder.layers.0.self_attn.q_proj.weight")},
	},
	"sdxl": {
		{"lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", []int64{8, 4},
			in("model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight"), in("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight")},
		{"lora_unet_input_blocks_1_0_in_layers_2", []int64{8, 4, 3, 3},
			in("model.diffusion_model.input_blocks.1.0.in_layers.2.weight"), in("unet.down_blocks.0.resnets.0.conv1.weight")},
		{"lora_te1_text_model_encoder_layers_0_mlp_fc1", []int64{8, 4},
			in("conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight"), in("text_encoder.text_model.encoder.layers.0.mlp.fc1.weight")},
		{"lora_te2_text_model_encoder_layers_2_self_attn_v_proj", []int64{8, 4},
			holder{"conditioner.embedders.1.model.transformer.resblocks.2.attn.in_proj_weight", 16, 24, false}, in("text_encoder_2.text_model.encoder.layers.2.self_attn.v_proj.weight")},
		{"lora_te2_text_projection", []int64{8, 4},
			holder{"conditioner.embedders.1.model.text_projection", 0, 0, true}, in("text_encoder_2.text_projection.weight")},
	},
	"sd3": {
		{"lora_unet_joint_blocks_0_x_block_mlp_fc1", []int64{8, 4},
			in("model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight"), in("transformer.transformer_blocks.0.ff.net.0.proj.weight")},
		{"lora_unet_joint_blocks_0_context_block_attn_proj", []int64{8, 4},
			in("model.diffusion_model.joint_blocks.0.context_block.attn.proj.weight"), in("transformer.transformer_blocks.0.attn.to_add_out.weight")},
		{"lora_te1_text_model_encoder_layers_0_mlp_fc1", []int64{8, 4},
			in("text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"), in("text_encoder.text_model.encoder.layers.0.mlp.fc1.weight")},
		{"lora_te2_text_model_encoder_layers_0_mlp_fc1", []int64{8, 4},
			in("text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1.weight"), in("text_encoder_2.text_model.encoder.layers.0.mlp.fc1.weight")},
		{"lora_te3_encoder_block_0_layer_0_SelfAttention_q", []int64{8, 4},
			in("text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight"), in("text_encoder_3.encoder.block.0.layer.0.SelfAttention.q.weight")},
	},
	"flux1": {
		{"lora_unet_double_blocks_0_img_mlp_0", []int64{8, 4},
			in("model.diffusion_model.double_blocks.0.img_mlp.0.weight"), in("transformer.transformer_blocks.0.ff.net.0.proj.weight")},
		{"lora_unet_single_blocks_0_modulation_lin", []int64{8, 4},
			in("model.diffusion_model.single_blocks.0.modulation.lin.weight"), in("transformer.single_transformer_blocks.0.norm.linear.weight")},
		{"lora_te1_text_model_encoder_layers_0_mlp_fc1", []int64{8, 4},
			in("text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"), in("text_encoder.text_model.encoder.layers.0.mlp.fc1.weight")},
		{"lora_te3_encoder_block_0_layer_0_SelfAttention_q", []int64{8, 4},
			in("text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight"), in("text_encoder_2.encoder.block.0.layer.0.SelfAttention.q.weight")},
	},
}

// little is a tensor of small values.
func little(name string, seed int, shape ...int64) matrix {
	m := numbered(name, seed, shape...)
	for i := range m.v {
		m.v[i] /= 8
	}
	return m
}

// at reads a matrix whose last dimensions are folded into one.
func at(m matrix, cols, i, j int64) float64 { return float64(m.v[i*cols+j]) }

// A weight is one of [out, in, taps], by element.
type weight func(o, i, x int64) float64

// An algorithm makes its tensors for a module, and says what they make of the module's weight.
type algorithm struct {
	conv bool // for convolutions only
	make func(key string, shape []int64) (ts []matrix, of func(w weight) weight)
}

func plusDelta(delta weight) func(w weight) weight {
	return func(w weight) weight {
		return func(o, i, x int64) float64 { return w(o, i, x) + delta(o, i, x) }
	}
}

// taps are the elements of a kernel, and tail its dimensions.
func taps(shape []int64) (n int64, tail []int64) {
	n = 1
	for _, d := range shape[2:] {
		n *= d
	}
	return n, shape[2:]
}

// pairOf is lora_down, lora_up and alpha, and its ΔW.
func pairOf(key string, shape []int64) ([]matrix, weight) {
	n, tail := taps(shape)
	ones := make([]int64, len(tail))
	for i := range ones {
		ones[i] = 1
	}
	down := little(key+".lora_down.weight", 1, slices.Concat([]int64{2, shape[1]}, tail)...)
	up := little(key+".lora_up.weight", 2, slices.Concat([]int64{shape[0], 2}, ones)...)
	return []matrix{down, up, {key + ".alpha", nil, []float32{3}}}, func(o, i, x int64) float64 {
		return 1.5 * (at(up, 2, o, 0)*at(down, shape[1]*n, 0, i*n+x) + at(up, 2, o, 1)*at(down, shape[1]*n, 1, i*n+x))
	}
}

// tuckerOf is Σ core[p, q, x]·a[p, o]·b[q, i].
func tuckerOf(core, a, b matrix) weight {
	rank, n := core.shape[0], int64(len(core.v))/core.shape[0]/core.shape[1]
	return func(o, i, x int64) (s float64) {
		for p := range rank {
			for q := range rank {
				s += at(core, n, p*rank+q, x) * at(a, a.shape[1], p, o) * at(b, b.shape[1], q, i)
			}
		}
		return s
	}
}

// turn is a rotation of two values by a block of kohya's with the entries a and b beside its diagonal.
func turn(a, b float32) (c, s float64) {
	angle := 2 * math.Atan(float64(a-b))
	return math.Cos(angle), math.Sin(angle)
}

// magnitudes is DoRA over an axis.
func magnitudes(input bool) func(key string, shape []int64) ([]matrix, func(w weight) weight) {
	return func(key string, shape []int64) ([]matrix, func(w weight) weight) {
		ts, delta := pairOf(key, shape)
		n, tail := taps(shape)
		ones := make([]int64, len(tail))
		for i := range ones {
			ones[i] = 1
		}
		dims := slices.Concat([]int64{shape[0], 1}, ones)
		if input {
			dims = slices.Concat([]int64{1, shape[1]}, ones)
		}
		m := numbered(key+".dora_scale", 5, dims...)
		return append(ts, m), func(w weight) weight {
			v := plusDelta(delta)(w)
			return func(o, i, x int64) float64 {
				sum, k := 0.0, o
				add := func(o, i int64) {
					for x := range n {
						sum += v(o, i, x) * v(o, i, x)
					}
				}
				if input {
					k = i
					for o := range shape[0] {
						add(o, i)
					}
				} else {
					for i := range shape[1] {
						add(o, i)
					}
				}
				return float64(m.v[k]) * v(o, i, x) / math.Sqrt(sum)
			}
		}
	}
}

var algorithms = map[string]algorithm{
	"lora": {make: func(key string, shape []int64) ([]matrix, func(w weight) weight) {
		ts, delta := pairOf(key, shape)
		return ts, plusDelta(delta)
	}},
	"locon with a core": {conv: true, make: func(key string, shape []int64) ([]matrix, func(w weight) weight) {
		down, up, mid := little(key+".lora_down.weight", 1, 2, shape[1], 1, 1), little(key+".lora_up.weight", 2, shape[0], 2, 1, 1), little(key+".lora_mid.weight", 3, 2, 2, 3, 3)
		return []matrix{down, up, mid, {key + ".alpha", nil, []float32{3}}}, plusDelta(func(o, i, x int64) (s float64) {
			for p := range int64(2) {
				for q := range int64(2) {
					s += 1.5 * at(up, 2, o, p) * at(mid, 9, p*2+q, x) * at(down, shape[1], q, i)
				}
			}
			return s
		})
	}},
	"loha": {make: func(key string, shape []int64) ([]matrix, func(w weight) weight) {
		n, _ := taps(shape)
		cols := shape[1] * n
		a, b := little(key+".hada_w1_a", 1, shape[0], 2), little(key+".hada_w1_b", 2, 2, cols)
		c, d := little(key+".hada_w2_a", 3, shape[0], 2), little(key+".hada_w2_b", 4, 2, cols)
		product := func(a, b matrix, o, j int64) float64 {
			return at(a, 2, o, 0)*at(b, cols, 0, j) + at(a, 2, o, 1)*at(b, cols, 1, j)
		}
		return []matrix{a, b, c, d, {key + ".alpha", nil, []float32{8}}}, plusDelta(func(o, i, x int64) float64 {
			return 4 * product(a, b, o, i*n+x) * product(c, d, o, i*n+x)
		})
	}},
	"loha with cores": {conv: true, make: func(key string, shape []int64) ([]matrix, func(w weight) weight) {
		t1, a, b := little(key+".hada_t1", 1, 2, 2, 3, 3), numbered(key+".hada_w1_a", 2, 2, shape[0]), little(key+".hada_w1_b", 3, 2, shape[1])
		t2, c, d := little(key+".hada_t2", 4, 2, 2, 3, 3), numbered(key+".hada_w2_a", 5, 2, shape[0]), little(key+".hada_w2_b", 6, 2, shape[1])
		x1, x2 := tuckerOf(t1, a, b), tuckerOf(t2, c, d)
		return []matrix{t1, a, b, t2, c, d, {key + ".alpha", nil, []float32{16}}}, plusDelta(func(o, i, x int64) float64 { return 8 * x1(o, i, x) * x2(o, i, x) })
	}},
	"lokr": {make: func(key string, shape []int64) ([]matrix, func(w weight) weight) {
		n, tail := taps(shape)
		out, in := shape[0]/2, shape[1]/2
		w1, w2 := numbered(key+".lokr_w1", 1, 2, 2), little(key+".lokr_w2", 2, slices.Concat([]int64{out, in}, tail)...)
		return []matrix{w1, w2, {key + ".alpha", nil, []float32{1e10}}}, plusDelta(func(o, i, x int64) float64 {
			return at(w1, 2, o/out, i/in) * at(w2, in*n, o%out, i%in*n+x)
		})
	}},
	"lokr of a product": {make: func(key string, shape []int64) ([]matrix, func(w weight) weight) {
		n, _ := taps(shape)
		out, in := shape[0]/2, shape[1]/2
		w1, a, b := little(key+".lokr_w1", 1, 2, 2), little(key+".lokr_w2_a", 2, out, 2), numbered(key+".lokr_w2_b", 3, 2, in*n)
		return []matrix{w1, a, b, {key + ".alpha", nil, []float32{1}}}, plusDelta(func(o, i, x int64) float64 {
			j := i%in*n + x
			return 0.5 * at(w1, 2, o/out, i/in) * (at(a, 2, o%out, 0)*at(b, in*n, 0, j) + at(a, 2, o%out, 1)*at(b, in*n, 1, j))
		})
	}},
	"(IA)³ of inputs": {make: func(key string, shape []int64) ([]matrix, func(w weight) weight) {
		l := little(key+".weight", 1, shape[1])
		return []matrix{l, {key + ".on_input", []int64{1}, []float32{1}}}, func(w weight) weight {
			return func(o, i, x int64) float64 { return w(o, i, x) * (1 + float64(l.v[i])) }
		}
	}},
	"(IA)³ of outputs": {make: func(key string, shape []int64) ([]matrix, func(w weight) weight) {
		l := little(key+".weight", 1, shape[0])
		return []matrix{l, {key + ".on_input", []int64{1}, []float32{0}}}, func(w weight) weight {
			return func(o, i, x int64) float64 { return w(o, i, x) * (1 + float64(l.v[o])) }
		}
	}},
	"diff": {make: func(key string, shape []int64) ([]matrix, func(w weight) weight) {
		n, _ := taps(shape)
		d := little(key+".diff", 1, shape...)
		return []matrix{d}, plusDelta(func(o, i, x int64) float64 { return at(d, shape[1]*n, o, i*n+x) })
	}},
	"OFT": {make: func(key string, shape []int64) ([]matrix, func(w weight) weight) {
		q := little(key+".oft_blocks", 1, shape[0]/2, 2, 2)
		return []matrix{q, {key + ".alpha", nil, []float32{0}}}, func(w weight) weight {
			return func(o, i, x int64) float64 { // rows become Rᵀ·W
				c, s := turn(q.v[o/2*4+1], q.v[o/2*4+2])
				if o%2 == 0 {
					return c*w(o, i, x) - s*w(o+1, i, x)
				}
				return s*w(o-1, i, x) + c*w(o, i, x)
			}
		}
	}},
	"BOFT": {make: func(key string, shape []int64) ([]matrix, func(w weight) weight) {
		pairs := shape[0] / 2
		q := little(key+".oft_blocks", 1, 2, pairs, 2, 2)
		return []matrix{q, {key + ".alpha", nil, []float32{0}}}, func(w weight) weight {
			// Stage s turns rows at a distance of 2ˢ by R·W.
			stage := func(w weight, s int64) weight {
				step := int64(1) << s
				return func(o, i, x int64) float64 {
					block := o/(2*step)*step + o%step
					c, sin := turn(q.v[(s*pairs+block)*4+1], q.v[(s*pairs+block)*4+2])
					if o/step%2 == 0 {
						return c*w(o, i, x) + sin*w(o+step, i, x)
					}
					return -sin*w(o-step, i, x) + c*w(o, i, x)
				}
			}
			return stage(stage(w, 0), 1)
		}
	}},
	"GLoRA": {make: func(key string, shape []int64) ([]matrix, func(w weight) weight) {
		n, tail := taps(shape)
		if n > 1 {
			tail = []int64{1, 1}
		}
		in := shape[1]
		a1, a2 := little(key+".a1.weight", 1, slices.Concat([]int64{in, 2}, tail)...), little(key+".a2.weight", 2, slices.Concat([]int64{2, in}, tail)...)
		b1, b2 := little(key+".b1.weight", 3, slices.Concat([]int64{shape[0], 2}, tail)...), little(key+".b2.weight", 4, slices.Concat([]int64{2, in}, shape[2:])...)
		return []matrix{a1, a2, b1, b2, {key + ".alpha", nil, []float32{3}}}, func(w weight) weight {
			return func(o, i, x int64) float64 {
				s := 0.0
				for k := range int64(2) {
					s += at(b1, 2, o, k) * at(b2, in*n, k, i*n+x)
					for j := range in {
						s += w(o, j, x) * at(a1, 2, j, k) * at(a2, in, k, i)
					}
				}
				return w(o, i, x) + 1.5*s
			}
		}
	}},
	"DoRA of outputs": {make: magnitudes(false)},
	"DoRA of inputs":  {make: magnitudes(true)},
}

// bakeBase writes a base of a family and returns what it holds.
func bakeBase(t *testing.T, path string, sites []site, folder bool) map[string]matrix {
	t.Helper()
	held := map[string]matrix{}
	for i, s := range sites {
		h := s.single
		if folder {
			h = s.parts
		}
		shape := slices.Clone(s.shape)
		if h.rows > 0 {
			shape[0] = h.rows
		}
		if h.turned {
			shape[0], shape[1] = shape[1], shape[0]
		}
		held[h.tensor] = numbered(h.tensor, 100+i, shape...)
	}
	others := []matrix{numbered("first_stage_model.decoder.conv_in.weight", 1, 4, 4, 3, 3), numbered("model.diffusion_model.out.0.bias", 2, 6)}
	if folder {
		others = []matrix{numbered("vae.decoder.conv_in.weight", 1, 4, 4, 3, 3), numbered("text_encoder.text_model.embeddings.position_embedding.weight", 2, 6, 4),
			numbered("text_encoder.text_model.final_layer_norm.weight", 3, 4)}
	}
	for _, m := range others {
		held[m.name] = m
	}
	if !folder {
		saveTensors(t, path, slices.Collect(maps.Values(held))...)
		return held
	}
	components := map[string][]matrix{}
	for _, m := range held {
		c, name, _ := strings.Cut(m.name, ".")
		components[c] = append(components[c], matrix{name, m.shape, m.v})
	}
	index := []string{}
	for c, ms := range components {
		file := "model.safetensors"
		if c == "unet" || c == "transformer" || c == "vae" {
			file = "diffusion_pytorch_model.safetensors"
		}
		saveTensors(t, filepath.Join(path, c, file), ms...)
		index = append(index, fmt.Sprintf("%q: [\"a\", \"b\"]", c))
	}
	if err := os.WriteFile(filepath.Join(path, "model_index.json"), []byte("{"+strings.Join(index, ",")+"}"), 0o644); err != nil {
		t.Fatal(err)
	}
	return held
}

// element finds where a holder keeps an element of a weight.
func (h holder) element(shape []int64, o, i, x int64) int64 {
	n, _ := taps(shape)
	if h.turned {
		return i*shape[0] + o
	}
	return ((o+h.first)*shape[1]+i)*n + x
}

// TestBake merges every algorithm into UNet or transformer and text encoders of every family, in a checkpoint with
// the original names and in a folder of diffusers, stored in every type, and compares each element with one
// that is computed from the formula.
func TestBake(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long with the race detector or an emulator")
	}
	for family, sites := range bakeFamilies {
		for _, folder := range []bool{false, true} {
			for name, alg := range algorithms {
				if !slices.ContainsFunc(sites, alg.fits) {
					continue
				}
				for _, dtype := range []tensor.DType{tensor.Invalid, tensor.F16, tensor.BF16, tensor.F8E4M3, tensor.F8E5M2} {
					if dtype != tensor.Invalid && name != "lora" && name != "DoRA of inputs" {
						continue
					}
					t.Run(fmt.Sprintf("%s/%v/%s/%s", family, folder, name, dtype), func(t *testing.T) { bake(t, sites, folder, alg, dtype) })
				}
			}
		}
	}
}

func (a algorithm) fits(s site) bool { return !a.conv || len(s.shape) == 4 }

func bake(t *testing.T, sites []site, folder bool, alg algorithm, dtype tensor.DType) {
	base := filepath.Join(t.TempDir(), "base")
	if !folder {
		base += ".safetensors"
	}
	held := bakeBase(t, base, sites, folder)
	want := map[string][]float64{}
	for name, m := range held {
		for _, x := range m.v {
			want[name] = append(want[name], float64(x))
		}
	}
	var ts []matrix
	for _, s := range sites {
		if !alg.fits(s) {
			continue
		}
		h := s.single
		if folder {
			h = s.parts
		}
		made, of := alg.make(s.key, s.shape)
		ts = append(ts, made...)
		stored := held[h.tensor]
		f := of(func(o, i, x int64) float64 { return float64(stored.v[h.element(s.shape, o, i, x)]) })
		n, _ := taps(s.shape)
		for o := range s.shape[0] {
			for i := range s.shape[1] {
				for x := range n {
					want[h.tensor][h.element(s.shape, o, i, x)] = f(o, i, x)
				}
			}
		}
	}
	lora := filepath.Join(t.TempDir(), "lora.safetensors")
	saveTensors(t, lora, ts...)
	got, types, err := bakedAs(t, base, lora, dtype)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Fatalf("%d tensors, expected %d", len(got), len(want))
	}
	for name, w := range want {
		to := dtype
		if dtype == tensor.Invalid || isFloat8(dtype) && (len(held[name].shape) < 2 || strings.Contains(name, "decoder.conv_in") || strings.Contains(name, "position")) {
			to = tensor.F32
		}
		if types[name] != to {
			t.Errorf("%s is stored as %s, expected %s", name, types[name], to)
		}
		c, _ := quant.Of(to)
		for i, x := range w {
			if !rounds(t, c, got[name][i], x) {
				t.Fatalf("%s: element %d is %g, expected %g", name, i, got[name][i], x)
			}
		}
	}
}

// rounds reports whether a stored value is what a number within the error of float32 becomes.
func rounds(t *testing.T, c quant.Codec, got float32, want float64) bool {
	t.Helper()
	slack := 2e-6 * (1 + math.Abs(want))
	for _, d := range []float64{0, -slack, slack} {
		b, v := make([]byte, c.DType().BlockBytes()), make([]float32, 1)
		if err := c.Encode(b, []float32{float32(want + d)}); err != nil {
			t.Fatal(err)
		}
		if c.Decode(v, b); v[0] == got {
			return true
		}
	}
	return c.DType() == tensor.F32 && math.Abs(float64(got)-want) <= slack
}
