package peft

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// replacement is the scale of updates that put a value in the place of the base's.
var replacement = adapter.Scale{Value: 1, Source: "replacement"}

// values turns whole parameters into replacements: saved modules, biases, and the base rows that PEFT
// writes beside an adapted embedding.
func (d *decoder) values(a *adapter.Adapter) error {
	for _, v := range d.whole {
		full := v.module + "." + v.param
		switch {
		case slices.ContainsFunc(d.modulesToSave, func(m string) bool { return under(v.module, m) }):
		case v.based && d.byModule(v.module):
		case strings.HasSuffix(v.param, "bias") && (d.bias == "all" || d.bias == "lora_only"):
		case v.param == "weight" && len(v.t.Shape) == 2 && slices.ContainsFunc(embeddings, func(e string) bool { return endsWith(v.module, e) }):
		case v.param == "weight" && len(v.t.Shape) == 1 && strings.Contains(full, "norm"):
			d.findings = append(d.findings, *finding.Warnf("adapter.full_vector", d.file, "a whole norm vector that the configuration does not name; it replaces the base's").In(v.t.Name))
		default:
			return d.errorf("unexpected_tensor", v.t.Name, "neither a factor nor a parameter that the configuration saves")
		}
		rows, cols, err := v.t.Shape.Matrix()
		if err != nil {
			return d.errorf("shape_mismatch", v.t.Name, "%v", err)
		}
		u := adapter.Update{Target: adapter.Target{Module: v.module, Param: v.param}, Kind: adapter.Replace, Scale: replacement, Tensors: []string{v.t.Name}}
		if len(v.t.Shape) == 2 {
			u.Layer = adapter.Linear
		} else if len(v.t.Shape) > 2 {
			u.Layer = adapter.Conv
		}
		u.Value = adapter.FromTensor(*v.t, rows, cols, adapter.ReadFloats)
		a.Updates = append(a.Updates, u)
	}
	return nil
}

// embeddings are the last path components of input and output embeddings, whose rows PEFT saves by
// itself when the vocabulary was resized.
var embeddings = []string{"embed_tokens", "lm_head", "wte", "word_embeddings", "embed_in", "embed_out", "tok_embeddings", "output", "shared"}

// byModule reports whether the file has factors for the module or for a module that wraps it.
func (d *decoder) byModule(module string) bool {
	return slices.ContainsFunc(d.sites, func(s *site) bool { return s.module == module || strings.HasPrefix(module+".", s.module+".") }) ||
		slices.ContainsFunc(d.tokens, func(t value) bool { return t.module == module })
}

// tokenRows turns trained token rows into row replacements. The rows are whole rows, in the order of the
// ids in the configuration.
func (d *decoder) tokenRows(a *adapter.Adapter) error {
	for _, v := range d.tokens {
		var ids []int64
		found := false
		for _, s := range d.config.tokens {
			if s.embedding == "" || endsWith(v.module, s.embedding) {
				ids, found = s.ids, true
				break
			}
		}
		if !found {
			return d.errorf("missing_target", v.t.Name, "trainable_token_indices does not say which tokens these rows belong to")
		}
		if len(v.t.Shape) != 2 || v.t.Shape[0] != int64(len(ids)) {
			return d.errorf("shape_mismatch", v.t.Name, "one row a trained token is needed").Expected(v.t.Shape, fmt.Sprintf("[%d, dim]", len(ids)))
		}
		a.Updates = append(a.Updates, adapter.Update{
			Target: adapter.Target{Module: v.module, Param: "weight"}, Kind: adapter.Rows, Layer: adapter.Embedding, Scale: replacement,
			Value: adapter.FromTensor(*v.t, v.t.Shape[0], v.t.Shape[1], adapter.ReadFloats), Index: ids, Tensors: []string{v.t.Name},
		})
	}
	return nil
}

// checkTargets compares the configuration's lists with what the file holds.
func (d *decoder) checkTargets(a *adapter.Adapter) error {
	saved := func(m string) bool {
		return slices.ContainsFunc(d.whole, func(v value) bool { return under(v.module, m) })
	}
	for _, m := range d.modulesToSave {
		if saved(m) || d.classifier(m) && (saved("classifier") || saved("score")) {
			continue
		}
		return finding.Errorf("adapter.missing_target", d.file, "modules_to_save names %q, but the file has no tensor of it", m).
			Hinted("the trained module was not saved; the adapter is incomplete")
	}
	for _, t := range d.targets {
		if !slices.ContainsFunc(d.sites, func(s *site) bool { return endsWith(s.path, t) || endsWith(s.module, t) }) {
			d.warn("missing_target", "target_modules names %q, but the file has no factors of it", t)
		}
	}
	if d.targetRegex != nil && !slices.ContainsFunc(d.sites, func(s *site) bool { return d.targetRegex.MatchString(s.path) }) {
		d.warn("missing_target", "target_modules %q matches none of the file's modules", d.targetRegex)
	}
	biased := slices.ContainsFunc(d.whole, func(v value) bool { return strings.HasSuffix(v.param, "bias") })
	if (d.bias == "all" || d.bias == "lora_only") && !biased {
		d.warn("missing_target", "bias is %q, but the file has no bias", d.bias)
	}
	if len(d.config.tokens) > 0 && len(d.tokens) == 0 {
		return finding.Errorf("adapter.missing_target", d.file, "trainable_token_indices is set, but the file has no token rows")
	}
	return d.checkAlphas(a)
}

// classifier reports whether PEFT itself added the name for a classification task: it adds both common
// names, of which a model has one.
func (d *decoder) classifier(m string) bool {
	return (m == "classifier" || m == "score") && (d.taskType == "SEQ_CLS" || d.taskType == "TOKEN_CLS")
}

// checkAlphas compares .alpha tensors with the configuration. PEFT reads the configuration alone, and readers of
// kohya's files, OpenVINO GenAI among them, read the tensors alone. Where the two give a module different scales,
// checks and merges warn and go by PEFT, whose folder it is; a conversion, which hands one of the numbers on to
// readers of either kind, is an error.
// An alpha agrees that is the configuration's number, or that gives the same scale by the rank (as the alphas
// of rsLoRA do that LyCORIS and this program's OpenVINO files have).
func (d *decoder) checkAlphas(a *adapter.Adapter) error {
	for _, v := range d.alphas {
		if n, err := v.t.Shape.Elements(); err != nil || n != 1 || !v.t.DType.IsFloat() {
			return d.errorf("bad_alpha", v.t.Name, "an alpha must be one number").Expected(v.t.Shape, "[]")
		}
		i := slices.IndexFunc(a.Updates, func(u adapter.Update) bool {
			return u.Module == v.module && (u.Kind == adapter.LowRank || u.Kind == adapter.DoRA)
		})
		if i < 0 {
			return d.errorf("unexpected_tensor", v.t.Name, "an alpha of a module without factors")
		}
		x, err := adapter.ReadFloats(v.t)
		if err != nil {
			return err
		}
		u := a.Updates[i]
		alpha := float64(x[0])
		if alpha == u.Scale.Alpha || math.Abs(alpha/float64(u.Rank)-u.Scale.Value) <= 1e-6*math.Abs(u.Scale.Value) {
			continue
		}
		f := finding.Errorf("adapter.alpha_conflict", d.file, "the file's alpha differs from the configuration's, and PEFT reads one, other programs the other").
			In(v.t.Name).Expected(strconv.FormatFloat(alpha, 'g', -1, 32), u.Scale.Source).Hinted("remove the alpha tensors, or correct lora_alpha or alpha_pattern")
		if a.Doubt == nil {
			a.Doubt = f
		}
		warning := *f
		warning.Level = finding.Warning
		d.findings = append(d.findings, warning)
	}
	return nil
}

// matrix checks that a tensor has the number of dimensions that a factor needs.
func (d *decoder) matrix(t *tensor.Tensor, want string) (rows, cols int64, err error) {
	if len(t.Shape) < 2 {
		return 0, 0, d.errorf("shape_mismatch", t.Name, "not a matrix").Expected(t.Shape, want)
	}
	rows, cols, err = t.Shape.Matrix()
	if err != nil {
		return 0, 0, d.errorf("shape_mismatch", t.Name, "%v", err)
	}
	return rows, cols, nil
}
