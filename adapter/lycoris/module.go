// Package lycoris decodes the algorithms of LyCORIS, kohya's sd-scripts and their relatives from the tensors
// of one module: LoCon with its Tucker form, LoHa, LoKr, GLoRA, (IA)³, whole differences, norms, OFT and
// BOFT on outputs and OneTrainer's OFT on inputs, each with DoRA on either axis. Names of modules are the caller's business.
//
// The formulas are those that the trainers compute with; where loaders differ from them (a scale taken
// twice, a kernel's core left out, a strength squared), the trainers are followed.
package lycoris

import (
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// A Module is what a file holds for one module.
type Module struct {
	// Name is the module's path in the names of the base, for the updates' targets.
	Name string
	// File is the adapter's file, for findings.
	File string
	// Tensors are the module's tensors by suffix: "lora_down.weight", "lora_up.weight", "lora_mid.weight",
	// "hada_w1_a", "lokr_w1", "oft_blocks", "a1.weight", "diff", "diff_b", "w_norm", "dora_scale", "alpha" and
	// so on.
	Tensors map[string]*tensor.Tensor
	// Scale, where not nil, gives the scale of a product with a rank. Where it is nil, "scale" counts, else
	// "alpha" by the rank, else 1.
	Scale func(rank int) (adapter.Scale, error)
	// FullAlpha applies alpha to a LoKr whose matrices both are whole. LyCORIS does not: their alpha is what
	// the creation left there, up to 10¹⁰.
	FullAlpha bool
	// Conv says that the module is a convolution, which decides the side of OneTrainer's rotations.
	Conv bool
}

// Suffixes are the suffixes that Decode understands.
var Suffixes = []string{
	"lora_down.weight", "lora_up.weight", "lora_mid.weight", "lora_up.bias", "alpha", "scale", "dora_scale", "rescale",
	"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
	"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
	"a1.weight", "a2.weight", "b1.weight", "b2.weight", "weight", "on_input", "diff", "diff_b", "w_norm", "b_norm", "oft_blocks", "oft_diag",
	"oft_R.weight", "oft_R.scaled_oft",
}

// Decode turns the tensors of a module into updates of its weight and bias. A tensor that the algorithm has
// no use for is an error.
func Decode(m Module) ([]adapter.Update, error) {
	d := &decoder{Module: m, used: map[string]bool{}}
	for _, suffix := range d.sorted() {
		if t := m.Tensors[suffix]; !t.DType.IsFloat() && suffix != "on_input" && suffix != "oft_R.scaled_oft" && !strings.HasPrefix(suffix, "bias_") {
			return nil, d.errorf("bad_dtype", suffix, "a weight cannot be of type %s", t.DType)
		}
	}
	for _, a := range []struct {
		marks  []string
		decode func() (*adapter.Update, error)
	}{
		{[]string{"lora_down.weight", "lora_up.weight"}, d.lora},
		{[]string{"hada_w1_a", "hada_w1_b"}, d.loha},
		{[]string{"lokr_w1", "lokr_w1_a", "lokr_w2", "lokr_w2_a"}, d.lokr},
		{[]string{"a1.weight", "b1.weight"}, d.glora},
		{[]string{"on_input"}, d.ia3},
		{[]string{"oft_blocks", "oft_diag"}, d.oft},
		{[]string{"oft_R.weight"}, d.inputRotations},
		{[]string{"diff"}, d.diff},
		{[]string{"w_norm"}, d.norm},
	} {
		if !slices.ContainsFunc(a.marks, func(s string) bool { return m.Tensors[s] != nil }) {
			continue
		}
		u, err := a.decode()
		if err != nil {
			return nil, err
		}
		if err := d.magnitude(u); err != nil {
			return nil, err
		}
		d.updates = append(d.updates, *u)
	}
	for _, suffix := range []string{"diff_b", "b_norm", "lora_up.bias"} {
		if err := d.bias(suffix); err != nil {
			return nil, err
		}
	}
	for _, suffix := range d.sorted() {
		if d.used[suffix] || (suffix == "alpha" || suffix == "scale") && len(d.updates) > 0 {
			continue
		}
		f := d.errorf("unsupported_feature", suffix, "a tensor of kind %q is not supported here", suffix)
		return nil, f.Hinted("merge it with the tool it was made with")
	}
	return d.updates, nil
}

type decoder struct {
	Module
	used    map[string]bool
	updates []adapter.Update
}

func (d *decoder) sorted() []string {
	var s []string
	for suffix := range d.Tensors {
		s = append(s, suffix)
	}
	slices.Sort(s)
	return s
}

func (d *decoder) errorf(reason, suffix, format string, a ...any) *finding.Finding {
	f := finding.Errorf("adapter."+reason, d.File, format, a...)
	f.Module = d.Name
	if t := d.Tensors[suffix]; t != nil {
		return f.In(t.Name)
	}
	return f
}

// update begins an update of a parameter.
func (d *decoder) update(param string, kind adapter.Kind) *adapter.Update {
	return &adapter.Update{Target: adapter.Target{Module: d.Name, Param: param}, Kind: kind, Layer: adapter.Linear, Scale: adapter.Scale{Value: 1, Source: "the difference as it is"}}
}

// take is a tensor that the algorithm needs, seen as a matrix with its first dimension as rows.
func (d *decoder) take(u *adapter.Update, suffix string) (adapter.Factor, error) {
	t := d.Tensors[suffix]
	if t == nil {
		return adapter.Factor{}, d.errorf("missing_pair", "", "module %q has no tensor %q", d.Name, suffix).Hinted("the file is incomplete")
	}
	if len(t.Shape) < 2 {
		return adapter.Factor{}, d.errorf("shape_mismatch", suffix, "not a matrix").Expected(t.Shape, "two dimensions or more")
	}
	rows, cols, err := t.Shape.Matrix()
	if err != nil || rows == 0 || cols == 0 {
		return adapter.Factor{}, d.errorf("shape_mismatch", suffix, "an empty factor").Expected(t.Shape, "two dimensions or more")
	}
	d.use(u, suffix)
	return adapter.FromTensor(*t, rows, cols, adapter.ReadFloats), nil
}

func (d *decoder) use(u *adapter.Update, suffix string) {
	d.used[suffix] = true
	u.Tensors = append(u.Tensors, d.Tensors[suffix].Name)
}

// pair takes both factors of a product, A [r, in…] and B [out, r].
func (d *decoder) pair(u *adapter.Update, a, b string) (fa, fb adapter.Factor, err error) {
	if fa, err = d.take(u, a); err != nil {
		return fa, fb, err
	}
	if fb, err = d.take(u, b); err != nil {
		return fa, fb, err
	}
	return fa, fb, d.fit(fa, fb, a, b)
}

func (d *decoder) fit(fa, fb adapter.Factor, a, b string) error {
	if fa.Rows == fb.Cols {
		return nil
	}
	return d.errorf("rank_mismatch", a, "the factors of module %q have different ranks", d.Name).
		Expected(fmt.Sprintf("%s [%d, %d], %s [%d, %d]", a, fa.Rows, fa.Cols, b, fb.Rows, fb.Cols), "[r, in] and [out, r]")
}

// scale is that of a product of some rank.
func (d *decoder) scale(rank int64) (adapter.Scale, error) {
	if d.Scale != nil {
		return d.Scale(int(rank))
	}
	for _, suffix := range []string{"scale", "alpha"} {
		if d.Tensors[suffix] == nil {
			continue
		}
		x, err := d.number(suffix)
		if err != nil {
			return adapter.Scale{}, err
		}
		if suffix == "scale" {
			return adapter.Scale{Value: x, Alpha: x * float64(rank), Rank: int(rank), Source: fmt.Sprintf("scale %g", x)}, nil
		}
		return adapter.AlphaScale(x, int(rank), "alpha"), nil
	}
	return adapter.Scale{Value: 1, Alpha: float64(rank), Rank: int(rank), Source: "no alpha: the rank"}, nil
}

// number reads a tensor of one finite number.
func (d *decoder) number(suffix string) (float64, error) {
	t := d.Tensors[suffix]
	if n, err := t.Shape.Elements(); err != nil || n != 1 {
		return 0, d.errorf("bad_alpha", suffix, "must be one number").Expected(t.Shape, "[]")
	}
	v, err := adapter.ReadFloats(t)
	if err != nil {
		return 0, err
	}
	if x := float64(v[0]); x-x == 0 {
		return x, nil
	}
	return 0, d.errorf("bad_alpha", suffix, "is %v", v[0])
}

// magnitude makes a DoRA of an update where the module has magnitudes.
func (d *decoder) magnitude(u *adapter.Update) error {
	t := d.Tensors["dora_scale"]
	if t == nil {
		return nil
	}
	n, err := t.Shape.Elements()
	if err != nil || n == 0 {
		return d.errorf("shape_mismatch", "dora_scale", "no magnitudes").Expected(t.Shape, "[out, 1] or [1, in]")
	}
	switch u.Kind {
	case adapter.LowRank:
		u.Kind = adapter.DoRA
	case adapter.LoHa, adapter.LoKr, adapter.Full:
	default:
		return d.errorf("unsupported_feature", "dora_scale", "magnitudes with an update of kind %q", u.Kind)
	}
	// [out, 1, …] or [1, in, …]: the axis is the one that is not 1.
	out := u.Outputs()
	switch s := t.Shape; {
	case len(s) > 1 && s[0] == n && n == out:
	case len(s) > 1 && s[0] == 1 && s[1] == n:
		u.Input = true
	case len(s) == 1 && n == out: // PEFT's, by output
	default:
		return d.errorf("shape_mismatch", "dora_scale", "the magnitudes belong to no axis of module %q", d.Name).Expected(s, fmt.Sprintf("[%d, 1] or [1, in]", out))
	}
	d.use(u, "dora_scale")
	u.Magnitude = adapter.FromTensor(*t, 1, n, adapter.ReadFloats)
	return nil
}

// bias adds a difference of the bias: as it is, or scaled with the product for a bias of lora_up.
func (d *decoder) bias(suffix string) error {
	t := d.Tensors[suffix]
	if t == nil {
		return nil
	}
	n, err := t.Shape.Elements()
	if err != nil || n == 0 || n != t.Shape[0] {
		return d.errorf("shape_mismatch", suffix, "the difference of a bias must be a vector").Expected(t.Shape, "[out]")
	}
	u := d.update("bias", adapter.Bias)
	if suffix == "lora_up.bias" && len(d.updates) > 0 {
		u.Scale, u.Rank = d.updates[0].Scale, d.updates[0].Rank
	}
	d.use(u, suffix)
	u.Value = adapter.FromTensor(*t, 1, n, adapter.ReadFloats)
	d.updates = append(d.updates, *u)
	return nil
}

// kernel is what a tensor with more than two dimensions says of the module.
func kernel(u *adapter.Update, shape tensor.Shape) {
	if len(shape) > 2 {
		u.Layer, u.Kernel = adapter.Conv, shape[2:]
	}
}
