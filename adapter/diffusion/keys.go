package diffusion

import (
	"regexp"
	"slices"
	"strings"

	"github.com/loratool/loratool/tensor"
)

// A role is what a tensor is to its module. Roles that are not listed are the suffixes of other algorithms,
// as they are: "hada_w1_a", "lokr_w2", "oft_blocks".
type role string

const (
	roleA     role = "lora_down.weight"
	roleB     role = "lora_up.weight"
	roleMid   role = "lora_mid.weight"
	roleBias  role = "lora_up.bias"
	roleAlpha role = "alpha"
	roleScale role = "scale"
	roleDora  role = "dora_scale"
	roleSet   role = "set_weight"

	roleReshape role = "reshape_weight"
)

// suffixes are the spellings of the roles, longer ones before those that they end in.
var suffixes = []struct {
	text string
	role role
}{
	{".lora_linear_layer.down.weight", roleA}, {".lora_linear_layer.up.weight", roleB},
	{".lora_down.weight", roleA}, {".lora_up.weight", roleB}, {".lora_mid.weight", roleMid}, {".lora_up.bias", roleBias},
	{".lora_A.weight", roleA}, {".lora_B.weight", roleB}, {".lora_B.bias", roleBias}, {".lora_A", roleA}, {".lora_B", roleB},
	{".lora.down.weight", roleA}, {".lora.up.weight", roleB},
	{"_lora.down.weight", roleA}, {"_lora.up.weight", roleB},
	{".down.weight", roleA}, {".up.weight", roleB}, {".lora_down", roleA}, {".lora_up", roleB},
	{".alpha", roleAlpha}, {".scale", roleScale},
	{".dora_scale", roleDora}, {".lora_magnitude_vector.weight", roleDora}, {".lora_magnitude_vector", roleDora}, {".magnitude", roleDora},
	{".set_weight", roleSet}, {".oft_R.weight", "oft_R.weight"}, {".oft_R.scaled_oft", "oft_R.scaled_oft"},
	{".a1.weight", "a1.weight"}, {".a2.weight", "a2.weight"}, {".b1.weight", "b1.weight"}, {".b2.weight", "b2.weight"}, {".bm.weight", "bm.weight"},
}

// others are the last components of the suffixes of other algorithms.
var others = []string{
	"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
	"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t1", "lokr_t2",
	"on_input", "oft_blocks", "rescale", "diff", "diff_b", "diff_m", "w_norm", "b_norm", "reshape_weight",
	"bias_indices", "bias_values", "bias_size",
}

// A place is where the prefix of a name puts the rest: "denoiser", or the text encoder as the prefix calls it.
type place string

const denoiser place = "denoiser"

// prefixes are the prefixes of names. Those of flattened names end in "_".
var prefixes = []struct {
	text string
	at   place
}{
	{"unet.base_model.model.", denoiser}, {"transformer.base_model.model.", denoiser}, {"base_model.model.", denoiser},
	{"model.diffusion_model.", denoiser}, {"diffusion_model.", denoiser}, {"transformer.", denoiser}, {"unet.", denoiser},
	{"text_encoder.", "text_encoder"}, {"text_encoder_2.", "text_encoder_2"}, {"text_encoder_3.", "text_encoder_3"},
	{"lora_unet__", denoiser}, {"lora_unet_", denoiser}, {"lora_transformer_", denoiser}, {"lora_prior_unet_", denoiser}, {"lycoris_", denoiser},
	{"lora_te1_", "lora_te1_"}, {"lora_te2_", "lora_te2_"}, {"lora_te3_", "lora_te3_"}, {"lora_te_", "lora_te_"},
}

// A key is a tensor's name taken apart.
type key struct {
	t      *tensor.Tensor
	prefix string
	at     place
	body   string // the module as the file spells it, in dots or flattened
	flat   bool
	role   role
	suffix string // as the file spells it
}

// infix is the name of the adapter that PEFT leaves in raw files: lora_A.default.weight.
var infix = regexp.MustCompile(`^\.(lora_[AB]|lora_magnitude_vector)\.[^.]+\.(weight|bias)$`)

// parse takes a name apart. It is false for what is no part of an adapter.
func parse(name string) (key, bool) {
	if i := strings.LastIndex(name, ".lora_"); i >= 0 {
		if m := infix.FindStringSubmatch(name[i:]); m != nil {
			name = name[:i] + "." + m[1] + "." + m[2]
		}
	}
	k := key{at: denoiser}
	for _, p := range prefixes {
		if rest, ok := strings.CutPrefix(name, p.text); ok {
			k.prefix, k.at, k.body, k.flat = p.text, p.at, rest, strings.HasSuffix(p.text, "_")
			break
		}
	}
	if rest, ok := strings.CutPrefix(name, "text_encoders."); ok && k.prefix == "" {
		te, rest, ok := strings.Cut(rest, ".")
		if !ok {
			return k, false
		}
		body, ok := strings.CutPrefix(rest, "transformer.")
		if !ok {
			return k, false
		}
		k.prefix, k.at, k.body = name[:len(name)-len(body)], place("text_encoders."+te+".transformer."), body
	}
	if k.prefix == "" {
		k.body = name
	}
	if !k.cut() || k.body == "" {
		return k, false
	}
	if k.flat && strings.Contains(k.body, ".") {
		return k, false
	}
	k.modernize()
	return k, true
}

// cut takes the suffix from the body.
func (k *key) cut() bool {
	for _, s := range suffixes {
		if body, ok := strings.CutSuffix(k.body, s.text); ok {
			// ".down.weight" alone is also a layer of feed-forwards; only the names of processors end in it.
			if (s.text == ".down.weight" || s.text == ".up.weight") && !strings.Contains(body, ".processor.") {
				continue
			}
			k.body, k.role, k.suffix = body, s.role, s.text
			return true
		}
	}
	i := strings.LastIndexByte(k.body, '.')
	if i < 0 {
		return false
	}
	last := k.body[i+1:]
	if slices.Contains(others, last) || last == "weight" && k.flat {
		k.body, k.role, k.suffix = k.body[:i], role(last), k.body[i:]
		return true
	}
	if j := strings.LastIndexByte(k.body[:i], '.'); j >= 0 && k.body[j+1:i] == "oft_blocks" { // split over a number
		k.body, k.role, k.suffix = k.body[:j], role(k.body[j+1:]), k.body[j:]
		return true
	}
	return false
}

// modernize replaces what old versions put between the module and the suffix.
func (k *key) modernize() {
	at, leaf, ok := strings.Cut(k.body, ".processor.")
	switch {
	case ok && (strings.HasPrefix(k.body, "double_blocks.") || strings.HasPrefix(k.body, "single_blocks.")):
		k.body = at + xlabs(leaf)
		return
	case ok:
		k.body = at + "." + leaf
	case strings.HasPrefix(string(k.at), "text_encoder") && strings.HasPrefix(k.suffix, "_lora."):
		if i := strings.LastIndex(k.body, ".to_"); i >= 0 {
			k.body = k.body[:i+1] + map[string]string{"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}[k.body[i+4:]]
		}
		return
	}
	if parent, ok := strings.CutSuffix(k.body, ".to_out"); ok && strings.HasPrefix(k.suffix, "_lora") {
		k.body = parent + ".to_out.0"
	}
}

// xlabs is the module of an attention processor of x-flux. In single blocks the projection covers only the
// rows of q, k and v, which ":3" says.
func xlabs(leaf string) string {
	if m, ok := map[string]string{
		"qkv_lora1": ".img_attn.qkv", "proj_lora1": ".img_attn.proj", "qkv_lora2": ".txt_attn.qkv", "proj_lora2": ".txt_attn.proj",
		"qkv": ".linear1:3", "proj": ".linear2",
	}[leaf]; ok {
		return m
	}
	return ".processor." + leaf
}
