package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/onnxruntime"
	"github.com/loratool/loratool/tensor"
)

func init() {
	runTests = func(m *testing.M) { testscript.Main(m, map[string]func(){"loratool": main}) }
}

// TestScripts runs testdata/script. A script sees the repository's test data as $DATA, an empty home, and, where
// one is installed, the path of an ONNX Runtime library as $ORT and the condition [ort].
func TestScripts(t *testing.T) {
	data, err := filepath.Abs("../../testdata")
	if err != nil {
		t.Fatal(err)
	}
	lib, ortErr := onnxruntime.Locate("")
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Vars = append(e.Vars, "DATA="+data, "TINY="+filepath.Join(data, "tiny-llama"), "ORT="+lib.Path, "HOME="+e.WorkDir)
			return nil
		},
		Condition: func(c string) (bool, error) {
			if c == "ort" {
				return ortErr == nil, nil
			}
			return false, fmt.Errorf("unknown condition %q", c)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status": scriptStatus, "json": scriptJSON, "only": scriptOnly, "flip": scriptFlip, "near": scriptNear, "same": scriptSame,
			"weights": scriptWeights, "zeros": scriptZeros, "pack": scriptPack, "bigendian": scriptBigEndian, "variant": scriptVariant, "stated": scriptStated,
			"nameless": scriptNameless,
		},
	})
}

// nameless IN OUT copies an ONNX file without the names of its nodes.
func scriptNameless(ts *testscript.TestScript, _ bool, args []string) {
	b, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), corpus.Nameless(fatal{ts}, b), 0o666))
}

type fatal struct{ *testscript.TestScript }

func (f fatal) Fatal(a ...any) { f.Fatalf("%s", fmt.Sprint(a...)) }

// bigendian IN OUT copies a GGUF file in the other byte order.
func scriptBigEndian(ts *testscript.TestScript, _ bool, args []string) {
	m, err := gguf.Open(ts.MkAbs(args[0]))
	ts.Check(err)
	defer m.Close()
	var specs []tensor.Spec
	for _, t := range m.Tensors() {
		specs = append(specs, t.Spec)
	}
	h := m.Header()
	h.BigEndian = true
	l, err := gguf.NewLayout(h, specs, layout.Options{Name: args[1]})
	ts.Check(err)
	w, err := layout.Create(ts.MkAbs(args[1]), l, true)
	ts.Check(err)
	defer w.Abort()
	for i, t := range m.Tensors() {
		b, err := t.Read()
		ts.Check(err)
		ts.Check(w.WriteAt(i, b, 0))
	}
	ts.Check(w.Commit())
}

// status N PROGRAM ARGS… runs a program that must end with status N.
func scriptStatus(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := err.(*exec.ExitError)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit status %d, expected %d", got, want)
	}
}

// json FILE [PATH [VALUE]] requires that a file (stdout) is one JSON document; that PATH, keys and indexes
// joined by dots, exists in it and is not null; and that it prints as VALUE, which may be null. A last component len is the length.
func scriptJSON(ts *testscript.TestScript, neg bool, args []string) {
	d := json.NewDecoder(strings.NewReader(ts.ReadFile(args[0])))
	d.UseNumber()
	var v any
	ts.Check(d.Decode(&v))
	if _, err := d.Token(); err != io.EOF {
		ts.Fatalf("something follows the JSON document")
	}
	if len(args) == 1 {
		return
	}
	for _, p := range strings.Split(args[1], ".") {
		v = descend(v, p)
	}
	null := neg || len(args) > 2 && args[2] == "null"
	if null != (v == nil) {
		ts.Fatalf("%s is %v", args[1], v)
	}
	if len(args) > 2 && !null && fmt.Sprint(v) != args[2] {
		ts.Fatalf("%s is %v, expected %s", args[1], v, args[2])
	}
}

func descend(v any, p string) any {
	switch v := v.(type) {
	case map[string]any:
		if p == "len" {
			return len(v)
		}
		return v[p]
	case []any:
		if p == "len" {
			return len(v)
		}
		if i, err := strconv.Atoi(p); err == nil && i < len(v) {
			return v[i]
		}
	}
	return nil
}

// only DIR NAME… requires that a folder holds these entries and no other.
func scriptOnly(ts *testscript.TestScript, _ bool, args []string) {
	entries, err := os.ReadDir(ts.MkAbs(args[0]))
	ts.Check(err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	want := slices.Clone(args[1:])
	slices.Sort(want)
	if !slices.Equal(got, want) {
		ts.Fatalf("%s holds %q, expected %q", args[0], got, want)
	}
}

// flip FILE TENSOR inverts the highest bits of eight bytes in the middle of a tensor.
func scriptFlip(ts *testscript.TestScript, _ bool, args []string) {
	path := ts.MkAbs(args[0])
	m, err := formats.Open(path)
	ts.Check(err)
	t := find(ts, m, args[1])
	m.Close()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	ts.Check(err)
	defer f.Close()
	b := make([]byte, 8)
	at := t.Off + t.Size/2
	_, err = f.ReadAt(b, at)
	ts.Check(err)
	for i := range b {
		b[i] ^= 0xc0
	}
	_, err = f.WriteAt(b, at)
	ts.Check(err)
}

func find(ts *testscript.TestScript, m formats.Model, name string) tensor.Tensor {
	for _, t := range m.Tensors() {
		if t.Name == name {
			return t
		}
	}
	ts.Fatalf("%s has no tensor %q", m.Path(), name)
	return tensor.Tensor{}
}

// same A B requires that two models hold the same tensors with the same bytes.
func scriptSame(ts *testscript.TestScript, neg bool, args []string) {
	if differ := !maps.Equal(raw(ts, args[0]), raw(ts, args[1])); differ != neg {
		ts.Fatalf("differ: %v", differ)
	}
}

// raw is type, shape and bytes of a model's tensors.
func raw(ts *testscript.TestScript, path string) map[string]string {
	m, err := formats.Open(ts.MkAbs(path))
	ts.Check(err)
	defer m.Close()
	out := map[string]string{}
	for _, t := range m.Tensors() {
		b, err := t.Read()
		ts.Check(err)
		out[t.Name] = fmt.Sprintf("%s %v %x", t.DType, t.Shape, b)
	}
	return out
}

// near BASE BACK MERGED requires that BACK, made from MERGED, made from BASE, is BASE within the one rounding
// that each of the two steps made.
func scriptNear(ts *testscript.TestScript, _ bool, args []string) {
	base, back, merged := values(ts, args[0]), values(ts, args[1]), values(ts, args[2])
	for name, w := range base {
		m, r := merged[name], back[name]
		if len(w.v) == 0 || len(m.v) != len(w.v) || len(r.v) != len(w.v) {
			ts.Fatalf("tensor %s is missing", name)
		}
		for i, x := range w.v {
			// Half a step each, and what float32 arithmetic adds.
			bound := (m.step(m.v[i])+r.step(r.v[i]))/2 + 0x1p-21*math.Abs(float64(m.v[i]))
			if d := math.Abs(float64(r.v[i]) - float64(x)); d > bound {
				ts.Fatalf("%s[%d]: %g came back as %g, %.3g bounds away", name, i, x, r.v[i], d/bound)
			}
		}
	}
}

type stored struct {
	t tensor.DType
	v []float32
}

// step is an upper bound of the distance between neighbouring values around x.
func (s stored) step(x float32) float64 {
	bits := map[tensor.DType]float64{tensor.BF16: 0x1p-7, tensor.F16: 0x1p-10, tensor.F32: 0x1p-23}[s.t]
	return math.Max(math.Abs(float64(x)), 0x1p-14) * bits
}

func values(ts *testscript.TestScript, path string) map[string]stored {
	m, err := formats.Open(ts.MkAbs(path))
	ts.Check(err)
	defer m.Close()
	out := map[string]stored{}
	for _, t := range m.Tensors() {
		if t.DType.IsFloat() {
			v, err := adapter.ReadFloats(&t)
			ts.Check(err)
			out[t.Name] = stored{t.DType, v}
		}
	}
	return out
}

// weights FILE NAME ROWS COLS […] writes a safetensors file of F32 tensors. Names are quoted as in Go. Values
// are small, fixed and not zero.
func scriptWeights(ts *testscript.TestScript, _ bool, args []string) {
	var all []matrix
	x := uint32(1)
	for i := 1; i+2 < len(args); i += 3 {
		name, err := strconv.Unquote(`"` + args[i] + `"`)
		ts.Check(err)
		rows, err := strconv.Atoi(args[i+1])
		ts.Check(err)
		cols, err := strconv.Atoi(args[i+2])
		ts.Check(err)
		m := matrix{name, rows, cols, make([]float32, rows*cols)}
		for k := range m.v {
			x = x*1664525 + 1013904223
			m.v[k] = float32(int32(x)) * 0x1p-33
		}
		all = append(all, m)
	}
	writeMatrices(ts, args[0], all)
}

// A matrix of a safetensors file, row-major.
type matrix struct {
	name       string
	rows, cols int
	v          []float32
}

// writeMatrices writes a safetensors file of F32 matrices.
func writeMatrices(ts *testscript.TestScript, name string, all []matrix) {
	var header, data bytes.Buffer
	for i, m := range all {
		quoted, err := json.Marshal(m.name)
		ts.Check(err)
		first := data.Len()
		ts.Check(binary.Write(&data, binary.LittleEndian, m.v))
		sep := ","
		if i == 0 {
			sep = "{"
		}
		fmt.Fprintf(&header, `%s%s:{"dtype":"F32","shape":[%d,%d],"data_offsets":[%d,%d]}`, sep, quoted, m.rows, m.cols, first, data.Len())
	}
	header.WriteString("}")
	for header.Len()%8 != 0 {
		header.WriteByte(' ')
	}
	var file bytes.Buffer
	ts.Check(binary.Write(&file, binary.LittleEndian, uint64(header.Len())))
	file.Write(header.Bytes())
	file.Write(data.Bytes())
	path := ts.MkAbs(name)
	ts.Check(os.MkdirAll(filepath.Dir(path), 0o777))
	ts.Check(os.WriteFile(path, file.Bytes(), 0o666))
}

// variant KIND ADAPTER OUT writes the part of a PEFT adapter that changes q_proj and o_proj, whose weights are square:
// right as it is, transposed so that it adds ΔWᵀ, or swapped between the two layers.
func scriptVariant(ts *testscript.TestScript, _ bool, args []string) {
	m, err := formats.Open(ts.MkAbs(args[1]))
	ts.Check(err)
	defer m.Close()
	factors := map[string]matrix{}
	for _, t := range m.Tensors() {
		if strings.Contains(t.Name, "q_proj") || strings.Contains(t.Name, "o_proj") {
			v, err := adapter.ReadFloats(&t)
			ts.Check(err)
			factors[t.Name] = matrix{t.Name, int(t.Shape[0]), int(t.Shape[1]), v}
		}
	}
	var all []matrix
	for _, name := range slices.Sorted(maps.Keys(factors)) {
		from := name
		switch args[0] {
		case "right":
		case "transposed":
			from = strings.NewReplacer("lora_A", "lora_B", "lora_B", "lora_A").Replace(name)
		case "swapped":
			from = strings.NewReplacer("layers.0", "layers.1", "layers.1", "layers.0").Replace(name)
		default:
			ts.Fatalf("unknown variant %q", args[0])
		}
		f := factors[from]
		if args[0] == "transposed" {
			t := matrix{from, f.cols, f.rows, make([]float32, len(f.v))}
			for i, x := range f.v {
				t.v[i%f.cols*f.rows+i/f.cols] = x
			}
			f = t
		}
		f.name = name
		all = append(all, f)
	}
	if len(all) != 8 {
		ts.Fatalf("%d factors", len(all))
	}
	var config map[string]any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(filepath.Join(args[1], "adapter_config.json"))), &config))
	config["target_modules"] = []string{"q_proj", "o_proj"}
	b, err := json.Marshal(config)
	ts.Check(err)
	writeMatrices(ts, filepath.Join(args[2], "adapter_model.safetensors"), all)
	ts.Check(os.WriteFile(ts.MkAbs(filepath.Join(args[2], "adapter_config.json")), b, 0o666))
}

// stated FILE NAME ROWS COLS KEY writes a safetensors file as weights does, whose metadata says under KEY what the
// SHA-256 of its data is.
func scriptStated(ts *testscript.TestScript, _ bool, args []string) {
	scriptWeights(ts, false, args[:4])
	path := ts.MkAbs(args[0])
	b, err := os.ReadFile(path)
	ts.Check(err)
	n := binary.LittleEndian.Uint64(b)
	header, data := strings.TrimSpace(string(b[8:8+n])), b[8+n:]
	header = fmt.Sprintf(`{"__metadata__":{"%s":"0x%x"},%s`, args[4], sha256.Sum256(data), header[1:])
	out := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	ts.Check(os.WriteFile(path, slices.Concat(out, []byte(header), data), 0o666))
}

// zeros FILE NAME ROWS COLS writes a safetensors file of one F32 tensor of zeros.
func scriptZeros(ts *testscript.TestScript, _ bool, args []string) {
	scriptWeights(ts, false, args)
	path := ts.MkAbs(args[0])
	m, err := formats.Open(path)
	ts.Check(err)
	t := find(ts, m, args[1])
	m.Close()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	ts.Check(err)
	defer f.Close()
	_, err = f.WriteAt(make([]byte, t.Size), t.Off)
	ts.Check(err)
}
