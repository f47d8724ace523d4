package ort

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/tensor"
)

// A File is the contents of an adapter file.
type File struct {
	Weights  []adapter.Weight // by name
	Findings []finding.Finding
}

// An Input is a declared input of the model for one factor. A dimension of -1 is free.
type Input struct {
	Name     string
	DType    tensor.DType
	Dims     []int64
	Optional bool // an initializer stands in for it
}

// Inputs lists the inputs of a model that are factors of LoRA branches. Only the model's structure is read.
func Inputs(m *onnx.Model) []Input {
	g := m.Graph()
	initialized := map[string]bool{}
	for _, i := range g.Initializers {
		initialized[m.Info(i).Name] = true
	}
	var out []Input
	for _, v := range g.Inputs {
		if _, ok := parse(v.Name); !ok || v.Kind != "tensor" {
			continue
		}
		in := Input{Name: v.Name, DType: v.DType, Optional: initialized[v.Name]}
		for _, d := range v.Dims {
			in.Dims = append(in.Dims, d.Size)
		}
		out = append(out, in)
	}
	return out
}

// Encode lays an adapter in Hugging Face names out for a model with these inputs: under their names, in
// their types, filled up with zeros to their rank where it is fixed. Without inputs the names are those
// of Olive's convert-adapters and the type is dtype, or F32. A module without an input is refused; an
// input without a module is left to its initializer, or gets zeros where it has none. No weight is read.
func Encode(a *adapter.Adapter, dtype tensor.DType, inputs []Input) (*File, error) {
	if err := a.Within(adapter.Limits{Title: "an ONNX Runtime adapter"}); err != nil {
		return nil, err
	}
	e := &encoder{a: a, dtype: cmp.Or(dtype, tensor.F32), byKey: map[string][2]*Input{}}
	for i := range inputs {
		n, _ := parse(inputs[i].Name)
		p := e.byKey[key(n.module)]
		at := 0
		if n.b {
			at = 1
		}
		if p[at] != nil {
			return nil, finding.Errorf("match.ambiguous_target", a.Path, "the model declares two inputs for one factor, %q and %q", p[at].Name, inputs[i].Name)
		}
		p[at] = &inputs[i]
		e.byKey[key(n.module)] = p
	}
	for i := range a.Updates {
		u := &a.Updates[i]
		var err error
		if len(inputs) == 0 {
			e.add(u, [2]*Input{{Name: u.Module + ".lora_A.weight", DType: e.dtype}, {Name: u.Module + ".lora_B.weight", DType: e.dtype}}, int64(u.Rank))
		} else {
			err = e.fit(u)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := e.unused(); err != nil {
		return nil, err
	}
	slices.SortFunc(e.file.Weights, func(x, y adapter.Weight) int { return cmp.Compare(x.Name, y.Name) })
	return &e.file, nil
}

type encoder struct {
	a     *adapter.Adapter
	dtype tensor.DType
	byKey map[string][2]*Input
	used  []string // keys
	file  File
}

func (e *encoder) add(u *adapter.Update, in [2]*Input, rank int64) {
	a, b := u.PaddedRank(rank)
	b = b.Scaled(u.Scale.Value)
	for i, f := range []adapter.Factor{a.Transpose(), b.Transpose()} {
		e.file.Weights = append(e.file.Weights, adapter.Weight{Spec: tensor.Spec{Name: in[i].Name, DType: in[i].DType, Shape: tensor.Shape{f.Rows, f.Cols}}, Values: f})
	}
}

// fit finds a module's inputs and checks that its factors are what they want.
func (e *encoder) fit(u *adapter.Update) error {
	k := key(u.Module)
	in, ok := e.byKey[k]
	if !ok || in[0] == nil || in[1] == nil {
		f := e.a.Refuse(u, "the model has no inputs for the factors of module %q", u.Module)
		f.Code, f.Want = "match.unmatched_target", "one of the modules "+strings.Join(e.modules(), ", ")
		return f
	}
	if slices.Contains(e.used, k) {
		return e.a.Refuse(u, "two modules are for the input %q", in[0].Name)
	}
	e.used = append(e.used, k)
	rank := int64(u.Rank)
	want := [2][2]int64{{u.A.Cols, -1}, {-1, u.B.Rows}} // -1: the rank
	for i, x := range in {
		if len(x.Dims) == 0 { // no shape declared
			continue
		}
		if len(x.Dims) != 2 || x.Dims[i] >= 0 && x.Dims[i] != want[i][i] {
			f := e.a.Refuse(u, "the factors of module %q do not fit the model's input", u.Module)
			f.Code = "adapter.shape_mismatch"
			return f.In(x.Name).Expected(fmt.Sprintf("A [%d, %d], B [%d, %d]", u.A.Cols, u.Rank, u.Rank, u.B.Rows), tensor.Shape(x.Dims)).Hinted("the adapter belongs to another base")
		}
		// An optional input may declare the rank 0 of its empty initializer, and takes any then.
		if r := x.Dims[1-i]; r > 0 {
			if r < int64(u.Rank) {
				return e.a.Refuse(u, "the model fixes the rank of module %q below the adapter's", u.Module).In(x.Name).Expected(u.Rank, fmt.Sprintf("at most %d", r)).Hinted("resize the adapter first")
			}
			rank = max(rank, r)
		}
	}
	for _, x := range in {
		if !x.DType.IsFloat() {
			return e.a.Refuse(u, "the model's input is of type %s; quantized adapters are not written", x.DType).In(x.Name)
		}
	}
	e.add(u, in, rank)
	return nil
}

func (e *encoder) modules() []string {
	var out []string
	for k := range e.byKey {
		out = append(out, k)
	}
	slices.Sort(out)
	if len(out) > 8 {
		out = append(out[:8], "…")
	}
	return out
}

// unused fills the inputs of modules that the adapter leaves alone.
func (e *encoder) unused() error {
	var keys []string
	for k := range e.byKey {
		if !slices.Contains(e.used, k) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		for i, x := range e.byKey[k] {
			if x == nil {
				continue
			}
			f := finding.Warnf("match.unused_input", e.a.Path, "the adapter has nothing for the model's input, which keeps its default").In(x.Name)
			if !x.Optional {
				if len(x.Dims) != 2 || x.Dims[i] < 0 {
					return finding.Errorf("match.unused_input", e.a.Path, "the model needs this input, the adapter has nothing for it, and its shape is not declared").In(x.Name)
				}
				shape := tensor.Shape{x.Dims[0], x.Dims[1]}
				if shape[1-i] <= 0 {
					shape[1-i] = 1
				}
				zeros := adapter.FromFunc(shape[0], shape[1], func() ([]float32, error) { return make([]float32, shape[0]*shape[1]), nil })
				e.file.Weights = append(e.file.Weights, adapter.Weight{Spec: tensor.Spec{Name: x.Name, DType: x.DType, Shape: shape}, Values: zeros})
				f = finding.Warnf("match.unused_input", e.a.Path, "the adapter has nothing for the model's input, which gets zeros").In(x.Name)
			}
			e.file.Findings = append(e.file.Findings, *f)
		}
	}
	return nil
}
