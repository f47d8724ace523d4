package onnxruntime

import "google.golang.org/protobuf/encoding/protowire"

// A Readable is an output in a type that runs can return.
type Readable struct {
	Output string // of the graph
	Name   string // under which it can be read
	Float  bool   // read as float32, else as int64
}

// Extend is what to append to the bytes of a model so that outputs can be read whatever their type, and so that a
// graph without inputs has one: dummy, a float32 of shape [1] that nothing reads; "" adds none. Protobuf merges a
// message that is given in two pieces, so the bytes of the model itself stay as they are.
func Extend(outputs []Readable, dummy string) []byte {
	var g []byte
	for _, o := range outputs {
		to, elem := int64(onnxFloat), int64(onnxFloat)
		if !o.Float {
			to, elem = elements64, elements64
		}
		var n graph
		n.node("Cast", []string{o.Output}, o.Name, attribute{"to", to})
		g = appendMessage(g, 1, n.nodes[0])
		g = appendMessage(g, 12, appendMessage(appendString(nil, 1, o.Name), 2, appendMessage(nil, 1, appendInt(nil, 1, elem))))
	}
	if dummy != "" {
		dim := appendMessage(nil, 1, appendInt(nil, 1, 1))
		tensorType := appendMessage(appendInt(nil, 1, onnxFloat), 2, dim)
		g = appendMessage(g, 11, appendMessage(appendString(nil, 1, dummy), 2, appendMessage(nil, 1, tensorType)))
	}
	if len(g) == 0 {
		return nil
	}
	return protowire.AppendBytes(protowire.AppendTag(nil, 7, protowire.BytesType), g)
}

// elements64 is the ONNX number of int64.
const elements64 = 7
