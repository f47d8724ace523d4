package target

import (
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/naming"
)

// Loads says what the target does with an adapter's files as they are: everything Check finds, and what a
// conversion would repair.
func (t *Target) Loads(a *adapter.Adapter) []finding.Finding {
	c := checker{t: t, a: a}
	switch {
	case t.Unscaled && a.Dialect == "peft":
		c.unscaled()
	case a.Dialect != t.Dialect && !slices.Contains(t.Also, a.Dialect):
		c.add(finding.Error, "dialect", "%s reads adapters of the dialect %s", t.Title, t.Dialect).Expected(a.Dialect, t.Dialect).Hinted(c.rewrite())
	default:
		if t.OneScale && a.Dialect == "peft" {
			c.scales()
		}
		if t.Names != nil {
			c.names()
		}
	}
	return append(c.findings, t.Check(a)...)
}

// rewrite is the advice to convert.
func (c *checker) rewrite() string {
	return "convert --for " + c.t.Name + " writes it, with the same ΔW"
}

// names reports factors whose names the target does not read.
func (c *checker) names() {
	n, first := 0, -1
	for i, u := range c.a.Updates {
		if u.Kind == adapter.LowRank && slices.ContainsFunc(u.Tensors, func(name string) bool { return !c.t.Names.MatchString(name) }) {
			if n == 0 {
				first = i
			}
			n++
		}
	}
	if n > 0 {
		u := c.a.Updates[first]
		c.about(u, finding.Error, "names", "%s does not read factors named like %q; %d modules have such", c.t.Title, u.Tensors[0], n).In(u.Tensors[0]).
			Hinted("convert --for " + c.t.Name + " writes the names it reads")
	}
}

// Fits says whether the adapter fits a base as the target sees it: the names, shapes and types of an ONNX
// model's inputs, the tensors of a GGUF. base is a path as dialect.Target takes it. Nothing is said where
// Check has errors already.
func (t *Target) Fits(a *adapter.Adapter, base string) []finding.Finding {
	if slices.ContainsFunc(t.Check(a), func(f finding.Finding) bool { return f.Level == finding.Error }) || a.Space == naming.GGUF {
		return nil
	}
	out, err := t.Encode(a, dialect.Target{Name: "adapter", Base: base})
	if f := finding.Of(err); f != nil {
		return []finding.Finding{*f}
	} else if err != nil {
		return []finding.Finding{*finding.Errorf("target.base", base, "%v", err)}
	}
	c := checker{t: t, a: a, findings: out.Findings}
	if a.Dialect == "ort" && t.Dialect == "ort" {
		c.inputs(out)
	}
	return c.findings
}

// inputs reports parameters that are no inputs of the model. One of them makes the whole run fail.
func (c *checker) inputs(out *dialect.Output) {
	for _, u := range c.a.Updates {
		for _, name := range u.Tensors {
			if !slices.ContainsFunc(out.Weights, func(w adapter.Weight) bool { return w.Name == name }) {
				c.add(finding.Error, "names", "the model has no input of the parameter's name, so ONNX Runtime refuses to run it").In(name).
					Hinted("convert --to ort --base MODEL.onnx writes the names that the model declares")
				return
			}
		}
	}
}

// Check says what the target cannot do with an adapter in whatever form: limits of ranks, kinds of updates,
// modules that must come together. An empty list is a clean bill.
func (t *Target) Check(a *adapter.Adapter) []finding.Finding {
	c := checker{t: t, a: a}
	c.kinds()
	c.modules()
	c.ranks()
	c.groups()
	if !t.Activated && slices.ContainsFunc(a.Metadata, func(m [2]string) bool { return m[0] == adapter.InvocationTokens }) {
		c.add(finding.Error, "activation", "%s applies an adapter to all tokens, and this one acts only after its invocation tokens", t.Title).
			Hinted("serve it with a program that activates it, such as llama.cpp")
	}
	return c.findings
}

type checker struct {
	t        *Target
	a        *adapter.Adapter
	findings []finding.Finding
}

func (c *checker) add(level finding.Level, reason, format string, args ...any) *finding.Finding {
	f := finding.Errorf("target."+reason, c.a.Path, format, args...)
	f.Level = level
	c.findings = append(c.findings, *f)
	return &c.findings[len(c.findings)-1]
}

// about adds a finding that names an update's module.
func (c *checker) about(u adapter.Update, level finding.Level, reason, format string, args ...any) *finding.Finding {
	f := c.add(level, reason, format, args...)
	f.Module = u.Module
	return f
}

const merge = "merge the adapter into the base instead"

// kinds reports each kind of update that the target cannot apply, once.
func (c *checker) kinds() {
	t := c.t
	for _, k := range []struct {
		allowed      bool
		reason, what string
		is           func(u *adapter.Update) bool
	}{
		{t.DoRA, "dora", "applies no DoRA magnitudes", func(u *adapter.Update) bool { return u.Kind == adapter.DoRA }},
		{t.Replaced, "saved_modules", "replaces no whole parameters (modules_to_save, trained biases)", func(u *adapter.Update) bool {
			return u.Kind == adapter.Replace && !(t.SkipsNorms && strings.Contains(u.Module, "norm"))
		}},
		{t.Rows, "token_rows", "replaces no trained token rows", func(u *adapter.Update) bool { return u.Kind == adapter.Rows }},
		{t.Bias, "bias", "adds no bias of lora_B", func(u *adapter.Update) bool { return u.Kind == adapter.Bias }},
		{t.Embeddings, "embedding", "adapts no embeddings", func(u *adapter.Update) bool { return u.Layer == adapter.Embedding && u.Kind == adapter.LowRank }},
		{t.Convolutions, "convolution", "adapts no convolutions", func(u *adapter.Update) bool { return u.Layer == adapter.Conv }},
		{t.Stacks, "experts", "adapts no experts that are stacked in one parameter", func(u *adapter.Update) bool { return u.Experts > 0 }},
	} {
		if k.allowed {
			continue
		}
		if n, first := c.count(k.is); n > 0 {
			c.about(first, finding.Error, k.reason, "%s %s; the adapter has %d, the first of %q", t.Title, k.what, n, first.Target).Hinted(merge)
		}
	}
	if n, first := c.count(func(u *adapter.Update) bool { return u.Kind == adapter.DoRA && u.Layer == adapter.Embedding }); t.DoRA && n > 0 {
		c.about(first, finding.Error, "dora", "%s keeps a magnitude for every token of an embedding, and the adapter one for every dimension", t.Title).Hinted(merge)
	}
	if n, first := c.count(func(u *adapter.Update) bool { return u.Kind == adapter.Replace && strings.Contains(u.Module, "norm") }); t.SkipsNorms && n > 0 {
		c.about(first, finding.Warning, "norms", "%s leaves %d whole norm vectors out without a word, the first of %q", t.Title, n, first.Target).Hinted(merge)
	}
	others := map[adapter.Kind]bool{adapter.LowRank: true, adapter.DoRA: true, adapter.Replace: true, adapter.Rows: true, adapter.Bias: true}
	for i := range c.a.Updates {
		if u := &c.a.Updates[i]; !others[u.Kind] {
			others[u.Kind] = true
			c.about(*u, finding.Error, "kind", "%s applies no updates of kind %q", t.Title, u.Kind).Hinted(merge + ", or convert to low rank first")
		}
	}
}

// count says how many updates fulfil a condition, and which is the first.
func (c *checker) count(is func(u *adapter.Update) bool) (n int, first adapter.Update) {
	for i := range c.a.Updates {
		if u := &c.a.Updates[i]; is(u) {
			if n == 0 {
				first = *u
			}
			n++
		}
	}
	return n, first
}

// modules reports modules that the target cannot adapt, beside those that kinds has reported.
func (c *checker) modules() {
	if c.t.Knows == nil || c.a.Space != naming.HF {
		return
	}
	n, first := c.count(func(u *adapter.Update) bool {
		return u.Kind == adapter.LowRank && u.Layer == adapter.Linear && u.Experts == 0 && !c.t.Knows(u.Module)
	})
	if n > 0 {
		c.about(first, finding.Error, "module", "%s has no place for %d modules, the first of which is %q", c.t.Title, n, first.Module).Hinted(merge)
	}
}

func (c *checker) ranks() {
	var largest adapter.Update
	for _, u := range c.a.Updates {
		if (u.Kind == adapter.LowRank || u.Kind == adapter.DoRA) && u.Rank > largest.Rank {
			largest = u
		}
	}
	rank, module := largest.Rank, largest.Module
	allowed := rank
	if n := len(c.t.Ranks); n > 0 {
		i, _ := slices.BinarySearch(c.t.Ranks, rank)
		if i == n {
			c.about(largest, finding.Error, "rank", "%s loads no ranks that high", c.t.Title).Expected(fmt.Sprintf("%d (%s)", rank, module), fmt.Sprintf("at most %d", c.t.Ranks[n-1])).
				Hinted("resize the adapter, or merge it")
			return
		}
		allowed = c.t.Ranks[i]
	}
	if c.t.Default > 0 && rank > c.t.Default {
		c.about(largest, finding.Warning, "rank", "%s loads the rank only if it is told to", c.t.Title).Expected(fmt.Sprintf("%d (%s)", rank, module), fmt.Sprintf("at most %d by default", c.t.Default)).
			Hinted(fmt.Sprintf("start it with %s %d", c.t.Option, allowed))
	}
}

// groups reports layers in which only some of the modules that belong together are adapted.
func (c *checker) groups() {
	if c.a.Space != naming.HF {
		return
	}
	for _, g := range c.t.Groups {
		has := map[string][]string{}
		var order []string
		for _, u := range c.a.Updates {
			i := strings.LastIndexByte(u.Module, '.')
			if leaf := u.Module[i+1:]; u.Kind == adapter.LowRank && slices.Contains(g, leaf) {
				if parent := u.Module[:max(i, 0)]; has[parent] == nil {
					order = append(order, parent)
				}
				has[u.Module[:max(i, 0)]] = append(has[u.Module[:max(i, 0)]], leaf)
			}
		}
		for _, parent := range order {
			if len(has[parent]) < len(g) {
				f := c.add(c.t.Level, "incomplete_group", "%s needs all of %s or none of them", c.t.Title, strings.Join(g, ", ")).
					Expected(fmt.Sprintf("only %s of %q", strings.Join(has[parent], ", "), parent), "all").
					Hinted("train all of them; an untrained one is a pair of zeros")
				f.Module = parent
				break
			}
		}
	}
}

// scales reports modules whose scale is not the one that the target takes for all of them: lora_alpha / r, or by
// the root of r where it heeds use_rslora.
func (c *checker) scales() {
	taken := c.a.Stated
	if taken.Rank > 0 && !c.t.RSLoRA && taken.Value != taken.Alpha/float64(taken.Rank) {
		c.add(finding.Error, "rslora", "%s ignores use_rslora and divides lora_alpha by r", c.t.Title).
			Expected(fmt.Sprintf("a scale of %g", taken.Alpha/float64(taken.Rank)), fmt.Sprintf("%g", taken.Value)).Hinted(c.rewrite())
	}
	if taken.Rank == 0 { // no configuration: the first module's scale stands for it
		_, first := c.count(func(u *adapter.Update) bool { return u.Kind == adapter.LowRank })
		taken = first.Scale
	}
	other := func(u *adapter.Update) bool { return u.Kind == adapter.LowRank && u.Scale.Value != taken.Value }
	if n, first := c.count(other); n > 0 {
		c.about(first, finding.Error, "scale", "%s takes one scale from lora_alpha and r and ignores patterns; %d modules have another", c.t.Title, n).
			Expected(fmt.Sprintf("%g (%s)", taken.Value, taken.Source), fmt.Sprintf("%g (%s)", first.Scale.Value, first.Scale.Source)).Hinted(c.rewrite())
	}
}

// unscaled reports modules whose scale a target that reads no configuration would leave out.
func (c *checker) unscaled() {
	if n, first := c.count(func(u *adapter.Update) bool { return u.Kind == adapter.LowRank && u.Scale.Value != 1 }); n > 0 {
		c.about(first, finding.Error, "scale", "%s reads no configuration and scales by 1 where a file has no alpha tensors; %d modules have another scale", c.t.Title, n).
			Expected("1", fmt.Sprintf("%g (%s)", first.Scale.Value, first.Scale.Source)).Hinted(c.rewrite())
	}
}

// Encode lays an adapter out for the target. Where it takes one scale, ranks are filled up with zeros to
// the largest, and scales that differ go into lora_B, so that no pattern is needed.
func (t *Target) Encode(a *adapter.Adapter, to dialect.Target) (*dialect.Output, error) {
	for _, f := range t.Check(a) {
		if f.Level == finding.Error {
			return nil, &f
		}
	}
	if t.OneScale && t.Dialect == "peft" {
		a = uniform(a)
	}
	return dialect.Encode(a, t.Dialect, to)
}

// uniform gives all low-rank updates of single matrices one rank and one scale, as lora_alpha / r.
func uniform(a *adapter.Adapter) *adapter.Adapter {
	count := map[float64]int{}
	scale, rank := 0.0, 0
	for _, u := range a.Updates {
		count[u.Scale.Value]++
		rank = max(rank, u.Rank)
	}
	for _, u := range a.Updates {
		if v := u.Scale.Value; u.Kind == adapter.LowRank && v != 0 && (scale == 0 || count[v] > count[scale]) {
			scale = v
		}
	}
	if scale == 0 {
		return a
	}
	out := *a
	out.Updates = slices.Clone(a.Updates)
	for i := range out.Updates {
		u := &out.Updates[i]
		if u.Kind != adapter.LowRank {
			continue
		}
		plain := adapter.Scale{Value: scale, Alpha: scale * float64(rank), Rank: rank, Source: u.Scale.Source}
		if u.Scale.Value == scale && u.Rank == rank {
			u.Scale = plain // of rsLoRA, another alpha
			continue
		}
		x := u.Scale.Value / scale
		u.A, u.B = u.PaddedRank(int64(rank))
		u.B = u.B.Scaled(x)
		u.Rank, u.Scale = rank, plain
		u.Scale.Source += ", in lora_B"
	}
	return &out
}
