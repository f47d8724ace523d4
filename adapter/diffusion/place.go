package diffusion

import (
	"slices"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/naming"
)

const mergeInstead = "merge the adapter into the base instead"

// place puts an update into the group of its module, in the rows that the target stores it with: cut into the
// modules of diffusers, or whole. original says that a module without parts has the rows of the original
// checkpoint.
func (e *encoder) place(n naming.DiffusionName, u adapter.Update, original bool) error {
	g, m := e.group(n), n.Module
	if u.Kind == adapter.Replace {
		return e.replace(g, &u)
	}
	if !e.holds(m, &u) {
		low, ok := lowered(u)
		if !ok || u.Param != "weight" {
			return e.refuse(&u)
		}
		u = low
	}
	if u.Param == "bias" {
		us, ok := split(u, n, nil, original)
		if !ok {
			return e.a.Refuse(&u, "the rows of module %q do not divide into its parts", u.Module)
		}
		for i := range us {
			if err := e.fill(&g.bias[max(0, n.Part)+i], us[i]); err != nil {
				return err
			}
		}
		return nil
	}
	asStored := e.form.body(n.Component) == naming.Original
	switch {
	case n.Part >= 0 && m.Swapped && original && asStored && !isFactors(&u):
		g.kept = true
	case n.Part >= 0 && m.Swapped && original:
		v, ok := swapped(&u)
		if !ok {
			return e.uncut(&u, m)
		}
		u = v
	case n.Part < 0 && asStored && !isFactors(&u):
		return e.fill(&g.whole, u)
	case n.Part < 0:
		parts, ok := cut(u, m)
		if !ok {
			low, exact := lowered(u)
			if parts, ok = cut(low, m); !exact || !ok {
				return e.uncut(&u, m)
			}
		}
		for p := range parts {
			if err := e.fill(&g.low[p], parts[p]); err != nil {
				return err
			}
		}
		return nil
	}
	return e.fill(&g.low[max(0, n.Part)], u)
}

// isFactors reports whether an update is brought into parts and fused again, so that ranks stay small.
func isFactors(u *adapter.Update) bool {
	return u.Kind == adapter.LowRank || u.Kind == adapter.DoRA && !u.Input
}

// cut cuts an update of a fused module into updates of its parts. It is false where the rows do not divide, or
// cannot be changed apart from one another.
func cut(u adapter.Update, m *naming.DiffusionModule) ([]adapter.Update, bool) {
	rows := u.Outputs()
	var out []adapter.Update
	for p := range m.Parts {
		v, ok := u, true
		if rows > 0 { // else all rows are changed in the same way
			first, count, divides := m.Slice(p, rows)
			if !divides {
				return nil, false
			}
			v, ok = u.GatherOutputs(count, func(i int64) int64 { return first + i })
		}
		if !ok || v.Kind == adapter.Full && u.Kind == adapter.LoKr {
			return nil, false
		}
		out = append(out, v)
	}
	return out, true
}

func (e *encoder) fill(slot *adapter.Update, u adapter.Update) error {
	if slot.Kind != "" {
		return e.a.Refuse(&u, "module %q has two updates of kinds %q and %q", u.Module, slot.Kind, u.Kind).Hinted("combine them into one first")
	}
	*slot = u
	return nil
}

// replace keeps a whole parameter that takes the place of the base's.
func (e *encoder) replace(g *group, u *adapter.Update) error {
	norm := g.name.Module.Kind == "norm"
	if e.form.set == "" || e.form.set == ".scale" && !norm || u.Layer != "" || u.Param != "weight" {
		return e.refuse(u)
	}
	if g.set != nil {
		return e.fill(g.set, *u)
	}
	g.set = u
	return nil
}

// holds reports whether the target has tensors for an update of a module as it is.
func (e *encoder) holds(m *naming.DiffusionModule, u *adapter.Update) bool {
	f := e.form
	if u.Kind == adapter.Bias {
		if m.Kind == "norm" {
			return f.norms
		}
		return f.bias != "" && u.Param == "bias"
	}
	if u.Param != "weight" {
		return false
	}
	if u.Magnitude.Present() && u.Kind != adapter.OFT && (f.magnitude == "" || u.Input && !f.inputs) {
		return false
	}
	switch u.Kind {
	case adapter.LowRank:
		return true
	case adapter.DoRA:
		return f.magnitude != ""
	case adapter.OFT:
		return slices.Contains(f.kinds, u.Kind) && f.turn.holds(u)
	}
	return slices.Contains(f.kinds, u.Kind)
}

// holds reports whether rotations can be stored: those of outputs as blocks, those of inputs as the packed
// values that they come from.
func (t turnForm) holds(u *adapter.Update) bool {
	switch t {
	case outputTurns:
		return !u.Input
	case plainTurns:
		return !u.Input && (!u.Magnitude.Present() || staged(u.Turn))
	case inputTurns:
		return u.Input && u.Turn.Packed && u.Turn.Raw.Present()
	}
	return false
}

// staged reports whether rotations are those of BOFT, in an order of rows of their own.
func staged(t *adapter.Turn) bool { return len(t.Stages) > 1 || t.Stages[0] != nil }

// lowered is an update with exact factors as a low-rank one: a LoKr, and a LoHa where its factors are not larger
// than the matrix itself.
func lowered(u adapter.Update) (adapter.Update, bool) {
	v, ok := u.Factored()
	if !ok || u.Kind == adapter.LoHa && int64(v.Rank)*(v.A.Cols+v.B.Rows) > v.A.Cols*v.B.Rows {
		return u, false
	}
	if u.Kind != adapter.LowRank {
		v.Scale.Rank, v.Scale.Alpha = v.Rank, v.Scale.Value*float64(v.Rank)
	}
	return v, true
}

// refuse is the error for an update that the target has no tensors for.
func (e *encoder) refuse(u *adapter.Update) error {
	what := "an update of kind " + string(u.Kind)
	switch {
	case u.Kind == adapter.Replace:
		what = "a replaced parameter"
	case u.Kind == adapter.Bias && u.Param == "bias":
		what = "a difference of a bias"
	case u.Kind == adapter.Bias:
		what = "a difference of a norm"
	case u.Magnitude.Present() && u.Kind != adapter.OFT && e.form.magnitude != "" && u.Input:
		what = "DoRA magnitudes of inputs"
	case u.Magnitude.Present() && u.Kind != adapter.OFT:
		what = "DoRA magnitudes"
	case u.Kind == adapter.OFT && u.Input:
		what = "rotations of inputs (oft_R)"
	case u.Kind == adapter.OFT && u.Magnitude.Present() && e.form.turn == plainTurns:
		what = "rotations with factors of outputs (rescale), which its loader ignores"
	case u.Kind == adapter.OFT:
		what = "rotations of outputs (oft_blocks)"
	}
	return e.hinted(u, e.a.Refuse(u, "%s cannot hold %s", e.title, what))
}

// uncut is the error for an update whose rows the target stores in other modules.
func (e *encoder) uncut(u *adapter.Update, m *naming.DiffusionModule) error {
	why := "its rows cannot be changed apart"
	switch {
	case u.Kind == adapter.DoRA || u.Magnitude.Present() && u.Input && u.Kind != adapter.OFT:
		why = "its magnitudes belong to norms over all rows"
	case u.Kind == adapter.OFT:
		why = "its rotations mix rows of several of them"
	case u.Kind == adapter.LoHa || u.Kind == adapter.LoKr || u.Kind == adapter.Full:
		why = "its rows do not divide into them"
	}
	return e.hinted(u, e.a.Refuse(u, "%s stores the rows of %q otherwise, and the update of kind %s cannot follow: %s", e.title, m.Original, u.Kind, why))
}

// hinted says what to do with an update that has no place: a difference that does not depend on the base can be
// made low-rank.
func (e *encoder) hinted(u *adapter.Update, refusal *finding.Finding) error {
	switch u.Form() {
	case adapter.Dense, adapter.Exactly:
		return refusal.Hinted("choose a rank (--rank 64) or the share of the difference to keep (--energy 0.99), or " + mergeInstead)
	case adapter.OnBase:
		return refusal.Hinted("what it changes depends on the base's weights: " + mergeInstead)
	}
	return refusal
}
