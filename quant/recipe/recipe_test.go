package recipe

import (
	"fmt"
	"testing"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// llama is a model of layers with the shapes of a small llama.
func llama(layers int, cols int64) *Model {
	m := &Model{Path: "m.gguf", Arch: "llama", Layers: layers, Heads: 8, KVHeads: 8}
	add := func(name string, d tensor.DType, shape ...int64) {
		m.Tensors = append(m.Tensors, tensor.Spec{Name: name, DType: d, Shape: shape})
	}
	add("token_embd.weight", tensor.F16, 64, cols)
	add("output_norm.weight", tensor.F32, cols)
	add("output.weight", tensor.F16, 64, cols)
	for i := range layers {
		add(fmt.Sprintf("blk.%d.attn_norm.weight", i), tensor.F32, cols)
		for _, n := range []string{"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"} {
			add(fmt.Sprintf("blk.%d.%s.weight", i, n), tensor.F16, cols, cols)
		}
	}
	return m
}

func types(t *testing.T, name string, m *Model, opt Options) map[string]tensor.DType {
	t.Helper()
	r, err := Of(name)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := NewPlan(r, m, opt)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]tensor.DType{}
	for _, c := range plan.Choices {
		got[m.Tensors[c.Tensor].Name] = c.Type
	}
	return got
}

func TestNames(t *testing.T) {
	for in, want := range map[string]string{
		"q4_k_m": "Q4_K_M", "Q4_K": "Q4_K_M", "q3_k": "Q3_K_M", "Q5_K": "Q5_K_M", "q6_K": "Q6_K", "nvfp4": "NVFP4", "q2_0": "Q2_0",
		"mxfp4_moe": "MXFP4_MOE", "f16": "F16", "float16": "F16", "bfloat16": "BF16", "copy": "COPY", "f8_e4m3": "F8_E4M3",
	} {
		if r, err := Of(in); err != nil || r.Name() != want {
			t.Errorf("%s is %q (%v), want %s", in, r.Name(), err, want)
		}
	}
	for _, in := range []string{"", "Q4_K_XL", "Q8_1", "Q8_K", "I32", "15"} {
		if _, err := Of(in); finding.Of(err) == nil || finding.Of(err).Code != "quant.unknown_recipe" {
			t.Errorf("%q gives %v", in, err)
		}
	}
	// Every type that has blocks and can be written is a recipe.
	for d := tensor.Q4_0; d <= tensor.Q2_0; d++ {
		if _, err := Of(d.String()); (err == nil) == (d == tensor.Q8_1 || d == tensor.Q8_K) {
			t.Errorf("recipe %s: %v", d, err)
		}
	}
}

func TestOverrides(t *testing.T) {
	m := llama(2, 256)
	got := types(t, "Q4_K_S", m, Options{TensorTypes: []Override{override("BLK.0.FFN_UP=Q8_0"), override("ffn_up|ffn_gate=f16")}})
	for name, want := range map[string]tensor.DType{
		"blk.0.ffn_up.weight": tensor.Q8_0, "blk.1.ffn_up.weight": tensor.F16, "blk.0.ffn_gate.weight": tensor.F16,
		"blk.0.attn_q.weight": tensor.Q4_K, "blk.0.attn_norm.weight": tensor.F32, "output.weight": tensor.Q6_K,
	} {
		if got[name] != want {
			t.Errorf("%s is %s, want %s", name, got[name], want)
		}
	}
	for in, code := range map[string]string{
		"attn_v": "quant.bad_pattern", "=q8_0": "quant.bad_pattern", "attn_(?!v)=q8_0": "quant.bad_pattern", `(a)\1=q8_0`: "quant.bad_pattern",
		"attn_v=q9_9": "quant.unknown_type", "attn_v=": "quant.unknown_type", "attn_v=q8_1": "quant.unknown_type",
	} {
		if _, err := ParseOverride(in); finding.Of(err) == nil || finding.Of(err).Code != code {
			t.Errorf("%q gives %v, want %s", in, err, code)
		}
	}
}

// What cannot do without an importance matrix is refused without one, except where it can.
func TestCheckImatrix(t *testing.T) {
	m := llama(2, 256)
	all := func(string) bool { return true }
	for _, c := range []struct {
		recipe string
		opt    Options
		has    func(string) bool
		code   string
		tensor string
	}{
		{recipe: "IQ2_XXS", code: "quant.needs_imatrix", tensor: "blk.0.attn_k.weight"},
		{recipe: "IQ2_XXS", has: all},
		{recipe: "IQ3_XS", code: "quant.needs_imatrix", tensor: "blk.0.attn_k.weight"},
		{recipe: "Q2_K_S", code: "quant.needs_imatrix", tensor: "blk.0.attn_k.weight"},
		{recipe: "Q2_K"}, {recipe: "IQ3_S"}, {recipe: "IQ4_XS"}, {recipe: "Q4_K_M"},
		{recipe: "IQ1_M", has: func(n string) bool { return n != "blk.1.ffn_up.weight" }, code: "quant.missing_entry", tensor: "blk.1.ffn_up.weight"},
		{recipe: "Q4_0", opt: Options{TokenEmbeddingType: tensor.IQ3_XXS}},
		{recipe: "Q4_0", opt: Options{TokenEmbeddingType: tensor.IQ2_XS}, code: "quant.needs_imatrix", tensor: "token_embd.weight"},
		{recipe: "Q8_0", opt: Options{TensorTypes: []Override{override("attn_q=iq2_s")}}, code: "quant.needs_imatrix", tensor: "blk.0.attn_q.weight"},
	} {
		r, err := Of(c.recipe)
		if err != nil {
			t.Fatal(err)
		}
		c.opt.HasImatrix = c.has != nil
		plan, err := NewPlan(r, m, c.opt)
		if err != nil {
			t.Fatal(err)
		}
		f := finding.Of(plan.CheckImatrix(c.has))
		if f == nil && c.code != "" || f != nil && (f.Code != c.code || f.Tensor != c.tensor || f.Hint == "") {
			t.Errorf("%s %+v: %v, want %s in %s", c.recipe, c.opt, f, c.code, c.tensor)
		}
	}
}

func TestFallbacks(t *testing.T) {
	m := llama(1, 256)
	m.Tensors = append(m.Tensors,
		tensor.Spec{Name: "blk.0.ffn_down.odd.weight", DType: tensor.F16, Shape: tensor.Shape{256, 96}},
		tensor.Spec{Name: "blk.0.odd.weight", DType: tensor.F32, Shape: tensor.Shape{256, 33}},
		tensor.Spec{Name: "blk.0.column.weight", DType: tensor.F32, Shape: tensor.Shape{1, 33}})
	r, err := Of("Q4_K_S")
	if err != nil {
		t.Fatal(err)
	}
	plan, err := NewPlan(r, m, Options{})
	if err != nil {
		t.Fatal(err)
	}
	n, parameters, f := plan.Fallbacks(false)
	if n != 2 || parameters != 256*(96+33) || f == nil || f.Level != finding.Warning || f.Tensor != "blk.0.ffn_down.odd.weight" {
		t.Errorf("%d tensors, %d parameters: %+v", n, parameters, f)
	}
	if _, _, f = plan.Fallbacks(true); f == nil || f.Level != finding.Error || f.Code != "quant.fallback" {
		t.Errorf("strict: %+v", f)
	}
	got := types(t, "Q4_K_S", m, Options{})
	if got["blk.0.ffn_down.odd.weight"] != tensor.Q5_0 || got["blk.0.odd.weight"] != tensor.F16 || got["blk.0.column.weight"] != tensor.F32 {
		t.Errorf("types %v", got)
	}
}

// Without a number of layers, the names tell it.
func TestCountedLayers(t *testing.T) {
	m := llama(16, 256)
	want := types(t, "Q4_K_M", m, Options{})
	m.Layers = 0
	for name, d := range types(t, "Q4_K_M", m, Options{}) {
		if d != want[name] {
			t.Errorf("%s is %s, want %s", name, d, want[name])
		}
	}
	if want["blk.0.ffn_down.weight"] != tensor.Q6_K || want["blk.2.ffn_down.weight"] != tensor.Q4_K {
		t.Errorf("blk.0 %s, blk.2 %s", want["blk.0.ffn_down.weight"], want["blk.2.ffn_down.weight"])
	}
}

// A mixture of experts takes the layer from the name, which must then be one.
func TestBadLayer(t *testing.T) {
	m := llama(2, 256)
	m.Experts, m.Layers = 4, 1
	r, err := Of("Q4_K_M")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewPlan(r, m, Options{}); finding.Of(err) == nil || finding.Of(err).Code != "quant.bad_layer" {
		t.Errorf("gives %v", err)
	}
}

// COPY keeps types and changes the order only.
func TestCopy(t *testing.T) {
	m := llama(12, 256)
	for name, d := range types(t, "COPY", m, Options{}) {
		for _, s := range m.Tensors {
			if s.Name == name && s.DType != d {
				t.Errorf("%s is %s, want %s", name, d, s.DType)
			}
		}
	}
	r, _ := Of("COPY")
	plan, err := NewPlan(r, m, Options{})
	if err != nil {
		t.Fatal(err)
	}
	first, last := m.Tensors[plan.Choices[0].Tensor].Name, m.Tensors[plan.Choices[len(plan.Choices)-1].Tensor].Name
	if first != "output.weight" || last != "blk.11.ffn_up.weight" {
		t.Errorf("from %s to %s", first, last)
	}
}
