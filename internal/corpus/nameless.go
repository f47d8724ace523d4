package corpus

import "google.golang.org/protobuf/encoding/protowire"

// Nameless is an ONNX model without the names of its nodes and without notes on nodes and values: what tells whose
// the weights are, where initializers have numbers for names.
func Nameless(t interface{ Fatal(...any) }, model []byte) []byte {
	return without(t, model, map[protowire.Number]int{7: graph})
}

// What is left out of a message: the whole of a graph's value_info, names and notes of nodes.
const (
	graph = iota
	node
)

func without(t interface{ Fatal(...any) }, b []byte, inside map[protowire.Number]int) (w []byte) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		m := protowire.ConsumeFieldValue(num, typ, b[max(n, 0):])
		if n < 0 || m < 0 {
			t.Fatal("bad protobuf")
		}
		field, value := b[:n+m], b[n:n+m]
		b = b[n+m:]
		kind, open := inside[num]
		if !open {
			w = append(w, field...)
			continue
		}
		body, _ := protowire.ConsumeBytes(value)
		switch kind {
		case graph:
			body = without(t, body, map[protowire.Number]int{1: node, 13: -1})
		case node:
			body = drop(body, 3, 9)
		default:
			continue
		}
		w = protowire.AppendBytes(protowire.AppendTag(w, num, protowire.BytesType), body)
	}
	return w
}

// drop is a message without some fields.
func drop(b []byte, nums ...protowire.Number) (w []byte) {
	for len(b) > 0 {
		num, _, n := protowire.ConsumeField(b)
		if n < 0 {
			return w
		}
		if num != nums[0] && num != nums[1] {
			w = append(w, b[:n]...)
		}
		b = b[n:]
	}
	return w
}
