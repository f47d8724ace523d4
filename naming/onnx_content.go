package naming

import (
	"fmt"
	"slices"
	"strings"
)

// A contentAt is a weight that was recognised by its values.
type contentAt struct {
	init int
	ONNXContent
}

func (r *ONNXResolver) indexContent() {
	r.content = map[string][]contentAt{}
	for i, t := range r.graph.Initializers {
		for _, c := range t.Content {
			names := []string{c.Module}
			if k := key(c.Module); k != c.Module {
				names = append(names, k)
			}
			for _, n := range names {
				r.content[n] = append(r.content[n], contentAt{i, c})
			}
		}
	}
}

// byContent finds a module's weight by its values, or says why there is not just one place.
func (r *ONNXResolver) byContent(module, param string) ([]Place, string) {
	if !r.graph.ByContent || param != "weight" {
		return nil, ""
	}
	hits := r.content[module]
	if len(hits) == 0 {
		hits = r.content[key(module)]
	}
	if len(hits) == 0 {
		return nil, "no initializer holds its values, or the given weights lack it; an exporter may have folded scales into it"
	}
	first := hits[0]
	for _, h := range hits[1:] {
		if h.init != first.init || h.RowOffset != first.RowOffset {
			return nil, fmt.Sprintf("more than one initializer holds its values: %q, %q", r.graph.Initializers[first.init].Name, r.graph.Initializers[h.init].Name)
		}
	}
	p, why := r.place(r.byInit[first.init], byName)
	if why != "" {
		return nil, why
	}
	p.Rule, p.RowOffset, p.Rows = "content", first.RowOffset, first.Rows
	return []Place{p}, ""
}

// known is the module whose weight an initializer holds by its values, "" where none or more than one is. A
// tensor that packs parts of one parent is called after that and the parts.
func (r *ONNXResolver) known(init int) string {
	content := r.graph.Initializers[init].Content
	if len(content) == 0 {
		return ""
	}
	if len(content) == 1 && content[0].Rows == 0 {
		return content[0].Module
	}
	parent, _ := leaf(content[0].Module)
	var parts []string
	for _, c := range content {
		p, last := leaf(c.Module)
		if c.Rows == 0 || p != parent {
			return ""
		}
		parts = append(parts, last)
	}
	for _, pack := range packs {
		if slices.Equal(pack.parts, parts) {
			return join(parent, pack.whole[0])
		}
	}
	return join(parent, strings.Join(parts, "_"))
}

// An ONNXWeight is an initializer of two dimensions or more whose orientation an operator tells.
type ONNXWeight struct {
	Tensor string
	// Transposed: its last dimension is that of the outputs.
	Transposed bool
	// Module is whose it is by a name, "" where nothing tells.
	Module string
}

// Weights lists the weights of products, embeddings and convolutions, in the order of the initializers.
func (r *ONNXResolver) Weights() []ONNXWeight {
	var all []ONNXWeight
	for i, t := range r.graph.Initializers {
		at := r.byInit[i]
		if len(t.Shape) < 2 || len(at) == 0 || r.index[t.Name] != i {
			continue
		}
		p, why := r.place(at, byName)
		if why != "" {
			continue
		}
		w := ONNXWeight{Tensor: t.Name, Transposed: p.Transposed}
		for _, b := range at {
			if path := r.bindings[b].path(); w.Module == "" {
				w.Module = path
			}
		}
		all = append(all, w)
	}
	return all
}
