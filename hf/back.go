package hf

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// A restorer turns GGUF tensors back into the parameters of a Hugging Face model.
type restorer struct {
	path  string
	arch  string
	hp    naming.HyperParameters
	parts map[string][]part // parameter → the places it is stored in
	names []string          // of the parameters, in the order of the file
	skip  int64             // rows that a position embedding had before the first (RoBERTa)
	twice bool              // Falcon's layers have two norms
	out   []tensor.Tensor
}

// A part is a GGUF tensor and the place that (some of) a parameter's rows have in it.
type part struct {
	t             *tensor.Tensor
	place         naming.Place
	module, param string
}

// constants are the GGUF tensors that a folder has in its configuration.
var constants = []string{"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}

// restore lists the parameters that the GGUF tensors hold, sorted by name.
func restore(m *gguf.Model, hp naming.HyperParameters) ([]tensor.Tensor, error) {
	r := restorer{path: m.Path(), arch: m.Arch(), hp: hp, parts: map[string][]part{}, skip: skippedPositions(m)}
	tensors := m.Tensors()
	r.twice = slices.ContainsFunc(tensors, func(t tensor.Tensor) bool { return strings.HasPrefix(t.Name, "blk.0.attn_norm_2.") })
	for i := range tensors {
		t := &tensors[i]
		if slices.Contains(constants, t.Name) {
			continue
		}
		if err := positive(t.Shape); err != nil {
			return nil, finding.Errorf("base.bad_shape", r.path, "%v", err).In(t.Name)
		}
		sources, err := naming.FromGGUF(r.arch, hp, t.Name)
		if err != nil {
			return nil, finding.Errorf("base.unknown_tensor", r.path, "%v", err).In(t.Name)
		}
		for _, s := range sources {
			if r.arch == "falcon" && r.twice {
				s.Module = strings.Replace(s.Module, ".input_layernorm", ".ln_mlp", 1)
			}
			name := s.Module + "." + s.Param
			if r.parts[name] == nil {
				r.names = append(r.names, name)
			}
			r.parts[name] = append(r.parts[name], part{t, s.Place, s.Module, s.Param})
		}
	}
	for _, name := range r.names {
		if err := r.parameter(name, r.parts[name]); err != nil {
			f := finding.Of(err)
			if f == nil {
				f = finding.Errorf("base.unsupported", r.path, "%v", err)
			}
			return nil, f.In(r.parts[name][0].t.Name)
		}
	}
	slices.SortFunc(r.out, func(a, b tensor.Tensor) int { return cmp.Compare(a.Name, b.Name) })
	return r.out, nil
}

// parameter appends one parameter; packed experts become two tensors.
func (r *restorer) parameter(name string, parts []part) error {
	b := builder{arch: r.arch}
	first := parts[0]
	s, err := r.float(first.t)
	if err != nil {
		return err
	}
	if strings.HasPrefix(r.arch, "gemma") && strings.HasSuffix(name, "norm.weight") {
		s = shifted(s, -1)
	}
	transposed := b.storedTransposed(first.module, first.param)
	packed := first.t.DType == tensor.MXFP4 && r.arch == "gpt-oss" && transposed
	switch {
	case packed:
		transposed = false
		s = source{first.t, first.t.DType, first.t.Shape}
	case len(parts) == 1 && plain(first.place) && !transposed:
		if s, err = matrixOf(s, first.place); err != nil {
			return err
		}
		if r.skip > 0 && first.t.Name == "position_embd.weight" && len(s.shape) == 2 {
			s = r.padded(s)
		}
		return r.emit(name, s)
	}
	if s, err = r.ordered(s, parts, transposed, packed); err != nil {
		return err
	}
	if packed {
		return r.unpack(name, s)
	}
	return r.emit(name, s)
}

// skippedPositions is the number of positions that RoBERTa and its relatives, which are BERT models with
// another tokenizer, never use: those up to the padding token's number. A GGUF does not have them.
func skippedPositions(m *gguf.Model) int64 {
	if model, ok := m.KVs().Text("tokenizer.ggml.model"); m.Arch() != "bert" || !ok || model == "bert" {
		return 0
	}
	pad, ok := m.KVs().Int("tokenizer.ggml.padding_token_id")
	if !ok || pad < 0 || pad > 1<<10 {
		pad = 1
	}
	return pad + 1
}

// padded puts zero rows before the others.
func (r *restorer) padded(s source) source {
	width := s.shape[1] * int64(s.dtype.BlockBytes())
	zero := readerAt(func(p []byte, _ int64) error { clear(p); return nil })
	v := newView([]section{whole{zero, 0, r.skip * width}, whole{s.ReaderAt, 0, s.shape[0] * width}})
	return source{v, s.dtype, tensor.Shape{s.shape[0] + r.skip, s.shape[1]}}
}

// float is a GGUF tensor in a type whose elements stand by themselves: block types are decoded to F32.
func (r *restorer) float(t *tensor.Tensor) (source, error) {
	s := source{t, t.DType, t.Shape}
	switch t.DType {
	case tensor.F16, tensor.BF16, tensor.F32:
	default:
		var ok bool
		if s, ok = widened(s); !ok {
			return s, fmt.Errorf("type %s cannot be decoded", t.DType)
		}
	}
	if strings.HasSuffix(t.Name, ".ffn_gate_inp_shexp.weight") && len(t.Shape) == 1 {
		s.shape = tensor.Shape{1, t.Shape[0]} // one row; the C library drops such dimensions
	}
	return s, nil
}

// matrixOf is the place's matrix where the tensor is a stack of experts, and the tensor where it is none.
func matrixOf(s source, p naming.Place) (source, error) {
	if p.Experts == 0 {
		return s, nil
	}
	if len(s.shape) < 2 || s.shape[0] != p.Experts {
		return s, fmt.Errorf("the tensor of shape %v does not stack %d experts", s.shape, p.Experts)
	}
	shape := s.shape[1:]
	size, err := tensor.Spec{DType: s.dtype, Shape: shape}.Bytes()
	if err != nil {
		return s, err
	}
	return source{newView([]section{whole{s.ReaderAt, p.Expert * size, size}}), s.dtype, shape}, nil
}

// ordered brings the rows of all parts into the parameter's order.
func (r *restorer) ordered(s source, parts []part, transposed, packed bool) (source, error) {
	stack := int64(1)
	if len(s.shape) == 3 && parts[0].place.Experts == 0 {
		stack = s.shape[0]
	}
	vectors := len(s.shape) == 2 && strings.HasSuffix(parts[0].t.Name, "_exps.bias")
	if vectors {
		stack = s.shape[0]
	}
	var sections []section
	var order []int64 // the same for every matrix of the stack
	var rows, cols int64
	for e := range stack {
		j := joined{}
		if e == 0 {
			j.order = map[int64]int64{}
		}
		for _, p := range parts {
			if err := j.add(r, p, e, stack, vectors, packed); err != nil {
				return s, err
			}
		}
		if e == 0 {
			var err error
			if order, err = j.permutation(); err != nil {
				return s, err
			}
		}
		rows, cols = j.rows, j.cols
		src := newView(j.sections)
		elem := int64(s.dtype.BlockBytes())
		width, err := s.dtype.Bytes(cols)
		if err != nil {
			return s, err
		}
		row := func(i int64) int64 { return order[i] }
		if transposed { // rows of the parameter are columns of what is stored
			sections = append(sections, transposedOf(src, width, elem, rows, cols, row))
		} else {
			sections = append(sections, gathered{src: src, width: width, rows: rows, row: row})
		}
	}
	shape := tensor.Shape{rows, cols}
	switch {
	case vectors:
		shape = tensor.Shape{stack, rows}
	case len(s.shape) == 1:
		shape = tensor.Shape{rows}
	case transposed:
		shape = tensor.Shape{cols, rows}
	}
	if len(s.shape) == 3 && parts[0].place.Experts == 0 {
		shape = append(tensor.Shape{stack}, shape...)
	}
	return source{newView(sections), s.dtype, shape}, nil
}

func transposedOf(src io.ReaderAt, width, elem, rows, cols int64, row func(int64) int64) transposed {
	return transposed{src: src, width: width, elem: elem, n: rows, row: row, rows: cols, column: func(i int64) int64 { return i }}
}

// joined is the rows of several parts, one after the other.
type joined struct {
	sections   []section
	rows, cols int64
	order      map[int64]int64 // canonical row → joined row; nil where it is not wanted
}

// add appends a part's rows of matrix e of the stack.
func (j *joined) add(r *restorer, p part, e, stack int64, vectors, packed bool) error {
	s := source{p.t, p.t.DType, p.t.Shape}
	if !packed {
		var err error
		if s, err = r.float(p.t); err != nil {
			return err
		}
	}
	d := s.shape
	switch {
	case p.place.Experts > 0 && len(d) == 3 && d[0] == p.place.Experts:
		e, d = p.place.Expert, d[1:]
	case p.place.Experts > 0:
		return fmt.Errorf("the tensor of shape %v does not stack %d matrices", d, p.place.Experts)
	case stack > 1 && d[0] != stack:
		return fmt.Errorf("stacks of %d and %d experts belong together", stack, d[0])
	case len(d) == 3 || vectors:
		d = d[1:]
	}
	if len(d) > 2 {
		return fmt.Errorf("a tensor of shape %v is not expected here", p.t.Shape)
	}
	rows, cols := d[0], int64(1)
	if len(d) == 2 && !vectors {
		cols = d[1]
	}
	width, err := s.dtype.Bytes(cols)
	if err != nil {
		return err
	}
	start := e * rows * width
	n := cmp.Or(p.place.Rows, rows)
	if p.place.Transposed {
		elem := int64(s.dtype.BlockBytes())
		first := e * rows
		j.sections = append(j.sections, transposedOf(s, width, elem, rows, cols, func(i int64) int64 { return first + i }))
		if n = cmp.Or(p.place.Rows, cols); n != cols {
			return fmt.Errorf("the tensor has %d columns, but the model's sizes ask for %d", cols, n)
		}
		cols = rows
	} else {
		if p.place.RowOffset+n > rows || n <= 0 {
			return fmt.Errorf("the tensor has %d rows, but the model's sizes ask for %d", rows, p.place.RowOffset+n)
		}
		j.sections = append(j.sections, whole{s, start + p.place.RowOffset*width, n * width})
	}
	if j.cols != 0 && j.cols != cols {
		return fmt.Errorf("rows of %d and %d elements belong together", j.cols, cols)
	}
	if h := p.place.Heads; h > 0 && n%(2*h) != 0 {
		return fmt.Errorf("%d rows are not %d heads of an even size", n, h)
	}
	for i := int64(0); i < n && j.order != nil; i++ {
		j.order[p.place.Canonical(i, n)] = j.rows + i
	}
	j.rows, j.cols = j.rows+n, cols
	return nil
}

// permutation is the order of the rows, checked to have every row once.
func (j *joined) permutation() ([]int64, error) {
	order := make([]int64, j.rows)
	for c, at := range j.order {
		if c < 0 || c >= j.rows {
			return nil, fmt.Errorf("the tensor does not have all rows of the parameter")
		}
		order[c] = at
	}
	if int64(len(j.order)) != j.rows {
		return nil, fmt.Errorf("the tensor has rows of the parameter twice")
	}
	return order, nil
}

func (r *restorer) emit(name string, s source) error {
	spec := tensor.Spec{Name: name, DType: s.dtype, Shape: s.shape}
	size, err := spec.Bytes()
	if err != nil {
		return err
	}
	r.out = append(r.out, tensor.Tensor{Spec: spec, Src: s.ReaderAt, Size: size})
	return nil
}

// unpack appends MXFP4 experts as the blocks and scales of transformers.
func (r *restorer) unpack(name string, s source) error {
	d := s.shape
	if len(d) != 3 {
		return fmt.Errorf("packed experts have three dimensions, not %v", d)
	}
	blocks := d[2] / quantBlock
	part := func(unit int64, take func(dst, block []byte)) io.ReaderAt {
		return readerAt(func(p []byte, off int64) error {
			return inUnits(p, off, unit, func(p []byte, first int64) error {
				n := int64(len(p)) / unit
				in := scratch(n * mxBlock)
				defer free(in)
				if err := full(s.ReaderAt, *in, first*mxBlock); err != nil {
					return err
				}
				for b := range n {
					take(p[b*unit:][:unit], (*in)[b*mxBlock:][:mxBlock])
				}
				return nil
			})
		})
	}
	codes := part(mxCodes, func(dst, block []byte) {
		for i := range dst {
			half := func(e int) byte {
				x := block[1+e%mxCodes]
				if e >= mxCodes {
					x >>= 4
				}
				return x & 15
			}
			dst[i] = half(2*i) | half(2*i+1)<<4
		}
	})
	scales := part(1, func(dst, block []byte) { dst[0] = block[0] })
	if err := r.emit(name+"_blocks", source{codes, tensor.U8, tensor.Shape{d[0], d[1], blocks, mxCodes}}); err != nil {
		return err
	}
	return r.emit(name+"_scales", source{scales, tensor.U8, tensor.Shape{d[0], d[1], blocks}})
}

// quantBlock is the number of elements of an MXFP4 block.
const quantBlock = 32
