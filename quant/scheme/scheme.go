// Package scheme reads models that were quantized for PyTorch as if they were float models: the packed
// tensors of bitsandbytes, GPTQ, AWQ, HQQ, FP8, MXFP4, NVFP4 and compressed-tensors become one float
// tensor a weight, which is decoded row by row while it is read.
//
// It knows no files: callers hand it tensors and the parsed configuration. What the tensors show is the
// truth; the configuration only decides what they leave open, and is reported where it contradicts them.
// Decoding is float32, operation by operation in the order of the scheme's own library, and rounded once
// to the type of the decoded tensor.
package scheme

import (
	"fmt"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// A View is a quantized model seen as a float model.
type View struct {
	// Tensors are the model's in its order. A decoded weight takes the place of its packed data; the
	// other stored parts of it are gone.
	Tensors []tensor.Tensor
	// Packed are the decoded tensors, by name.
	Packed map[string]*Weight
	// Dropped are the names of the stored tensors that are not among Tensors, in the model's order.
	Dropped []string
	// Findings are what is odd, none of level error.
	Findings []finding.Finding
}

// Open looks at the tensors of a model, and returns its view, or nil if nothing in it is quantized by a
// scheme of this package. Config is the parsed config.json, or nil; file names the model in findings.
// Only the small descriptions of bitsandbytes and HQQ are read, no weights and no scales.
//
// Errors are *finding.Finding: scheme.missing_part, scheme.bad_shape, scheme.bad_dtype, scheme.bad_state
// (a description that does not parse or does not fit), scheme.unsupported, scheme.name_taken. Reading a
// decoded tensor may give scheme.bad_index where an index in the data points nowhere.
func Open(file string, tensors []tensor.Tensor, conf map[string]any) (*View, error) {
	m := &model{file: file, config: readConfig(conf), byName: make(map[string]*tensor.Tensor, len(tensors)), used: map[string]bool{}}
	for i := range tensors {
		m.byName[tensors[i].Name] = &tensors[i]
	}
	decoded := map[string]*weight{}
	names := map[string]bool{}
	for i := range tensors {
		w, err := m.match(&tensors[i])
		if err != nil {
			return nil, err
		}
		if w == nil {
			continue
		}
		if names[w.name] || m.byName[w.name] != nil && !contains(w.parts, w.name) {
			return nil, m.fault("name_taken", w.parts[0], "the model holds the weight %q both packed and plain", w.name)
		}
		names[w.name] = true
		decoded[w.parts[0]] = w
		for _, p := range w.parts {
			m.used[p] = true
		}
	}
	if err := m.leftOver(tensors, len(decoded)); err != nil {
		return nil, err
	}
	if len(decoded) == 0 {
		return nil, nil
	}
	v := &View{Packed: map[string]*Weight{}}
	for i := range tensors {
		t := &tensors[i]
		switch w := decoded[t.Name]; {
		case w != nil:
			v.Packed[w.name] = m.describe(w)
			v.Tensors = append(v.Tensors, w.tensor())
			if w.name != t.Name {
				v.Dropped = append(v.Dropped, t.Name)
			}
		case m.used[t.Name] || runtimeScale(t):
			v.Dropped = append(v.Dropped, t.Name)
		default:
			v.Tensors = append(v.Tensors, *t)
		}
	}
	v.Findings = m.findings
	return v, nil
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// runtimeScale reports whether a tensor only serves quantized arithmetic at run time: the scales of
// activations and of the key-value cache, which a float model does not have.
func runtimeScale(t *tensor.Tensor) bool {
	if n, err := t.Shape.Elements(); err != nil || n > 1 {
		return false
	}
	last := t.Name[strings.LastIndexByte(t.Name, '.')+1:]
	switch last {
	case "input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point", "activation_scale",
		"k_scale", "v_scale", "q_scale", "prob_scale", "k_zero_point", "v_zero_point", "input_scale_ub":
		return true
	}
	return strings.HasSuffix(last, "_input_scale")
}

// A model is what Open works with.
type model struct {
	file     string
	config   config
	byName   map[string]*tensor.Tensor
	used     map[string]bool
	findings []finding.Finding
	warned   map[string]bool
}

// A weight is a packed weight and how to decode it.
type weight struct {
	name   string
	shape  tensor.Shape
	dtype  tensor.DType
	scheme string
	parts  []string // names of what it is stored in; it takes the place of the first
	decode decoder

	straight decoder  // decodes the rows that are stored, where decode turns them
	encoding Encoding // nil where the weight is not stored so again
	codes    Codes    // nil where it is not by codes chosen one by one
}

// describe is the exported description of a weight.
func (m *model) describe(w *weight) *Weight {
	exact := *w
	exact.dtype = tensor.F32
	if n := len(w.shape); w.straight != nil {
		exact.decode, exact.shape = w.straight, append(tensor.Shape{}, w.shape...)
		exact.shape[n-2], exact.shape[n-1] = w.shape[n-1], w.shape[n-2]
	}
	d := &Weight{Scheme: w.scheme, Exact: exact.tensor(), Turned: w.straight != nil, Encoding: w.encoding, Codes: w.codes}
	for _, p := range w.parts {
		d.Parts = append(d.Parts, *m.byName[p])
	}
	return d
}

// match tries the schemes on a tensor that may be the packed data of a weight. Parts that only go with
// such a tensor are found from there.
func (m *model) match(t *tensor.Tensor) (*weight, error) {
	for _, scheme := range []func(*model, *tensor.Tensor) (*weight, error){
		matchNF4, matchInt8, matchGroups, matchHQQ, matchBlocks, matchPacked, matchFloat4, matchScaled,
	} {
		if w, err := scheme(m, t); w != nil || err != nil {
			return w, err
		}
	}
	return nil, nil
}

// companions are endings of tensors that are parts of a packed weight, with the part that should be there too.
var companions = [][2]string{
	{".qzeros", ".qweight"}, {".SCB", ".weight"}, {".absmax", ""}, {".quant_map", ""}, {".nested_absmax", ""},
	{".weight_scale_inv", ".weight"}, {".weight_packed", ".weight_scale"}, {".weight_shape", ".weight_packed"}, {".W_q", ".scale"},
	{".weight_scale_2", ".weight"}, {"_proj_scales", "_proj_blocks"}, {"_proj_blocks", "_proj_scales"},
}

// leftOver looks for parts of packed weights that belong to none, and for packed weights of a scheme
// that is not known here.
func (m *model) leftOver(tensors []tensor.Tensor, decoded int) error {
	for i := range tensors {
		t := &tensors[i]
		if m.used[t.Name] {
			continue
		}
		for _, c := range companions {
			stem, ok := strings.CutSuffix(t.Name, c[0])
			if plain := m.byName[stem+".weight"]; plain != nil && plain.DType.IsFloat() && plain.DType.BlockBytes() > 1 {
				continue // left behind by someone who decoded the weight
			}
			if ok && strings.Contains(stem, ".") {
				return m.fault("missing_part", t.Name, "a part of a quantized weight stands alone").Expected("no fitting "+stem+c[1], "all its parts")
			}
		}
		if (decoded > 0 || m.config.method != "") && len(t.Shape) >= 2 && packedType(t.DType) && strings.Contains(t.Name, "weight") {
			return m.fault("unsupported", t.Name, "the weight is quantized by a scheme that cannot be read here").
				Expected(fmt.Sprintf("%s%v, quant_method %q", t.DType, t.Shape, m.config.method), "bitsandbytes, GPTQ, AWQ, HQQ, FP8, MXFP4, NVFP4 or compressed-tensors").
				Hinted("merge into the original model that was quantized")
		}
	}
	if decoded == 0 && m.config.method != "" {
		m.findings = append(m.findings, *finding.Warnf("scheme.config_mismatch", m.file, "the configuration says the model is quantized (%s), but its tensors are not", finding.Escape(m.config.method)))
	}
	return nil
}

func packedType(d tensor.DType) bool {
	switch d {
	case tensor.U8, tensor.I8, tensor.I16, tensor.I32, tensor.U16, tensor.U32, tensor.I64, tensor.F4, tensor.U4, tensor.I4:
		return true
	}
	return false
}

// fault makes an error about a tensor of the model.
func (m *model) fault(reason, name, format string, a ...any) *finding.Finding {
	return finding.Errorf("scheme."+reason, m.file, format, a...).In(name)
}

// mismatch warns, once a subject, that the configuration contradicts the tensors.
func (m *model) mismatch(subject string, config, tensors any) {
	if m.warned[subject] {
		return
	}
	if m.warned == nil {
		m.warned = map[string]bool{}
	}
	m.warned[subject] = true
	m.findings = append(m.findings, *finding.Warnf("scheme.config_mismatch", m.file, "the configuration's %s does not fit the tensors, which are followed", subject).Expected(config, tensors))
}

// part finds a part of a weight by name, and checks its type (any of those given) and its shape. A
// dimension of -1 is any.
func (m *model) part(name string, types []tensor.DType, shape ...int64) (*tensor.Tensor, error) {
	t := m.byName[name]
	if t == nil {
		return nil, m.fault("missing_part", name, "the model lacks this part of a quantized weight")
	}
	if err := m.check(t, types, shape...); err != nil {
		return nil, err
	}
	return t, nil
}

func (m *model) check(t *tensor.Tensor, types []tensor.DType, shape ...int64) error {
	known := false
	for _, d := range types {
		known = known || d == t.DType
	}
	if !known {
		return m.fault("bad_dtype", t.Name, "this part of a quantized weight has the wrong type").Expected(t.DType, fmt.Sprint(types))
	}
	fits := len(t.Shape) == len(shape)
	for i := 0; fits && i < len(shape); i++ {
		fits = shape[i] < 0 || shape[i] == t.Shape[i]
	}
	if !fits {
		return m.fault("bad_shape", t.Name, "this part of a quantized weight has the wrong shape").Expected(t.Shape, describe(shape))
	}
	if n, err := t.Spec.Bytes(); err != nil || n != t.Size {
		return m.fault("bad_shape", t.Name, "the tensor's size does not fit its shape").Expected(t.Size, n)
	}
	return nil
}

// vector is a part that holds n elements in any shape.
func (m *model) vector(name string, types []tensor.DType, n int64) (*tensor.Tensor, error) {
	t := m.byName[name]
	if t == nil {
		return m.part(name, types)
	}
	if k, err := t.Shape.Elements(); err != nil || k != n {
		return nil, m.fault("bad_shape", name, "this part of a quantized weight has the wrong number of elements").Expected(t.Shape, n)
	}
	return t, m.check(t, types, t.Shape...)
}

func describe(shape []int64) string {
	s := make([]string, len(shape))
	for i, d := range shape {
		s[i] = fmt.Sprint(d)
		if d < 0 {
			s[i] = "any"
		}
	}
	return "[" + strings.Join(s, ", ") + "]"
}

var (
	floats   = []tensor.DType{tensor.F32, tensor.F16, tensor.BF16}
	float32s = []tensor.DType{tensor.F32}
	bytes8   = []tensor.DType{tensor.U8}
	words    = []tensor.DType{tensor.I32, tensor.U32}
)

// ceil is ⌈a/b⌉ for a ≥ 0, b > 0.
func ceil(a, b int64) int64 {
	n := a / b
	if a%b != 0 {
		n++
	}
	return n
}
