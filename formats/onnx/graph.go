package onnx

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// A Graph is what finding weights needs to know of a graph, or of a function's body.
type Graph struct {
	Name string
	// Scope is where the graph lies: "" for the main graph, "node[3].then_branch" for a subgraph of its
	// fourth node, "functions[0]" for a function.
	Scope        string
	Nodes        []*Node
	Inputs       []Value
	Outputs      []Value
	Values       []Value // value_info: what is known of values inside
	Initializers []int   // indexes into Model.Tensors, sparse initializers not among them
	Props        [][2]string

	initializers []*record
	sparse       []string
}

// A Node is one operator.
type Node struct {
	Name, OpType, Domain, Overload string
	Inputs, Outputs                []string // "" for an optional one left out
	Attrs                          []Attr
	Props                          [][2]string

	at *message
}

// Attr returns the node's attribute of a name, or nil.
func (n *Node) Attr(name string) *Attr {
	for i := range n.Attrs {
		if n.Attrs[i].Name == name {
			return &n.Attrs[i]
		}
	}
	return nil
}

// Int returns the node's integer attribute of a name, or otherwise the default.
func (n *Node) Int(name string, otherwise int64) int64 {
	if a := n.Attr(name); a != nil {
		return a.Int
	}
	return otherwise
}

// An Attr is a node's attribute. Of the values that AttributeProto may carry, lists of floats, strings
// and types are left out.
type Attr struct {
	Name   string
	Int    int64
	Ints   []int64
	Float  float32
	Text   string   // at most 4096 bytes
	Graphs []*Graph // the branches of If, the bodies of Loop and Scan

	tensors []*record
}

// Tensors returns the indexes into Model.Tensors of the attribute's tensors.
func (a *Attr) Tensors() []int {
	var w []int
	for _, r := range a.tensors {
		w = append(w, r.index)
	}
	return w
}

const (
	maxRank     = 64
	maxAttrText = 4096
)

// graph reads a GraphProto into g, which may hold what an earlier piece of the same graph said.
func (p *parser) graph(g *Graph, m *message, depth int) error {
	return p.walk(m, depth, func(f field) (err error) {
		switch f.num {
		case 2:
			g.Name, err = p.text(f)
			return err
		case 1, 5, 11, 12, 13, 15, 16:
			if err := p.want(f, protowire.BytesType); err != nil {
				return err
			}
		}
		switch f.num {
		case 1:
			return p.node(g, m.child(f), depth+1)
		case 5:
			r, err := p.tensor([]*message{m.child(f)}, depth+1, g.Scope)
			if err != nil {
				return err
			}
			r.graph, r.kind = g, Initializer
			if r.own == "" {
				return p.reject("no_name", "an initializer without a name in %s", g.where()).Expected("no name", "a name")
			}
			g.initializers = append(g.initializers, r)
		case 11:
			g.Inputs, err = p.value(g.Inputs, m.child(f), depth+1, true)
		case 12:
			g.Outputs, err = p.value(g.Outputs, m.child(f), depth+1, true)
		case 13:
			g.Values, err = p.value(g.Values, m.child(f), depth+1, false)
		case 15:
			var name string
			scope := fmt.Sprintf("%ssparse_initializer[%d]", dotted(g.Scope), len(g.sparse))
			if name, err = p.sparse([]*message{m.child(f)}, depth+1, scope, g); err == nil && name == "" {
				err = p.reject("no_name", "a sparse initializer without a name in %s", g.where()).Expected("no name", "a name")
			}
			g.sparse = append(g.sparse, name)
		case 16:
			g.Props, err = p.prop(g.Props, m.child(f), depth+1)
		}
		return err
	})
}

func (g *Graph) where() string {
	if g.Scope == "" {
		return "the graph"
	}
	return g.Scope
}

func dotted(scope string) string {
	if scope == "" {
		return ""
	}
	return scope + "."
}

// prop adds one entry of metadata_props.
func (p *parser) prop(to [][2]string, m *message, depth int) ([][2]string, error) {
	kv, err := p.pair(m, depth)
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(to[max(0, len(to)-maxPropsCompared):], func(o [2]string) bool { return o[0] == kv[0] }) {
		p.warn(p.warning("duplicate_key", "metadata_props has %q twice", kv[0]))
	}
	return append(to, kv), nil
}

// maxPropsCompared bounds the search for double keys, which would be quadratic for hostile files.
const maxPropsCompared = 256

func (p *parser) node(g *Graph, m *message, depth int) error {
	n := &Node{at: m}
	err := p.walk(m, depth, func(f field) (err error) {
		switch f.num {
		case 1, 2:
			var s string
			if s, err = p.text(f); err != nil {
				return err
			}
			if f.num == 1 {
				n.Inputs = append(n.Inputs, s)
			} else {
				n.Outputs = append(n.Outputs, s)
			}
		case 3:
			n.Name, err = p.text(f)
		case 4:
			n.OpType, err = p.text(f)
		case 5:
			if err := p.want(f, protowire.BytesType); err != nil {
				return err
			}
			var a Attr
			if a, err = p.attr(g, len(n.Attrs), m.child(f), depth+1); err == nil {
				n.Attrs = append(n.Attrs, a)
			}
		case 7:
			n.Domain, err = p.text(f)
		case 8:
			n.Overload, err = p.text(f)
		case 9:
			if err := p.want(f, protowire.BytesType); err != nil {
				return err
			}
			n.Props, err = p.prop(n.Props, m.child(f), depth+1)
		}
		return err
	})
	if err != nil {
		return err
	}
	if n.OpType == "" {
		return p.reject("graph_rules", "%s has no op_type", g.next()).Expected("no op_type", "the name of an operator")
	}
	g.Nodes = append(g.Nodes, n)
	return nil
}

// next is the scope of the node that is being read.
func (g *Graph) next() string { return fmt.Sprintf("%snode[%d]", dotted(g.Scope), len(g.Nodes)) }

// attr reads an AttributeProto, number index of the next node of g.
func (p *parser) attr(g *Graph, index int, m *message, depth int) (a Attr, err error) {
	// Names of tensors and subgraphs are made from the attribute's name, which may come last.
	if err := p.walk(m, depth, func(f field) (err error) {
		if f.num == 1 {
			a.Name, err = p.text(f)
		}
		return err
	}); err != nil {
		return a, err
	}
	if a.Name == "" {
		return a, p.reject("graph_rules", "%s has an attribute without a name", g.next())
	}
	// Made only where there is something to name: most attributes are numbers.
	scope := func() string {
		if len(a.Name) > 64 {
			return fmt.Sprintf("%s.attribute[%d]", g.next(), index)
		}
		return g.next() + "." + a.Name
	}
	var one *Graph
	many := 0
	var t, sparse []*message
	err = p.walk(m, depth, func(f field) (err error) {
		switch f.num {
		case 2:
			err = p.want(f, protowire.Fixed32Type)
			a.Float = float32FromBits(f.val)
		case 3:
			a.Int, err = p.number(f)
		case 4:
			if err = p.want(f, protowire.BytesType); err == nil && f.n <= maxAttrText {
				var b []byte
				b, err = p.data(f)
				a.Text = string(b)
			}
		case 5, 6, 10, 11, 22, 23:
			if err = p.want(f, protowire.BytesType); err != nil {
				return err
			}
			c := m.child(f)
			switch f.num {
			case 5:
				t = append(t, c)
			case 22:
				sparse = append(sparse, c)
			case 6:
				if one == nil {
					one = &Graph{Scope: scope()}
					a.Graphs = append(a.Graphs, one)
				}
				err = p.graph(one, c, depth+1)
			case 10:
				err = p.attrTensor(&a, []*message{c}, depth+1, fmt.Sprintf("%s[%d]", scope(), len(a.tensors)))
			case 11:
				sub := &Graph{Scope: fmt.Sprintf("%s[%d]", scope(), len(a.Graphs))}
				a.Graphs = append(a.Graphs, sub)
				err = p.graph(sub, c, depth+1)
			case 23:
				_, err = p.sparse([]*message{c}, depth+1, fmt.Sprintf("%s[%d]", scope(), many), nil)
				many++
			}
		case 8:
			a.Ints, err = p.numbers(f, a.Ints, maxMessage, nil)
		}
		return err
	})
	if err == nil && t != nil {
		err = p.attrTensor(&a, t, depth+1, scope())
	}
	if err == nil && sparse != nil {
		_, err = p.sparse(sparse, depth+1, scope(), nil)
	}
	return a, err
}

func (p *parser) attrTensor(a *Attr, ms []*message, depth int, scope string) error {
	r, err := p.tensor(ms, depth, scope)
	if err != nil {
		return err
	}
	r.kind = Attribute
	a.tensors = append(a.tensors, r)
	return nil
}

// sparse reads a SparseTensorProto and returns the name of its values, which is the tensor's name.
func (p *parser) sparse(ms []*message, depth int, scope string, g *Graph) (string, error) {
	var values, indices []*message
	for _, m := range ms {
		err := p.walk(m, depth, func(f field) error {
			if f.num != 1 && f.num != 2 {
				return nil
			}
			if err := p.want(f, protowire.BytesType); err != nil {
				return err
			}
			if f.num == 1 {
				values = append(values, m.child(f))
			} else {
				indices = append(indices, m.child(f))
			}
			return nil
		})
		if err != nil {
			return "", err
		}
	}
	var name string
	for i, part := range [][]*message{values, indices} {
		if part == nil {
			continue
		}
		r, err := p.tensor(part, depth+1, scope+[]string{".values", ".indices"}[i])
		if err != nil {
			return "", err
		}
		r.kind, r.graph = Sparse, g
		if i == 0 {
			name = r.own
		}
	}
	return name, nil
}
