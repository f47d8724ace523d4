package merge_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// A folder is a model folder in the making.
type folder struct {
	specs []tensor.Spec
	data  [][]byte
}

func (f *folder) add(name string, d tensor.DType, b []byte, shape ...int64) {
	f.specs, f.data = append(f.specs, tensor.Spec{Name: name, DType: d, Shape: shape}), append(f.data, b)
}

func (f *folder) write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "model")
	out := safetensors.Output{Dir: true, Metadata: [][2]string{{"format", "pt"}}}
	for _, name := range []string{"config.json", "quantize_config.json", "tokenizer.json"} {
		if s, ok := files[name]; ok {
			out.Extra = append(out.Extra, safetensors.NewFile(name, []byte(s)))
		}
	}
	l, err := safetensors.NewLayout(f.specs, out, layout.Options{Name: "model"})
	if err != nil {
		t.Fatal(err)
	}
	w, err := layout.Create(dir, l, false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for i, b := range f.data {
		if err := w.WriteAt(i, b, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	return dir
}

func encode(t *testing.T, d tensor.DType, v []float32) []byte {
	t.Helper()
	c, _ := quant.Of(d)
	b := make([]byte, len(v)*d.BlockBytes())
	if err := c.Encode(b, v); err != nil {
		t.Fatal(err)
	}
	return b
}

// twins are the tiny llama quantized, its attention with GPTQ (4 bits, random order of groups) and its MLP
// with FP8 in blocks, and the same decoded by the formulas, in the types that the schemes decode to.
func twins(t *testing.T) (quantized, float string) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	var q, f folder
	for _, x := range open(t, filepath.Join(tiny, "base")).Tensors() {
		b, err := x.Read()
		if err != nil {
			t.Fatal(err)
		}
		stem := strings.TrimSuffix(x.Name, "weight")
		switch {
		case strings.Contains(x.Name, "_attn."):
			out, in := x.Shape[0], x.Shape[1]
			const size = 16
			groups := in / size
			packed, zeros, index := make([]byte, in/2*out), make([]byte, groups*out/2), make([]byte, 4*in)
			order := rng.Perm(int(in))
			scales := make([]float32, groups*out)
			for i := range scales {
				scales[i] = 0.001 + 0.01*rng.Float32()
			}
			scales = floats(t, tensor.F16, encode(t, tensor.F16, scales))
			w := make([]float32, in*out)
			for i := range in {
				g := int64(order[i]) / size
				binary.LittleEndian.PutUint32(index[4*i:], uint32(g))
				for o := range out {
					code, zero := int64(rng.IntN(16)), (o+3*g)%16 // a zero of o is stored as o − 1; 0 would wrap
					zero = max(zero, 1)
					packed[4*(i/8*out+o)+i%8/2] |= byte(code << (4 * (i % 2)))
					if i%size == 0 {
						for g := range groups {
							z := max((o+3*g)%16, 1) - 1
							at := 4*(g*out/8+o/8) + o%8/2
							zeros[at] = zeros[at]&^(15<<(4*(o%2))) | byte(z<<(4*(o%2)))
						}
					}
					w[o*in+i] = scales[g*out+o] * float32(code-zero)
				}
			}
			q.add(stem+"qweight", tensor.I32, packed, in/8, out)
			q.add(stem+"qzeros", tensor.I32, zeros, groups, out/8)
			q.add(stem+"scales", tensor.F16, encode(t, tensor.F16, scales), groups, out)
			q.add(stem+"g_idx", tensor.I32, index, in)
			f.add(x.Name, tensor.F16, encode(t, tensor.F16, w), out, in)
		case strings.Contains(x.Name, "mlp."):
			const block = 48 // does not divide: the last blocks are short
			out, in := x.Shape[0], x.Shape[1]
			rows, cols := (out+block-1)/block, (in+block-1)/block
			w, scales := floats(t, x.DType, b), make([]float32, rows*cols)
			for i, v := range w {
				s := &scales[int64(i)/in/block*cols+int64(i)%in/block]
				*s = max(*s, float32(math.Abs(float64(v)))/448)
			}
			for i := range w {
				w[i] /= scales[int64(i)/in/block*cols+int64(i)%in/block]
			}
			codes := encode(t, tensor.F8E4M3, w)
			for i, v := range floats(t, tensor.F8E4M3, codes) {
				w[i] = v * scales[int64(i)/in/block*cols+int64(i)%in/block]
			}
			q.add(x.Name, tensor.F8E4M3, codes, out, in)
			q.add(x.Name+"_scale_inv", tensor.F32, encode(t, tensor.F32, scales), rows, cols)
			f.add(x.Name, tensor.BF16, encode(t, tensor.BF16, w), out, in)
		default:
			q.add(x.Name, x.DType, b, x.Shape...)
			f.add(x.Name, x.DType, b, x.Shape...)
		}
	}
	config, err := os.ReadFile(filepath.Join(tiny, "base", "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	plain := string(config)
	packed := strings.Replace(plain, `"head_dim"`, `"quantization_config": {"quant_method": "gptq", "bits": 4, "weight_block_size": [48, 48], "x": [{}]}, "head_dim"`, 1)
	return q.write(t, map[string]string{"config.json": packed, "quantize_config.json": `{"bits": 4}`, "tokenizer.json": "{}"}),
		f.write(t, map[string]string{"config.json": plain, "tokenizer.json": "{}"})
}

func decode(t *testing.T, path string) *formats.Decoded {
	t.Helper()
	m, err := formats.Decode(open(t, path))
	if err != nil {
		t.Fatal(err)
	}
	d, ok := m.(*formats.Decoded)
	if !ok {
		t.Fatalf("a quantized folder was opened as %T", m)
	}
	return d
}

// TestQuantizedBase merges adapters into a quantized base and into its decoded twin: the same bytes.
func TestQuantizedBase(t *testing.T) {
	quantized, float := twins(t)
	for name, modules := range map[string]int{"adapter": 14, "adapters/dora": 6} {
		for _, d := range []tensor.DType{tensor.F32, tensor.BF16} {
			for _, run := range []merge.RunOptions{{Jobs: 1}, {Jobs: 4, MaxMemory: 1}} {
				in := []merge.Input{input(t, filepath.Join(tiny, name), 1, dialect.Options{})}
				_, want, _ := merged(t, open(t, float), in, merge.Options{DType: d}, run)
				specs, got, stats := merged(t, decode(t, quantized), in, merge.Options{DType: d}, run)
				if len(got) != len(want) || len(stats) != modules {
					t.Fatalf("%d tensors, want %d; %d modules", len(got), len(want), len(stats))
				}
				for n := range want {
					if specs[n].DType != d {
						t.Errorf("%s %s: stored as %s", name, n, specs[n].DType)
					}
					if !bytes.Equal(got[n], want[n]) {
						t.Errorf("%s %s %s %+v: differs", name, d, n, run.Jobs)
					}
				}
			}
		}
	}
}

// TestQuantizedOutput writes a merge of a quantized base, and looks at the folder.
func TestQuantizedOutput(t *testing.T) {
	quantized, float := twins(t)
	base := decode(t, quantized)
	in := []merge.Input{input(t, filepath.Join(tiny, "adapter"), 1, dialect.Options{})}
	plan, err := merge.NewPlan(base, in, merge.Options{Resolve: merge.Resolvers(base), DType: tensor.BF16})
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "merged")
	writePlan(t, plan, base, out)
	written := open(t, out)
	if m, err := formats.Decode(written); err != nil || m != written {
		t.Errorf("the output is still quantized (%T, %v)", m, err)
	}
	if got, want := len(written.Tensors()), len(open(t, float).Tensors()); got != want {
		t.Errorf("%d tensors, want %d", got, want)
	}
	var got, want map[string]any
	corpus.ReadJSON(t, filepath.Join(out, "config.json"), &got)
	corpus.ReadJSON(t, filepath.Join(float, "config.json"), &want)
	a, _ := json.Marshal(got)
	b, _ := json.Marshal(want)
	if !bytes.Equal(a, b) {
		t.Errorf("config.json is %s, want %s", a, b)
	}
	if _, err := os.Stat(filepath.Join(out, "quantize_config.json")); err == nil {
		t.Error("quantize_config.json was copied")
	}
	if _, err := os.Stat(filepath.Join(out, "tokenizer.json")); err != nil {
		t.Error(err)
	}
}
