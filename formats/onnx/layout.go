package onnx

import (
	"fmt"
	"path/filepath"
	"unicode/utf8"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/tensor"
)

// A Placement says where an output's tensor data goes.
type Placement int

const (
	// Keep leaves data in the model or in an external file, as it was.
	Keep Placement = iota
	// Inline moves all data into the model file.
	Inline
	// External moves the initializers of at least Edit.Threshold bytes to an external file.
	External
)

// An Edit says how an output differs from the model it is made of, beside the types in the specs.
type Edit struct {
	// Touched, parallel to Model.Tensors, marks the tensors whose data the caller will write. All others
	// are copied by spans and get a place of size 0, unless their type changes: then the caller must write
	// them too. Nil marks all tensors but those that no transformation applies to: strings, and booleans
	// and 32 or 64-bit integers in a typed field, whose encoding then survives.
	Touched []bool
	// Data is where the data goes. Keep becomes External by itself when the model file would outgrow what
	// protobuf can hold, 2 GiB.
	Data Placement
	// Threshold is the size from which External moves an initializer; 0 means 1024 bytes.
	Threshold int64
	// Dir is the folder of the output. Where it is given, no external file takes a name that one of the
	// model's own files has there.
	Dir string
	// Clones are further initializers; their specs stand behind those of Model.Tensors.
	Clones []Clone
	// Branches are added to nodes of the main graph.
	Branches []Branch
	// Swaps put other initializers in the places of some; the specs of all these stand behind those of the
	// clones, swap by swap.
	Swaps []Swap
	// Nodes are changes of nodes of the main graph, at most one for each.
	Nodes []NodeEdit
	// Imports are the sets of operators that the edited graph needs: added where the model has none of the
	// domain.
	Imports []Opset
	// IRVersion is raised to this.
	IRVersion int64
}

// A Clone is an initializer under a new name, which some of the uses of the original one take over.
type Clone struct {
	Tensor int // the original, an initializer of the main graph
	Name   string
	Uses   []Use
}

// A Use is an input of a node of the main graph.
type Use struct{ Node, Input int }

// Layout lays out the model with other types. The caller writes every tensor whose place has a size;
// see Edit.Touched for the others.
func (m *Model) Layout(specs []tensor.Spec, opt layout.Options) (*layout.Layout, error) {
	return m.Rewrite(specs, opt, Edit{})
}

// Rewrite lays out an edited model: the external files first, the model file, named opt.Name, last.
// Specs are those of Model.Tensors in the same order, some with another type, and one for each clone.
// Where nothing changes, all bytes are those of the source. Provenance goes to metadata_props.
//
// An external file keeps its name and the offsets in it, unless a type changes in it; a name that is no
// plain one, or is taken, becomes opt.Name + ".data". The declarations of an initializer whose type
// changes, as graph input, output or value_info, change with it.
func (m *Model) Rewrite(specs []tensor.Spec, opt layout.Options, edit Edit) (*layout.Layout, error) {
	if opt.Name == "" {
		opt.Name = filepath.Base(m.file)
	}
	if edit.Threshold <= 0 {
		edit.Threshold = 1024
	}
	m.walking.Lock()
	defer m.walking.Unlock()
	targets, err := m.targets(specs, edit)
	if err != nil {
		return nil, err
	}
	l, err := m.lay(targets, opt, edit)
	if err == nil && l.Files[len(l.Files)-1].Size > maxMessage && edit.Data != External {
		edit.Data = External
		l, err = m.lay(targets, opt, edit)
	}
	if err != nil {
		return nil, err
	}
	if n := l.Files[len(l.Files)-1].Size; n > maxMessage {
		return nil, finding.Errorf("output.too_large", opt.Name, "the model file would be larger than protobuf allows").Expected(n, fmt.Sprintf("at most %d bytes", maxMessage))
	}
	return l, nil
}

// A target is one tensor of the output.
type target struct {
	rec      *record
	source   *tensor.Tensor
	item     int
	clone    *Clone
	part     *tensor.Spec // of a swap, which is that of rec
	gone     bool         // a swap takes its place
	dataType int64
	size     int64
	touched  bool // the caller writes it
	changed  bool // its type differs

	external bool
	file     *outFile
	off      int64
}

// added reports whether the model has no such tensor.
func (t *target) added() bool { return t.clone != nil || t.part != nil }

// data is the tensor's content in the output.
func (t *target) data() chunk {
	if t.touched {
		return chunk{n: t.size, item: t.item}
	}
	return chunk{src: t.source.Src, off: t.source.Off, n: t.size}
}

func (m *Model) targets(specs []tensor.Spec, edit Edit) ([]*target, error) {
	swapped := 0
	for _, s := range edit.Swaps {
		swapped += s.Parts
	}
	if len(specs) != len(m.tensors)+len(edit.Clones)+swapped {
		return nil, fmt.Errorf("%d specs for %d tensors, %d clones and %d parts of swaps", len(specs), len(m.tensors), len(edit.Clones), swapped)
	}
	if edit.Touched != nil && len(edit.Touched) != len(m.tensors) {
		return nil, fmt.Errorf("%d marks for %d tensors", len(edit.Touched), len(m.tensors))
	}
	names := m.graph.names()
	var w []*target
	for i, s := range specs[:len(specs)-swapped] {
		t := &target{item: i}
		from := i
		if k := i - len(m.tensors); k >= 0 {
			t.clone, t.touched = &edit.Clones[k], true
			from = t.clone.Tensor
			if err := m.checkClone(t.clone, names); err != nil {
				return nil, err
			}
			names[t.clone.Name] = true
		}
		t.rec, t.source = m.records[from], &m.tensors[from]
		if t.clone == nil && s.Name != t.source.Name || !s.Shape.Equal(t.source.Shape) {
			return nil, fmt.Errorf("spec %d is %q %v, the tensor is %q %v", i, s.Name, s.Shape, t.source.Name, t.source.Shape)
		}
		t.dataType = DataType(s.DType)
		t.changed = s.DType != t.source.DType
		t.size = t.source.Size
		if t.changed {
			if t.dataType == 0 || s.DType == tensor.String || t.source.DType == tensor.String {
				return nil, finding.Errorf("output.bad_dtype", m.path, "ONNX cannot store the tensor in this type").In(s.Name).Expected(s.DType, "a type of ONNX, and no strings")
			}
			var err error
			if t.size, err = rawSize(s); err != nil {
				return nil, finding.Errorf("output.bad_dtype", m.path, "%v", err).In(s.Name)
			}
		}
		if t.clone == nil {
			if edit.Touched != nil {
				t.touched = edit.Touched[i]
			} else {
				t.touched = t.rec.plain()
			}
		}
		t.touched = t.touched || t.changed
		if t.touched && s.DType == tensor.String {
			return nil, fmt.Errorf("tensor %q holds strings and cannot be written", s.Name)
		}
		w = append(w, t)
	}
	return m.swapTargets(w, specs[len(w):], edit.Swaps, names)
}

// plain reports whether a tensor may be transformed by somebody who has not looked closer.
func (r *record) plain() bool {
	switch DType(r.dataType) {
	case tensor.String:
		return false
	case tensor.Bool, tensor.I32, tensor.U32, tensor.I64, tensor.U64:
		return r.store != storeTyped
	}
	return true
}

func (m *Model) checkClone(c *Clone, names map[string]bool) error {
	if c.Tensor < 0 || c.Tensor >= len(m.tensors) || m.rank(m.records[c.Tensor]) != 0 {
		return fmt.Errorf("clone %q is not of an initializer of the main graph", c.Name)
	}
	if c.Name == "" || !utf8.ValidString(c.Name) || names[c.Name] {
		return fmt.Errorf("clone of %q: the name %q is empty, no UTF-8 or taken", m.tensors[c.Tensor].Name, c.Name)
	}
	for _, u := range c.Uses {
		if u.Node < 0 || u.Node >= len(m.graph.Nodes) || u.Input < 0 || u.Input >= len(m.graph.Nodes[u.Node].Inputs) ||
			m.graph.Nodes[u.Node].Inputs[u.Input] != m.records[c.Tensor].own {
			return fmt.Errorf("clone %q: input %d of node %d is not %q", c.Name, u.Input, u.Node, m.records[c.Tensor].own)
		}
	}
	return nil
}

// lay makes the layout for targets.
func (m *Model) lay(targets []*target, opt layout.Options, edit Edit) (*layout.Layout, error) {
	dirty := len(edit.Clones)+len(edit.Branches)+len(edit.Swaps)+len(edit.Nodes)+len(opt.Provenance) > 0 || edit.Data != Keep
	for _, t := range targets {
		dirty = dirty || t.touched
	}
	for _, t := range targets {
		initializer := t.rec.kind == Initializer && t.size > 0 && t.source.DType != tensor.String
		switch {
		case t.gone:
			t.external = false
		case t.rec.store == storeExternal:
			// Offsets into the model file itself do not survive a change of the file.
			lost := t.rec.file.self && (dirty || t.rec.file.location != opt.Name)
			t.external = edit.Data != Inline && !lost
		default:
			t.external = edit.Data == External && initializer && t.size >= edit.Threshold
		}
		t.file, t.off = nil, 0
	}
	outs := m.outFiles(targets, opt, edit)
	l := &layout.Layout{Items: make([]layout.Place, len(targets))}
	for _, o := range outs {
		o.place()
		if o.src != nil && o.src.self {
			continue
		}
		for _, t := range o.members {
			if t.touched {
				l.Items[t.item] = layout.Place{File: len(l.Files), Off: t.off, Size: t.size}
			}
		}
		l.Files = append(l.Files, layout.File{Name: o.name, Size: o.size, Spans: o.spans()})
	}
	patches, err := m.patches(targets, opt, edit, dirty)
	if err != nil {
		return nil, err
	}
	spans, holes, size, err := m.src.apply(patches)
	if err != nil {
		return nil, err
	}
	for _, t := range targets {
		if off, ok := holes[t.item]; ok {
			l.Items[t.item] = layout.Place{File: len(l.Files), Off: off, Size: t.size}
		}
	}
	l.Files = append(l.Files, layout.File{Name: opt.Name, Size: size, Spans: spans})
	return l, nil
}
