package diffusion

import (
	"bytes"
	"encoding/binary"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/rotation"
	"github.com/loratool/loratool/tensor"
)

// algorithm writes the tensors of an update that the target holds as it is.
func (e *encoder) algorithm(module string, u *adapter.Update, kernel []int64) error {
	name := module + "."
	alpha := func(rank int64) {
		e.weights = append(e.weights, scalar(name+"alpha", u.Scale.Value*float64(rank)))
	}
	switch u.Kind {
	case adapter.LoHa:
		e.hadamard(name, "1", u.A, u.B)
		e.hadamard(name, "2", u.A2, u.B2)
		alpha(int64(u.Rank))
	case adapter.LoKr:
		e.kron(name, u, kernel, alpha)
	case adapter.GLoRA:
		last, ok := convolved(u.A.Rows, u.A.Cols, kernel)
		if !ok {
			return e.a.Refuse(u, "the factors of module %q do not fit a kernel of %v", u.Module, kernel)
		}
		for i, f := range []adapter.Factor{u.B2, u.A2, u.B} {
			shape := tensor.Shape{f.Rows, f.Cols}
			for range kernel {
				shape = append(shape, 1)
			}
			e.put(name+[]string{"a1", "a2", "b1"}[i]+".weight", shape, f)
		}
		e.put(name+"b2.weight", last, u.A)
		alpha(u.B.Cols)
	case adapter.IA3:
		shape := tensor.Shape{u.Value.Rows * u.Value.Cols}
		if len(kernel) > 0 { // LyCORIS, modules/ia3.py
			shape = append(tensor.Shape{1}, shape...)
			for range kernel {
				shape = append(shape, 1)
			}
		}
		e.put(name+"weight", shape, keep(u.Value, u.Value.Map(func(x float32) float32 { return x - 1 })))
		on := int64(0)
		if u.Input {
			on = 1
		}
		e.weights = append(e.weights, integers(name+"on_input", tensor.Shape{}, on))
	case adapter.Full:
		shape, ok := convolved(u.Value.Rows, u.Value.Cols, kernel)
		if !ok {
			return e.a.Refuse(u, "the difference of module %q does not fit a kernel of %v", u.Module, kernel)
		}
		e.put(name+"diff", shape, scaled(u.Value, u.Scale.Value))
	case adapter.Bias: // of a norm's weight
		e.put(name+"w_norm", tensor.Shape{u.Value.Rows * u.Value.Cols}, scaled(u.Value, u.Scale.Value))
	case adapter.OFT:
		e.turn(name, u, kernel)
	default:
		return e.refuse(u)
	}
	if u.Magnitude.Present() && u.Kind != adapter.OFT {
		e.magnitude(module, u, kernel)
	}
	return nil
}

// hadamard writes one of the two products of a LoHa. That of a decomposed kernel has its output factor turned.
func (e *encoder) hadamard(name, number string, a, b adapter.Factor) {
	if k := a.Kernel; k != nil {
		e.put(name+"hada_t"+number, k.Shape, k.Core)
		a, b = k.Down, b.Transpose()
	}
	e.put(name+"hada_w"+number+"_a", tensor.Shape{b.Rows, b.Cols}, b)
	e.put(name+"hada_w"+number+"_b", tensor.Shape{a.Rows, a.Cols}, a)
}

// kron writes a Kronecker product. Where both matrices are whole their scale is 1 by definition, so that
// another one goes into the first.
func (e *encoder) kron(name string, u *adapter.Update, kernel []int64, alpha func(int64)) {
	rank := int64(0)
	for i, side := range []string{"lokr_w1", "lokr_w2"} {
		s := u.Kron[i]
		if s.Full.Present() {
			continue
		}
		rank = s.A.Rows
		a, b := s.A, s.B
		if k := a.Kernel; k != nil {
			e.put(name+"lokr_t2", k.Shape, k.Core)
			a, b, rank = k.Down, b.Transpose(), k.Down.Rows
		}
		e.put(name+side+"_a", tensor.Shape{b.Rows, b.Cols}, b)
		e.put(name+side+"_b", tensor.Shape{a.Rows, a.Cols}, a)
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
	switch {
	case rank > 0:
		alpha(rank)
	case e.form.alphas:
		e.weights = append(e.weights, scalar(name+"alpha", 1))
	}
}

// turn writes rotations: the tensor that they come from where the target reads it in the same way, else skew
// matrices with the same Cayley transforms and no bound.
func (e *encoder) turn(name string, u *adapter.Update, kernel []int64) {
	t := u.Turn
	if t.Packed {
		e.put(name+"oft_R.weight", t.Shape, t.Raw)
		if t.Scaled {
			yes := tensor.Tensor{Spec: tensor.Spec{DType: tensor.Bool, Shape: tensor.Shape{}}, Src: bytes.NewReader([]byte{1}), Size: 1}
			e.weights = append(e.weights, adapter.Weight{Spec: tensor.Spec{Name: name + "oft_R.scaled_oft", DType: tensor.Bool, Shape: tensor.Shape{}}, Values: adapter.FromTensor(yes, 1, 1, adapter.ReadFloats)})
		}
		return
	}
	raw, shape, bound := t.Raw, t.Shape, t.Bound
	stages := int64(len(t.Stages))
	axis := u.Value.Rows / stages
	if !raw.Present() || bound > 0 && e.form.turn == plainTurns { // ComfyUI takes the bound for one of another norm
		raw, bound = skews(u.Value, int(t.Block), staged(t)), 0
		shape = tensor.Shape{axis / t.Block, t.Block, t.Block}
		if staged(t) {
			shape = append(tensor.Shape{stages}, shape...)
		}
	}
	e.put(name+"oft_blocks", shape, raw)
	e.weights = append(e.weights, scalar(name+"alpha", bound/float64(axis)))
	if u.Magnitude.Present() {
		by := tensor.Shape{axis, 1}
		for range kernel {
			by = append(by, 1)
		}
		e.put(name+"rescale", by, u.Magnitude)
	}
}

// skews are matrices whose skew parts have blocks of rotations as their Cayley transforms, transposed on demand.
func skews(blocks adapter.Factor, b int, transposed bool) adapter.Factor {
	return adapter.FromFunc(blocks.Rows, blocks.Cols, func() ([]float32, error) {
		v, err := blocks.Load()
		if err != nil {
			return nil, err
		}
		out := make([]float32, 0, len(v))
		for at := 0; at < len(v); at += b * b {
			r := make([]float64, b*b)
			for i, x := range v[at:][:b*b] {
				r[i] = float64(x)
			}
			if transposed {
				r = rotation.Transpose(r, b)
			}
			q, err := rotation.Inverse(r, b)
			if err != nil {
				return nil, err
			}
			for _, x := range q {
				out = append(out, float32(x/2))
			}
		}
		return out, nil
	})
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

// integers is a tensor of 64-bit integers.
func integers(name string, shape tensor.Shape, v ...int64) adapter.Weight {
	var b []byte
	for _, x := range v {
		b = binary.LittleEndian.AppendUint64(b, uint64(x))
	}
	spec := tensor.Spec{Name: name, DType: tensor.I64, Shape: shape}
	t := tensor.Tensor{Spec: spec, Src: bytes.NewReader(b), Size: int64(len(b))}
	return adapter.Weight{Spec: spec, Values: adapter.FromTensor(t, 1, int64(len(v)), adapter.ReadFloats)}
}

// keep gives a computed factor the type of the one it was computed from.
func keep(of, f adapter.Factor) adapter.Factor {
	f.DType = of.DType
	return f
}

// A pairing is the factors of a module of a uniform dialect.
type pairing struct {
	spelling
	a, b adapter.Factor
}

// even writes the factors of a uniform dialect. x-flux takes the rank of the whole file from its first tensor and
// loads all projections of a block or none (src/flux/xflux_pipeline.py, update_model_with_lora), so that
// smaller ranks are filled up with zeros, and so are the projections without an update.
func (e *encoder) even() {
	rank := int64(0)
	have := map[string]bool{}
	for _, p := range e.pairs {
		rank = max(rank, p.a.Rows)
		have[p.name] = true
	}
	zeros := func(rows, cols int64, of tensor.DType) adapter.Factor {
		f := adapter.FromFunc(rows, cols, func() ([]float32, error) { return make([]float32, rows*cols), nil })
		f.DType = of
		return f
	}
	all := e.pairs
	for _, p := range e.pairs {
		at, leaf, _ := cutLast(p.name)
		width, names := p.a.Cols, []string{"qkv_lora1", "proj_lora1", "qkv_lora2", "proj_lora2"}
		if leaf == "qkv_lora" || leaf == "proj_lora" {
			names = []string{"qkv_lora", "proj_lora"}
		}
		if leaf == "proj_lora" {
			width = p.b.Rows
		}
		for _, other := range names {
			if have[at+"."+other] {
				continue
			}
			have[at+"."+other] = true
			in, out := width, width
			switch other {
			case "proj_lora":
				in = 5 * width
			case "qkv_lora", "qkv_lora1", "qkv_lora2":
				out = 3 * width
			}
			all = append(all, pairing{spelling{at + "." + other, p.spelling.a, p.spelling.b}, zeros(rank, in, p.a.DType), zeros(out, rank, p.b.DType)})
		}
	}
	for _, p := range all {
		b := p.b
		if b.Cols < rank {
			b = keep(b, b.Transpose().Padded(rank).Transpose())
		}
		a := p.a.Padded(rank)
		e.put(p.name+p.spelling.a, tensor.Shape{rank, a.Cols}, a)
		e.put(p.name+p.spelling.b, tensor.Shape{b.Rows, rank}, b)
		e.dims = append(e.dims, [2]float64{float64(rank), float64(rank)})
	}
}
