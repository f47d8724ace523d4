package model

import (
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/tensor"
	"github.com/loratool/loratool/verify"
)

// A Making says how inputs come about.
type Making struct {
	Given map[string]Array // by input; the others are made
	Dims  map[string]int64 // sizes of open dimensions, by their names
	Seed  uint64
	// Past is how many tokens there are in a cache of keys and values: 0, or 1 for providers that do not bear tensors
	// without elements.
	Past int64
}

// An input is one input with its value.
type input struct {
	Array
	verify.ModelInput
}

// inputs are the values of all inputs that have no default: given ones, and others made from what the graph says:
// token numbers below the vocabulary, masks of ones, ascending positions, empty caches, and normally distributed
// floats. The same seed makes the same values.
func (k Making) inputs(m *onnx.Model) ([]input, error) {
	g := m.Graph()
	defaults := map[string]bool{}
	for _, i := range g.Initializers {
		defaults[m.Tensors()[i].Name] = true
	}
	s := &sizes{known: map[string]int64{}, past: k.Past}
	var names []string
	for _, v := range g.Inputs {
		names = append(names, v.Name)
	}
	for n := range k.Given {
		if !slices.Contains(names, n) {
			return nil, finding.Errorf("runtime.bad_input", m.Path(), "the model has no input %q", n).Hinted("its inputs are " + strings.Join(names, ", "))
		}
	}
	params := map[string]bool{}
	for _, v := range g.Inputs {
		for _, d := range v.Dims {
			params[d.Param] = true
		}
	}
	for n, x := range k.Dims {
		if !params[n] || n == "" {
			return nil, finding.Errorf("runtime.bad_input", m.Path(), "no input has an open dimension %q", n)
		}
		s.known[n] = x
	}
	given := map[string]Array{}
	for _, v := range g.Inputs {
		a, ok := k.Given[v.Name]
		if !ok {
			continue
		}
		if v.Kind != "tensor" {
			return nil, finding.Errorf("runtime.bad_input", m.Path(), "input %q is no tensor, and such inputs cannot be given", v.Name)
		}
		a, err := a.as(v.DType)
		if err == nil {
			_, err = a.value()
		}
		if err != nil {
			return nil, finding.Errorf("runtime.bad_input", m.Path(), "input %q: %v", v.Name, err)
		}
		if err := s.bind(m.Path(), v, a); err != nil {
			return nil, err
		}
		given[v.Name] = a
	}
	bounds := lookups(m)
	var all []input
	for _, v := range g.Inputs {
		a, ok := given[v.Name]
		how := "given"
		switch {
		case ok:
		case defaults[v.Name]:
			continue
		default:
			shape, err := k.declared(m, v, s)
			if err != nil {
				return nil, err
			}
			if a, how, err = k.value(v, shape, bounds, s); err != nil {
				return nil, needed(m.Path(), v, err.Error())
			}
		}
		shape := slices.Clone([]int64(a.Shape))
		if shape == nil {
			shape = []int64{}
		}
		a.Name = v.Name
		all = append(all, input{a, verify.ModelInput{Name: v.Name, DType: a.DType.String(), Shape: shape, Source: how}})
	}
	return all, nil
}

// declared is the shape of an input that is to be made.
func (k Making) declared(m *onnx.Model, v onnx.Value, s *sizes) (tensor.Shape, error) {
	switch {
	case v.Kind != "tensor":
		return nil, needed(m.Path(), v, fmt.Sprintf("it is a %s", v.Kind))
	case !v.DType.IsFloat() && !integers(v.DType):
		return nil, needed(m.Path(), v, fmt.Sprintf("its type is %s", v.DType))
	}
	return s.shape(m.Path(), v)
}

// value makes the value of an input.
func (k Making) value(v onnx.Value, shape tensor.Shape, bounds map[string]int64, s *sizes) (Array, string, error) {
	name := strings.ToLower(v.Name)
	n, err := shape.Elements()
	if err != nil {
		return Array{}, "", err
	}
	h := fnv.New64a()
	io.WriteString(h, v.Name)
	random := rand.New(rand.NewPCG(k.Seed, h.Sum64()))
	whole := func(how string, f func(i int64) int64) (Array, string, error) {
		x := make([]int64, n)
		for i := range x {
			x[i] = f(int64(i))
		}
		a, err := fromInts(v.DType, shape, x)
		return a, how, err
	}
	constant := func(c int64) (Array, string, error) {
		return whole(fmt.Sprintf("all %d", c), func(int64) int64 { return c })
	}
	last := int64(1)
	if len(shape) > 0 {
		last = max(1, shape[len(shape)-1])
	}
	has := func(words ...string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(name, w) })
	}
	switch {
	case strings.Contains(name, "use_cache"):
		return constant(0)
	case has("seqlens_k"):
		return constant(s.past + sequence - 1)
	case has("total_seq"):
		return constant(s.past + sequence)
	case has("past_seq_len", "past_sequence_length"):
		return constant(s.past)
	case isPast(name):
		return constant(0)
	case has("position"):
		bound := bounds[v.Name]
		return whole("ascending", func(i int64) int64 {
			p := s.past + i%last
			if bound > 0 {
				p %= bound
			}
			return p
		})
	case has("mask") || v.DType == tensor.Bool:
		return constant(1)
	case has("token_type", "segment"):
		return constant(0)
	case has("timestep"):
		return constant(500)
	case integers(v.DType):
		bound := bounds[v.Name]
		if bound == 0 {
			if !has("ids", "token") {
				return Array{}, "", fmt.Errorf("nothing tells which whole numbers it takes")
			}
			return Array{}, "", fmt.Errorf("the size of the vocabulary is not known, since no table is read with it")
		}
		return whole(fmt.Sprintf("random below %d", bound), func(int64) int64 { return random.Int64N(bound) })
	}
	x := make([]float64, n)
	for i := range x {
		x[i] = random.NormFloat64()
	}
	a, err := fromFloats(v.DType, shape, x)
	return a, "normally distributed", err
}

// lookups finds for each value of whole numbers how many rows the smallest table has that is read with it.
func lookups(m *onnx.Model) map[string]int64 {
	g := m.Graph()
	shapes := map[string]tensor.Shape{}
	for _, i := range g.Initializers {
		shapes[m.Tensors()[i].Name] = m.Tensors()[i].Shape
	}
	bounds, source := map[string]int64{}, map[string]string{}
	origin := func(v string) string {
		for range 16 {
			from, ok := source[v]
			if !ok {
				break
			}
			v = from
		}
		return v
	}
	limit := func(v string, rows int64) {
		v = origin(v)
		if b := bounds[v]; rows > 0 && (b == 0 || rows < b) {
			bounds[v] = rows
		}
	}
	rowsOf := func(table string, axis int64) int64 {
		shape, ok := shapes[origin(table)]
		if axis < 0 {
			axis += int64(len(shape))
		}
		if !ok || axis < 0 || axis >= int64(len(shape)) {
			return 0
		}
		return shape[axis]
	}
	for _, n := range g.Nodes {
		switch n.OpType {
		case "Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "DequantizeLinear":
			if len(n.Inputs) > 0 && len(n.Outputs) > 0 {
				source[n.Outputs[0]] = n.Inputs[0]
			}
		case "Gather", "GatherBlockQuantized":
			if len(n.Inputs) > 1 {
				axis := n.Int("axis", 0)
				if n.OpType == "GatherBlockQuantized" {
					axis = n.Int("gather_axis", 0)
				}
				limit(n.Inputs[1], rowsOf(n.Inputs[0], axis))
			}
		case "EmbedLayerNormalization": // ids, segments, table of words, of positions, of segments
			for ids, table := range map[int]int{0: 2, 1: 4} {
				if table < len(n.Inputs) {
					limit(n.Inputs[ids], rowsOf(n.Inputs[table], 0))
				}
			}
		}
	}
	return bounds
}
