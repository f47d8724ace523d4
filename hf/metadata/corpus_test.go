package metadata

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/tensor"
)

func corpus(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("LORATOOL_CORPUS")
	if dir == "" {
		t.Skip("LORATOOL_CORPUS is not set")
	}
	return filepath.Join(dir, "hf2gguf")
}

func readJSON(t *testing.T, path string, to any) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, to); err != nil {
		t.Fatal(err)
	}
}

// expected is the part of a case's expected.json that is used here.
type expected struct {
	KV      [][3]any
	Outputs map[string]struct {
		FileType *uint32 `json:"file_type"`
		Tensors  [][]any
	}
}

// parameters counts the tensors of an expected output.
func (e expected) parameters(t *testing.T, output string) Parameters {
	t.Helper()
	var specs []tensor.Spec
	for _, x := range e.Outputs[output].Tensors {
		ne := x[1].([]any)
		shape := make(tensor.Shape, len(ne))
		for i, n := range ne {
			shape[len(ne)-1-i] = int64(n.(float64))
		}
		specs = append(specs, tensor.Spec{Name: x[0].(string), Shape: shape})
	}
	p, err := Count(specs)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// plain is a value as expected.json has it: its type and its JSON value.
func plain(v gguf.Value) (string, any) {
	kind := v.Type().String()
	if v.Type() == gguf.Array {
		kind = "arr[" + v.Elem().String() + "]"
	}
	kind = strings.ReplaceAll(kind, "string", "str")
	data, err := json.Marshal(toJSON(v.Any()))
	if err != nil {
		panic(err)
	}
	var x any
	if err := json.Unmarshal(data, &x); err != nil {
		panic(err)
	}
	return kind, x
}

// toJSON makes float32 values the float64 of the same value, and bytes numbers.
func toJSON(v any) any {
	switch v := v.(type) {
	case float32:
		return float64(v)
	case []float32:
		s := make([]float64, len(v))
		for i, x := range v {
			s[i] = float64(x)
		}
		return s
	case []uint8:
		s := make([]int, len(v))
		for i, x := range v {
			s[i] = int(x)
		}
		return s
	}
	return v
}

// TestGolden compares the key-values of every golden folder with those that convert_hf_to_gguf.py of
// llama.cpp v0.5.0 wrote: keys, types, values and order.
func TestGolden(t *testing.T) {
	dir := corpus(t)
	folders, err := os.ReadDir(filepath.Join(dir, "cases"))
	if err != nil {
		t.Fatal(err)
	}
	agree, total := 0, 0
	rules := map[string]int{}
	for _, c := range folders {
		t.Run(c.Name(), func(t *testing.T) {
			var e expected
			readJSON(t, filepath.Join(dir, "cases", c.Name(), "expected.json"), &e)
			for output, o := range e.Outputs {
				total++
				f, err := Read(filepath.Join(dir, "cases", c.Name(), "input"), Options{FolderName: c.Name()})
				if err != nil {
					t.Fatal(err)
				}
				if o.FileType == nil {
					t.Fatalf("%s: no file type", output)
				}
				kvs, err := f.KVs(*o.FileType, e.parameters(t, output))
				if err != nil {
					t.Fatal(err)
				}
				rules[f.Tokenizer.Rule]++
				var want, got [][3]any
				for _, kv := range e.KV {
					if kv[0] == "general.file_type" {
						kv[2] = float64(*o.FileType)
					}
					want = append(want, kv)
				}
				for _, kv := range kvs {
					kind, x := plain(kv.Value)
					got = append(got, [3]any{kv.Key, kind, x})
				}
				if d := cmp.Diff(want, got); d != "" {
					t.Fatalf("%s (-want +got):\n%s", output, d)
				}
				agree++
			}
		})
	}
	t.Logf("%d of %d outputs agree in all key-values; pre-tokenizers by %v", agree, total, rules)
}
