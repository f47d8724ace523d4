package dialect

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/finding"
)

// weights writes a safetensors file of float32 matrices [1, 1] with these names.
func weights(t *testing.T, path string, names ...string) {
	t.Helper()
	header := map[string]any{}
	for i, n := range names {
		header[n] = map[string]any{"dtype": "F32", "shape": []int{1, 1}, "data_offsets": []int{4 * i, 4*i + 4}}
	}
	h, err := json.Marshal(header)
	if err != nil {
		t.Fatal(err)
	}
	b := append(binary.LittleEndian.AppendUint64(nil, uint64(len(h))), h...)
	if err := os.WriteFile(path, append(b, make([]byte, 4*len(names))...), 0o644); err != nil {
		t.Fatal(err)
	}
}

const peftConfig = `{"peft_type": "LORA", "r": 1, "lora_alpha": 1}`

func TestDetect(t *testing.T) {
	for _, c := range []struct {
		dialect, file, config string
		names                 []string
	}{
		{"peft", "adapter_model.safetensors", peftConfig, []string{"base_model.model.a.lora_A.weight", "base_model.model.a.lora_B.weight"}},
		{"peft", "adapter_model.safetensors", peftConfig, []string{"a"}}, // so that its decoder says what is wrong
		{"mlx", "adapters.safetensors", `{"lora_parameters": {"scale": 20}}`, []string{"a.lora_a", "a.lora_b"}},
		{"mlx", "adapter_model.safetensors", peftConfig, []string{"a.lora_a", "a.lora_b"}},
		{"", "other.safetensors", "", []string{"base_model.model.a.lora_A.weight"}},
		{"", "other.safetensors", "", []string{"a.weight"}},
	} {
		dir := t.TempDir()
		weights(t, filepath.Join(dir, c.file), c.names...)
		if c.config != "" {
			if err := os.WriteFile(filepath.Join(dir, "adapter_config.json"), []byte(c.config), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		for _, path := range []string{dir, filepath.Join(dir, c.file)} {
			if got := Detect(path); got != c.dialect {
				t.Errorf("%s with %v is %q, expected %q", path, c.names, got, c.dialect)
			}
		}
	}
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(filepath.Join(dir, "none"), Options{}); finding.Of(err) == nil || finding.Of(err).Code != "files.missing" {
		t.Errorf("got %v", err)
	}
	if _, err := Open(dir, Options{}); finding.Of(err) == nil || finding.Of(err).Code != "adapter.unknown_dialect" {
		t.Errorf("got %v", err)
	}
	weights(t, filepath.Join(dir, "adapter_model.safetensors"), "a.lora_A.weight", "a.lora_B.weight", "b.lora_a", "b.lora_b")
	if err := os.WriteFile(filepath.Join(dir, "adapter_config.json"), []byte(peftConfig), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := Open(dir, Options{})
	f := finding.Of(err)
	if f == nil || f.Code != "adapter.ambiguous_dialect" {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{`mlx: 2 tensor names that end in .lora_a or .lora_b ("b.lora_a")`, `peft: 2 tensor names of PEFT ("a.lora_A.weight")`} {
		if !strings.Contains(f.Got, want) {
			t.Errorf("%q lacks %q", f.Got, want)
		}
	}
}
