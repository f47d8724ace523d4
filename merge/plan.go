// Package merge bakes adapters into a base model.
//
// A Plan says, without having read a weight, what every tensor of the output is: its source, its
// updates, its type. Run carries a plan out slab by slab:
//
//	read rows → decode to float32 → apply updates → encode to the target type → write at a known offset
//
// Rows are independent, so the bytes do not depend on the number of workers or the size of a slab.
package merge

import (
	"encoding/json"
	"slices"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/quant/scheme"
	"github.com/loratool/loratool/tensor"
)

// A Base is the model that adapters are baked into.
type Base interface {
	Path() string
	Format() string
	Tensors() []tensor.Tensor
}

// An Input is an adapter and the user's factor for it: 1 adds it, -1 subtracts it.
type Input struct {
	Adapter *adapter.Adapter
	Scale   float64
}

// Options are the choices a plan depends on.
type Options struct {
	// Resolve finds the places of an adapter's modules in the base.
	Resolve func(*adapter.Adapter) (naming.Resolver, error)
	// DType converts every float tensor, and every quantized tensor that is updated, to this type.
	// Invalid keeps each tensor's own type. GGUF vectors stay as they are, since llama.cpp needs them
	// in float32, and so does what staysWide names where the type has 8 bits.
	DType tensor.DType
	// TypeOf, where set, is the type of every tensor that no recipe chooses; it overrides DType, and the base's
	// metadata fits it.
	TypeOf func(tensor.Spec) tensor.DType
	// Quantize, where set, chooses types and order; it overrides DType.
	Quantize *Quantization
	// Requant says how an updated tensor that keeps its block type is rounded.
	Requant Requant
	// RefuseRequant makes an update of a quantized tensor that keeps its type an error.
	RefuseRequant bool
	// Calibration, where set, weighs what is measured of its modules.
	Calibration Calibration
	// AllowUnmatched turns updates without a tensor in the base from errors into warnings.
	AllowUnmatched bool
	// Compat reproduces the roundings of a peer.
	Compat Compat
	// Tied says what happens when an adapter changes one side of tied embeddings.
	Tied TiedPolicy
	// CheckOnly makes a plan that is compared with and never run: types that cannot be written are fine.
	CheckOnly bool
}

// A Compat names a peer whose intermediate roundings are reproduced.
type Compat string

// The peers. The default, "", keeps float32 until the one rounding at the end; it equals PEFT's merge of
// linear layers bit for bit.
const (
	CompatNone           Compat = ""
	CompatPEFT           Compat = "peft"            // embeddings: s·B·A is rounded to the base's type before it is added
	CompatPEFTSafe       Compat = "peft-safe"       // safe_merge=True: so is every layer's
	CompatPEFTNoAutocast Compat = "peft-noautocast" // autocast_adapter_dtype=False: factors and s·B·A are
)

// A Plan is the whole output in order. It marshals to the JSON that a dry run prints.
type Plan struct {
	Tensors  []Output          `json:"tensors"`
	Pairs    []Pair            `json:"pairs"`
	Findings []finding.Finding `json:"findings"`

	clones []Clone // the last tensors of the plan are theirs
	typed  bool    // types are Options.TypeOf's
	untied bool    // the output stores embeddings apart that the base ties

	quantization *Quantization // nil without one
}

// Has reports whether the output has a tensor of a name.
func (p *Plan) Has(name string) bool {
	return slices.ContainsFunc(p.Tensors, func(o Output) bool { return o.Name == name })
}

// An Output is one tensor of the output.
type Output struct {
	Name       string       `json:"name"`
	SourceType typeName     `json:"source_type"`
	Type       typeName     `json:"type"`
	Shape      tensor.Shape `json:"shape"`
	Updates    []Applied    `json:"updates"`
	Requant    Requant      `json:"requant,omitempty"` // of an updated tensor that keeps its block type: match or rtn
	// Scheme says how source and output are packed, "" where each is one tensor; the types are then that of
	// the packed data.
	Scheme string `json:"scheme,omitempty"`

	weight *scheme.Weight // nil where it is one tensor
	source tensor.Tensor
	frame  adapter.Frame
	ops    []adapter.Op
	bound  []adapter.Update // of each op

	calibration Calibration
	places      []naming.Place

	importance []float32 // of the columns of each matrix, one after the other; nil for none
	finite     bool      // values that are not finite are refused
}

type typeName tensor.DType

func (t typeName) MarshalJSON() ([]byte, error) { return json.Marshal(tensor.DType(t).String()) }

// Spec is what the output's layout needs to know of the tensor, where it is one.
func (o *Output) Spec() tensor.Spec {
	return tensor.Spec{Name: o.Name, DType: tensor.DType(o.Type), Shape: o.Shape}
}

// Ops are the updates bound to the tensor, and the frame they work in.
func (o *Output) Ops() ([]adapter.Op, adapter.Frame) { return o.ops, o.frame }

// Places are where the updates land, parallel to Updates.
func (o *Output) Places() []naming.Place { return o.places }

// Source is the tensor the output is made from: the base's, decoded where that is packed, or the adapter's where
// it replaces the base's.
func (o *Output) Source() tensor.Tensor { return o.source }

// copies reports whether the tensor's bytes are the source's.
func (o *Output) copies() bool {
	return len(o.ops) == 0 && o.SourceType == o.Type && !(o.replaced() && tensor.DType(o.Type) != o.source.DType)
}

// replaced reports whether the tensor is made from the adapter's instead of the base's.
func (o *Output) replaced() bool { return len(o.ops) == 0 && len(o.Updates) > 0 }

// An Applied is an update as a plan shows it.
type Applied struct {
	Adapter string         `json:"adapter"`
	Module  string         `json:"module"`
	Kind    adapter.Kind   `json:"kind"`
	Rank    int            `json:"rank,omitempty"`
	Scale   *adapter.Scale `json:"scale,omitempty"`
	Place   string         `json:"place,omitempty"` // how and where it lies in the tensor, when that is not plain
}

// A Pair is what became of one update of an adapter.
type Pair struct {
	Adapter string   `json:"adapter"`
	Module  string   `json:"module"`
	Param   string   `json:"param"`
	State   string   `json:"state"` // applied, replaced, refused
	Tensors []string `json:"tensors"`
	Reason  string   `json:"reason,omitempty"`
}

// Quantized reports whether the base stores the tensor in a block type, or packed.
func (o *Output) Quantized() bool {
	return o.weight != nil && o.weight.Stored() || tensor.DType(o.SourceType).IsBlock()
}
