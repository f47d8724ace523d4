// Package combination makes one adapter of several.
//
// Sums are those of the differences, Σ w·ΔW, which PEFT's "linear" is not: it adds A's and B's, so that each A
// meets each B. The methods that prune do so to the factors, as in PEFT, or to the differences where their name
// ends in _svd.
package combination

import (
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/lowrank"
	"github.com/loratool/loratool/finding"
)

// An Input is an adapter and its weight, which may be negative.
type Input struct {
	Adapter *adapter.Adapter
	Weight  float64
}

// Options say how adapters are combined.
type Options struct {
	Method  string  // one of Methods
	Density float64 // the share of the elements that pruning keeps, in (0, 1]; 1 prunes nothing
	// Frequency: the sign that most adapters have is the majority's, else the sign of their sum.
	Frequency bool
	Seed      uint64 // of the elements that DARE keeps
	// PEFT reproduces add_weighted_adapter of PEFT 0.20: "linear" adds the factors, and the scale counts twice
	// in "svd" and the methods that end in _svd.
	PEFT bool

	mask mask // of DARE; nil draws by Seed
}

// A method is what happens to the parts of an update before and while they are added.
type method struct {
	prune    prune
	disjoint bool // only elements of the majority's sign are added, and averaged
}

// methods are those that work on factors, or on differences as NAME_svd.
var methods = map[string]method{
	"ties":            {byMagnitude, true},
	"dare_ties":       {atRandom, true},
	"dare_linear":     {atRandom, false},
	"magnitude_prune": {byMagnitude, false},
}

// Methods lists the names of all methods.
func Methods() []string {
	return []string{"cat", "linear", "svd", "ties", "ties_svd", "dare_linear", "dare_linear_svd", "dare_ties", "dare_ties_svd", "magnitude_prune", "magnitude_prune_svd"}
}

// Limited reports whether the result of a method has no rank of its own, so that one must be chosen: Rank is
// what PEFT takes.
func (o Options) Limited() bool {
	return o.Method == "svd" || o.Method == "linear" && !o.PEFT || strings.HasSuffix(o.Method, "_svd")
}

// Rank is the largest rank of the updates that are combined.
func Rank(inputs []Input) (most int) {
	for _, in := range inputs {
		for i := range in.Adapter.Updates {
			if u, ok := in.Adapter.Updates[i].Factored(); ok {
				most = max(most, u.Rank)
			}
		}
	}
	return max(most, 1)
}

// A target names what updates of different adapters are combined for.
type target struct {
	adapter.Target
	expert int
}

// A part is one adapter's update of a target, with its weight.
type part struct {
	u      *adapter.Update
	weight float64
	input  int
}

// strength is the factor of the part's product B·A.
func (p *part) strength() float64 { return float64(p.weight * p.u.Scale.Value) }

// Of combines adapters whose modules have names of one world. Updates that depend on the base are refused, and
// values that replace others unless one adapter alone has them, at weight 1. The result reads the factors of the
// inputs when its own are loaded, so they must stay open; differences are of kind Full, for lowrank.Convert.
func Of(inputs []Input, opt Options) (*adapter.Adapter, error) {
	first := inputs[0].Adapter
	out := &adapter.Adapter{Path: first.Path, Dialect: first.Dialect, Space: first.Space, BaseModel: first.BaseModel, Arch: first.Arch, Metadata: nil}
	if !slices.Contains(Methods(), opt.Method) {
		return nil, finding.Errorf("combine.unknown_method", first.Path, "adapters are not combined by %q", opt.Method).Expected(opt.Method, strings.Join(Methods(), ", "))
	}
	byTarget := map[target][]part{}
	var order []target
	for i, in := range inputs {
		a := in.Adapter
		if err := belongs(a, out); err != nil {
			return nil, err
		}
		if a.BaseModel != "" && out.BaseModel != "" && a.BaseModel != out.BaseModel {
			out.Findings = append(out.Findings, *finding.Warnf("base.mismatch", a.Path, "the adapters name different base models").Expected(a.BaseModel, out.BaseModel))
		}
		for j := range a.Updates {
			u := &a.Updates[j]
			t := target{u.Target, u.Expert}
			if byTarget[t] == nil {
				order = append(order, t)
			}
			byTarget[t] = append(byTarget[t], part{u, in.Weight, i})
		}
	}
	for _, t := range order {
		u, err := opt.combine(byTarget[t])
		if err != nil {
			if f := finding.Of(err); f != nil && f.File == "" {
				f.File = inputs[byTarget[t][len(byTarget[t])-1].input].Adapter.Path
			}
			return nil, err
		}
		out.Updates = append(out.Updates, u)
	}
	return out, nil
}

// belongs refuses adapters whose modules are called something else, or whose effect is in doubt.
func belongs(a, first *adapter.Adapter) error {
	switch {
	case a.Doubt != nil:
		return a.Doubt
	case a.Space != first.Space:
		return finding.Errorf("combine.mixed_names", a.Path, "the adapters name their modules in different worlds").
			Expected(a.Dialect, first.Dialect).Hinted("convert them to one form first")
	case a.Arch != "" && first.Arch != "" && a.Arch != first.Arch:
		return finding.Errorf("base.mismatch", a.Path, "the adapters are for different architectures").Expected(a.Arch, first.Arch)
	}
	return nil
}

// combine makes one update of the parts of a target.
func (o Options) combine(parts []part) (adapter.Update, error) {
	u := *parts[0].u
	u.Tensors = nil
	for i := range parts {
		p := &parts[i]
		u.Tensors = append(u.Tensors, p.u.Tensors...)
		switch form := p.u.Form(); {
		case form == adapter.OnBase:
			return u, refuse(p, "what the %s update of module %q changes depends on the base's weights", p.u.Kind, p.u.Module).
				Hinted("merge the adapters into the base one after the other, then let extract make an adapter of the difference")
		case form == adapter.Whole && p.u.Kind != adapter.Bias && (len(parts) > 1 || p.weight != 1):
			return u, refuse(p, "the values of %q replace the base's: they can be taken from one adapter alone, at weight 1", p.u.Target)
		case (form == adapter.Whole) != (u.Form() == adapter.Whole) || p.u.Layer != u.Layer:
			return u, refuse(p, "the updates of %q are of different kinds", p.u.Target).Expected(p.u.Kind, u.Kind)
		}
	}
	switch {
	case u.Kind == adapter.Bias:
		return o.biases(u, parts)
	case u.Form() == adapter.Whole:
		return u, nil
	}
	if err := sameShape(parts); err != nil {
		return u, err
	}
	name, dense := strings.CutSuffix(o.Method, "_svd")
	m, prunes := methods[name]
	switch {
	case dense, prunes && !factored(parts), o.PEFT && o.Method == "svd":
		return o.differences(u, parts, m)
	case prunes, o.PEFT && o.Method == "linear":
		return o.factors(u, parts, m)
	}
	return o.sum(u, parts)
}

func refuse(p *part, format string, args ...any) *finding.Finding {
	f := finding.Errorf("adapter.unsupported_feature", "", format, args...)
	f.Module = p.u.Module
	return f
}

// factored reports whether all parts have factors.
func factored(parts []part) bool {
	return !slices.ContainsFunc(parts, func(p part) bool { _, ok := p.u.Factored(); return !ok })
}

// sameShape refuses updates of matrices of different sizes.
func sameShape(parts []part) error {
	for i := range parts {
		r, c := parts[i].u.Outputs(), parts[i].u.Inputs()
		if r0, c0 := parts[0].u.Outputs(), parts[0].u.Inputs(); r != r0 || c != c0 {
			return refuse(&parts[i], "the updates of module %q are of matrices of different sizes", parts[i].u.Module).
				Expected(fmt.Sprintf("[%d, %d]", r, c), fmt.Sprintf("[%d, %d]", r0, c0))
		}
	}
	return nil
}

// biases adds vectors.
func (o Options) biases(u adapter.Update, parts []part) (adapter.Update, error) {
	for i := range parts {
		if parts[i].u.Outputs() != u.Outputs() {
			return u, refuse(&parts[i], "the updates of %q are of different sizes", u.Target).Expected(parts[i].u.Outputs(), u.Outputs())
		}
	}
	u.Value = weighted(u.Value.Rows, u.Value.Cols, parts, (*part).strength, func(p *part) ([]float32, error) { return p.u.Value.Load() })
	u.Scale = one(1)
	return u, nil
}

// sum is Σ w·s·B·A as one product: the A's on top of one another beside the B's next to one another; or as one
// matrix where a part has no factors.
func (o Options) sum(u adapter.Update, parts []part) (adapter.Update, error) {
	if len(parts) == 1 {
		u.Scale = u.Scale.Times(parts[0].weight)
		return u, nil
	}
	if !factored(parts) {
		return o.differences(u, parts, method{})
	}
	var as, bs []adapter.Factor
	rank := 0
	for i := range parts {
		f, _ := parts[i].u.Factored()
		as = append(as, f.A)
		bs = append(bs, f.B.Scaled(parts[i].strength()).Transpose())
		rank += f.Rank
	}
	f, _ := u.Factored()
	f.A, f.B, f.Rank, f.Scale = adapter.Stacked(as...), adapter.Stacked(bs...).Transpose(), rank, one(rank)
	f.Tensors = u.Tensors
	return f, nil
}

// differences works on the matrices of the differences.
func (o Options) differences(u adapter.Update, parts []part, m method) (adapter.Update, error) {
	rows, cols := u.Outputs(), u.Inputs()
	strength := func(p *part) float64 { return p.weight }
	if o.PEFT {
		strength = (*part).strength
	}
	side := o.side(&u, "", m)
	v := adapter.Update{Target: u.Target, Kind: adapter.Full, Layer: u.Layer, Kernel: u.KernelShape(), Scale: one(1), Tensors: u.Tensors,
		Expert: u.Expert, Experts: u.Experts, Swapped: u.Swapped, FanInFanOut: u.FanInFanOut}
	v.Value = adapter.FromFunc(rows, cols, func() ([]float32, error) {
		ts, ws := make([][]float32, len(parts)), make([]float64, len(parts))
		for i := range parts {
			d, err := lowrank.Matrix(parts[i].u)
			if err != nil {
				return nil, err
			}
			s := float32(parts[i].u.Scale.Value)
			for j, x := range d {
				d[j] = s * x
			}
			ts[i], ws[i] = d, strength(&parts[i])
		}
		return side.merge(ts, ws), nil
	})
	if u.Layer == adapter.Embedding && u.Kind != adapter.Full { // whose B·A is the transpose
		v.Value = v.Value.Transpose()
	}
	return v, nil
}

func one(rank int) adapter.Scale {
	return adapter.Scale{Value: 1, Alpha: float64(rank), Rank: rank, Source: "combined"}
}
