package recipe

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// A Model is what the rules look at. Layers of 0 are counted in the names of the tensors.
type Model struct {
	Path    string // for findings
	Arch    string // general.architecture
	Layers  int    // block_count
	Heads   int    // attention heads of the first layer
	KVHeads int    // key-value heads of the first layer, 0 without any
	Experts int    // expert_count, 0 without any
	Tensors []tensor.Spec
}

// Options are the user's choices beside the recipe. The zero value chooses what the reference does.
type Options struct {
	Pure               bool         // the base type for all, no mixture
	TensorTypes        []Override   // the first that matches a name counts
	OutputTensorType   tensor.DType // of output.weight; Invalid leaves it to the recipe
	TokenEmbeddingType tensor.DType // of the token embeddings; Invalid leaves it to the recipe
	LeaveOutputTensor  bool         // output.weight keeps its type
	KeepOrder          bool         // tensors stay in the model's order, as in a split model that stays split
	HasImatrix         bool         // there is an importance matrix, which changes some rules
}

// An Override gives tensors whose name matches a pattern a type.
type Override struct {
	Pattern *regexp.Regexp
	Type    tensor.DType
}

// ParseOverride reads REGEX=TYPE. The pattern is lower-cased and found anywhere in a name, as in the
// reference; its dialect is Go's, which has no look-around and no back references. Errors are findings:
// quant.bad_pattern, quant.unknown_type.
func ParseOverride(s string) (Override, error) {
	i := strings.LastIndexByte(s, '=')
	if i <= 0 {
		return Override{}, finding.Errorf("quant.bad_pattern", "", "%q is not REGEX=TYPE", s).Hinted("for example attn_v=q8_0")
	}
	d, err := ParseType(s[i+1:])
	if err != nil {
		return Override{}, err
	}
	re, err := regexp.Compile(strings.ToLower(s[:i]))
	if err != nil {
		return Override{}, finding.Errorf("quant.bad_pattern", "", "the pattern %q cannot be used: %v", s[:i], err).
			Hinted("look-around and back references are not understood; several simpler patterns do the same")
	}
	return Override{re, d}, nil
}

// A Choice is what becomes of one tensor.
type Choice struct {
	Tensor   int          // index into the model's tensors
	Type     tensor.DType // the type it is stored in
	Wanted   tensor.DType // what the rules wanted; another than Type where its blocks do not divide the rows
	NeedsOwn bool         // the type needs an entry of an importance matrix for this tensor
}

// Fallback reports whether the tensor's rows did not divide into blocks of the type it should have had.
func (c Choice) Fallback() bool { return c.Type != c.Wanted }

// A Plan is what becomes of all tensors, in output order.
type Plan struct {
	Recipe  Recipe
	Choices []Choice
	model   *Model
}

// NewPlan applies a recipe to a model: which type each tensor gets, in output order. Errors are findings:
// quant.no_fallback_type where rows do not divide into blocks and nothing stands in for the type, and
// quant.bad_layer where a rule depends on a layer number that the model does not have.
func NewPlan(r Recipe, m *Model, opt Options) (*Plan, error) {
	if m.Layers == 0 {
		counted := *m
		for _, t := range m.Tensors {
			counted.Layers = max(counted.Layers, layerOf(t.Name)+1)
		}
		m = &counted
	}
	p := planner{recipe: r, model: m, opt: opt, tied: true}
	for _, t := range m.Tensors {
		switch categoryOf(t.Name) {
		case attnV:
			p.nV++
		case output:
			p.tied = false
		}
	}
	plan := &Plan{Recipe: r, model: m}
	for _, i := range order(m.Tensors, opt.KeepOrder) {
		c, err := p.choose(m.Tensors[i])
		if err != nil {
			return nil, err
		}
		c.Tensor = i
		plan.Choices = append(plan.Choices, c)
	}
	return plan, nil
}

// order is the reference's: by layer, then by the bytes of the name.
func order(specs []tensor.Spec, keep bool) []int {
	idx := make([]int, len(specs))
	for i := range idx {
		idx[i] = i
	}
	if !keep {
		slices.SortStableFunc(idx, func(a, b int) int {
			return cmp.Or(cmp.Compare(layerOf(specs[a].Name), layerOf(specs[b].Name)), strings.Compare(specs[a].Name, specs[b].Name))
		})
	}
	return idx
}

// CheckImatrix requires an importance matrix where the types cannot do without. has tells which tensors
// the matrix has an entry for; nil means that there is no matrix at all. The error is a finding,
// quant.needs_imatrix or quant.missing_entry.
func (p *Plan) CheckImatrix(has func(name string) bool) error {
	for _, c := range p.Choices {
		name := p.model.Tensors[c.Tensor].Name
		switch {
		case !c.NeedsOwn:
		case has == nil:
			return finding.Errorf("quant.needs_imatrix", p.model.Path, "recipe %s stores the tensor as %s, which needs an importance matrix", p.Recipe.name, c.Type).
				In(name).Hinted("give one with --imatrix FILE, or choose a larger type (IQ4_XS, Q4_K_M, Q3_K_M)")
		case !has(name):
			return finding.Errorf("quant.missing_entry", p.model.Path, "the importance matrix has no entry for a tensor that is to be %s", c.Type).
				In(name).Hinted("make the matrix from this model with more text, or choose a type for the tensor: --tensor-type 'NAME=q4_K'")
		}
	}
	return nil
}

// Fallbacks reports the tensors that got another type because their rows do not divide into the blocks
// of the one they should have had: how many, how many parameters they have, and a finding that says so,
// nil without any. strict makes it an error.
func (p *Plan) Fallbacks(strict bool) (tensors int, parameters int64, f *finding.Finding) {
	var all int64
	var first Choice
	for _, c := range p.Choices {
		n, err := p.model.Tensors[c.Tensor].Shape.Elements()
		if err != nil {
			continue // the layout refuses it
		}
		all += n
		if c.Fallback() {
			if tensors == 0 {
				first = c
			}
			tensors++
			parameters += n
		}
	}
	if tensors == 0 {
		return 0, 0, nil
	}
	s := p.model.Tensors[first.Tensor]
	f = finding.Warnf("quant.fallback", p.model.Path, "%d of %d tensors with %.1f %% of the parameters do not divide into blocks and get another type; the first has rows of %d and gets %s",
		tensors, len(p.Choices), 100*float64(parameters)/float64(all), columns(s.Shape), first.Type).In(s.Name)
	f.Expected(first.Type, fmt.Sprintf("%s, in blocks of %d", first.Wanted, first.Wanted.BlockLen()))
	if strict {
		f.Level = finding.Error
		f.Hinted("leave out --no-fallback, or choose types that fit with --tensor-type")
	}
	return tensors, parameters, f
}
