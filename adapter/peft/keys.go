package peft

import (
	"slices"
	"strings"
)

// A role is what a tensor of an adapter file is to its module.
type role string

const (
	roleA         role = "lora_A.weight"
	roleB         role = "lora_B.weight"
	roleBias      role = "lora_B.bias"
	roleEmbedA    role = "lora_embedding_A"
	roleEmbedB    role = "lora_embedding_B"
	roleMagnitude role = "lora_magnitude_vector"
	roleTokens    role = "trainable_tokens_delta"
	roleAlpha     role = "alpha"
	roleValue     role = "value"    // a whole parameter
	roleOriginal  role = "original" // the base's own copy in very old files
	roleIgnored   role = "ignored"  // training state that no merge uses
	roleDiagonal  role = "lora_diag"
	rolePart      role = "part"   // of a module, of another tuner than LoRA
	roleShared    role = "shared" // by all modules of a tuner
	roleUnknown   role = "unknown"
)

// A key is a tensor name taken apart.
type key struct {
	module string // path without wrapper components
	param  string // roleValue: the parameter's own name; rolePart, roleShared: the tensor's
	role   role
	depth  int    // factors: how many wrappers stand between module and factor
	inner  bool   // factors: the module lies inside a wrapped one (the out_proj of an attention)
	outer  string // inner: that wrapped module
	based  bool   // roleValue: the name goes through base_layer
	name   string // the adapter's name where the file still carries it
}

var markers = map[string]role{
	"lora_A": roleA, "lora_B": roleB, "lora_embedding_A": roleEmbedA, "lora_embedding_B": roleEmbedB,
	"lora_magnitude_vector": roleMagnitude, "trainable_tokens_delta": roleTokens, "lora_diag": roleDiagonal,
	"lora_velora_embed": roleIgnored, "lora_monteclora_sampler": roleIgnored,
}

// parseKey takes a tensor name apart. Names come with or without PEFT's prefix, with or without the
// adapter's name after the marker.
func parseKey(s string) key {
	for {
		rest, ok := strings.CutPrefix(s, "base_model.model.")
		if !ok {
			break
		}
		s = rest
	}
	parts := strings.Split(s, ".")
	for i := len(parts) - 1; i >= 0; i-- {
		if r, ok := markers[parts[i]]; ok {
			return factorKey(parts[:i], r, parts[i+1:])
		}
	}
	return valueKey(parts)
}

func factorKey(module []string, r role, rest []string) key {
	k := key{role: r}
	if r == roleTokens {
		module = without(module, "token_adapter")
	}
	for len(module) > 0 && module[len(module)-1] == "base_layer" {
		module = module[:len(module)-1]
		k.depth++
	}
	if i := slices.Index(module, "base_layer"); i >= 0 {
		k.inner, k.outer = true, strings.Join(module[:i], ".")
	}
	k.module = strings.Join(without(module, "base_layer"), ".")
	leaf := ""
	if n := len(rest); n > 0 && (rest[n-1] == "weight" || rest[n-1] == "bias") {
		leaf, rest = rest[n-1], rest[:n-1]
	}
	if r == roleIgnored {
		return k
	}
	if len(rest) == 1 {
		k.name, rest = rest[0], nil
	}
	bare := r != roleA && r != roleB // Parameters, not modules: no leaf, except a magnitude's
	switch {
	case len(rest) > 0 || k.module == "":
		k.role = roleUnknown
	case r == roleB && leaf == "bias":
		k.role = roleBias
	case bare && leaf != "" && !(r == roleMagnitude && leaf == "weight"), !bare && leaf != "weight":
		k.role = roleUnknown
	}
	return k
}

func valueKey(parts []string) key {
	k := key{role: roleValue, based: slices.Contains(parts, "base_layer")}
	parts = without(without(parts, "base_layer"), "token_adapter")
	if i := slices.Index(parts, "original_module"); i >= 0 {
		k.role = roleOriginal
		parts = slices.Delete(slices.Clone(parts), i, i+1)
	}
	if i := slices.Index(parts, "modules_to_save"); i >= 0 && i+1 < len(parts) {
		parts = slices.Delete(slices.Clone(parts), i, i+2)
	}
	n := len(parts) - 1
	k.module, k.param = strings.Join(parts[:n], "."), parts[n]
	switch {
	case k.param == "alpha":
		k.role = roleAlpha
	case slices.Contains(trainingState, parts[0]):
		k.role = roleIgnored
	}
	return k
}

// trainingState are first components under which trainers leave their own tensors.
var trainingState = []string{"optimizer", "optimizer_state", "optim", "lr_scheduler", "scheduler", "exp_avg", "exp_avg_sq", "scaler"}

// without returns parts without every element equal to s, sharing storage where there is none.
func without(parts []string, s string) []string {
	if !slices.Contains(parts, s) {
		return parts
	}
	return slices.DeleteFunc(slices.Clone(parts), func(p string) bool { return p == s })
}

// foreign names the ecosystem that a tensor name belongs to when it is not PEFT's, or "".
func foreign(name string) string {
	switch {
	case strings.HasPrefix(name, "lora_unet_"), strings.HasPrefix(name, "lora_te"), strings.Contains(name, ".lora_down."), strings.Contains(name, ".lora_up."):
		return "kohya"
	case strings.HasSuffix(name, ".lora_a"), strings.HasSuffix(name, ".lora_b"):
		return "MLX"
	case strings.HasSuffix(name, ".lora_a.weight"), strings.HasSuffix(name, ".lora_b.weight"):
		return "torchtune"
	case strings.HasPrefix(name, "unet."), strings.HasPrefix(name, "transformer.") && strings.Contains(name, ".processor."):
		return "diffusers"
	case strings.Contains(name, ".adapter.linear_in."), strings.Contains(name, "lora_kqv_adapter"):
		return "NeMo"
	}
	return ""
}
