package adapter_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

func TestWithin(t *testing.T) {
	base := adapter.Update{Target: adapter.Target{Module: "model.layers.0.q", Param: "weight"}, Kind: adapter.LowRank, Layer: adapter.Linear, Tensors: []string{"q.a"}}
	with := func(change func(u *adapter.Update)) []adapter.Update {
		u := base
		change(&u)
		return []adapter.Update{u}
	}
	for _, c := range []struct {
		updates []adapter.Update
		limits  adapter.Limits
		want    string // a part of the message
	}{
		{[]adapter.Update{base}, adapter.Limits{}, ""},
		{[]adapter.Update{base, base}, adapter.Limits{}, "two low-rank updates"},
		{with(func(u *adapter.Update) { u.Kind = adapter.DoRA }), adapter.Limits{DoRA: true}, ""},
		{with(func(u *adapter.Update) { u.Kind = adapter.DoRA }), adapter.Limits{}, "DoRA magnitudes"},
		{with(func(u *adapter.Update) { u.Kind, u.Layer = adapter.DoRA, adapter.Embedding }), adapter.Limits{DoRA: true, Embeddings: true}, "DoRA of an embedding"},
		{with(func(u *adapter.Update) { u.Layer = adapter.Embedding }), adapter.Limits{}, "of an embedding"},
		{with(func(u *adapter.Update) { u.Layer = adapter.Conv }), adapter.Limits{}, "a convolution"},
		{with(func(u *adapter.Update) { u.Experts, u.Param = 4, "down_proj" }), adapter.Limits{Stacks: true}, ""},
		{with(func(u *adapter.Update) { u.Experts, u.Param = 4, "down_proj" }), adapter.Limits{}, "stacked in one parameter"},
		{with(func(u *adapter.Update) { u.Param = "in_proj_weight" }), adapter.Limits{}, "the parameter"},
		{with(func(u *adapter.Update) { u.Kind = adapter.Replace }), adapter.Limits{}, "a replaced parameter"},
		{with(func(u *adapter.Update) { u.Kind = adapter.Rows }), adapter.Limits{}, "token rows"},
		{with(func(u *adapter.Update) { u.Kind = adapter.Bias }), adapter.Limits{}, "a bias"},
		{with(func(u *adapter.Update) { u.Kind = "unheard of" }), adapter.Limits{}, "unheard of"},
	} {
		c.limits.Title = "a thing"
		err := (&adapter.Adapter{Space: naming.HF, Updates: c.updates}).Within(c.limits)
		if c.want == "" {
			if err != nil {
				t.Errorf("got %v", err)
			}
			continue
		}
		if f := finding.Of(err); f == nil || !strings.Contains(f.Message, c.want) || f.Hint == "" || f.Tensor != "q.a" || f.Module == "" {
			t.Errorf("got %v, expected %q", err, c.want)
		}
	}
	if err := (&adapter.Adapter{Space: naming.GGUF}).Within(adapter.Limits{}); err == nil {
		t.Error("GGUF names pass")
	}
	if err := (&adapter.Adapter{Space: naming.HF, Metadata: [][2]string{{adapter.InvocationTokens, "1"}}}).Within(adapter.Limits{}); err == nil {
		t.Error("an activated LoRA passes")
	}
}

// TestRearranged checks the factors made of others, and which keep the stored type.
func TestRearranged(t *testing.T) {
	half := tensor.Tensor{Spec: tensor.Spec{Name: "x", DType: tensor.BF16, Shape: tensor.Shape{2, 3}}, Src: strings.NewReader("\x80\x3f\x00\x40\x40\x40\x80\x40\xa0\x40\xc0\x40"), Size: 12}
	f := adapter.FromTensor(half, 2, 3, adapter.ReadFloats) // 1 2 3 / 4 5 6
	for name, c := range map[string]struct {
		f    adapter.Factor
		want []float32
		kept bool
	}{
		"transposed": {f.Transpose(), []float32{1, 4, 2, 5, 3, 6}, true},
		"sliced":     {f.SliceRows(1, 1), []float32{4, 5, 6}, true},
		"stacked":    {adapter.Stacked(f, f.SliceRows(0, 1)), []float32{1, 2, 3, 4, 5, 6, 1, 2, 3}, true},
		"padded":     {f.Padded(3), []float32{1, 2, 3, 4, 5, 6, 0, 0, 0}, true},
		"scaled":     {f.Scaled(0.5), []float32{0.5, 1, 1.5, 2, 2.5, 3}, false},
		"unscaled":   {f.Scaled(1), []float32{1, 2, 3, 4, 5, 6}, true},
		"mixed":      {adapter.Stacked(f, adapter.FromValues(1, 3, []float32{7, 8, 9})), []float32{1, 2, 3, 4, 5, 6, 7, 8, 9}, false},
	} {
		v, err := c.f.Load()
		if err != nil || !slices.Equal(v, c.want) || (c.f.DType == tensor.BF16) != c.kept {
			t.Errorf("%s is %v of type %s, %v", name, v, c.f.DType, err)
		}
	}
	// Tiles larger and smaller than the matrix.
	big := make([]float32, 37*50)
	for i := range big {
		big[i] = float32(i)
	}
	v, err := adapter.FromValues(37, 50, big).Transpose().Load()
	if err != nil {
		t.Fatal(err)
	}
	for i := range v {
		if v[i] != float32(i%37*50+i/37) {
			t.Fatalf("element %d is %g", i, v[i])
		}
	}
	a := adapter.Update{A: adapter.FromValues(1, 2, []float32{1, 2}), B: adapter.FromValues(2, 1, []float32{3, 4})}
	pa, pb := a.PaddedRank(2)
	va, _ := pa.Load()
	vb, _ := pb.Load()
	if !slices.Equal(va, []float32{1, 2, 0, 0}) || !slices.Equal(vb, []float32{3, 0, 4, 0}) {
		t.Errorf("%v %v", va, vb)
	}
}
