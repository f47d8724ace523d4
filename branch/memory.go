package branch

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/tensor"
)

// Keep drops the branches of layers that no parameter is for, so that a run does not pay for them.
func (p *Plan) Keep(parameters []Parameter) {
	given := map[string]bool{}
	for _, x := range parameters {
		given[x.Name] = true
	}
	to := make([]int, len(p.Layers)) // old → new, -1 for dropped
	var layers []Layer
	for i, l := range p.Layers {
		if to[i] = -1; given[l.A] {
			to[i] = len(layers)
			layers = append(layers, l)
		}
	}
	var branches []onnx.Branch
	for _, b := range p.branches {
		if given[b.A] {
			branches = append(branches, b)
		}
	}
	at := map[int]int{}
	for node, l := range p.at {
		if to[l] >= 0 {
			at[node] = to[l]
		}
	}
	p.Layers, p.branches, p.at = layers, branches, at
}

// Bytes is the model file with its branches, to be loaded from memory, where the external data stays in the model's
// folder. ok is false where that cannot be: data lies in a subfolder or behind a link, or the file would have to be
// packed anew.
func (p *Plan) Bytes() (b []byte, ok bool, err error) {
	folder := filepath.Dir(p.model.File())
	specs := make([]tensor.Spec, len(p.model.Tensors()))
	for i, t := range p.model.Tensors() {
		specs[i] = t.Spec
	}
	l, err := p.model.Rewrite(specs, layout.Options{Name: filepath.Base(p.model.File())}, onnx.Edit{Touched: make([]bool, len(specs)), Branches: p.branches})
	if err != nil {
		return nil, false, err
	}
	for i := range specs {
		if strings.ContainsAny(p.model.Info(i).Location, "/:") {
			return nil, false, nil
		}
	}
	last := len(l.Files) - 1
	for _, f := range l.Files[:last] {
		same := len(f.Spans) == 1 && f.Spans[0].Off == 0 && f.Spans[0].SrcOff == 0 && f.Spans[0].Len == f.Size
		fi, err := os.Lstat(filepath.Join(folder, f.Name))
		if !same || err != nil || !fi.Mode().IsRegular() || fi.Size() != f.Size {
			return nil, false, nil
		}
	}
	b = make([]byte, l.Files[last].Size)
	for _, s := range l.Files[last].Spans {
		if _, err := s.Src.ReadAt(b[s.Off:s.Off+s.Len], s.SrcOff); err != nil {
			return nil, false, fmt.Errorf("%s: %w", p.model.Path(), err)
		}
	}
	return b, true, nil
}
