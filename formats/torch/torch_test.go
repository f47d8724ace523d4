package torch

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// contents reads all tensors as float32 values under their names.
func contents(t *testing.T, m *Model) map[string][]float32 {
	t.Helper()
	all := map[string][]float32{}
	for _, x := range m.Tensors() {
		data, err := x.Read()
		if err != nil {
			t.Fatal(err)
		}
		f := make([]float32, len(data)/4)
		if err := binary.Read(bytes.NewReader(data), binary.LittleEndian, f); err != nil {
			t.Fatal(err)
		}
		all[x.Name+" "+x.Shape.String()] = f
	}
	return all
}

func TestStateDict(t *testing.T) {
	program := stateDict(func(p *pickler) {
		p.str("plain").tensor("0", 6, 0, []int64{2, 3}, []int64{3, 1})
		p.str("transposed").tensor("0", 6, 0, []int64{3, 2}, []int64{1, 3})
		p.str("column").tensor("0", 6, 1, []int64{2}, []int64{3})
		p.str("expanded").tensor("1", 2, 1, []int64{3, 2}, []int64{0, 0})
		p.str("scalar").tensor("1", 2, 1, nil, nil)
		p.str("empty").tensor("1", 2, 2, []int64{0, 7}, []int64{7, 1})
		p.str("odd strides of ones").tensor("0", 6, 2, []int64{1, 3, 1}, []int64{77, 1, 5})
		p.str("parameter").global(parameter).op("(").tensor("1", 2, 0, []int64{2}, []int64{1}).op("\x88").emptyDict().op("tR")
		p.str("untyped").global(rebuildV3).op("(").storage("torch.storage.UntypedStorage", "2", 8).num(1).nums(1).nums(1).
			op("\x89").emptyDict().global("torch.float32").op("tR")
	})
	storages := map[string][]byte{"0": floatBytes(6), "1": floatBytes(2), "2": floatBytes(2)}
	want := map[string][]float32{
		"plain [2, 3]": {0, 1, 2, 3, 4, 5}, "transposed [3, 2]": {0, 3, 1, 4, 2, 5}, "column [2]": {1, 4},
		"expanded [3, 2]": {1, 1, 1, 1, 1, 1}, "scalar []": {1}, "empty [0, 7]": {},
		"odd strides of ones [1, 3, 1]": {2, 3, 4}, "parameter [2]": {0, 1}, "untyped [1]": {1},
	}
	m, err := load(archived(t, program, storages))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, contents(t, m)); d != "" {
		t.Error(d)
	}
	if len(m.Findings()) > 0 {
		t.Errorf("findings %v", m.Findings())
	}
	first := m.Tensors()[0]
	if first.Name != "plain" || first.DType != tensor.F32 || m.Tensors()[8].Name != "untyped" {
		t.Errorf("tensors are not in the order of the state dict: %v", m.Tensors())
	}
}

func TestLegacy(t *testing.T) {
	program := stateDict(func(p *pickler) {
		p.str("a").tensor("x", 6, 1, []int64{2, 2}, []int64{2, 1})
		p.str("b").tensor("y", 3, 0, []int64{3}, []int64{1})
	})
	data := legacyFile(program, []string{"y", "x"}, map[string][]byte{"x": floatBytes(6), "y": floatBytes(3)})
	m, err := load(data)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string][]float32{"a [2, 2]": {1, 2, 3, 4}, "b [3]": {0, 1, 2}}, contents(t, m)); d != "" {
		t.Error(d)
	}
	for n := range data {
		if _, err := load(data[:n]); finding.Of(err) == nil {
			t.Fatalf("the first %d of %d bytes give %v", n, len(data), err)
		}
	}
	if _, err := load(append(data, 0)); finding.Of(err) == nil || finding.Of(err).Code != "container.trailing_bytes" {
		t.Errorf("a byte after the end gives %v", err)
	}
}

// A part of a storage, as torch before 0.4 wrote it, begins at its own offset.
func TestLegacyParts(t *testing.T) {
	program := stateDict(func(p *pickler) {
		p.str("w").global(rebuildV2).op("((").str("storage").global("torch.FloatStorage").str("k").str("cpu").num(6).
			op("(").str("v").num(2).num(3).op("ttQ").num(1).nums(2).nums(1).op("\x89").emptyDict().op("tR")
	})
	m, err := load(legacyFile(program, []string{"k"}, map[string][]byte{"k": floatBytes(6)}))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string][]float32{"w [2]": {3, 4}}, contents(t, m)); d != "" {
		t.Error(d)
	}
	if len(m.Findings()) != 1 || m.Findings()[0].Code != "container.legacy_view" {
		t.Errorf("findings %v", m.Findings())
	}
}

func TestWrappedStateDict(t *testing.T) {
	weight := func(p *pickler) { p.tensor("0", 1, 0, []int64{1}, []int64{1}) }
	for _, c := range []struct {
		name  string
		items func(p *pickler)
		want  []string
		aside string
	}{
		{"nested", func(p *pickler) {
			p.str("encoder").op("}").str("w")
			weight(p)
			p.op("s")
		}, []string{"encoder.w"}, ""},
		{"checkpoint", func(p *pickler) {
			p.str("epoch").num(3).str("state_dict").op("}").str("w")
			weight(p)
			p.op("s").str("optimizer").op("}").str("m")
			weight(p)
			p.op("s")
		}, []string{"w"}, `"epoch", "optimizer"`},
		{"tensor called model", func(p *pickler) {
			p.str("model")
			weight(p)
			p.str("note").str("text")
		}, []string{"model"}, `"note"`},
		{"numbered", func(p *pickler) {
			p.str("layers").op("}").num(7)
			weight(p)
			p.op("s")
		}, []string{"layers.7"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := load(archived(t, stateDict(c.items), map[string][]byte{"0": floatBytes(1)}))
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, x := range m.Tensors() {
				names = append(names, x.Name)
			}
			if d := cmp.Diff(c.want, names); d != "" {
				t.Error(d)
			}
			aside := ""
			for _, f := range m.Findings() {
				if f.Level != finding.Info {
					t.Errorf("finding %v", f)
				}
				_, aside, _ = strings.Cut(f.Message, "left aside: ")
			}
			if aside != c.aside {
				t.Errorf("left aside %s, want %s", aside, c.aside)
			}
		})
	}
}

// TestRefusals are programs that a reader must not follow; the corpus has many more.
func TestRefusals(t *testing.T) {
	one := func(p *pickler) { p.tensor("0", 4, 0, []int64{4}, []int64{1}) }
	build := func(f func(p *pickler)) string {
		p := &pickler{}
		p.op("\x80\x02")
		f(p)
		return p.op(".").String()
	}
	for name, c := range map[string]struct{ program, reason string }{
		"global":             {build(func(p *pickler) { p.global("os.system").str("true").op("\x85R") }), "forbidden_global"},
		"global never used":  {build(func(p *pickler) { p.global("os.system").op("0").emptyDict() }), "forbidden_global"},
		"stack global":       {build(func(p *pickler) { p.str("os").str("system").op("\x93") }), "forbidden_global"},
		"instance":           {build(func(p *pickler) { p.op("(ios\nsystem\n") }), "forbidden_global"},
		"python 2 name":      {build(func(p *pickler) { p.global("__builtin__.set") }), "forbidden_global"},
		"call of a class":    {build(func(p *pickler) { p.global("torch.FloatStorage").op(")R") }), "forbidden_call"},
		"call of a value":    {build(func(p *pickler) { p.str("x").op(")R") }), "forbidden_call"},
		"attributes":         {build(func(p *pickler) { one(p); p.op("}b") }), "bad_target"},
		"append to a tuple":  {build(func(p *pickler) { p.op(")Na") }), "bad_target"},
		"list as key":        {build(func(p *pickler) { p.op("}]Ns") }), "bad_key"},
		"memo index":         {build(func(p *pickler) { p.op("}r\xff\xff\xff\xff") }), "bad_memo"},
		"memo empty":         {build(func(p *pickler) { p.op("h\x01") }), "bad_memo"},
		"two values":         {build(func(p *pickler) { p.op("NN") }), "stack_leftover"},
		"value below a mark": {build(func(p *pickler) { p.op("N(0R") }), "stack_underflow"},
		"numbers as keys":    {build(func(p *pickler) { p.op("}").num(1); one(p); p.op("s") }), "not_a_state_dict"},
		"no tensor":          {stateDict(func(p *pickler) { p.str("a").num(1) }), "not_a_state_dict"},
		"dict in itself":     {build(func(p *pickler) { p.op("}q\x00").str("a").op("h\x00s") }), "not_a_state_dict"},
		"odd items":          {build(func(p *pickler) { p.op("}(Nu") }), "stack_underflow"},
		"key twice, nested": {stateDict(func(p *pickler) {
			p.str("a.b")
			one(p)
			p.str("a").op("}").str("b")
			one(p)
			p.op("s")
		}), "duplicate_key"},
		"too far":       {stateDict(func(p *pickler) { p.str("a").tensor("0", 4, 1, []int64{4}, []int64{1}) }), "out_of_bounds"},
		"stride wraps":  {stateDict(func(p *pickler) { p.str("a").tensor("0", 4, 0, []int64{3, 3}, []int64{1 << 62, 1 << 62}) }), "overflow"},
		"product wraps": {stateDict(func(p *pickler) { p.str("a").tensor("0", 4, 0, []int64{1 << 32, 1 << 32}, []int64{0, 0}) }), "overflow"},
		"amplified":     {stateDict(func(p *pickler) { p.str("a").tensor("0", 4, 0, []int64{1 << 40}, []int64{0}) }), "amplification"},
		"other type": {stateDict(func(p *pickler) {
			p.str("a")
			one(p)
			p.str("b").global(rebuildV2).op("(").storage("torch.IntStorage", "0", 4).num(0).nums(1).nums(1).op("\x89").emptyDict().op("tR")
		}), "dtype_conflict"},
		"typed as another": {stateDict(func(p *pickler) {
			p.str("a").global(rebuildV3).op("(").storage("torch.FloatStorage", "0", 4).num(0).nums(1).nums(1).op("\x89").emptyDict().
				global("torch.int32").op("tR")
		}), "dtype_conflict"},
		"key with a path": {stateDict(func(p *pickler) { p.str("a").tensor("../0", 4, 0, []int64{4}, []int64{1}) }), "bad_storage_key"},
		"no such storage": {stateDict(func(p *pickler) { p.str("a").tensor("9", 4, 0, []int64{4}, []int64{1}) }), "missing_storage"},
		"storage too big": {stateDict(func(p *pickler) { p.str("a").tensor("0", 5, 0, []int64{4}, []int64{1}) }), "size_mismatch"},
		"tuples in tuples": {build(func(p *pickler) {
			p.op(")" + strings.Repeat("\x85", 100))
		}), "nesting"},
		"second pickle": {stateDict(func(p *pickler) { p.str("a"); one(p) }) + "\x80\x02cos\nsystem\n)R.", "trailing_bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := load(archived(t, c.program, map[string][]byte{"0": floatBytes(4)}))
			if f := finding.Of(err); f == nil || f.Code != "container."+c.reason {
				t.Errorf("got %v, want %s", err, c.reason)
			}
		})
	}
}

// Values that share values have exponentially many paths; walking them must stay cheap.
func TestSharedValuesStayCheap(t *testing.T) {
	p := &pickler{}
	p.op("\x80\x02)q\x00")
	for i := range 60 {
		p.op(fmt.Sprintf("h%c\x86q%c", i, i+1)) // needs two values: the one on the stack and the one remembered
	}
	p.op(".")
	if _, err := load(archived(t, p.String(), nil)); finding.Of(err) == nil || finding.Of(err).Code != "container.not_a_state_dict" {
		t.Errorf("tuples: %v", err)
	}
	p = &pickler{}
	p.op("\x80\x02}q\x00")
	for i := range 60 {
		p.op(fmt.Sprintf("0}(")).str("a").op(fmt.Sprintf("h%c", i)).str("b").op(fmt.Sprintf("h%cuq%c", i, i+1))
	}
	p.op(".")
	if _, err := load(archived(t, p.String(), nil)); finding.Of(err) == nil || finding.Of(err).Code != "container.amplification" {
		t.Errorf("dicts: %v", err)
	}
}

func TestDamage(t *testing.T) {
	program := stateDict(func(p *pickler) { p.str("a").tensor("0", 64, 0, []int64{64}, []int64{1}) })
	good := archived(t, program, map[string][]byte{"0": floatBytes(64)})
	for n := range good {
		if _, err := load(good[:n]); finding.Of(err) == nil {
			t.Fatalf("the first %d of %d bytes give %v", n, len(good), err)
		}
	}
	at := bytes.Index(good, floatBytes(64))
	for _, flip := range []int{at, at + 100, at + 255} {
		bad := bytes.Clone(good)
		bad[flip] ^= 1
		m, err := load(bad)
		if err != nil {
			t.Fatal(err)
		}
		_, err = m.Tensors()[0].Read()
		if f := finding.Of(err); f == nil || f.Code != "container.bad_crc" {
			t.Errorf("a flipped bit at %d gives %v", flip, err)
		}
		if f := finding.Of(m.CheckData()); f == nil || f.Code != "container.bad_crc" {
			t.Errorf("CheckData misses a flipped bit at %d", flip)
		}
	}
	// Whatever byte is wrong: no panic, and no tensor that differs without an error.
	want, err := load(good)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := want.Tensors()[0].Read()
	if err != nil {
		t.Fatal(err)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 0x20
		m, err := load(bad)
		if err != nil {
			if finding.Of(err) == nil {
				t.Errorf("byte %d: %v is no finding", i, err)
			}
			continue
		}
		for _, x := range m.Tensors() {
			if data, err := x.Read(); err == nil && (!bytes.Equal(data, ref) || x.Name != "a") {
				t.Errorf("byte %d: a different tensor came out", i)
			}
		}
	}
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	program := stateDict(func(p *pickler) { p.str("a").tensor("0", 2, 0, []int64{2}, []int64{1}) })
	path := filepath.Join(dir, "model.pt")
	if err := os.WriteFile(path, archived(t, program, map[string][]byte{"0": floatBytes(2)}), 0o644); err != nil {
		t.Fatal(err)
	}
	m, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if m.Path() != path || m.Format() != "torch" || len(m.Tensors()) != 1 {
		t.Errorf("opened %s as %s with %d tensors", m.Path(), m.Format(), len(m.Tensors()))
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	args := filepath.Join(dir, "training_args.bin")
	if err := os.WriteFile(args, archived(t, "\x80\x02ctransformers.training_args\nTrainingArguments\n)\x81.", nil), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = Open(args)
	if f := finding.Of(err); f == nil || f.Code != "container.forbidden_global" || !strings.Contains(f.Hint, "arguments") ||
		!strings.Contains(err.Error(), "transformers.training_args.TrainingArguments") {
		t.Errorf("training arguments give %v", err)
	}
	for _, p := range []string{dir, filepath.Join(dir, "none")} {
		if _, err := Open(p); finding.Of(err) == nil {
			t.Errorf("%s gives %v", p, err)
		}
	}
}

// TestGather reads ranges of random views and compares them with a gather element by element.
func TestGather(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	data := make([]byte, 40000)
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	for range 400 {
		size := int64(1 << rng.IntN(4))
		v := &view{offset: int64(rng.IntN(20)), count: 1}
		span := int64(1)
		for range 1 + rng.IntN(4) {
			n := int64(1 + rng.IntN(6))
			stride := []int64{0, 1, span, int64(rng.IntN(9))}[rng.IntN(4)]
			v.shape, v.strides = append(v.shape, n), append(v.strides, stride)
			v.count *= n
			span += (n - 1) * stride
		}
		rng.Shuffle(len(v.shape), func(i, j int) {
			v.shape[i], v.shape[j] = v.shape[j], v.shape[i]
			v.strides[i], v.strides[j] = v.strides[j], v.strides[i]
		})
		var want []byte
		for i := range v.count {
			at, rest := v.offset, i
			for d := len(v.shape) - 1; d >= 0; d-- {
				at += rest % v.shape[d] * v.strides[d]
				rest /= v.shape[d]
			}
			want = append(want, data[at*size:][:size]...)
		}
		g := &gathered{src: bytes.NewReader(data), v: v, size: size}
		for range 10 {
			from := rng.IntN(len(want))
			got := make([]byte, 1+rng.IntN(len(want)-from))
			if n, err := g.ReadAt(got, int64(from)); n != len(got) || err != nil || !bytes.Equal(got, want[from:][:n]) {
				t.Fatalf("shape %v strides %v offset %d, %d bytes an element: bytes %d to %d are wrong (%v)",
					v.shape, v.strides, v.offset, size, from, from+len(got), err)
			}
		}
	}
}

// A transposed matrix far larger than the window reads its storage about once.
func TestGatherReadsOnce(t *testing.T) {
	const rows, cols = 512, 2048
	src := &counter{data: floatBytes(rows * cols)}
	v := &view{shape: tensor.Shape{cols, rows}, strides: []int64{1, cols}, count: rows * cols}
	got := make([]byte, rows*cols*4)
	if _, err := (&gathered{src: src, v: v, size: 4}).ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if src.read > 2*len(got) {
		t.Errorf("%d bytes were read for %d", src.read, len(got))
	}
	var f float32
	if _, err := binary.Decode(got[(1000*rows+77)*4:], binary.LittleEndian, &f); err != nil || f != 77*cols+1000 {
		t.Errorf("element [1000, 77] is %v (%v)", f, err)
	}
}

type counter struct {
	data []byte
	read int
}

func (c *counter) ReadAt(p []byte, off int64) (int, error) {
	n, err := bytes.NewReader(c.data).ReadAt(p, off)
	c.read += n
	return n, err
}

func FuzzLoad(f *testing.F) {
	program := stateDict(func(p *pickler) {
		p.str("a").tensor("0", 4, 0, []int64{2, 2}, []int64{1, 2})
		p.str("n").op("}").str("b").tensor("0", 4, 0, []int64{4}, []int64{1}).op("s")
	})
	f.Add(archived(f, program, map[string][]byte{"0": floatBytes(4)}))
	f.Add(legacyFile(program, []string{"0"}, map[string][]byte{"0": floatBytes(4)}))
	f.Add([]byte("\x80\x02cos\nsystem\n)R."))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := load(data)
		if err != nil {
			if finding.Of(err) == nil {
				t.Fatalf("%v is no finding", err)
			}
			return
		}
		for _, x := range m.Tensors() {
			if want, err := x.Bytes(); err != nil || want != x.Size {
				t.Fatalf("%s: size %d, want %d (%v)", x.Name, x.Size, want, err)
			}
			if x.Size <= 1<<20 {
				if _, err := x.Read(); err != nil && finding.Of(err) == nil {
					t.Fatalf("%s: %v", x.Name, err)
				}
			}
		}
	})
}

// FuzzPickle runs the interpreter alone, without an archive in the way.
func FuzzPickle(f *testing.F) {
	f.Add([]byte(stateDict(func(p *pickler) { p.str("a").tensor("0", 4, 0, []int64{2, 2}, []int64{1, 2}) })))
	f.Add([]byte("\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x01a\x94]\x94(K\x01G\x00\x00\x00\x00\x00\x00\x00\x00e."))
	f.Fuzz(func(t *testing.T, data []byte) {
		if name := suspect(bytes.NewReader(data), int64(len(data))); allowedGlobal(name) {
			t.Fatalf("%q is refused and allowed", name)
		}
		m := &Model{path: "test.pt", file: bytes.NewReader(data)}
		ss := &storages{byKey: map[string]*storage{}}
		a := &archive{file: m.file, path: m.path, size: int64(len(data))}
		v, err := m.runProgram(a, entry{name: "data.pkl", stored: int64(len(data)), size: int64(len(data)), crc: crc32.ChecksumIEEE(data)}, ss)
		if err == nil {
			err = m.collect(v)
		}
		if err != nil && finding.Of(err) == nil {
			t.Fatalf("%v is no finding", err)
		}
	})
}
