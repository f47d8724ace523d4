package scheme_test

import (
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/quant/scheme"
	"github.com/loratool/loratool/tensor"
)

// TestGptOss compares the experts of a tiny gpt-oss with the GGUF that llama.cpp's converter made of it,
// which keeps MXFP4: gate and up are the even and odd columns of gate_up_proj.
func TestGptOss(t *testing.T) {
	dir := corpus.Path(t, "hf2gguf", "cases", "gpt-oss-tiny")
	v, err := scheme.Open(dir, load(t, filepath.Join(dir, "input")), config(t, filepath.Join(dir, "input", "config.json")))
	if err != nil || v == nil {
		t.Fatal(v, err)
	}
	decoded := map[string]tensor.Tensor{}
	for _, x := range v.Tensors {
		decoded[x.Name] = x
	}
	m, err := gguf.Open(filepath.Join(dir, "golden.q8_0.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	golden := map[string]tensor.Tensor{}
	for _, x := range m.Tensors() {
		golden[x.Name] = x
	}
	compared := 0
	for _, c := range []struct {
		hf, gguf    string
		first, step int64
	}{
		{"model.layers.0.mlp.experts.gate_up_proj", "blk.0.ffn_gate_exps.weight", 0, 2}, {"model.layers.1.mlp.experts.gate_up_proj", "blk.1.ffn_gate_exps.weight", 0, 2},
		{"model.layers.0.mlp.experts.gate_up_proj", "blk.0.ffn_up_exps.weight", 1, 2}, {"model.layers.1.mlp.experts.gate_up_proj", "blk.1.ffn_up_exps.weight", 1, 2},
		{"model.layers.0.mlp.experts.down_proj", "blk.0.ffn_down_exps.weight", 0, 1}, {"model.layers.1.mlp.experts.down_proj", "blk.1.ffn_down_exps.weight", 0, 1},
	} {
		x, want := decoded[c.hf], golden[c.gguf]
		if want.DType != tensor.MXFP4 || x.DType != tensor.BF16 || len(x.Shape) != 3 || len(want.Shape) != 3 {
			t.Fatalf("%s: %s%v, %s: %s%v", c.hf, x.DType, x.Shape, c.gguf, want.DType, want.Shape)
		}
		a, b := values(t, x), values(t, want)
		experts, in, out := x.Shape[0], x.Shape[1], x.Shape[2]
		rows := want.Shape[1]
		if want.Shape[0] != experts || want.Shape[2] != in || rows*c.step != out {
			t.Fatalf("%v is not the layout of %v", x.Shape, want.Shape)
		}
		for e := range experts {
			for r := range rows {
				for i := range in {
					compared++
					if g, w := a[(e*in+i)*out+c.first+c.step*r], b[(e*rows+r)*in+i]; g != w { // ggml has no negative zero
						t.Fatalf("%s [%d, %d, %d] is %g, want %g", c.gguf, e, r, i, g, w)
					}
				}
			}
		}
	}
	if compared != 6*4*64*64 {
		t.Errorf("%d elements compared", compared)
	}
}
