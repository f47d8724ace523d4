package merge_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/internal/trained"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/quant/imatrix"
	"github.com/loratool/loratool/quant/recipe"
	"github.com/loratool/loratool/tensor"
)

// A plain is a float32 tensor of a test's base.
type plain struct {
	name   string
	shape  tensor.Shape
	values []float32
}

// noise are fixed small values.
func noise(n int, seed uint32) []float32 {
	v := make([]float32, n)
	for i := range v {
		seed = seed*1664525 + 1013904223
		v[i] = float32(int32(seed)) * 0x1p-36
	}
	return v
}

// bits is the little-endian file content of float32 values.
func bits(v []float32) []byte {
	b := make([]byte, 0, 4*len(v))
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
	}
	return b
}

// llamaFile writes a GGUF llama of one layer with these tensors and opens it.
func llamaFile(t testing.TB, tensors []plain) formats.Model {
	t.Helper()
	h := gguf.Header{KVs: gguf.KVs{
		{Key: "general.architecture", Value: gguf.Of("llama")}, {Key: "general.file_type", Value: gguf.Of(uint32(0))},
		{Key: "llama.block_count", Value: gguf.Of(uint32(1))}, {Key: "llama.attention.head_count", Value: gguf.Of(uint32(2))},
	}}
	specs := make([]tensor.Spec, len(tensors))
	data := make([][]byte, len(tensors))
	for i, x := range tensors {
		specs[i], data[i] = tensor.Spec{Name: x.name, DType: tensor.F32, Shape: x.shape}, bits(x.values)
	}
	return trained.GGUFFile(t, h, specs, data)
}

// importances writes a legacy importance matrix and opens it.
func importances(t testing.TB, entries []plain) *imatrix.Matrix {
	t.Helper()
	le := binary.LittleEndian
	b := le.AppendUint32(nil, uint32(len(entries)))
	for _, e := range entries {
		b = append(le.AppendUint32(b, uint32(len(e.name))), e.name...)
		b = le.AppendUint32(le.AppendUint32(b, 1), uint32(len(e.values)))
		b = append(b, bits(e.values)...)
	}
	path := filepath.Join(t.TempDir(), "m.dat")
	if err := os.WriteFile(path, b, 0o666); err != nil {
		t.Fatal(err)
	}
	m, err := imatrix.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// quantized runs a plan in memory.
func quantized(t testing.TB, base formats.Model, q *merge.Quantization, run merge.RunOptions) (*merge.Plan, map[string][]byte, error) {
	t.Helper()
	plan, err := merge.NewPlan(base, nil, merge.Options{Quantize: q})
	if err != nil {
		return plan, nil, err
	}
	w, l, data := &memory{}, &layout.Layout{}, map[string][]byte{}
	for i := range plan.Tensors {
		s := plan.Tensors[i].Spec()
		n, err := s.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		w.items = append(w.items, make([]byte, n))
		l.Items = append(l.Items, layout.Place{Size: n})
		data[s.Name] = w.items[i]
	}
	_, err = merge.Run(context.Background(), plan, l, w, run)
	return plan, data, err
}

func recipeOf(t testing.TB, name string) recipe.Recipe {
	t.Helper()
	r, err := recipe.Of(name)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// encoded is what the codec makes of rows with the same importance.
func encoded(t testing.TB, d tensor.DType, v []float32, cols int, importance []float32) []byte {
	t.Helper()
	c, _ := quant.Of(d)
	n, err := d.Bytes(int64(len(v)))
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, n)
	if err := c.EncodeRows(b, v, cols, importance); err != nil {
		t.Fatal(err)
	}
	return b
}

// Each expert is stored by its own importance, whatever the slabs.
func TestImportanceOfExperts(t *testing.T) {
	const cols, rows, experts = 288, 6, 3
	v := noise(experts*rows*cols, 1)
	weights := make([]float32, experts*cols)
	for i, x := range noise(len(weights), 2) {
		weights[i] = x * x
	}
	base := llamaFile(t, []plain{
		{"blk.0.ffn_up_exps.weight", tensor.Shape{experts, rows, cols}, v},
		{"blk.0.attn_q.weight", tensor.Shape{rows, cols}, v[:rows*cols]},
		{"output.weight", tensor.Shape{rows, cols}, v[:rows*cols]},
	})
	q := &merge.Quantization{Recipe: recipeOf(t, "Q4_0"), Options: recipe.Options{Pure: true}}
	_, even, err := quantized(t, base, q, merge.RunOptions{})
	if err != nil {
		t.Fatal(err)
	}
	q.Imatrix = importances(t, []plain{{name: "blk.0.ffn_up_exps.weight", values: weights}})
	var want []byte
	for e := range experts {
		want = append(want, encoded(t, tensor.Q4_0, v[e*rows*cols:][:rows*cols], cols, weights[e*cols:][:cols])...)
	}
	for _, run := range []merge.RunOptions{{Jobs: 1}, {Jobs: 3}, {Jobs: 2, MaxMemory: 1}} {
		plan, got, err := quantized(t, base, q, run)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got["blk.0.ffn_up_exps.weight"], want) {
			t.Errorf("%+v: not the experts' own importance", run)
		}
		if bytes.Equal(got["blk.0.ffn_up_exps.weight"], even["blk.0.ffn_up_exps.weight"]) {
			t.Error("importance changes nothing")
		}
		if !bytes.Equal(got["blk.0.attn_q.weight"], even["blk.0.attn_q.weight"]) {
			t.Error("importance changes a tensor that has none")
		}
		missing := 0
		for _, f := range plan.Findings {
			if f.Code == "imatrix.no_entry" {
				missing++
				if f.Tensor != "blk.0.attn_q.weight" {
					t.Errorf("reports %s", f.Tensor)
				}
			}
		}
		if missing != 1 {
			t.Errorf("%d findings about missing entries: %+v", missing, plan.Findings)
		}
	}
	q.Imatrix = importances(t, []plain{{name: "blk.0.ffn_up_exps.weight", values: weights[:cols]}})
	if _, _, err := quantized(t, base, q, merge.RunOptions{}); finding.Of(err) == nil || finding.Of(err).Code != "imatrix.wrong_size" {
		t.Errorf("importance of one expert: %v", err)
	}
}

// Values that no type holds, or that this one does not, are named with their place.
func TestUnfitWeights(t *testing.T) {
	const rows, cols = 300, 256
	nan, inf := float32(math.NaN()), float32(math.Inf(-1))
	at := 123*cols + 45
	for _, c := range []struct {
		recipe string
		value  float32
		norm   bool // in a tensor that is copied
		pass   bool // --allow-nan
		code   string
		text   string
	}{
		{recipe: "Q8_0", value: nan, code: "numeric.nan_inf", text: "element 31533 (row 123, column 45) is NaN"},
		{recipe: "Q4_K_S", value: inf, code: "numeric.nan_inf", text: "element 31533 (row 123, column 45) is -Inf"},
		{recipe: "F16", value: nan, code: "numeric.nan_inf", text: "element 31533"},
		{recipe: "F16", value: nan, pass: true},
		{recipe: "BF16", value: inf, pass: true},
		{recipe: "F32", value: inf, code: "numeric.nan_inf", text: "element 31533"},
		{recipe: "F32", value: inf, pass: true},
		{recipe: "Q8_0", value: inf, pass: true, code: "numeric.nan_inf", text: "element 31533 (row 123, column 45) is -Inf"},
		{recipe: "Q8_0", value: nan, norm: true, code: "numeric.nan_inf", text: "element 45 (row 0, column 45) is NaN"},
		{recipe: "Q8_0", value: nan, norm: true, pass: true},
		{recipe: "Q8_0", value: 1e9, code: "quant.scale_overflow", text: "elements 31488 to 31743"},
		{recipe: "Q4_0", value: -1e9, code: "quant.scale_overflow", text: "row 123"},
		{recipe: "F16", value: 65520, code: "numeric.overflow", text: "element 31533 (row 123, column 45) is 65520"},
		{recipe: "F16", value: 65519},
	} {
		w, norm := noise(rows*cols, 3), noise(cols, 4)
		name := "blk.0.attn_q.weight"
		if c.norm {
			norm[45], name = c.value, "blk.0.attn_norm.weight"
		} else {
			w[at] = c.value
		}
		base := llamaFile(t, []plain{
			{"blk.0.attn_q.weight", tensor.Shape{rows, cols}, w}, {"blk.0.attn_norm.weight", tensor.Shape{cols}, norm},
			{"output.weight", tensor.Shape{2, cols}, noise(2*cols, 5)},
		})
		_, _, err := quantized(t, base, &merge.Quantization{Recipe: recipeOf(t, c.recipe), AllowNaN: c.pass}, merge.RunOptions{})
		f := finding.Of(err)
		switch {
		case c.code == "" && err != nil:
			t.Errorf("%+v: %v", c, err)
		case c.code != "" && (f == nil || f.Code != c.code || f.Tensor != name || !strings.Contains(f.Message, c.text) || f.Hint == ""):
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// What is quantized already is left alone where it must be, and copied where its type stays.
func TestRequantize(t *testing.T) {
	base := open(t, "../testdata/tiny-llama/base-q8_0.gguf")
	defer base.Close()
	q := &merge.Quantization{Recipe: recipeOf(t, "Q4_0"), RefuseRequantize: true}
	if _, _, err := quantized(t, base, q, merge.RunOptions{}); finding.Of(err) == nil || finding.Of(err).Code != "quant.requantize" {
		t.Errorf("Q8_0 to Q4_0: %v", err)
	}
	q.RefuseRequantize = false
	if _, _, err := quantized(t, base, q, merge.RunOptions{}); err != nil {
		t.Error(err)
	}
	q = &merge.Quantization{Recipe: recipeOf(t, "Q8_0"), RefuseRequantize: true}
	_, got, err := quantized(t, base, q, merge.RunOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range base.Tensors() {
		b, err := x.Read()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got[x.Name], b) {
			t.Errorf("%s changed", x.Name)
		}
	}
}

// A type that cannot do without an importance matrix is refused before any work; a preview only warns.
func TestNeedsImatrix(t *testing.T) {
	base := llamaFile(t, []plain{{"blk.0.attn_q.weight", tensor.Shape{2, 256}, noise(512, 1)}, {"output.weight", tensor.Shape{2, 256}, noise(512, 2)}})
	q := &merge.Quantization{Recipe: recipeOf(t, "IQ3_XXS")}
	if _, _, err := quantized(t, base, q, merge.RunOptions{}); finding.Of(err) == nil || finding.Of(err).Code != "quant.needs_imatrix" || finding.Of(err).Hint == "" {
		t.Errorf("gives %v", err)
	}
	q.Preview = true
	plan, err := merge.NewPlan(base, nil, merge.Options{Quantize: q, CheckOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(plan.Findings, func(f finding.Finding) bool {
		return f.Code == "quant.needs_imatrix" && f.Level == finding.Warning
	}) {
		t.Errorf("findings %+v", plan.Findings)
	}
}

// Stored says how far each tensor is from what was to be stored.
func TestStored(t *testing.T) {
	w := noise(2048*256, 1)
	base := llamaFile(t, []plain{{"blk.0.attn_q.weight", tensor.Shape{2048, 256}, w}, {"blk.0.attn_norm.weight", tensor.Shape{256}, noise(256, 2)}})
	plan, err := merge.NewPlan(base, nil, merge.Options{Quantize: &merge.Quantization{Recipe: recipeOf(t, "Q8_0")}})
	if err != nil {
		t.Fatal(err)
	}
	m, l := &memory{}, &layout.Layout{}
	for i := range plan.Tensors {
		n, err := plan.Tensors[i].Spec().Bytes()
		if err != nil {
			t.Fatal(err)
		}
		m.items, l.Items = append(m.items, make([]byte, n)), append(l.Items, layout.Place{Size: n})
	}
	var got []merge.Stored
	if _, err := merge.Run(context.Background(), plan, l, m, merge.RunOptions{Stored: func(s merge.Stored) { got = append(got, s) }}); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].Tensor != "blk.0.attn_norm.weight" || got[0].RMSE != 0 || got[0].Bytes != 1024 || got[1].Type != "Q8_0" {
		t.Fatalf("stored %+v", got)
	}
	c, _ := quant.Of(tensor.Q8_0)
	back := make([]float32, len(w))
	c.Decode(back, m.items[1])
	var off, all float64
	for i, x := range w {
		d := float64(back[i]) - float64(x)
		off, all = off+d*d, all+float64(x)*float64(x)
	}
	if want := math.Sqrt(off / all); math.Abs(got[1].RMSE/want-1) > 0.02 { // measured on an eighth, 65536 elements
		t.Errorf("error %g, want %g", got[1].RMSE, want)
	}
}
