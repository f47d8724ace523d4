package lycoris

import (
	"fmt"
	"math"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/rotation"
)

// ia3 is W∘w, where the file stores w − 1 for each input or output.
func (d *decoder) ia3() (*adapter.Update, error) {
	u := d.update("weight", adapter.IA3)
	t := d.Tensors["weight"]
	if t == nil {
		return nil, d.errorf("missing_pair", "on_input", "module %q has no tensor %q", d.Name, "weight").Hinted("the file is incomplete")
	}
	n, err := t.Shape.Elements()
	if err != nil || n == 0 {
		return nil, d.errorf("shape_mismatch", "weight", "no values").Expected(t.Shape, "one value an input or output")
	}
	on := d.Tensors["on_input"]
	if k, err := on.Shape.Elements(); err != nil || k != 1 {
		return nil, d.errorf("shape_mismatch", "on_input", "must be one number").Expected(on.Shape, "[]")
	}
	b, err := on.Read()
	if err != nil {
		return nil, err
	}
	for _, x := range b {
		u.Input = u.Input || x != 0 // a number of any type that is not zero
	}
	d.use(u, "weight")
	d.use(u, "on_input")
	u.Value = adapter.FromTensor(*t, 1, n, adapter.ReadFloats).Map(func(x float32) float32 { return 1 + x })
	return u, nil
}

// diff is a whole difference of the weight; that of a norm is a vector.
func (d *decoder) diff() (*adapter.Update, error) {
	t := d.Tensors["diff"]
	if len(t.Shape) < 2 {
		return d.vector("diff")
	}
	u := d.update("weight", adapter.Full)
	kernel(u, t.Shape)
	var err error
	u.Value, err = d.take(u, "diff")
	return u, err
}

// norm is a difference of a norm's weight.
func (d *decoder) norm() (*adapter.Update, error) { return d.vector("w_norm") }

func (d *decoder) vector(suffix string) (*adapter.Update, error) {
	t := d.Tensors[suffix]
	n, err := t.Shape.Elements()
	if err != nil || n == 0 || len(t.Shape) > 1 {
		return nil, d.errorf("shape_mismatch", suffix, "the difference of a norm must be a vector").Expected(t.Shape, "[n]")
	}
	u := d.update("weight", adapter.Bias)
	d.use(u, suffix)
	u.Value = adapter.FromTensor(*t, 1, n, adapter.ReadFloats)
	return u, nil
}

// oft is OFT of blocks [k, b, b], or BOFT of [stages, k, b, b]: outputs are turned by the Cayley transforms of
// the skew parts. A positive alpha bounds their common norm at alpha times the number of outputs.
func (d *decoder) oft() (*adapter.Update, error) {
	suffix := "oft_blocks"
	if d.Tensors[suffix] == nil {
		suffix = "oft_diag"
	}
	t := d.Tensors[suffix]
	u := d.update("weight", adapter.OFT)
	s := t.Shape
	n, err := s.Elements()
	if len(s) != 3 && len(s) != 4 || err != nil || n == 0 || s[len(s)-1] != s[len(s)-2] {
		return nil, d.errorf("shape_mismatch", suffix, "not blocks of rotations").Expected(s, "[blocks, b, b] or [stages, blocks, b, b]")
	}
	b, stages := s[len(s)-1], int64(1)
	if len(s) == 4 {
		stages = s[0]
	}
	axis := n / b / stages
	u.Turn = &adapter.Turn{Block: b, Stages: make([][]int64, stages)}
	if len(s) == 4 {
		for i := range u.Turn.Stages {
			if u.Turn.Stages[i] = rotation.Butterfly(axis, b, i); u.Turn.Stages[i] == nil {
				return nil, d.errorf("shape_mismatch", suffix, "stage %d does not divide %d outputs into pairs", i, axis).Expected(s, "fewer stages")
			}
		}
	}
	bound := 0.0
	if d.Tensors["alpha"] != nil {
		if bound, err = d.number("alpha"); err != nil {
			return nil, err
		}
		bound *= float64(axis)
	}
	d.use(u, suffix)
	raw := adapter.FromTensor(*t, n/b, b, adapter.ReadFloats)
	u.Turn.Raw, u.Turn.Shape, u.Turn.Bound = raw, s, bound
	// Rows of blocks turn by Rᵀ·W in OFT and by R·W in BOFT.
	u.Value = rotations(raw, int(b), bound, len(s) == 4)
	if r := d.Tensors["rescale"]; r != nil {
		k, err := r.Shape.Elements()
		if err != nil || k != axis {
			return nil, d.errorf("shape_mismatch", "rescale", "one factor an output is needed").Expected(r.Shape, fmt.Sprintf("[%d, 1]", axis))
		}
		d.use(u, "rescale")
		u.Magnitude = adapter.FromTensor(*r, 1, k, adapter.ReadFloats)
	}
	u.Scale.Source = "turned as a whole"
	return u, nil
}

// inputRotations is the OFT of OneTrainer: packed upper triangles [blocks, b·(b−1)/2] of skew matrices turn the
// inputs, by the polynomial of five terms in place of the inverse; with scaled_oft they are divided by 2·√(b−1).
// A linear layer turns its input, so that the weight is turned the other way; a convolution turns its weight
// (OneTrainer, modules/module/LoRAModule.py, OFTModule.forward).
func (d *decoder) inputRotations() (*adapter.Update, error) {
	const suffix, terms = "oft_R.weight", 5
	u := d.update("weight", adapter.OFT)
	packed, err := d.take(u, suffix)
	if err != nil {
		return nil, err
	}
	b := int64(math.Round((1 + math.Sqrt(1+8*float64(packed.Cols))) / 2))
	if b*(b-1)/2 != packed.Cols || packed.Rows > math.MaxInt32 || len(d.Tensors[suffix].Shape) != 2 {
		return nil, d.errorf("shape_mismatch", suffix, "not packed skew matrices").Expected(d.Tensors[suffix].Shape, "[blocks, b·(b−1)/2]")
	}
	u.Input = true
	u.Turn = &adapter.Turn{Block: b, Stages: [][]int64{nil}, Raw: packed, Shape: d.Tensors[suffix].Shape, Packed: true}
	by := 1.0
	if d.Tensors["oft_R.scaled_oft"] != nil {
		d.use(u, "oft_R.scaled_oft")
		u.Turn.Scaled, by = true, 1/(2*math.Sqrt(float64(b-1)))
	}
	n, weight := int(b), d.Conv
	u.Value = adapter.FromFunc(packed.Rows*b, b, func() ([]float32, error) {
		v, err := packed.Load()
		if err != nil {
			return nil, err
		}
		out := make([]float32, 0, packed.Rows*b*b)
		for at := 0; at < len(v); at += int(packed.Cols) {
			wide := make([]float64, packed.Cols)
			for i, x := range v[at:][:packed.Cols] {
				wide[i] = float64(x) * by
			}
			r := rotation.Neumann(rotation.Packed(wide, n), n, terms)
			if !weight {
				r = rotation.Transpose(r, n)
			}
			for _, x := range r {
				out = append(out, float32(x))
			}
		}
		return out, nil
	})
	u.Scale.Source = "turned as a whole"
	return u, nil
}

// rotations are the Cayley transforms of the skew parts of blocks, transposed on demand.
func rotations(raw adapter.Factor, b int, bound float64, transposed bool) adapter.Factor {
	return adapter.FromFunc(raw.Rows, raw.Cols, func() ([]float32, error) {
		v, err := raw.Load()
		if err != nil {
			return nil, err
		}
		size := b * b
		skews, all := make([][]float64, len(v)/size), make([]float64, 0, len(v))
		for i := range skews {
			m := make([]float64, size)
			for j, x := range v[i*size:][:size] {
				m[j] = float64(x)
			}
			skews[i] = rotation.Skew(m, b)
			all = append(all, skews[i]...)
		}
		shrink := 1.0
		if norm := rotation.Norm(all); bound > 0 && norm > bound {
			shrink = bound / norm
		}
		out := make([]float32, 0, len(v))
		for _, q := range skews {
			for j := range q {
				q[j] *= shrink
			}
			r, err := rotation.Cayley(q, b)
			if err != nil {
				return nil, err
			}
			if transposed {
				r = rotation.Transpose(r, b)
			}
			for _, x := range r {
				out = append(out, float32(x))
			}
		}
		return out, nil
	})
}
