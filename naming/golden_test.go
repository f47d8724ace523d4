package naming_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/x448/float16"

	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/naming"
)

// A plain is a tensor as float32 values.
type plain struct {
	shape  []int64
	values []float32
}

// readSafetensors decodes the plain float tensors of a file and lists the names of the others.
func readSafetensors(t *testing.T, path string) (tensors map[string]plain, others []string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n := binary.LittleEndian.Uint64(b)
	var header map[string]json.RawMessage
	if err := json.Unmarshal(b[8:8+n], &header); err != nil {
		t.Fatal(err)
	}
	delete(header, "__metadata__")
	tensors = map[string]plain{}
	for name, entry := range header {
		var h struct {
			DType   string  `json:"dtype"`
			Shape   []int64 `json:"shape"`
			Offsets [2]int  `json:"data_offsets"`
		}
		if err := json.Unmarshal(entry, &h); err != nil {
			t.Fatal(err)
		}
		data := b[8+int(n)+h.Offsets[0] : 8+int(n)+h.Offsets[1]]
		var v []float32
		switch h.DType {
		case "F32":
			for i := 0; i < len(data); i += 4 {
				v = append(v, math.Float32frombits(binary.LittleEndian.Uint32(data[i:])))
			}
		case "BF16":
			for i := 0; i < len(data); i += 2 {
				v = append(v, math.Float32frombits(uint32(binary.LittleEndian.Uint16(data[i:]))<<16))
			}
		case "F16":
			for i := 0; i < len(data); i += 2 {
				v = append(v, float16.Frombits(binary.LittleEndian.Uint16(data[i:])).Float32())
			}
		default:
			others = append(others, name)
			continue
		}
		tensors[name] = plain{h.Shape, v}
	}
	return tensors, others
}

// A stored tensor is filled row by row through places.
type stored struct {
	shape  []int64 // outermost first
	values []float32
	filled []bool
}

// store writes the canonical matrix (rows × cols) of a parameter to where the place says.
func (s *stored) store(t *testing.T, p naming.Place, canonical []float32, cols int64) {
	t.Helper()
	shape, base := s.shape, int64(0)
	if p.Experts > 0 {
		if shape[0] != p.Experts {
			t.Fatalf("%s: the tensor stacks %d matrices, the place says %d", p.Tensor, shape[0], p.Experts)
		}
		shape = shape[1:]
		base = p.Expert
		for _, d := range shape {
			base *= d
		}
	}
	// A vector has rows of one value.
	height, width := shape[0], int64(1)
	if len(shape) > 1 {
		width = shape[1]
	}
	if p.Transposed {
		height, width = width, height
	}
	rows := p.Rows
	if rows == 0 {
		rows = height
	}
	if width != cols || p.RowOffset+rows > height {
		t.Fatalf("%s: %d columns at rows [%d, %d) do not fit %v", p.Tensor, cols, p.RowOffset, p.RowOffset+rows, shape)
	}
	for i := range rows {
		from := p.Canonical(i, rows) * cols
		for j := range cols {
			to := (p.RowOffset+i)*width + j
			if p.Transposed {
				to = j*height + p.RowOffset + i
			}
			if s.filled[base+to] {
				t.Fatalf("%s: element %d is stored twice", p.Tensor, base+to)
			}
			s.values[base+to], s.filled[base+to] = canonical[from+j], true
		}
	}
}

// TestConverterGoldens converts whole model folders through the places and compares every tensor with
// the bytes that the reference converter wrote (llama.cpp v0.5.0, output type f32).
func TestConverterGoldens(t *testing.T) {
	cases, _ := filepath.Glob(corpus.Path(t, "hf2gguf", "cases", "*"))
	if len(cases) == 0 {
		t.Fatal("no cases")
	}
	total := 0
	for _, dir := range cases {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			total += convert(t, dir)
		})
	}
	t.Logf("%d tensors of %d models are equal", total, len(cases))
}

// Not weights of a module: made by the converter from the configuration.
var made = regexp.MustCompile(`^rope_(freqs|factors_long|factors_short)\.weight$`)

// Not stored in GGUF: buffers and heads that the converter drops, and packed 4-bit blocks.
var dropped = regexp.MustCompile(`(^|\.)(position_ids|inv_freq|pooler\.dense\.(weight|bias))$|_(blocks|scales)$`)

func convert(t *testing.T, dir string) int {
	var config map[string]any
	corpus.ReadJSON(t, filepath.Join(dir, "input", "config.json"), &config)
	arch, hp, err := naming.FromConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	var expected struct {
		KV      [][3]any `json:"kv"`
		Outputs map[string]struct {
			Tensors [][]any `json:"tensors"`
		} `json:"outputs"`
	}
	corpus.ReadJSON(t, filepath.Join(dir, "expected.json"), &expected)
	if want := expected.KV[0][2]; arch != want {
		t.Fatalf("architecture %q, expected %q", arch, want)
	}
	checkMetadata(t, arch, hp, expected.KV)

	out := map[string]*stored{}
	sums := map[string]string{}
	var names []string
	for _, e := range expected.Outputs["f32"].Tensors {
		s := &stored{}
		n := int64(1)
		for _, d := range e[1].([]any) {
			s.shape = append(s.shape, int64(d.(float64)))
			n *= int64(d.(float64))
		}
		slices.Reverse(s.shape)
		s.values, s.filled = make([]float32, n), make([]bool, n)
		name := e[0].(string)
		out[name], sums[name] = s, e[len(e)-1].(string)
		names = append(names, name)
	}
	r, err := naming.NewGGUF(arch, hp, names)
	if err != nil {
		t.Fatal(err)
	}

	files, _ := filepath.Glob(filepath.Join(dir, "input", "model*.safetensors"))
	cut := map[string]bool{}
	for _, f := range files {
		tensors, others := readSafetensors(t, f)
		for _, n := range others {
			if !dropped.MatchString(n) {
				t.Errorf("%s is not read", n)
			}
		}
		for name, src := range tensors {
			if dropped.MatchString(name) {
				continue
			}
			i := strings.LastIndexByte(name, '.')
			module, param := name[:i], name[i+1:]
			places, err := r.Find(module, param)
			if err != nil {
				if arch == "gemma" && module == "lm_head" {
					continue
				}
				t.Errorf("%s: %v", name, err)
				continue
			}
			// Raw stacks of gpt-oss are [experts, in, out].
			raw := strings.HasSuffix(module, ".experts")
			canonical, cols := src.values, int64(1)
			if len(src.shape) > 1 {
				cols = src.shape[len(src.shape)-1]
			}
			if arch == "gpt2" && param == "weight" && naming.IsConv1D(module) {
				canonical = flip(canonical, src.shape[0], cols)
				cols = src.shape[0]
			}
			for _, p := range places {
				if p.Tensor == "token_embd.weight" || p.Tensor == "position_embd.weight" {
					// Gemma 3 cuts the vocabulary, RoBERTa the first positions.
					if out[p.Tensor].shape[0] != src.shape[0] {
						cut[p.Tensor] = true
						continue
					}
				}
				if !raw {
					out[p.Tensor].store(t, p, canonical, cols)
					continue
				}
				p.Experts = src.shape[0]
				size := int64(len(src.values)) / p.Experts
				for p.Expert = range p.Experts {
					one := src.values[p.Expert*size : (p.Expert+1)*size]
					if len(src.shape) == 3 {
						out[p.Tensor].store(t, p, flip(one, src.shape[1], src.shape[2]), src.shape[1])
					} else {
						out[p.Tensor].store(t, p, one, 1)
					}
				}
			}
		}
	}

	equal := 0
	for _, name := range names {
		s := out[name]
		switch {
		case made.MatchString(name) || cut[name]:
			continue
		case strings.HasPrefix(arch, "gemma") && strings.Contains(name, "norm"):
			// Stored plus one, which is not geometry; that the tensor was reached is checked.
			if slices.Contains(s.filled, false) {
				t.Errorf("%s is not reached", name)
			}
			continue
		case filepath.Base(dir) == "gpt-oss-tiny" && strings.HasSuffix(name, "_exps.weight"):
			// Packed blocks, which are not float rows.
			continue
		}
		if slices.Contains(s.filled, false) {
			t.Errorf("%s is not filled", name)
			continue
		}
		b := make([]byte, 0, 4*len(s.values))
		for _, v := range s.values {
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
		}
		sum := sha256.Sum256(b)
		if hex.EncodeToString(sum[:]) != sums[name] {
			t.Errorf("%s differs", name)
			continue
		}
		equal++
	}
	return equal
}

func flip(v []float32, rows, cols int64) []float32 {
	out := make([]float32, len(v))
	for i := range rows {
		for j := range cols {
			out[j*rows+i] = v[i*cols+j]
		}
	}
	return out
}

// checkMetadata compares the hyper-parameters from config.json with those from the golden's key-values.
func checkMetadata(t *testing.T, arch string, want naming.HyperParameters, kv [][3]any) {
	t.Helper()
	got, err := naming.FromMetadata(arch, func(key string) []int64 {
		for _, e := range kv {
			if v, ok := e[2].(float64); ok && e[0] == key {
				return []int64{int64(v)}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasPrefix(arch, "deepseek2") {
		// The configuration's head_dim is not used there, and key_length is that of the latent.
		got.HeadDim, want.HeadDim = 0, 0
	}
	if got != want {
		t.Errorf("from metadata %+v, from config.json %+v", got, want)
	}
}

// TestAdapterGoldens looks for every factor of a PEFT adapter, moved to GGUF by its place, in the file that
// the reference converter made of it: under the place's name, and byte for byte in the place's order.
func TestAdapterGoldens(t *testing.T) {
	dir := corpus.Path(t, "gguf-lora")
	var manifest struct {
		Cases []struct {
			ID         string `json:"id"`
			Adapter    string `json:"adapter"`
			BaseConfig string `json:"base_config"`
			Convert    struct {
				Expected string `json:"expected"`
				Right    string `json:"right_gguf"`
			} `json:"convert"`
		} `json:"cases"`
	}
	corpus.ReadJSON(t, filepath.Join(dir, "manifest.json"), &manifest)
	factor := regexp.MustCompile(`^base_model\.model\.(.+)\.lora_([AB])(\.default)?\.weight$`)
	factors := 0
	for _, c := range manifest.Cases {
		golden := c.Convert.Expected
		if c.Convert.Right != "" {
			golden = c.Convert.Right
		}
		if golden == "" {
			continue
		}
		file, err := os.ReadFile(filepath.Join(dir, golden))
		if err != nil {
			t.Fatal(err)
		}
		var config map[string]any
		corpus.ReadJSON(t, filepath.Join(dir, c.BaseConfig), &config)
		arch, hp, err := naming.FromConfig(config)
		if err != nil {
			t.Fatal(c.ID, err)
		}
		tensors, _ := readSafetensors(t, filepath.Join(dir, c.Adapter, "adapter_model.safetensors"))
		for name, src := range tensors {
			m := factor.FindStringSubmatch(name)
			if m == nil {
				continue
			}
			places, err := naming.ToGGUF(arch, hp, m[1], "weight")
			if err != nil || len(places) != 1 {
				t.Errorf("%s %s: %v, %v", c.ID, name, places, err)
				continue
			}
			p, values := places[0], src.values
			if m[2] == "B" {
				rows, cols := src.shape[0], src.shape[1]
				values = nil
				for i := range rows {
					from := p.Canonical(i, rows) * cols
					values = append(values, src.values[from:from+cols]...)
				}
			}
			var b []byte
			for _, v := range values {
				b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
			}
			if stored := p.Tensor + ".lora_" + strings.ToLower(m[2]); !bytes.Contains(file, []byte(stored)) {
				t.Errorf("%s: no %s", c.ID, stored)
			}
			if !bytes.Contains(file, b) {
				t.Errorf("%s: the values of %s are not in the file in this order", c.ID, name)
			}
			factors++
		}
	}
	if factors < 100 {
		t.Errorf("only %d factors were compared", factors)
	}
	t.Logf("%d factors are equal", factors)
}
