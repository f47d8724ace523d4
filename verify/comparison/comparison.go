// Package comparison says in which tensors two models differ, and by how much.
package comparison

import (
	"bytes"
	"context"
	"math"

	"golang.org/x/sync/errgroup"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// A State is how a tensor of one model relates to that of the same name in the other.
type State string

// The states.
const (
	Equal   State = "equal"
	Missing State = "missing" // only A has it
	Extra   State = "extra"   // only B has it
	Shape   State = "shape"   // of other dimensions
	Type    State = "type"    // of another type, with the values of A rounded to it
	Values  State = "values"  // of other values, and maybe of another type
	Bytes   State = "bytes"   // of other bytes, which are no numbers that are read here, or are the same numbers
	Close   State = "close"   // of other values, within the tolerance
)

// A Tensor is what was found of one. Errors are of B's values against A's.
type Tensor struct {
	Name     string  `json:"name"`
	State    State   `json:"state"`
	TypeA    string  `json:"type_a,omitempty"`
	TypeB    string  `json:"type_b,omitempty"`
	ShapeA   []int64 `json:"shape_a,omitempty"`
	ShapeB   []int64 `json:"shape_b,omitempty"`
	MaxError float64 `json:"max_error"` // largest |b − a|
	RelError float64 `json:"rel_error"` // ‖b − a‖/‖a‖
	Changed  float64 `json:"changed"`   // share of the elements with another value
	// NonFinite is how many elements are NaN or infinite in one model and not the same in the other. The errors are
	// those of the other elements.
	NonFinite int64    `json:"non_finite,omitempty"`
	Retention *float64 `json:"retention,omitempty"` // ⟨b − a, Δ⟩/⟨Δ, Δ⟩ of the adapters' update Δ
}

// Options say what is compared.
type Options struct {
	Tolerance float64     // relative errors up to it are no difference
	Plan      *merge.Plan // of adapters that are merged into A; their retention in B is measured; may be nil
	Jobs      int         // tensors compared at once; at least one
	Progress  func(int64) // called with the bytes of A just compared; may be nil
}

// Of compares two models tensor by tensor, by name: those of A in its order, then what only B has. A finding of
// level error stands for each kind of difference.
func Of(ctx context.Context, a, b formats.Model, opt Options) ([]Tensor, []finding.Finding, error) {
	inB := map[string]*tensor.Tensor{}
	tensorsB := b.Tensors()
	for i := range tensorsB {
		inB[tensorsB[i].Name] = &tensorsB[i]
	}
	updated := map[string]*merge.Output{}
	if opt.Plan != nil {
		for i := range opt.Plan.Tensors {
			if o := &opt.Plan.Tensors[i]; len(o.Updates) > 0 {
				updated[o.Name] = o
			}
		}
	}
	tensorsA := a.Tensors()
	out := make([]Tensor, len(tensorsA))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(1, opt.Jobs))
	for i := range tensorsA {
		x := &tensorsA[i]
		y := inB[x.Name]
		delete(inB, x.Name)
		g.Go(func() (err error) {
			out[i], err = compare(ctx, x, y, opt.Tolerance)
			if o := updated[x.Name]; err == nil && o != nil && y != nil && out[i].State != Shape {
				out[i].Retention, err = retention(ctx, o, y)
			}
			if opt.Progress != nil {
				opt.Progress(x.Size)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	for i := range tensorsB {
		if y := &tensorsB[i]; inB[y.Name] != nil {
			out = append(out, Tensor{Name: y.Name, State: Extra, TypeB: y.DType.String(), ShapeB: y.Shape})
		}
	}
	return out, findings(out, b.Path()), nil
}

// messages say what the states mean, in the order in which they are reported.
var messages = []struct {
	state   State
	message string
}{
	{Missing, "the tensor is missing"}, {Extra, "the tensor is not in the other model"}, {Shape, "the shape differs"}, {Type, "the type differs"},
	{Values, "the values differ"}, {Bytes, "the bytes differ"},
}

func findings(tensors []Tensor, file string) []finding.Finding {
	out := []finding.Finding{}
	for _, m := range messages {
		for i := range tensors {
			if t := &tensors[i]; t.State == m.state {
				f := finding.Errorf("diff."+string(m.state), file, "%s", m.message).In(t.Name)
				switch m.state {
				case Shape:
					f.Expected(tensor.Shape(t.ShapeB), tensor.Shape(t.ShapeA))
				case Type:
					f.Expected(t.TypeB, t.TypeA)
				}
				out = append(out, *f)
			}
		}
	}
	return out
}

// chunk is how many elements are compared at once: whole blocks of every type.
const chunk = 1 << 18

// compare compares a tensor of A with the one of B, nil where there is none.
func compare(ctx context.Context, a, b *tensor.Tensor, tolerance float64) (Tensor, error) {
	t := Tensor{Name: a.Name, State: Missing, TypeA: a.DType.String(), ShapeA: a.Shape}
	if b == nil {
		return t, nil
	}
	t.TypeB, t.ShapeB = b.DType.String(), b.Shape
	if !a.Shape.Equal(b.Shape) {
		t.State = Shape
		return t, nil
	}
	n, err := a.Shape.Elements()
	if err != nil {
		return t, err
	}
	s := sums{same: a.DType == b.DType, rounded: true}
	s.from, s.decodesA = quant.Of(a.DType)
	s.to, s.decodesB = quant.Of(b.DType)
	if !s.same && !(s.decodesA && s.decodesB) {
		t.State = Type
		return t, nil
	}
	for at := int64(0); at < n && !(s.differ && !s.decodesA); at += chunk {
		if err := ctx.Err(); err != nil {
			return t, err
		}
		if err := s.piece(a, b, at, min(chunk, n-at)); err != nil {
			return t, err
		}
	}
	t.NonFinite = s.nonFinite
	t.MaxError, t.Changed = s.most, float64(s.changed)/math.Max(1, float64(n))
	t.RelError = math.Sqrt(s.error2)
	if s.whole2 > 0 {
		t.RelError = math.Sqrt(s.error2 / s.whole2)
	}
	switch {
	case !s.differ && s.same:
		t.State = Equal
	case !s.same && s.rounded:
		t.State = Type
	case !s.decodesA || s.changed == 0:
		t.State = Bytes
	case t.RelError <= tolerance && t.NonFinite == 0:
		t.State = Close
	default:
		t.State = Values
	}
	return t, nil
}

// sums are what a comparison adds up.
type sums struct {
	same               bool // one type
	from, to           quant.Codec
	decodesA, decodesB bool

	differ           bool // in bytes
	rounded          bool // B is A rounded to its type
	changed          int64
	nonFinite        int64
	most             float64
	error2, whole2   float64
	a, b, again      []byte
	valuesA, valuesB []float32
}

// piece compares k elements from element at on.
func (s *sums) piece(a, b *tensor.Tensor, at, k int64) (err error) {
	if s.a, err = a.ReadElements(s.a, at, k); err != nil {
		return err
	}
	if s.b, err = b.ReadElements(s.b, at, k); err != nil {
		return err
	}
	same := s.same && bytes.Equal(s.a, s.b)
	s.differ = s.differ || !same
	if !s.decodesA {
		return nil
	}
	if s.valuesA == nil {
		s.valuesA, s.valuesB = make([]float32, chunk), make([]float32, chunk)
	}
	x, y := s.valuesA[:k], s.valuesB[:k]
	s.from.Decode(x, s.a)
	if same {
		for _, v := range x {
			s.whole2 += float64(float64(v) * float64(v))
		}
		return nil
	}
	s.to.Decode(y, s.b)
	if !s.same && s.rounded {
		s.again = append(s.again[:0], s.b...)
		s.rounded = s.to.Encode(s.again, x) == nil && bytes.Equal(s.again, s.b)
	}
	for i, v := range x {
		w := float64(y[i])
		if v == y[i] || v != v && w != w {
			s.whole2 += float64(float64(v) * float64(v))
			continue
		}
		d := w - float64(v)
		s.changed++
		if math.IsNaN(d) || math.IsInf(d, 0) {
			s.nonFinite++
			continue
		}
		s.most = math.Max(s.most, math.Abs(d))
		s.error2 += float64(d * d)
		s.whole2 += float64(float64(v) * float64(v))
	}
	return nil
}

// retention is the share of an update that a stored tensor holds; nil where the update is zero.
func retention(ctx context.Context, o *merge.Output, stored *tensor.Tensor) (*float64, error) {
	codec, ok := quant.Of(stored.DType)
	if !ok {
		return nil, nil
	}
	ref, err := o.Reference()
	if err != nil {
		return nil, err
	}
	defer ref.Close()
	_, frame := o.Ops()
	var in []byte
	var dot, whole float64
	rows := max(1, chunk/frame.Cols)
	for first := int64(0); first < frame.Rows; first += rows {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n := min(rows, frame.Rows-first)
		base, _, exact, err := ref.Rows(first, n)
		if err != nil {
			return nil, err
		}
		if in, err = stored.ReadElements(in, first*frame.Cols, n*frame.Cols); err != nil {
			return nil, err
		}
		got := make([]float32, n*frame.Cols)
		codec.Decode(got, in)
		for i, w := range base {
			d := exact[i] - float64(w)
			dot += float64((float64(got[i]) - float64(w)) * d)
			whole += float64(d * d)
		}
	}
	if whole == 0 {
		return nil, nil
	}
	alpha := dot / whole
	return &alpha, nil
}
