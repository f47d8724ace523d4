package onnx

import "github.com/loratool/loratool/finding"

// check applies the rules that concern the model as a whole.
func (p *parser) check() error {
	h := &p.header
	switch {
	case h.IRVersion < 1 || h.IRVersion >= absurd:
		return p.reject("model_rules", "ir_version is missing or impossible").Expected(h.IRVersion, "1 to 14")
	case h.IRVersion > newestIR:
		p.warn(p.warning("model_rules", "ir_version is newer than this program").Expected(h.IRVersion, "at most 14"))
	}
	if len(h.Opsets) == 0 {
		return p.reject("model_rules", "a model without opset_import")
	}
	for _, o := range h.Opsets {
		switch {
		case o.Version < 1 || o.Domain == "" && o.Version >= absurd:
			return p.reject("model_rules", "an impossible opset version of domain %q", o.Domain).Expected(o.Version, "1 to 28")
		case o.Domain == "" && o.Version > newestOpset:
			p.warn(p.warning("model_rules", "the opset is newer than this program").Expected(o.Version, "at most 28"))
		}
	}
	for _, g := range p.graphs {
		if g.Name == "" {
			p.warn(p.warning("graph_rules", "%s has no name", g.where()))
		}
		outer := map[string]bool{}
		if g != p.graphs[0] {
			outer = p.graphs[0].names() // training graphs see the main graph's values
		}
		free, err := p.checkGraph(g, []map[string]bool{outer})
		if err != nil {
			return err
		}
		for _, name := range free {
			switch {
			case outer[name]:
			case len(g.Outputs) > 0:
				return p.undefined(g, name)
			default: // nothing can be computed with it, but its weights may be sound
				p.warn(p.warning("graph_rules", "%s has no outputs and uses the value %q, which nothing produces", g.where(), name))
			}
		}
	}
	if main := p.graphs[0]; h.IRVersion < 4 {
		inputs := make(map[string]bool, len(main.Inputs))
		for _, v := range main.Inputs {
			inputs[v.Name] = true
		}
		for _, r := range main.initializers {
			if !inputs[r.own] {
				p.warn(p.warning("graph_rules", "an initializer that is no graph input, which ir_version %d wants", h.IRVersion).In(r.own))
			}
		}
	}
	if err := p.checkFunctions(); err != nil {
		return err
	}
	p.checkOverlap()
	return nil
}

func (p *parser) undefined(g *Graph, name string) *finding.Finding {
	return p.reject("graph_rules", "%s uses the value %q, which nothing produces", g.where(), name).Expected(name, "an input, an initializer or the output of a node")
}

// names are all values of a graph, without those of its subgraphs.
func (g *Graph) names() map[string]bool {
	w := map[string]bool{}
	for _, v := range g.Inputs {
		w[v.Name] = true
	}
	for _, r := range g.initializers {
		w[r.own] = true
	}
	for _, s := range g.sparse {
		w[s] = true
	}
	for _, n := range g.Nodes {
		for _, s := range n.Outputs {
			if s != "" {
				w[s] = true
			}
		}
	}
	return w
}

// checkGraph checks that every value has one producer and that nodes do not wait for each other, and
// returns the names the graph takes from outside. Outer are the names of the graphs around it.
func (p *parser) checkGraph(g *Graph, outer []map[string]bool) (free []string, err error) {
	producer, err := p.producers(g)
	if err != nil {
		return nil, err
	}
	own := g.names()
	if g.shadows(own, outer) {
		p.warn(p.warning("graph_rules", "%s gives a name again that a graph around it has", g.where()))
	}
	chain := append(outer[:len(outer):len(outer)], own)
	taken := map[string]bool{}
	needs := make([][]int, len(g.Nodes)) // the nodes a node waits for
	sorted := true
	need := func(i int, name string) {
		if name == "" {
			return
		}
		j, ok := producer[name]
		switch {
		case ok && j >= 0:
			needs[i] = append(needs[i], j)
			sorted = sorted && j < i
		case !ok && !taken[name]:
			taken[name] = true
			free = append(free, name)
		}
	}
	for i, n := range g.Nodes {
		for _, name := range n.Inputs {
			need(i, name)
		}
		for _, a := range n.Attrs {
			for _, sub := range a.Graphs {
				if sub.Name == "" {
					p.warn(p.warning("graph_rules", "%s has no name", sub.where()))
				}
				inner, err := p.checkGraph(sub, chain)
				if err != nil {
					return nil, err
				}
				for _, name := range inner {
					need(i, name)
				}
			}
		}
	}
	for _, v := range g.Outputs {
		if _, ok := producer[v.Name]; !ok && !taken[v.Name] {
			taken[v.Name] = true
			free = append(free, v.Name)
		}
	}
	if !sorted {
		if i := cycle(needs); i >= 0 {
			return nil, p.reject("graph_rules", "node %d (%s) of %s waits for its own output", i, g.Nodes[i].OpType, g.where())
		}
		p.warn(p.warning("graph_rules", "the nodes of %s are not in topological order", g.where()))
	}
	return free, nil
}

// shadows reports whether a name of a subgraph is also one of the graphs around it.
func (g *Graph) shadows(own map[string]bool, outer []map[string]bool) bool {
	for name := range own {
		for _, o := range outer {
			if o[name] {
				return true
			}
		}
	}
	return false
}

// producers maps each value to the node that produces it, -1 for inputs and initializers.
func (p *parser) producers(g *Graph) (map[string]int, error) {
	producer := map[string]int{}
	for _, v := range g.Inputs {
		if _, twice := producer[v.Name]; twice {
			return nil, p.reject("graph_rules", "two inputs of %s are named %q", g.where(), v.Name)
		}
		producer[v.Name] = -1
	}
	stored := map[string]bool{}
	for _, r := range g.initializers {
		if stored[r.own] {
			return nil, p.reject("duplicate_name", "two initializers of %s have the same name", g.where()).In(r.own)
		}
		stored[r.own] = true
		producer[r.own] = -1
	}
	for _, name := range g.sparse {
		if stored[name] {
			return nil, p.reject("duplicate_name", "two initializers of %s have the same name", g.where()).In(name)
		}
		stored[name] = true
		producer[name] = -1
	}
	for i, n := range g.Nodes {
		for _, name := range n.Outputs {
			if name == "" {
				continue
			}
			if _, twice := producer[name]; twice {
				return nil, p.reject("graph_rules", "the value %q of %s is produced twice", name, g.where())
			}
			producer[name] = i
		}
	}
	return producer, nil
}

// cycle returns a node that waits for itself, directly or not, or -1.
func cycle(needs [][]int) int {
	waits := make([]int, len(needs))
	feeds := make([][]int, len(needs))
	for i, js := range needs {
		waits[i] = len(js)
		for _, j := range js {
			feeds[j] = append(feeds[j], i)
		}
	}
	var ready []int
	for i, n := range waits {
		if n == 0 {
			ready = append(ready, i)
		}
	}
	done := 0
	for ; len(ready) > 0; done++ {
		j := ready[len(ready)-1]
		ready = ready[:len(ready)-1]
		for _, i := range feeds[j] {
			if waits[i]--; waits[i] == 0 {
				ready = append(ready, i)
			}
		}
	}
	if done == len(needs) {
		return -1
	}
	for i, n := range waits {
		if n > 0 {
			return i
		}
	}
	return -1
}

// checkFunctions checks the bodies of the model's functions, and that none calls itself: a runtime
// that replaces calls by bodies would not come to an end.
func (p *parser) checkFunctions() error {
	fns := p.header.Functions
	byName := make(map[[3]string]int, len(fns))
	for i, f := range fns {
		k := [3]string{f.Domain, f.Name, f.Overload}
		if _, twice := byName[k]; twice {
			return p.reject("duplicate_name", "two functions are named %q in domain %q", f.Name, f.Domain)
		}
		byName[k] = i
	}
	calls := make([][]int, len(fns))
	for i, f := range fns {
		free, err := p.checkGraph(f.Body, nil)
		if err != nil {
			return err
		}
		if len(free) > 0 {
			return p.undefined(f.Body, free[0])
		}
		f.Body.eachNode(func(n *Node) {
			if j, ok := byName[[3]string{n.Domain, n.OpType, n.Overload}]; ok {
				calls[i] = append(calls[i], j)
			}
		})
	}
	if i := cycle(calls); i >= 0 {
		return p.reject("graph_rules", "the function %q calls itself", fns[i].Name)
	}
	return nil
}

// eachNode visits the nodes of a graph and of its subgraphs.
func (g *Graph) eachNode(visit func(*Node)) {
	for _, n := range g.Nodes {
		visit(n)
		for _, a := range n.Attrs {
			for _, sub := range a.Graphs {
				sub.eachNode(visit)
			}
		}
	}
}
