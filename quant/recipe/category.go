package recipe

import (
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/tensor"
)

// A category is the role of a tensor in a transformer, by its GGUF name.
type category int

const (
	other     category = iota
	output             // the output layer
	embedding          // token embeddings
	attnV              // values, also as a part of a fused projection
	attnK
	attnQ
	attnOut
	ffnUp
	ffnGate
	ffnDown
)

// parts name a category by a piece of the tensor's name; the first that is in it counts.
var parts = []struct {
	part string
	is   category
}{
	{"attn_qkv.weight", attnV}, {"attn_kv_b.weight", attnV}, {"attn_v.weight", attnV},
	{"attn_k.weight", attnK}, {"attn_q.weight", attnQ}, {"attn_output.weight", attnOut},
	{"ffn_up", ffnUp}, {"ffn_gate", ffnGate}, {"ffn_down", ffnDown},
}

const outputName = "output.weight"

func categoryOf(name string) category {
	switch name {
	case outputName:
		return output
	case "token_embd.weight", perLayerEmbedding:
		return embedding
	}
	for _, p := range parts {
		if strings.Contains(name, p.part) {
			return p.is
		}
	}
	return other
}

const perLayerEmbedding = "per_layer_token_embd.weight"

// kept are pieces of the names of matrices that are never quantized: small, or sensitive, or read by
// code that takes floats only.
var kept = func() []string {
	names := []string{
		"_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj",
		"ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "attn_rel_b.weight",
		".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger",
		"a.rvq.codebook", "mm.a.code_embd",
	}
	for _, s := range strings.Fields("first w0 w1 w2 v0 v1 v2 a0 a1 a2 g1 g2 decay_w1 decay_w2 lerp_fused") {
		names = append(names, "time_mix_"+s+".weight")
	}
	return names
}()

// quantizable reports whether a tensor may change its type at all.
func quantizable(s tensor.Spec) bool {
	return dims(s.Shape) >= 2 && strings.HasSuffix(s.Name, "weight") &&
		s.Name != "position_embd.weight" && s.Name != "token_types.weight" &&
		!slices.ContainsFunc(kept, func(part string) bool { return strings.Contains(s.Name, part) })
}

// dims counts dimensions as ggml does: those of 1 at the outer end do not count.
func dims(s tensor.Shape) int {
	for len(s) > 1 && s[0] == 1 {
		s = s[1:]
	}
	return len(s)
}

// matrices is ggml's ne2: how many matrices lie behind each other in a tensor of three dimensions.
func matrices(s tensor.Shape) int64 {
	if len(s) < 3 {
		return 1
	}
	return s[len(s)-3]
}

// columns is ggml's ne0, the length of a row.
func columns(s tensor.Shape) int64 {
	if len(s) == 0 {
		return 1
	}
	return s[len(s)-1]
}

// layerOf reads the number after "blk."; -1 without one.
func layerOf(name string) int {
	rest, ok := strings.CutPrefix(name, "blk.")
	if !ok {
		return -1
	}
	end := 0
	for end < len(rest) && rest[end] >= '0' && rest[end] <= '9' {
		end++
	}
	n, err := strconv.Atoi(rest[:end])
	if err != nil {
		return -1
	}
	return n
}
