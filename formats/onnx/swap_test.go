package onnx

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/tensor"
)

func part(name string, d tensor.DType, shape ...int64) tensor.Spec {
	return tensor.Spec{Name: name, DType: d, Shape: shape}
}

// TestSwap puts codes and scales in the place of a weight, a node before its reader, and another one in the
// reader's own; everything else keeps its bytes.
func TestSwap(t *testing.T) {
	note := str(9, text(1, "pkg.torch.onnx.name_scopes"), text(2, "['', 'a']"))
	unknown := str(900, []byte("future"))
	model := modelOf(
		str(1, nodeOf("MatMul", []string{"x", "w"}, []string{"h"}, note)), str(1, nodeOf("Relu", []string{"h"}, []string{"y"})),
		str(5, proto("a", 1, f32s(2), 2)), str(5, proto("w", 1, f32s(8), 2, 4)), str(5, proto("b", 1, f32s(2), 2)),
		str(11, declared("x", 1, 1, 2)), str(11, declared("w", 1, 2, 4)), str(12, declared("y", 1, 1, 4)), unknown,
	)
	codes, scales := bytes.Repeat([]byte{0x5a}, 4), f32s(4)
	for _, keep := range []bool{false, true} {
		m := save(t, map[string][]byte{"m.onnx": model}, "m.onnx")
		all := append(specs(m), part("w_Q4", tensor.I4, 2, 4), part("w_scales", tensor.F32, 4))
		l, err := m.Rewrite(all, layout.Options{Name: "m.onnx"}, Edit{
			Touched: make([]bool, 3), Swaps: []Swap{{Tensor: 1, Keep: keep, Parts: 2}}, IRVersion: 10,
			Imports: []Opset{{"com.microsoft", 1}, {"", 99}},
			Nodes: []NodeEdit{
				{Node: 0, Before: []NewNode{{OpType: "DequantizeLinear", Name: "d", Inputs: []string{"w_Q4", "w_scales"}, Outputs: []string{"w_out"}, Ints: []IntAttr{{"axis", 1}}}},
					Inputs: map[int]string{1: "w_out"}},
				{Node: 1, Replace: &NewNode{OpType: "Gelu", Domain: "com.microsoft", Inputs: []string{"h"}, Outputs: []string{"y"}}},
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		out := save(t, write(t, l, func(item int) []byte { return [][]byte{nil, nil, nil, codes, scales}[item] }), "m.onnx")
		var names []string
		for _, x := range out.Tensors() {
			names = append(names, x.Name)
			if want, ok := map[string][]byte{"w_Q4": codes, "w_scales": scales}[x.Name]; ok {
				if got, err := x.Read(); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s reads %x, %v", x.Name, got, err)
				}
			}
		}
		want, inputs := "[a w_Q4 w_scales b]", 1
		if keep {
			want, inputs = "[a w w_Q4 w_scales b]", 2
		}
		if fmt.Sprint(names) != want || len(out.Graph().Inputs) != inputs || out.Header().IRVersion != 10 {
			t.Errorf("tensors %v, %d inputs, ir_version %d", names, len(out.Graph().Inputs), out.Header().IRVersion)
		}
		var nodes []string
		for _, n := range out.Graph().Nodes {
			nodes = append(nodes, fmt.Sprint(n.Domain, n.OpType, n.Inputs, n.Outputs, n.Int("axis", -1), len(n.Props)))
		}
		if got := fmt.Sprint(nodes); got != "[DequantizeLinear[w_Q4 w_scales] [w_out] 1 0 MatMul[x w_out] [h] -1 1 com.microsoftGelu[h] [y] -1 0]" {
			t.Errorf("nodes %s", got)
		}
		if o := out.Header().Opsets; len(o) != len(m.Header().Opsets)+1 || o[len(o)-1] != (Opset{"com.microsoft", 1}) {
			t.Errorf("imports %v", o)
		}
		if b := write(t, l, func(item int) []byte { return [][]byte{nil, nil, nil, codes, scales}[item] })["m.onnx"]; !bytes.Contains(b, unknown) {
			t.Error("a field that is not known is gone")
		}
	}
}

func TestSwapRefused(t *testing.T) {
	old := bytes.Replace(linear(proto("w", 1, f32s(8), 2, 4), str(11, declared("w", 1, 2, 4))), num(1, 8)[:2], num(1, 3), 1)
	for _, c := range []struct {
		name, code string
		model      []byte
		part       tensor.Spec
		swaps      []Swap
	}{
		{"a name that is taken", "output.duplicate_name", linear(proto("w", 1, f32s(8), 2, 4)), part("y", tensor.U8, 4), []Swap{{Parts: 1}}},
		{"no name", "output.duplicate_name", linear(proto("w", 1, f32s(8), 2, 4)), part("", tensor.U8, 4), []Swap{{Parts: 1}}},
		{"a type of another format", "output.bad_dtype", linear(proto("w", 1, f32s(8), 2, 4)), part("q", tensor.Q4_0, 32), []Swap{{Parts: 1}}},
		{"an old version", "output.unsupported", old, part("q", tensor.U8, 4), []Swap{{Parts: 1}}},
		{"twice", "", linear(proto("w", 1, f32s(8), 2, 4)), part("q", tensor.U8, 4), []Swap{{Parts: 1}, {}}},
		{"no tensor", "", linear(proto("w", 1, f32s(8), 2, 4)), part("q", tensor.U8, 4), []Swap{{Tensor: 7, Parts: 1}}},
	} {
		m := mustParse(t, c.model, "")
		_, err := m.Rewrite(append(specs(m), c.part), layout.Options{Name: "m"}, Edit{Swaps: c.swaps})
		if f := finding.Of(err); err == nil || c.code != "" && (f == nil || f.Code != c.code) {
			t.Errorf("%s: %v, want %q", c.name, err, c.code)
		}
	}
	m := mustParse(t, linear(proto("w", 1, f32s(8), 2, 4)), "")
	if _, err := m.Rewrite(specs(m), layout.Options{Name: "m"}, Edit{Nodes: []NodeEdit{{Node: 9}}}); err == nil {
		t.Error("a change of a node that is not there was made")
	}
}
