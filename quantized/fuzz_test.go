package quantized_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/quantized"
)

// FuzzNew: no graph panics; what is refused is refused by a finding, and what is not can be laid out.
func FuzzNew(f *testing.F) {
	for _, name := range []string{"graph", "f32-matmulnbits-4-32-symmetric"} {
		b, err := os.ReadFile(goldens + name + ".onnx")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(dir, "fuzz.onnx")
		if err := os.WriteFile(path, b, 0o666); err != nil {
			t.Fatal(err)
		}
		m, err := onnx.Open(path)
		if err != nil {
			return
		}
		defer m.Close()
		embedding := recipe(t, "matmulnbits:4:16")
		for _, r := range []string{"matmulnbits:4:16", "qdq:int8", "qdq:uint4:16", "qdq:uint8:tensor"} {
			g, err := quantized.New(m, quantized.Options{Recipe: recipe(t, r), Embedding: &embedding})
			if err != nil {
				if finding.Of(err) == nil {
					t.Fatalf("no finding: %v", err)
				}
				continue
			}
			plan, err := merge.NewPlan(g, nil, merge.Options{})
			if err != nil {
				continue
			}
			if _, err := plan.Layout(g, filepath.Join(dir, "out.onnx"), layout.Options{}); err != nil && finding.Of(err) == nil {
				t.Fatalf("no finding: %v", err)
			}
		}
	})
}
