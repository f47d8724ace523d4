package naming

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/corpus"
)

// TestDiffusionFamilies compares the families with the tables of the corpus, row by row: names, shapes,
// row slices, groups, swapped halves and transposes. Norms that the tables do not list are our own.
func TestDiffusionFamilies(t *testing.T) {
	for _, c := range []struct{ file, family, folder string }{
		{"sd15_unet", "sd15", "unet"}, {"sd15_clip_l", "sd15", "text_encoder"},
		{"sd2_unet", "sd2", "unet"}, {"sd2_openclip_h", "sd2", "text_encoder"},
		{"sdxl_unet", "sdxl", "unet"}, {"sdxl_clip_l", "sdxl", "text_encoder"}, {"sdxl_openclip_g", "sdxl", "text_encoder_2"},
		{"sdxl_refiner_unet", "sdxl-refiner", "unet"},
		{"sd3_medium", "sd3-medium", "transformer"}, {"sd35_medium", "sd3.5-medium", "transformer"}, {"t5xxl_sd3", "sd3-medium", "text_encoder_3"},
		{"flux1", "flux1", "transformer"}, {"t5xxl_flux", "flux1", "text_encoder_2"}, {"chroma", "chroma", "transformer"},
		{"flux2_dev", "flux2-dev", "transformer"}, {"flux2_klein_4b", "flux2-klein-4b", "transformer"}, {"flux2_klein_9b", "flux2-klein-9b", "transformer"},
		{"wan21_i2v_14b", "wan2.1-14b", "transformer"}, {"wan21_t2v_14b", "wan2.1-14b", "transformer"}, {"wan21_t2v_1p3b", "wan2.1-1.3b", "transformer"},
		{"qwen_image", "qwen-image", "transformer"},
	} {
		t.Run(c.file, func(t *testing.T) {
			b, err := os.ReadFile(corpus.Path(t, "keys", c.file+".tsv"))
			if err != nil {
				t.Fatal(err)
			}
			f := DiffusionFamilyNamed(c.family)
			comp := f.Component(c.folder)
			listed := map[string]bool{}
			lines := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")[1:]
			for _, line := range lines {
				row := strings.Split(line, "\t")
				n, ok := f.Find(row[1])
				if !ok {
					t.Fatalf("%s is not known", row[1])
				}
				listed[n.Module.Original] = true
				checkRow(t, n, row)
				flat := FlatOriginal
				if comp.Flat == Renamed {
					flat = FlatRenamed
				}
				prefix := ""
				for _, p := range comp.Kohya {
					if strings.HasPrefix(row[0], p) {
						prefix = p
						break
					}
				}
				k, ok := comp.Lookup(flat, strings.TrimPrefix(row[0], prefix))
				if prefix == "" || !ok || k.Module != n.Module {
					t.Errorf("%s is not %s", row[0], row[1])
				}
			}
			image := c.file == "wan21_t2v_14b" // shares a family with the models that see an image
			for i := range comp.Modules {
				if m := &comp.Modules[i]; !listed[m.Original] && m.Kind != "norm" && !image {
					t.Errorf("%s is not in the table", m.Original)
				}
			}
			t.Logf("%d rows", len(lines))
		})
	}
}

func checkRow(t *testing.T, n DiffusionName, row []string) {
	t.Helper()
	m := n.Module
	shape := append([]int64(nil), m.Shape...)
	first, rows, ok := m.Slice(n.Part, m.Shape[0])
	if !ok {
		t.Fatalf("%s has no slice", row[1])
	}
	shape[0] = rows
	slice := ""
	if len(m.Parts) > 1 {
		slice = fmt.Sprintf("0:%d:%d", first, rows)
	}
	kind := m.Kind
	if kind == "conv" {
		kind = fmt.Sprintf("conv%dx%d", shape[2], shape[2])
	}
	prefix := strings.TrimSuffix(row[2], m.Original)
	known := false
	for _, p := range n.Component.Prefixes {
		known = known || p == prefix
	}
	got := []string{m.Original, kind, strings.Trim(strings.ReplaceAll(fmt.Sprint(shape), " ", "x"), "[]"), slice, m.Group}
	want := []string{strings.TrimPrefix(row[2], prefix), row[3], row[4], row[5], row[6]}
	if fmt.Sprint(got) != fmt.Sprint(want) || !known && prefix+m.Original != row[2] {
		t.Errorf("%s: got %v, expected %v (prefix %q)", row[1], got, want, prefix)
	}
	note := strings.ToLower(row[7])
	if m.Swapped != strings.Contains(note, "swap") || m.Transposed != strings.Contains(note, "transposed") ||
		(m.Weight == "_weight") != strings.Contains(note, "in_proj_weight") {
		t.Errorf("%s: swapped %v, transposed %v, %q, expected %q", row[1], m.Swapped, m.Transposed, m.Weight, row[7])
	}
}

// TestDiffusionNames checks that no two modules of a component share a name in any spelling, which the
// reading of flattened names depends on.
func TestDiffusionNames(t *testing.T) {
	for _, f := range DiffusionFamilies() {
		for _, c := range f.Components {
			originals, parts := map[string]bool{}, map[string]bool{}
			for _, m := range c.Modules {
				if o := Flatten(m.Original); originals[o] {
					t.Errorf("%s: %s comes twice", c.Name, o)
				} else {
					originals[o] = true
				}
				for _, p := range m.Parts {
					if n := Flatten(p.Module); parts[n] {
						t.Errorf("%s: %s comes twice", c.Name, n)
					} else {
						parts[n] = true
					}
				}
			}
		}
	}
}

func TestSlice(t *testing.T) {
	n, ok := DiffusionFamilyNamed("flux1").Find("transformer.single_transformer_blocks.3.proj_mlp")
	if !ok || n.Part != 3 || n.Module.Original != "single_blocks.3.linear1" {
		t.Fatalf("%+v, %v", n, ok)
	}
	if first, rows, ok := n.Module.Slice(n.Part, 7*32); first != 96 || rows != 128 || !ok {
		t.Errorf("rows %d, %d, %v", first, rows, ok)
	}
	if _, _, ok := n.Module.Slice(n.Part, 100); ok {
		t.Error("100 rows do not divide by 7")
	}
	l, _ := DiffusionFamilyNamed("lumina2").Find("transformer.layers.0.attn.to_k")
	if first, rows, ok := l.Module.Slice(l.Part, 3840); first != 2304 || rows != 768 || !ok {
		t.Errorf("rows %d, %d, %v", first, rows, ok)
	}
}
