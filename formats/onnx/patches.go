package onnx

import (
	"slices"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
)

// patches are all changes of the model file.
func (m *Model) patches(targets []*target, opt layout.Options, edit Edit, dirty bool) ([]patch, error) {
	w, err := m.branches(edit.Branches)
	if err != nil {
		return nil, err
	}
	edits, err := m.nodeEdits(edit)
	if err != nil {
		return nil, err
	}
	swaps, err := m.swapPatches(targets, edit.Swaps)
	if err != nil {
		return nil, err
	}
	w = append(append(w, edits...), swaps...)
	types := map[*Graph]map[string]int64{} // the initializers with another type
	for _, t := range targets {
		add, err := m.tensorPatch(t, dirty)
		if err == nil && t.clone != nil {
			add, err = m.clonePatches(t)
		}
		if err != nil {
			return nil, err
		}
		w = append(w, add...)
		if g := t.rec.graph; t.changed && t.clone == nil && g != nil {
			if types[g] == nil {
				types[g] = map[string]int64{}
			}
			types[g][t.rec.own] = t.dataType
		}
	}
	for _, t := range targets { // in their order, not in that of the map
		g := t.rec.graph
		if types[g] == nil {
			continue
		}
		for _, vs := range [][]Value{g.Inputs, g.Outputs, g.Values} {
			for _, v := range vs {
				if to, ok := types[g][v.Name]; ok {
					add, err := m.typePatches(v, to)
					if err != nil {
						return nil, err
					}
					w = append(w, add...)
				}
			}
		}
		delete(types, g)
	}
	versions, err := m.versions(edit)
	if err != nil {
		return nil, err
	}
	return append(append(w, versions...), m.provenance(opt.Provenance)...), nil
}

// tensorPatch changes the TensorProto of a target, where it must change.
func (m *Model) tensorPatch(t *target, dirty bool) ([]patch, error) {
	r := t.rec
	if t.added() || t.gone {
		return nil, nil
	}
	switch inFile := r.store == storeRaw || r.store == storePacked; {
	case t.changed:
	case r.store == storeExternal && t.external:
		if t.off == r.off && t.file.name == r.file.location && (!dirty || r.tidy(t.file)) {
			return nil, nil
		}
	case r.store == storeNone:
		return nil, nil
	case !t.external && r.store != storeExternal && !t.touched:
		return nil, nil
	case !t.external && inFile && r.len == t.size:
		part := r.parts[slices.IndexFunc(r.parts, func(p *message) bool { return p.off <= r.off && r.off < p.end() })]
		return []patch{{in: part, at: r.off, n: r.len, with: []chunk{t.data()}}}, nil
	}
	if len(r.parts) > 1 {
		return nil, finding.Errorf("output.unsupported", m.path, "a tensor that is stored in pieces cannot be changed").In(t.source.Name)
	}
	content, err := m.src.encodeTensor(r, t.form())
	if err != nil {
		return nil, err
	}
	return []patch{{in: r.parts[0], at: r.parts[0].off, n: r.parts[0].n, with: content}}, nil
}

func (t *target) form() tensorForm {
	f := tensorForm{dataType: t.dataType, data: t.data()}
	if t.external {
		f.external, f.location, f.offset = true, t.file.name, t.off
	}
	if t.clone != nil {
		f.rename = t.clone.Name
	}
	return f
}

// tidy reports whether external_data holds nothing that is wrong in an edited model or that ONNX Runtime
// refuses: checksums of a file that changes, other spellings of its name, prepacked data, unknown keys.
func (r *record) tidy(o *outFile) bool {
	for _, kv := range r.external {
		switch kv[0] {
		case "offset", "length":
		case "location":
			if kv[1] != o.name {
				return false
			}
		case "checksum":
			if !o.untouched() {
				return false
			}
		default:
			return false
		}
	}
	return true
}

// clonePatches add a copy of an initializer behind it and give it its uses.
func (m *Model) clonePatches(t *target) ([]patch, error) {
	part := t.rec.parts[0]
	if len(t.rec.parts) > 1 {
		return nil, finding.Errorf("output.unsupported", m.path, "a tensor that is stored in pieces cannot be changed").In(t.source.Name)
	}
	content, err := m.src.encodeTensor(t.rec, t.form())
	if err != nil {
		return nil, err
	}
	w := []patch{{in: part.up, at: part.end(), with: bytesField(5, content...).chunks}}
	if m.header.IRVersion < 4 { // where every initializer is a graph input as well
		for _, v := range m.graph.Inputs {
			if v.Name == t.rec.own {
				p, err := m.cloneInput(v, t)
				if err != nil {
					return nil, err
				}
				w = append(w, p)
			}
		}
	}
	for _, u := range t.clone.Uses {
		p, err := m.inputPatch(m.graph.Nodes[u.Node].at, u.Input, t.clone.Name)
		if err != nil {
			return nil, err
		}
		w = append(w, p)
	}
	return w, nil
}

// cloneInput copies the declaration of a graph input under the name of a clone.
func (m *Model) cloneInput(v Value, t *target) (patch, error) {
	content := stringField(1, t.clone.Name).chunks
	err := m.src.walk(v.at, 0, func(f field) error {
		if f.num == 2 && t.changed {
			return finding.Errorf("output.unsupported", m.path, "a clone of another type is a graph input in ir_version %d", m.header.IRVersion).In(t.clone.Name)
		}
		if f.num != 1 {
			content = append(content, chunk{src: m.src.r, off: f.at, n: f.end() - f.at})
		}
		return nil
	})
	return patch{in: v.at.up, at: v.at.end(), with: bytesField(11, content...).chunks}, err
}

// inputPatch renames input number index of a node.
func (m *Model) inputPatch(node *message, index int, name string) (patch, error) {
	return m.renamed(node, 1, index, name)
}

// renamed gives a node's input (field 1) or output (field 2) number index another name.
func (m *Model) renamed(node *message, num protowire.Number, index int, name string) (p patch, err error) {
	k := 0
	err = m.src.walk(node, 0, func(f field) error {
		if f.num == num {
			if k == index {
				to := protowire.AppendString(nil, name)
				p = patch{in: node, at: f.pre, n: f.end() - f.pre, with: []chunk{literal(to)}}
			}
			k++
		}
		return nil
	})
	return p, err
}

// typePatches change the element type in the declaration of a value.
func (m *Model) typePatches(v Value, to int64) (w []patch, err error) {
	if v.Kind == "" {
		return nil, nil
	}
	if v.Kind != "tensor" && v.Kind != "sparse_tensor" {
		return nil, finding.Errorf("container.graph_rules", m.path, "an initializer is declared as a %s", v.Kind).In(v.Name).Expected(v.Kind, "tensor")
	}
	err = m.src.walk(v.at, 0, func(f field) error {
		if f.num != 2 {
			return nil
		}
		typ := v.at.child(f)
		return m.src.walk(typ, 0, func(f field) error {
			if f.num != 1 && f.num != 8 {
				return nil
			}
			inner := typ.child(f)
			return m.src.walk(inner, 0, func(f field) error {
				if f.num == 1 && f.typ == protowire.VarintType {
					w = append(w, patch{in: inner, at: f.off, n: f.n, with: []chunk{literal(protowire.AppendVarint(nil, uint64(to)))}})
				}
				return nil
			})
		})
	})
	return w, err
}

// provenance sets entries of the model's metadata_props.
func (m *Model) provenance(entries [][2]string) (w []patch) {
	for _, kv := range entries {
		for i, old := range m.header.Metadata {
			if at := m.header.metadataAt[i]; old[0] == kv[0] {
				w = append(w, patch{in: m.root, at: at.at, n: at.end() - at.at})
			}
		}
	}
	for _, kv := range entries {
		w = append(w, patch{in: m.root, at: m.src.size, with: pairField(14, kv[0], kv[1]).chunks})
	}
	return w
}
