package gguflora

import (
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/naming"
)

// ToHF renames an adapter in GGUF names to Hugging Face modules, for the architecture and geometry of the
// base, and undoes the row orders of llama.cpp: the row of B that a GGUF stores at j becomes the canonical
// row that the place at j holds. The result reads its factors from a, which must stay open.
func ToHF(a *adapter.Adapter, arch string, hp naming.HyperParameters) (*adapter.Adapter, error) {
	out := *a
	out.Space = naming.HF
	out.Updates = nil
	var parts joiner
	for i := range a.Updates {
		u := &a.Updates[i]
		sources, err := naming.FromGGUF(arch, hp, tensorOf(u))
		if err != nil {
			f := finding.Errorf("match.unmatched_target", a.Path, "%v", err).In(tensorOf(u))
			return nil, f
		}
		if sources, err = parts.take(a, u, sources, arch, hp); err != nil {
			return nil, err
		}
		translated, err := canonical(a, u, sources)
		if err != nil {
			return nil, err
		}
		out.Updates = append(out.Updates, translated...)
	}
	joined, err := parts.join()
	out.Updates = append(out.Updates, joined...)
	return &out, err
}

// tensorOf is the GGUF tensor an update changes.
func tensorOf(u *adapter.Update) string {
	return strings.TrimSuffix(u.Module, "."+u.Param) + "." + u.Param
}

// canonical returns one update for every module whose parameter lies in the tensor.
func canonical(a *adapter.Adapter, u *adapter.Update, sources []naming.Source) ([]adapter.Update, error) {
	var ups []adapter.Update
	for i := 0; i < len(sources); {
		s := sources[i]
		n := 1 // places of the same parameter
		for i+n < len(sources) && sources[i+n].Module == s.Module && sources[i+n].Param == s.Param {
			n++
		}
		same := sources[i : i+n]
		i += n
		if s.Place.Experts > 0 && (u.Experts == 0 || s.Place.Expert != int64(u.Expert)) {
			if u.Experts == 0 {
				return nil, finding.Errorf("adapter.shape_mismatch", a.Path, "the base stacks experts in this tensor, the adapter does not").In(tensorOf(u))
			}
			continue
		}
		v := *u
		v.Target = adapter.Target{Module: s.Module, Param: s.Param}
		if s.Place.Experts > 0 {
			v.Expert, v.Experts = 0, 0
		}
		if u.Layer != adapter.Embedding && u.Kind == adapter.LowRank {
			b, err := gather(a, u, same)
			if err != nil {
				return nil, err
			}
			v.B = b
		}
		ups = append(ups, v)
	}
	return ups, nil
}

// gather reorders the rows of B from stored to canonical order.
func gather(a *adapter.Adapter, u *adapter.Update, sources []naming.Source) (adapter.Factor, error) {
	plain := len(sources) == 1
	for _, s := range sources {
		plain = plain && s.Place.Heads == 0 && s.Place.Run == 0 && s.Place.Rows == 0
	}
	if plain {
		return u.B, nil
	}
	bad := func() (adapter.Factor, error) {
		return u.B, finding.Errorf("adapter.shape_mismatch", a.Path, "lora_b does not have the rows that the base's heads need").
			In(tensorOf(u)).Hinted("the base given is not the one the adapter was made for")
	}
	stored := map[int64]int64{} // canonical row → stored row
	for _, s := range sources {
		p := s.Place
		rows := p.Rows
		if rows == 0 {
			rows = u.B.Rows
		}
		if p.RowOffset+rows > u.B.Rows || p.Heads > 0 && rows%(2*p.Heads) != 0 {
			return bad()
		}
		for j := range rows {
			stored[p.Canonical(j, rows)] = p.RowOffset + j
		}
	}
	order := make([]int64, len(stored))
	for c, j := range stored {
		if c < 0 || c >= int64(len(order)) {
			return bad()
		}
		order[c] = j
	}
	return u.B.GatherRows(int64(len(order)), func(i int64) int64 { return order[i] }), nil
}
