package adapter

import (
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/naming"
)

// Limits say what a dialect in Hugging Face names can hold beside low-rank updates of linear layers.
type Limits struct {
	Title      string // what messages call the dialect: "an MLX adapter"
	DoRA       bool
	Embeddings bool // low-rank updates of embeddings
	Stacks     bool // updates of single experts in a stacked parameter
}

const mergeInstead = "merge the adapter into the base instead"

// Refuse is the error for an update that a dialect cannot hold, with the advice to merge.
func (a *Adapter) Refuse(u *Update, format string, args ...any) *finding.Finding {
	f := finding.Errorf("adapter.unsupported_feature", a.Path, format, args...).Hinted(mergeInstead)
	f.Module = u.Module
	if len(u.Tensors) > 0 {
		f.Tensor = u.Tensors[0]
	}
	return f
}

// Within checks an adapter against the limits. The error names the first update beyond them and what the
// dialect lacks.
func (a *Adapter) Within(l Limits) error {
	if a.Space != naming.HF {
		return finding.Errorf("adapter.unsupported_feature", a.Path, "module names are those of %q, and %s needs Hugging Face's", a.Space, l.Title).
			Hinted("convert with the base model at hand, so that names can be translated")
	}
	for _, m := range a.Metadata {
		if m[0] == InvocationTokens {
			return finding.Errorf("adapter.unsupported_feature", a.Path, "%s cannot say after which tokens an activated LoRA acts", l.Title)
		}
	}
	seen := map[Target]bool{}
	for i := range a.Updates {
		u := &a.Updates[i]
		switch u.Kind {
		case LowRank:
		case DoRA:
			if !l.DoRA {
				return a.Refuse(u, "%s cannot hold DoRA magnitudes, whose effect depends on the base's weights", l.Title)
			}
			if u.Layer == Embedding {
				return a.Refuse(u, "%s cannot hold the DoRA of an embedding", l.Title)
			}
		case Replace:
			return a.Refuse(u, "%s cannot hold a replaced parameter (%q)", l.Title, u.Target)
		case Rows:
			return a.Refuse(u, "%s cannot hold trained token rows", l.Title)
		case Bias:
			return a.Refuse(u, "%s cannot hold a bias of lora_B", l.Title)
		default:
			return a.Refuse(u, "%s cannot hold an update of kind %q", l.Title, u.Kind)
		}
		switch {
		case u.Layer == Conv:
			return a.Refuse(u, "%s cannot hold a convolution", l.Title)
		case u.Layer == Embedding && !l.Embeddings:
			return a.Refuse(u, "%s cannot hold the low-rank update of an embedding", l.Title)
		case u.Experts > 0 && !l.Stacks:
			return a.Refuse(u, "%s cannot hold updates of experts that are stacked in one parameter (%q)", l.Title, u.Target)
		case u.Experts == 0 && u.Param != "weight":
			return a.Refuse(u, "%s cannot hold an update of the parameter %q", l.Title, u.Target)
		case u.Experts == 0 && seen[u.Target]:
			return a.Refuse(u, "module %q has two low-rank updates", u.Module).Hinted("combine them into one first")
		}
		seen[u.Target] = true
	}
	return nil
}
