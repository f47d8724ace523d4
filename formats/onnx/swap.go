package onnx

import (
	"fmt"
	"slices"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// A Swap puts other initializers in the place of one of the main graph, which goes, with its declaration as an
// input of the graph.
type Swap struct {
	Tensor int  // an initializer of the main graph
	Keep   bool // it stays, for those who still read it
	Parts  int  // how many come
}

// A NodeEdit changes a node of the main graph.
type NodeEdit struct {
	Node   int
	Before []NewNode // come before it
	// Inputs are new names of inputs, by index.
	Inputs map[int]string
	// Replace, where not nil, takes the node's place, and keeps its doc_string and metadata_props.
	Replace *NewNode
}

// A NewNode is a node whose attributes are integers.
type NewNode struct {
	OpType, Domain, Name string
	Inputs, Outputs      []string
	Ints                 []IntAttr
}

// An IntAttr is an integer attribute.
type IntAttr struct {
	Name  string
	Value int64
}

// swapTargets adds the parts of swaps to the targets.
func (m *Model) swapTargets(w []*target, specs []tensor.Spec, swaps []Swap, names map[string]bool) ([]*target, error) {
	for _, s := range swaps {
		if s.Tensor < 0 || s.Tensor >= len(m.tensors) || m.rank(m.records[s.Tensor]) != 0 || w[s.Tensor].gone {
			return nil, fmt.Errorf("a swap of tensor %d, which is no initializer of the main graph or swapped twice", s.Tensor)
		}
		if m.header.IRVersion < 4 {
			return nil, finding.Errorf("output.unsupported", m.path, "in a graph of this version every initializer is an input, so none is replaced").
				Expected(fmt.Sprintf("ir_version %d", m.header.IRVersion), "4 or later").Hinted("export the model again")
		}
		old := w[s.Tensor]
		if len(old.rec.parts) > 1 {
			return nil, finding.Errorf("output.unsupported", m.path, "a tensor that is stored in pieces cannot be changed").In(old.source.Name)
		}
		old.gone, old.touched = !s.Keep, old.touched && s.Keep
		for range s.Parts {
			spec := &specs[0]
			specs = specs[1:]
			size, err := rawSize(*spec)
			if err != nil || DataType(spec.DType) == 0 {
				return nil, finding.Errorf("output.bad_dtype", m.path, "ONNX cannot store a tensor of type %s and shape %v", spec.DType, spec.Shape).In(spec.Name)
			}
			if spec.Name == "" || !utf8.ValidString(spec.Name) || names[spec.Name] {
				return nil, finding.Errorf("output.duplicate_name", m.path, "the graph has a value of this name already").In(spec.Name)
			}
			names[spec.Name] = true
			w = append(w, &target{item: len(w), rec: old.rec, source: old.source, part: spec, dataType: DataType(spec.DType), size: size, touched: true})
		}
	}
	return w, nil
}

// swapPatches write the parts of swaps.
func (m *Model) swapPatches(targets []*target, swaps []Swap) (w []patch, err error) {
	parts := targets[len(targets)-count(swaps):]
	for _, s := range swaps {
		at := targets[s.Tensor].rec.parts[0]
		p := patch{in: at.up, at: at.at, n: at.end() - at.at}
		if s.Keep {
			p.at, p.n = at.end(), 0
		}
		for _, t := range parts[:s.Parts] {
			p.with = append(p.with, t.encode().chunks...)
		}
		parts = parts[s.Parts:]
		w = append(w, p)
		for _, v := range m.graph.Inputs {
			if v.Name == targets[s.Tensor].rec.own && !s.Keep {
				w = append(w, patch{in: v.at.up, at: v.at.at, n: v.at.end() - v.at.at})
			}
		}
	}
	return w, nil
}

func count(swaps []Swap) (n int) {
	for _, s := range swaps {
		n += s.Parts
	}
	return n
}

// encode is the initializer of a part of a swap.
func (t *target) encode() encoded {
	var content []chunk
	for _, d := range t.part.Shape {
		content = append(content, varintField(1, d).chunks...)
	}
	fields := []encoded{varintField(2, t.dataType), stringField(8, t.part.Name)}
	for _, f := range append(fields, t.form().dataFields()...) {
		content = append(content, f.chunks...)
	}
	return bytesField(5, content...)
}

// nodeEdits are the patches of nodes.
func (m *Model) nodeEdits(edit Edit) (w []patch, err error) {
	for _, e := range edit.Nodes {
		if e.Node < 0 || e.Node >= len(m.graph.Nodes) {
			return nil, fmt.Errorf("a change of node %d of %d", e.Node, len(m.graph.Nodes))
		}
		at := m.graph.Nodes[e.Node].at
		var before []chunk
		for i := range e.Before {
			before = append(before, bytesField(1, e.Before[i].encode(nil)...).chunks...)
		}
		if len(before) > 0 {
			w = append(w, patch{in: at.up, at: at.at, with: before})
		}
		if e.Replace != nil {
			kept, err := m.keptFields(at)
			if err != nil {
				return nil, err
			}
			w = append(w, patch{in: at.up, at: at.at, n: at.end() - at.at, with: bytesField(1, e.Replace.encode(kept)...).chunks})
			continue
		}
		for i := range m.graph.Nodes[e.Node].Inputs {
			name, renamed := e.Inputs[i]
			if !renamed {
				continue
			}
			p, err := m.inputPatch(at, i, name)
			if err != nil {
				return nil, err
			}
			w = append(w, p)
		}
	}
	return w, nil
}

// keptFields are the doc_string and the metadata_props of a node.
func (m *Model) keptFields(node *message) (kept []encoded, err error) {
	err = m.src.walk(node, 0, func(f field) error {
		if f.num == 6 || f.num == 9 {
			kept = append(kept, encoded{f.num, []chunk{{src: m.src.r, off: f.at, n: f.end() - f.at}}})
		}
		return nil
	})
	return kept, err
}

// encode is the content of a NodeProto, with further fields.
func (n *NewNode) encode(kept []encoded) []chunk {
	var fields []encoded
	for _, s := range n.Inputs {
		fields = append(fields, stringField(1, s))
	}
	for _, s := range n.Outputs {
		fields = append(fields, stringField(2, s))
	}
	if n.Name != "" {
		fields = append(fields, stringField(3, n.Name))
	}
	fields = append(fields, stringField(4, n.OpType))
	for _, a := range n.Ints {
		const typeInt = 2
		fields = append(fields, bytesField(5, slices.Concat(stringField(1, a.Name).chunks, varintField(3, a.Value).chunks, varintField(20, typeInt).chunks)...))
	}
	if n.Domain != "" {
		fields = append(fields, stringField(7, n.Domain))
	}
	return inOrder(append(fields, kept...))
}

// versions raise what the model says that it needs.
func (m *Model) versions(edit Edit) (w []patch, err error) {
	for _, o := range edit.Imports {
		if !slices.ContainsFunc(m.header.Opsets, func(have Opset) bool { return have.Domain == o.Domain }) {
			set := bytesField(8, append(stringField(1, o.Domain).chunks, varintField(2, o.Version).chunks...)...)
			w = append(w, patch{in: m.root, at: m.src.size, with: set.chunks})
		}
	}
	if m.header.IRVersion >= edit.IRVersion {
		return w, nil
	}
	err = m.src.walk(m.root, 0, func(f field) error {
		if f.num == 1 && f.typ == protowire.VarintType {
			w = append(w, patch{in: m.root, at: f.off, n: f.n, with: []chunk{literal(protowire.AppendVarint(nil, uint64(edit.IRVersion)))}})
		}
		return nil
	})
	return w, err
}
