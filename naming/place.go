// Package naming knows which module is called what in which ecosystem, and how the tensor stored
// there differs from the module's own weight. It reads no files: callers hand it names and shapes.
package naming

import "fmt"

// A Space is a naming world for modules.
type Space string

// The naming worlds of this package.
const (
	HF   Space = "hf"   // Hugging Face module paths: model.layers.0.self_attn.q_proj
	GGUF Space = "gguf" // llama.cpp tensor names without suffix: blk.0.attn_q
	ONNX Space = "onnx" // initializer names
)

// A Place is where a parameter of a module is stored, and how the stored tensor relates to the
// module's own parameter, called canonical below: [out, in] for a linear weight, [vocab, dim] for an
// embedding, [out, in, k…] for a convolution.
type Place struct {
	// Tensor is the stored tensor's name.
	Tensor string
	// Transposed: the tensor stores [in, out].
	Transposed bool
	// ByShape: nothing but the shape tells whether the tensor is transposed (Hugging Face folders do not
	// say which layers are Conv1D), so where only the other orientation fits, it is taken.
	ByShape bool
	// Rows > 0: the canonical rows [0, Rows) occupy [RowOffset, RowOffset+Rows) of the tensor's output axis
	// (a fused projection). 0 means the whole axis.
	RowOffset, Rows int64
	// Heads > 0: the rows are reordered head by head for llama.cpp's rotary embedding: with d = rows/Heads,
	// canonical row h·d + t·d/2 + i is stored at h·d + 2·i + t (t = 0, 1).
	Heads int64
	// Experts > 0: the tensor stacks Experts matrices on its first axis, and this is number Expert.
	Expert, Experts int64
	// Rule says how the place was found, for reports: "name", "node path", "content".
	Rule string

	// Run > 0: the place holds only some of the canonical rows. Run i of Run rows starts at canonical row
	// First + i·Step; the runs follow one another and fill the rows [RowOffset, RowOffset+Rows) of the
	// tensor (a projection that the base regroups, interleaves or splits over several tensors). Rows is
	// set, a multiple of Run.
	First, Run, Step int64
	// Matrices > 0: the parameter itself is a stack of Matrices matrices, and the place holds only its
	// matrix number Matrix (a base that stores each expert on its own).
	Matrix, Matrices int64
	// Uses is how many node inputs of an ONNX graph read the tensor, and Node the index of the node whose
	// operator gave this place its orientation. Uses > 1: changing the tensor may change other modules too
	// (see ONNXResolver.Readers). 0 outside ONNX.
	Uses, Node int
}

// A Reader is an input of a node of an ONNX graph, by indexes.
type Reader struct{ Node, Input int }

// Canonical is the canonical row that row RowOffset+i of the place's tensor (or of its matrix in a
// stack) holds, where the place fills rows rows: the whole output axis, or Rows where that is set.
// The factor B of a low-rank update is carried to the base by gathering its rows in this order.
func (p Place) Canonical(i, rows int64) int64 {
	if p.Heads > 0 {
		d := rows / p.Heads
		h, j := i/d, i%d
		i = h*d + j%2*(d/2) + j/2
	}
	if p.Run > 0 {
		i = p.First + i/p.Run*p.Step + i%p.Run
	}
	return i
}

// RotaryRow is the stored row of canonical row i of rows, for a Place with heads.
func RotaryRow(i, rows, heads int64) int64 {
	d := rows / heads
	h, j := i/d, i%d
	return h*d + 2*(j%(d/2)) + j/(d/2)
}

// A Resolver finds the place of a parameter.
type Resolver interface {
	// Find returns the places of a module's parameter ("weight", "bias", …): one, or several where
	// the base stores the module more than once. The error for an unknown module is a *NotFound.
	Find(module, param string) ([]Place, error)
}

// NotFound says that a base has no tensor for a module's parameter.
type NotFound struct {
	Module, Param string
	Nearest       []string // at most three stored names, nearest first
	Reason        string   // what is known of the cause, "" if nothing
}

func (e *NotFound) Error() string {
	s := fmt.Sprintf("the base has no tensor for %q", join(e.Module, e.Param))
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	for i, n := range e.Nearest {
		if i == 0 {
			s += "; nearest: "
		} else {
			s += ", "
		}
		s += fmt.Sprintf("%q", n)
	}
	return s
}
