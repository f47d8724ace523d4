package tokenizer

import (
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/loratool/loratool/hf/config"
)

// An encoder encodes a text as the fast tokenizer of a tokenizer.json does, as far as BPE and WordPiece
// go. It exists for the check text, whose ids tell which tokenizer it is.
type encoder struct {
	f      *fastFile
	splits []splitter
	ranks  map[[2]string]int
}

func newEncoder(f *fastFile) (*encoder, error) {
	e := &encoder{f: f}
	m := &f.Model
	switch m.Type {
	case "BPE":
		e.ranks = make(map[[2]string]int, len(m.Merges))
		for i, text := range m.Merges {
			pair, ok := [2]string{}, true
			if m.pairs != nil {
				pair = m.pairs[i]
			} else {
				pair[0], pair[1], ok = strings.Cut(text, " ")
			}
			if _, seen := e.ranks[pair]; ok && !seen {
				e.ranks[pair] = i
			}
		}
	case "WordPiece":
	default:
		return nil, fmt.Errorf("%w: a model of type %q", errUnknownStep, m.Type)
	}
	if f.PreTokenizer == nil {
		return nil, errUnknownStep
	}
	var err error
	steps := maxSteps
	e.splits, err = preSplitters(f.PreTokenizer, &steps, 0)
	return e, err
}

// encode returns the ids of a text, special tokens included.
func (e *encoder) encode(text string) ([]int64, error) {
	var ids []int64
	for _, s := range e.cutAdded(segment{text: text}, false) {
		if s.text == "" {
			ids = append(ids, s.id)
			continue
		}
		text, err := normalize(e.f.Normalizer, s.text, 0)
		if err != nil {
			return nil, err
		}
		for _, s := range e.cutAdded(segment{text: text}, true) {
			if s.text == "" {
				ids = append(ids, s.id)
				continue
			}
			parts := []string{s.text}
			for _, split := range e.splits {
				var next []string
				length := 0
				for _, p := range parts {
					more, err := split(p)
					if err != nil {
						return nil, err
					}
					next = append(next, more...)
					if length += len(strings.Join(more, "")); length > maxLength {
						return nil, errUnknownStep
					}
				}
				parts = next
			}
			for _, p := range parts {
				if e.f.Model.Type == "BPE" {
					ids, err = e.bpe(ids, p)
				} else {
					ids, err = e.wordPiece(ids, p)
				}
				if err != nil {
					return nil, err
				}
			}
		}
	}
	return e.post(e.f.PostProcessor, ids, 0)
}

// A segment is a text, or an added token where the text is empty.
type segment struct {
	text string
	id   int64
}

// cutAdded cuts the added tokens out of a text: the leftmost, and of those the longest. Tokens that are
// found in normalized text and those that are not are looked for apart.
func (e *encoder) cutAdded(s segment, normalized bool) []segment {
	tokens := map[string]addedToken{}
	lengths := []int{}
	for _, a := range e.f.AddedTokens {
		if n := a.Normalized; (n == nil && !a.Special || n != nil && *n) == normalized && a.Content != "" {
			tokens[a.Content] = a
			if !slices.Contains(lengths, len(a.Content)) {
				lengths = append(lengths, len(a.Content))
			}
		}
	}
	slices.Sort(lengths)
	slices.Reverse(lengths)
	var out []segment
	text := s.text
	start := 0
	emit := func(end int) {
		if end > start {
			out = append(out, segment{text: text[start:end]})
		}
	}
	for i := 0; i < len(text); {
		a, n := longest(text[i:], lengths, tokens)
		if n == 0 || a.SingleWord && !wordAlone(text, i, i+n) {
			i++
			continue
		}
		from, to := i, i+n
		if a.LStrip {
			from = max(start, len(strings.TrimRightFunc(text[:from], unicode.IsSpace)))
		}
		if a.RStrip {
			to = len(text) - len(strings.TrimLeftFunc(text[to:], unicode.IsSpace))
		}
		emit(from)
		out = append(out, segment{id: a.ID})
		start, i = to, to
	}
	emit(len(text))
	return out
}

func longest(text string, lengths []int, tokens map[string]addedToken) (addedToken, int) {
	for _, n := range lengths {
		if n <= len(text) {
			if a, ok := tokens[text[:n]]; ok {
				return a, n
			}
		}
	}
	return addedToken{}, 0
}

func wordAlone(text string, from, to int) bool {
	word := func(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) || r == '_' }
	before, after := []rune(text[:from]), []rune(text[to:])
	return (len(before) == 0 || !word(before[len(before)-1])) && (len(after) == 0 || !word(after[0]))
}

func (e *encoder) bpe(ids []int64, part string) ([]int64, error) {
	m := &e.f.Model
	if m.IgnoreMerges {
		if id, ok := m.Vocab[part]; ok {
			return append(ids, id), nil
		}
	}
	word := make([]string, 0, len(part))
	for _, r := range part {
		word = append(word, string(r))
	}
	for len(word) > 1 {
		best, at := -1, 0
		for i := range len(word) - 1 {
			if rank, ok := e.ranks[[2]string{word[i], word[i+1]}]; ok && (best < 0 || rank < best) {
				best, at = rank, i
			}
		}
		if best < 0 {
			break
		}
		word[at] += word[at+1]
		word = slices.Delete(word, at+1, at+2)
	}
	for _, w := range word {
		id, ok := m.Vocab[w]
		if !ok {
			if m.UnkToken == nil {
				continue
			}
			if id, ok = m.Vocab[*m.UnkToken]; !ok {
				return nil, errUnknownStep
			}
		}
		ids = append(ids, id)
	}
	return ids, nil
}

func (e *encoder) wordPiece(ids []int64, part string) ([]int64, error) {
	m := &e.f.Model
	prefix, unk := "##", "[UNK]"
	if m.Prefix != nil {
		prefix = *m.Prefix
	}
	if m.UnkToken != nil {
		unk = *m.UnkToken
	}
	most := int(m.MaxChars)
	if most <= 0 {
		most = 100
	}
	runes := []rune(part)
	var found []int64
	for start := 0; start < len(runes) && len(runes) <= most; {
		end := len(runes)
		for ; end > start; end-- {
			text := string(runes[start:end])
			if start > 0 {
				text = prefix + text
			}
			if id, ok := m.Vocab[text]; ok {
				found = append(found, id)
				break
			}
		}
		if end == start {
			found = nil
			break
		}
		start = end
	}
	if found == nil {
		id, ok := m.Vocab[unk]
		if !ok {
			return nil, errUnknownStep
		}
		found = []int64{id}
	}
	return append(ids, found...), nil
}

// post adds the special tokens of tokenizer.json's post_processor around a single text.
func (e *encoder) post(v any, ids []int64, depth int) ([]int64, error) {
	p, _ := v.(map[string]any)
	switch p["type"] {
	case nil, "ByteLevel":
		return ids, nil
	case "Sequence":
		list, _ := p["processors"].([]any)
		for i, x := range list {
			if depth > maxDepth || i > maxList {
				return nil, errUnknownStep
			}
			var err error
			if ids, err = e.post(x, ids, depth+1); err != nil {
				return nil, err
			}
		}
		return ids, nil
	case "RobertaProcessing", "BertProcessing":
		first, ok := pairID(p["cls"])
		last, ok2 := pairID(p["sep"])
		if !ok || !ok2 {
			return nil, errUnknownStep
		}
		return append(append([]int64{first}, ids...), last), nil
	case "TemplateProcessing":
		single, _ := p["single"].([]any)
		special, _ := p["special_tokens"].(map[string]any)
		var out []int64
		for _, x := range single {
			if sequence(x) != "" {
				out = append(out, ids...)
				continue
			}
			token, _ := special[element(x)].(map[string]any)
			list, _ := token["ids"].([]any)
			for _, v := range list {
				id, ok := config.Int(v)
				if !ok {
					return nil, errUnknownStep
				}
				out = append(out, id)
			}
			if len(out) > maxLength {
				return nil, errUnknownStep
			}
		}
		return out, nil
	}
	return nil, errUnknownStep
}

// pairID is the id in a pair of text and id.
func pairID(v any) (int64, bool) {
	list, _ := v.([]any)
	if len(list) != 2 {
		return 0, false
	}
	return config.Int(list[1])
}
