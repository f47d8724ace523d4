// Package ort reads and writes ONNX Runtime's .onnx_adapter files: parameters under the names of the graph
// inputs they are for, A as [in, r] and B as [r, out], with the scale multiplied into B.
//
// Three exporters name the same module in three ways, and a name that is no input of the model makes the
// whole run fail, so names, shapes and types are fitted to the model that the adapter is for.
package ort

import (
	"fmt"
	"slices"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/evidence"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/ortadapter"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// Detect recognises the format, which holds nothing but adapters.
func Detect(s *evidence.Subject) string {
	if s.Format == "ortadapter" && !s.Dir {
		return "the identifier TORT"
	}
	return ""
}

// Open reads an adapter file. Its factors are read when they are loaded; Close the adapter after that.
func Open(path string) (*adapter.Adapter, error) {
	m, err := ortadapter.Open(path)
	if err != nil {
		return nil, err
	}
	a := &adapter.Adapter{Path: path, Dialect: "ort", Space: naming.HF, Findings: slices.Clone(m.Findings())}
	if err := decode(a, m.Tensors()); err != nil {
		m.Close()
		return nil, err
	}
	a.OnClose(m.Close)
	return a, nil
}

func decode(a *adapter.Adapter, ts []tensor.Tensor) error {
	pairs := map[string][2]*tensor.Tensor{}
	var order []string
	for i := range ts {
		t := &ts[i]
		n, ok := parse(t.Name)
		if !ok {
			return finding.Errorf("adapter.unexpected_tensor", a.Path, "not a factor of a LoRA").In(t.Name).
				Hinted("the parameter belongs to a graph of its own kind; ONNX Runtime can use the file, this program cannot")
		}
		p, seen := pairs[n.module]
		if !seen {
			order = append(order, n.module)
		}
		at := 0
		if n.b {
			at = 1
		}
		if p[at] != nil {
			return finding.Errorf("adapter.duplicate_target", a.Path, "names the same factor as %q", p[at].Name).In(t.Name)
		}
		p[at] = t
		pairs[n.module] = p
	}
	for _, module := range order {
		u, err := pair(a.Path, module, pairs[module][0], pairs[module][1])
		if err != nil {
			return err
		}
		a.Updates = append(a.Updates, u)
	}
	if len(a.Updates) == 0 {
		return finding.Errorf("adapter.empty_adapter", a.Path, "the file holds no update")
	}
	return nil
}

// pair makes an update of A [in, r] and B [r, out].
func pair(file, module string, ta, tb *tensor.Tensor) (adapter.Update, error) {
	u := adapter.Update{Target: adapter.Target{Module: module, Param: "weight"}, Kind: adapter.LowRank, Layer: adapter.Linear}
	if ta == nil || tb == nil {
		t := ta
		if t == nil {
			t = tb
		}
		return u, finding.Errorf("adapter.missing_pair", file, "the other factor of the pair is missing").In(t.Name)
	}
	fail := func(reason, message string) (adapter.Update, error) {
		return u, finding.Errorf("adapter."+reason, file, "%s", message).In(ta.Name).
			Expected(fmt.Sprintf("A %s %v, B %s %v", ta.DType, ta.Shape, tb.DType, tb.Shape), "A [in, r], B [r, out]")
	}
	switch {
	case !ta.DType.IsFloat() || !tb.DType.IsFloat():
		return fail("bad_dtype", "the factors are not of a floating-point type; quantized adapters are not read")
	case len(ta.Shape) != 2 || len(tb.Shape) != 2:
		return fail("shape_mismatch", "the factors are no matrices")
	case ta.Shape[1] == 0:
		return fail("rank_zero", "the rank is 0")
	case ta.Shape[1] != tb.Shape[0]:
		return fail("rank_mismatch", "the factors have different ranks")
	case ta.Shape[0] == 0 || tb.Shape[1] == 0:
		return fail("shape_mismatch", "a factor is empty")
	}
	u.A = adapter.FromTensor(*ta, ta.Shape[0], ta.Shape[1], adapter.ReadFloats).Transpose()
	u.B = adapter.FromTensor(*tb, tb.Shape[0], tb.Shape[1], adapter.ReadFloats).Transpose()
	u.Rank, u.Tensors = int(ta.Shape[1]), []string{ta.Name, tb.Name}
	u.Scale = adapter.Scale{Value: 1, Alpha: float64(u.Rank), Rank: u.Rank, Source: "1: the scale is in the factors"}
	return u, nil
}
