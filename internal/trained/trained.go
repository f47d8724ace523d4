// Package trained is the trained model of testdata for tests: its weights, the model as a GGUF file, and a forward
// pass that tells what a merge does to the loss. Only tests import it.
package trained

import (
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// Path is a path in the folder of the trained model.
func Path(t testing.TB, elem ...string) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for dir != filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(append([]string{dir, "testdata", "trained"}, elem...)...)
		}
		dir = filepath.Dir(dir)
	}
	t.Fatal("this is not a package of the module")
	return ""
}

// Adapter is the folder of the adapter.
func Adapter(t testing.TB) string { return Path(t, "adapters", "python-r8-small") }

// Floats are the values of a tensor.
func Floats(t testing.TB, x tensor.Tensor) []float32 {
	t.Helper()
	b, err := x.Read()
	c, ok := quant.Of(x.DType)
	if err != nil || !ok {
		t.Fatalf("%s: %v", x.Name, err)
	}
	n, _ := x.Shape.Elements()
	v := make([]float32, n)
	c.Decode(v, b)
	return v
}

// Tensors are those of the model, in float32.
func Tensors(t testing.TB) (specs []tensor.Spec, values [][]float32) {
	t.Helper()
	m, err := formats.Open(Path(t, "base"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for _, x := range m.Tensors() {
		specs = append(specs, tensor.Spec{Name: x.Name, DType: tensor.F32, Shape: x.Shape})
		values = append(values, Floats(t, x))
	}
	return specs, values
}

// Weights are the model's, by name.
func Weights(t testing.TB) map[string][]float32 {
	t.Helper()
	weights := map[string][]float32{}
	specs, values := Tensors(t)
	for i, s := range specs {
		weights[s.Name] = values[i]
	}
	return weights
}

var ggufNames = strings.NewReplacer("model.layers.", "blk.", "self_attn.q_proj", "attn_q", "self_attn.k_proj", "attn_k", "self_attn.v_proj", "attn_v",
	"self_attn.o_proj", "attn_output", "mlp.gate_proj", "ffn_gate", "mlp.up_proj", "ffn_up", "mlp.down_proj", "ffn_down", "model.embed_tokens", "token_embd")

// interleaved is the row of a GGUF file for row i of a matrix whose heads are rotated in halves.
func interleaved(i int) int {
	head, j := i/headLen, i%headLen
	return head*headLen + j%(headLen/2)*2 + j/(headLen/2)
}

// permute moves rows to where GGUF has them, or back.
func permute(name string, v []float32, back bool) []float32 {
	if !strings.Contains(name, "q_proj") && !strings.Contains(name, "k_proj") {
		return v
	}
	w := make([]float32, len(v))
	for i := range len(v) / hidden {
		from, to := i, interleaved(i)
		if back {
			from, to = to, from
		}
		copy(w[to*hidden:][:hidden], v[from*hidden:])
	}
	return w
}

// GGUF is the model's matrices, but for the output's, as a GGUF file in float32.
func GGUF(t testing.TB) formats.Model {
	t.Helper()
	h := gguf.Header{KVs: gguf.KVs{
		{Key: "general.architecture", Value: gguf.Of("llama")}, {Key: "llama.block_count", Value: gguf.Of(uint32(layers))},
		{Key: "llama.attention.head_count", Value: gguf.Of(uint32(heads))}, {Key: "llama.attention.head_count_kv", Value: gguf.Of(uint32(groups))},
	}}
	var specs []tensor.Spec
	var data [][]byte
	all, values := Tensors(t)
	for i, s := range all {
		if len(s.Shape) != 2 || s.Name == "lm_head.weight" {
			continue
		}
		v := permute(s.Name, values[i], false)
		s.Name = ggufNames.Replace(s.Name)
		specs, data = append(specs, s), append(data, raw(v))
	}
	return GGUFFile(t, h, specs, data)
}

func raw(v []float32) []byte {
	b := make([]byte, 0, 4*len(v))
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
	}
	return b
}

// GGUFFile writes a GGUF file and opens it.
func GGUFFile(t testing.TB, h gguf.Header, specs []tensor.Spec, data [][]byte) formats.Model {
	t.Helper()
	path := filepath.Join(t.TempDir(), "base.gguf")
	l, err := gguf.NewLayout(h, specs, layout.Options{Name: "base.gguf"})
	if err != nil {
		t.Fatal(err)
	}
	w, err := layout.Create(path, l, false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for i, b := range data {
		if err := w.WriteAt(i, b, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	m, err := formats.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// With is the model with the linears that tensors hold under GGUF's names, or under its own.
func With(t testing.TB, tensors []tensor.Tensor) map[string][]float32 {
	t.Helper()
	weights := Weights(t)
	stored := map[string]tensor.Tensor{}
	for _, x := range tensors {
		stored[x.Name] = x
	}
	for name := range weights {
		if !strings.HasSuffix(name, "_proj.weight") {
			continue
		}
		if x, ok := stored[ggufNames.Replace(name)]; ok {
			weights[name] = permute(name, Floats(t, x), true)
		} else if x, ok := stored[name]; ok {
			weights[name] = Floats(t, x)
		} else {
			t.Fatalf("%s is not stored", name)
		}
	}
	return weights
}
