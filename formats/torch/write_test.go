package torch

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
)

// A pickler writes pickles for tests, opcode by opcode.
type pickler struct{ bytes.Buffer }

func (p *pickler) op(s string) *pickler { p.WriteString(s); return p }

func (p *pickler) str(s string) *pickler {
	return p.op("X" + string(binary.LittleEndian.AppendUint32(nil, uint32(len(s)))) + s)
}

func (p *pickler) num(n int64) *pickler {
	return p.op("\x8a\x08" + string(binary.LittleEndian.AppendUint64(nil, uint64(n))))
}

func (p *pickler) nums(n ...int64) *pickler {
	p.op("(")
	for _, x := range n {
		p.num(x)
	}
	return p.op("t")
}

func (p *pickler) global(name string) *pickler {
	i := strings.LastIndexByte(name, '.')
	return p.op("c" + name[:i] + "\n" + name[i+1:] + "\n")
}

func (p *pickler) emptyDict() *pickler { return p.global(orderedDict).op(")R") }

func (p *pickler) storage(class, key string, n int64) *pickler {
	return p.op("(").str("storage").global(class).str(key).str("cpu").num(n).op("tQ")
}

// tensor is a float32 tensor of storage key.
func (p *pickler) tensor(key string, elements, offset int64, shape, strides []int64) *pickler {
	return p.global(rebuildV2).op("(").storage("torch.FloatStorage", key, elements).num(offset).nums(shape...).nums(strides...).
		op("\x89").emptyDict().op("tR")
}

// stateDict wraps items (keys and values) into a whole pickle.
func stateDict(items func(p *pickler)) string {
	p := &pickler{}
	p.op("\x80\x02").emptyDict().op("(")
	items(p)
	return p.op("u.").String()
}

// archived makes a checkpoint of a pickle and storages.
func archived(t testing.TB, program string, storages map[string][]byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := zip.NewWriter(&out)
	add := func(name string, data []byte) {
		f, err := w.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store})
		if err == nil {
			_, err = f.Write(data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	add("model/data.pkl", []byte(program))
	add("model/byteorder", []byte("little"))
	for i := range len(storages) {
		key := fmt.Sprint(i)
		add("model/data/"+key, storages[key])
	}
	add("model/version", []byte("3\n"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// legacyFile makes a checkpoint in the layout before torch 1.6 with float32 storages.
func legacyFile(program string, keys []string, storages map[string][]byte) []byte {
	p := &pickler{}
	p.op("\x80\x02\x8a\x0a" + string(legacyMagic) + ".")
	p.op("\x80\x02").num(legacyProtocol).op(".")
	p.op("\x80\x02}(").str("little_endian").op("\x88u.")
	p.op(program)
	p.op("\x80\x02](")
	for _, k := range keys {
		p.str(k)
	}
	p.op("e.")
	for _, k := range keys {
		p.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(storages[k])/4)))
		p.Write(storages[k])
	}
	return p.Bytes()
}

// load opens a checkpoint in memory.
func load(data []byte) (*Model, error) {
	m := &Model{path: "test.pt", file: bytes.NewReader(data)}
	return m, m.load(int64(len(data)))
}

// floatBytes are n float32 0, 1, 2 … as stored.
func floatBytes(n int) []byte {
	var b []byte
	for i := range n {
		b, _ = binary.Append(b, binary.LittleEndian, float32(i))
	}
	return b
}
