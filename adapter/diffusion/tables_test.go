package diffusion

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/internal/applied"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/tensor"
)

// A row of a table of the corpus: one module of diffusers, and where it is in the original checkpoint.
type row struct {
	kohya, diffusers, original, kind string
	stored                           string // the tensor of the original checkpoint
	dims                             []int64
	first, rows, whole               int64 // its rows in the original's weight, in units of this test
	fused, swap, transposed          bool
}

// readTable reads a table. Sizes shrink to the fewest rows that keep the proportions of a fused weight's parts.
func readTable(t *testing.T, file string) []row {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var rows []row
	byOriginal := map[string][]int{}
	for _, line := range strings.Split(strings.TrimSpace(string(b)), "\n")[1:] {
		f := append(strings.Split(line, "\t"), "")
		if f[3] == "norm" {
			continue
		}
		r := row{kohya: f[0], diffusers: f[1], original: strings.TrimPrefix(f[2], "model.diffusion_model."), kind: f[3]}
		for d := range strings.SplitSeq(f[4], "x") {
			var n int64
			fmt.Sscan(d, &n)
			r.dims = append(r.dims, n)
		}
		r.rows = r.dims[0]
		if f[5] != "" {
			var dim int64
			fmt.Sscanf(f[5], "%d:%d:%d", &dim, &r.first, &r.rows)
		}
		note := strings.ToLower(f[7])
		r.transposed, r.stored = strings.Contains(note, "transposed"), f[2]+".weight"
		switch {
		case r.transposed:
			r.stored = f[2]
		case strings.Contains(note, "in_proj_weight"):
			r.stored = f[2] + "_weight"
		}
		r.swap = strings.Contains(note, "swap")
		byOriginal[r.original] = append(byOriginal[r.original], len(rows))
		rows = append(rows, r)
	}
	for _, at := range byOriginal {
		unit := int64(0)
		for _, i := range at {
			for a, b := rows[i].rows, unit; ; a, b = b, a%b {
				if b == 0 {
					unit = a
					break
				}
			}
		}
		whole := int64(0)
		for _, i := range at {
			r := &rows[i]
			r.first, r.rows, r.fused = 2*r.first/unit, 2*r.rows/unit, len(at) > 1
			whole += r.rows
		}
		for _, i := range at {
			rows[i].whole = whole
		}
	}
	return rows
}

// A speller gives a row's name in a dialect, by the table alone, "" where the dialect has none; and whether the
// file then has the whole weight of the original checkpoint, with its rows.
type speller func(r row) (name string, whole bool)

func flat(s string) string { return strings.ReplaceAll(s, ".", "_") }

// spellers are the dialects that have names for a table's modules.
func spellers(table string) map[string]speller {
	pathOf := func(r row) string {
		_, path, _ := strings.Cut(r.diffusers, ".")
		return path
	}
	out := map[string]speller{"diffusers": func(r row) (string, bool) { return r.diffusers, false }}
	encoder := map[string]string{
		"sd15_clip_l": "clip_l", "sd2_openclip_h": "clip_h", "sdxl_clip_l": "clip_l", "sdxl_openclip_g": "clip_g", "t5xxl_flux": "t5xxl", "t5xxl_sd3": "t5xxl",
	}[table]
	if encoder != "" { // the same everywhere: transformers' names
		out["kohya"] = func(r row) (string, bool) { return r.kohya, false }
		out["comfyui"] = func(r row) (string, bool) { return "text_encoders." + encoder + ".transformer." + pathOf(r), false }
		out["ai-toolkit"] = out["comfyui"]
		if strings.HasPrefix(table, "sd") {
			out["diffusers-old"] = out["diffusers"]
		}
		return out
	}
	folder := "transformer"
	out["kohya"] = func(r row) (string, bool) { return r.kohya, true }
	if strings.HasSuffix(table, "_unet") {
		folder = "unet"
		out["diffusers-old"] = func(r row) (string, bool) {
			for _, leaf := range []string{"to_q", "to_k", "to_v", "to_out.0"} {
				if at, ok := strings.CutSuffix(r.diffusers, "."+leaf); ok {
					return at + ".processor." + strings.TrimSuffix(leaf, ".0"), false
				}
			}
			return r.diffusers, false
		}
	}
	out["comfyui"] = func(r row) (string, bool) { return "diffusion_model." + r.original, true }
	out["ai-toolkit"] = out["comfyui"]
	out["onetrainer"] = func(r row) (string, bool) { return "lora_" + folder + "_" + flat(pathOf(r)), false }
	out["lycoris"] = func(r row) (string, bool) { return "lycoris_" + flat(pathOf(r)), false }
	if table == "flux1" {
		out["bfl-control"] = func(r row) (string, bool) { return r.original, true }
		out["xlabs"] = func(r row) (string, bool) {
			for body, leaf := range map[string]string{
				"img_attn.qkv": "qkv_lora1", "img_attn.proj": "proj_lora1", "txt_attn.qkv": "qkv_lora2", "txt_attn.proj": "proj_lora2", "linear1": "qkv_lora", "linear2": "proj_lora",
			} {
				if at, ok := strings.CutSuffix(r.original, "."+body); ok && !strings.HasSuffix(r.diffusers, "proj_mlp") {
					return at + ".processor." + leaf, true
				}
			}
			return "", true
		}
	}
	return out
}

// suffixesOf are those of a module's two factors in a dialect.
func suffixesOf(dialect, name string) (a, b string) {
	switch dialect {
	case "diffusers", "ai-toolkit", "bfl-control":
		return ".lora_A.weight", ".lora_B.weight"
	case "xlabs":
		return ".down.weight", ".up.weight"
	case "diffusers-old":
		switch {
		case strings.HasPrefix(name, "text_encoder"):
			return ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"
		case strings.Contains(name, ".processor."):
			return "_lora.down.weight", "_lora.up.weight"
		}
		return ".lora.down.weight", ".lora.up.weight"
	}
	return ".lora_down.weight", ".lora_up.weight"
}

// build makes a file of a dialect from the rows that it has names for, and what it changes in the modules of
// diffusers. Modules stored whole have one A and a dense B.
func build(dialect string, spell speller, rows []row) (weights []adapter.Weight, want map[string][]float64) {
	const rank = 2
	r := rand.New(rand.NewPCG(3, 4))
	want = map[string][]float64{}
	type module struct{ a, b []float32 }
	written := map[string]module{}
	for _, x := range rows {
		name, whole := spell(x)
		if name == "" {
			continue
		}
		n := x.rows
		if whole {
			n = x.whole
		}
		if dialect == "xlabs" && strings.HasSuffix(name, ".qkv_lora") {
			n = 3 * x.rows // without the feed-forward's rows
		}
		in := int64(2)
		ones := []int64{n, rank}
		for _, k := range x.dims[min(2, len(x.dims)):] {
			in *= k
			ones = append(ones, 1)
		}
		m, ok := written[name]
		scale := 1.0
		if a, b := suffixesOf(dialect, name); !ok {
			wa, wb := weight(r, name+a, append([]int64{rank, 2}, x.dims[min(2, len(x.dims)):]...)...), weight(r, name+b, ones...)
			weights = append(weights, wa, wb)
			m.a, _ = wa.Values.Load()
			m.b, _ = wb.Values.Load()
			written[name] = m
			if a == ".lora_down.weight" {
				weights = append(weights, alphaTensor(name+".alpha", 3))
			}
		}
		if a, _ := suffixesOf(dialect, name); a == ".lora_down.weight" {
			scale = 3.0 / rank
		}
		b := m.b
		switch {
		case whole && x.fused:
			b = b[x.first*rank : (x.first+x.rows)*rank]
		case whole && x.swap:
			b = slices.Concat(b[len(b)/2:], b[:len(b)/2])
		}
		want[x.diffusers+".weight"] = product(b, m.a, len(b)/rank, rank, int(in), scale)
	}
	return weights, want
}

// modulesIn are the modules that a dialect's tensors belong to, sorted.
func modulesIn(dialect string, tensors []tensor.Tensor) []string {
	var out []string
	for _, x := range tensors {
		name := strings.TrimSuffix(x.Name, ".alpha")
		for _, like := range []string{"text_encoder", ".processor.", ""} { // the suffixes that the dialect has
			a, b := suffixesOf(dialect, like)
			if name == x.Name {
				name = strings.TrimSuffix(strings.TrimSuffix(name, a), b)
			}
		}
		out = append(out, name)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// TestTables builds files of every dialect from the tables of the corpus, computes with the tables alone what they
// change in the modules of diffusers, and sends them to every other dialect that has names for the modules, and
// back.
func TestTables(t *testing.T) {
	files, _ := filepath.Glob(corpus.Path(t, "keys", "*.tsv"))
	tables := 0
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".tsv")
		if strings.HasPrefix(name, "ait_") {
			continue
		}
		tables++
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			checkTable(t, name, file)
		})
	}
	if tables < 20 {
		t.Errorf("%d tables", tables)
	}
}

func checkTable(t *testing.T, table, file string) {
	rows := readTable(t, file)
	dialects := spellers(table)
	// A text encoder alone may be any family's: then what follows the component is compared.
	adjust := func(m map[string][]float64) map[string][]float64 { return m }
	encoder := dialects["onetrainer"] == nil
	if encoder {
		adjust = tails
	}
	read := func(ts []tensor.Tensor, metadata [][2]string) *adapter.Adapter {
		a, err := Decode("file", "file", ts, metadata, Options{})
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	for x, spell := range dialects {
		weights, want := build(x, spell, rows)
		want = adjust(want)
		tensors := memory(t, weights)
		a := read(tensors, nil)
		same(t, adjust(deltas(t, a)), want, 0)
		for y, other := range dialects {
			if x == y {
				continue
			}
			var expected []string
			lost := false
			for _, r := range rows {
				from, _ := spell(r)
				to, _ := other(r)
				if lost = lost || from != "" && to == ""; from != "" {
					expected = append(expected, to)
				}
			}
			if lost || y == "diffusers-old" && encoder && a.Arch != "sd15" && a.Arch != "sd2" && a.Arch != "sdxl" {
				if _, err := Encode(a, y, EncodeOptions{}); err == nil {
					t.Errorf("%s to %s lost something", x, y)
				}
				continue
			}
			f, err := Encode(a, y, EncodeOptions{})
			if err != nil {
				t.Fatalf("%s to %s: %v", x, y, err)
			}
			there := memory(t, f.Weights)
			slices.Sort(expected)
			if got := modulesIn(y, there); !slices.Equal(got, slices.Compact(expected)) && !encoder {
				t.Errorf("%s to %s: modules %q, expected %q", x, y, got[:min(9, len(got))], expected[:min(9, len(expected))])
			}
			b := read(there, f.Metadata)
			same(t, adjust(deltas(t, b)), want, 2e-6)
			f, err = Encode(b, x, EncodeOptions{})
			if err != nil {
				t.Fatalf("%s to %s and back: %v", x, y, err)
			}
			back := memory(t, f.Weights)
			if names(back) != names(tensors) && y != "xlabs" && !encoder {
				t.Errorf("%s to %s and back: other tensors than before", x, y)
			}
			same(t, adjust(deltas(t, read(back, f.Metadata))), want, 2e-6)
		}
	}
}

// TestTablePlaces applies files that are built from the tables to checkpoints in the names of the original and of
// diffusers, and computes with the tables alone what changes there: rows of fused weights, halves, a transposed
// projection.
func TestTablePlaces(t *testing.T) {
	for table, family := range map[string]string{
		"sd15_unet": "sd15", "sd2_openclip_h": "sd2", "sdxl_unet": "sdxl", "sdxl_clip_l": "sdxl", "sdxl_openclip_g": "sdxl", "sdxl_refiner_unet": "sdxl-refiner",
		"sd3_medium": "sd3-medium", "sd35_medium": "sd3.5-medium", "flux1": "flux1", "t5xxl_flux": "flux1", "chroma": "chroma", "flux2_klein_4b": "flux2-klein-4b",
		"wan21_i2v_14b": "wan2.1-14b", "qwen_image": "qwen-image",
	} {
		t.Run(table, func(t *testing.T) {
			t.Parallel()
			rows := readTable(t, corpus.Path(t, "keys", table+".tsv"))
			weights, want := build("kohya", spellers(table)["kohya"], rows)
			a, err := Decode("file", "file", memory(t, weights), nil, Options{})
			if err != nil {
				t.Fatal(err)
			}
			folder, _, _ := strings.Cut(rows[0].diffusers, ".")
			a.Arch = family
			for i := range a.Updates { // a text encoder alone may be any family's
				_, path, _ := strings.Cut(a.Updates[i].Module, ".")
				a.Updates[i].Module = folder + "." + path
			}
			originals, renamed := applied.Base{}, applied.Base{}
			for _, r := range rows {
				shape := tensor.Shape{r.whole, 2}
				shape = append(shape, r.dims[min(2, len(r.dims)):]...)
				originals[r.stored] = shape
				if r.transposed {
					originals[r.stored] = tensor.Shape{2, r.whole}
				}
				shape = slices.Clone(shape)
				shape[0] = r.rows
				renamed[r.diffusers+".weight"] = shape
			}
			none := &adapter.Adapter{Arch: family}
			changed := func(base applied.Base) (after, before map[string][]float64) {
				return applied.To(t, a, base), applied.To(t, none, base)
			}
			after, before := changed(renamed)
			for name, delta := range want {
				for i, x := range delta {
					if math.Abs(after[name][i]-before[name][i]-x) > 1e-9 {
						t.Fatalf("%s[%d]", name, i)
					}
				}
			}
			after, before = changed(originals)
			for _, r := range rows {
				delta := want[r.diffusers+".weight"]
				cols := int64(len(delta)) / r.rows
				for i := range r.rows {
					for j := range cols {
						to := i
						if r.swap {
							to = (i + r.rows/2) % r.rows
						}
						at := (r.first+to)*cols + j
						if r.transposed {
							at = j*r.whole + i
						}
						if math.Abs(after[r.stored][at]-before[r.stored][at]-delta[i*cols+j]) > 1e-9 {
							t.Fatalf("%s: row %d of %s, column %d", r.stored, i, r.diffusers, j)
						}
					}
				}
			}
		})
	}
}

func tails(m map[string][]float64) map[string][]float64 {
	out := map[string][]float64{}
	for k, v := range m {
		_, k, _ = strings.Cut(k, ".")
		out[k] = v
	}
	return out
}
