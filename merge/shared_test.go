package merge_test

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// message appends protobuf fields: strings and bytes by number.
type message []byte

func (m message) text(n protowire.Number, s string) message {
	return protowire.AppendString(protowire.AppendTag(m, n, protowire.BytesType), s)
}

func (m message) sub(n protowire.Number, b []byte) message {
	return protowire.AppendBytes(protowire.AppendTag(m, n, protowire.BytesType), b)
}

func (m message) int(n protowire.Number, v uint64) message {
	return protowire.AppendVarint(protowire.AppendTag(m, n, protowire.VarintType), v)
}

// tiedONNX is a model that reads one matrix as embedding (Gather) and, transposed, as output layer (MatMul).
func tiedONNX(t *testing.T, vocab, dim int) string {
	t.Helper()
	raw := make([]byte, 0, 4*vocab*dim)
	for i := range vocab * dim {
		u := math.Float32bits(float32(i%13) - 6)
		raw = append(raw, byte(u), byte(u>>8), byte(u>>16), byte(u>>24))
	}
	w := message{}.int(1, uint64(vocab)).int(1, uint64(dim)).int(2, 1).text(8, "model.embed_tokens.weight").sub(9, raw)
	node := func(name, op, out string, in ...string) []byte {
		m := message{}
		for _, i := range in {
			m = m.text(1, i)
		}
		return m.text(2, out).text(3, name).text(4, op)
	}
	value := func(name string, elem uint64, dims ...uint64) []byte {
		shape := message{}
		for _, d := range dims {
			shape = shape.sub(1, message{}.int(1, d))
		}
		return message{}.text(1, name).sub(2, message{}.sub(1, message{}.int(1, elem).sub(2, shape)))
	}
	g := message{}.
		sub(1, node("/model/embed_tokens/Gather", "Gather", "x", "model.embed_tokens.weight", "ids")).
		sub(1, node("/lm_head/Transpose", "Transpose", "wt", "model.embed_tokens.weight")).
		sub(1, node("/lm_head/MatMul", "MatMul", "logits", "x", "wt")).
		text(2, "g").sub(5, w).
		sub(11, value("ids", 7, 1, 2)).sub(12, value("logits", 1, 1, 2, uint64(vocab)))
	model := message{}.int(1, 10).sub(7, g).sub(8, message{}.int(2, 21))
	path := filepath.Join(t.TempDir(), "tied.onnx")
	if err := os.WriteFile(path, model, 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestSharedInitializer updates one reader of a shared ONNX initializer: the other must keep its weights.
func TestSharedInitializer(t *testing.T) {
	const vocab, dim = 12, 8
	path := tiedONNX(t, vocab, dim)
	base := open(t, path)
	a := make([]float32, vocab)
	b := make([]float32, dim)
	for i := range a {
		a[i] = float32(i + 1)
	}
	for i := range b {
		b[i] = float32(2*i - 3)
	}
	embed := adapter.Update{
		Target: adapter.Target{Module: "model.embed_tokens", Param: "weight"}, Kind: adapter.LowRank, Layer: adapter.Embedding,
		A: adapter.FromValues(1, vocab, a), B: adapter.FromValues(dim, 1, b), Rank: 1, Scale: adapter.Scale{Value: 0.5, Rank: 1},
	}
	in := merge.Input{Adapter: &adapter.Adapter{Path: "test", Space: naming.HF, Updates: []adapter.Update{embed}}, Scale: 1}
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
	nodes := m.Graph().Nodes
	gather, transpose := nodes[0].Inputs[0], nodes[1].Inputs[0]
	if gather == transpose || transpose != "model.embed_tokens.weight" {
		t.Fatalf("Gather reads %q and Transpose reads %q: they must not share", gather, transpose)
	}
	for _, x := range m.Tensors() {
		got, err := x.Read()
		if err != nil {
			t.Fatal(err)
		}
		want, err := base.Tensors()[0].Read()
		if err != nil {
			t.Fatal(err)
		}
		if x.Name == transpose {
			if !bytes.Equal(got, want) {
				t.Error("the output layer's matrix changed")
			}
			continue
		}
		w := floats(t, tensor.F32, want)
		for i, v := range floats(t, tensor.F32, got) {
			if v != w[i]+0.5*a[i/dim]*b[i%dim] {
				t.Fatalf("element %d of the embedding is %g, want %g", i, v, w[i]+0.5*a[i/dim]*b[i%dim])
			}
		}
	}
}
