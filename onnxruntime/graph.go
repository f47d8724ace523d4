package onnxruntime

import "google.golang.org/protobuf/encoding/protowire"

// The numbers of the ONNX protocol that the check graphs use.
const (
	onnxIR      = 10
	onnxOpset   = 21
	onnxFloat   = 1
	onnxFloat16 = 10
	onnxBFloat  = 16

	attributeInt = 2 // AttributeProto.type
)

// A graph is a small ONNX model under construction: float32 outputs, inputs of any type, no initializers.
type graph struct {
	nodes   [][]byte
	inputs  [][]byte
	outputs [][]byte
}

// An attribute is an integer attribute of a node.
type attribute struct {
	name  string
	value int64
}

// node adds an operator with one output.
func (g *graph) node(op string, in []string, out string, attrs ...attribute) {
	var b []byte
	for _, s := range in {
		b = appendString(b, 1, s)
	}
	b = appendString(b, 2, out)
	b = appendString(b, 3, out)
	b = appendString(b, 4, op)
	for _, a := range attrs {
		var m []byte
		m = appendString(m, 1, a.name)
		m = appendInt(m, 3, a.value)
		m = appendInt(m, 20, attributeInt)
		b = appendMessage(b, 5, m)
	}
	g.nodes = append(g.nodes, b)
}

// input adds a matrix input whose dimensions are named, so that one model serves every size.
func (g *graph) input(name string, elem int64, dims ...string) {
	g.inputs = append(g.inputs, valueInfo(name, elem, dims))
}

// output adds a float32 matrix output.
func (g *graph) output(name string, dims ...string) {
	g.outputs = append(g.outputs, valueInfo(name, onnxFloat, dims))
}

// valueInfo encodes a ValueInfoProto of a tensor type.
func valueInfo(name string, elem int64, dims []string) []byte {
	var shape []byte
	for _, d := range dims {
		shape = appendMessage(shape, 1, appendString(nil, 2, d))
	}
	tensorType := appendMessage(appendInt(nil, 1, elem), 2, shape)
	return appendMessage(appendString(nil, 1, name), 2, appendMessage(nil, 1, tensorType))
}

// model encodes the ModelProto.
func (g *graph) model() []byte {
	var b []byte
	for _, n := range g.nodes {
		b = appendMessage(b, 1, n)
	}
	b = appendString(b, 2, "check")
	for _, v := range g.inputs {
		b = appendMessage(b, 11, v)
	}
	for _, v := range g.outputs {
		b = appendMessage(b, 12, v)
	}
	m := appendInt(nil, 1, onnxIR)
	m = appendMessage(m, 7, b)
	return appendMessage(m, 8, appendInt(nil, 2, onnxOpset))
}

func appendMessage(b []byte, field protowire.Number, m []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), m)
}

func appendString(b []byte, field protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), s)
}

func appendInt(b []byte, field protowire.Number, v int64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), uint64(v))
}
