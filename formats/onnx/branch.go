package onnx

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// A Branch adds (X·A)·B to the first output of a node of the main graph. A and B become inputs of the graph
// with zeros as defaults, so that they may be given for a run or left out.
type Branch struct {
	// A and B name the inputs. Several branches may have the same, if all else but Node and X is the same.
	A, B string
	// Node is the index of the node, and X the value that is multiplied, [..., In].
	Node    int
	X       string
	In, Out int64
	DType   tensor.DType // of X, A, B and the output: F32, F16 or BF16
	// Rank is that of the defaults: 0, or 1 for runtimes that do not bear tensors without elements. The
	// inputs take any rank.
	Rank int64
}

// branches are the patches that add branches.
func (m *Model) branches(all []Branch) ([]patch, error) {
	if len(all) == 0 {
		return nil, nil
	}
	if m.header.IRVersion < 4 {
		return nil, finding.Errorf("output.unsupported", m.path, "a graph of this version has no inputs with defaults").
			Expected(fmt.Sprintf("ir_version %d", m.header.IRVersion), "4 or later")
	}
	g := m.graph
	names := g.names()
	for _, n := range g.Nodes {
		names[n.Name] = true
	}
	fresh := func(name string) string {
		for i, s := 1, name; ; i++ {
			if !names[s] {
				names[s] = true
				return s
			}
			s = fmt.Sprintf("%s_%d", name, i)
		}
	}
	var w []patch
	declared, busy := map[string]Branch{}, map[int]bool{}
	for _, b := range all {
		if b.Node < 0 || b.Node >= len(g.Nodes) || busy[b.Node] || len(g.Nodes[b.Node].Outputs) == 0 || g.Nodes[b.Node].Outputs[0] == "" {
			return nil, fmt.Errorf("branch %q: node %d is none, has no output or has a branch", b.A, b.Node)
		}
		busy[b.Node] = true
		n := g.Nodes[b.Node]
		if known, ok := declared[b.A]; !ok {
			if b.A == "" || b.B == "" || b.A == b.B || !utf8.ValidString(b.A) || !utf8.ValidString(b.B) || names[b.A] || names[b.B] {
				return nil, finding.Errorf("output.duplicate_name", m.path, "the graph has a value of this name already").In(b.A).Hinted("the model has LoRA branches already")
			}
			names[b.A], names[b.B] = true, true
			declared[b.A] = b
			w = append(w, b.declare(n.at.up)...)
		} else if known.B != b.B || known.In != b.In || known.Out != b.Out || known.DType != b.DType || known.Rank != b.Rank {
			return nil, fmt.Errorf("branch %q: two branches with this input differ", b.A)
		}
		y := n.Outputs[0]
		base := fresh(y + "/base")
		p, err := m.renamed(n.at, 2, 0, base)
		if err != nil {
			return nil, err
		}
		stem := strings.TrimSuffix(b.A, ".weight")
		down, up, sum := fresh(stem+".MatMul"), fresh(strings.TrimSuffix(b.B, ".weight")+".MatMul"), fresh(stem+".Add")
		xa, xab := fresh(down+"/output"), fresh(up+"/output")
		var nodes []chunk
		for _, add := range []encoded{
			encodeNode("MatMul", down, xa, b.X, b.A), encodeNode("MatMul", up, xab, xa, b.B), encodeNode("Add", sum, y, base, xab),
		} {
			nodes = append(nodes, add.chunks...)
		}
		w = append(w, p, patch{in: n.at.up, at: n.at.end(), with: nodes})
	}
	return w, nil
}

func encodeNode(op, name, output string, inputs ...string) encoded {
	var content []chunk
	for _, in := range inputs {
		content = append(content, stringField(1, in).chunks...)
	}
	for _, f := range []encoded{stringField(2, output), stringField(3, name), stringField(4, op)} {
		content = append(content, f.chunks...)
	}
	return bytesField(1, content...)
}

// declare adds the branch's inputs and their defaults at the end of the graph.
func (b *Branch) declare(graph *message) []patch {
	free := stringField(2, strings.TrimSuffix(b.A, ".weight")+".rank") // the same in A and B
	size := func(n int64) encoded { return varintField(1, n) }
	var inputs, defaults []chunk
	for _, p := range []struct {
		name string
		dims [2]encoded
		rows int64
		cols int64
	}{{b.A, [2]encoded{size(b.In), free}, b.In, b.Rank}, {b.B, [2]encoded{free, size(b.Out)}, b.Rank, b.Out}} {
		var shape []chunk
		for _, d := range p.dims {
			shape = append(shape, bytesField(1, d.chunks...).chunks...)
		}
		tensorType := append(varintField(1, DataType(b.DType)).chunks, bytesField(2, shape...).chunks...)
		value := append(stringField(1, p.name).chunks, bytesField(2, bytesField(1, tensorType...).chunks...).chunks...)
		inputs = append(inputs, bytesField(11, value...).chunks...)
		var zeros []chunk
		for _, f := range []encoded{varintField(1, p.rows), varintField(1, p.cols), varintField(2, DataType(b.DType))} {
			zeros = append(zeros, f.chunks...)
		}
		zeros = append(zeros, stringField(8, p.name).chunks...)
		if n := p.rows * p.cols * int64(b.DType.BlockBytes()); n > 0 {
			zeros = append(zeros, bytesField(fieldRaw, literal(make([]byte, n))).chunks...)
		}
		defaults = append(defaults, bytesField(5, zeros...).chunks...)
	}
	return []patch{{in: graph, at: graph.end(), with: append(defaults, inputs...)}}
}
