package evidence

import (
	"os"
	"path/filepath"
	"testing"
)

// empty is a safetensors file with one tensor, a.lora_a, of no elements.
const empty = "\x3e\x00\x00\x00\x00\x00\x00\x00" + `{"a.lora_a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}} `

func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(b), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestLook finds the weight file of a folder: a known name before others, one of others, none of several,
// and never a whole model.
func TestLook(t *testing.T) {
	for _, c := range []struct {
		files        map[string]string
		file, format string
		names        int
	}{
		{map[string]string{"adapters.safetensors": empty, "x.safetensors": empty, ConfigName: "{}"}, "adapters.safetensors", "safetensors", 1},
		{map[string]string{"adapters.safetensors": empty, "adapter_model.safetensors": empty}, "adapter_model.safetensors", "safetensors", 1},
		{map[string]string{"x.safetensors": empty, "readme.md": ""}, "x.safetensors", "safetensors", 1},
		{map[string]string{"x.safetensors": empty, "y.safetensors": empty}, "", "", 0},
		{map[string]string{"model.safetensors": empty}, "", "", 0},
		{map[string]string{"adapter_model.safetensors": "no"}, "adapter_model.safetensors", "safetensors", 0},
		{map[string]string{"lora.nemo": ""}, "lora.nemo", "nemo", 0},
		{map[string]string{"model.lora_weights.npy": ""}, "model.lora_weights.npy", "npy", 0},
	} {
		dir := folder(t, c.files)
		s := Look(dir)
		if c.file != "" {
			c.file = filepath.Join(dir, c.file)
		}
		if s.File != c.file || s.Format != c.format || len(s.Names) != c.names || !s.Dir || (s.Config != "") != (c.files[ConfigName] != "") {
			t.Errorf("%v is %+v", c.files, s)
		}
	}
	if s := Look(filepath.Join(t.TempDir(), "none")); s.File != "" || s.Ending(".lora_a") != "" {
		t.Errorf("nothing is %+v", s)
	}
	if e := Look(folder(t, map[string]string{"adapters.safetensors": empty})).Ending(".lora_a"); e != `1 tensor names that end in .lora_a ("a.lora_a")` {
		t.Errorf("got %s", e)
	}
}
