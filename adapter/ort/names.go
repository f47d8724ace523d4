package ort

import (
	"regexp"
	"slices"
	"strings"
)

// A name is the name of a graph input or parameter taken apart.
type name struct {
	module string // as Hugging Face names it
	b      bool   // the second factor
}

// markersA and markersB are the path components that tell the factors: PEFT's and genai's, and those of
// nodes that the TorchScript exporter numbered.
var (
	markersA = []string{"lora_A", "lora_embedding_A", "default", "default_0"}
	markersB = []string{"lora_B", "lora_embedding_B", "default_1", "default_0_1"}
)

// endings are what may follow the marker.
var endings = []string{"", "weight", "MatMul", "MatMul.weight", "default.weight", "MatMul_Q4", "weight_transposed"}

var genaiAttention = regexp.MustCompile(`(^|\.)(layers\.[0-9]+\.)attn\.`)

// parse takes a name in any of the exporters' spellings apart: model.layers.0.self_attn.q_proj.lora_A.weight
// (Olive's convert-adapters), model.layers.0.attn.q_proj.lora_A.MatMul.weight (onnxruntime-genai),
// /model/layers.0/self_attn/q_proj/default_1/MatMul (TorchScript).
func parse(s string) (name, bool) {
	parts := strings.Split(strings.Trim(strings.ReplaceAll(s, "/", "."), "."), ".")
	i := slices.IndexFunc(parts, func(p string) bool { return slices.Contains(markersA, p) || slices.Contains(markersB, p) })
	if i < 1 || !slices.Contains(endings, strings.Join(parts[i+1:], ".")) {
		return name{}, false
	}
	return name{canonical(strings.Join(parts[:i], ".")), slices.Contains(markersB, parts[i])}, true
}

// canonical is a module's path as Hugging Face spells it.
func canonical(module string) string {
	for {
		rest, ok := strings.CutPrefix(module, "base_model.model.")
		if !ok {
			break
		}
		module = rest
	}
	return genaiAttention.ReplaceAllString(module, "${1}${2}self_attn.")
}

// key is what two spellings of a module have in common: exporters add and drop leading components before
// the layers.
func key(module string) string {
	module = canonical(module)
	for _, layers := range []string{"layers.", "h.", "blocks."} {
		if i := strings.Index("."+module, "."+layers); i >= 0 {
			return module[i:]
		}
	}
	return module[strings.LastIndexByte(module, '.')+1:]
}
