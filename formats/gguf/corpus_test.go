package gguf

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"github.com/x448/float16"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/tensor"
)

func hash(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// latin1 decodes the names of the manifests, whose characters stand for bytes.
func latin1(s string) string {
	b := make([]byte, 0, len(s))
	for _, r := range s {
		b = append(b, byte(r))
	}
	return string(b)
}

// allocations is the largest factor k in k·size + 64 KiB that opening a file may allocate.
const allocations = 16

func TestBadInputs(t *testing.T) {
	dir := corpus.Path(t, "badinputs/gguf")
	var manifest struct {
		Cases []struct {
			File, Level, Expect, Reason, SHA256 string
			Size                                int64
			Tensors                             map[string]struct {
				Type   int
				NE     []int64
				SHA256 string
			}
		}
	}
	corpus.ReadJSON(t, filepath.Join(dir, "manifest.json"), &manifest)
	if len(manifest.Cases) == 0 {
		t.Fatal("no cases")
	}
	for _, c := range manifest.Cases {
		t.Run(c.File, func(t *testing.T) {
			path := filepath.Join(dir, c.File)
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if hash(raw) != c.SHA256 {
				t.Fatal("the case is damaged")
			}
			var before, after runtime.MemStats
			type result struct {
				m   *Model
				err error
			}
			done := make(chan result, 1)
			runtime.ReadMemStats(&before)
			go func() {
				m, err := Open(path)
				done <- result{m, err}
			}()
			var r result
			select {
			case r = <-done:
			case <-time.After(time.Second):
				t.Fatal("no answer in a second")
			}
			runtime.ReadMemStats(&after)
			if got, limit := after.TotalAlloc-before.TotalAlloc, uint64(allocations*c.Size+64<<10); got > limit {
				t.Errorf("allocated %d bytes for a file of %d, more than %d", got, c.Size, limit)
			}
			expect, reason := c.Expect, "container."+c.Reason
			if c.Level == "semantic" {
				expect, reason = "accept", ""
			}
			if expect == "reject" {
				if r.err == nil {
					t.Fatal("accepted")
				}
				f := finding.Of(r.err)
				if f == nil || f.Code != reason || f.Level != finding.Error || f.File != path {
					t.Fatalf("got %v, want %s", r.err, reason)
				}
				if strings.ContainsFunc(r.err.Error(), func(c rune) bool { return !unicode.IsPrint(c) }) {
					t.Errorf("%q is not one line of printable characters", r.err)
				}
				return
			}
			if r.err != nil {
				t.Fatal(r.err)
			}
			defer r.m.Close()
			found := false
			for _, f := range r.m.Findings() {
				if f.Level == finding.Error {
					t.Errorf("finding of level error: %v", f.Error())
				}
				found = found || f.Code == reason && f.Level == finding.Warning
			}
			if expect == "warn" && !found {
				t.Errorf("no warning %s among %v", reason, r.m.Findings())
			}
			if c.Tensors == nil {
				return
			}
			if len(r.m.Tensors()) != len(c.Tensors) {
				t.Errorf("%d tensors, want %d", len(r.m.Tensors()), len(c.Tensors))
			}
			for name, want := range c.Tensors {
				i := slices.IndexFunc(r.m.Tensors(), func(x tensor.Tensor) bool { return x.Name == latin1(name) })
				if i < 0 {
					t.Errorf("no tensor %q", name)
					continue
				}
				x := r.m.Tensors()[i]
				ne := slices.Clone([]int64(x.Shape))
				slices.Reverse(ne)
				data, err := x.Read()
				if err != nil {
					t.Error(err)
				}
				if x.DType != byID[want.Type] || !slices.Equal(ne, want.NE) || hash(data) != want.SHA256 {
					t.Errorf("tensor %q: %s %v differs from the manifest", name, x.DType, ne)
				}
			}
		})
	}
}

// specs returns what a layout needs of tensors.
func specs(ts []tensor.Tensor) []tensor.Spec {
	ss := make([]tensor.Spec, len(ts))
	for i := range ts {
		ss[i] = ts[i].Spec
	}
	return ss
}

// assemble makes the files of a layout in memory, with the tensors' data.
func assemble(t testing.TB, l *layout.Layout, ts []tensor.Tensor) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for _, f := range l.Files {
		b := make([]byte, f.Size)
		for _, s := range f.Spans {
			if _, err := s.Src.ReadAt(b[s.Off:][:s.Len], s.SrcOff); err != nil {
				t.Fatal(err)
			}
		}
		files[f.Name] = b
	}
	if len(l.Items) != len(ts) {
		t.Fatalf("%d places for %d tensors", len(l.Items), len(ts))
	}
	for i, p := range l.Items {
		data, err := ts[i].Read()
		if err != nil {
			t.Fatal(err)
		}
		if int64(len(data)) != p.Size {
			t.Fatalf("%s: place of %d bytes for %d", ts[i].Name, p.Size, len(data))
		}
		if p.Swap != nil {
			p.Swap(data)
		}
		copy(files[l.Files[p.File].Name][p.Off:][:p.Size], data)
	}
	return files
}

// relay writes a model again.
func relay(t testing.TB, m *Model, h Header, opt layout.Options) map[string][]byte {
	t.Helper()
	l, err := NewLayout(h, specs(m.Tensors()), opt)
	if err != nil {
		t.Fatal(err)
	}
	return assemble(t, l, m.Tensors())
}

// Files that readers accept but that are not as a writer makes them: what writing changes.
var notCanonical = map[string]func([]byte) []byte{
	"container.missing_final_padding": func(b []byte) []byte { return append(b, make([]byte, -len(b)&31)...) },
	"container.trailing_bytes":        func(b []byte) []byte { return b[:len(b)&^31] },
}

func TestRelayoutIsIdentical(t *testing.T) {
	root := corpus.Path(t)
	n := 0
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".gguf") {
			return err
		}
		m, err := Open(path)
		if err != nil {
			if !strings.Contains(path, "badinputs") && !strings.HasSuffix(path, "align64-peer-Q4_0.gguf") {
				t.Error(err)
			}
			return nil
		}
		defer m.Close()
		want, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, f := range m.Findings() {
			if f.Code == "container.name_too_long" {
				_, err := m.Layout(specs(m.Tensors()), layout.Options{Name: "out.gguf"})
				if got := finding.Of(err); got == nil || got.Code != f.Code {
					t.Errorf("%s: writing gave %v", path, err)
				}
				return nil
			}
			if change := notCanonical[f.Code]; change != nil {
				want = change(want)
			}
		}
		if got := relay(t, m, m.Header(), layout.Options{Name: "out.gguf"})["out.gguf"]; !bytes.Equal(got, want) {
			t.Errorf("%s: written again as %d other bytes instead of %d", path, len(got), len(want))
		}
		n++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n < 80 {
		t.Errorf("only %d files", n)
	}
	t.Logf("%d files", n)
}

// The peer copies general.alignment = 64 but lays out with 32, and cannot read its own file.
func TestDeclaredAlignment(t *testing.T) {
	dir := corpus.Path(t, "gguf-files")
	if _, err := Open(filepath.Join(dir, "align64-peer-Q4_0.gguf")); finding.Of(err) == nil {
		t.Errorf("the peer's wrong file: %v", err)
	}
	from, err := Open(filepath.Join(dir, "align64-f16.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	right, err := Open(filepath.Join(dir, "align64-right-Q4_0.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer right.Close()
	// What quantizing does to the metadata: two keys move to the end.
	h := from.Header()
	h.KeepDims = false
	h.KVs.SetLast("general.quantization_version", Of(uint32(2)))
	h.KVs.SetLast("general.file_type", Of(uint32(2)))
	l, err := NewLayout(h, specs(right.Tensors()), layout.Options{Name: "q.gguf"})
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(filepath.Join(dir, "align64-right-Q4_0.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	if got := assemble(t, l, right.Tensors())["q.gguf"]; !bytes.Equal(got, want) {
		t.Errorf("%d bytes differ from the %d expected", len(got), len(want))
	}
	for i, p := range l.Items {
		if p.Off%64 != 0 || p.Off != right.Tensors()[i].Off {
			t.Errorf("%s at %d", right.Tensors()[i].Name, p.Off)
		}
	}
}

// Whole files the reference converter wrote: big-endian, and split.
func TestConverterVariants(t *testing.T) {
	dir := corpus.Path(t, "hf2gguf")
	const model = "Tiny-Llama-2-7b-chat-hf"
	var variants []struct {
		Case, OutType string
		Options       []string
		Files         map[string]struct{ SHA256 string }
	}
	corpus.ReadJSON(t, filepath.Join(dir, "variants.json"), &variants)
	m, err := Open(filepath.Join(dir, "cases", model, "golden.q8_0.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	half := halfPrecision(t, filepath.Join(dir, "cases", model))
	checked := 0
	for _, v := range variants {
		if v.Case != model {
			continue
		}
		h, ts, opt := m.Header(), half, layout.Options{Name: "m.gguf"}
		h.KVs.Set("general.file_type", Of(uint32(1)))
		switch strings.Join(v.Options, " ") {
		case "--bigendian":
			h, ts = m.Header(), m.Tensors()
			h.BigEndian = true
		case "--split-max-tensors 8":
			h.Shards = []int{8, 8, 5}
		case "--split-max-tensors 8 --no-tensor-first-split":
			h.Shards = []int{0, 8, 8, 5}
		case "--split-max-tensors 100":
			h.Shards = []int{21}
		case "--split-max-size 100K":
			opt.MaxShardSize = 100_000
		default:
			continue
		}
		l, err := NewLayout(h, specs(ts), opt)
		if err != nil {
			t.Fatal(err)
		}
		// The converter turns plain numbers only; it leaves the scales of the Q8_0 blocks as they are,
		// which a big-endian machine would read wrongly. Everything else must agree.
		for i := range l.Items {
			if ts[i].DType == tensor.Q8_0 {
				l.Items[i].Swap = nil
			}
		}
		got := map[string]string{}
		for name, b := range assemble(t, l, ts) {
			got[name] = hash(b)
		}
		want := map[string]string{}
		for name, f := range v.Files {
			want[name] = f.SHA256
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%v: %s", v.Options, d)
		}
		checked += len(got)
	}
	if checked != 12 {
		t.Errorf("%d files were compared", checked)
	}
}

// halfPrecision makes the F16 conversion of a corpus model in memory: weights as float16, the rows of
// q and k reordered, vectors as float32. A tensor's hash in the case tells which is right.
func halfPrecision(t *testing.T, dir string) []tensor.Tensor {
	t.Helper()
	var expected struct {
		Outputs map[string]struct{ Tensors [][]any }
	}
	corpus.ReadJSON(t, filepath.Join(dir, "expected.json"), &expected)
	raw, err := os.ReadFile(filepath.Join(dir, "input", "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	n := binary.LittleEndian.Uint64(raw)
	var entries map[string]struct {
		DType   string
		Shape   []int
		Offsets []int `json:"data_offsets"`
	}
	if err := json.Unmarshal(raw[8:8+n], &entries); err != nil {
		t.Fatal(err)
	}
	made := map[string][]byte{}
	delete(entries, "__metadata__")
	for _, e := range entries {
		data := raw[8+n:][e.Offsets[0]:e.Offsets[1]]
		var values []float32
		switch e.DType {
		case "BF16":
			for ; len(data) > 0; data = data[2:] {
				values = append(values, math.Float32frombits(uint32(binary.LittleEndian.Uint16(data))<<16))
			}
		case "F32":
			for ; len(data) > 0; data = data[4:] {
				values = append(values, math.Float32frombits(binary.LittleEndian.Uint32(data)))
			}
		default:
			continue
		}
		cols := e.Shape[len(e.Shape)-1]
		const heads = 4
		for _, permute := range []bool{false, true} {
			var half, full []byte
			per := len(values) / cols / heads
			if permute && (per == 0 || per%2 != 0) {
				continue
			}
			for i := range values {
				k := i
				if permute {
					row := i / cols
					at := row % per
					k = (row-at+at%2*(per/2)+at/2)*cols + i%cols
				}
				half = binary.LittleEndian.AppendUint16(half, float16.Fromfloat32(values[k]).Bits())
				full = binary.LittleEndian.AppendUint32(full, math.Float32bits(values[k]))
			}
			made[hash(half)], made[hash(full)] = half, full
		}
	}
	var ts []tensor.Tensor
	for _, x := range expected.Outputs["f16"].Tensors {
		data := made[x[4].(string)]
		if data == nil {
			t.Fatalf("no data for %v", x[0])
		}
		d, _ := tensor.ParseDType(x[2].(string))
		s := tensor.Spec{Name: x[0].(string), DType: d}
		for _, ne := range slices.Backward(x[1].([]any)) {
			s.Shape = append(s.Shape, int64(ne.(float64)))
		}
		ts = append(ts, tensor.Tensor{Spec: s, Src: bytes.NewReader(data), Size: int64(len(data))})
	}
	return ts
}
