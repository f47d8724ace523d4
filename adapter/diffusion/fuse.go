package diffusion

import (
	"math"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// fuse makes one low-rank update of a fused module from those of its parts. Parts without one get zero rows.
// Where all have the same A it stays, with B's on top of one another; otherwise the A's are stacked and the B's
// stand on the diagonal. Where the parts' scales differ they are folded into B.
func fuse(m *naming.DiffusionModule, parts []adapter.Update) (*adapter.Update, error) {
	have, rows, err := present(m, parts, func(u *adapter.Update) int64 { return u.B.Rows })
	if err != nil || len(have) == 0 {
		return &adapter.Update{}, err
	}
	for p := range parts {
		u := &parts[p]
		if have[0].Kind == adapter.DoRA && u.Kind == "" || u.Kind != "" && u.Kind != have[0].Kind || u.Input {
			return nil, (&adapter.Adapter{}).Refuse(have[0], "only some parts of %q are DoRA of the output axis, and the magnitudes of the others depend on the base", m.Original)
		}
	}
	shared, even := true, true
	for _, u := range have[1:] {
		same, err := have[0].A.Same(u.A)
		if err != nil {
			return nil, err
		}
		shared = shared && same
		even = even && u.Scale.Value == have[0].Scale.Value
	}
	out := *have[0]
	out.Tensors = nil
	for _, u := range have {
		out.Tensors = append(out.Tensors, u.Tensors...)
	}
	rank := have[0].A.Rows
	if !shared {
		rank = 0
		var as []adapter.Factor
		for _, u := range have {
			rank += u.A.Rows
			as = append(as, u.A)
		}
		out.A = adapter.Stacked(as...)
	}
	if !even {
		out.Scale = adapter.Scale{Value: 1, Source: "folded"}
	}
	type piece struct {
		row, col int64
		b        adapter.Factor
	}
	var pieces []piece
	kind := have[0].B.DType
	column := int64(0)
	for p := range parts {
		u := &parts[p]
		if u.Kind == "" {
			continue
		}
		first, _, _ := m.Slice(p, rows)
		b := u.B
		if !even {
			b = b.Scaled(u.Scale.Value)
		}
		if u.B.DType != kind {
			kind = tensor.Invalid
		}
		pieces = append(pieces, piece{first, column, b})
		if !shared {
			column += b.Cols
		}
	}
	out.Rank = int(rank)
	out.Scale.Rank, out.Scale.Alpha = out.Rank, out.Scale.Value*float64(rank)
	if shared && even {
		out.Scale = have[0].Scale
	}
	out.B = adapter.FromFunc(rows, rank, func() ([]float32, error) {
		v := make([]float32, rows*rank)
		for _, p := range pieces {
			x, err := p.b.Load()
			if err != nil {
				return nil, err
			}
			for i := range p.b.Rows {
				copy(v[(p.row+i)*rank+p.col:], x[i*p.b.Cols:(i+1)*p.b.Cols])
			}
		}
		return v, nil
	})
	out.B.DType = kind
	if out.Kind == adapter.DoRA {
		out.Magnitude = magnitudes(have)
	}
	return &out, nil
}

// present are the parts that have an update, and the number of rows that the whole then has.
func present(m *naming.DiffusionModule, parts []adapter.Update, rowsOf func(*adapter.Update) int64) (have []*adapter.Update, rows int64, err error) {
	total := int64(0)
	for p := range m.Parts {
		total += m.Parts[p].Rows
	}
	for p := range parts {
		u := &parts[p]
		if u.Kind == "" {
			continue
		}
		have = append(have, u)
		n := rowsOf(u)
		whole := n * total / m.Parts[p].Rows
		if _, k, ok := m.Slice(p, whole); !ok || k != n || rows != 0 && rows != whole {
			return nil, 0, (&adapter.Adapter{}).Refuse(u, "the parts of %q have rows in other proportions", m.Original)
		}
		rows = whole
	}
	return have, rows, nil
}

// magnitudes puts the magnitudes of all parts into one row.
func magnitudes(parts []*adapter.Update) adapter.Factor {
	var all []adapter.Factor
	for _, u := range parts {
		f := u.Magnitude
		f.Rows, f.Cols = f.Rows*f.Cols, 1
		all = append(all, f)
	}
	f := adapter.Stacked(all...)
	f.Rows, f.Cols = 1, f.Rows
	return f
}

// fuseBias makes one bias of a fused module from those of its parts.
func fuseBias(m *naming.DiffusionModule, parts []adapter.Update) (*adapter.Update, error) {
	low := make([]adapter.Update, len(parts))
	for i, u := range parts {
		if u.Kind != "" {
			low[i] = u
			v := u.Value.Scaled(u.Scale.Value)
			v.Rows, v.Cols, v.DType = v.Rows*v.Cols, 1, u.Value.DType
			low[i].Scale, low[i].B = adapter.Scale{Value: 1}, v
			low[i].A = adapter.FromValues(1, 1, []float32{1})
		}
	}
	u, err := fuse(m, low)
	if err != nil || u.Kind == "" {
		return u, err
	}
	u.Value = u.B
	u.Value.Rows, u.Value.Cols = 1, u.B.Rows
	return u, nil
}

// swapped exchanges the halves of an update's rows, between the orders of the original checkpoint and diffusers.
func swapped(u *adapter.Update) (adapter.Update, bool) {
	rows := u.Outputs()
	if rows%2 != 0 {
		return *u, false
	}
	return u.GatherOutputs(rows, halves(rows))
}

// trim undoes what fuse did: parts that share an A and use only some of its rows keep those, and parts
// without a value have no update.
func trim(parts []adapter.Update) error {
	var first *tensor.Tensor
	shared := false
	for _, u := range parts {
		t := u.A.Stored
		switch {
		case t == nil || !isFactors(&u):
		case first == nil:
			first = t
		default:
			shared = shared || t.Src == first.Src && t.Off == first.Off
		}
	}
	if !shared {
		return nil
	}
	var empty []int
	for p := range parts {
		u := &parts[p]
		if !isFactors(u) {
			continue
		}
		b, err := u.B.Load()
		if err != nil {
			return err
		}
		used := make([]bool, u.B.Cols)
		for i, x := range b {
			if x != 0 {
				used[int64(i)%u.B.Cols] = true
			}
		}
		var keep []int64
		for c, yes := range used {
			if yes {
				keep = append(keep, int64(c))
			}
		}
		n := int64(len(keep))
		if n == u.B.Cols {
			continue
		}
		if n == 0 && u.Kind == adapter.LowRank {
			empty = append(empty, p)
		}
		if n == 0 {
			continue
		}
		index := func(i int64) int64 { return keep[i] }
		u.A = u.A.GatherRows(n, index)
		u.B = u.B.Transpose().GatherRows(n, index).Transpose()
		u.Rank = int(n)
		u.Scale.Rank, u.Scale.Alpha = u.Rank, u.Scale.Value*float64(n)
	}
	if len(empty) < len(parts) {
		for _, p := range empty {
			parts[p] = adapter.Update{}
		}
	}
	return nil
}

// fold puts a scale into the factors. Its power of two is shared between them, so that small types keep
// their range; the rest goes into B, with one rounding where it is not 1.
func fold(a, b adapter.Factor, s float64) (adapter.Factor, adapter.Factor) {
	if s == 1 || s == 0 || math.IsInf(s, 0) || math.IsNaN(s) {
		return a, scaled(b, s)
	}
	fraction, exponent := math.Frexp(s) // s = fraction·2^exponent, fraction in ±[0.5, 1)
	fraction, exponent = 2*fraction, exponent-1
	half := exponent / 2
	return scaled(a, math.Ldexp(1, half)), scaled(b, math.Ldexp(fraction, exponent-half))
}

// scaled keeps the type that the result is written in.
func scaled(f adapter.Factor, s float64) adapter.Factor {
	g := f.Scaled(s)
	g.DType = f.DType
	return g
}
