package tokenizer

import (
	"encoding/base64"
	"slices"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/gguf"
)

// bert writes the vocabulary of an encoder: WordPiece, byte-level BPE (RoBERTa) or Unigram (XLM-R).
func (r *reader) bert() error {
	if r.has("sentencepiece.bpe.model") {
		return r.unigramModel()
	}
	f, err := r.needFast()
	if err != nil {
		return err
	}
	switch {
	case f.Model.Type == "Unigram":
		return r.unigramFast(f)
	case f.Model.Type == "BPE":
		if err := r.bpe(); err != nil {
			return err
		}
		return r.typeCount("type_vocab_size", 1)
	}
	return r.wordPiece(f)
}

// typeCount writes the number of token types (sentence A, sentence B).
func (r *reader) typeCount(key string, other int64) error {
	n := other
	if r.cfg.Get(key) != nil {
		var err error
		if n, err = r.cfg.Int(key); err != nil {
			return err
		}
	}
	if n < 0 || n > maxTokens {
		return r.cfg.Bad(key, n, "a small number")
	}
	r.set("ggml.token_type_count", gguf.Of(uint32(n)))
	return nil
}

// wordPiece writes a WordPiece vocabulary: pieces that continue a word lose their mark, the others get the
// space mark.
func (r *reader) wordPiece(f *fastFile) error {
	v, err := r.listed(f)
	if err != nil {
		return err
	}
	name, rule, err := r.preTokenizer(f)
	if err != nil {
		return err
	}
	if err := r.typeCount("type_vocab_size", 1); err != nil {
		return err
	}
	for i, text := range v.tokens {
		if v.kinds[i] == control {
			continue
		}
		if rest, ok := strings.CutPrefix(text, "##"); ok {
			v.tokens[i] = rest
		} else {
			v.tokens[i] = "▁" + text
		}
	}
	r.set("ggml.model", gguf.Of("bert"))
	r.setPre(name, rule)
	r.setTokens(v, false)
	return r.specialsOf(f, len(v.tokens), false)
}

// unigramModel writes the vocabulary of an XLM-R SentencePiece model.
func (r *reader) unigramModel() error {
	file := r.path("sentencepiece.bpe.model")
	m, err := r.spModel("sentencepiece.bpe.model")
	if err != nil {
		return err
	}
	if m.modelType != 1 {
		return finding.Errorf("tokenizer.unsupported", file, "the SentencePiece model is not of the type this family has").
			Expected(m.modelType, "1 (unigram)")
	}
	v, err := r.fillPieces(m, len(m.pieces))
	if err != nil {
		return err
	}
	// The model's own first pieces are replaced by those the embedding has.
	if len(v.tokens) < 5 {
		return finding.Errorf("tokenizer.bad_vocabulary", file, "the vocabulary is too small").Expected(len(v.tokens), "5 tokens or more")
	}
	last := len(v.tokens) - 1
	v.tokens = slices.Concat([]string{"<s>", "<pad>", "</s>", "<unk>"}, v.tokens[3:last])
	v.scores = slices.Concat([]float32{0, 0, 0, 0}, v.scores[3:last])
	v.kinds = slices.Concat([]int32{control, control, control, unknown}, v.kinds[3:last])
	return r.finishUnigram(v, m)
}

// unigramFast writes a Unigram vocabulary of a tokenizer.json.
func (r *reader) unigramFast(f *fastFile) error {
	size, err := r.size(len(f.Model.Pieces))
	if err != nil {
		return err
	}
	special, err := r.specialTexts()
	if err != nil {
		return err
	}
	tc, err := r.tokenizerConfig()
	if err != nil {
		return err
	}
	unk := int64(3)
	if f.Model.UnkID != nil {
		unk = *f.Model.UnkID
	}
	added := f.added()
	for _, a := range f.AddedTokens {
		if a.Content == tc["unk_token"] {
			unk = a.ID
		}
	}
	v := newVocabulary(max(size, len(f.Model.Pieces)))
	for i, p := range f.Model.Pieces {
		kind := normal
		_, isAdded := added[int64(i)]
		switch {
		case unk == int64(i):
			kind = unknown
		case special[p.text]:
			kind = control
		case isAdded:
			kind = userDefined
		}
		v.put(int64(i), p.text, p.score, kind)
	}
	m := &spModel{addDummyPrefix: true, removeExtraSpaces: tc["clean_up_tokenization_spaces"] != false}
	if pre, ok := f.PreTokenizer.(map[string]any); ok {
		m.addDummyPrefix = dummyPrefix(pre)
	}
	if n, ok := f.Normalizer.(map[string]any); ok {
		text, _ := findKey(n, "precompiled_charsmap", 0).(string)
		if m.charsmap, err = base64.StdEncoding.DecodeString(text); err != nil {
			return finding.Errorf("tokenizer.bad_charsmap", f.file, "precompiled_charsmap is not base64: %v", err)
		}
	}
	return r.finishUnigram(v, m)
}

// dummyPrefix reports whether a pre-tokenizer puts a space before the text.
func dummyPrefix(pre map[string]any) bool {
	if add, ok := findKey(pre, "add_prefix_space", 0).(bool); ok {
		return add
	}
	return true
}

// findKey finds a key in an object or the objects of its lists.
func findKey(m map[string]any, key string, depth int) any {
	if v, ok := m[key]; ok {
		return v
	}
	for _, name := range []string{"normalizers", "pretokenizers"} {
		list, _ := m[name].([]any)
		for _, x := range list {
			if inner, ok := x.(map[string]any); ok && depth < maxDepth {
				if v := findKey(inner, key, depth+1); v != nil {
					return v
				}
			}
		}
	}
	return nil
}

func (r *reader) finishUnigram(v *vocabulary, m *spModel) error {
	r.set("ggml.model", gguf.Of("t5"))
	r.setPre("default", "fixed")
	r.setTokens(v, true)
	r.set("ggml.add_space_prefix", gguf.Of(m.addDummyPrefix))
	if err := r.typeCount("type_vocab_size", 1); err != nil {
		return err
	}
	r.set("ggml.remove_extra_whitespaces", gguf.Of(m.removeExtraSpaces))
	r.set("ggml.precompiled_charsmap", gguf.ArrayOf(m.charsmap))
	return r.specials(len(v.tokens), false)
}
