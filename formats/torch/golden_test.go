package torch

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/loratool/loratool/tensor"
)

// TestTorchFiles reads files that torch wrote; testdata/README.md says what is in them.
func TestTorchFiles(t *testing.T) {
	data, err := os.ReadFile("testdata/expected.json")
	if err != nil {
		t.Fatal(err)
	}
	type content struct {
		DType string
		Shape tensor.Shape
		Hex   string
	}
	var files map[string]map[string]content
	if err := json.Unmarshal(data, &files); err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		t.Run(name, func(t *testing.T) {
			m, err := Open(filepath.Join("testdata", name))
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			got := map[string]content{}
			for _, x := range m.Tensors() {
				b, err := x.Read()
				if err != nil {
					t.Fatal(err)
				}
				element := want[x.Name].DType
				if elementTypes["torch."+element] != x.DType {
					element = x.DType.String()
				}
				got[x.Name] = content{element, append(tensor.Shape{}, x.Shape...), hex.EncodeToString(b)}
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
			if err := m.CheckData(); err != nil {
				t.Error(err)
			}
		})
	}
}
