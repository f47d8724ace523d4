package onnx

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/tensor"
)

// tensorOf reads one TensorProto, as it stands in the .pb files of the node tests.
func tensorOf(t testing.TB, b []byte) (*Model, error) {
	t.Helper()
	p := &parser{source: &source{name: "t.pb", r: bytes.NewReader(b), size: int64(len(b))}, files: map[string]*dataFile{}, noted: map[string]int{}}
	m := &Model{src: p.source, root: p.root()}
	r, err := p.tensor([]*message{m.root}, 0, "t")
	if err != nil {
		return nil, err
	}
	m.records = append(m.records, r)
	m.graph = &Graph{}
	return m, m.list(p)
}

// again encodes a tensor anew with raw_data.
func again(t testing.TB, m *Model) []byte {
	t.Helper()
	data, err := m.tensors[0].Read()
	if err != nil {
		t.Fatal(err)
	}
	cs, err := m.src.encodeTensor(m.records[0], tensorForm{dataType: m.records[0].dataType, data: literal(data)})
	if err != nil {
		t.Fatal(err)
	}
	var b []byte
	for _, c := range cs {
		part := c.lit
		if c.src != nil {
			part = make([]byte, c.n)
			if _, err := c.src.ReadAt(part, c.off); err != nil {
				t.Fatal(err)
			}
		}
		b = append(b, part...)
	}
	return b
}

// The typed fields of every data type, as the onnx package writes them, read as the raw_data that it
// gives for the same values.
func TestTypedData(t *testing.T) {
	b, err := os.ReadFile("testdata/typed.json")
	if err != nil {
		t.Fatal(err)
	}
	var golden struct {
		Cases []struct{ Type, Proto, Raw string }
	}
	if err := json.Unmarshal(b, &golden); err != nil {
		t.Fatal(err)
	}
	if len(golden.Cases) != len(elementTypes)-1 {
		t.Fatalf("%d cases for %d types", len(golden.Cases), len(elementTypes)-1)
	}
	for i, c := range golden.Cases {
		proto, _ := hex.DecodeString(c.Proto)
		m, err := tensorOf(t, proto)
		if err != nil {
			t.Errorf("%s: %v", c.Type, err)
			continue
		}
		if got := DataType(m.tensors[0].DType); got != int64(i+1) {
			t.Errorf("%s: data type %d", c.Type, got)
		}
		data, err := m.tensors[0].Read()
		if got := hex.EncodeToString(data); err != nil || got != c.Raw {
			t.Errorf("%s: reads %s, %v, want %s", c.Type, got, err, c.Raw)
		}
		if c.Type == "STRING" {
			if s, err := m.Strings(0); err != nil || len(s) != 2 || s[0] != "hi" || s[1] != "\xff" {
				t.Errorf("strings %q, %v", s, err)
			}
			continue
		}
		if m, err = tensorOf(t, again(t, m)); err != nil {
			t.Errorf("%s: encoded again: %v", c.Type, err)
			continue
		}
		data, err = m.tensors[0].Read()
		if got := hex.EncodeToString(data); err != nil || got != c.Raw || m.records[0].store != storeRaw {
			t.Errorf("%s: encoded again it reads %s, %v, want %s", c.Type, got, err, c.Raw)
		}
	}
}

// Packed, unpacked, in several pieces and with long varints: all the same numbers.
func TestEncodingsOfTypedData(t *testing.T) {
	long := func(v byte) []byte { return []byte{v | 0x80, 0x80, 0x00} }
	for name, c := range map[string]struct {
		proto []byte
		store storage
	}{
		"packed":     {join(num(1, 3), num(2, 6), str(5, []byte{1, 2, 3})), storeTyped},
		"unpacked":   {join(num(1, 3), num(2, 6), num(5, 1), num(5, 2), num(5, 3)), storeTyped},
		"mixed":      {join(num(5, 1), num(1, 3), str(5, []byte{2, 3}), num(2, 6)), storeTyped},
		"long":       {join(num(1, 3), num(2, 6), str(5, long(1), long(2), long(3))), storeTyped},
		"packed dim": {join(str(1, []byte{3}), num(2, 6), str(5, []byte{1, 2, 3})), storeTyped},
	} {
		m, err := tensorOf(t, c.proto)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		data, err := m.tensors[0].Read()
		if got := hex.EncodeToString(data); err != nil || got != "010000000200000003000000" || m.records[0].store != c.store {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	two := f32s(2)
	for name, proto := range map[string][]byte{
		"packed":   join(num(1, 2), num(2, 1), str(4, two)),
		"pieces":   join(num(1, 2), num(2, 1), str(4, two[:4]), str(4, two[4:])),
		"unpacked": join(num(1, 2), num(2, 1), []byte{4<<3 | 5}, two[:4], []byte{4<<3 | 5}, two[4:]),
	} {
		m, err := tensorOf(t, proto)
		if err != nil {
			t.Fatal(err)
		}
		data, err := m.tensors[0].Read()
		if err != nil || !bytes.Equal(data, two) || (m.records[0].store == storePacked) != (name == "packed") {
			t.Errorf("%s: %x, %v", name, data, err)
		}
	}
}

func TestNodeTestTensors(t *testing.T) {
	dir := corpus.Path(t, "onnx/onnx-node-v1.22.0")
	tensors, others := 0, 0
	types := map[tensor.DType]bool{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".pb") {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		m, err := tensorOf(t, b)
		if err != nil {
			// The sequence and optional tests hold SequenceProto and OptionalProto.
			others++
			if name := filepath.Base(filepath.Dir(filepath.Dir(path))); !strings.Contains(name, "seq") && !strings.Contains(name, "_opt") {
				t.Errorf("%s: %v", path, err)
			}
			if finding.Of(err) == nil {
				t.Errorf("%s: no finding: %v", path, err)
			}
			return nil
		}
		tensors++
		a := m.tensors[0]
		types[a.DType] = true
		data, err := a.Read()
		if err != nil {
			t.Errorf("%s: %v", path, err)
			return nil
		}
		if a.DType == tensor.String {
			return nil
		}
		out, err := tensorOf(t, again(t, m))
		if err != nil {
			t.Errorf("%s: encoded again: %v", path, err)
			return nil
		}
		o := out.tensors[0]
		got, err := o.Read()
		if err != nil || o.DType != a.DType || !o.Shape.Equal(a.Shape) || !bytes.Equal(got, data) || out.records[0].own != m.records[0].own {
			t.Errorf("%s: encoded again: %v, %v", path, o.Spec, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if tensors < 480 || others > 12 || len(types) < 18 {
		t.Errorf("%d tensors of %d types, %d others", tensors, len(types), others)
	}
	t.Logf("%d tensors of %d types, %d others", tensors, len(types), others)
}
