package mlx

import (
	"fmt"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// embeddings are the last components of modules that look tokens up. Their lora_a is [vocab, r].
var embeddings = []string{"embed_tokens", "wte", "tok_embeddings", "word_embeddings", "embed_in", "embeddings"}

// mostExperts bounds the experts of a stack, each of which becomes an update.
const mostExperts = 1 << 16

// A group is the tensors of one module.
type group struct {
	module  string
	a, b, m *tensor.Tensor
}

func (c *settings) decode(path, file string, ts []tensor.Tensor) (*adapter.Adapter, error) {
	a := &adapter.Adapter{Path: path, Dialect: "mlx", Space: naming.HF, BaseModel: c.Base}
	if a.BaseModel == "" {
		a.BaseModel = c.Model
	}
	byModule := map[string]*group{}
	var groups []*group
	for i := range ts {
		t := &ts[i]
		dot := strings.LastIndexByte(t.Name, '.')
		module, leaf := t.Name[:max(dot, 0)], t.Name[dot+1:]
		if leaf != "lora_a" && leaf != "lora_b" && leaf != "m" || module == "" {
			return nil, finding.Errorf("adapter.unexpected_tensor", file, "neither lora_a, lora_b nor m of a module").In(t.Name)
		}
		g := byModule[module]
		if g == nil {
			g = &group{module: module}
			byModule[module] = g
			groups = append(groups, g)
		}
		switch leaf {
		case "lora_a":
			g.a = t
		case "lora_b":
			g.b = t
		default:
			g.m = t
		}
	}
	for _, g := range groups {
		ups, err := c.updates(file, g)
		if err != nil {
			return nil, err
		}
		a.Updates = append(a.Updates, ups...)
	}
	if len(a.Updates) == 0 {
		return nil, finding.Errorf("adapter.empty_adapter", file, "the file holds no update")
	}
	return a, nil
}

func (g *group) first() *tensor.Tensor {
	for _, t := range []*tensor.Tensor{g.a, g.b} {
		if t != nil {
			return t
		}
	}
	return g.m
}

// updates makes the update of a module, or those of all experts in a stack.
func (c *settings) updates(file string, g *group) ([]adapter.Update, error) {
	fail := func(reason, format string, args ...any) ([]adapter.Update, error) {
		return nil, finding.Errorf("adapter."+reason, file, format, args...).In(g.first().Name)
	}
	if g.a == nil || g.b == nil {
		return fail("missing_pair", "module %q has not both factors", g.module)
	}
	dora := c.FineTune == "dora"
	switch {
	case dora && g.m == nil && len(g.a.Shape) == 2:
		return fail("missing_magnitude", "fine_tune_type is \"dora\", but module %q has no m", g.module)
	case !dora && g.m != nil:
		return fail("unsupported_feature", "module %q has a DoRA magnitude, but fine_tune_type is not \"dora\"", g.module)
	}
	shapes := fmt.Sprintf("%s %v, %s %v", g.a.DType, g.a.Shape, g.b.DType, g.b.Shape)
	if !g.a.DType.IsFloat() || !g.b.DType.IsFloat() || g.m != nil && !g.m.DType.IsFloat() {
		return nil, finding.Errorf("adapter.bad_dtype", file, "the factors are not of a floating-point type").In(g.a.Name).Expected(shapes, "floats")
	}
	if len(g.a.Shape) == 3 && len(g.b.Shape) == 3 && g.m == nil {
		return c.stack(file, g, shapes)
	}
	bad := func(reason, message string) ([]adapter.Update, error) {
		return nil, finding.Errorf("adapter."+reason, file, "%s", message).In(g.a.Name).Expected(shapes, "lora_a [in, r], lora_b [r, out]")
	}
	switch {
	case len(g.a.Shape) != 2 || len(g.b.Shape) != 2:
		return bad("shape_mismatch", "the factors are no matrices")
	case g.a.Shape[1] == 0:
		return bad("rank_zero", "the rank is 0")
	case g.a.Shape[1] != g.b.Shape[0]:
		return bad("rank_mismatch", "the factors have different ranks")
	case g.a.Shape[0] == 0 || g.b.Shape[1] == 0:
		return bad("shape_mismatch", "a factor is empty")
	}
	u := adapter.Update{Target: adapter.Target{Module: g.module, Param: "weight"}, Kind: adapter.LowRank, Layer: adapter.Linear, Tensors: []string{g.a.Name, g.b.Name}}
	for _, e := range embeddings {
		if g.module == e || strings.HasSuffix(g.module, "."+e) {
			u.Layer = adapter.Embedding
		}
	}
	u.A = adapter.FromTensor(*g.a, g.a.Shape[0], g.a.Shape[1], adapter.ReadFloats).Transpose()
	u.B = adapter.FromTensor(*g.b, g.b.Shape[0], g.b.Shape[1], adapter.ReadFloats).Transpose()
	u.Rank = int(g.a.Shape[1])
	u.Scale = c.scale(u.Rank)
	if g.m != nil {
		if u.Layer == adapter.Embedding {
			return fail("unsupported_feature", "the DoRA of an MLX embedding has a norm for each token, which no other program knows")
		}
		if n, err := g.m.Shape.Elements(); err != nil || n != u.B.Rows {
			return nil, finding.Errorf("adapter.shape_mismatch", file, "one magnitude an output is needed").In(g.m.Name).Expected(g.m.Shape, fmt.Sprintf("[%d]", u.B.Rows))
		}
		u.Kind, u.Magnitude = adapter.DoRA, adapter.FromTensor(*g.m, 1, u.B.Rows, adapter.ReadFloats)
		u.Tensors = append(u.Tensors, g.m.Name)
	}
	return []adapter.Update{u}, nil
}

// stack makes one update for every expert of a switch layer.
func (c *settings) stack(file string, g *group, shapes string) ([]adapter.Update, error) {
	a, b := g.a.Shape, g.b.Shape
	parent, leaf, ok := splitSwitch(g.module)
	switch {
	case !ok:
		return nil, finding.Errorf("adapter.unsupported_feature", file, "stacks of factors are known only below switch_mlp").In(g.a.Name).Expected(shapes, "MODULE.switch_mlp.gate_proj, up_proj or down_proj")
	case a[0] == 0 || a[0] != b[0] || a[0] > mostExperts || a[1] == 0 || a[1] != b[2] || a[2] == 0 || b[1] == 0:
		return nil, finding.Errorf("adapter.shape_mismatch", file, "the stacks do not fit each other").In(g.a.Name).Expected(shapes, "lora_a [experts, r, in], lora_b [experts, out, r]")
	}
	var ups []adapter.Update
	for e := range a[0] {
		u := adapter.Update{Target: adapter.Target{Module: expertModule(parent, leaf, e), Param: "weight"}, Kind: adapter.LowRank, Layer: adapter.Linear,
			A: matrixOf(g.a, e), B: matrixOf(g.b, e), Rank: int(a[1]), Tensors: []string{g.a.Name, g.b.Name}}
		u.Scale = c.scale(u.Rank)
		ups = append(ups, u)
	}
	return ups, nil
}

// matrixOf is matrix i of a stack.
func matrixOf(t *tensor.Tensor, i int64) adapter.Factor {
	part := *t
	part.Shape = t.Shape[1:]
	part.Size = t.Size / t.Shape[0]
	part.Off += i * part.Size
	return adapter.FromTensor(part, t.Shape[1], t.Shape[2], adapter.ReadFloats)
}

// mixtral are the names of an expert's matrices below block_sparse_moe.
var mixtral = map[string]string{"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}

const switchName = ".switch_mlp."

// splitSwitch takes PARENT.switch_mlp.gate_proj apart.
func splitSwitch(module string) (parent, leaf string, ok bool) {
	i := strings.LastIndex(module, switchName)
	if i < 0 {
		return "", "", false
	}
	parent, leaf = module[:i], module[i+len(switchName):]
	return parent, leaf, mixtral[leaf] != ""
}

// expertModule is the Hugging Face path of an expert's matrix.
func expertModule(parent, leaf string, expert int64) string {
	if parent == "block_sparse_moe" || strings.HasSuffix(parent, ".block_sparse_moe") {
		leaf = mixtral[leaf]
	}
	return fmt.Sprintf("%s.experts.%d.%s", parent, expert, leaf)
}
