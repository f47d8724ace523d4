package onnx

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// model reads the ModelProto.
func (p *parser) model(root *message) error {
	if p.size == 0 {
		return p.reject("empty", "the file is empty")
	}
	if head, err := p.peek(0, 24); err != nil {
		return err
	} else if strings.HasPrefix(string(head), "version https://git-lfs") {
		return p.reject("lfs_pointer", "a git-lfs pointer, not the model").Hinted("fetch the file with git lfs pull")
	}
	h := &p.header
	main := &Graph{}
	err := p.walk(root, 0, func(f field) (err error) {
		switch f.num {
		case 7, 8, 14, 20, 25:
			if err := p.want(f, protowire.BytesType); err != nil {
				return err
			}
		}
		switch f.num {
		case 1:
			h.IRVersion, err = p.number(f)
		case 2:
			h.Producer, err = p.text(f)
		case 3:
			h.ProducerVersion, err = p.text(f)
		case 4:
			h.Domain, err = p.text(f)
		case 5:
			h.ModelVersion, err = p.number(f)
		case 7:
			p.graphs = []*Graph{main}
			err = p.graph(main, root.child(f), 1)
		case 8:
			var o Opset
			if o, err = p.opset(root.child(f), 1); err == nil {
				h.Opsets = append(h.Opsets, o)
			}
		case 14:
			h.metadataAt = append(h.metadataAt, root.child(f))
			h.Metadata, err = p.prop(h.Metadata, root.child(f), 1)
		case 25:
			err = p.function(root.child(f), 1)
		}
		return err
	})
	if err != nil {
		return err
	}
	if p.graphs == nil {
		return p.reject("model_rules", "a model without a graph").Hinted("this may be no ONNX file")
	}
	return p.training(root)
}

// training reads the graphs of training_info, after the main graph, because they can hold weights too.
func (p *parser) training(root *message) error {
	k := 0
	return p.walk(root, 0, func(f field) error {
		if f.num != 20 {
			return nil
		}
		m := root.child(f)
		scope := fmt.Sprintf("training_info[%d]", k)
		k++
		return p.walk(m, 1, func(f field) error {
			part := map[protowire.Number]string{1: "initialization", 2: "algorithm"}[f.num]
			if part == "" {
				return nil
			}
			if err := p.want(f, protowire.BytesType); err != nil {
				return err
			}
			g := &Graph{Scope: scope + "." + part}
			p.graphs = append(p.graphs, g)
			return p.graph(g, m.child(f), 2)
		})
	})
}

func (p *parser) opset(m *message, depth int) (o Opset, err error) {
	err = p.walk(m, depth, func(f field) (err error) {
		switch f.num {
		case 1:
			o.Domain, err = p.text(f)
		case 2:
			o.Version, err = p.number(f)
		}
		return err
	})
	if o.Domain == "ai.onnx" {
		o.Domain = ""
	}
	return o, err
}

// function reads a FunctionProto, whose body is like a graph with inputs that have no types.
func (p *parser) function(m *message, depth int) error {
	g := &Graph{Scope: fmt.Sprintf("functions[%d]", len(p.header.Functions))}
	fn := Function{Body: g}
	err := p.walk(m, depth, func(f field) (err error) {
		switch f.num {
		case 1:
			fn.Name, err = p.text(f)
		case 4, 5:
			var v Value
			if v.Name, err = p.text(f); err != nil {
				return err
			}
			if f.num == 4 {
				g.Inputs = append(g.Inputs, v)
			} else {
				g.Outputs = append(g.Outputs, v)
			}
		case 10:
			fn.Domain, err = p.text(f)
		case 13:
			fn.Overload, err = p.text(f)
		case 7, 11, 12, 14:
			if err = p.want(f, protowire.BytesType); err != nil {
				return err
			}
			switch f.num {
			case 7:
				err = p.node(g, m.child(f), depth+1)
			case 11: // defaults of the function's attributes
				_, err = p.attr(g, 0, m.child(f), depth+1)
			case 12:
				g.Values, err = p.value(g.Values, m.child(f), depth+1, false)
			case 14:
				g.Props, err = p.prop(g.Props, m.child(f), depth+1)
			}
		}
		return err
	})
	g.Name = fn.Name
	p.header.Functions = append(p.header.Functions, fn)
	return err
}
