// Package adapter is the canonical form of an adapter: what it changes, by how much, and where each
// number came from, whatever ecosystem the file belongs to.
//
// An Adapter is a list of Updates. An Update names a module and a parameter and says how that
// parameter changes, in the module's own orientation; Bind turns it into an Op on the matrix a base
// really stores. Dialects live in the sub-packages.
package adapter

import (
	"fmt"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// An Adapter is what a dialect's decoder returns.
type Adapter struct {
	Path      string            // the folder or file it was read from
	Dialect   string            // "peft", "gguf", …
	Space     naming.Space      // what module names mean
	BaseModel string            // the base's name as the adapter states it, "" if it does not
	Arch      string            // the base's architecture where the dialect states it (GGUF), else ""
	Updates   []Update          // in file order
	Metadata  [][2]string       // what the dialect says beside the updates, in order
	Stated    Scale             // what a configuration says of all modules, patterns aside; zero where there is none
	Findings  []finding.Finding // odd but usable things found while decoding
	// NoMerge, where not nil, says why the adapter can be inspected and converted but never merged.
	NoMerge *finding.Finding
	// Doubt, where not nil, is an error: what the adapter says twice and differently, so that its readers disagree
	// about its effect. Checks and merges go by the dialect's own library, with a warning of the same code; no
	// other adapter is made from it.
	Doubt  *finding.Finding
	closer func() error
}

// InvocationTokens is the Metadata key of an activated LoRA's invocation tokens: decimal token ids,
// separated by commas.
const InvocationTokens = "alora_invocation_tokens"

// GeneralPrefix begins the Metadata keys that GGUF files have for what an adapter is: general.name,
// general.license, general.base_model.0.repo_url.
const GeneralPrefix = "general."

// General is the part of the metadata under those keys.
func (a *Adapter) General() [][2]string {
	var out [][2]string
	for _, m := range a.Metadata {
		if strings.HasPrefix(m[0], GeneralPrefix) {
			out = append(out, m)
		}
	}
	return out
}

// OnClose registers f to run when the adapter is closed.
func (a *Adapter) OnClose(f func() error) { a.closer = f }

// Close releases the files that the adapter's factors are read from.
func (a *Adapter) Close() error {
	if a.closer == nil {
		return nil
	}
	f := a.closer
	a.closer = nil
	return f()
}

// A Target is a parameter of a module. Module is the path in the adapter's Space; Param is the name of
// the parameter below it: "weight", "bias", "in_proj_weight", or a raw parameter's own name.
type Target struct{ Module, Param string }

func (t Target) String() string { return t.Module + "." + t.Param }

// A Scale is the factor of a low-rank product and where it came from.
type Scale struct {
	Value  float64 `json:"value"`
	Alpha  float64 `json:"alpha"`
	Rank   int     `json:"rank"`
	Source string  `json:"source"` // for example "lora_alpha 16 / r 8", "alpha_pattern \"q_proj\": 4 / sqrt(r 16)"

	times bool    // whether Value holds a factor of the user's
	user  float64 // that factor
}

// Times returns the scale multiplied by the user's factor, which the source then names.
func (s Scale) Times(user float64) Scale {
	if user != 1 {
		s.user = s.strength() * user
		s.times = true
		s.Value *= user
		s.Source += fmt.Sprintf(" × %g", user)
	}
	return s
}

// strength is the user's factor in Value.
func (s Scale) strength() float64 {
	if s.times {
		return s.user
	}
	return 1
}

// A Kind is a member of the closed family of updates.
type Kind string

// The kinds of updates.
const (
	LowRank Kind = "low-rank" // W += s·B·A
	DoRA    Kind = "dora"     // W = (m/‖V‖)·V with V = W + s·B·A, norms over all axes but the output (or the input) axis
	Replace Kind = "replace"  // W = Value
	Rows    Kind = "rows"     // W[Index[i]] = Value[i]
	Bias    Kind = "bias"     // b += s·Value, for biases and norms
	Full    Kind = "full"     // W += s·Value
	LoHa    Kind = "loha"     // W += s·(B·A)∘(B2·A2)
	LoKr    Kind = "lokr"     // W += s·(Kron[0] ⊗ Kron[1])
	HiRA    Kind = "hira"     // W += s·W∘(B·A)
	GLoRA   Kind = "glora"    // W += s·(B·A + W·B2·A2)
	VeRA    Kind = "vera"     // W += s·B·A', A' the first columns of A, as many as W has inputs
	IA3     Kind = "ia3"      // W += s·W∘(Value − 1), one value an output or input; for biases too
	OFT     Kind = "oft"      // W += s·(W turned by blocks of rotations − W); BOFT is one of several stages
	HRA     Kind = "hra"      // W += s·(W·Π(I − 2·ûᵢ·ûᵢᵀ) − W)
)

// A Layer says how B·A relates to the canonical weight.
type Layer string

// The layers that low-rank updates know.
const (
	Linear    Layer = "linear"    // weight [out, in]: B·A, A is [r, in], B is [out, r]
	Embedding Layer = "embedding" // weight [vocab, dim]: (B·A)ᵀ, A is [r, vocab], B is [dim, r]
	Conv      Layer = "conv"      // weight [out, in, k…]: B [out, r] times A [r, in·k…]
)

// An Update changes one parameter. Which fields are set depends on Kind.
type Update struct {
	Target
	Kind  Kind
	Layer Layer

	A, B   Factor  // LowRank, DoRA, LoHa, VeRA, HiRA, GLoRA: [r, in] and [out, r] (see Layer)
	A2, B2 Factor  // LoHa: the same again; GLoRA: [r, in] and [in, r]
	Kron   [2]Side // LoKr
	Rank   int
	Scale  Scale
	// Magnitude is [1, n], n = out (Linear, Conv) or dim (Embedding), of DoRA; with Input n = in. LoHa,
	// LoKr and Full with a magnitude are DoRA over that difference. OFT: factors of the turned rows.
	Magnitude Factor
	// Input: the magnitudes (DoRA, OFT's excepted), values (IA3) or rotations (OFT, HRA) belong to the
	// input axis, else to the output axis.
	Input bool
	Turn  *Turn // OFT

	// Value is the canonical weight as [rows, cols] (Replace) or what is added to it (Full), [len(Index), cols]
	// (Rows), [1, n] (Bias, IA3), blocks of rotations one below the other (OFT: [n, block], or [block, block] that
	// all blocks share), or vectors as columns [n, r] (HRA).
	Value Factor
	Index []int64 // Rows

	// Kernel is a convolution's kernel sizes, where they are known and A's or Value's stored shape does not
	// tell them (see KernelShape).
	Kernel tensor.Shape
	// Optional: a base without the parameter needs no change.
	Optional bool

	// Expert >= 0 and Experts > 0: the update belongs to one matrix of a stack that the adapter itself
	// treats as one parameter [Experts, …].
	Expert, Experts int
	// Swapped: the stored matrix of that expert is [in, out].
	Swapped bool
	// Unsure, where not empty, says why Swapped may be wrong where the matrix is square; the shapes of any
	// other matrix tell.
	Unsure string
	// FanInFanOut: the adapter says that the base stores [in, out]. A hint for square matrices only: in a
	// model that mixes both kinds PEFT saves the flag of whichever layer came last.
	FanInFanOut bool

	Tensors []string // the adapter's tensors this update was made of
}
