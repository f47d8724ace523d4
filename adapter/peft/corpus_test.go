package peft

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

func pointer[T any](v T) *T { return &v }

// A goldenCase is a record of the corpus of merges that PEFT itself made.
type goldenCase struct {
	ID        string             `json:"id"`
	Dir       string             `json:"dir"`
	Type      string             `json:"peft_type"`
	Reference bool               `json:"has_reference_merge"`
	Changed   []string           `json:"changed_keys"`
	Tolerance map[string]float64 `json:"tolerance"`
	Order     []string           `json:"parameter_registration_order"`
	Turned    bool               `json:"is_transposed"`
	Tied      bool               `json:"tied_embeddings"`
}

// refused lists the LoRA cases that must not decode to something that can be merged, with the reason. The
// grouped convolutions and the bias without a base bias are PEFT's own refusals.
var refused = map[string]string{
	"lora-alora":                         "unsupported_feature",
	"lora-layer-replication":             "unsupported_feature",
	"lora-init-pissa":                    "unsupported_feature",
	"lora-init-olora":                    "unsupported_feature",
	"lora-kasa":                          "unsupported_feature",
	"vanilla-mlp-1-lora-with-kasa":       "unsupported_feature",
	"conv2d-groups-lora-with-dora":       "unsupported_feature",
	"conv2d-groups2-lora":                "unsupported_feature",
	"conv2d-groups2-lora-with-dora":      "unsupported_feature",
	"lora-rank-pattern-order-first-wins": "",
}

func goldenCases(t *testing.T) []goldenCase {
	var cases []goldenCase
	corpus.ReadJSON(t, corpus.Path(t, "peft", "manifest.json"), &cases)
	return cases
}

func (c *goldenCase) options() Options {
	return Options{ParameterOrder: c.Order, Transposed: &c.Turned}
}

// TestGoldenMerges decodes every LoRA case and adds its updates to the base; the result must be the merge
// that PEFT wrote.
func TestGoldenMerges(t *testing.T) {
	merged := 0
	for _, c := range goldenCases(t) {
		if c.Type != "LORA" {
			continue
		}
		dir := corpus.Path(t, "peft", c.Dir)
		if _, err := os.Stat(filepath.Join(dir, ConfigName)); err != nil {
			continue // several adapters or conversions: TestSeveralAdapters
		}
		t.Run(c.ID, func(t *testing.T) {
			a, err := Open(dir, c.options())
			if reason, ok := refused[c.ID]; ok {
				if err == nil && a.NoMerge != nil {
					a.Close()
					err = a.NoMerge
				}
				if f := finding.Of(err); f == nil || f.Code != "adapter."+reason {
					t.Fatalf("got %v, expected adapter.%s", err, reason)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			if !c.Reference {
				return
			}
			got := apply(t, filepath.Join(dir, "base.safetensors"), a)
			if c.Tied {
				share(got, apply(t, filepath.Join(dir, "base.safetensors")))
			}
			compare(t, &c, got, filepath.Join(dir, "merged.safetensors"))
			merged++
		})
	}
	if merged < 70 {
		t.Errorf("only %d merges were compared", merged)
	}
}

// TestSeveralAdapters merges the pairs of the corpus one after the other, in both orders.
func TestSeveralAdapters(t *testing.T) {
	n := 0
	for _, c := range goldenCases(t) {
		dir := corpus.Path(t, "peft", c.Dir)
		if _, err := os.Stat(filepath.Join(dir, "merged_ab.safetensors")); err != nil {
			continue
		}
		t.Run(c.ID, func(t *testing.T) {
			for _, order := range []string{"ab", "ba"} {
				var as []*adapter.Adapter
				for _, name := range order {
					a, err := Open(filepath.Join(dir, string(name)), Options{})
					if err != nil {
						t.Fatal(err)
					}
					defer a.Close()
					as = append(as, a)
				}
				want := filepath.Join(dir, "merged_"+order+".safetensors")
				if _, err := os.Stat(want); err != nil {
					continue
				}
				c.Tolerance = map[string]float64{"F32": 2e-4}
				compare(t, &c, apply(t, filepath.Join(dir, "base.safetensors"), as...), want)
				n++
			}
		})
	}
	if n == 0 {
		t.Error("nothing was compared")
	}
}

// TestResidualBases checks that adapters relative to a residual base are refused until the caller says
// that the base is that one, and that PEFT's own conversion to plain LoRA decodes.
func TestResidualBases(t *testing.T) {
	for _, name := range []string{"pissa", "olora"} {
		dir := corpus.Path(t, "peft", "cases", "convert-"+name+"-to-lora")
		_, err := Open(filepath.Join(dir, "trained"), Options{})
		if f := finding.Of(err); f == nil || f.Code != "adapter.unsupported_feature" || !strings.Contains(f.Message, name) {
			t.Errorf("%s: got %v", name, err)
		}
		a, err := Open(filepath.Join(dir, "trained"), Options{ResidualBase: true})
		if err != nil {
			t.Fatal(err)
		}
		a.Close()
		if a, err = Open(filepath.Join(dir, "converted"), Options{}); err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		c := goldenCase{ID: name, Tolerance: map[string]float64{"F32": 2e-4}}
		compare(t, &c, apply(t, filepath.Join(dir, "base.safetensors"), a), filepath.Join(dir, "merged.safetensors"))
	}
}

// apply adds the adapters' updates to a base in float64 and returns all its tensors.
func apply(t *testing.T, base string, as ...*adapter.Adapter) map[string][]float64 {
	t.Helper()
	m, err := safetensors.Open(base)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	out, specs := map[string][]float64{}, map[string]tensor.Spec{}
	var names []string
	for _, x := range m.Tensors() {
		names = append(names, x.Name)
		specs[x.Name] = x.Spec
		if !x.DType.IsFloat() {
			continue
		}
		v, err := adapter.ReadFloats(&x)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range v {
			out[x.Name] = append(out[x.Name], float64(f))
		}
	}
	find := naming.NewHF(names, func(n string) []int64 { return specs[n].Shape })
	for _, a := range as {
		for i := range a.Updates {
			u := &a.Updates[i]
			places, err := find.Find(u.Module, u.Param)
			if err != nil && u.Optional {
				continue
			}
			if err != nil {
				t.Fatalf("%v: %v", u.Target, err)
			}
			for _, p := range places {
				addExactly(t, u, p, specs[p.Tensor], out[p.Tensor])
			}
		}
	}
	return out
}

// share does what PEFT does to a model whose two embeddings are one tensor: it gets the changes of both.
func share(got, base map[string][]float64) {
	in, out := got["model.embed_tokens.weight"], got["lm_head.weight"]
	for i, b := range base["lm_head.weight"] {
		sum := in[i] + out[i] - b
		in[i], out[i] = sum, sum
	}
}

func addExactly(t *testing.T, u *adapter.Update, p naming.Place, spec tensor.Spec, w []float64) {
	t.Helper()
	frame, err := adapter.FrameOf(spec.Shape, u.LayerIn(p, spec.Shape))
	if err != nil {
		t.Fatal(err)
	}
	op, err := adapter.Bind(u, p, spec, frame, adapter.Rounding{})
	if err != nil {
		t.Fatal(err)
	}
	if err := op.Load(); err != nil {
		t.Fatal(err)
	}
	if op.Columns() {
		rows := make([]float32, len(w))
		for i, x := range w {
			rows[i] = float32(x)
		}
		done := false
		err := op.Prepare(func() ([]float32, int64, error) {
			if done {
				return nil, 0, nil
			}
			done = true
			return rows, 0, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	op.Exact(w, 0)
	op.Release()
}

func compare(t *testing.T, c *goldenCase, got map[string][]float64, want string) {
	t.Helper()
	m, err := safetensors.Open(want)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	changed := 0
	for _, x := range m.Tensors() {
		if !x.DType.IsFloat() {
			continue
		}
		v, err := adapter.ReadFloats(&x)
		if err != nil {
			t.Fatal(err)
		}
		tol := c.Tolerance[x.DType.String()]
		if tol == 0 {
			t.Fatalf("no tolerance for %s", x.DType)
		}
		g := got[x.Name]
		if len(g) != len(v) {
			t.Fatalf("%s: %d values, expected %d", x.Name, len(g), len(v))
		}
		worst := 0.0
		for i := range v {
			worst = max(worst, math.Abs(g[i]-float64(v[i]))/(1+math.Abs(float64(v[i]))))
			if math.IsNaN(g[i]) {
				worst = math.Inf(1)
			}
		}
		if worst > tol {
			t.Errorf("%s: off by %g, allowed %g", x.Name, worst, tol)
		}
		if slices.Contains(c.Changed, x.Name) {
			changed++
		}
	}
	if changed != len(c.Changed) {
		t.Errorf("compared %d of %d changed tensors", changed, len(c.Changed))
	}
}
