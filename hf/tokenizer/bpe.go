package tokenizer

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/hf/config"
)

func byteBlanks(part string) string { return strings.ReplaceAll(part, " ", "Ġ") }

// listed is the vocabulary of tokenizer.json by id, with fillers up to the configuration's size.
func (r *reader) listed(f *fastFile) (*vocabulary, error) {
	added := f.added()
	ids := make(map[string]int64, len(f.Model.Vocab)+len(added))
	maps.Copy(ids, f.Model.Vocab)
	for i, p := range f.Model.Pieces {
		ids[p.text] = int64(i)
	}
	for _, a := range f.AddedTokens {
		ids[a.Content] = a.ID
	}
	r.out.BaseCount = len(ids)
	size, err := r.size(len(ids))
	if err != nil {
		return nil, err
	}
	v := newVocabulary(size)
	for text, id := range ids {
		if id >= int64(size) {
			return nil, finding.Errorf("tokenizer.vocab_size", f.file, "the vocabulary has ids beyond vocab_size of config.json").
				Expected(id, "less than "+decimal(size)).
				Hinted("the tokenizer and the model do not belong together, or vocab_size was not raised with the embedding")
		}
		// What two texts of one id cannot be told apart by is settled by order, so that every run agrees.
		if old := v.tokens[id]; v.kinds[id] == unused || text > old {
			v.put(id, text, 0, normal)
		}
	}
	for id, a := range added {
		kind := control
		text := a.Content
		if !a.Special && !looksSpecial(text) {
			kind, text = userDefined, blanks(text)
		}
		v.put(id, text, 0, kind)
	}
	return v, nil
}

// bpe writes a byte-level BPE vocabulary.
func (r *reader) bpe() error {
	f, err := r.needFast()
	if err != nil {
		return err
	}
	v, err := r.listed(f)
	if err != nil {
		return err
	}
	name, rule, err := r.preTokenizer(f)
	if err != nil {
		return err
	}
	r.set("ggml.model", gguf.Of("gpt2"))
	r.setPre(name, rule)
	r.setTokens(v, false)
	return r.specialsOf(f, 0, true)
}

var byteText = regexp.MustCompile(`^<0x[0-9A-Fa-f]{2}>$`)

// fallbackBPE writes a BPE vocabulary with byte fallback, which is a SentencePiece model that was
// converted to tokenizer.json; the order of merges is lost. Any other BPE is byte-level.
func (r *reader) fallbackBPE() error {
	f, err := r.needFast()
	if err != nil {
		return err
	}
	decoder, _ := f.Decoder.(map[string]any)
	if f.Model.Type != "BPE" || !f.Model.ByteFallback || decoder["type"] != "Sequence" {
		return r.bpe()
	}
	special, err := r.specialTexts()
	if err != nil {
		return err
	}
	base := len(f.Model.Vocab)
	added := slices.SortedFunc(slices.Values(f.AddedTokens), func(a, b addedToken) int { return int(a.ID - b.ID) })
	v := newVocabulary(base)

	for text, id := range f.Model.Vocab {
		if id >= int64(base) || v.kinds[id] != unused {
			return finding.Errorf("tokenizer.bad_vocabulary", f.file, "the ids of the vocabulary have gaps").Expected(id, "each id once")
		}
		kind := normal
		switch {
		case byteText.MatchString(text):
			kind = byteToken
		case special[text]:
			kind = control
		}
		v.put(id, text, -1000, kind)
	}
	for _, a := range added {
		if a.ID < int64(base) {
			continue
		}
		kind := userDefined
		if special[a.Content] {
			kind = control
		}
		v.tokens, v.scores, v.kinds = append(v.tokens, a.Content), append(v.scores, -1000), append(v.kinds, kind)
	}
	r.out.BaseCount = len(v.tokens)
	return r.finishSPM(v)
}

// specialTexts are the tokens that tokenizer_config.json, or special_tokens_map.json where it is silent,
// gives a role.
func (r *reader) specialTexts() (map[string]bool, error) {
	tc, err := r.tokenizerConfig()
	if err != nil {
		return nil, err
	}
	var legacy map[string]any
	if _, err := config.ReadJSON(r.path("special_tokens_map.json"), &legacy); err != nil {
		return nil, err
	}
	special := map[string]bool{}
	for _, key := range []string{
		"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
		"additional_special_tokens", "extra_special_tokens",
	} {
		x, ok := tc[key]
		if !ok {
			x = legacy[key]
		}
		list, ok := x.([]any)
		if !ok {
			list = []any{x}
		}
		for _, x := range list {
			if text, ok := tokenText(x); ok {
				special[text] = true
			}
		}
	}
	return special, nil
}

// tokenText is the text of a special token: a string or an object with a content.
func tokenText(x any) (string, bool) {
	if m, ok := x.(map[string]any); ok {
		x = m["content"]
	}
	s, ok := x.(string)
	return s, ok
}
