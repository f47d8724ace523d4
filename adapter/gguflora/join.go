package gguflora

import (
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/naming"
)

// latent reports whether a tensor is a half of kv_b_proj, whose heads llama.cpp multiplies with as they are.
func latent(tensor string) bool {
	return strings.HasSuffix(tensor, ".attn_k_b.weight") || strings.HasSuffix(tensor, ".attn_v_b.weight")
}

// A joiner collects updates of tensors that hold only some rows of a parameter, as gate and up of experts that
// a model keeps in one.
type joiner struct {
	wholes []*whole
	byKey  map[key]*whole
}

// A key is a parameter, of one expert.
type key struct {
	adapter.Target
	expert int
}

// A whole is the updates of a parameter's parts.
type whole struct {
	target  adapter.Target
	expert  int
	experts int
	rows    int64
	parts   []piece
}

// A piece is an update, and the canonical rows that the rows of its B are.
type piece struct {
	u     adapter.Update
	order []int64
}

// take collects an update whose sources are parts of a parameter, and returns the other sources.
func (j *joiner) take(a *adapter.Adapter, u *adapter.Update, sources []naming.Source, arch string, hp naming.HyperParameters) ([]naming.Source, error) {
	var rest []naming.Source
	for _, s := range sources {
		if latent(tensorOf(u)) {
			return nil, a.Refuse(u, "llama.cpp applies no factors to %q, and those of single heads are no update of %q", tensorOf(u), s.Module)
		}
		all, err := naming.ToGGUF(arch, hp, s.Module, s.Param)
		if err != nil {
			return nil, err
		}
		if u.Kind != adapter.LowRank || !slices.ContainsFunc(all, func(p naming.Place) bool { return p.Tensor != tensorOf(u) }) {
			rest = append(rest, s)
			continue
		}
		w := j.whole(adapter.Target{Module: s.Module, Param: s.Param}, u)
		w.rows = 0
		for _, p := range all {
			w.rows += p.Rows
		}
		p := piece{u: *u, order: make([]int64, u.B.Rows)}
		for i := range p.order {
			p.order[i] = s.Place.Canonical(int64(i), s.Place.Rows)
		}
		if u.B.Rows != s.Place.Rows || slices.Max(p.order) >= w.rows {
			return nil, finding.Errorf("adapter.shape_mismatch", a.Path, "lora_b does not have the rows of a part of %q", s.Module).In(tensorOf(u)).
				Expected(fmt.Sprintf("%d rows", u.B.Rows), fmt.Sprintf("%d", s.Place.Rows)).Hinted("the base given is not the one the adapter was made for")
		}
		w.parts = append(w.parts, p)
	}
	return rest, nil
}

func (j *joiner) whole(target adapter.Target, u *adapter.Update) *whole {
	k := key{target, u.Expert}
	if w := j.byKey[k]; w != nil {
		return w
	}
	if j.byKey == nil {
		j.byKey = map[key]*whole{}
	}
	w := &whole{target: target, expert: u.Expert, experts: u.Experts}
	j.wholes, j.byKey[k] = append(j.wholes, w), w
	return w
}

// join makes the updates of the whole parameters. Where all parts have the same A it stays, and their rows of B
// come together; otherwise the A's are stacked, and each part has columns of B of its own. Rows without an
// update are zero.
func (j *joiner) join() ([]adapter.Update, error) {
	var out []adapter.Update
	for _, w := range j.wholes {
		first := w.parts[0].u
		shared := true
		for _, p := range w.parts[1:] {
			same, err := first.A.Same(p.u.A)
			if err != nil {
				return nil, err
			}
			shared = shared && same && p.u.Scale.Value == first.Scale.Value
		}
		u := first
		u.Target, u.Expert, u.Experts, u.Tensors = w.target, w.expert, w.experts, nil
		var as []adapter.Factor
		rank := int64(0)
		for _, p := range w.parts {
			as = append(as, p.u.A)
			rank += p.u.A.Rows
			u.Tensors = append(u.Tensors, p.u.Tensors...)
		}
		if shared {
			rank = first.A.Rows
		} else {
			u.A = adapter.Stacked(as...)
			u.Scale = adapter.Scale{Value: 1, Alpha: float64(rank), Rank: int(rank), Source: "in lora_B of the parts that were joined"}
		}
		u.Rank = int(rank)
		u.B = w.columns(rank, shared)
		out = append(out, u)
	}
	return out, nil
}

// columns is B of the whole.
func (w *whole) columns(rank int64, shared bool) adapter.Factor {
	return adapter.FromFunc(w.rows, rank, func() ([]float32, error) {
		v := make([]float32, w.rows*rank)
		column := int64(0)
		for _, p := range w.parts {
			b := p.u.B
			if !shared {
				b = b.Scaled(p.u.Scale.Value)
			}
			x, err := b.Load()
			if err != nil {
				return nil, err
			}
			for i, c := range p.order {
				copy(v[c*rank+column:], x[int64(i)*b.Cols:int64(i+1)*b.Cols])
			}
			if !shared {
				column += b.Cols
			}
		}
		return v, nil
	})
}
