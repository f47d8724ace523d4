package onnx

import (
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/tensor"
)

// Verdicts of ONNX Runtime 1.30 on external data. Two of its errors are warnings here: keys it does not
// know harm nobody who reads weights, and a rewrite drops them.
func TestVerdictsOfOnnxRuntime(t *testing.T) {
	dir := t.TempDir()
	copyTree(t, corpus.Path(t, "onnx/own"), dir, []string{"external_data_probe/sym.bin", "external_data_probe/symin.bin"})
	dir = filepath.Join(dir, "external_data_probe")
	b, err := os.ReadFile(filepath.Join(dir, "verdicts.json"))
	if err != nil {
		t.Fatal(err)
	}
	var verdicts []struct {
		File    string
		Verdict string `json:"ort_1_30"`
	}
	if err := json.Unmarshal(b, &verdicts); err != nil || len(verdicts) != 16 {
		t.Fatal(len(verdicts), err)
	}
	for _, v := range verdicts {
		m, err := Open(filepath.Join(dir, v.File))
		got := "ok"
		if err != nil {
			got = "error"
		} else {
			defer m.Close()
			warned := slices.ContainsFunc(m.Findings(), func(f finding.Finding) bool { return f.Code == "container.unknown_key" })
			if lenient := v.File == "basepath.onnx" || v.File == "unknownkey.onnx"; lenient != warned {
				t.Errorf("%s: findings %v", v.File, m.Findings())
			} else if lenient {
				got = "error"
			}
			if _, err := m.Tensors()[0].Read(); err != nil {
				t.Errorf("%s: %v", v.File, err)
			}
		}
		if got != v.Verdict {
			t.Errorf("%s: %s (%v), ONNX Runtime says %s", v.File, got, err, v.Verdict)
		}
	}
}

func TestChecksums(t *testing.T) {
	data := f32s(8)
	sum := sha1.Sum(data)
	good := hex.EncodeToString(sum[:])
	for _, c := range []struct {
		sum  string
		want int
	}{{good, 0}, {strings.ToUpper(good), 0}, {strings.Repeat("0", 40), 1}} {
		m := save(t, map[string][]byte{
			"m.onnx": linear(outside("w", 1, [][2]string{{"location", "w.bin"}, {"checksum", c.sum}}, 2, 4)), "w.bin": data,
		}, "m.onnx")
		fs, err := m.Checksums()
		if err != nil || len(fs) != c.want || c.want > 0 && (fs[0].Code != "container.checksum_mismatch" || fs[0].Got != good) {
			t.Errorf("%s: %v, %v", c.sum, fs, err)
		}
	}
}

func TestFolders(t *testing.T) {
	good := linear(proto("w", 1, f32s(8), 2, 4))
	for _, c := range []struct {
		files []string
		want  string
	}{
		{[]string{"net.onnx", "notes.txt"}, "net.onnx"},
		{[]string{"a.onnx", "model.onnx"}, "model.onnx"},
		{[]string{"a.onnx", "b.onnx"}, "files.ambiguous"},
		{[]string{"a.txt"}, "files.no_weights"},
	} {
		dir := t.TempDir()
		for _, f := range c.files {
			if err := os.WriteFile(filepath.Join(dir, f), good, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		m, err := Open(dir)
		if f := finding.Of(err); f != nil {
			if f.Code != c.want {
				t.Errorf("%v: %v, want %s", c.files, err, c.want)
			}
			continue
		}
		defer m.Close()
		if filepath.Base(m.file) != c.want || m.Path() != dir || m.Format() != "onnx" {
			t.Errorf("%v: %s, want %s", c.files, m.file, c.want)
		}
	}
	if _, err := Open(filepath.Join(t.TempDir(), "none.onnx")); finding.Of(err) == nil || finding.Of(err).Code != "files.missing" {
		t.Errorf("a missing file: %v", err)
	}
}

func TestEveryPlaceWhereWeightsHide(t *testing.T) {
	constant := func(name string) []byte {
		return str(1, nodeOf("Constant", nil, []string{name}, str(5, text(1, "value"), str(5, proto("own", 1, f32s(1), 1)))))
	}
	sub := func(name, init string) []byte {
		return join(text(2, name), str(5, proto(init, 1, f32s(2), 2)), constant("c"+init), str(12, text(1, init)))
	}
	g := [][]byte{
		constant("k"),
		str(1, nodeOf("If", []string{"x"}, []string{"y"},
			str(5, text(1, "then_branch"), str(6, sub("t", "tw"))),
			str(5, str(6, sub("e", "ew")), text(1, "else_branch")))), // the name comes last
		str(15, str(1, proto("sp", 1, f32s(1), 1)), str(2, proto("", 7, make([]byte, 8), 1)), num(3, 4)),
		str(5, proto("w", 1, f32s(3), 3)),
		str(5, proto("v", 10, make([]byte, 8), 4)),
		str(11, declared("x", 9, 1)), str(12, declared("y", 1, 2)),
	}
	fn := str(25, text(1, "F"), text(10, "d"), text(5, "o"), str(7, nodeOf("Constant", nil, []string{"o"}, str(5, text(1, "value"), str(5, proto("", 1, f32s(1), 1))))))
	training := str(20, str(2, text(2, "algo"), str(5, proto("tr", 1, f32s(1), 1)), str(1, nodeOf("Add", []string{"tr", "w"}, []string{"q"}))))
	m := mustParse(t, join(modelOf(g...), fn, training), "")
	type row struct {
		name, own string
		kind      Kind
	}
	var got []row
	for i, ts := range m.Tensors() {
		in := m.Info(i)
		got = append(got, row{ts.Name, in.Name, in.Kind})
		if _, err := m.Tensors()[i].Read(); err != nil {
			t.Error(err)
		}
	}
	want := []row{
		{"w", "w", Initializer}, {"v", "v", Initializer},
		{"node[0].value", "own", Attribute},
		{"node[1].then_branch/tw", "tw", Initializer}, {"node[1].then_branch.node[0].value", "own", Attribute},
		{"node[1].else_branch/ew", "ew", Initializer}, {"node[1].else_branch.node[0].value", "own", Attribute},
		{"sparse_initializer[0].values", "sp", Sparse}, {"sparse_initializer[0].indices", "", Sparse},
		{"functions[0].node[0].value", "", Attribute},
		{"training_info[0].algorithm/tr", "tr", Initializer},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%v, want\n%v", got, want)
	}
	if len(m.Findings()) > 0 {
		t.Errorf("findings %v", m.Findings())
	}
	if a := m.Graph().Nodes[1].Attrs; !slices.Equal(a[1].Graphs[0].Initializers, []int{5}) || !slices.Equal(m.Graph().Nodes[0].Attrs[0].Tensors(), []int{2}) {
		t.Errorf("attributes %+v", a)
	}
	// Each of them can be rewritten where it is, and none of the others notices.
	for i := range m.Tensors() {
		s := specs(m)
		s[i].DType = tensor.F64
		same := i
		checkOnly(t, m, s, same)
	}
}

// checkOnly rewrites tensor i in another type and compares all others.
func checkOnly(t *testing.T, m *Model, s []tensor.Spec, i int) {
	t.Helper()
	l, err := m.Rewrite(s, optNamed("o.onnx"), Edit{Touched: make([]bool, len(s))})
	if err != nil {
		t.Fatal(err)
	}
	n, _ := s[i].Bytes()
	out := save(t, write(t, l, func(int) []byte { return make([]byte, n) }), "o.onnx")
	for k := range s {
		got, err := out.Tensors()[k].Read()
		if err != nil {
			t.Fatal(err)
		}
		want, _ := m.Tensors()[k].Read()
		if k == i {
			want = make([]byte, n)
		}
		if out.Tensors()[k].DType != s[k].DType || string(got) != string(want) {
			t.Errorf("after a change of %s, %s reads %v %x", s[i].Name, s[k].Name, out.Tensors()[k].DType, head(got))
		}
	}
}

func TestGraphView(t *testing.T) {
	f := func(v uint32) []byte { return []byte{2<<3 | 5, byte(v), byte(v >> 8), byte(v >> 16), byte(v >> 24)} }
	gemm := nodeOf("Gemm", []string{"x", "w", "", "b"}, []string{"y"}, text(3, "/fc/Gemm"), text(7, "dom"),
		str(5, text(1, "transB"), num(3, 1), num(20, 2)),
		str(5, text(1, "alpha"), f(0x3f000000)),
		str(5, text(1, "perm"), num(8, 1), str(8, []byte{0, 2})),
		str(5, text(1, "mode"), text(4, "fast")),
		pair(9, "namespace", "fc"))
	shape := str(2, str(1, text(2, "batch")), str(1, num(1, 4)), str(1))
	model := join(modelOf(str(1, gemm), str(5, proto("w", 1, f32s(8), 2, 4), pair(16, "pkg.onnxscript.optimizer.folded_from", "['fc']")),
		str(11, text(1, "x"), str(2, str(1, num(1, 10), shape))), str(11, declared("b", 1, 4)),
		str(12, text(1, "y"), str(2, str(4, str(1, str(1, num(1, 1)))))),
		str(13, declared("w", 1, 2, 4), pair(4, "k", "v")), pair(16, "graph", "prop")), pair(14, "meta", "data"))
	m := mustParse(t, model, "")
	n := m.Graph().Nodes[0]
	if n.Name != "/fc/Gemm" || n.OpType != "Gemm" || n.Domain != "dom" || !slices.Equal(n.Inputs, []string{"x", "w", "", "b"}) ||
		n.Int("transB", 0) != 1 || n.Int("transA", 7) != 7 || n.Attr("alpha").Float != 0.5 || !slices.Equal(n.Attr("perm").Ints, []int64{1, 0, 2}) ||
		n.Attr("mode").Text != "fast" || n.Attr("none") != nil || fmt.Sprint(n.Props) != "[[namespace fc]]" {
		t.Errorf("node %+v", n)
	}
	x, y, w := m.Graph().Inputs[0], m.Graph().Outputs[0], m.Graph().Values[0]
	if x.DType != tensor.F16 || fmt.Sprint(x.Dims) != "[{-1 batch} {4 } {-1 }]" || x.Kind != "tensor" || y.Kind != "sequence" || fmt.Sprint(w.Props) != "[[k v]]" {
		t.Errorf("values %+v %+v %+v", x, y, w)
	}
	if fmt.Sprint(m.Info(0).Props) != "[[pkg.onnxscript.optimizer.folded_from ['fc']]]" || fmt.Sprint(m.Graph().Props) != "[[graph prop]]" {
		t.Errorf("info %+v", m.Info(0))
	}
	if h := m.Header(); h.IRVersion != 8 || h.Producer != "test" || fmt.Sprint(h.Opsets) != "[{ 17}]" || fmt.Sprint(h.Metadata) != "[[meta data]]" {
		t.Errorf("header %+v", h)
	}
}

// What the corpus of bad inputs does not have.
func TestRefusedModels(t *testing.T) {
	w := proto("w", 1, f32s(8), 2, 4)
	deep := []byte{}
	for range 60 {
		deep = str(6, text(2, "g"), str(1, nodeOf("If", []string{"x"}, []string{"z"}, str(5, text(1, "then_branch"), deep))))
	}
	group := func(n int) []byte {
		return []byte(strings.Repeat("\x9b\x06", n) + strings.Repeat("\x9c\x06", n))
	}
	for _, c := range []struct {
		name, reason string
		model        []byte
	}{
		{"git-lfs", "lfs_pointer", []byte("version https://git-lfs.github.com/spec/v1\noid sha256:0")},
		{"two value fields", "ambiguous_data", linear(join(w, str(4, f32s(8))))},
		{"two initializers of one name", "duplicate_name", linear(w, str(5, w))},
		{"initializer and sparse initializer", "duplicate_name", linear(w, str(15, str(1, w)))},
		{"value produced twice", "graph_rules", linear(w, str(1, nodeOf("Add", []string{"x", "x"}, []string{"y"})))},
		{"cycle through a subgraph", "graph_rules", modelOf(
			str(1, nodeOf("If", []string{"x"}, []string{"a"}, str(5, text(1, "then_branch"), str(6, text(2, "s"), str(1, nodeOf("Neg", []string{"b"}, []string{"n"})), str(12, text(1, "n")))))),
			str(1, nodeOf("Neg", []string{"a"}, []string{"b"})), str(11, declared("x", 9)), str(12, declared("a", 1)))},
		{"undefined in a subgraph", "graph_rules", modelOf(
			str(1, nodeOf("If", []string{"x"}, []string{"a"}, str(5, text(1, "then_branch"), str(6, text(2, "s"), str(1, nodeOf("Neg", []string{"b"}, []string{"n"})), str(12, text(1, "n")))))),
			str(11, declared("x", 9)), str(12, declared("a", 1)))},
		{"functions that call each other", "graph_rules", join(linear(w),
			str(25, text(1, "F"), text(10, "d"), str(7, nodeOf("G", nil, nil, text(7, "d")))),
			str(25, text(1, "G"), text(10, "d"), str(7, nodeOf("F", nil, nil, text(7, "d")))))},
		{"two functions of one name", "duplicate_name", join(linear(w), str(25, text(1, "F")), str(25, text(1, "F")))},
		{"deep subgraphs", "nesting", modelOf(str(1, nodeOf("If", []string{"x"}, []string{"z"}, str(5, text(1, "then_branch"), deep))))},
		{"deep groups", "nesting", append(linear(w), group(101)...)},
		{"groups that cross", "bad_protobuf", append(linear(w), 0x9b, 0x06, 0xa3, 0x06, 0x9c, 0x06, 0xa4, 0x06)},
		{"a group for a known field", "bad_protobuf", append(linear(w), 0x3b, 0x3c)},
		{"no IR version", "model_rules", linear(w)[2:]},
		{"IR version 100", "model_rules", append(linear(w), num(1, 100)...)},
		{"attribute without name", "graph_rules", linear(w, str(1, nodeOf("Neg", []string{"x"}, []string{"q"}, str(5, num(3, 1)))))},
		{"input without name", "graph_rules", linear(w, str(11))},
		{"int32_data too short", "size_mismatch", linear(join(num(1, 2), num(1, 4), num(2, 6), text(8, "w"), str(5, make([]byte, 7))))},
		{"int32_data without end", "bad_protobuf", linear(join(num(1, 1), num(2, 6), text(8, "w"), str(5, []byte{0x80})))},
		{"element count overflows", "overflow", linear(join(num(1, 1<<62), num(2, 27), text(8, "w"), str(9, f32s(1))))},
		{"external strings", "bad_dtype", linear(outside("w", 8, [][2]string{{"location", "w.bin"}}, 1))},
		{"offset with a sign", "bad_offset", linear(outside("w", 1, [][2]string{{"location", "w.bin"}, {"offset", "+0"}}, 4))},
		{"offset with a zero in front", "bad_offset", linear(outside("w", 1, [][2]string{{"location", "w.bin"}, {"offset", "00"}}, 4))},
		{"offset with a blank", "bad_offset", linear(outside("w", 1, [][2]string{{"location", "w.bin"}, {"offset", " 0"}}, 4))},
		{"empty offset", "bad_offset", linear(outside("w", 1, [][2]string{{"location", "w.bin"}, {"offset", ""}}, 4))},
		{"a folder as data", "not_regular_file", linear(outside("w", 1, [][2]string{{"location", "sub"}}, 4))},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "w.bin"), f32s(4), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
				t.Fatal(err)
			}
			m, err := parse(t, c.model, dir)
			if f := finding.Of(err); f == nil || f.Code != "container."+c.reason {
				t.Errorf("%v, %v, want %s", m != nil, err, c.reason)
			}
		})
	}
	// The same with a little less is fine.
	if _, err := parse(t, append(linear(w), group(99)...), ""); err != nil {
		t.Error(err)
	}
}

func TestLocations(t *testing.T) {
	for s, want := range map[string]string{
		"w.bin": "", "w..bin": "", "sub/w.bin": "", "...": "", "COM10": "", "console": "", "sub/../w.bin": "odd", "./w": "odd", "a//b": "odd", "w.bin:ads": "odd",
		"": "no_location", "..": "path_escape", "a/../../x": "path_escape", "/etc/passwd": "path_escape", `a\b`: "path_escape", `\\host\x`: "path_escape",
		"c:x": "path_escape", "C:/x": "path_escape", "file:x": "path_escape", "FILE:///x": "path_escape", "https://h/x": "path_escape", "a\x00b": "path_escape",
		"a/": "path_escape", "NUL": "path_escape", "nul.txt": "path_escape", "sub/Com1.bin": "path_escape", "lpt9 ": "path_escape", "CON:x": "path_escape",
		"*/_ORT_MEM_ADDR_/*": "path_escape", ".": "not_regular_file", "a/..": "not_regular_file", "\xff": "bad_utf8",
	} {
		l, reason, _ := readLocation(s)
		if reason == "" && l.odd {
			reason = "odd"
		}
		if reason != want {
			t.Errorf("%q: %q, want %q", s, reason, want)
		}
	}
}
