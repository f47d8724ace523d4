// Package openvino reads and writes adapters in the form that OpenVINO GenAI understands: one safetensors
// file in PEFT's names, with the alpha of every module as a tensor MODULE.alpha.
//
// OpenVINO GenAI reads no configuration: given a PEFT file, it takes every scale as 1. With alpha tensors
// it divides each by the rank.
package openvino

import (
	"cmp"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/evidence"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

const (
	prefix      = "base_model.model."
	suffixA     = ".lora_A.weight"
	suffixB     = ".lora_B.weight"
	suffixAlpha = ".alpha"
)

// Detect finds PEFT's names and alpha tensors in a file that has no configuration with it.
func Detect(s *evidence.Subject) string {
	if s.Format != "safetensors" || s.Config != "" {
		return ""
	}
	ours := func(name string) bool { return strings.HasPrefix(name, prefix) && strings.HasSuffix(name, suffixA) }
	if n, _ := s.Count(ours); n == 0 {
		return ""
	}
	return s.Naming("alphas of modules named as by PEFT", func(name string) bool {
		return strings.HasPrefix(name, prefix) && strings.HasSuffix(name, suffixAlpha)
	})
}

// Open reads an adapter file. Its factors are read when they are loaded; Close the adapter after that.
func Open(path string) (*adapter.Adapter, error) {
	s := evidence.Look(path)
	m, err := safetensors.Open(cmp.Or(s.File, path))
	if err != nil {
		return nil, err
	}
	a := &adapter.Adapter{Path: path, Dialect: "openvino", Space: naming.HF, Findings: slices.Clone(m.Findings())}
	if err := decode(a, m.Path(), m.Tensors()); err != nil {
		m.Close()
		return nil, err
	}
	a.OnClose(m.Close)
	return a, nil
}

func decode(a *adapter.Adapter, file string, ts []tensor.Tensor) error {
	byName := map[string]*tensor.Tensor{}
	for i := range ts {
		byName[ts[i].Name] = &ts[i]
	}
	for i := range ts {
		t := &ts[i]
		for _, suffix := range []string{suffixA, suffixB, suffixAlpha, ".weight"} {
			stem, ok := strings.CutSuffix(t.Name, suffix)
			module, ours := strings.CutPrefix(stem, prefix)
			if !ok {
				continue
			}
			hasA, hasB := byName[stem+suffixA] != nil, byName[stem+suffixB] != nil
			switch {
			case !ours || suffix == suffixAlpha && !hasA && !hasB || suffix == ".weight" && !constant(module):
				return finding.Errorf("adapter.unexpected_tensor", file, "not a part of an adapter that OpenVINO GenAI reads").In(t.Name)
			case suffix == ".weight":
				rows, cols, err := t.Shape.Matrix()
				if err != nil || !t.DType.IsFloat() {
					return finding.Errorf("adapter.shape_mismatch", file, "not a matrix of floats").In(t.Name)
				}
				a.Updates = append(a.Updates, adapter.Update{Target: adapter.Target{Module: module, Param: "weight"}, Kind: adapter.Replace, Layer: adapter.Linear,
					Scale: adapter.Scale{Value: 1, Source: "replacement"}, Value: adapter.FromTensor(*t, rows, cols, adapter.ReadFloats), Tensors: []string{t.Name}})
			case suffix == suffixA, suffix == suffixB && !hasA:
				u, err := adapter.PairOf(file, module, byName[stem+suffixA], byName[stem+suffixB])
				if err != nil {
					return err
				}
				if err := scale(a, file, &u, byName[stem+suffixAlpha]); err != nil {
					return err
				}
				a.Updates = append(a.Updates, u)
			}
			break
		}
		if !slices.ContainsFunc([]string{suffixA, suffixB, suffixAlpha, ".weight"}, func(s string) bool { return strings.HasSuffix(t.Name, s) }) {
			return finding.Errorf("adapter.unexpected_tensor", file, "not a part of an adapter that OpenVINO GenAI reads").In(t.Name)
		}
	}
	return nil
}

// scale reads a module's alpha. Without one OpenVINO GenAI scales by 1.
func scale(a *adapter.Adapter, file string, u *adapter.Update, t *tensor.Tensor) error {
	if t == nil {
		u.Scale = adapter.Scale{Value: 1, Alpha: float64(u.Rank), Rank: u.Rank, Source: "no alpha: 1, as OpenVINO GenAI takes it"}
		f := finding.Warnf("adapter.missing_alpha", file, "module %q has no alpha: OpenVINO GenAI then scales by 1, and so does this program", u.Module)
		f.Module = u.Module
		a.Findings = append(a.Findings, *f)
		return nil
	}
	if n, err := t.Shape.Elements(); err != nil || n != 1 || !t.DType.IsFloat() {
		return finding.Errorf("adapter.bad_alpha", file, "an alpha must be one number").In(t.Name).Expected(t.Shape, "[]")
	}
	v, err := adapter.ReadFloats(t)
	if err != nil {
		return err
	}
	if x := float64(v[0]); math.IsNaN(x) || math.IsInf(x, 0) {
		return finding.Errorf("adapter.bad_alpha", file, "an alpha must be a finite number").In(t.Name).Expected(x, "a number")
	}
	u.Scale = adapter.AlphaScale(float64(v[0]), u.Rank, "alpha")
	u.Tensors = append(u.Tensors, t.Name)
	return nil
}

// constant reports whether OpenVINO GenAI replaces the whole weight of a module.
func constant(module string) bool {
	leaf := module[strings.LastIndexByte(module, '.')+1:]
	return leaf == "lm_head" || leaf == "embed_tokens"
}

// Encode lays an adapter in Hugging Face names out as the tensors of one file, by name. dtype is the type of
// the factors, F32, F16 or BF16; Invalid keeps their own where it is one of these. No weight is read.
func Encode(a *adapter.Adapter, dtype tensor.DType) ([]adapter.Weight, error) {
	pairs := *a
	pairs.Updates = nil
	e := &encoder{dtype: dtype}
	for i := range a.Updates {
		u := &a.Updates[i]
		if u.Kind != adapter.Replace || !constant(u.Module) || u.Param != "weight" {
			pairs.Updates = append(pairs.Updates, *u)
			continue
		}
		e.add(u.Module+".weight", tensor.Shape{u.Value.Rows, u.Value.Cols}, u.Value)
	}
	if err := pairs.Within(adapter.Limits{Title: "OpenVINO GenAI"}); err != nil {
		return nil, err
	}
	for i := range pairs.Updates {
		u := &pairs.Updates[i]
		e.add(u.Module+suffixA, tensor.Shape{u.A.Rows, u.A.Cols}, u.A)
		e.add(u.Module+suffixB, tensor.Shape{u.B.Rows, u.B.Cols}, u.B)
		alpha := u.Scale.Alpha
		if u.Scale.Value != alpha/float64(u.Rank) {
			alpha = u.Scale.Value * float64(u.Rank)
		}
		e.weights = append(e.weights, adapter.Weight{Spec: tensor.Spec{Name: prefix + u.Module + suffixAlpha, DType: tensor.F32, Shape: tensor.Shape{}},
			Values: adapter.FromValues(1, 1, []float32{float32(alpha)})})
	}
	slices.SortFunc(e.weights, func(x, y adapter.Weight) int { return cmp.Compare(x.Name, y.Name) })
	return e.weights, nil
}

type encoder struct {
	dtype   tensor.DType
	weights []adapter.Weight
}

func (e *encoder) add(name string, shape tensor.Shape, f adapter.Factor) {
	t := cmp.Or(e.dtype, f.DType)
	if t != tensor.F16 && t != tensor.BF16 {
		t = tensor.F32
	}
	e.weights = append(e.weights, adapter.Weight{Spec: tensor.Spec{Name: prefix + name, DType: t, Shape: shape}, Values: f})
}
