package model_test

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/loratool/loratool/internal/oracle"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/onnxruntime"
	"github.com/loratool/loratool/verify"
	"github.com/loratool/loratool/verify/model"
)

// stack writes a model of linear layers of n × n with a Relu behind each, whose weights lie in an external file.
func stack(b *testing.B, layers, n int) string {
	b.Helper()
	dir := b.TempDir()
	size := int64(4 * n * n)
	var nodes, tensors [][]byte
	in := "x"
	for i := range layers {
		name, out := fmt.Sprintf("model.layers.%d.q_proj.weight", i), fmt.Sprintf("h%d", i)
		nodes = append(nodes,
			msg(1, str(1, in), str(1, name), str(2, "p"+out), str(3, fmt.Sprintf("/model/layers.%d/q_proj/MatMul", i)), str(4, "MatMul")),
			msg(1, str(1, "p"+out), str(2, out), str(4, "Relu")))
		tensors = append(tensors, msg(5, num(1, int64(n)), num(1, int64(n)), num(2, 1), str(8, name),
			msg(13, str(1, "location"), str(2, "w.data")), msg(13, str(1, "offset"), str(2, fmt.Sprint(int64(i)*size))), msg(13, str(1, "length"), str(2, fmt.Sprint(size))), num(14, 1)))
		in = out
	}
	shape := msg(2, msg(1, str(2, "batch")), msg(1, str(2, "sequence")), msg(1, num(1, int64(n))))
	value := func(field protowire.Number, name string) []byte {
		return msg(field, str(1, name), msg(2, msg(1, num(1, 1), shape)))
	}
	graph := msg(7, append(append(nodes, str(2, "g")), append(tensors, value(11, "x"), value(12, in))...)...)
	path := filepath.Join(dir, "m.onnx")
	if err := os.WriteFile(path, append(append(num(1, 8), graph...), msg(8, num(2, 17))...), 0o666); err != nil {
		b.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "w.data"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	var one []byte
	scale := math.Sqrt(2 / float64(n))
	for _, x := range normal(n * n) {
		one = protowire.AppendFixed32(one, math.Float32bits(float32(scale*x)))
	}
	for range layers {
		if _, err := f.Write(one); err != nil {
			b.Fatal(err)
		}
	}
	return path
}

// BenchmarkWholeModel compares the check of a model of 24 layers of 2048 × 2048 (400 MB) on 32 tokens with loading and
// running the base and the merged model once each. Beside these, the check runs the base with the adapter.
func BenchmarkWholeModel(b *testing.B) {
	rt := oracle.Runtime(b)
	base := open(b, stack(b, 24, 2048))
	a := made(b, base, 0.02)
	out, modules := merged(b, base, a, 1)
	how := model.Making{Dims: map[string]int64{"batch": 1, "sequence": 32}}
	x := make([]float32, 32*2048)
	for i, v := range normal(len(x)) {
		x[i] = float32(v)
	}
	b.Run("two runs", func(b *testing.B) {
		for b.Loop() {
			for _, m := range []string{base.Path(), out.Path()} {
				if _, err := rt.Run(context.Background(), onnxruntime.Model{Path: m}, map[string]onnxruntime.Value{"x": onnxruntime.Floats(x, 1, 32, 2048)}, []string{"h23"}); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
	b.Run("check", func(b *testing.B) {
		for b.Loop() {
			c, err := model.New(base, out, []merge.Input{{Adapter: a, Scale: 1}}, rt.Provider(), how)
			if err != nil {
				b.Fatal(err)
			}
			r := &verify.Report{Modules: modules.Modules}
			if err := c.Run(context.Background(), rt, r); err != nil || r.Verdict != verify.Accept {
				b.Fatal(err, r.Findings)
			}
		}
	})
}
