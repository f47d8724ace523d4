package peft

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// factors turns every pair of factors into updates, in file order.
func (d *decoder) factors(a *adapter.Adapter) error {
	for _, s := range d.sites {
		if err := d.complete(s); err != nil {
			return err
		}
		var ups []adapter.Update
		var err error
		if params := d.parametersOf(s.module); len(params) > 0 && !s.inner && !s.embedded {
			ups, err = d.parameter(s, params)
		} else {
			ups, err = d.layer(s)
		}
		if err != nil {
			return err
		}
		a.Updates = append(a.Updates, ups...)
	}
	return nil
}

// complete checks that a site has both factors, and a magnitude exactly where the configuration says so.
func (d *decoder) complete(s *site) error {
	switch {
	case s.a == nil || s.b == nil:
		missing := "A"
		if s.b == nil {
			missing = "B"
		}
		f := d.errorf("missing_pair", s.first, "module %q has no factor %s", s.module, missing)
		f.Module = s.module
		return f
	case d.dora && s.mag == nil:
		return d.errorf("missing_magnitude", s.first, "use_dora is set, but module %q has no lora_magnitude_vector", s.module)
	case !d.dora && s.mag != nil:
		return d.errorf("unsupported_feature", s.mag.Name, "the file has a DoRA magnitude, but use_dora is not set").Hinted("set use_dora if the adapter was trained with DoRA")
	}
	return nil
}

// layer makes the updates of a module that PEFT wraps as a layer.
func (d *decoder) layer(s *site) ([]adapter.Update, error) {
	if s.depth > 0 {
		return nil, d.errorf("unexpected_tensor", s.first, "factors below base_layer, but target_parameters names no parameter of %q", s.module)
	}
	u := adapter.Update{Target: adapter.Target{Module: s.module, Param: "weight"}, Kind: adapter.LowRank, FanInFanOut: d.fanInFanOut, Tensors: []string{s.a.Name, s.b.Name}}
	var err error
	if u.A, u.B, err = d.pair(s, &u); err != nil {
		return nil, err
	}
	if err := d.checkRank(s.path, s.a.Name, &u); err != nil {
		return nil, err
	}
	u.Scale = d.scale(s.path, u.Rank)
	attention := d.byPath[siteID{s.outer, 0}]
	switch {
	case s.inner && (attention == nil || !strings.HasSuffix(s.module, ".out_proj")):
		return nil, d.errorf("unexpected_tensor", s.first, "factors inside a wrapped module that is no attention")
	case s.inner:
		u.Scale.Value *= 2
		u.Scale.Source += " × 2 (PEFT applies the out_proj of an attention module twice)"
	case slices.ContainsFunc(d.sites, func(o *site) bool { return o.inner && o.outer == s.module }):
		u.Param = "in_proj_weight"
	}
	if s.mag != nil {
		if err := d.magnitude(s, &u); err != nil {
			return nil, err
		}
	}
	ups := []adapter.Update{u}
	if s.bias != nil {
		b, err := d.loraBias(s, &u)
		if err != nil {
			return nil, err
		}
		ups = append(ups, b)
	}
	return ups, nil
}

// pair reads the shapes of the factors and sees them as [r, in] and [out, r].
func (d *decoder) pair(s *site, u *adapter.Update) (a, b adapter.Factor, err error) {
	ar, ac, err := d.matrix(s.a, "[r, in]")
	if err != nil {
		return a, b, err
	}
	br, bc, err := d.matrix(s.b, "[out, r]")
	if err != nil {
		return a, b, err
	}
	switch {
	case s.embedded:
		u.Layer = adapter.Embedding
	case len(s.a.Shape) > 2 || len(s.b.Shape) > 2:
		u.Layer = adapter.Conv
	default:
		u.Layer = adapter.Linear
	}
	if len(s.a.Shape) != len(s.b.Shape) {
		return a, b, d.errorf("shape_mismatch", s.b.Name, "the factors have different numbers of dimensions").Expected(s.b.Shape, fmt.Sprintf("%d dimensions as in A %v", len(s.a.Shape), s.a.Shape))
	}
	if ar == 0 || bc == 0 {
		return a, b, d.errorf("rank_zero", s.a.Name, "the rank is 0").Expected(s.a.Shape, "[r, in] with r > 0")
	}
	if br == 0 || ac == 0 {
		return a, b, d.errorf("shape_mismatch", s.a.Name, "an empty factor").Expected(fmt.Sprintf("A %v, B %v", s.a.Shape, s.b.Shape), "A [r, in], B [out, r]")
	}
	if u.Layer == adapter.Conv {
		if kernel, _ := s.b.Shape[2:].Elements(); kernel != 1 {
			return a, b, d.errorf("shape_mismatch", s.b.Name, "the kernel of a convolution's B must be 1").Expected(s.b.Shape, "[out, r, 1, …]")
		}
		if bc != ar && ar%bc == 0 {
			return a, b, d.errorf("unsupported_feature", s.b.Name, "a convolution with %d groups: PEFT cannot merge it, and neither can this program", ar/bc)
		}
	}
	a, b = adapter.FromTensor(*s.a, ar, ac, adapter.ReadFloats), adapter.FromTensor(*s.b, br, bc, adapter.ReadFloats)
	if d.bd != nil && u.Layer == adapter.Linear {
		if a, b, err = d.blockFactors(s, a, b); err != nil {
			return a, b, err
		}
	}
	if a.Rows != b.Cols {
		reason, hint := "rank_mismatch", ""
		if a.Cols == b.Cols {
			reason, hint = "shape_mismatch", "A looks transposed"
		}
		return a, b, d.errorf(reason, s.a.Name, "the factors of module %q do not fit each other", s.module).
			Expected(fmt.Sprintf("A %v, B %v", s.a.Shape, s.b.Shape), "A [r, in], B [out, r]").Hinted(hint)
	}
	u.Rank = int(a.Rows)
	return a, b, nil
}

// checkRank compares the rank of the tensors, which counts, with the configuration.
func (d *decoder) checkRank(path, name string, u *adapter.Update) error {
	r, smaller := int64(u.Rank), min(u.A.Cols, u.B.Rows)
	if r > smaller {
		d.findings = append(d.findings, *finding.Warnf("adapter.rank_too_big", d.file, "the rank is above the smaller dimension of the matrix").In(name).Expected(r, fmt.Sprintf("at most %d", smaller)))
	}
	allowed := d.ranksOf(path)
	i := slices.Index(allowed, r)
	switch {
	case len(allowed) == 0 || i == 0:
	case i > 0:
		d.warn("pattern_order", "rank_pattern lost its order: %q has rank %d, but an earlier pattern says %d; alpha_pattern may be affected too", path, r, allowed[0])
	case r > smaller:
		// Already reported: with a rank beyond the matrix, r counts as a mistake of the configuration.
	default:
		return d.errorf("rank_mismatch", name, "the rank of the tensors is not the configuration's").Expected(r, allowed[0]).
			Hinted("with another r the scale lora_alpha / r would be wrong; correct r or rank_pattern")
	}
	return nil
}

// scale is lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora, for a module or parameter path.
func (d *decoder) scale(path string, rank int) adapter.Scale {
	alpha, source := d.alphaOf(path)
	s := adapter.Scale{Alpha: alpha, Rank: rank}
	if d.rslora {
		s.Value = alpha / math.Sqrt(float64(rank))
		s.Source = fmt.Sprintf("%s / sqrt(r %d), use_rslora", source, rank)
	} else {
		s.Value = alpha / float64(rank)
		s.Source = fmt.Sprintf("%s / r %d", source, rank)
	}
	return s
}

func (d *decoder) magnitude(s *site, u *adapter.Update) error {
	n, err := s.mag.Shape.Elements()
	if err != nil || n != u.B.Rows {
		return d.errorf("shape_mismatch", s.mag.Name, "one magnitude an output is needed").Expected(s.mag.Shape, fmt.Sprintf("[%d]", u.B.Rows))
	}
	u.Kind = adapter.DoRA
	u.Magnitude = adapter.FromTensor(*s.mag, 1, n, adapter.ReadFloats)
	u.Tensors = append(u.Tensors, s.mag.Name)
	return nil
}

func (d *decoder) loraBias(s *site, u *adapter.Update) (adapter.Update, error) {
	b := adapter.Update{Target: adapter.Target{Module: s.module, Param: "bias"}, Kind: adapter.Bias, Rank: u.Rank, Scale: u.Scale, Tensors: []string{s.bias.Name}}
	if len(s.bias.Shape) != 1 || s.bias.Shape[0] != u.B.Rows {
		return b, d.errorf("shape_mismatch", s.bias.Name, "the bias of B needs one value an output").Expected(s.bias.Shape, fmt.Sprintf("[%d]", u.B.Rows))
	}
	if !d.config.loraBias {
		d.findings = append(d.findings, *finding.Warnf("adapter.bias_without_flag", d.file, "a bias of B although lora_bias is not set: it is applied; PEFT would ignore it").In(s.bias.Name))
	}
	b.Value = adapter.FromTensor(*s.bias, 1, u.B.Rows, adapter.ReadFloats)
	return b, nil
}

// blockFactors expands the compact factors of BD-LoRA: a factor of n row chunks stands for the
// block-diagonal matrix of them. PEFT finds the modules by substring.
func (d *decoder) blockFactors(s *site, a, b adapter.Factor) (_, _ adapter.Factor, err error) {
	named := func(names []string) bool {
		return slices.ContainsFunc(names, func(n string) bool { return strings.Contains(s.module, n) })
	}
	expand := func(t *tensor.Tensor, f adapter.Factor) (adapter.Factor, error) {
		n := d.bd.blocks
		if f.Rows%n != 0 || f.Cols > math.MaxInt64/n {
			return f, d.errorf("shape_mismatch", t.Name, "the rows do not divide into %d blocks", n).Expected(t.Shape, fmt.Sprintf("a multiple of %d rows", n))
		}
		if n == 1 {
			return f, nil
		}
		return blockDiagonalOf(f, n), nil
	}
	if named(d.bd.a) {
		if a, err = expand(s.a, a); err != nil {
			return a, b, err
		}
	}
	if named(d.bd.b) {
		b, err = expand(s.b, b)
	}
	return a, b, err
}

// blockDiagonalOf places the n row chunks of f, rows/n × cols each, on the diagonal of a rows × n·cols
// matrix.
func blockDiagonalOf(f adapter.Factor, n int64) adapter.Factor {
	chunk := f.Rows / n
	return adapter.FromFunc(f.Rows, n*f.Cols, func() ([]float32, error) {
		v, err := f.Load()
		if err != nil {
			return nil, err
		}
		out := make([]float32, f.Rows*n*f.Cols)
		for i := range f.Rows {
			copy(out[(i*n+i/chunk)*f.Cols:], v[i*f.Cols:(i+1)*f.Cols])
		}
		return out, nil
	})
}
