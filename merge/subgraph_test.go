package merge_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// branches is a model with an If, as merged decoders have one: both branches multiply by a weight, which the main
// graph holds for both, or which each holds itself.
func branches(t *testing.T, shared bool) string {
	t.Helper()
	raw := make([]byte, 4*4*3)
	for i := range raw {
		raw[i] = byte(i * 5 & 0x3f)
	}
	w := message{}.int(1, 4).int(1, 3).int(2, 1).text(8, "onnx::MatMul_7").sub(9, raw)
	branch := func(name string) message {
		g := message{}.sub(1, message{}.text(1, "x").text(1, "onnx::MatMul_7").text(2, "y").text(3, "/model/layers.0/self_attn/q_proj/MatMul").text(4, "MatMul")).text(2, name)
		if !shared {
			g = g.sub(5, w)
		}
		return g.sub(12, message{}.text(1, "y"))
	}
	attr := func(name string) message { return message{}.text(1, name).sub(6, branch(name)).int(20, 5) }
	g := message{}.sub(1, message{}.text(1, "cached").text(2, "z").text(4, "If").sub(5, attr("then_branch")).sub(5, attr("else_branch"))).text(2, "g")
	if shared {
		g = g.sub(5, w)
	}
	value := func(name string, elem uint64) message {
		return message{}.text(1, name).sub(2, message{}.sub(1, message{}.int(1, elem)))
	}
	g = g.sub(11, value("x", 1)).sub(11, value("cached", 9)).sub(12, value("z", 1))
	path := filepath.Join(t.TempDir(), "merged_decoder.onnx")
	if err := os.WriteFile(path, message{}.int(1, 8).sub(7, g).sub(8, message{}.int(2, 17)), 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestSubgraphs updates weights that the nodes of subgraphs read: one for all, or the copy of each.
func TestSubgraphs(t *testing.T) {
	for shared, names := range map[bool][]string{
		true:  {"onnx::MatMul_7"},
		false: {"node[0].then_branch/onnx::MatMul_7", "node[0].else_branch/onnx::MatMul_7"},
	} {
		base := open(t, branches(t, shared))
		a, b := []float32{1, 2, 3, 4}, []float32{1, -1, 2}
		u := adapter.Update{
			Target: adapter.Target{Module: "model.layers.0.self_attn.q_proj", Param: "weight"}, Kind: adapter.LowRank, Layer: adapter.Linear,
			A: adapter.FromValues(1, 4, a), B: adapter.FromValues(3, 1, b), Rank: 1, Scale: adapter.Scale{Value: 0.5, Rank: 1},
		}
		in := merge.Input{Adapter: &adapter.Adapter{Path: "test", Space: naming.HF, Updates: []adapter.Update{u}}, Scale: 1}
		plan, err := merge.NewPlan(base, []merge.Input{in}, merge.Options{Resolve: merge.Resolvers(base)})
		if err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(t.TempDir(), "out.onnx")
		writePlan(t, plan, base.(formats.Writable), out)
		m, err := onnx.Open(out)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		var got []string
		for i, x := range m.Tensors() {
			got = append(got, x.Name)
			was, now := read(t, base.Tensors()[i]), read(t, x)
			if bytes.Equal(was, now) {
				t.Errorf("%s has not changed", x.Name)
			}
			w := floats(t, tensor.F32, was)
			for k, v := range floats(t, tensor.F32, now) {
				if v != w[k]+0.5*a[k/3]*b[k%3] {
					t.Errorf("%s: element %d is %g, want %g", x.Name, k, v, w[k]+0.5*a[k/3]*b[k%3])
				}
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(names) {
			t.Errorf("tensors %q, want %q", got, names)
		}
	}
}

func read(t *testing.T, x tensor.Tensor) []byte {
	t.Helper()
	b, err := x.Read()
	if err != nil {
		t.Fatal(err)
	}
	return b
}
