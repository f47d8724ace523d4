package safetensors

import (
	"context"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/tensor"
)

// The expected shards were computed by split_state_dict_into_shards_factory of huggingface_hub.
func TestDivide(t *testing.T) {
	tests := []struct {
		sizes []int64
		limit int64
		want  [][]int
	}{
		{[]int64{3, 3, 3}, 6, [][]int{{0, 1}, {2}}},
		{[]int64{10, 1, 1, 1}, 2, [][]int{{0}, {1, 2}, {3}}},
		{[]int64{1, 9, 1, 1, 9, 2}, 3, [][]int{{1}, {4}, {0, 2, 3}, {5}}},
		{[]int64{5}, 5, [][]int{{0}}},
		{[]int64{0, 0, 4, 1}, 4, [][]int{{0, 1, 2}, {3}}},
		{[]int64{2, 2, 2, 7, 2}, 5, [][]int{{0, 1}, {3}, {2, 4}}},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, divide(tt.sizes, tt.limit)); diff != "" {
			t.Errorf("%v in shards of %d: %s", tt.sizes, tt.limit, diff)
		}
	}
	if got := divide(nil, 5); len(got) != 1 || len(got[0]) != 0 {
		t.Errorf("no tensors give %v, want one empty file", got)
	}
}

// The expected text is what json.dumps(index, indent=2, sort_keys=True) + "\n" of Python 3 gives.
func TestIndexText(t *testing.T) {
	specs := []tensor.Spec{{Name: "b"}, {Name: "aé😀"}, {Name: `a"`}}
	shard := func(i int) string { return fmt.Sprintf("model-%05d-of-00003.safetensors", i) }
	want := `{
  "metadata": {
    "total_size": 22
  },
  "weight_map": {
    "a\"": "model-00003-of-00003.safetensors",
    "a\u00e9\ud83d\ude00": "model-00002-of-00003.safetensors",
    "b": "model-00001-of-00003.safetensors"
  }
}
`
	if diff := cmp.Diff(want, string(formatIndex(specs, []int64{20, 1, 1}, []string{shard(1), shard(2), shard(3)}))); diff != "" {
		t.Error(diff)
	}
}

// write puts a layout on the disk, with the data of these tensors.
func write(t *testing.T, path string, l *layout.Layout, data []tensor.Tensor) {
	t.Helper()
	w, err := layout.Create(path, l, false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if err := w.WriteSpans(context.Background()); err != nil {
		t.Fatal(err)
	}
	for i := range data {
		b, err := data[i].Read()
		if err != nil {
			t.Fatal(err)
		}
		if err := w.WriteAt(i, b, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
}

func content(t *testing.T, m *Model) map[string]string {
	t.Helper()
	got := map[string]string{}
	for _, x := range m.Tensors() {
		b, err := x.Read()
		if err != nil {
			t.Fatal(err)
		}
		got[x.Name] = fmt.Sprint(x.DType, x.Shape, b)
	}
	return got
}

func TestFolderToFolder(t *testing.T) {
	dir := t.TempDir()
	in := filepath.Join(dir, "in")
	put(t, in, map[string]string{
		"model.safetensors": image(`{"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]},"c":{"dtype":"U8","shape":[3],"data_offsets":[16,19]}}`, "0123456789abcdefxyz"),
		"config.json":       "{}", "sub/x.jinja": "{{x}}", "pytorch_model.bin": "old",
	})
	m := open(t, in)
	want := content(t, m)
	tests := []struct {
		name  string
		limit int64
		files []string
	}{
		{"one", 0, []string{"config.json", "model.safetensors", "sub/x.jinja"}},
		{"sharded", 10, []string{"config.json", "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors", "model.safetensors.index.json", "sub/x.jinja"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, err := m.Layout(specs(m), layout.Options{Name: tt.name, MaxShardSize: tt.limit})
			if err != nil {
				t.Fatal(err)
			}
			if last := l.Files[len(l.Files)-1].Name; !strings.HasPrefix(last, "model.safetensors") {
				t.Errorf("the commit mark is %s", last)
			}
			out := filepath.Join(dir, tt.name)
			write(t, out, l, m.Tensors())
			var files []string
			err = filepath.WalkDir(out, func(path string, e fs.DirEntry, err error) error {
				if err == nil && !e.IsDir() {
					rel, _ := filepath.Rel(out, path)
					files = append(files, filepath.ToSlash(rel))
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.files, files); diff != "" {
				t.Error(diff)
			}
			again := open(t, out)
			if diff := cmp.Diff(want, content(t, again)); diff != "" {
				t.Error(diff)
			}
			if len(again.Findings()) > 0 {
				t.Error(again.Findings())
			}
			if diff := cmp.Diff(m.Metadata(), again.Metadata()); diff != "" {
				t.Error(diff)
			}
			if b, err := os.ReadFile(filepath.Join(out, "sub/x.jinja")); string(b) != "{{x}}" {
				t.Errorf("the side file reads %q (%v)", b, err)
			}
		})
	}
	l, err := m.Layout(specs(m), layout.Options{Name: "x.safetensors", MaxShardSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	if l.Dir || len(l.Files) != 1 || l.Files[0].Name != "x.safetensors" {
		t.Errorf("a name with the ending gives %+v", l)
	}
}

func TestStemIsKept(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, map[string]string{"diffusion_pytorch_model.safetensors": bytesFile("a", "b")})
	m := open(t, dir)
	l, err := m.Layout(specs(m), layout.Options{Name: "out", MaxShardSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range l.Files {
		got = append(got, f.Name)
	}
	want := []string{"diffusion_pytorch_model-00001-of-00002.safetensors", "diffusion_pytorch_model-00002-of-00002.safetensors", "diffusion_pytorch_model.safetensors.index.json"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestAdapterOutput(t *testing.T) {
	specs := []tensor.Spec{{Name: "w", DType: tensor.F32, Shape: tensor.Shape{1}}, {Name: "v", DType: tensor.F32, Shape: tensor.Shape{1}}}
	l, err := NewLayout(specs, Output{
		Metadata: [][2]string{{"format", "pt"}}, Dir: true, Stem: "adapter_model", Extra: []layout.File{NewFile("adapter_config.json", []byte("{}"))},
	}, layout.Options{Name: "lora", MaxShardSize: 1, Provenance: [][2]string{{"base", "x"}, {"format", "np"}}})
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "lora")
	write(t, out, l, []tensor.Tensor{
		{Spec: specs[0], Src: strings.NewReader("wwww"), Size: 4}, {Spec: specs[1], Src: strings.NewReader("vvvv"), Size: 4},
	})
	got, err := os.ReadFile(filepath.Join(out, "adapter_model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	header := `{"__metadata__":{"base":"x","format":"np"},"v":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}`
	header += strings.Repeat(" ", (8-len(header)%8)%8)
	if diff := cmp.Diff(image(header, "vvvvwwww"), string(got)); diff != "" {
		t.Error(diff)
	}
	if b, err := os.ReadFile(filepath.Join(out, "adapter_config.json")); string(b) != "{}" {
		t.Errorf("adapter_config.json reads %q (%v)", b, err)
	}
}

// The reference writes an empty file as these 16 bytes.
func TestEmptyOutput(t *testing.T) {
	l, err := NewLayout(nil, Output{}, layout.Options{Name: "x.safetensors"})
	if err != nil {
		t.Fatal(err)
	}
	if got := string(render(t, l, nil)[0]); got != image("{}      ", "") {
		t.Errorf("got %q", got)
	}
}

func TestLayoutRefuses(t *testing.T) {
	var many []tensor.Spec
	for i := range 9 {
		many = append(many, tensor.Spec{Name: fmt.Sprint(i), DType: tensor.U8, Shape: tensor.Shape{1 << 60}})
	}
	tests := []struct {
		name  string
		specs []tensor.Spec
		want  string
	}{
		{"block type", []tensor.Spec{{Name: "a", DType: tensor.Q4_K, Shape: tensor.Shape{256}}}, "output.bad_dtype"},
		{"type of ONNX", []tensor.Spec{{Name: "a", DType: tensor.C128, Shape: tensor.Shape{1}}}, "output.bad_dtype"},
		{"no type", []tensor.Spec{{Name: "a", Shape: tensor.Shape{1}}}, "output.bad_dtype"},
		{"twice", []tensor.Spec{{Name: "a", DType: tensor.U8}, {Name: "a", DType: tensor.U8}}, "output.duplicate_name"},
		{"metadata's name", []tensor.Spec{{Name: "__metadata__", DType: tensor.U8}}, "output.bad_name"},
		{"not UTF-8", []tensor.Spec{{Name: "\xff", DType: tensor.U8}}, "output.bad_name"},
		{"negative", []tensor.Spec{{Name: "a", DType: tensor.U8, Shape: tensor.Shape{-1}}}, "output.bad_shape"},
		{"overflow", []tensor.Spec{{Name: "a", DType: tensor.U8, Shape: tensor.Shape{math.MaxInt64, 4}}}, "output.bad_shape"},
		{"sum overflows", many, "output.bad_shape"},
		{"half byte", []tensor.Spec{{Name: "a", DType: tensor.F4, Shape: tensor.Shape{3}}}, "output.bad_shape"},
		{"huge name", []tensor.Spec{{Name: strings.Repeat("a", maxHeader), DType: tensor.U8}}, "output.header_too_large"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := NewLayout(tt.specs, Output{}, layout.Options{Name: "x"}); code(err) != tt.want {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	if _, err := NewLayout(nil, Output{Metadata: [][2]string{{"a", "\xff"}}}, layout.Options{}); code(err) != "output.bad_metadata" {
		t.Errorf("got %v", err)
	}
}
