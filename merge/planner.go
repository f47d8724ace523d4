package merge

import (
	"fmt"
	"sort"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// NewPlan matches every update of the inputs with the base's tensors. All problems are collected in the
// plan's Findings; when one of them is an error, the plan is returned with an error that is the first.
func NewPlan(base Base, inputs []Input, opt Options) (*Plan, error) {
	p := &planner{base: base, opt: opt, plan: &Plan{typed: opt.TypeOf != nil}, index: map[string]int{}, refused: map[string]bool{}}
	for _, t := range base.Tensors() {
		p.index[t.Name] = len(p.plan.Tensors)
		p.plan.Tensors = append(p.plan.Tensors, p.newOutput(t))
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
	if q := opt.Quantize; q != nil {
		if err := p.quantize(q); err != nil {
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
	tie     *tie            // nil unless the base ties its embeddings
	refused map[string]bool // schemes that are not written
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
	a, err := translate(p.base, a)
	if err != nil {
		return err
	}
	a = renamed(p.base, a)
	in.Adapter = a
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
			if u.Optional && finding.Of(err) == nil {
				p.plan.Pairs = p.plan.Pairs[:pair]
				continue
			}
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
		if b.u.LayerIn(b.place, out.Shape) == adapter.Conv {
			layer = adapter.Conv
		}
	}
	if w := out.weight; w != nil && !w.Stored() && len(out.Shape) > 2 {
		layer = adapter.Conv // encoded by outputs, whether it is updated or not
	}
	var err error
	if out.frame, err = adapter.FrameOf(out.Shape, layer); err != nil {
		p.fail(finding.Errorf("container.overflow", p.base.Path(), "%v", err).In(out.Name))
		return
	}
	if n := len(out.Shape); out.importance != nil && (n == 0 || out.frame.Cols != out.Shape[n-1]) {
		p.fail(finding.Errorf("merge.unsupported_type", p.base.Path(), "a convolution is not quantized with an importance matrix").In(out.Name))
		return
	}
	for _, b := range ups {
		if out.weight != nil && out.weight.Turned {
			b = turned(b)
		}
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
	if u.Kind == adapter.Replace && p.shiftedNorm(out.Name) {
		return finding.Errorf("adapter.unsupported_feature", "", "a whole norm of module %q: this GGUF stores norms with 1 added", u.Module).
			In(out.Name).Hinted("merge into the Hugging Face folder and convert the result")
	}
	if out.source.DType == tensor.Invalid {
		return finding.Errorf("container.unsupported", base, "tensor has no known type").In(out.Name)
	}
	applied := Applied{Adapter: b.in.Adapter.Path, Module: moduleName(u.Target), Kind: u.Kind, Rank: u.Rank, Place: describe(b.place)}
	if u.Rank > 0 || u.Kind == adapter.Bias {
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
	out.ops, out.bound, out.calibration = append(out.ops, op), append(out.bound, u), p.opt.Calibration
	inputs := out.area(len(out.ops) - 1).Cols
	if out.area(len(out.ops) - 1).Transposed {
		inputs = out.area(len(out.ops) - 1).Rows
	}
	if f := p.opt.Calibration.check(u.Module, inputs, out.source.Spec); f != nil {
		return f
	}
	return nil
}

// shiftedNorm reports whether a GGUF base stores a norm's scale with 1 added, as llama.cpp does for Gemma.
func (p *planner) shiftedNorm(name string) bool {
	m, ok := p.base.(LlamaModel)
	return ok && strings.HasPrefix(m.Arch(), "gemma") && strings.HasSuffix(name, "_norm.weight")
}

// moduleName is how reports call what an update changes: the module, or the parameter when it is not its weight.
func moduleName(t adapter.Target) string {
	if t.Param == "weight" {
		return t.Module
	}
	return t.String()
}

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
