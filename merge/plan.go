// Package merge bakes adapters into a base model.
//
// A Plan says, without having read a weight, what every tensor of the output is: its source, its
// updates, its type. Run carries a plan out slab by slab:
//
//	read rows → decode to float32 → apply updates → encode to the target type → write at a known offset
//
// Rows are independent, so the bytes do not depend on the number of workers or the size of a slab.
package merge

import (
	"encoding/json"
	"fmt"
	"sort"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// A Base is the model that adapters are baked into.
type Base interface {
	Path() string
	Format() string
	Tensors() []tensor.Tensor
}

// An Input is an adapter and the user's factor for it: 1 adds it, -1 subtracts it.
type Input struct {
	Adapter *adapter.Adapter
	Scale   float64
}

// Options are the choices a plan depends on.
type Options struct {
	// Resolve finds the places of an adapter's modules in the base.
	Resolve func(*adapter.Adapter) (naming.Resolver, error)
	// DType converts every float tensor, and every quantized tensor that is updated, to this type.
	// Invalid keeps each tensor's own type. GGUF vectors stay as they are, since llama.cpp needs them
	// in float32.
	DType tensor.DType
	// Quantize, where set, chooses the type of a tensor; it overrides DType.
	Quantize func(tensor.Spec) tensor.DType
	// RefuseRequant makes an update of a quantized tensor that keeps its type an error.
	RefuseRequant bool
	// AllowUnmatched turns updates without a tensor in the base from errors into warnings.
	AllowUnmatched bool
	// Compat reproduces the roundings of a peer.
	Compat Compat
	// Tied says what happens when an adapter changes one side of tied embeddings.
	Tied TiedPolicy
	// CheckOnly makes a plan that is compared with and never run: types that cannot be written are fine.
	CheckOnly bool
}

// A Compat names a peer whose intermediate roundings are reproduced.
type Compat string

// The peers. The default, "", keeps float32 until the one rounding at the end; it equals PEFT's merge of
// linear layers bit for bit.
const (
	CompatNone           Compat = ""
	CompatPEFT           Compat = "peft"            // embeddings: s·B·A is rounded to the base's type before it is added
	CompatPEFTSafe       Compat = "peft-safe"       // safe_merge=True: so is every layer's
	CompatPEFTNoAutocast Compat = "peft-noautocast" // autocast_adapter_dtype=False: factors and s·B·A are
)

// A Plan is the whole output in order. It marshals to the JSON that a dry run prints.
type Plan struct {
	Tensors  []Output          `json:"tensors"`
	Pairs    []Pair            `json:"pairs"`
	Findings []finding.Finding `json:"findings"`

	clones []Clone // the last tensors of the plan are theirs
	untied bool    // the output stores embeddings apart that the base ties
}

// An Output is one tensor of the output.
type Output struct {
	Name       string       `json:"name"`
	SourceType typeName     `json:"source_type"`
	Type       typeName     `json:"type"`
	Shape      tensor.Shape `json:"shape"`
	Updates    []Applied    `json:"updates"`

	source tensor.Tensor
	frame  adapter.Frame
	ops    []adapter.Op
	places []naming.Place
}

type typeName tensor.DType

func (t typeName) MarshalJSON() ([]byte, error) { return json.Marshal(tensor.DType(t).String()) }

// Spec is what the output's layout needs to know of the tensor.
func (o *Output) Spec() tensor.Spec {
	return tensor.Spec{Name: o.Name, DType: tensor.DType(o.Type), Shape: o.Shape}
}

// Ops are the updates bound to the tensor, and the frame they work in.
func (o *Output) Ops() ([]adapter.Op, adapter.Frame) { return o.ops, o.frame }

// Places are where the updates land, parallel to Updates.
func (o *Output) Places() []naming.Place { return o.places }

// Source is the tensor the output is made from: the base's, or the adapter's where it replaces the base's.
func (o *Output) Source() tensor.Tensor { return o.source }

// copies reports whether the tensor's bytes are the source's.
func (o *Output) copies() bool { return len(o.ops) == 0 && o.SourceType == o.Type }

// replaced reports whether the tensor is made from the adapter's instead of the base's.
func (o *Output) replaced() bool { return len(o.ops) == 0 && len(o.Updates) > 0 }

// An Applied is an update as a plan shows it.
type Applied struct {
	Adapter string         `json:"adapter"`
	Module  string         `json:"module"`
	Kind    adapter.Kind   `json:"kind"`
	Rank    int            `json:"rank,omitempty"`
	Scale   *adapter.Scale `json:"scale,omitempty"`
	Place   string         `json:"place,omitempty"` // how and where it lies in the tensor, when that is not plain
}

// A Pair is what became of one update of an adapter.
type Pair struct {
	Adapter string   `json:"adapter"`
	Module  string   `json:"module"`
	Param   string   `json:"param"`
	State   string   `json:"state"` // applied, replaced, refused
	Tensors []string `json:"tensors"`
	Reason  string   `json:"reason,omitempty"`
}

// NewPlan matches every update of the inputs with the base's tensors. All problems are collected in the
// plan's Findings; when one of them is an error, the plan is returned with an error that is the first.
func NewPlan(base Base, inputs []Input, opt Options) (*Plan, error) {
	p := &planner{base: base, opt: opt, plan: &Plan{}, index: map[string]int{}}
	for _, t := range base.Tensors() {
		p.index[t.Name] = len(p.plan.Tensors)
		p.plan.Tensors = append(p.plan.Tensors, Output{
			Name: t.Name, SourceType: typeName(t.DType), Shape: t.Shape, Updates: []Applied{}, source: t,
		})
	}
	p.updates = make([][]bound, len(p.plan.Tensors))
	p.tie = findTie(base)
	for _, in := range inputs {
		p.plan.Findings = append(p.plan.Findings, in.Adapter.Findings...)
		if err := p.match(in); err != nil {
			if f := finding.Of(err); f != nil {
				p.plan.Findings = append(p.plan.Findings, *f)
			}
			return p.plan, err
		}
	}
	for i := range p.plan.Tensors {
		p.bind(i)
	}
	if len(inputs) > 0 && p.applied == 0 && p.first == nil {
		p.fail(finding.Errorf("match.nothing_to_do", base.Path(), "no update of the adapters matches a tensor of the base"))
	}
	if p.first != nil {
		return p.plan, p.first
	}
	return p.plan, nil
}

type bound struct {
	in    Input
	u     *adapter.Update
	place naming.Place
	pair  int
}

type planner struct {
	base    Base
	opt     Options
	plan    *Plan
	index   map[string]int
	updates [][]bound
	tie     *tie // nil unless the base ties its embeddings
	applied int
	first   *finding.Finding
}

func (p *planner) fail(f *finding.Finding) {
	if p.first == nil {
		p.first = f
	}
	p.plan.Findings = append(p.plan.Findings, *f)
}

// match finds the tensors of one adapter's updates.
func (p *planner) match(in Input) error {
	a := in.Adapter
	if a.NoMerge != nil {
		return a.NoMerge
	}
	resolver, err := p.opt.Resolve(a)
	if err != nil {
		return err
	}
	for i := range a.Updates {
		u := &a.Updates[i]
		pair := len(p.plan.Pairs)
		p.plan.Pairs = append(p.plan.Pairs, Pair{Adapter: a.Path, Module: u.Module, Param: u.Param, State: "refused", Tensors: u.Tensors})
		places, err := resolver.Find(u.Module, u.Param)
		if p.tie != nil {
			places, err = p.tied(a, u, places, err)
		}
		if err != nil {
			p.unmatched(a, u, pair, err)
			continue
		}
		for _, place := range places {
			if place.Matrices > 0 && u.Experts > 0 && place.Matrix != int64(u.Expert) {
				continue // the base stores each expert on its own, and this is another one's
			}
			if r, ok := resolver.(reader); ok && place.Uses > 1 {
				if place, err = p.shared(a, u, r, place); err != nil {
					p.unmatched(a, u, pair, err)
					continue
				}
			}
			t, ok := p.index[place.Tensor]
			if !ok {
				p.unmatched(a, u, pair, &naming.NotFound{Module: u.Module, Param: u.Param})
				continue
			}
			p.updates[t] = append(p.updates[t], bound{in, u, place, pair})
		}
	}
	return nil
}

func (p *planner) unmatched(a *adapter.Adapter, u *adapter.Update, pair int, err error) {
	p.plan.Pairs[pair].Reason = err.Error()
	if f := finding.Of(err); f != nil {
		p.fail(f)
		return
	}
	f := finding.Errorf("match.unmatched_target", a.Path, "%v", err)
	f.Module = u.Module
	f.Hint = "the adapter belongs to another base, or its names have drifted; --allow-unmatched goes on without it"
	if p.opt.AllowUnmatched {
		f.Level = finding.Warning
		p.plan.Findings = append(p.plan.Findings, *f)
		return
	}
	p.fail(f)
}

// bind turns the updates of one tensor into ops.
func (p *planner) bind(i int) {
	out := &p.plan.Tensors[i]
	ups := p.updates[i]
	// A replacement stands before everything that is added to it.
	sort.SliceStable(ups, func(a, b int) bool {
		return ups[a].u.Kind == adapter.Replace && ups[b].u.Kind != adapter.Replace
	})
	var layer adapter.Layer
	for _, b := range ups {
		if b.u.Layer == adapter.Conv {
			layer = adapter.Conv
		}
	}
	var err error
	if out.frame, err = adapter.FrameOf(out.Shape, layer); err != nil {
		p.fail(finding.Errorf("container.overflow", p.base.Path(), "%v", err).In(out.Name))
		return
	}
	for _, b := range ups {
		if err := p.bindOne(out, b); err != nil {
			f := finding.Of(err)
			if f == nil {
				f = finding.Errorf("adapter.unsupported_feature", "", "%v", err)
			}
			if f.File == "" {
				f.File = b.in.Adapter.Path
			}
			p.plan.Pairs[b.pair].Reason = f.Message
			p.fail(f)
			continue
		}
		p.applied++
	}
	p.chooseType(out)
}

func (p *planner) bindOne(out *Output, b bound) error {
	u, base := *b.u, p.base.Path()
	switch u.Kind {
	case adapter.Replace, adapter.Rows:
		if b.in.Scale < 0 {
			return finding.Errorf("adapter.unsupported_feature", "", "module %q is replaced as a whole, which cannot be subtracted", u.Module).
				Hinted("merge from the original base instead")
		}
		for _, a := range out.Updates {
			if a.Adapter != b.in.Adapter.Path {
				return finding.Errorf("adapter.conflict", "", "two adapters change %q, and %s replaces it", out.Name, b.in.Adapter.Path).
					Hinted("merge one of them alone")
			}
		}
		u.Scale = adapter.Scale{Value: 1, Source: "replacement"}
	}
	u.Scale = u.Scale.Times(b.in.Scale)
	if out.source.DType == tensor.Invalid {
		return finding.Errorf("container.unsupported", base, "tensor has no known type").In(out.Name)
	}
	applied := Applied{Adapter: b.in.Adapter.Path, Module: moduleName(u.Target), Kind: u.Kind, Rank: u.Rank, Place: describe(b.place)}
	if u.Kind == adapter.LowRank || u.Kind == adapter.DoRA || u.Kind == adapter.Bias {
		s := u.Scale
		applied.Scale = &s
	}
	op, err := adapter.Bind(&u, b.place, out.source.Spec, out.frame, p.rounding(&u, out))
	if err != nil {
		return err
	}
	p.plan.Pairs[b.pair].State = "applied"
	if u.Kind == adapter.Replace {
		p.plan.Pairs[b.pair].State = "replaced"
	}
	out.Updates = append(out.Updates, applied)
	out.places = append(out.places, b.place)
	if st := u.Value.Stored; u.Kind == adapter.Replace && st != nil && len(out.ops) == 0 && b.in.Scale == 1 && plain(b.place) && !out.Quantized() {
		out.source = tensor.Tensor{Spec: tensor.Spec{Name: out.Name, DType: st.DType, Shape: out.Shape}, Src: st.Src, Off: st.Off, Size: st.Size}
		return nil
	}
	out.ops = append(out.ops, op)
	return nil
}

// moduleName is how reports call what an update changes: the module, or the parameter when it is not its weight.
func moduleName(t adapter.Target) string {
	if t.Param == "weight" {
		return t.Module
	}
	return t.String()
}

// Quantized reports whether the base stores the tensor in a block type.
func (o *Output) Quantized() bool { return tensor.DType(o.SourceType).IsBlock() }

// plain reports whether the stored tensor is the canonical parameter as it is.
func plain(p naming.Place) bool {
	return !p.Transposed && p.Rows == 0 && p.RowOffset == 0 && p.Heads == 0 && p.Experts == 0
}

func describe(p naming.Place) string {
	var s string
	add := func(format string, a ...any) {
		if s != "" {
			s += ", "
		}
		s += fmt.Sprintf(format, a...)
	}
	if p.Rule != "" && p.Rule != "name" {
		add("by %s", p.Rule)
	}
	if p.Transposed {
		add("stored [in, out]")
	}
	if p.Rows > 0 {
		add("rows %d to %d", p.RowOffset, p.RowOffset+p.Rows-1)
	}
	if p.Heads > 0 {
		add("rows reordered for %d heads", p.Heads)
	}
	if p.Experts > 0 {
		add("expert %d of %d", p.Expert, p.Experts)
	}
	return s
}

func (p *planner) rounding(u *adapter.Update, out *Output) adapter.Rounding {
	t := tensor.DType(out.SourceType)
	if !t.IsFloat() || t == tensor.F32 || t == tensor.F64 {
		return adapter.Rounding{}
	}
	switch p.opt.Compat {
	case CompatPEFT:
		if u.Layer == adapter.Embedding {
			return adapter.Rounding{Delta: t}
		}
	case CompatPEFTSafe:
		return adapter.Rounding{Delta: t}
	case CompatPEFTNoAutocast:
		return adapter.Rounding{Factors: t, Delta: t, DoRA: t}
	}
	return adapter.Rounding{}
}

// chooseType sets the type the tensor is stored in and checks that it can be made.
func (p *planner) chooseType(out *Output) {
	source := tensor.DType(out.SourceType)
	out.Type = out.SourceType
	updated := len(out.Updates) > 0
	switch {
	case p.opt.Quantize != nil:
		out.Type = typeName(p.opt.Quantize(out.source.Spec))
	case p.opt.DType == tensor.Invalid, p.base.Format() == "gguf" && len(out.Shape) < 2:
	case source.IsFloat(), source.IsBlock() && updated:
		out.Type = typeName(p.opt.DType)
	}
	if p.base.Format() == "onnx" && out.Type != out.SourceType {
		p.fail(finding.Errorf("merge.unsupported_type", p.base.Path(), "an ONNX graph computes in the types its weights have, so none is changed").
			In(out.Name).Expected(tensor.DType(out.Type), source).Hinted("leave --dtype out"))
		return
	}
	if tensor.DType(out.Type) == out.source.DType && len(out.ops) == 0 {
		return
	}
	for _, t := range []tensor.DType{source, out.source.DType} {
		if _, ok := quant.Of(t); !ok {
			p.fail(finding.Errorf("merge.unsupported_type", p.base.Path(), "type %s cannot be decoded", t).In(out.Name))
			return
		}
	}
	if p.opt.CheckOnly {
		return
	}
	target := tensor.DType(out.Type)
	if c, ok := quant.Of(target); !ok || !c.CanEncode() {
		p.fail(finding.Errorf("merge.unsupported_type", p.base.Path(), "the updated tensor cannot be stored as %s", target).In(out.Name).
			Hinted("--dtype f16 stores updated tensors in float16"))
		return
	}
	if _, err := out.Spec().Bytes(); err != nil {
		p.fail(finding.Errorf("merge.unsupported_type", p.base.Path(), "%v", err).In(out.Name))
		return
	}
	if target.IsBlock() && out.frame.Cols%int64(target.BlockLen()) != 0 {
		p.fail(finding.Errorf("merge.unsupported_type", p.base.Path(), "rows of %d elements do not hold whole blocks of %s", out.frame.Cols, target).In(out.Name))
		return
	}
	if updated && source.IsBlock() && target == source && p.opt.RefuseRequant {
		p.fail(finding.Errorf("merge.requantize", p.base.Path(), "the base stores this tensor as %s, and --requant refuse was given", source).In(out.Name).
			Hinted("--dtype f16 stores updated tensors in float16"))
	}
}
