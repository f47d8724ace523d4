package naming_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/naming"
)

type graph struct{ naming.ONNXGraph }

func (g *graph) tensor(name string, shape ...int64) *graph {
	g.Initializers = append(g.Initializers, naming.ONNXInitializer{Name: name, Shape: shape})
	return g
}

// node adds an operator; spec is "name = Op(inputs) -> outputs", attributes follow.
func (g *graph) node(name, op, inputs, outputs string, ints ...map[string][]int64) *graph {
	n := naming.ONNXNode{Name: name, Op: op, Inputs: strings.Split(inputs, " "), Outputs: strings.Fields(outputs)}
	if i := strings.LastIndexByte(op, ':'); i >= 0 {
		n.Domain, n.Op = op[:i], op[i+1:]
	}
	for i, v := range n.Inputs {
		if v == "-" {
			n.Inputs[i] = ""
		}
	}
	for _, a := range ints {
		n.Ints = a
	}
	g.Nodes = append(g.Nodes, n)
	return g
}

func (g *graph) meta(key, value string) *graph {
	g.Nodes[len(g.Nodes)-1].Metadata = map[string]string{key: value}
	return g
}

type ints = map[string][]int64

func TestONNXPlaces(t *testing.T) {
	g := func() *graph { return &graph{} }
	folded := g().tensor("val_12", 8, 6).tensor("val_13", 8, 6).node("n0", "MatMul", "x val_12", "y").node("n1", "MatMul", "y val_13", "z")
	folded.Values = []naming.ONNXValue{{Name: "val_12", Metadata: map[string]string{"pkg.onnxscript.optimizer.folded_from": `['model.layers.0.mlp.up_proj.weight']`}}}
	folded.Initializers[1].Metadata = map[string]string{"pkg.onnxscript.optimizer.folded_from": `["model.layers.0.mlp.gate_proj.weight", 'val_1']`}
	sized := g().tensor("model.layers.0.attn.qkv_proj.MatMul.weight", 8, 16).
		node("/model/layers.0/attn/qkv_proj/MatMul", "MatMul", "x model.layers.0.attn.qkv_proj.MatMul.weight", "y").
		node("/s", "Split", "y sizes", "q k v", ints{"axis": {-1}})
	sized.Initializers = append(sized.Initializers, naming.ONNXInitializer{Name: "sizes", Shape: []int64{3}, Ints: []int64{8, 4, 4}})

	tests := []struct {
		name          string
		g             *graph
		module, param string
		want          []naming.Place // nil = not found
		reason        string
	}{
		{"Gemm transB", g().tensor("fc1.weight", 5, 7).node("Gemm_0", "Gemm", "x fc1.weight", "y", ints{"transB": {1}}),
			"fc1", "weight", []naming.Place{{Tensor: "fc1.weight", Rule: "initializer name", Uses: 1}}, ""},
		{"square Gemm without transB", g().tensor("h.0.attn.c_proj.weight_resize", 4, 4).node("Gemm_0", "Gemm", "x h.0.attn.c_proj.weight_resize", "y"),
			"transformer.h.0.attn.c_proj", "weight", []naming.Place{{Tensor: "h.0.attn.c_proj.weight_resize", Transposed: true, Rule: "initializer name", Uses: 1}}, ""},
		{"MatMul after Transpose and Cast", g().tensor("a.weight", 4, 4).node("c", "Cast", "a.weight", "c").node("t", "Transpose", "c", "at", ints{"perm": {1, 0}}).node("m", "MatMul", "x at", "y"),
			"a", "weight", []naming.Place{{Tensor: "a.weight", Rule: "initializer name", Uses: 1, Node: 2}}, ""},
		{"two transposes", g().tensor("a.weight", 4, 4).node("t", "Transpose", "a.weight", "b").node("t2", "Transpose", "b", "c").node("m", "MatMul", "x c", "y"),
			"a", "weight", []naming.Place{{Tensor: "a.weight", Transposed: true, Rule: "initializer name", Uses: 1, Node: 2}}, ""},
		{"genai name", g().tensor("model.layers.0.attn.q_proj.MatMul.weight", 8, 6).node("/model/layers.0/attn/q_proj/MatMul", "MatMul", "x model.layers.0.attn.q_proj.MatMul.weight", "y"),
			"model.layers.0.self_attn.q_proj", "weight", []naming.Place{{Tensor: "model.layers.0.attn.q_proj.MatMul.weight", Transposed: true, Rule: "initializer name", Uses: 1}}, ""},
		{"node path", g().tensor("onnx::MatMul_1234", 8, 6).node("/model/model/layers.0/self_attn/q_proj/MatMul", "MatMul", "x onnx::MatMul_1234", "y"),
			"model.layers.0.self_attn.q_proj", "weight", []naming.Place{{Tensor: "onnx::MatMul_1234", Transposed: true, Rule: "node path", Uses: 1}}, ""},
		{"name scopes", g().tensor("t_3", 8, 6).node("node_1", "MatMul", "x t_3", "y").meta("pkg.torch.onnx.name_scopes", `['', 'model.layers.0', 'model.layers.0.self_attn.q_proj', 'linear_8']`),
			"model.layers.0.self_attn.q_proj", "weight", []naming.Place{{Tensor: "t_3", Transposed: true, Rule: "metadata", Uses: 1}}, ""},
		{"folded value", folded, "model.layers.0.mlp.up_proj", "weight", []naming.Place{{Tensor: "val_12", Transposed: true, Rule: "metadata", Uses: 1}}, ""},
		{"folded tensor", folded, "model.layers.0.mlp.gate_proj", "weight", []naming.Place{{Tensor: "val_13", Transposed: true, Rule: "metadata", Uses: 1, Node: 1}}, ""},
		{"bias names its weight", g().tensor("W", 8, 6).tensor("enc.q.bias", 6).node("m", "MatMul", "x W", "y").node("a", "Add", "enc.q.bias y", "z"),
			"enc.q", "weight", []naming.Place{{Tensor: "W", Transposed: true, Rule: "bias name", Uses: 1}}, ""},
		{"weight names its bias", g().tensor("enc.q.weight", 8, 6).tensor("b", 6).node("m", "MatMul", "x enc.q.weight", "y").node("a", "Add", "y b", "z"),
			"enc.q", "bias", []naming.Place{{Tensor: "b", Rule: "bias name", Uses: 1}}, ""},
		{"a norm's shift does not name the product before it", g().tensor("W", 6, 6).tensor("norm.weight", 6).tensor("norm.bias", 6).node("m", "MatMul", "x W", "y").node("n", "com.microsoft:SkipLayerNormalization", "y r norm.weight norm.bias", "z"),
			"norm", "weight", []naming.Place{{Tensor: "norm.weight", Rule: "initializer name", Uses: 1, Node: 1}}, ""},
		{"embedding", g().tensor("model.embed_tokens.weight", 10, 4).node("g", "Gather", "model.embed_tokens.weight ids", "y"),
			"model.embed_tokens", "weight", []naming.Place{{Tensor: "model.embed_tokens.weight", Rule: "initializer name", Uses: 1}}, ""},
		{"tied embedding counts two uses", g().tensor("model.embed_tokens.weight", 10, 4).node("g", "Gather", "model.embed_tokens.weight ids", "y").node("t", "Transpose", "model.embed_tokens.weight", "w").node("/lm_head/MatMul", "MatMul", "y w", "z"),
			"lm_head", "weight", []naming.Place{{Tensor: "model.embed_tokens.weight", Rule: "node path", Uses: 2, Node: 2}}, ""},
		{"convolution", g().tensor("conv.weight", 8, 4, 3, 3).node("c", "Conv", "x conv.weight", "y"),
			"conv", "weight", []naming.Place{{Tensor: "conv.weight", Rule: "initializer name", Uses: 1}}, ""},
		{"packed by attention heads", g().tensor("model.layers.0.attn.qkv_proj.MatMul.weight", 8, 16).node("/model/layers.0/attn/qkv_proj/MatMul", "MatMul", "x model.layers.0.attn.qkv_proj.MatMul.weight", "y").node("/a", "com.microsoft:GroupQueryAttention", "y - - p", "z", ints{"num_heads": {4}, "kv_num_heads": {2}}),
			"model.layers.0.self_attn.k_proj", "weight", []naming.Place{{Tensor: "model.layers.0.attn.qkv_proj.MatMul.weight", Transposed: true, RowOffset: 8, Rows: 4, Rule: "initializer name, packed", Uses: 1}}, ""},
		{"packed by Split sizes", sized, "model.layers.0.self_attn.v_proj", "weight", []naming.Place{{Tensor: "model.layers.0.attn.qkv_proj.MatMul.weight", Transposed: true, RowOffset: 12, Rows: 4, Rule: "initializer name, packed", Uses: 1}}, ""},
		{"packed Attention operator", g().tensor("l.attn.qkv.weight", 8, 24).node("A", "com.microsoft:Attention", "x l.attn.qkv.weight", "y", ints{"num_heads": {2}}),
			"l.self_attn.v_proj", "weight", []naming.Place{{Tensor: "l.attn.qkv.weight", Transposed: true, RowOffset: 16, Rows: 8, Rule: "initializer name, packed", Uses: 1}}, ""},
		{"packed without sizes", g().tensor("l.attn.qkv_proj.weight", 8, 24).node("m", "MatMul", "x l.attn.qkv_proj.weight", "y").node("s", "Slice", "y a b", "z"),
			"l.attn.v_proj", "weight", nil, ""},
		{"gate and up", g().tensor("l.mlp.gate_up_proj.weight", 10, 4).node("m", "Gemm", "x l.mlp.gate_up_proj.weight", "y", ints{"transB": {1}}),
			"l.mlp.up_proj", "weight", []naming.Place{{Tensor: "l.mlp.gate_up_proj.weight", RowOffset: 5, Rows: 5, Rule: "initializer name, packed", Uses: 1}}, ""},
		{"unpacked", g().tensor("l.attn.q_proj.weight", 8, 8).tensor("l.attn.k_proj.weight", 8, 4).tensor("l.attn.v_proj.weight", 8, 4).node("q", "MatMul", "x l.attn.q_proj.weight", "q").node("k", "MatMul", "x l.attn.k_proj.weight", "k").node("v", "MatMul", "x l.attn.v_proj.weight", "v"),
			"l.self_attn.qkv_proj", "weight", []naming.Place{
				{Tensor: "l.attn.q_proj.weight", Transposed: true, Run: 8, Rows: 8, Rule: "initializer name, unpacked", Uses: 1},
				{Tensor: "l.attn.k_proj.weight", Transposed: true, First: 8, Run: 4, Rows: 4, Rule: "initializer name, unpacked", Uses: 1, Node: 1},
				{Tensor: "l.attn.v_proj.weight", Transposed: true, First: 12, Run: 4, Rows: 4, Rule: "initializer name, unpacked", Uses: 1, Node: 2}}, ""},
		{"both orientations", g().tensor("a.weight", 4, 4).node("m", "MatMul", "x a.weight", "y").node("g", "Gemm", "y a.weight", "z", ints{"transB": {1}}),
			"a", "weight", nil, `"a.weight" is read in both orientations`},
		{"two under one path", g().tensor("v1", 4, 4).tensor("v2", 4, 4).node("/a/MatMul", "MatMul", "x v1", "y").node("/a/MatMul_1", "MatMul", "y v2", "z"),
			"a", "weight", nil, `more than one initializer fits: "v1", "v2"`},
		{"QDQ", g().tensor("a.weight", 4, 4).tensor("s", 4).node("d", "DequantizeLinear", "a.weight s", "y").node("m", "MatMul", "x y", "z"),
			"a", "weight", []naming.Place{{Tensor: "a.weight", Transposed: true, Rule: "initializer name", Uses: 1, Node: 1}}, ""},
		{"QDQ before a Transpose, by names", g().tensor("model.layers.0.attn.q_proj.MatMul.weight_DQ_Q4", 4, 4).tensor("s", 4, 1).node("d", "DequantizeLinear", "model.layers.0.attn.q_proj.MatMul.weight_DQ_Q4 s", "y").node("t", "Transpose", "y", "yt").node("m", "MatMul", "x yt", "z"),
			"model.layers.0.self_attn.q_proj", "weight", []naming.Place{{Tensor: "model.layers.0.attn.q_proj.MatMul.weight_DQ_Q4", Rule: "initializer name", Uses: 1, Node: 2}}, ""},
		{"MatMulNBits by its initializer", g().tensor("model.layers.0.attn.q_proj.MatMul.weight_Q4", 6, 1, 16).tensor("model.layers.0.attn.q_proj.MatMul.weight_scales", 6, 1).node("n", "com.microsoft:MatMulNBits", "x model.layers.0.attn.q_proj.MatMul.weight_Q4 model.layers.0.attn.q_proj.MatMul.weight_scales", "y", ints{"N": {6}, "K": {32}}),
			"model.layers.0.self_attn.q_proj", "weight", []naming.Place{{Tensor: "model.layers.0.attn.q_proj.MatMul.weight_Q4", Rule: "initializer name", Uses: 1}}, ""},
		{"MatMulNBits by its node, with matrices of scales", g().tensor("onnx::MatMul_12_Q4", 6, 2, 16).tensor("onnx::MatMul_12_scales", 6, 2).tensor("z", 6, 1).node("/model/layers.0/mlp/up_proj/MatMul_Q4", "com.microsoft:MatMulNBits", "x onnx::MatMul_12_Q4 onnx::MatMul_12_scales z", "y", ints{"N": {6}, "K": {64}}),
			"model.layers.0.mlp.up_proj", "weight", []naming.Place{{Tensor: "onnx::MatMul_12_Q4", Rule: "node path", Uses: 1}}, ""},
		{"MatMulNBits that packs q, k and v", g().tensor("model.layers.0.attn.qkv_proj.MatMul.qweight", 16, 1, 16).node("n", "com.microsoft:MatMulNBits", "x model.layers.0.attn.qkv_proj.MatMul.qweight s", "y", ints{"N": {16}, "K": {32}}).node("a", "com.microsoft:GroupQueryAttention", "y - - p", "z", ints{"num_heads": {4}, "kv_num_heads": {2}}),
			"model.layers.0.self_attn.v_proj", "weight", []naming.Place{{Tensor: "model.layers.0.attn.qkv_proj.MatMul.qweight", RowOffset: 12, Rows: 4, Rule: "initializer name, packed", Uses: 1}}, ""},
		{"the bias of MatMulNBits", g().tensor("a.weight_Q4", 6, 1, 16).tensor("b", 6).node("n", "com.microsoft:MatMulNBits", "x a.weight_Q4 s - - b", "y", ints{"N": {6}, "K": {32}}),
			"a", "bias", []naming.Place{{Tensor: "b", Rule: "bias name", Uses: 1}}, ""},
		{"MatMulInteger", g().tensor("a.weight_quantized", 6, 4).tensor("a.weight_zero_point").node("n", "MatMulInteger", "x a.weight_quantized zx a.weight_zero_point", "y"),
			"a", "weight", []naming.Place{{Tensor: "a.weight_quantized", Transposed: true, Rule: "initializer name", Uses: 1}}, ""},
		{"QGemm", g().tensor("a.weight_quantized", 6, 4).node("n", "com.microsoft:QGemm", "x sx zx a.weight_quantized s z", "y", ints{"transB": {1}}),
			"a", "weight", []naming.Place{{Tensor: "a.weight_quantized", Rule: "initializer name", Uses: 1}}, ""},
		{"QAttention packs q, k and v", g().tensor("l.attn.qkv.weight_quantized", 8, 24).node("n", "com.microsoft:QAttention", "x l.attn.qkv.weight_quantized b sx s", "y"),
			"l.attn.k_proj", "weight", []naming.Place{{Tensor: "l.attn.qkv.weight_quantized", Transposed: true, RowOffset: 8, Rows: 8, Rule: "initializer name, packed", Uses: 1}}, ""},
		{"QLinearConv", g().tensor("c.weight_quantized", 8, 4, 3, 3).node("n", "QLinearConv", "x sx zx c.weight_quantized s z sy zy", "y"),
			"c", "weight", []naming.Place{{Tensor: "c.weight_quantized", Rule: "initializer name", Uses: 1}}, ""},
		{"GatherBlockQuantized", g().tensor("model.embed_tokens.weight_Q4", 10, 16).tensor("s", 10, 1).node("n", "com.microsoft:GatherBlockQuantized", "model.embed_tokens.weight_Q4 ids s", "y"),
			"model.embed_tokens", "weight", []naming.Place{{Tensor: "model.embed_tokens.weight_Q4", Rule: "initializer name", Uses: 1}}, ""},
		{"a flat weight of MatMulBnb4", g().tensor("a.weight_Bnb4", 96).tensor("m", 3).node("n", "com.microsoft:MatMulBnb4", "x a.weight_Bnb4 m", "y", ints{"N": {6}, "K": {32}}),
			"a", "weight", []naming.Place{{Tensor: "a.weight_Bnb4", Rule: "initializer name", Uses: 1}}, ""},
		{"not read", g().tensor("a.weight", 4, 4), "a", "weight", nil, ""},
		{"a loop of nodes ends", g().tensor("a.weight", 4, 4).node("1", "Identity", "a.weight", "b").node("2", "Identity", "b", "a.weight"), "a", "weight", nil, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := naming.NewONNX(tt.g.ONNXGraph).Find(tt.module, tt.param)
			if tt.want == nil {
				if e := notFound(t, err); tt.reason != "" && e.Reason != tt.reason {
					t.Errorf("reason %q, expected %q", e.Reason, tt.reason)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestONNXCandidates(t *testing.T) {
	g := (&graph{}).tensor("w1", 8, 6).tensor("w2", 6, 6).tensor("w3", 6, 6).tensor("known.weight", 8, 6).
		node("a", "MatMul", "x w1", "y").node("b", "MatMul", "y w2", "z").
		node("c", "Gemm", "z w3", "u", ints{"transB": {1}}).node("d", "MatMul", "u known.weight", "v")
	r := naming.NewONNX(g.ONNXGraph)
	one := []naming.Place{{Tensor: "w1", Transposed: true, Rule: "shape", Uses: 1}}
	if d := cmp.Diff(one, r.Candidates(6, 8)); d != "" {
		t.Error(d)
	}
	if got := r.Candidates(8, 6); got != nil {
		t.Errorf("[8, 6] read as [in, out] is not [8, 6]: %v", got)
	}
	two := []naming.Place{{Tensor: "w2", Transposed: true, Rule: "shape", Uses: 1, Node: 1}, {Tensor: "w3", Rule: "shape", Uses: 1, Node: 2}}
	if d := cmp.Diff(two, r.Candidates(6, 6)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]naming.Source{{Module: "known", Param: "weight", Place: naming.Place{Tensor: "known.weight", Transposed: true, Rule: "initializer name", Uses: 1, Node: 3}}}, r.Modules()); d != "" {
		t.Error(d)
	}
}

// TestONNXLongChain follows no endless chain of nodes that change nothing.
func TestONNXLongChain(t *testing.T) {
	g := (&graph{}).tensor("a.weight", 4, 4)
	from := "a.weight"
	for i := range 200_000 {
		to := fmt.Sprint(i)
		g.Nodes = append(g.Nodes, naming.ONNXNode{Op: "Identity", Inputs: []string{from}, Outputs: []string{to}})
		from = to
	}
	g.node("m", "MatMul", "x "+from, "y")
	_, err := naming.NewONNX(g.ONNXGraph).Find("a", "weight")
	if e := notFound(t, err); e.Reason != `"a.weight" is read by Identity, which does not tell how it is stored` {
		t.Error(e.Reason)
	}
}

// TestONNXCorpus resolves the modules of real exported models.
func TestONNXCorpus(t *testing.T) {
	dir := corpus.Path(t, "onnx", "naming")
	tests := []struct {
		file, module, param string
		want                naming.Place
	}{
		{"bert_toy_optimized.onnx", "bert.encoder.layer.0.attention.self.query", "weight", naming.Place{Tensor: "bert.encoder.layer.0.attention.self.query.weight_transposed", Transposed: true, Rule: "initializer name", Uses: 1, Node: 26}},
		{"bert_toy_optimized.onnx", "encoder.layer.0.output.dense", "weight", naming.Place{Tensor: "bert.encoder.layer.0.output.dense.weight_transposed", Transposed: true, Rule: "initializer name", Uses: 1, Node: 71}},
		{"bert_toy_optimized.onnx", "bert.encoder.layer.0.intermediate.dense", "bias", naming.Place{Tensor: "bert.encoder.layer.0.intermediate.dense.bias", Rule: "initializer name", Uses: 1, Node: 61}},
		{"bert_toy_optimized.onnx", "bert.embeddings.word_embeddings", "weight", naming.Place{Tensor: "bert.embeddings.word_embeddings.weight", Rule: "initializer name", Uses: 2, Node: 9}},
		{"gpt2_past_one_layer.onnx", "transformer.h.0.attn.c_attn", "weight", naming.Place{Tensor: "transformer.h.0.attn.c_attn.weight_resize", Transposed: true, Rule: "initializer name", Uses: 1, Node: 32}},
		{"gpt2_past_one_layer.onnx", "transformer.h.0.attn.c_proj", "weight", naming.Place{Tensor: "transformer.h.0.attn.c_proj.weight_resize", Transposed: true, Rule: "initializer name", Uses: 1, Node: 76}},
		{"gpt2_past_one_layer.onnx", "transformer.h.0.mlp.c_fc", "bias", naming.Place{Tensor: "transformer.h.0.mlp.c_fc.bias_resize", Rule: "initializer name", Uses: 1, Node: 93}},
		{"gpt2_past_one_layer.onnx", "transformer.wte", "weight", naming.Place{Tensor: "transformer.wte.weight_resize", Rule: "initializer name", Uses: 1, Node: 16}},
		{"genai-tiny-random-gpt2-fp32-past.onnx", "transformer.h.1.attn.c_attn", "weight", naming.Place{Tensor: "transformer.h.1.attn.c_attn.weight", Transposed: true, Rule: "initializer name", Uses: 1, Node: 10}},
		{"genai-tiny-random-gpt2-fp32-past.onnx", "transformer.h.4.mlp.c_proj", "weight", naming.Place{Tensor: "transformer.h.4.mlp.c_proj.weight", Transposed: true, Rule: "initializer name", Uses: 1, Node: 36}},
		// The optimizer stores the equal biases of all layers once.
		{"genai-tiny-random-gpt2-fp32-past.onnx", "transformer.h.1.attn.c_attn", "bias", naming.Place{Tensor: "transformer.h.0.attn.c_attn.bias", Rule: "bias name", Uses: 5, Node: 10}},
		{"genai-tiny-random-gpt2-fp32-past.onnx", "transformer.wte", "weight", naming.Place{Tensor: "transformer.wte.weight", Rule: "initializer name", Uses: 1, Node: 2}},
		{"genai-tiny-random-gpt2-fp32-past.onnx", "lm_head", "weight", naming.Place{Tensor: "onnx::MatMul_1400", Transposed: true, Rule: "node path", Uses: 1, Node: 38}},
		{"genai-tiny-qwen35-fp16-decoder.onnx", "model.embed_tokens", "weight", naming.Place{Tensor: "embed_tokens.weight", Rule: "initializer name", Uses: 1, Node: 6}},
		{"zero_model.onnx", "fc1", "weight", naming.Place{Tensor: "fc1.weight", Rule: "initializer name", Uses: 1}},
		{"zero_model.onnx", "fc2", "bias", naming.Place{Tensor: "fc2.bias", Rule: "initializer name", Uses: 1, Node: 2}},
	}
	for _, tt := range tests {
		r := naming.NewONNX(readONNX(t, filepath.Join(dir, tt.file)))
		got, err := r.Find(tt.module, tt.param)
		if err != nil {
			t.Errorf("%s %s: %v", tt.file, tt.module, err)
			continue
		}
		if d := cmp.Diff([]naming.Place{tt.want}, got); d != "" {
			t.Errorf("%s %s: %s", tt.file, tt.module, d)
		}
	}

	// How many linear layers and embeddings each model shows, and how many weights stay anonymous.
	for file, want := range map[string][2]int{
		"bert_toy_optimized.onnx":               {36, 0},
		"gpt2_past_one_layer.onnx":              {6, 0},
		"genai-tiny-random-gpt2-fp32-past.onnx": {23, 0},
		"genai-tiny-qwen35-fp16-decoder.onnx":   {1, 13},
		"zero_model.onnx":                       {2, 0},
	} {
		g := readONNX(t, filepath.Join(dir, file))
		r := naming.NewONNX(g)
		known, anonymous := 0, 0
		shape := map[string][]int64{}
		dims := map[[2]int64]bool{}
		for _, i := range g.Initializers {
			shape[i.Name] = i.Shape
			if len(i.Shape) == 2 {
				dims[[2]int64{i.Shape[0], i.Shape[1]}], dims[[2]int64{i.Shape[1], i.Shape[0]}] = true, true
			}
		}
		for _, m := range r.Modules() {
			if m.Param != "weight" || len(shape[m.Place.Tensor]) != 2 {
				continue
			}
			known++
			if p, err := r.Find(m.Module, m.Param); err != nil || !slices.Equal(p, []naming.Place{m.Place}) {
				t.Errorf("%s: %s is listed as %v and found as %v, %v", file, m.Module, m.Place, p, err)
			}
		}
		for d := range dims {
			anonymous += len(r.Candidates(d[0], d[1]))
		}
		if got := [2]int{known, anonymous}; got != want {
			t.Errorf("%s: %v modules and anonymous weights, expected %v", file, got, want)
		}
	}
}

// readONNX decodes the parts of a model that names are found from.
func readONNX(t *testing.T, path string) naming.ONNXGraph {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var g naming.ONNXGraph
	fields(t, b, func(n protowire.Number, v []byte, _ uint64) {
		if n == 7 {
			fields(t, v, func(n protowire.Number, v []byte, _ uint64) {
				switch n {
				case 1:
					g.Nodes = append(g.Nodes, readNode(t, v))
				case 5:
					var i naming.ONNXInitializer
					fields(t, v, func(n protowire.Number, v []byte, x uint64) {
						switch {
						case n == 1 && v == nil:
							i.Shape = append(i.Shape, int64(x))
						case n == 1:
							i.Shape = append(i.Shape, packed(v)...)
						case n == 8:
							i.Name = string(v)
						}
					})
					g.Initializers = append(g.Initializers, i)
				}
			})
		}
	})
	return g
}

func readNode(t *testing.T, b []byte) naming.ONNXNode {
	n := naming.ONNXNode{Ints: map[string][]int64{}}
	fields(t, b, func(f protowire.Number, v []byte, _ uint64) {
		switch f {
		case 1:
			n.Inputs = append(n.Inputs, string(v))
		case 2:
			n.Outputs = append(n.Outputs, string(v))
		case 3:
			n.Name = string(v)
		case 4:
			n.Op = string(v)
		case 7:
			n.Domain = string(v)
		case 5:
			name, list := "", []int64(nil)
			fields(t, v, func(f protowire.Number, v []byte, x uint64) {
				switch {
				case f == 1:
					name = string(v)
				case (f == 3 || f == 8) && v == nil:
					list = append(list, int64(x))
				case f == 8:
					list = append(list, packed(v)...)
				}
			})
			n.Ints[name] = list
		}
	})
	return n
}

func packed(b []byte) (out []int64) {
	for len(b) > 0 {
		x, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return out
		}
		out, b = append(out, int64(x)), b[n:]
	}
	return out
}

// fields calls f for every field of a message: v for bytes, x for a varint.
func fields(t *testing.T, b []byte, f func(n protowire.Number, v []byte, x uint64)) {
	t.Helper()
	for len(b) > 0 {
		n, typ, l := protowire.ConsumeTag(b)
		if l < 0 {
			t.Fatal(protowire.ParseError(l))
		}
		b = b[l:]
		switch typ {
		case protowire.VarintType:
			x, l := protowire.ConsumeVarint(b)
			f(n, nil, x)
			b = b[max(l, 0):]
		case protowire.BytesType:
			v, l := protowire.ConsumeBytes(b)
			f(n, v, 0)
			b = b[max(l, 0):]
		default:
			l := protowire.ConsumeFieldValue(n, typ, b)
			if l < 0 {
				t.Fatal(protowire.ParseError(l))
			}
			b = b[l:]
		}
	}
}
