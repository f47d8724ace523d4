// Package difference makes an adapter of what two models differ in: the way back from a fine-tuned or
// merged model to something small that can be moved, scaled and stacked.
package difference

import (
	"context"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/geometry"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// Options choose what is compared.
type Options struct {
	Include, Exclude *regexp.Regexp // of tensor names; nil includes all and excludes none
	Jobs             int            // tensors compared at once; at least one
	Progress         func(int64)    // called with the bytes of the base just compared; may be nil
}

// wants reports whether a tensor is compared.
func (o Options) wants(name string) bool {
	return (o.Include == nil || o.Include.MatchString(name)) && (o.Exclude == nil || !o.Exclude.MatchString(name))
}

// Bytes is how much of a base the comparison reads, for Options.Progress.
func Bytes(base formats.Model, opt Options) (n int64) {
	for _, t := range base.Tensors() {
		if opt.wants(t.Name) {
			n += t.Size
		}
	}
	return n
}

// Of is an adapter that turns base into tuned: one update of kind Full for each matrix that changed, and the
// whole value of each norm or bias that did (of a diffusers pipeline, whose dialects hold those as differences,
// what is added to it). Both models are of one format and have the same tensors; where
// tuned stores another type than base, what the rounding to it explains has not changed. The adapter reads the
// models when its factors are loaded, so they must stay open.
//
// A tensor that an adapter has no form for is an error: of another shape, in one model only, integers, stacked
// experts.
func Of(ctx context.Context, base, tuned formats.Model, opt Options) (*adapter.Adapter, error) {
	c := &comparison{base: base, tuned: tuned, opt: opt}
	out := &adapter.Adapter{Path: tuned.Path(), Dialect: "difference", Space: naming.HF, BaseModel: filepath.Base(filepath.Clean(base.Path()))}
	switch {
	case base.Format() != tuned.Format():
		return nil, finding.Errorf("base.mismatch", tuned.Path(), "the models are of different formats").
			Expected(tuned.Format(), base.Format()).Hinted("convert one of them first")
	case base.Format() == "gguf":
		out.Space = naming.GGUF
		if a, ok := base.(interface{ Arch() string }); ok {
			out.Arch = a.Arch()
		}
	case base.Format() != "safetensors" && base.Format() != "torch":
		return nil, finding.Errorf("base.unsupported", base.Path(), "adapters are not extracted from %s models, whose weights have no names of modules", base.Format()).
			Hinted("extract from the folders that the models were exported from")
	}
	pairs, err := c.pairs()
	if err != nil {
		return nil, err
	}
	changed := make([]bool, len(pairs))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(1, opt.Jobs))
	for i := range pairs {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			different, err := pairs[i].differ()
			changed[i] = different
			if opt.Progress != nil {
				opt.Progress(pairs[i].base.Size)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i := range pairs {
		if !changed[i] {
			continue
		}
		u, err := c.update(&pairs[i])
		if err != nil {
			return nil, err
		}
		out.Updates = append(out.Updates, u)
	}
	return out, nil
}

type comparison struct {
	base, tuned formats.Model
	opt         Options
	conv1D      *bool // whether the base is a model whose Conv1D layers store [in, out]
}

// pairs brings the tensors of both models together, in the base's order.
func (c *comparison) pairs() ([]pair, error) {
	byName := map[string]tensor.Tensor{}
	for _, t := range c.tuned.Tensors() {
		if c.opt.wants(t.Name) {
			byName[t.Name] = t
		}
	}
	var pairs []pair
	for _, b := range c.base.Tensors() {
		if !c.opt.wants(b.Name) {
			continue
		}
		t, ok := byName[b.Name]
		switch {
		case !ok:
			return nil, c.refuse(b.Name, "the base has a tensor that the tuned model lacks")
		case !b.Shape.Equal(t.Shape):
			return nil, c.refuse(b.Name, "the shapes differ").Expected(t.Shape, b.Shape)
		}
		delete(byName, b.Name)
		pairs = append(pairs, pair{b, t})
	}
	for _, t := range c.tuned.Tensors() { // in order, so that the message is always the same
		if _, ok := byName[t.Name]; ok {
			return nil, c.refuse(t.Name, "the tuned model has a tensor that the base lacks")
		}
	}
	return pairs, nil
}

// refuse names a tensor that no adapter could carry, and the way round it.
func (c *comparison) refuse(name, message string) *finding.Finding {
	return finding.Errorf("extract.unsupported", c.tuned.Path(), "%s", message).In(name).
		Hinted("leave it out with --exclude '^" + regexp.QuoteMeta(name) + "$'; the adapter will not restore it")
}

// update is the change of one tensor.
func (c *comparison) update(p *pair) (adapter.Update, error) {
	name, shape := p.base.Name, p.base.Shape
	i := strings.LastIndexByte(name, '.')
	module, param := name[:max(i, 0)], name[i+1:]
	u := adapter.Update{Target: adapter.Target{Module: module, Param: param}, Tensors: []string{name}, Scale: adapter.Scale{Value: 1, Alpha: 1, Rank: 1, Source: "difference"}}
	switch {
	case i <= 0 || len(shape) == 0:
		return u, c.refuse(name, "the tensor belongs to no module")
	case !p.base.DType.IsFloat() && !p.base.DType.IsBlock() || !p.tuned.DType.IsFloat() && !p.tuned.DType.IsBlock():
		return u, c.refuse(name, "a tensor that holds no floating-point values has changed").Expected(p.tuned.DType, "floats")
	case len(shape) == 1:
		if _, pipeline := c.base.(*formats.Pipeline); pipeline {
			u.Kind, u.Value = adapter.Bias, p.difference()
		} else {
			u.Kind, u.Value = adapter.Replace, adapter.FromTensor(p.tuned, 1, shape[0], adapter.ReadFloats)
		}
		return u, nil
	case len(shape) == 3 && (c.base.Format() == "gguf" || param != "weight"):
		return u, c.refuse(name, "stacked experts have changed, which are not extracted yet").Expected(shape, "a matrix")
	}
	u.Kind, u.Layer = adapter.Full, adapter.Linear
	u.Value = p.difference()
	switch {
	case len(shape) > 2:
		u.Layer, u.Kernel = adapter.Conv, shape[2:]
	case naming.IsEmbedding(module):
		u.Layer = adapter.Embedding
	case param == "weight" && naming.IsConv1D(module) && c.storesInputsFirst():
		u.Value, u.FanInFanOut = u.Value.Transpose(), true
	}
	return u, nil
}

// storesInputsFirst reports whether the base is of the GPT-2 family, by the config beside it.
func (c *comparison) storesInputsFirst() bool {
	if c.conv1D == nil {
		g, err := geometry.Read(c.base.Path())
		is := c.base.Format() != "gguf" && err == nil && g.Arch == "gpt2"
		c.conv1D = &is
	}
	return *c.conv1D
}
