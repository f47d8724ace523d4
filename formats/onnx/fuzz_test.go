package onnx

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/tensor"
)

// FuzzONNXWire: no input panics or takes memory it does not justify; what is accepted comes back
// identical when nothing changes, and reads the same in all other tensors when one changes its type.
func FuzzONNXWire(f *testing.F) {
	w := proto("w", 1, f32s(8), 2, 4)
	f.Add(linear(w))
	f.Add(linear(join(num(1, 2), num(1, 4), num(2, 1), str(4, f32s(8)), text(8, "w"))))
	f.Add(linear(join(str(1, []byte{3}), num(2, 10), str(5, []byte{1, 0x80, 0x78, 3}), text(8, "w"))))
	f.Add(linear(outside("w", 1, [][2]string{{"location", "w.bin"}, {"offset", "8"}, {"length", "8"}, {"prepacked_1", "x"}}, 2)))
	f.Add(linear(w, str(13, declared("w", 1, 2, 4), pair(4, "k", "v")), pair(16, "a", "b")))
	f.Add(linear(w, str(1, nodeOf("If", []string{"x"}, []string{"q"}, str(5, text(1, "then_branch"), str(6, text(2, "s"), str(5, w), str(12, text(1, "w"))))))))
	f.Add(linear(w, str(15, str(1, proto("sp", 1, f32s(1), 1)), str(2, proto("", 7, make([]byte, 8), 1)), num(3, 4))))
	f.Add(join(linear(w), str(25, text(1, "F"), text(10, "d"), str(7, nodeOf("Neg", nil, []string{"o"}))), pair(14, "k", "v"), []byte{0x9b, 0x06, 0x9c, 0x06}))
	for _, pattern := range []string{"badinputs/onnx/*.onnx", "badinputs/onnx/ext_*/m/model.onnx", "onnx/onnx-node-v1.22.0/*/model.onnx"} {
		for _, b := range corpus.Seeds(f, pattern, 4096) {
			f.Add(b)
		}
	}
	dir := f.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "w.bin"), f32s(8), 0o644); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		m, err := parse(t, b, dir)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > uint64(len(b))*512+256<<10 {
			t.Fatalf("%d bytes of input took %d bytes of memory", len(b), n)
		}
		if err != nil {
			if finding.Of(err) == nil {
				t.Fatalf("no finding: %v", err)
			}
			return
		}
		defer m.Close()
		opt := layout.Options{Name: "m.onnx"}
		none := make([]bool, len(m.tensors))
		l, err := m.Rewrite(specs(m), opt, Edit{Touched: none})
		if err != nil {
			t.Fatal(err)
		}
		if got := write(t, l, nil)["m.onnx"]; !bytes.Equal(got, b) && !renamed(m) {
			t.Fatalf("not identical:\n%x\n%x", got, b)
		}
		for i, from := range m.tensors {
			if from.DType == tensor.String || i > 4 {
				continue
			}
			s := specs(m)
			s[i].DType = tensor.F64
			if from.DType == tensor.F64 {
				s[i].DType = tensor.U8
			}
			l, err := m.Rewrite(s, opt, Edit{Touched: none, Data: Inline, Threshold: 1})
			if err != nil {
				continue // stored in pieces, or declared as something else than a tensor
			}
			out := mustParse(t, write(t, l, func(i int) []byte { return make([]byte, l.Items[i].Size) })["m.onnx"], dir)
			for k := range out.tensors {
				got, err := out.tensors[k].Read()
				if err != nil {
					t.Fatal(err)
				}
				want, err := m.tensors[k].Read()
				if err != nil {
					t.Fatal(err)
				}
				if k != i && !bytes.Equal(got, want) || out.tensors[k].DType != s[k].DType {
					t.Fatalf("tensor %d changed with %d: %x, want %x", k, i, got, want)
				}
			}
		}
	})
}

// renamed reports whether a model's data files cannot keep their names.
func renamed(m *Model) bool {
	for _, d := range m.files {
		if !m.usable(d.location, "") {
			return true
		}
	}
	return false
}
