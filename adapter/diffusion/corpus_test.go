package diffusion

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// ones is a file of float32 ones.
type ones struct{}

func (ones) ReadAt(p []byte, off int64) (int, error) {
	for i := range p {
		p[i] = [4]byte{0, 0, 0x80, 0x3f}[(off+int64(i))%4]
	}
	return len(p), nil
}

// list reads a list of names and shapes as the tensors of a file.
func list(t *testing.T, path string) []tensor.Tensor {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []tensor.Tensor
	off := int64(0)
	for _, line := range strings.Split(strings.TrimSpace(string(b)), "\n")[1:] {
		name, text, _ := strings.Cut(line, "\t")
		shape := tensor.Shape{}
		if text != "scalar" {
			for d := range strings.SplitSeq(text, "x") {
				n, err := strconv.ParseInt(d, 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				shape = append(shape, n)
			}
		}
		n, _ := shape.Elements()
		out = append(out, tensor.Tensor{Spec: tensor.Spec{Name: name, DType: tensor.F32, Shape: shape}, Src: ones{}, Off: off, Size: 4 * n})
		off += 4 * n
	}
	return out
}

// TestRealLists recognises the lists of real files: their dialect, their family, and every key.
func TestRealLists(t *testing.T) {
	known := map[string][2]string{
		"anima_lora_kohya_format":               {"kohya", "anima"},
		"anima_lora_kohya_with_te_format":       {"kohya", "anima"},
		"anima_lora_lokr_format":                {"comfyui", "anima"},
		"flux_dora_onetrainer_format":           {"onetrainer", "flux1"},
		"flux_lokr_bfl_format":                  {"comfyui", "flux1"},
		"flux_lora_aitoolkit_format":            {"ai-toolkit", "flux1"},
		"flux_lora_diffusers_base_model_format": {"diffusers", "flux1"},
		"flux_lora_kohya_format":                {"kohya", "flux1"},
		"flux_lora_kohya_with_te1_format":       {"kohya", "flux1"},
		"flux_lora_xlabs_format":                {"xlabs", "flux1"},
		"qwen_image_lora_diffusers_format":      {"diffusers", "qwen-image"},
		"qwen_image_lora_kohya_format":          {"kohya", "qwen-image"},
	}
	files, err := filepath.Glob(corpus.Path(t, "keys", "real_*.txt"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(file), "real_"), ".txt")
		t.Run(name, func(t *testing.T) {
			tensors := list(t, file)
			sites, rest, err := collect(file, tensors)
			if err != nil || len(rest) > 0 {
				t.Fatalf("unexplained: %q, %v", rest, err)
			}
			family, n, _ := choose(sites)
			if family == nil || n != len(sites) {
				for _, s := range sites {
					if _, _, ok := s.find(family); !ok {
						t.Errorf("%s is not known", s.first)
					}
				}
				t.Fatalf("%d of %d modules known", n, len(sites))
			}
			names := make([]string, len(tensors))
			keys, kinds := 0, map[string]int{}
			for i, x := range tensors {
				names[i] = x.Name
			}
			for _, s := range sites {
				keys += len(s.names)
				for r := range s.role {
					kinds[string(r)]++
				}
			}
			dialect := dialectOf(names, nil)
			if want, ok := known[name]; ok && (dialect != want[0] || family.Name != want[1]) {
				t.Errorf("%s of %s, expected %v", dialect, family.Name, want)
			}
			if keys != len(tensors) {
				t.Errorf("%d of %d keys explained", keys, len(tensors))
			}
			t.Logf("%s, %s: %d keys of %d modules, 0 unexplained: %v", dialect, family.Name, keys, len(sites), fmt.Sprint(kinds))
			a, err := Decode(file, file, tensors, nil, Options{})
			if name == "anima_lora_lokr_format" {
				// A sample written for a test: w1 [2048, 8] ⊗ w2 [8, 2048] is 16384 × 16384, and the magnitudes of the same module
				// are 2048. Turning either matrix gives 2048 rows in no order of theirs but as the product w1·w2, which is no LoKr.
				if f := finding.Of(err); f == nil || f.Code != "adapter.shape_mismatch" {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			parts := 0
			for _, u := range a.Updates {
				if _, ok := family.Find(u.Module); !ok {
					t.Errorf("%s is not a module of %s", u.Module, family.Name)
				}
				parts++
			}
			if a.Space != naming.Diffusers || parts == 0 {
				t.Errorf("%d updates in %s", parts, a.Space)
			}
		})
	}
}
