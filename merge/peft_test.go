package merge_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/adapter/peft"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/tensor"
)

// A peftCase is a record of the corpus of merges that PEFT 0.20.1.dev0 wrote.
type peftCase struct {
	ID         string             `json:"id"`
	Dir        string             `json:"dir"`
	Group      string             `json:"group"`
	PeftType   string             `json:"peft_type"`
	Merged     *bool              `json:"merged"`
	MergeError string             `json:"merge_error"`
	Files      []string           `json:"files"`
	Tolerance  map[string]float64 `json:"tolerance"`
	Check      string             `json:"independent_check"`
	Tied       bool               `json:"tied_embeddings"`
	Changed    []string           `json:"changed_keys"`
	Order      []string           `json:"parameter_registration_order"`
	Transposed *bool              `json:"is_transposed"`
}

func peftCases(t *testing.T) []peftCase {
	t.Helper()
	b, err := os.ReadFile(corpus.Path(t, "peft", "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var cases []peftCase
	if err := json.Unmarshal(b, &cases); err != nil {
		t.Fatal(err)
	}
	return cases
}

// refused are the cases that PEFT merges and this program refuses by name, and why.
var refused = map[string]string{
	"lora-init-pissa":               "adapter.unsupported_feature", // the base was changed at initialisation
	"lora-init-olora":               "adapter.unsupported_feature",
	"lora-kasa":                     "adapter.unsupported_feature", // truncates the base
	"vanilla-mlp-1-lora-with-kasa":  "adapter.unsupported_feature",
	"lora-layer-replication":        "adapter.unsupported_feature", // PEFT's own merge is wrong
	"lora-alora":                    "adapter.unsupported_feature",
	"lora-lora_bias-no-base-bias":   "match.unmatched_target",
	"conv2d-groups-lora-with-dora":  "adapter.unsupported_feature",
	"conv2d-groups2-lora":           "adapter.unsupported_feature",
	"conv2d-groups2-lora-with-dora": "adapter.unsupported_feature",
}

// tuners are the types of PEFT's adapters that merge here, beside LoRA.
var tuners = []string{"LOHA", "LOKR", "IA3", "OFT", "BOFT", "HRA", "ADALORA", "HIRA", "DELORA", "VERA", "C3A", "LN_TUNING", "TRAINABLE_TOKENS", "BEFT"}

// TestPEFT merges every LoRA case of the corpus, and those of the other tuners, and compares with what PEFT wrote, within the manifest's
// tolerance; the cases marked bit-exact must be equal in every byte.
func TestPEFT(t *testing.T) {
	merges, exact, refusals := 0, 0, 0
	for _, c := range peftCases(t) {
		if c.PeftType != "LORA" && !slices.Contains(tuners, c.PeftType) || c.Group == "weighted" || c.Group == "convert" || c.Group == "two-adapters" {
			continue
		}
		t.Run(c.ID, func(t *testing.T) {
			dir := corpus.Path(t, "peft", c.Dir)
			if code, ok := refused[c.ID]; ok {
				wantRefusal(t, c, dir, code)
				refusals++
				return
			}
			compareWithPEFT(t, c, dir, "merged.safetensors", compatOf(c), "")
			if merges++; c.Check == "bit-exact" {
				exact++
			}
			if slices.Contains(c.Files, "merged_safe.safetensors") {
				compareWithPEFT(t, c, dir, "merged_safe.safetensors", merge.CompatPEFTSafe, "")
			}
		})
	}
	t.Logf("%d merges equal to PEFT's, %d of them bit for bit; %d refused", merges, exact, refusals)
	if merges < 180 || exact < 27 {
		t.Errorf("only %d merges and %d bit-exact ones were compared", merges, exact)
	}
}

func compatOf(c peftCase) merge.Compat {
	if strings.HasSuffix(c.ID, "autocast_0") {
		return merge.CompatPEFTNoAutocast
	}
	return merge.CompatPEFT
}

func optionsOf(c peftCase) dialect.Options {
	return dialect.Options{PEFT: peft.Options{ParameterOrder: c.Order, Transposed: c.Transposed}}
}

func wantRefusal(t *testing.T, c peftCase, dir, code string) {
	t.Helper()
	base := open(t, filepath.Join(dir, "base.safetensors"))
	a, err := dialect.Open(dir, optionsOf(c))
	if err == nil {
		defer a.Close()
		_, err = merge.NewPlan(base, []merge.Input{{Adapter: a, Scale: 1}}, merge.Options{Resolve: merge.Resolvers(base)})
	}
	if f := finding.Of(err); f == nil || f.Code != code {
		t.Errorf("got %v, want a refusal with code %s", err, code)
	}
}

// compareWithPEFT merges the adapters of dir (sub-folders in order, or dir itself) and compares every tensor.
func compareWithPEFT(t *testing.T, c peftCase, dir, golden string, compat merge.Compat, order string) {
	t.Helper()
	base := open(t, filepath.Join(dir, "base.safetensors"))
	var inputs []merge.Input
	if order == "" {
		inputs = append(inputs, input(t, dir, 1, optionsOf(c)))
	}
	for _, name := range order {
		inputs = append(inputs, input(t, filepath.Join(dir, string(name)), 1, optionsOf(c)))
	}
	specs, data, _ := merged(t, base, inputs, merge.Options{Compat: compat}, merge.RunOptions{})
	ref := open(t, filepath.Join(dir, golden))
	for _, r := range ref.Tensors() {
		want, err := r.Read()
		if err != nil {
			t.Fatal(err)
		}
		got, s := data[r.Name], specs[r.Name]
		if s.DType != r.DType || !s.Shape.Equal(r.Shape) {
			t.Errorf("%s: got %s %v, PEFT wrote %s %v", r.Name, s.DType, s.Shape, r.DType, r.Shape)
			continue
		}
		if c.Tied && (r.Name == "lm_head.weight" || r.Name == "model.embed_tokens.weight") {
			continue // PEFT puts the updates of both into both; checked in TestTied
		}
		tolerance, known := c.Tolerance[r.DType.String()]
		if !known {
			if !bytes.Equal(got, want) {
				t.Errorf("%s: bytes differ", r.Name)
			}
			continue
		}
		if c.Check == "bit-exact" && !bytes.Equal(got, want) {
			t.Errorf("%s: not bit-exact, worst %.3g", r.Name, worst(floats(t, s.DType, got), floats(t, r.DType, want)))
		}
		if w := worst(floats(t, s.DType, got), floats(t, r.DType, want)); w > tolerance {
			t.Errorf("%s: differs by %.3g, tolerance %g", r.Name, w, tolerance)
		}
	}
}

// TestTwoAdapters merges two adapters in both orders: DoRA depends on the order.
func TestTwoAdapters(t *testing.T) {
	n := 0
	for _, c := range peftCases(t) {
		if c.PeftType != "LORA" && !slices.Contains(tuners, c.PeftType) || c.Group != "two-adapters" {
			continue
		}
		n++
		t.Run(c.ID, func(t *testing.T) {
			dir := corpus.Path(t, "peft", c.Dir)
			compareWithPEFT(t, c, dir, "merged_ab.safetensors", merge.CompatNone, "ab")
			if slices.Contains(c.Files, "merged_ba.safetensors") {
				compareWithPEFT(t, c, dir, "merged_ba.safetensors", merge.CompatNone, "ba")
			}
		})
	}
	if n == 0 {
		t.Error("the corpus holds no case of two adapters")
	}
}

// TestTied checks that with tied embeddings each matrix gets its own update and no other, where PEFT puts
// the updates of both into both.
func TestTied(t *testing.T) {
	dir := corpus.Path(t, "peft", "cases", "lora-lmhead-tied")
	base := open(t, filepath.Join(dir, "base.safetensors"))
	_, data, _ := merged(t, base, []merge.Input{input(t, dir, 1, dialect.Options{})}, merge.Options{}, merge.RunOptions{})
	ref := open(t, filepath.Join(dir, "merged.safetensors"))
	for _, r := range ref.Tensors() {
		want, err := r.Read()
		if err != nil {
			t.Fatal(err)
		}
		switch r.Name {
		case "lm_head.weight": // the only update is the head's, so PEFT's shared matrix is the head's
			if w := worst(floats(t, tensor.F32, data[r.Name]), floats(t, r.DType, want)); w > 2e-4 {
				t.Errorf("lm_head.weight differs by %g", w)
			}
		case "model.embed_tokens.weight":
			for _, b := range base.Tensors() {
				if b.Name == r.Name {
					original, err := b.Read()
					if err != nil {
						t.Fatal(err)
					}
					if !bytes.Equal(data[r.Name], original) {
						t.Error("the embedding changed, although the adapter has no update for it")
					}
				}
			}
		}
	}
}
