package merge

import (
	"errors"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/naming"
)

// A TiedPolicy says what happens when an adapter changes one side of tied embeddings: a base that stores
// one matrix for its token embedding and its output layer.
type TiedPolicy string

// The policies. PEFT does Both with a warning, which is not what the adapter computes.
const (
	TiedRefuse TiedPolicy = ""      // an error
	TiedUntie  TiedPolicy = "untie" // the output stores both matrices, and its configuration says so
	TiedBoth   TiedPolicy = "both"  // the shared matrix gets the updates of either side
)

// A tie is the pair of a base's tied embeddings, by tensor names.
type tie struct {
	embedding, head string
	stored          bool // the base stores the head too, although its configuration ties them
}

// findTie returns the tied embeddings of a base, or nil.
func findTie(base Base) *tie {
	names := map[string]bool{}
	for _, t := range base.Tensors() {
		names[t.Name] = true
	}
	switch m := base.(type) {
	case LlamaModel:
		if causal, ok := m.KVs().Bool(m.Arch() + ".attention.causal"); ok && !causal {
			return nil // an encoder has no output layer
		}
		if !names["token_embd.weight"] || names["output.weight"] {
			return nil
		}
		return &tie{embedding: "token_embd.weight", head: "output.weight"}
	}
	if base.Format() != "safetensors" || !ties(readConfig(base.Path())) {
		return nil
	}
	for _, e := range []struct{ ending, head string }{
		{"embed_tokens.weight", "lm_head.weight"}, {"wte.weight", "lm_head.weight"}, {"word_embeddings.weight", "lm_head.weight"},
		{"embed_in.weight", "embed_out.weight"}, {"tok_embeddings.weight", "output.weight"},
	} {
		found := ""
		for name := range names {
			if strings.HasSuffix(name, e.ending) && (found == "" || len(name) < len(found) || len(name) == len(found) && name < found) {
				found = name
			}
		}
		if found != "" {
			return &tie{embedding: found, head: e.head, stored: names[e.head]}
		}
	}
	return nil
}

// ties reports whether a config.json ties the embeddings, itself or for its language model.
func ties(config map[string]any) bool {
	if t, ok := config["tie_word_embeddings"].(bool); ok {
		return t
	}
	for _, key := range []string{"text_config", "llm_config", "language_config"} {
		if sub, ok := config[key].(map[string]any); ok {
			if t, ok := sub["tie_word_embeddings"].(bool); ok {
				return t
			}
		}
	}
	return false
}

// tied looks at an update of a base with tied embeddings. It returns the places to go on with.
func (p *planner) tied(a *adapter.Adapter, u *adapter.Update, places []naming.Place, err error) ([]naming.Place, error) {
	var missing *naming.NotFound
	head := err != nil && errors.As(err, &missing) && u.Param == "weight" && isHead(u.Module)
	embedding, stored := false, false
	for _, place := range places {
		embedding = embedding || place.Tensor == p.tie.embedding
		stored = stored || place.Tensor == p.tie.head
	}
	switch {
	case !head && !embedding && !stored:
		return places, err
	case embedding && u.Kind == adapter.Rows:
		// Trained token rows are those of both sides: PEFT wraps a tied head with the same rows.
		if p.tie.stored {
			places = append(places, naming.Place{Tensor: p.tie.head, Rule: "tied"})
		}
		return places, nil
	case p.opt.Tied == TiedBoth && head:
		return []naming.Place{{Tensor: p.tie.embedding, Rule: "tied"}}, nil
	case p.opt.Tied == TiedBoth:
		return places, nil
	case p.opt.Tied == TiedUntie:
		p.untie()
		if head {
			return []naming.Place{{Tensor: p.tie.head, Rule: "tied"}}, nil
		}
		return places, nil
	}
	f := finding.Errorf("match.tied_embeddings", a.Path, "the base ties its output layer to the token embedding, so updating %q alone would change both", u.Module)
	f.Module = u.Module
	return nil, f.Hinted("--tied untie stores the two matrices apart; --tied both updates the shared one, as PEFT does")
}

func isHead(module string) bool {
	last := module[strings.LastIndexByte(module, '.')+1:]
	return last == "lm_head" || last == "embed_out" || last == "output"
}

// untie gives the output a head of its own, made from the embedding.
func (p *planner) untie() {
	p.plan.untied = true
	if p.tie.stored {
		return
	}
	p.tie.stored = true
	p.addTensor(p.tie.head, p.index[p.tie.embedding])
}

// addTensor appends an output made from the same tensor as another, and returns its index.
func (p *planner) addTensor(name string, of int) int {
	t := p.base.Tensors()[of]
	i := len(p.plan.Tensors)
	p.index[name] = i
	p.plan.Tensors = append(p.plan.Tensors, Output{
		Name: name, SourceType: typeName(t.DType), Shape: t.Shape, Updates: []Applied{}, source: t,
	})
	p.updates = append(p.updates, nil)
	return i
}
