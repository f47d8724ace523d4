// Package layers holds the test that imports run down the table of ARCHITECTURE.md and never back.
package layers

import (
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/loratool/loratool/"

// layers lists packages from the ground up. A package may import those of earlier layers only; a name that
// ends in /… stands for all packages below it, whose own order is that of their names here.
var layers = [][]string{
	{"tensor", "finding", "naming", "internal/kernel"},
	{"quant"},
	{"quant/recipe", "quant/rounding", "quant/scheme"},
	{"quant/onnxquant"},
	{"formats/layout"},
	{"formats/safetensors", "formats/gguf", "formats/onnx", "formats/torch", "formats/npy"},
	{"formats/ortadapter", "quant/imatrix"},
	{"formats"},
	{"adapter"},
	{"adapter/evidence", "adapter/geometry", "adapter/rotation"},
	{"adapter/lycoris", "adapter/lowrank"},
	{"adapter/…"},
	{"adapter/dialect", "adapter/difference", "adapter/combination"},
	{"hf/config"},
	{"hf/tokenizer"},
	{"hf/metadata"},
	{"hf"},
	{"merge"},
	{"branch", "quantized", "content"},
	{"onnxruntime"},
	{"verify"},
	{"report", "verify/…"},
	{"cmd/loratool", "internal/…"},
}

// only says which packages may import a module from outside.
var only = map[string][]string{
	"github.com/yalue/onnxruntime_go": {"onnxruntime"},
	"github.com/urfave/cli/v2":        {"cmd/loratool"},
	"github.com/vbauerster/mpb/v8":    {"cmd/loratool"},
	"github.com/jstemmer":             {"report"},
	"github.com/goccy/go-yaml":        {"hf/metadata"},
}

func layerOf(pkg string) int {
	found := -1
	for i, l := range layers {
		for _, p := range l {
			if p == pkg {
				return i
			}
			if dir, all := strings.CutSuffix(p, "…"); all && strings.HasPrefix(pkg, dir) && found < 0 {
				found = i
			}
		}
	}
	return found
}

func TestImportsRunDown(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}}{{range .Imports}} {{.}}{{end}}`, module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	n := 0
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		fields := strings.Fields(line)
		pkg := strings.TrimPrefix(fields[0], module)
		layer := layerOf(pkg)
		if layer < 0 {
			t.Errorf("%s has no layer: add it to the table here and in ARCHITECTURE.md", pkg)
			continue
		}
		for _, imported := range fields[1:] {
			for outside, allowed := range only {
				if strings.HasPrefix(imported, outside) && !contains(allowed, pkg) {
					t.Errorf("%s imports %s; only %v may", pkg, imported, allowed)
				}
			}
			below, ours := strings.CutPrefix(imported, module)
			if !ours {
				continue
			}
			if n++; layerOf(below) >= layer {
				t.Errorf("%s imports %s, which does not lie below it", pkg, below)
			}
		}
	}
	if n < 50 {
		t.Errorf("only %d imports were seen", n)
	}
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}
