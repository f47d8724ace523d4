package safetensors

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/tensor"
)

// image is a file with this header and data.
func image(header, data string) string {
	return string(binary.LittleEndian.AppendUint64(nil, uint64(len(header)))) + header + data
}

// bytesFile is a file of U8 tensors named after the bytes they hold.
func bytesFile(names ...string) string {
	var h []string
	for i, n := range names {
		h = append(h, fmt.Sprintf(`"%s":{"dtype":"U8","shape":[1],"data_offsets":[%d,%d]}`, n, i, i+1))
	}
	return image("{"+strings.Join(h, ",")+"}", strings.Join(names, ""))
}

func put(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o666); err != nil {
			t.Fatal(err)
		}
	}
}

func open(t testing.TB, path string) *Model {
	t.Helper()
	m, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func code(err error) string {
	if f := finding.Of(err); f != nil {
		return f.Code
	}
	return ""
}

func names(m *Model) []string {
	var s []string
	for _, x := range m.Tensors() {
		s = append(s, x.Name)
	}
	return s
}

// testdata/reference_0.8.0.safetensors was written by safetensors.serialize of the Python package
// 0.8.0: two tensors each of all the types it takes, names added in another order than the file's, a
// name that needs every kind of escape, a scalar, an empty tensor, one metadata key.
func TestGolden(t *testing.T) {
	const path = "testdata/reference_0.8.0.safetensors"
	m := open(t, path)
	if len(m.Findings()) != 1 || m.Findings()[0].Code != "container.suspicious_name" {
		t.Errorf("findings %v", m.Findings())
	}
	if diff := cmp.Diff([][2]string{{"for\"mät", "p\nt\x1f"}}, m.Metadata()); diff != "" {
		t.Error(diff)
	}
	types := map[tensor.DType]bool{}
	for _, x := range m.Tensors() {
		types[x.DType] = true
	}
	if len(m.Tensors()) != 42 || len(types) != 20 {
		t.Errorf("%d tensors of %d types", len(m.Tensors()), len(types))
	}
	// The layout must not depend on the order of the specs.
	data := m.Tensors()
	reversed := make([]tensor.Tensor, 0, len(data))
	var s []tensor.Spec
	for i := range data {
		reversed = append(reversed, data[len(data)-1-i])
		s = append(s, reversed[i].Spec)
	}
	l, err := m.Layout(s, layout.Options{Name: "out.safetensors"})
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(render(t, l, reversed)[0])); diff != "" {
		t.Error(diff)
	}
}

// Verdicts beyond the hostile corpus, so that the rules hold without it too.
func TestHeader(t *testing.T) {
	entry := func(dtype, shape, offsets string) string {
		return fmt.Sprintf(`{"a":{"dtype":%s,"shape":%s,"data_offsets":%s}}`, dtype, shape, offsets)
	}
	deep := strings.Repeat("[", 124) + strings.Repeat("]", 124)
	tests := []struct {
		name, file string
		want       string // an error's code, or a warning's with a leading "w:", without "container."; "" = fine
	}{
		{"plain", image(entry(`"U8"`, `[1]`, `[0,1]`), "x"), ""},
		{"escaped field names", image(`{"a":{"\u0064type":"U\u0038","shape":[1],"data_offsets":[0,1]}}`, "x"), ""},
		{"surrogate pair", image(`{"\ud83d\ude00":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, "x"), ""},
		{"white space everywhere", image("{ \"a\" :\t{ \"dtype\" : \"U8\" ,\r\n\"shape\" : [ 1 ] , \"data_offsets\" : [ 0 , 1 ] } } ", "x"), ""},
		{"unknown field", image(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":{"y":[1e5,-0.5,true,null]}}}`, "x"), "w:unknown_field"},
		{"unknown field, deep", image(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":`+deep+`}}`, "x"), "w:unknown_field"},
		{"too deep", image(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":[[[`+deep+`]]]}}`, "x"), "bad_json"},
		{"null metadata", image(`{"__metadata__":null}`, ""), "w:metadata_null"},
		{"empty array entry", image(`{"a":["U8",[1],[0,1]]}`, "x"), "bad_tensor_entry"},
		{"leading zero", image(entry(`"U8"`, `[01]`, `[0,1]`), "x"), "bad_shape"},
		{"minus zero", image(entry(`"U8"`, `[-0]`, `[0,0]`), ""), "bad_shape"},
		{"exponent", image(entry(`"U8"`, `[1e0]`, `[0,1]`), "x"), "bad_shape"},
		{"bool in shape", image(entry(`"U8"`, `[true]`, `[0,1]`), "x"), "bad_shape"},
		{"null in shape", image(entry(`"U8"`, `[null]`, `[0,1]`), "x"), "bad_shape"},
		{"three offsets", image(entry(`"U8"`, `[1]`, `[0,1,1]`), "x"), "bad_offsets"},
		{"float offset", image(entry(`"U8"`, `[1]`, `[0,1.0]`), "x"), "bad_offsets"},
		{"array with trailing comma", image(entry(`"U8"`, `[1,]`, `[0,1]`), "x"), "bad_json"},
		{"array without comma", image(entry(`"U8"`, `[1 1]`, `[0,1]`), "x"), "bad_json"},
		{"second document", image(entry(`"U8"`, `[1]`, `[0,1]`)+"{}", "x"), "bad_json"},
		{"low surrogate first", image(`{"\ude00\ud83d":{}}`, ""), "bad_json"},
		{"high surrogate, then text", image(`{"\ud83dxx":{}}`, ""), "bad_json"},
		{"unknown escape", image(`{"\x41":{}}`, ""), "bad_json"},
		{"cut in an escape", image(`{"\u00`, ""), "bad_json"},
		{"cut after a backslash", image(`{"\`, ""), "bad_json"},
		{"cut in an array", image(`{"a":{"shape":[1`, ""), "bad_json"},
		{"cut after a colon", image(`{"a":{"shape":`, ""), "bad_json"},
		{"no-break space", image("{\u00a0}", ""), "bad_json"},
		{"overlong UTF-8", image("{\"\xc0\xaf\":1}", ""), "bad_utf8"},
		{"duplicate after a bad one", image(`{"a":{"dtype":"U8","shape":[9],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, "x"), "duplicate_key"},
		{"F4 in whole bytes", image(entry(`"F4"`, `[3,2]`, `[0,3]`), "xyz"), ""},
		{"F6 in whole bytes", image(entry(`"F6_E2M3"`, `[4]`, `[0,3]`), "xyz"), ""},
		{"F6 in half bytes", image(entry(`"F6_E3M2"`, `[2]`, `[0,1]`), "x"), "subbyte_misaligned"},
		{"lower-case type", image(entry(`"f32"`, `[1]`, `[0,4]`), "wxyz"), "bad_dtype"},
		{"type of another format", image(entry(`"Q8_0"`, `[32]`, `[0,34]`), strings.Repeat("x", 34)), "bad_dtype"},
		{"long header length like a pickle", "\x80\x02\x00\x00\x00\x00\x00\x00", "header_truncated"},
		{"length 60 like HTML", "<\x00\x00\x00\x00\x00\x00\x00", "header_truncated"},
		{"server message", `{"error":"Repository not found"}`, "header_too_large"},
		{"old GGML", "tjgg\x03\x00\x00\x00\x00\x7d\x00\x00", "header_too_large"},
		{"7 bytes", "1234567", "header_too_small"},
		{"invisible character", image("{\"a\u200bb\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", "x"), "w:suspicious_name"},
		{"drive", image(`{"C:/x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, "x"), "w:suspicious_name"},
		{"slashes inside a name", image(`{"a/b..c/d":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, "x"), ""},
		{"letters of other scripts", image(`{"слой.вес":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"層.重み":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}`, "xy"), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h, err := readHeader("f", strings.NewReader(tt.file), int64(len(tt.file)))
			warning, warns := strings.CutPrefix(tt.want, "w:")
			switch {
			case tt.want == "" || warns:
				if err != nil {
					t.Fatal(err)
				}
				if warns != (len(h.warnings) == 1) || (warns && h.warnings[0].Code != "container."+warning) {
					t.Errorf("warnings %v, want %q", h.warnings, tt.want)
				}
			case code(err) != "container."+tt.want:
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}

func TestSniffedNames(t *testing.T) {
	for start, want := range map[string]string{
		"GGUF\x03\x00\x00\x00": "GGUF", "PK\x03\x04\x14\x00\x00\x00": "zip", "\x80\x02\x8a\x0al\xfc\x9cF": "pickle",
		"<!DOCTYPE html>": "HTML", `{"error": 1}`: "JSON",
		"version https://git-lfs.github.com/spec/v1\n": "git-lfs pointer",
	} {
		_, err := readHeader("f", strings.NewReader(start), int64(len(start)))
		if err == nil || !strings.Contains(err.Error(), want) || finding.Of(err).Hint == "" {
			t.Errorf("%q: %v, want it to name %q and to say what to do", start, err, want)
		}
	}
}

func TestWarningsAreCounted(t *testing.T) {
	f := image(`{"../a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"../b":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"../c":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}`, "")
	h, err := readHeader("f", strings.NewReader(f), int64(len(f)))
	if err != nil {
		t.Fatal(err)
	}
	if len(h.warnings) != 1 || h.warnings[0].Tensor != "../a" || !strings.Contains(h.warnings[0].Message, "2 more") {
		t.Errorf("warnings %+v", h.warnings)
	}
}

func TestOpenFolder(t *testing.T) {
	index := `{"metadata":{"total_size":2},"weight_map":{"1":"m-00002-of-00002.safetensors","2":"m-00001-of-00002.safetensors"}}`
	shards := map[string]string{"m-00001-of-00002.safetensors": bytesFile("2"), "m-00002-of-00002.safetensors": bytesFile("1")}
	with := func(more map[string]string) map[string]string {
		for k, v := range shards {
			more[k] = v
		}
		return more
	}
	tests := []struct {
		name  string
		files map[string]string
		want  string // names of the tensors, or the error's code
	}{
		{"single", map[string]string{"model.safetensors": bytesFile("1"), "other.safetensors": bytesFile("2")}, "1"},
		{"sharded", with(map[string]string{"model.safetensors.index.json": index}), "2 1"},
		{"adapter", map[string]string{"adapter_model.safetensors": bytesFile("1"), "x.safetensors": bytesFile("2")}, "1"},
		{"diffusers", map[string]string{"diffusion_pytorch_model.safetensors": bytesFile("1")}, "1"},
		{"diffusers, sharded", with(map[string]string{"diffusion_pytorch_model.safetensors.index.json": index}), "2 1"},
		{"any single file", map[string]string{"lora.safetensors": bytesFile("1"), ".hidden.safetensors": "x"}, "1"},
		{"any index", with(map[string]string{"x.safetensors.index.json": index}), "2 1"},
		{"two files", map[string]string{"a.safetensors": bytesFile("1"), "b.safetensors": bytesFile("2")}, "container.ambiguous_weights"},
		{"shards without index", with(map[string]string{}), "container.missing_file"},
		{"shard missing", map[string]string{"model.safetensors.index.json": index, "m-00001-of-00002.safetensors": bytesFile("2")}, "container.missing_file"},
		{"other formats only", map[string]string{"pytorch_model.bin": "x", "config.json": "{}"}, "container.no_weights"},
		{"empty", nil, "container.no_weights"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			put(t, dir, tt.files)
			m, err := Open(dir)
			if err != nil {
				if code(err) != tt.want {
					t.Errorf("got %v, want %s", err, tt.want)
				}
				for name := range tt.files {
					if c := code(err); (c == "container.no_weights" || c == "container.ambiguous_weights") && !strings.Contains(err.Error(), name) {
						t.Errorf("%v does not list %s", err, name)
					}
				}
				return
			}
			defer m.Close()
			if got := strings.Join(names(m), " "); got != tt.want {
				t.Errorf("tensors %q, want %q", got, tt.want)
			}
			if !m.IsFolder() || len(m.Findings()) > 0 {
				t.Errorf("folder %v, findings %v", m.IsFolder(), m.Findings())
			}
			for _, x := range m.Tensors() {
				if b, err := x.Read(); err != nil || string(b) != x.Name {
					t.Errorf("%s holds %q (%v)", x.Name, b, err)
				}
			}
		})
	}
}

func TestOpenNothing(t *testing.T) {
	if _, err := Open(filepath.Join(t.TempDir(), "none.safetensors")); code(err) != "container.missing_file" {
		t.Errorf("got %v", err)
	}
	if _, err := Open(os.DevNull); code(err) != "container.not_regular_file" {
		t.Errorf("got %v", err)
	}
}

// Links of the folder's owner are followed, names from the index are not, where they lead out.
func TestIndexPaths(t *testing.T) {
	outer := t.TempDir()
	dir := filepath.Join(outer, "m")
	put(t, outer, map[string]string{"secret.safetensors": bytesFile("a"), "out/x.safetensors": bytesFile("a"), "m/sub/x.safetensors": bytesFile("a")})
	if err := os.Symlink("../secret.safetensors", filepath.Join(dir, "link.safetensors")); err != nil {
		t.Skip("no symbolic links here")
	}
	for from, to := range map[string]string{"linked": "../out", "loop": "loop", "dangling": "nowhere", "devnull": os.DevNull} {
		if err := os.Symlink(to, filepath.Join(dir, from)); err != nil {
			t.Fatal(err)
		}
	}
	for shard, want := range map[string]string{
		"sub/x.safetensors": "", "link.safetensors": "",
		"../secret.safetensors": "path_escape", "sub/../../secret.safetensors": "path_escape", "sub/../sub/x.safetensors": "path_escape",
		filepath.Join(outer, "secret.safetensors"): "path_escape", "linked/x.safetensors": "path_escape", `sub\\x.safetensors`: "path_escape",
		"": "path_escape", ".": "not_regular_file", "sub": "not_regular_file", "devnull": "not_regular_file",
		"loop": "unreadable", "dangling": "missing_file", "none": "missing_file", "linked/none": "missing_file",
	} {
		put(t, dir, map[string]string{"model.safetensors.index.json": `{"weight_map":{"a":"` + shard + `"}}`})
		m, err := Open(dir)
		if m != nil {
			m.Close()
		}
		if want != "" {
			want = "container." + want
		}
		if code(err) != want {
			t.Errorf("%q: got %v, want %q", shard, err, want)
		}
	}
}

func TestIndexFindings(t *testing.T) {
	const a, b = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
	tests := []struct{ name, index, a, b, want, tensors string }{
		{"float total", `{"metadata":{"total_size":2.0},"weight_map":{"1":"` + a + `","2":"` + b + `"}}`, bytesFile("1"), bytesFile("2"), "", "1 2"},
		{"unindexed", `{"weight_map":{"1":"` + a + `","2":"` + b + `"}}`, bytesFile("1", "3"), bytesFile("2"), "unindexed_tensor", "1 3 2"},
		{"unindexed twice", `{"weight_map":{"1":"` + a + `","2":"` + b + `"}}`, bytesFile("1", "3"), bytesFile("2", "3"), "unindexed_tensor duplicate_across_shards", "1 3 2"},
		{"twice", `{"weight_map":{"1":"` + b + `","2":"` + a + `"}}`, bytesFile("1", "2"), bytesFile("1"), "duplicate_across_shards", "2 1"},
		{"stray shard", `{"weight_map":{"1":"` + a + `"}}`, bytesFile("1"), bytesFile("2"), "unindexed_tensor", "1"},
		{"unreadable stray", `{"weight_map":{"1":"` + a + `"}}`, bytesFile("1"), "x", "unindexed_shard", "1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			put(t, dir, map[string]string{"model.safetensors.index.json": tt.index, a: tt.a, b: tt.b})
			m := open(t, filepath.Join(dir, "model.safetensors.index.json"))
			var codes []string
			for _, f := range m.Findings() {
				codes = append(codes, strings.TrimPrefix(f.Code, "container."))
			}
			if got := strings.Join(codes, " "); got != tt.want {
				t.Errorf("findings %q, want %q", got, tt.want)
			}
			if got := strings.Join(names(m), " "); got != tt.tensors {
				t.Errorf("tensors %q, want %q", got, tt.tensors)
			}
		})
	}
}

func TestSideFiles(t *testing.T) {
	dir := t.TempDir()
	files := map[string]string{"model.safetensors": bytesFile("a")}
	keep := []string{
		"1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "LICENSE", "README.md", "additional_chat_templates/tool.jinja",
		"config.json", "modules.json", "tokenizer.model", "vocab.txt",
	}
	drop := []string{
		"pytorch_model.bin", "model.onnx", "x.GGUF", "tf_model.h5", "flax_model.msgpack", "optimizer.pt", "rng_state.pth", "training_args.bin",
		"model.safetensors.index.json", "pytorch_model.bin.index.json", "other.safetensors", ".gitattributes", ".git/config", ".cache/x",
		"checkpoint-5/config.json", "checkpoint-5/model.safetensors", "original/params.json", "original/deep/consolidated.00.pth",
	}
	for _, name := range append(keep, drop...) {
		if _, ok := files[name]; !ok {
			files[name] = "content of " + name
		}
	}
	put(t, dir, files)
	_ = os.Symlink("config.json", filepath.Join(dir, "linked.json"))
	_ = os.Symlink("nowhere", filepath.Join(dir, "dangling.json"))
	_ = os.Symlink("1_Pooling", filepath.Join(dir, "linked_folder"))
	want := append([]string{}, keep...)
	if _, err := os.Lstat(filepath.Join(dir, "linked.json")); err == nil {
		want = append(want[:7], append([]string{"linked.json"}, want[7:]...)...)
	}
	m := open(t, dir)
	side, err := m.SideFiles()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range side {
		got = append(got, s.Name)
		b := make([]byte, s.Size)
		if _, err := s.ReadAt(b, 0); err != nil {
			t.Error(err)
		}
		source := s.Name
		if source == "linked.json" {
			source = "config.json"
		}
		if string(b) != files[source] {
			t.Errorf("%s reads %q", s.Name, b)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	put(t, dir, map[string]string{"LICENSE": "changed"})
	for _, s := range side {
		if s.Name == "LICENSE" {
			if _, err := s.ReadAt(make([]byte, 1), 0); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("a changed side file gives %v", err)
			}
		}
	}
	if side, err := open(t, filepath.Join(dir, "model.safetensors")).SideFiles(); len(side) > 0 || err != nil {
		t.Errorf("a single file has side files %v (%v)", side, err)
	}
}

func TestTooManySideFiles(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, map[string]string{"model.safetensors": bytesFile("a"), "x": "", "sub/y": ""})
	for entries, want := range map[int]string{4: "", 3: "container.not_a_model_folder"} {
		w := sideWalk{root: dir, left: entries}
		if _, _, err := w.walk("", false); code(err) != want {
			t.Errorf("at most %d entries: %v, want %q", entries, err, want)
		}
	}
}
