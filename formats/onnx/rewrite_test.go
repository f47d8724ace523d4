package onnx

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/tensor"
)

// refused are the models of the corpus that must not open, and why. ONNX Runtime refuses them too.
var refused = map[string]string{
	"ort-testdata/icm-31000000518082.onnx":                             "container.graph_rules", // a node without an operator
	"ort-testdata/model_with_external_initializer_come_from_user.onnx": "container.missing_file",
	"ort-testdata/test_arbitrary_external_file.onnx":                   "container.path_escape",
	"own/external_data_probe/abs.onnx":                                 "container.path_escape",
	"own/external_data_probe/dotdot.onnx":                              "container.path_escape",
	"own/external_data_probe/memtag.onnx":                              "container.path_escape",
	"own/external_data_probe/missing.onnx":                             "container.missing_file",
	"own/external_data_probe/negoff.onnx":                              "container.bad_offset",
	"own/external_data_probe/pastend.onnx":                             "container.truncated",
	"own/external_data_probe/short.onnx":                               "container.size_mismatch",
	"own/external_data_probe/symlink_out.onnx":                         "container.symlink",
}

// corpusModels opens every model of the corpus that can be opened.
func corpusModels(t *testing.T, each func(t *testing.T, path string, m *Model)) int {
	dir := t.TempDir()
	copyTree(t, corpus.Path(t, "onnx"), dir, []string{"own/external_data_probe/sym.bin", "own/external_data_probe/symin.bin"})
	n := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".onnx") {
			return err
		}
		m, err := Open(path)
		if err != nil {
			rel, _ := filepath.Rel(dir, path)
			f := finding.Of(err)
			if f == nil || f.Code != refused[filepath.ToSlash(rel)] {
				t.Errorf("%s: %s (%v), want %q", rel, f.Code, err, refused[filepath.ToSlash(rel)])
			}
			return nil
		}
		defer m.Close()
		n++
		rel, _ := filepath.Rel(dir, path)
		t.Run(rel, func(t *testing.T) { each(t, path, m) })
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestUnchangedIsIdentical(t *testing.T) {
	n := corpusModels(t, func(t *testing.T, path string, m *Model) {
		for name, edit := range map[string]Edit{
			"nothing":            {Touched: make([]bool, len(m.Tensors()))},
			"everything written": {},
		} {
			l, err := m.Rewrite(specs(m), layout.Options{Name: filepath.Base(path)}, edit)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			for i, p := range l.Items {
				if p.Size > 0 && edit.Touched != nil {
					t.Errorf("%s: item %d has a place", name, i)
				}
			}
			if name == "everything written" && !asRaw(m) {
				continue
			}
			for file, b := range write(t, l, own(t, m)) {
				want, err := os.ReadFile(filepath.Join(filepath.Dir(path), file))
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(b, want) {
					t.Errorf("%s: %q differs", name, file)
				}
			}
		}
	})
	if n != 199-len(refused) {
		t.Errorf("%d models", n)
	}
	t.Logf("%d models rewritten identically, %d refused", n, len(refused))
}

// asRaw reports whether all data of a model has a place that can be written without changing encodings.
func asRaw(m *Model) bool {
	for _, r := range m.records {
		if r.store == storeTyped && r.plain() || r.store == storeExternal && !r.tidy(&outFile{name: r.file.location}) {
			return false
		}
	}
	return true
}

func TestRewriteOfEverythingReadsTheSame(t *testing.T) {
	corpusModels(t, func(t *testing.T, path string, m *Model) {
		opt := layout.Options{Name: "out.onnx", Provenance: [][2]string{{"loratool.base", "b"}, {"loratool.scale", "1"}}}
		for _, edit := range []Edit{{}, {Data: Inline}, {Data: External, Threshold: 1}, {Data: External, Threshold: 64, Touched: make([]bool, len(m.Tensors()))}} {
			l, err := m.Rewrite(specs(m), opt, edit)
			if err != nil {
				t.Fatal(err)
			}
			out := save(t, write(t, l, own(t, m)), "out.onnx")
			same(t, m, out)
			if got := out.Header().Metadata; fmt.Sprint(got[len(got)-2:]) != "[[loratool.base b] [loratool.scale 1]]" {
				t.Errorf("metadata %v", got)
			}
			for i, r := range out.records {
				if edit.Data == Inline && r.store == storeExternal {
					t.Errorf("%s is external", out.tensors[i].Name)
				}
				if edit.Data == External && r.kind == Initializer && r.size >= edit.Threshold && r.dataType != 8 && r.store != storeExternal {
					t.Errorf("%s is not external", out.tensors[i].Name)
				}
				if r.store == storeExternal && !r.tidy(&outFile{name: r.file.location, src: r.file, kept: true}) {
					t.Errorf("%s keeps %v", out.tensors[i].Name, r.external)
				}
			}
			// And back: out's provenance and layout change once more, the tensors do not.
			back, err := out.Rewrite(specs(out), layout.Options{Name: "back.onnx", Provenance: opt.Provenance}, Edit{Data: Inline})
			if err != nil {
				t.Fatal(err)
			}
			again := save(t, write(t, back, own(t, out)), "back.onnx")
			same(t, m, again)
			if len(again.Header().Metadata) != len(out.Header().Metadata) {
				t.Errorf("provenance is there twice: %v", again.Header().Metadata)
			}
		}
	})
}

func TestTypeChange(t *testing.T) {
	half := func(n int) []byte { return bytes.Repeat([]byte{0, 0x3c}, n) }
	data := f32s(8)
	for _, c := range []struct {
		name  string
		model []byte
		files map[string][]byte
	}{
		{"raw", linear(proto("w", 1, data, 2, 4)), nil},
		{"packed", linear(join(num(1, 2), num(1, 4), num(2, 1), str(4, data), text(8, "w"))), nil},
		{"external", linear(outside("w", 1, [][2]string{{"location", "w.bin"}, {"offset", "8"}, {"length", "32"}, {"prepacked_0", "MatMul+1|0;8;9"}, {"basepath", "x"}}, 2, 4)),
			map[string][]byte{"w.bin": join(make([]byte, 8), data)}},
		{"declared", linear(proto("w", 1, data, 2, 4), str(13, declared("w", 1, 2, 4)), str(11, declared("w", 1, 2, 4))), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := map[string][]byte{"m.onnx": c.model}
			for k, v := range c.files {
				files[k] = v
			}
			m := save(t, files, "m.onnx")
			s := specs(m)
			s[0].DType = tensor.F16
			l, err := m.Layout(s, layout.Options{Name: "m.onnx"})
			if err != nil {
				t.Fatal(err)
			}
			out := save(t, write(t, l, func(int) []byte { return half(8) }), "m.onnx")
			w := out.Tensors()[0]
			got, err := w.Read()
			if err != nil || w.DType != tensor.F16 || !bytes.Equal(got, half(8)) {
				t.Fatalf("reads %v %x, %v", w.Spec, got, err)
			}
			if r := out.records[0]; (r.store == storeExternal) != (c.files != nil) || c.files != nil && len(r.external) != 3 {
				t.Errorf("stored as %d with %v", r.store, r.external)
			}
			for _, vs := range [][]Value{out.Graph().Inputs, out.Graph().Values} {
				for _, v := range vs {
					if v.Name == "w" && v.DType != tensor.F16 {
						t.Errorf("declared as %v", v.DType)
					}
				}
			}
			if out.Graph().Inputs[0].DType != tensor.F32 || len(out.Findings()) > 0 {
				t.Errorf("x is %v, findings %v", out.Graph().Inputs[0].DType, out.Findings())
			}
			// Back to the old type gives the old message, in the canonical order of fields.
			s[0].DType = tensor.F32
			l, err = out.Layout(s, layout.Options{Name: "m.onnx"})
			if err != nil {
				t.Fatal(err)
			}
			back := write(t, l, func(int) []byte { return data })["m.onnx"]
			if (c.name == "raw" || c.name == "declared") && !bytes.Equal(back, c.model) {
				t.Errorf("the way back gives\n%x, want\n%x", back, c.model)
			}
		})
	}
}

// A change of one tensor leaves every byte outside its message and the prefixes around it.
func TestChangeIsLocal(t *testing.T) {
	unknown := join(str(900, []byte("future")), num(901, 7))
	w := append(proto("w", 1, f32s(8), 2, 4), unknown...)
	model := append(linear(w, str(5, proto("b", 1, f32s(4), 4))), unknown...)
	m := mustParse(t, model, "")
	s := specs(m)
	s[0].DType = tensor.F64
	l, err := m.Rewrite(s, layout.Options{Name: "m"}, Edit{Touched: make([]bool, 2)})
	if err != nil {
		t.Fatal(err)
	}
	if l.Items[0].Size != 64 || l.Items[1].Size != 0 {
		t.Fatalf("items %+v", l.Items)
	}
	fill := bytes.Repeat([]byte{0xab}, 64)
	got := write(t, l, func(int) []byte { return fill })["m"]
	want := append(linear(append(proto("w", 11, fill, 2, 4), unknown...), str(5, proto("b", 1, f32s(4), 4))), unknown...)
	if !bytes.Equal(got, want) {
		t.Errorf("got\n%x, want\n%x", got, want)
	}
}

func TestClone(t *testing.T) {
	data := f32s(8)
	build := func(ir int64, more ...[]byte) []byte {
		g := append([][]byte{text(2, "g"),
			str(1, nodeOf("MatMul", []string{"x", "w"}, []string{"y"})),
			str(1, nodeOf("Gather", []string{"w", "i"}, []string{"z"})),
			str(5, proto("w", 1, data, 2, 4)),
			str(11, declared("x", 1, 1, 2)), str(11, declared("i", 7, 1)),
		}, more...)
		return join(num(1, ir), str(7, append(g, str(12, declared("y", 1, 1, 4)), str(12, declared("z", 1, 1, 4)))...), str(8, num(2, 17)))
	}
	for _, c := range []struct {
		name  string
		model []byte
	}{
		{"constant", build(8)},
		{"graph input too", build(3, str(11, declared("w", 1, 2, 4)))},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := save(t, map[string][]byte{"m.onnx": c.model}, "m.onnx")
			edit := Edit{Touched: []bool{false}, Clones: []Clone{{Tensor: 0, Name: "w_lora", Uses: []Use{{Node: 0, Input: 1}}}}}
			s := append(specs(m), tensor.Spec{Name: "w_lora", DType: tensor.F32, Shape: tensor.Shape{2, 4}})
			for _, data := range []Placement{Keep, External} {
				edit.Data, edit.Threshold = data, 1
				l, err := m.Rewrite(s, layout.Options{Name: "m.onnx"}, edit)
				if err != nil {
					t.Fatal(err)
				}
				fill := bytes.Repeat([]byte{1}, 32)
				out := save(t, write(t, l, func(item int) []byte {
					if item != 1 {
						t.Errorf("item %d is asked for", item)
					}
					return fill
				}), "m.onnx")
				if len(out.Findings()) > 0 {
					t.Errorf("findings %v", out.Findings())
				}
				ts := out.Tensors()
				if len(ts) != 2 || ts[0].Name != "w" || ts[1].Name != "w_lora" {
					t.Fatalf("tensors %v", ts)
				}
				a, _ := ts[0].Read()
				b, _ := ts[1].Read()
				if !bytes.Equal(a, f32s(8)) || !bytes.Equal(b, fill) {
					t.Errorf("read %x and %x", a, b)
				}
				if n := out.Graph().Nodes; n[0].Inputs[1] != "w_lora" || n[1].Inputs[0] != "w" {
					t.Errorf("inputs %v, %v", n[0].Inputs, n[1].Inputs)
				}
			}
		})
	}
	m := mustParse(t, build(8), "")
	for _, c := range []Clone{{Tensor: 0, Name: "y"}, {Tensor: 1, Name: "n"}, {Tensor: 0, Name: ""}, {Tensor: 0, Name: "n", Uses: []Use{{0, 0}}}, {Tensor: 0, Name: "n", Uses: []Use{{2, 0}}}} {
		if _, err := m.Rewrite(append(specs(m), tensor.Spec{Name: c.Name, DType: tensor.F32, Shape: tensor.Shape{2, 4}}), layout.Options{}, Edit{Clones: []Clone{c}}); err == nil {
			t.Errorf("clone %+v is accepted", c)
		}
	}
}

func TestExternalFiles(t *testing.T) {
	// w and v share a range, u lies alone, between gaps.
	entry := func(off, n int) [][2]string {
		return [][2]string{{"location", "w.bin"}, {"offset", fmt.Sprint(off)}, {"length", fmt.Sprint(n)}}
	}
	model := linear(outside("w", 1, entry(16, 32), 2, 4), str(5, outside("v", 1, entry(16, 32), 2, 4)), str(5, outside("u", 1, entry(64, 8), 2)))
	data := join(bytes.Repeat([]byte{0xee}, 16), f32s(8), bytes.Repeat([]byte{0xdd}, 16), f32s(2), []byte("tail"))
	m := save(t, map[string][]byte{"m.onnx": model, "w.bin": data}, "m.onnx")
	if len(m.Findings()) > 0 {
		t.Fatalf("findings %v", m.Findings())
	}
	fill := bytes.Repeat([]byte{7}, 32)
	rewrite := func(opt layout.Options, edit Edit) map[string][]byte {
		t.Helper()
		l, err := m.Rewrite(specs(m), opt, edit)
		if err != nil {
			t.Fatal(err)
		}
		if last := l.Files[len(l.Files)-1].Name; last != opt.Name {
			t.Errorf("the last file is %q", last)
		}
		return write(t, l, func(i int) []byte { return fill[:m.tensors[i].Size] })
	}
	// Only u is written: the file stays as it is around it.
	files := rewrite(layout.Options{Name: "o.onnx"}, Edit{Touched: []bool{false, false, true}})
	want := bytes.Clone(data)
	copy(want[64:], fill[:8])
	if !bytes.Equal(files["w.bin"], want) || !bytes.Equal(files["o.onnx"], model) || len(files) != 2 {
		t.Errorf("u: %x", files)
	}
	// w is written: v must not change with it.
	out := save(t, rewrite(layout.Options{Name: "o.onnx"}, Edit{Touched: []bool{true, false, false}}), "o.onnx")
	for i, want := range [][]byte{fill, f32s(8), f32s(2)} {
		if got, err := out.tensors[i].Read(); err != nil || !bytes.Equal(got, want) {
			t.Errorf("tensor %d reads %x, %v", i, got, err)
		}
	}
	// u in another type: the file is packed anew, w and v stay tied.
	s := specs(m)
	s[2].DType = tensor.F64
	l, err := m.Rewrite(s, layout.Options{Name: "o.onnx"}, Edit{Touched: make([]bool, 3)})
	if err != nil {
		t.Fatal(err)
	}
	out = save(t, write(t, l, func(int) []byte { return fill[:16] }), "o.onnx")
	if a, b := out.records[0], out.records[1]; a.off != b.off || out.records[2].off%wordAlign != 0 || out.files[0].size != 64+16 {
		t.Errorf("offsets %d %d %d of %d", a.off, b.off, out.records[2].off, out.files[0].size)
	}
	// Into the source's own folder: its file is not touched.
	files = rewrite(layout.Options{Name: "o.onnx"}, Edit{Touched: make([]bool, 3), Dir: filepath.Dir(m.file)})
	if !bytes.Equal(files["o.onnx.data"], data) || len(files) != 2 {
		t.Errorf("files %x", files)
	}
	out = save(t, files, "o.onnx")
	if got, err := out.tensors[0].Read(); err != nil || !bytes.Equal(got, f32s(8)) {
		t.Errorf("reads %x, %v", got, err)
	}
	// The output has the data file's name.
	files = rewrite(layout.Options{Name: "w.bin"}, Edit{Touched: make([]bool, 3)})
	if !bytes.Equal(files["w.bin.data"], data) {
		t.Errorf("files %x", files)
	}
}

func TestLocationsBelowTheFolderBecomePlain(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"sub/a.bin", "sub/b.bin"} {
		if err := os.WriteFile(filepath.Join(dir, f), f32s(8), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	at := func(s string) [][2]string { return [][2]string{{"location", s}} }
	m := mustParse(t, linear(outside("w", 1, at("sub/a.bin"), 2, 4), str(5, outside("v", 1, at("sub/b.bin"), 2, 4))), dir)
	l, err := m.Rewrite(specs(m), layout.Options{Name: "o.onnx"}, Edit{Touched: make([]bool, 2)})
	if err != nil {
		t.Fatal(err)
	}
	files := write(t, l, nil)
	for _, n := range []string{"o.onnx", "o.onnx.data", "o.onnx.1.data"} {
		if files[n] == nil {
			t.Errorf("no file %q in %d", n, len(files))
		}
	}
	same(t, m, save(t, files, "o.onnx"))
}

func TestSelfReferenceMovesInside(t *testing.T) {
	head := func(off int) []byte {
		return linear(outside("w", 1, [][2]string{{"location", "m.onnx"}, {"offset", fmt.Sprint(off)}, {"length", "32"}}, 2, 4))
	}
	model := append(head(100), str(900, f32s(8))...)
	off := bytes.LastIndex(model, f32s(8))
	model = append(head(off), str(900, f32s(8))...)
	m := save(t, map[string][]byte{"m.onnx": model}, "m.onnx")
	l, err := m.Rewrite(specs(m), layout.Options{Name: "m.onnx"}, Edit{Touched: []bool{false}})
	if err != nil || len(l.Files) != 1 {
		t.Fatal(l, err)
	}
	if !bytes.Equal(write(t, l, nil)["m.onnx"], model) {
		t.Error("not identical")
	}
	l, err = m.Rewrite(specs(m), layout.Options{Name: "o.onnx"}, Edit{Touched: []bool{false}})
	if err != nil {
		t.Fatal(err)
	}
	out := save(t, write(t, l, nil), "o.onnx")
	same(t, m, out)
	if out.records[0].store != storeRaw {
		t.Errorf("stored as %d", out.records[0].store)
	}
}

// A model file past what protobuf can hold gets external data by itself. The data is sparse: only the
// arithmetic is large.
func TestTwoGigabytes(t *testing.T) {
	const n = 300 << 20 // elements: 1.2 GB as float32, 2.4 GB as float64
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "w.bin"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(2 * 4 * n); err != nil {
		t.Skipf("no sparse files: %v", err)
	}
	f.Close()
	at := func(off int) [][2]string {
		return [][2]string{{"location", "w.bin"}, {"offset", fmt.Sprint(off)}, {"length", fmt.Sprint(4 * n)}}
	}
	model := linear(outside("w", 1, at(0), n), str(5, outside("v", 1, at(4*n), n)), str(5, proto("b", 1, f32s(4), 4)))
	m := mustParse(t, model, dir)
	s := specs(m)
	// External stays external, in a larger file.
	s[0].DType, s[1].DType = tensor.F64, tensor.F64
	l, err := m.Layout(s, layout.Options{Name: "o.onnx"})
	if err != nil {
		t.Fatal(err)
	}
	if l.Files[0].Size != 2*8*n || l.Items[1].Off != 8*n || l.Files[1].Size > 1000 {
		t.Errorf("files %d, %d, items %+v", l.Files[0].Size, l.Files[1].Size, l.Items)
	}
	// Asked for inside, it cannot be.
	l, err = m.Rewrite(specs(m), layout.Options{Name: "o.onnx"}, Edit{Data: Inline, Touched: make([]bool, 3)})
	if err != nil {
		t.Fatal(err)
	}
	if len(l.Files) != 2 || l.Files[0].Size != 2*4*n || l.Files[1].Size > 1000 {
		t.Errorf("files %+v", l.Files)
	}
	// One tensor fits, and its length needs a prefix of five bytes in the graph.
	s = specs(m)
	m = mustParse(t, linear(outside("w", 1, at(0), n)), dir)
	l, err = m.Rewrite(s[:1], layout.Options{Name: "o.onnx"}, Edit{Data: Inline, Touched: []bool{true}})
	if err != nil {
		t.Fatal(err)
	}
	if len(l.Files) != 1 || l.Items[0].Size != 4*n || l.Files[0].Size < 4*n || l.Files[0].Size > 4*n+1000 {
		t.Errorf("files %d, items %+v", len(l.Files), l.Items)
	}
}

func TestRefusedRewrites(t *testing.T) {
	m := mustParse(t, linear(proto("w", 1, f32s(8), 2, 4), str(5, join(num(1, 1), num(2, 8), text(6, "hi"), text(8, "s")))), "")
	for _, c := range []struct {
		name   string
		change func([]tensor.Spec, *Edit) []tensor.Spec
		code   string
	}{
		{"block type", func(s []tensor.Spec, _ *Edit) []tensor.Spec { s[0].DType = tensor.Q4_K; return s }, "output.bad_dtype"},
		{"strings", func(s []tensor.Spec, _ *Edit) []tensor.Spec { s[1].DType = tensor.F32; return s }, "output.bad_dtype"},
		{"strings written", func(s []tensor.Spec, e *Edit) []tensor.Spec { e.Touched = []bool{false, true}; return s }, ""},
		{"other name", func(s []tensor.Spec, _ *Edit) []tensor.Spec { s[0].Name = "q"; return s }, ""},
		{"other shape", func(s []tensor.Spec, _ *Edit) []tensor.Spec { s[0].Shape = tensor.Shape{8}; return s }, ""},
		{"too few", func(s []tensor.Spec, _ *Edit) []tensor.Spec { return s[:1] }, ""},
	} {
		var e Edit
		_, err := m.Rewrite(c.change(specs(m), &e), layout.Options{}, e)
		if err == nil {
			t.Errorf("%s: accepted", c.name)
		} else if f := finding.Of(err); c.code != "" && (f == nil || f.Code != c.code) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
