package formats

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/tensor"
)

// put writes a file of a test's folder, with the folders above it.
func put(t *testing.T, dir, name string, b []byte) {
	t.Helper()
	path := filepath.Join(dir, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// oneTensor is a safetensors file of one float32 tensor [2].
func oneTensor(name string, data ...byte) []byte {
	h, _ := json.Marshal(map[string]any{name: map[string]any{"dtype": "F32", "shape": []int{2}, "data_offsets": []int{0, 8}}})
	return slices.Concat(binary.LittleEndian.AppendUint64(nil, uint64(len(h))), h, data)
}

func pipeline(t *testing.T) string {
	dir := t.TempDir()
	put(t, dir, "model_index.json", []byte(`{"_class_name": "P", "unet": ["a", "b"], "text_encoder": ["a", "b"], "scheduler": ["a", "b"], "safety_checker": ["a", "b"], "../evil": ["a", "b"], "gone": [null, null]}`))
	put(t, dir, "unet/diffusion_pytorch_model.safetensors", oneTensor("conv", 0, 0, 128, 63, 0, 0, 0, 64))
	put(t, dir, "unet/diffusion_pytorch_model.fp16.safetensors", oneTensor("conv", 1, 1, 1, 1, 1, 1, 1, 1))
	put(t, dir, "unet/config.json", []byte("{}"))
	put(t, dir, "text_encoder/model.safetensors", oneTensor("conv", 0, 0, 64, 64, 0, 0, 128, 64))
	put(t, dir, "text_encoder/config.json", []byte(`{"a": 1}`))
	put(t, dir, "scheduler/scheduler_config.json", []byte("[]"))
	put(t, dir, "safety_checker/pytorch_model.bin", []byte("weights"))
	put(t, dir, "whole.safetensors", oneTensor("conv", 0, 0, 0, 0, 0, 0, 0, 0))
	put(t, dir, ".git/config", []byte("x"))
	return dir
}

func TestPipeline(t *testing.T) {
	dir := pipeline(t)
	m, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	p := m.(*Pipeline)
	if d := cmp.Diff([]string{"text_encoder", "unet"}, p.Components()); d != "" {
		t.Error(d)
	}
	var specs []tensor.Spec
	var names []string
	for _, x := range m.Tensors() {
		names = append(names, x.Name)
		specs = append(specs, x.Spec)
	}
	if d := cmp.Diff([]string{"text_encoder.conv", "unet.conv"}, names); d != "" {
		t.Error(d)
	}
	if f := m.Findings(); len(f) != 1 || f[0].Code != "container.no_weights" {
		t.Errorf("findings %v", f)
	}
	out := filepath.Join(t.TempDir(), "out")
	l, err := p.Layout(specs, layout.Options{Name: "out"})
	if err != nil {
		t.Fatal(err)
	}
	if last := l.Files[len(l.Files)-1].Name; last != "model_index.json" {
		t.Errorf("%s is the commit mark", last)
	}
	w, err := layout.Create(out, l, false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for i, x := range m.Tensors() {
		b, err := x.Read()
		if err != nil {
			t.Fatal(err)
		}
		if err := w.WriteAt(i, b, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.WriteSpans(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	var files []string
	err = filepath.Walk(out, func(path string, info os.FileInfo, err error) error {
		if err == nil && !info.IsDir() {
			rel, _ := filepath.Rel(out, path)
			files = append(files, filepath.ToSlash(rel))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"model_index.json", "safety_checker/pytorch_model.bin", "scheduler/scheduler_config.json", "text_encoder/config.json",
		"text_encoder/model.safetensors", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"}
	if d := cmp.Diff(want, files); d != "" {
		t.Error(d)
	}
	again, err := Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	for i, x := range again.Tensors() {
		got, _ := x.Read()
		want, _ := m.Tensors()[i].Read()
		if x.Name != names[i] || !slices.Equal(got, want) {
			t.Errorf("%s holds %v, expected %s %v", x.Name, got, names[i], want)
		}
	}
}

func TestPipelineErrors(t *testing.T) {
	for name, c := range map[string]struct{ file, text, code string }{
		"no weights":   {"scheduler/a.json", `{}`, "files.no_weights"},
		"bad index":    {"model_index.json", `[`, "container.bad_index"},
		"bad weights":  {"unet/model.safetensors", `x`, "container.header_too_small"},
		"two contents": {"unet/a-00001-of-00002.safetensors", `x`, "container.missing_file"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			put(t, dir, "model_index.json", []byte(`{"unet": ["a", "b"]}`))
			put(t, dir, c.file, []byte(c.text))
			if m, err := Open(dir); finding.Of(err) == nil || finding.Of(err).Code != c.code {
				t.Errorf("got %v, %v, expected %s", m, err, c.code)
			}
		})
	}
}
