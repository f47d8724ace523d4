package adapter

import (
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// A Form says what a dialect that holds only low-rank factors can do with an update.
type Form string

// The forms of updates.
const (
	Exactly Form = "factors"   // the difference is B·A: it converts exactly
	Dense   Form = "dense"     // the difference does not depend on the base: it converts by SVD, with a loss
	OnBase  Form = "dependent" // the difference depends on the base's weight or size: it can only be merged
	Whole   Form = "whole"     // not a difference of a matrix: a replacement, token rows, a bias or a norm
)

// Form is the update's form.
func (u *Update) Form() Form {
	switch {
	case u.Kind == Replace, u.Kind == Rows, u.Kind == Bias:
		return Whole
	case u.Magnitude.Present(), u.Kind == IA3, u.Kind == OFT, u.Kind == HRA, u.Kind == GLoRA, u.Kind == HiRA, u.Kind == VeRA:
		return OnBase
	case u.Kind == LowRank, u.Kind == LoKr:
		return Exactly
	}
	return Dense
}

// LayerIn is the layer that decides the frame of a stored tensor: a tensor of more than two dimensions that
// is no stack of experts is a convolution's weight, whatever shape the factors have.
func (u *Update) LayerIn(p naming.Place, stored tensor.Shape) Layer {
	if len(stored) > 2 && u.Layer != Embedding && u.Experts == 0 && p.Experts == 0 && p.Matrices == 0 {
		return Conv
	}
	return u.Layer
}

// KernelShape is the shape of a convolution's kernel, nil where it is not known.
func (u *Update) KernelShape() tensor.Shape {
	if u.Kernel != nil {
		return u.Kernel
	}
	for _, f := range []Factor{u.A, u.Value} {
		if f.Stored != nil && len(f.Stored.Shape) > 2 {
			return f.Stored.Shape[2:]
		}
	}
	return nil
}

// ConvShape is the shape [r, in, k…] of a convolution's A, nil where the kernel is not known.
func (u *Update) ConvShape() tensor.Shape {
	k := u.KernelShape()
	taps, err := k.Elements()
	if k == nil || err != nil || taps == 0 || u.A.Cols%taps != 0 {
		return nil
	}
	return append(tensor.Shape{u.A.Rows, u.A.Cols / taps}, k...)
}

// Factored writes an update of form Exactly as a low-rank one with the same difference, and a LoHa as the
// product of rank r1·r2 that its columns make; ok is false for any other.
func (u *Update) Factored() (v Update, ok bool) {
	v = *u
	v.Kind, v.A2, v.B2, v.Kron = LowRank, Factor{}, Factor{}, [2]Side{}
	switch {
	case u.Magnitude.Present():
		return v, false
	case u.Kind == LowRank:
		return *u, true
	case u.Kind == LoHa:
		v.A, v.B = crossRows(u.A, u.A2), crossRows(u.B.Transpose(), u.B2.Transpose()).Transpose()
	case u.Kind == LoKr:
		a1, b1 := u.Kron[0].Factors()
		a2, b2 := u.Kron[1].Factors()
		v.A, v.B = kron(a1, a2), kron(b1, b2)
	default:
		return v, false
	}
	v.Rank = int(v.A.Rows)
	if k := u.KernelShape(); k != nil {
		v.Kernel, v.Layer = k, Conv
	}
	return v, true
}

// crossRows is the matrix of all products of a row of f with a row of g, element by element.
func crossRows(f, g Factor) Factor {
	return combined(f, g, f.Rows*g.Rows, f.Cols, func(out, x, y []float32) {
		for i := range f.Rows {
			for j := range g.Rows {
				row := out[(i*g.Rows+j)*f.Cols:][:f.Cols]
				for k := range row {
					row[k] = x[i*f.Cols+int64(k)] * y[j*g.Cols+int64(k)]
				}
			}
		}
	})
}

// kron is the Kronecker product of two factors.
func kron(f, g Factor) Factor {
	return combined(f, g, f.Rows*g.Rows, f.Cols*g.Cols, func(out, x, y []float32) {
		for i, a := range x {
			for j, b := range y {
				row := int64(i)/f.Cols*g.Rows + int64(j)/g.Cols
				out[row*f.Cols*g.Cols+int64(i)%f.Cols*g.Cols+int64(j)%g.Cols] = a * b
			}
		}
	})
}

func combined(f, g Factor, rows, cols int64, fill func(out, x, y []float32)) Factor {
	return FromFunc(rows, cols, func() ([]float32, error) {
		x, err := load(f)
		if err != nil {
			return nil, err
		}
		y, err := load(g)
		if err != nil {
			return nil, err
		}
		out := make([]float32, rows*cols)
		fill(out, x, y)
		return out, nil
	})
}
