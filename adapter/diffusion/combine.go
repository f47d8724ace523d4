package diffusion

import (
	"slices"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// fused is the update of a fused module as the target stores it: the whole that the adapter has, or one made of
// its parts.
func (e *encoder) fused(g *group) (*adapter.Update, error) {
	m := *g.name.Module
	first := slices.IndexFunc(g.low, func(u adapter.Update) bool { return u.Kind != "" })
	if first < 0 {
		return &g.whole, nil
	}
	if g.whole.Kind != "" {
		return nil, e.fill(&g.whole, g.low[first])
	}
	parts := g.low
	if e.form.uniform && len(parts) == 4 { // x-flux adapts q, k and v of linear1
		if err := trim(parts); err != nil {
			return nil, err
		}
		if parts[3].Kind != "" {
			if err := e.unnamed(&parts[3], parts[3].Module); err != nil {
				return nil, err
			}
		}
		parts, m.Parts = parts[:3], m.Parts[:3]
	}
	u := &parts[first]
	if slices.ContainsFunc(parts, func(v adapter.Update) bool { return v.Kind != "" && v.Kind != u.Kind }) || u.Kind == adapter.LoKr && !divided(&m, parts) {
		for p := range parts { // what has exact factors can still be fused
			if parts[p].Kind == "" {
				continue
			}
			low, ok := lowered(parts[p])
			if !ok {
				return nil, e.unfused(&parts[p], &m)
			}
			parts[p] = low
		}
	}
	switch {
	case isFactors(u):
		return fuse(&m, parts)
	case u.Kind == adapter.LoKr:
		return stackKron(parts), nil
	}
	whole, err := e.combined(&m, parts)
	if whole == nil && err == nil {
		return nil, e.unfused(u, &m)
	}
	return whole, err
}

// unfused is the error for parts that make no update of the whole.
func (e *encoder) unfused(u *adapter.Update, m *naming.DiffusionModule) error {
	why := "the parts' updates do not make one"
	switch {
	case u.Magnitude.Present() && u.Kind != adapter.OFT:
		why = "the parts' magnitudes belong to norms of their own, or are not there for all parts"
	case u.Kind == adapter.GLoRA, u.Kind == adapter.IA3 && u.Input, u.Kind == adapter.OFT && u.Input:
		why = "the parts change their inputs in different ways, or not all of them do"
	case u.Kind == adapter.OFT:
		why = "the parts' rotations have different blocks or stages"
	}
	return e.hinted(u, e.a.Refuse(u, "%s stores %q as one module, and updates of kind %s cannot be fused there: %s", e.title, m.Original, u.Kind, why))
}

// combined makes one update of the whole from updates of one kind of its parts, nil where there is none.
func (e *encoder) combined(m *naming.DiffusionModule, parts []adapter.Update) (*adapter.Update, error) {
	first := slices.IndexFunc(parts, func(u adapter.Update) bool { return u.Kind != "" })
	out := parts[first]
	all := !slices.ContainsFunc(parts, func(v adapter.Update) bool { return v.Kind == "" })
	decomposed := out.Magnitude.Present() && out.Kind != adapter.OFT
	var have []*adapter.Update
	out.Tensors = nil
	for p := range parts {
		v := &parts[p]
		if v.Kind == "" {
			continue
		}
		if v.Input != out.Input || v.Magnitude.Present() != out.Magnitude.Present() || decomposed && (!all || v.Input) {
			return nil, nil
		}
		have, out.Tensors = append(have, v), append(out.Tensors, v.Tensors...)
	}
	if out.Input && (out.Kind == adapter.IA3 || out.Kind == adapter.OFT) { // the rows do not matter
		if same, err := alike(have, all); !same || err != nil {
			return nil, err
		}
		return &out, nil
	}
	_, rows, err := present(m, parts, (*adapter.Update).Outputs)
	if err != nil {
		return nil, err
	}
	ok := true
	switch out.Kind {
	case adapter.LoHa:
		err = combineLoHa(&out, m, parts)
	case adapter.Full:
		out.Value, out.Scale = stacked(m, parts, rows, 0, func(v *adapter.Update) adapter.Factor { return scaled(v.Value, v.Scale.Value) }), adapter.Scale{Value: 1, Source: "folded"}
	case adapter.IA3:
		out.Value = stacked(m, parts, rows, 1, func(v *adapter.Update) adapter.Factor {
			f := v.Value
			f.Rows, f.Cols = f.Rows*f.Cols, 1
			return f
		})
		out.Value.Rows, out.Value.Cols = 1, rows
	case adapter.OFT:
		ok = combineOFT(&out, m, parts, have, rows)
	case adapter.GLoRA:
		ok, err = combineGLoRA(&out, m, parts, have, all)
	default:
		ok = false
	}
	if !ok || err != nil {
		return nil, err
	}
	if decomposed {
		out.Magnitude = magnitudes(have)
	}
	return &out, nil
}

// combineLoHa stacks both products of the parts: the rows of a part have its own, and the scales go into the first.
func combineLoHa(out *adapter.Update, m *naming.DiffusionModule, parts []adapter.Update) error {
	one, two := make([]adapter.Update, len(parts)), make([]adapter.Update, len(parts))
	for p, u := range parts {
		if u.Kind != "" {
			one[p] = adapter.Update{Kind: adapter.LowRank, A: u.A, B: u.B, Scale: u.Scale}
			two[p] = adapter.Update{Kind: adapter.LowRank, A: u.A2, B: u.B2, Scale: adapter.Scale{Value: 1}}
		}
	}
	first, err := fuse(m, one)
	if err != nil {
		return err
	}
	second, err := fuse(m, two)
	if err != nil {
		return err
	}
	out.A, out.B, out.A2, out.B2 = first.A, first.B, second.A, second.B
	out.Rank, out.Scale = first.Rank, first.Scale
	return nil
}

// combineOFT puts the parts' blocks below one another. It is false where they have other sizes or stages, or do not
// fill the rows of a part.
func combineOFT(out *adapter.Update, m *naming.DiffusionModule, parts []adapter.Update, have []*adapter.Update, rows int64) bool {
	b := out.Turn.Block
	for p := range m.Parts {
		if _, n, _ := m.Slice(p, rows); n%b != 0 {
			return false
		}
	}
	for _, v := range have {
		if staged(v.Turn) || v.Turn.Block != b || v.Magnitude.Present() && len(have) < len(parts) {
			return false
		}
	}
	out.Turn, out.Value = out.Turn.Computed(), stackedBlocks(m, parts, rows, b)
	if out.Magnitude.Present() {
		out.Magnitude = magnitudes(have)
	}
	return true
}

// combineGLoRA fuses what is added to the weight, where all parts change their inputs in the same way. It is false where
// they do not, or the ranks of both halves would differ then.
func combineGLoRA(out *adapter.Update, m *naming.DiffusionModule, parts []adapter.Update, have []*adapter.Update, all bool) (bool, error) {
	if same, err := alike(have, all); !same || err != nil {
		return false, err
	}
	low := slices.Clone(parts)
	for p := range low {
		if low[p].Kind = adapter.LowRank; low[p].Scale.Value != out.Scale.Value {
			return false, nil
		}
	}
	one, err := fuse(m, low)
	if err != nil || one.Rank != out.Rank {
		return false, err
	}
	out.A, out.B = one.A, one.B
	return true, nil
}

// alike reports whether all parts change their inputs in the same way.
func alike(have []*adapter.Update, all bool) (bool, error) {
	if !all {
		return false, nil
	}
	for _, v := range have[1:] {
		pairs := [][2]adapter.Factor{{have[0].A2, v.A2}, {have[0].B2, v.B2}}
		if v.Kind != adapter.GLoRA {
			pairs = [][2]adapter.Factor{{have[0].Value, v.Value}}
		}
		for _, p := range pairs {
			if same, err := p[0].Same(p[1]); !same || err != nil {
				return false, err
			}
		}
	}
	return true, nil
}

// stacked puts the parts' matrices on top of one another, and rows of one value where a part has none.
func stacked(m *naming.DiffusionModule, parts []adapter.Update, rows int64, otherwise float32, of func(*adapter.Update) adapter.Factor) adapter.Factor {
	var fs []adapter.Factor
	cols, kind := int64(0), tensor.Invalid
	for p := range parts {
		if parts[p].Kind != "" {
			f := of(&parts[p])
			cols, kind = f.Cols, f.DType
		}
	}
	for p := range m.Parts {
		if parts[p].Kind != "" {
			fs = append(fs, of(&parts[p]))
			continue
		}
		_, n, _ := m.Slice(p, rows)
		f := adapter.FromFunc(n, cols, func() ([]float32, error) { return slices.Repeat([]float32{otherwise}, int(n*cols)), nil })
		f.DType = kind
		fs = append(fs, f)
	}
	return adapter.Stacked(fs...)
}

// stackedBlocks puts the parts' blocks of rotations below one another, and blocks that turn nothing where a part
// has none.
func stackedBlocks(m *naming.DiffusionModule, parts []adapter.Update, rows, b int64) adapter.Factor {
	var fs []adapter.Factor
	for p := range m.Parts {
		if parts[p].Kind != "" {
			fs = append(fs, parts[p].Value)
			continue
		}
		_, n, _ := m.Slice(p, rows)
		fs = append(fs, adapter.FromFunc(n, b, func() ([]float32, error) {
			v := make([]float32, n*b)
			for i := range n {
				v[i*b+i%b] = 1
			}
			return v, nil
		}))
	}
	return adapter.Stacked(fs...)
}

// divided reports whether the parts of a fused module are the rows of one Kronecker product, as they are where it
// was cut: all have the same second matrix.
func divided(m *naming.DiffusionModule, parts []adapter.Update) bool {
	if _, _, err := present(m, parts, (*adapter.Update).Outputs); err != nil {
		return false
	}
	u := &parts[0]
	for p := range parts {
		v := &parts[p]
		if v.Kind != adapter.LoKr || v.Scale.Value != u.Scale.Value || v.Magnitude.Present() && (v.Input || !u.Magnitude.Present()) || !v.Magnitude.Present() && u.Magnitude.Present() {
			return false
		}
		pairs := [][2]adapter.Factor{{u.Kron[1].Full, v.Kron[1].Full}, {u.Kron[1].A, v.Kron[1].A}, {u.Kron[1].B, v.Kron[1].B}, {u.Kron[0].A, v.Kron[0].A}}
		if v.Kron[0].Full.Present() != u.Kron[0].Full.Present() || v.Kron[0].Full.Cols != u.Kron[0].Full.Cols {
			return false
		}
		for _, x := range pairs {
			if same, err := x[0].Same(x[1]); !same || err != nil {
				return false
			}
		}
	}
	return true
}

// stackKron is the Kronecker product whose first matrix is those of the parts on top of one another.
func stackKron(parts []adapter.Update) *adapter.Update {
	out := parts[0]
	var fulls, bs []adapter.Factor
	var have []*adapter.Update
	out.Tensors = nil
	for p := range parts {
		fulls, bs = append(fulls, parts[p].Kron[0].Full), append(bs, parts[p].Kron[0].B)
		have, out.Tensors = append(have, &parts[p]), append(out.Tensors, parts[p].Tensors...)
	}
	if fulls[0].Present() {
		out.Kron[0].Full = adapter.Stacked(fulls...)
	} else {
		out.Kron[0].B = adapter.Stacked(bs...)
	}
	if out.Magnitude.Present() {
		out.Magnitude = magnitudes(have)
	}
	return &out
}
