package report

import (
	"fmt"
	"math"
	"sort"
	"strconv"
	"strings"
)

// A heatMap shows one figure of the modules of one stack of layers: a row for each kind of module, a column for
// each layer.
type heatMap struct {
	Prefix string // what the names have in common before the layer's number
	Layers []int
	Rows   []heatRow
}

type heatRow struct {
	Kind  string
	Cells []heatCell // one for each of Layers
}

type heatCell struct {
	Module *Module // nil where the layer has no such module
	Class  string
	Text   string
	Title  string
}

// place splits a module's name at its first number: the stack it is in, the layer, the kind of module.
// Names without a number are all in one stack, in layer 0.
func place(name string) (prefix string, layer int, kind string) {
	parts := strings.Split(name, ".")
	for i, p := range parts {
		if n, err := strconv.Atoi(p); err == nil && n >= 0 && len(p) < 7 && i > 0 {
			return strings.Join(parts[:i], "."), n, strings.Join(parts[i+1:], ".")
		}
	}
	return "", 0, name
}

// heatMaps sorts modules into stacks, in the order in which these occur. paint says how a cell looks.
func heatMaps(modules []Module, paint func(Module) heatCell) []heatMap {
	type key struct {
		layer int
		kind  string
	}
	cells := map[string]map[key]*Module{}
	var prefixes []string
	for i := range modules {
		m := &modules[i]
		prefix, layer, kind := place(m.Module)
		if cells[prefix] == nil {
			cells[prefix] = map[key]*Module{}
			prefixes = append(prefixes, prefix)
		}
		k := key{layer, kind}
		if cells[prefix][k] != nil { // several tensors of one module: the worst one shows
			if cells[prefix][k].Retention <= m.Retention {
				continue
			}
		}
		cells[prefix][k] = m
	}
	var maps []heatMap
	for _, prefix := range prefixes {
		h := heatMap{Prefix: prefix}
		layers, kinds := map[int]bool{}, map[string]bool{}
		for k := range cells[prefix] {
			if !layers[k.layer] {
				layers[k.layer] = true
				h.Layers = append(h.Layers, k.layer)
			}
			if !kinds[k.kind] {
				kinds[k.kind] = true
				h.Rows = append(h.Rows, heatRow{Kind: k.kind})
			}
		}
		sort.Ints(h.Layers)
		sort.Slice(h.Rows, func(a, b int) bool { return h.Rows[a].Kind < h.Rows[b].Kind })
		for i := range h.Rows {
			row := &h.Rows[i]
			for _, l := range h.Layers {
				m := cells[prefix][key{l, row.Kind}]
				if m == nil {
					row.Cells = append(row.Cells, heatCell{Class: "none"})
					continue
				}
				c := paint(*m)
				c.Module = m
				row.Cells = append(row.Cells, c)
			}
		}
		maps = append(maps, h)
	}
	return maps
}

// retentionBounds are the lower bounds of the shades of retention, the darkest first.
var retentionBounds = []float64{0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99}

// paintRetention shades by how much of the adapter is left; 1.005 is as good as 1, more is odd again.
func paintRetention(m Module) heatCell {
	shade := sort.Search(len(retentionBounds), func(i int) bool { return !(m.Retention >= retentionBounds[i]) }) // also of NaN
	if over := m.Retention - 1; over > 0.005 {
		shade = sort.Search(len(retentionBounds), func(i int) bool { return 1-over < retentionBounds[i] })
	}
	c := heatCell{
		Class: fmt.Sprintf("r%d", shade), Text: fmt.Sprintf("%.0f", 100*m.Retention),
		Title: fmt.Sprintf("%s\nretention %.4f, %s", m.Module, m.Retention, m.Type),
	}
	if !m.Pass {
		c.Class += " bad"
		c.Title += "\n" + m.Why
	}
	return c
}

// paintRatio shades by half decades of ‖ΔW‖/‖W‖, from 10⁻⁴ to 1; the text is its decimal logarithm.
func paintRatio(m Module) heatCell {
	c := heatCell{Class: "q0", Text: "0", Title: fmt.Sprintf("%s\n‖ΔW‖/‖W‖ %.3e", m.Module, m.Ratio)}
	if m.Ratio > 0 {
		l := math.Log10(m.Ratio)
		c.Class = fmt.Sprintf("q%d", int(min(8, max(0, math.Floor(2*(l+4))))))
		c.Text = fmt.Sprintf("%.1f", l)
	}
	return c
}
