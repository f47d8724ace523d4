package naming

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// A row of the table says which GGUF tensor holds a module's parameter.
type row struct {
	module string // # stands for the layer, @ for the expert
	param  string // "": the weight and the bias
	tensor string // without suffix where param is ""
	op     string
}

// An architecture is what llama.cpp's converter does with the modules of one model family.
type architecture struct {
	name    string
	tied    bool // the converter drops the output layer
	rows    []row
	modules map[string][]int // tail of the module, and the parameter of a raw one, → rows
	tensors map[string][]int // tensor → rows, the first one first
}

// A table is all architectures with the ways to find one.
type table struct {
	archs   map[string]*architecture
	names   []string          // of archs, sorted
	classes map[string]string // config.json architectures[0] → name
	types   map[string]string // config.json model_type → name
}

//go:embed architectures.txt
var source string

// architectures is the embedded table. A malformed table is a defect of the program and panics at
// its first use, which every test of this package is.
var architectures = sync.OnceValue(func() *table {
	t := &table{archs: map[string]*architecture{}, classes: map[string]string{}, types: map[string]string{}}
	groups := map[string][]row{}
	var a *architecture
	group := ""
	add := func(r ...row) {
		if a == nil {
			groups[group] = append(groups[group], r...)
			return
		}
		a.rows = append(a.rows, r...)
	}
	for n, line := range strings.Split(source, "\n") {
		w := strings.Fields(line)
		if len(w) == 0 || w[0] == "#" {
			continue
		}
		switch {
		case w[0] == "group":
			a, group = nil, w[1]
		case w[0] == "arch":
			a = &architecture{name: w[1]}
			t.archs[a.name] = a
			t.names = append(t.names, a.name)
		case w[0] == "hf":
			for _, c := range w[1:] {
				t.classes[c] = a.name
			}
		case w[0] == "type":
			for _, c := range w[1:] {
				t.types[c] = a.name
			}
		case w[0] == "tied":
			a.tied = true
		case w[0] == "use":
			for _, g := range w[1:] {
				if groups[g] == nil {
					panic(fmt.Sprintf("architectures.txt:%d: no group %q", n+1, g))
				}
				add(groups[g]...)
			}
		case len(w) == 2 || len(w) == 3 && slices.Contains(ops, w[2]):
			r := row{tensor: w[1]}
			r.module, r.param, _ = strings.Cut(w[0], ":")
			if len(w) == 3 {
				r.op = w[2]
			}
			add(r)
		default:
			panic(fmt.Sprintf("architectures.txt:%d: %q", n+1, line))
		}
	}
	for _, a := range t.archs {
		a.index()
	}
	slices.Sort(t.names)
	return t
})

// ops are the row transforms, explained in architectures.txt.
var ops = []string{"heads", "kvheads", "qkv", "kvqkv", "gate", "up", "even", "odd", "kpart", "vpart"}

func (a *architecture) index() {
	a.modules, a.tensors = map[string][]int{}, map[string][]int{}
	for i, r := range a.rows {
		_, tail := split(r.module, 1)
		k := rowKey(tail, r.param)
		a.modules[k] = append(a.modules[k], i)
		a.tensors[r.tensor] = append(a.tensors[r.tensor], i)
	}
}

func rowKey(tail, param string) string { return tail + ":" + param }

// generic replaces the first number of a dotted name by # and the second by @.
func generic(name string) (pattern string, layer, expert int64) {
	c := strings.Split(name, ".")
	layer, expert = -1, -1
	for i, s := range c {
		n, ok := number(s)
		switch {
		case ok && layer < 0:
			c[i], layer = "#", n
		case ok && expert < 0:
			c[i], expert = "@", n
		}
	}
	return strings.Join(c, "."), layer, expert
}

// specific puts the layer and the expert into a pattern.
func specific(pattern string, layer, expert int64) string {
	s := strings.Replace(pattern, "#", fmt.Sprint(layer), 1)
	return strings.Replace(s, "@", fmt.Sprint(expert), 1)
}

// find returns the rows for a parameter of a module.
func (a *architecture) find(module, param string) (rows []row, layer, expert int64) {
	_, tail := split(module, 1)
	tail, layer, expert = generic(tail)
	at := a.modules[rowKey(tail, param)]
	if at == nil && (param == "weight" || param == "bias") {
		at = a.modules[rowKey(tail, "")]
	}
	for _, i := range at {
		rows = append(rows, a.rows[i])
	}
	return rows, layer, expert
}

// An UnknownArchitecture is an architecture that has no table here.
type UnknownArchitecture struct {
	Name    string
	Nearest []string // the supported names most like it
}

func (e *UnknownArchitecture) Error() string {
	s := fmt.Sprintf("architecture %q is not supported", e.Name)
	if len(e.Nearest) > 0 {
		s += fmt.Sprintf("; nearest: %q", e.Nearest)
	}
	return s
}

// lookup finds an architecture by its llama.cpp name.
func (t *table) lookup(name string) (*architecture, error) {
	if a := t.archs[name]; a != nil {
		return a, nil
	}
	return nil, unknown(name, t.names)
}

func unknown(name string, known []string) error {
	x := nameIndex{names: func() []string { return known }}
	return &UnknownArchitecture{Name: name, Nearest: x.nearest(name)}
}

// DropsHead reports whether llama.cpp's converter leaves the output layer of an architecture out, which is
// always the token embedding.
func DropsHead(arch string) bool {
	a := architectures().archs[arch]
	return a != nil && a.tied
}
