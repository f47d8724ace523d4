package model

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/tensor"
)

// The sizes of dimensions that a model leaves open: one sequence of eight tokens.
const (
	batch    = 1
	sequence = 8
	channels = 3
	side     = 64 // of an image
)

// sizes are the sizes of open dimensions by name.
type sizes struct {
	known map[string]int64
	past  int64 // tokens in a cache
}

// shape is a declared shape with its open dimensions filled in. The error names the input and how to give it.
func (s *sizes) shape(path string, v onnx.Value) (tensor.Shape, error) {
	if v.Dims == nil {
		return nil, needed(path, v, "the model does not say its shape")
	}
	shape := tensor.Shape{}
	for i, d := range v.Dims {
		n := d.Size
		if n < 0 {
			var ok bool
			if n, ok = s.size(d.Param, v.Name, i, len(v.Dims)); !ok {
				return nil, needed(path, v, fmt.Sprintf("nothing tells what its dimension %d, %q, stands for", i, d.Param))
			}
		}
		shape = append(shape, n)
	}
	if n, err := shape.Elements(); err != nil || n > maxElements {
		return nil, needed(path, v, fmt.Sprintf("its shape %v is too large", shape))
	}
	return shape, nil
}

// needed is the error about an input that has to be given.
func needed(path string, v onnx.Value, why string) *finding.Finding {
	f := finding.Errorf("runtime.input_needed", path, "input %q cannot be made up: %s", v.Name, why)
	for _, d := range v.Dims {
		if d.Size < 0 && d.Param != "" {
			return f.Hinted(fmt.Sprintf("give its values in a file (--inputs FILE.npz or .json), or the size (--dim %s=N)", d.Param))
		}
	}
	return f.Hinted("give its values in a file: --inputs FILE.npz or .json")
}

// size is that of one open dimension, from its name, and where that says nothing from the input's.
func (s *sizes) size(param, input string, axis, rank int) (int64, bool) {
	if n, ok := s.known[param]; ok {
		return n, true
	}
	if n, ok := s.sum(param); ok {
		return n, true
	}
	name, in := strings.ToLower(param), strings.ToLower(input)
	has := func(words ...string) bool {
		for _, w := range words {
			if strings.Contains(name, w) {
				return true
			}
		}
		return false
	}
	switch {
	case has("total", "mask"):
		return s.past + sequence, true
	case has("past", "cache", "kv_len"):
		return s.past, true
	case has("seq", "length", "token", "_len"): // also max_seq_len_in_batch
		return sequence, true
	case has("batch", "num_samples"):
		return batch, true
	case has("channel"):
		return channels, true
	case has("height", "width"):
		return side, true
	}
	// Exporters that number their dimensions leave the input's name to go by.
	switch {
	case axis == 0 && (isPast(in) || isTokens(in)):
		return batch, true
	case axis == 2 && isPast(in):
		return s.past, true
	case axis == 1 && rank == 2 && strings.Contains(in, "attention_mask"):
		return s.past + sequence, true
	case axis == 1 && rank <= 3 && isTokens(in):
		return sequence, true
	}
	return 0, false
}

// sum reads "a + b", as exporters name the length of a mask, where both are known or numbers.
func (s *sizes) sum(param string) (int64, bool) {
	a, b, found := strings.Cut(param, "+")
	if !found {
		return 0, false
	}
	total := int64(0)
	for _, part := range []string{a, b} {
		part = strings.TrimSpace(part)
		n, err := strconv.ParseInt(part, 10, 32)
		if err != nil {
			var ok bool
			if n, ok = s.size(part, "", 1, 0); !ok {
				return 0, false
			}
		}
		total += n
	}
	return total, true
}

// isPast reports whether an input is a cache of keys and values.
func isPast(name string) bool {
	return strings.Contains(name, "past") && !strings.Contains(name, "len") || strings.Contains(name, "cache") && !strings.Contains(name, "position") && !strings.Contains(name, "branch") && !strings.Contains(name, "len")
}

// isTokens reports whether an input has a value for each token of a sequence.
func isTokens(name string) bool {
	for _, w := range []string{"ids", "mask", "position", "segment", "tokens", "embeds", "hidden_states"} {
		if strings.Contains(name, w) {
			return true
		}
	}
	return false
}

// bind learns the sizes of open dimensions from a given array, and requires that it fits the declaration.
func (s *sizes) bind(path string, v onnx.Value, a Array) error {
	bad := func() error {
		return finding.Errorf("runtime.bad_input", path, "the shape given for input %q is not the declared one", v.Name).Expected(a.Shape, declared(v))
	}
	if v.Dims == nil {
		return nil
	}
	if len(v.Dims) != len(a.Shape) {
		return bad()
	}
	for i, d := range v.Dims {
		n := a.Shape[i]
		if d.Size >= 0 {
			if d.Size != n {
				return bad()
			}
			continue
		}
		if d.Param == "" {
			continue
		}
		if known, ok := s.known[d.Param]; ok && known != n {
			return bad()
		}
		s.known[d.Param] = n
	}
	return nil
}

func declared(v onnx.Value) string {
	var parts []string
	for _, d := range v.Dims {
		switch {
		case d.Size >= 0:
			parts = append(parts, strconv.FormatInt(d.Size, 10))
		case d.Param != "":
			parts = append(parts, d.Param)
		default:
			parts = append(parts, "?")
		}
	}
	return "[" + strings.Join(parts, ", ") + "]"
}
