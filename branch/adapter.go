package branch

import (
	"fmt"
	"math"
	"slices"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// A Parameter is the value of a branch's input.
type Parameter struct {
	tensor.Spec
	Data []byte
}

// a piece is an update on its way into a layer's branch.
type piece struct {
	u     *adapter.Update
	place naming.Place
	scale float64
	file  string
}

// Parameters fit adapters to the inputs of the branches: A [in, r], B [r, out] with the scale multiplied in,
// in the type of the layer. Several updates of a layer, of packed projections or of several adapters, follow
// one another along the rank. Layers without an update are left to their defaults. Updates that a branch
// cannot express are refused.
func (p *Plan) Parameters(inputs []merge.Input) ([]Parameter, error) {
	pieces := make([][]piece, len(p.Layers))
	for _, in := range inputs {
		if err := p.place(in, pieces); err != nil {
			return nil, err
		}
	}
	var out []Parameter
	for i, l := range p.Layers {
		if len(pieces[i]) == 0 {
			continue
		}
		a, b, rank, err := stack(l, pieces[i])
		if err != nil {
			return nil, err
		}
		for _, f := range []struct {
			name string
			dims tensor.Shape
			v    []float32
		}{{l.A, tensor.Shape{l.In, rank}, a}, {l.B, tensor.Shape{rank, l.Out}, b}} {
			data, err := encode(l.DType, f.v)
			if err != nil {
				return nil, finding.Errorf("numeric.overflow", pieces[i][0].file, "%v", err).In(f.name)
			}
			out = append(out, Parameter{tensor.Spec{Name: f.name, DType: l.DType, Shape: f.dims}, data})
		}
	}
	return out, nil
}

// place finds the layers of an adapter's updates.
func (p *Plan) place(in merge.Input, pieces [][]piece) error {
	a := in.Adapter
	switch {
	case a.NoMerge != nil:
		return a.NoMerge
	case a.Doubt != nil:
		return a.Doubt
	case a.Space == naming.GGUF:
		return finding.Errorf("adapter.wrong_ecosystem", a.Path, "a GGUF adapter has llama.cpp's names and row order").
			Hinted("convert it with --to peft first")
	}
	resolver, err := merge.Resolvers(p.model)(a)
	if err != nil {
		return err
	}
	for i := range a.Updates {
		u := &a.Updates[i]
		if u.Kind != adapter.LowRank || u.Layer != adapter.Linear || u.Param != "weight" || u.Experts > 0 {
			f := finding.Errorf("adapter.unsupported_feature", a.Path, "module %q is changed in a way that a LoRA branch cannot express (%s of its %s)", u.Module, u.Kind, u.Param).
				Hinted("merge the adapter instead")
			f.Module = u.Module
			return f
		}
		places, err := resolver.Find(u.Module, u.Param)
		if err != nil {
			f := finding.Errorf("match.unmatched_target", a.Path, "%v", err)
			f.Module = u.Module
			return f
		}
		for _, place := range places {
			l, ok := p.at[place.Node]
			if !ok {
				f := finding.Errorf("match.unmatched_target", a.Path, "the layer of module %q has no branch", u.Module).In(place.Tensor)
				f.Module = u.Module
				return f
			}
			if err := fits(a.Path, p.Layers[l], u, place); err != nil {
				return err
			}
			pieces[l] = append(pieces[l], piece{u, place, in.Scale, a.Path})
		}
	}
	return nil
}

func fits(file string, l Layer, u *adapter.Update, place naming.Place) error {
	rows := place.Rows
	if rows == 0 {
		rows = l.Out
	}
	want := rows
	if place.Run > 0 {
		want = u.B.Rows // some of its rows
	}
	if u.A.Cols != l.In || u.B.Rows != want || place.RowOffset+rows > l.Out || u.A.Rows != u.B.Cols || place.Canonical(rows-1, rows) >= u.B.Rows {
		f := finding.Errorf("adapter.shape_mismatch", file, "the factors of module %q do not fit the layer", u.Module).
			Expected(fmt.Sprintf("A [%d, %d], B [%d, %d]", u.A.Rows, u.A.Cols, u.B.Rows, u.B.Cols), fmt.Sprintf("in %d, out %d", l.In, rows)).
			Hinted("the adapter belongs to another base")
		f.Module = u.Module
		return f
	}
	return nil
}

// stack makes A [in, r] and B [r, out] of the updates of a layer.
func stack(l Layer, pieces []piece) (a, b []float32, rank int64, err error) {
	for _, p := range pieces {
		rank += p.u.A.Rows
	}
	if rank > math.MaxInt32 || l.In > math.MaxInt32 || l.Out > math.MaxInt32 {
		return nil, nil, 0, finding.Errorf("adapter.shape_mismatch", pieces[0].file, "a branch of rank %d for a layer of %d × %d is too large", rank, l.Out, l.In)
	}
	a, b = make([]float32, l.In*rank), make([]float32, rank*l.Out)
	first := int64(0)
	for _, p := range pieces {
		down, err := p.u.A.Load()
		if err == nil {
			var up []float32
			if up, err = p.u.B.Load(); err == nil {
				p.put(l, a, b, down, up, first, rank)
			}
		}
		if err != nil {
			return nil, nil, 0, err
		}
		first += p.u.A.Rows
	}
	return a, b, rank, nil
}

// put adds a piece from position first of the rank on.
func (p *piece) put(l Layer, a, b, down, up []float32, first, rank int64) {
	r := p.u.A.Rows
	for k := range r {
		for i := range l.In {
			a[i*rank+first+k] = down[k*l.In+i]
		}
	}
	rows := p.place.Rows
	if rows == 0 {
		rows = l.Out
	}
	scale := p.u.Scale.Value * p.scale
	for i := range rows {
		from := p.place.Canonical(i, rows)
		for k := range r {
			b[(first+k)*l.Out+p.place.RowOffset+i] = float32(float64(up[from*r+k]) * scale)
		}
	}
}

func encode(d tensor.DType, v []float32) ([]byte, error) {
	codec, _ := quant.Of(d)
	b := make([]byte, len(v)*d.BlockBytes())
	if err := codec.Encode(b, v); err != nil {
		return nil, err
	}
	back := make([]float32, len(v))
	codec.Decode(back, b)
	if i := slices.IndexFunc(back, func(f float32) bool { return f-f != 0 }); i >= 0 {
		return nil, fmt.Errorf("element %d, %v, is not finite in %s", i, v[i], d)
	}
	return b, nil
}
