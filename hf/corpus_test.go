package hf

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/hf/metadata"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// named is a folder with a case's input under the case's own name, which the metadata depends on.
func named(t testing.TB, dir string) string {
	t.Helper()
	link := filepath.Join(t.TempDir(), filepath.Base(dir))
	if err := os.Symlink(filepath.Join(dir, "input"), link); err != nil {
		t.Skip(err)
	}
	return link
}

// anyPre is given where the key-values are of no interest.
const anyPre = "gpt-2"

type golden struct {
	Outputs map[string]goldenOutput `json:"outputs"`
}

type goldenOutput struct {
	Size      int64   `json:"size"`
	SHA256    string  `json:"sha256"`
	DataStart int64   `json:"data_start"`
	FileType  uint32  `json:"file_type"`
	Tensors   [][]any `json:"tensors"` // name, ne, type, offset, SHA-256
}

var outTypes = map[string]tensor.DType{"f32": tensor.F32, "f16": tensor.F16, "bf16": tensor.BF16, "q8_0": tensor.Q8_0, "auto": tensor.Invalid}

// TestTensors compares name, shape, type and bytes of every tensor of every golden conversion.
func TestTensors(t *testing.T) {
	cases, err := filepath.Glob(corpus.Path(t, "hf2gguf", "cases", "*"))
	if err != nil || len(cases) == 0 {
		t.Fatal("no cases", err)
	}
	files, tensors := 0, 0
	for _, dir := range cases {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			var want golden
			corpus.ReadJSON(t, filepath.Join(dir, "expected.json"), &want)
			for name, out := range want.Outputs {
				d, ok := outTypes[name]
				if !ok {
					t.Fatalf("output type %q is not known", name)
				}
				m, err := Open(named(t, dir), Options{DType: d, Metadata: metadata.Options{Pre: anyPre}})
				if err != nil {
					t.Fatal(err)
				}
				defer m.Close()
				files++
				if len(m.Tensors()) != len(out.Tensors) {
					t.Errorf("%s: %d tensors, want %d", name, len(m.Tensors()), len(out.Tensors))
				}
				for i, w := range out.Tensors {
					if i >= len(m.Tensors()) {
						break
					}
					got := m.Tensors()[i]
					var shape tensor.Shape
					for _, n := range w[1].([]any) {
						shape = append(shape, int64(n.(float64)))
					}
					slices.Reverse(shape)
					typ := m.Type(got.Spec)
					if got.Name != w[0] || !slices.Equal(got.Shape, shape) || typ.String() != w[2] {
						t.Errorf("%s: tensor %d is %s %v %s, want %v %v %v", name, i, got.Name, got.Shape, typ, w[0], shape, w[2])
						continue
					}
					data := encoded(t, &got, typ)
					if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != w[4] {
						t.Errorf("%s: the data of %s (%s%v as %s) differ", name, got.Name, got.DType, got.Shape, typ)
					}
					tensors++
				}
				if ft := fileType(m.Tensors(), m.DType()); ft != out.FileType {
					t.Errorf("%s: file type %d, want %d", name, ft, out.FileType)
				}
			}
		})
	}
	t.Logf("%d files, %d tensors equal to the converter's", files, tensors)
}

// encoded is a tensor's data in another type.
func encoded(t testing.TB, x *tensor.Tensor, typ tensor.DType) []byte {
	t.Helper()
	data, err := x.Read()
	if err != nil {
		t.Fatal(err)
	}
	if typ == x.DType {
		return data
	}
	n, err := x.Shape.Elements()
	if err != nil {
		t.Fatal(err)
	}
	size, err := typ.Bytes(n)
	if err != nil {
		t.Fatal(err)
	}
	from, _ := quant.Of(x.DType)
	to, _ := quant.Of(typ)
	w, out := make([]float32, n), make([]byte, size)
	from.Decode(w, data)
	if err := to.Encode(out, w); err != nil {
		t.Fatal(err)
	}
	return out
}
