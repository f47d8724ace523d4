package naming

import (
	"strings"
	"testing"
)

// FuzzNames feeds arbitrary names to every resolver: none may panic, and whatever is found must exist.
func FuzzNames(f *testing.F) {
	for _, s := range []string{
		"model.layers.0.self_attn.q_proj", "base_model.model.model.layers.1.mlp.experts.2.up_proj", "blk.0.attn_q",
		"lm_head", "", ".", "..", "model.", "model.model", "transformer.h.0.attn.c_attn", "model.layers.999999999.mlp.up_proj",
		"['', 'a', \"b\\'\"]", "[''", "[\\", "model.layers.0.mlp.experts", "experts.0.w1", "blk.0.attn_q.weight",
	} {
		f.Add(s, "weight")
		f.Add(s, "gate_up_proj")
		f.Add("model.layers.0.mlp.up_proj", s)
	}
	stored := []string{"model.layers.0.mlp.up_proj.weight", "h.0.attn.c_attn.weight", "lm_head.weight", "weight",
		"mlp.experts.gate_up_proj", "mlp.experts.down_proj", "blk.0.attn_q.weight", "output.weight"}
	hf := NewHF(stored, func(string) []int64 { return []int64{2, 4, 2} })
	hp := HyperParameters{Layers: 2, Heads: 4, KVHeads: 2, HeadDim: 4, Experts: 3, ExpertWidth: 5, NopeDim: 3, ValueDim: 2}
	f.Fuzz(func(t *testing.T, module, param string) {
		places, err := hf.Find(module, param)
		for _, p := range places {
			if !strings.Contains(strings.Join(stored, "\n"), p.Tensor) {
				t.Errorf("found %q", p.Tensor)
			}
		}
		if (err == nil) != (len(places) > 0) {
			t.Errorf("%d places, %v", len(places), err)
		}
		for name := range architectures().archs {
			g, _ := NewGGUF(name, hp, stored)
			g.Find(module, param)
			if places, err := ToGGUF(name, hp, module, param); err == nil {
				for _, p := range places {
					if _, err := FromGGUF(name, hp, p.Tensor); err != nil {
						t.Errorf("%s: %q goes to %q, which does not come back: %v", name, module+"."+param, p.Tensor, err)
					}
				}
			}
			FromGGUF(name, hp, module)
		}
		r := NewONNX(ONNXGraph{
			Nodes: []ONNXNode{
				{Name: module, Op: "MatMul", Inputs: []string{"x", "w"}, Outputs: []string{"y"}, Metadata: map[string]string{"pkg.torch.onnx.name_scopes": module, "namespace": param}},
				{Name: param, Op: "Add", Inputs: []string{"y", param}, Outputs: []string{module}},
			},
			Initializers: []ONNXInitializer{{Name: "w", Shape: []int64{4, 6}, Metadata: map[string]string{"pkg.onnxscript.optimizer.folded_from": module}}, {Name: param, Shape: []int64{6}}},
		})
		r.Find(module, param)
		r.Candidates(6, 4)
		r.Modules()
	})
}
