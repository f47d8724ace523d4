package quant

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/tensor"
)

// A goldenCase is one entry of the manifest of the ggml corpus.
type goldenCase struct {
	ID, Type, Input, Mode  string
	Rows                   int     `json:"n_rows"`
	RowLen                 int     `json:"row_len"`
	Matrix                 *string `json:"imatrix"`
	Valid                  bool
	Quantized, Dequantized string
	QuantizedOffset        int `json:"quantized_offset"`
	QuantizedBytes         int `json:"quantized_bytes"`
	DequantizedOffset      int `json:"dequantized_offset"`
	DequantizedBytes       int `json:"dequantized_bytes"`
}

// TestCorpus decodes every golden of the reference, and encodes its input with the importance matrix
// the golden was made with: all bits must agree.
func TestCorpus(t *testing.T) {
	root := corpus.Path(t, "ggml")
	files := map[string][]byte{}
	read := func(name string) []byte {
		if files[name] == nil {
			data, err := os.ReadFile(filepath.Join(root, name))
			if err != nil {
				t.Fatal(err)
			}
			files[name] = data
		}
		return files[name]
	}
	var manifest struct{ Cases []goldenCase }
	if err := json.Unmarshal(read("manifest.json"), &manifest); err != nil {
		t.Fatal(err)
	}
	decoded, encoded, weighed := map[tensor.DType]int{}, map[tensor.DType]int{}, map[tensor.DType]int{}
	for _, c := range manifest.Cases {
		dtype, ok := tensor.ParseDType(c.Type)
		codec, has := Of(dtype)
		if !ok || !has {
			t.Errorf("%s: no codec", c.ID)
			continue
		}
		q := read(c.Quantized)[c.QuantizedOffset:][:c.QuantizedBytes]
		y := make([]float32, c.Rows*c.RowLen)
		codec.Decode(y, q)
		sameFloats(t, c.ID, y, floats(read(c.Dequantized)[c.DequantizedOffset:][:c.DequantizedBytes]))
		decoded[dtype]++
		if !codec.CanEncode() || c.Mode != "chunk" {
			continue
		}
		var importance []float32
		if c.Matrix != nil {
			importance = floats(read(*c.Matrix))
			weighed[dtype]++
		} else {
			encoded[dtype]++
		}
		checkEncode(t, c, codec, floats(read(c.Input)), importance, q)
	}
	if len(decoded) != 27 {
		t.Errorf("%d types decoded, want 27", len(decoded))
	}
	t.Logf("decoded %v", decoded)
	t.Logf("encoded %v", encoded)
	t.Logf("encoded with importance %v", weighed)
}

func checkEncode(t *testing.T, c goldenCase, codec Codec, x, importance []float32, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	err := codec.EncodeRows(got, x, c.RowLen, importance)
	if !c.Valid && codec.DType().IsBlock() {
		if f := finding.Of(err); f == nil || f.Code != "quant.scale_overflow" {
			t.Errorf("%s: scales overflow, but the error is %v", c.ID, err)
		}
		return
	}
	if err != nil {
		t.Errorf("%s: %v", c.ID, err)
		return
	}
	size := codec.DType().BlockBytes()
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("%s: block %d encodes to\n%x, want\n%x", c.ID, i/size, got[i/size*size:][:size], want[i/size*size:][:size])
			return
		}
	}
	stride := len(want) / c.Rows
	for r := range c.Rows {
		row := make([]byte, stride)
		if err := codec.EncodeRows(row, x[r*c.RowLen:][:c.RowLen], c.RowLen, importance); err != nil || string(row) != string(want[r*stride:][:stride]) {
			t.Errorf("%s: row %d on its own differs (%v)", c.ID, r, err)
		}
	}
}

func sameFloats(t *testing.T, what string, got, want []float32) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d values, want %d", what, len(got), len(want))
		return
	}
	for i := range want {
		if math.Float32bits(got[i]) != math.Float32bits(want[i]) && (got[i] == got[i] || want[i] == want[i]) {
			t.Errorf("%s: element %d decodes to %v, want %v", what, i, got[i], want[i])
			return
		}
	}
}

func floats(b []byte) []float32 {
	f := make([]float32, len(b)/4)
	for i := range f {
		f[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return f
}

// TestGoldenBlocks is the small part of the corpus that lies beside the code: 256 normal values in
// each type. Each file holds the reference's bytes, then the floats they decode to.
func TestGoldenBlocks(t *testing.T) {
	input, err := os.ReadFile("testdata/ggml/normal.f32")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("testdata/ggml/*.bin")
	if err != nil || len(files) != 27 {
		t.Fatalf("%d golden files (%v), want 27", len(files), err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		base := strings.TrimSuffix(filepath.Base(name), ".bin")
		dtype, _ := tensor.ParseDType(base)
		codec, ok := Of(dtype)
		if !ok {
			t.Errorf("no codec for %s", base)
			continue
		}
		q, want := data[:len(data)-1024], floats(data[len(data)-1024:])
		y := make([]float32, 256)
		codec.Decode(y, q)
		sameFloats(t, base, y, want)
		if codec.CanEncode() && !codec.NeedsImportance() {
			checkEncode(t, goldenCase{ID: base, Rows: 1, RowLen: 256, Valid: true}, codec, floats(input), nil, q)
		}
	}
}

// TestGoldenRows encodes the other goldens that lie beside the code: normal values whose columns have
// importances, and values that are hard on a search.
func TestGoldenRows(t *testing.T) {
	for _, set := range []struct {
		folder, input, importance string
		types                     int
	}{
		{"weighed", "normal", "importance", 19}, {"hard", "hard", "", 11},
	} {
		x := floats(mustRead(t, "testdata/ggml/"+set.input+".f32"))
		var importance []float32
		if set.importance != "" {
			importance = floats(mustRead(t, "testdata/ggml/"+set.importance+".f32"))
		}
		files, err := filepath.Glob("testdata/ggml/" + set.folder + "/*.bin")
		if err != nil || len(files) != set.types {
			t.Fatalf("%d golden files (%v), want %d", len(files), err, set.types)
		}
		for _, name := range files {
			base := strings.TrimSuffix(filepath.Base(name), ".bin")
			dtype, _ := tensor.ParseDType(base)
			codec := mustOf(t, dtype)
			if codec.CanEncode() {
				c := goldenCase{ID: set.folder + "/" + base, Rows: len(x) / 256, RowLen: 256, Valid: true}
				checkEncode(t, c, codec, x, importance, mustRead(t, name))
			}
		}
	}
}
