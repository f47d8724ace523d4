package diffusion

import (
	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// native reports whether the target holds an update as it is, in tensors of its own algorithm: where the
// target has those, and cuts and orders the module's rows as the update does. original says that the update
// has the rows of the original checkpoint.
func (e *encoder) native(n naming.DiffusionName, u *adapter.Update, original bool) bool {
	switch u.Kind {
	case adapter.LoHa, adapter.LoKr, adapter.Full, adapter.GLoRA:
	case adapter.IA3:
		if !e.form.ia3 || u.Param != "weight" {
			return false
		}
	case adapter.DoRA:
		if !u.Input || n.Part >= 0 { // the others are cut and fused like a LoRA
			return false
		}
	case adapter.Bias:
		return e.form.lycoris && n.Module.Kind == "norm"
	default:
		return false
	}
	if !e.form.lycoris {
		return false
	}
	fused := e.form.body(n.Component) == naming.Original
	if len(n.Module.Parts) > 1 {
		return fused == (n.Part < 0)
	}
	return !n.Module.Swapped || fused == original
}

// algorithm writes the tensors of an update that the target holds as it is.
func (e *encoder) algorithm(n naming.DiffusionName, part int, u *adapter.Update) error {
	m := n.Module
	module := m.Original
	if e.form.body(n.Component) == naming.Renamed {
		module = m.Parts[max(0, part)].Module
	}
	if e.form.flat {
		module = naming.Flatten(module)
	}
	name := e.form.prefix(n.Component) + module + "."
	kernel := m.Shape[min(2, len(m.Shape)):]
	put := func(suffix string, f adapter.Factor) { e.put(name+suffix, tensor.Shape{f.Rows, f.Cols}, f) }
	alpha := func(rank int64) {
		e.weights = append(e.weights, scalar(name+"alpha", u.Scale.Value*float64(rank)))
	}
	switch u.Kind {
	case adapter.DoRA:
		return e.factors(name[:len(name)-1], u, kernel, n.Component.Folder)
	case adapter.LoHa:
		put("hada_w1_a", u.B)
		put("hada_w1_b", u.A)
		put("hada_w2_a", u.B2)
		put("hada_w2_b", u.A2)
		alpha(u.A.Rows)
	case adapter.LoKr:
		e.kron(name, u, kernel, alpha)
	case adapter.GLoRA:
		put("a1.weight", u.B2)
		put("a2.weight", u.A2)
		put("b1.weight", u.B)
		put("b2.weight", u.A)
		alpha(u.B.Cols)
	case adapter.IA3:
		e.put(name+"weight", tensor.Shape{u.Value.Rows * u.Value.Cols}, keep(u.Value, u.Value.Map(func(x float32) float32 { return x - 1 })))
		on := 0.0
		if u.Input {
			on = 1
		}
		e.weights = append(e.weights, scalar(name+"on_input", on))
	case adapter.Full:
		shape, ok := convolved(u.Value.Rows, u.Value.Cols, kernel)
		if !ok {
			return e.a.Refuse(u, "the difference of module %q does not fit a kernel of %v", u.Module, kernel)
		}
		e.put(name+"diff", shape, scaled(u.Value, u.Scale.Value))
	case adapter.Bias:
		suffix := map[string]string{"weight": "w_norm", "bias": "b_norm"}[u.Param]
		if suffix == "" {
			return e.refuse(u)
		}
		e.put(name+suffix, tensor.Shape{u.Value.Rows * u.Value.Cols}, scaled(u.Value, u.Scale.Value))
	}
	if u.Magnitude.Present() {
		e.magnitude(name[:len(name)-1], u, kernel)
	}
	return nil
}

// kron writes a Kronecker product. Where both matrices are whole their scale is 1 by definition, so that
// another one goes into the first.
func (e *encoder) kron(name string, u *adapter.Update, kernel []int64, alpha func(int64)) {
	rank := int64(0)
	for i, side := range []string{"lokr_w1", "lokr_w2"} {
		if s := u.Kron[i]; !s.Full.Present() {
			e.put(name+side+"_a", tensor.Shape{s.B.Rows, s.B.Cols}, s.B)
			e.put(name+side+"_b", tensor.Shape{s.A.Rows, s.A.Cols}, s.A)
			rank = s.A.Rows
		}
	}
	for i, side := range []string{"lokr_w1", "lokr_w2"} {
		f := u.Kron[i].Full
		if !f.Present() {
			continue
		}
		shape := tensor.Shape{f.Rows, f.Cols}
		if i == 1 {
			if s, ok := convolved(f.Rows, f.Cols, kernel); ok {
				shape = s
			}
		} else if rank == 0 {
			f = scaled(f, u.Scale.Value)
		}
		e.put(name+side, shape, f)
	}
	if rank > 0 {
		alpha(rank)
	}
}

// convolved is the shape of a matrix whose columns are inputs times a kernel.
// It is false where the columns do not divide.
func convolved(rows, cols int64, kernel []int64) (tensor.Shape, bool) {
	area, err := tensor.Shape(kernel).Elements()
	if err != nil || area == 0 || cols%area != 0 {
		return nil, false
	}
	return append(tensor.Shape{rows, cols / area}, kernel...), true
}

// scalar is a tensor of one number.
func scalar(name string, v float64) adapter.Weight {
	return adapter.Weight{Spec: tensor.Spec{Name: name, DType: tensor.F32, Shape: tensor.Shape{}}, Values: adapter.FromValues(1, 1, []float32{float32(v)})}
}

// keep gives a computed factor the type of the one it was computed from.
func keep(of, f adapter.Factor) adapter.Factor {
	f.DType = of.DType
	return f
}
