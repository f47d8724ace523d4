package tokenizer

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// A splitter cuts a text into the parts that a model then encodes one by one. Parts of a byte-level
// splitter are in its alphabet of 256 printable characters.
type splitter func(text string) ([]string, error)

var errUnknownStep = errors.New("a step of the tokenizer is not known")

// maxList bounds how many steps a sequence has, maxLength the bytes that a text grows to on its way.
const (
	maxList   = 64
	maxLength = 4096
)

// preSplitters are the steps of tokenizer.json's pre_tokenizer. Their patterns share a budget.
func preSplitters(v any, steps *int, depth int) ([]splitter, error) {
	m, _ := v.(map[string]any)
	flag := func(key string, other bool) bool {
		if b, ok := m[key].(bool); ok {
			return b
		}
		return other
	}
	switch m["type"] {
	case "Sequence":
		list, _ := m["pretokenizers"].([]any)
		var all []splitter
		for _, x := range list {
			if depth > maxDepth || len(all) > maxList {
				return nil, errUnknownStep
			}
			s, err := preSplitters(x, steps, depth+1)
			if err != nil {
				return nil, err
			}
			all = append(all, s...)
		}
		return all, nil
	case "ByteLevel":
		return []splitter{byteLevel(flag("add_prefix_space", true), flag("use_regex", true), steps)}, nil
	case "Digits":
		return []splitter{cutRunes(unicode.IsNumber, !flag("individual_digits", false))}, nil
	case "Punctuation":
		behavior, _ := m["behavior"].(string)
		if behavior != "Contiguous" && behavior != "Isolated" && behavior != "" {
			return nil, errUnknownStep
		}
		return []splitter{cutRunes(isPunctuation, behavior == "Contiguous")}, nil
	case "BertPreTokenizer":
		return []splitter{bertSplit}, nil
	case "Split":
		p, _ := m["pattern"].(map[string]any)
		text, ok := p["Regex"].(string)
		if !ok || m["behavior"] != "Isolated" || flag("invert", false) {
			return nil, errUnknownStep
		}
		pattern, err := compile(text)
		if err != nil {
			return nil, err
		}
		return []splitter{func(text string) ([]string, error) { return isolate(pattern, text, steps) }}, nil
	}
	return nil, fmt.Errorf("%w: %v", errUnknownStep, m["type"])
}

// isolate cuts a text at the matches of a pattern; matches and what lies between are parts.
func isolate(p *pattern, text string, steps *int) ([]string, error) {
	runes := []rune(text)
	found, err := p.find(runes, steps)
	if err != nil {
		return nil, err
	}
	var parts []string
	last := 0
	for _, f := range found {
		if f[0] > last {
			parts = append(parts, string(runes[last:f[0]]))
		}
		parts = append(parts, string(runes[f[0]:f[1]]))
		last = f[1]
	}
	if last < len(runes) {
		parts = append(parts, string(runes[last:]))
	}
	return parts, nil
}

// cutRunes isolates characters, each or together with equal neighbours.
func cutRunes(in func(rune) bool, runs bool) splitter {
	return func(text string) ([]string, error) {
		var parts []string
		part, was := "", false
		for _, r := range text {
			is := in(r)
			if part != "" && (is != was || is && !runs) {
				parts = append(parts, part)
				part = ""
			}
			part += string(r)
			was = is
		}
		if part != "" {
			parts = append(parts, part)
		}
		return parts, nil
	}
}

func isPunctuation(r rune) bool {
	return r > ' ' && r < 0x7f && !unicode.IsLetter(r) && !unicode.IsDigit(r) || unicode.IsPunct(r)
}

// bertSplit cuts at white space, which is dropped, and isolates punctuation.
func bertSplit(text string) ([]string, error) {
	var parts []string
	for _, word := range strings.FieldsFunc(text, unicode.IsSpace) {
		p, err := cutRunes(isPunctuation, false)(word)
		if err != nil {
			return nil, err
		}
		parts = append(parts, p...)
	}
	return parts, nil
}

var gpt2Pattern = must(compile(`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`))

func must(p *pattern, err error) *pattern {
	if err != nil {
		panic(err)
	}
	return p
}

// byteAlphabet are the characters that byte-level tokenizers write bytes with: printable ones of Latin-1
// stand for themselves, the others follow from U+0100 on.
var byteAlphabet = func() (alphabet [256]rune) {
	next := rune(0x100)
	for b := range alphabet {
		if b >= '!' && b <= '~' || b >= 0xa1 && b <= 0xac || b >= 0xae {
			alphabet[b] = rune(b)
		} else {
			alphabet[b] = next
			next++
		}
	}
	return alphabet
}()

func byteLevel(space, regex bool, steps *int) splitter {
	return func(text string) ([]string, error) {
		if space && !strings.HasPrefix(text, " ") {
			text = " " + text
		}
		parts := []string{text}
		if regex {
			var err error
			if parts, err = isolate(gpt2Pattern, text, steps); err != nil {
				return nil, err
			}
		}
		for i, part := range parts {
			var b strings.Builder
			for j := range len(part) {
				b.WriteRune(byteAlphabet[part[j]])
			}
			parts[i] = b.String()
		}
		return parts, nil
	}
}

// normalize applies tokenizer.json's normalizer to the check text, in which no character has a canonical
// decomposition, so that the normalization forms change nothing.
func normalize(v any, text string, depth int) (string, error) {
	n, _ := v.(map[string]any)
	switch n["type"] {
	case nil:
		if v != nil {
			return "", errUnknownStep
		}
		return text, nil
	case "NFC", "NFD":
		return text, nil
	case "Lowercase":
		return strings.ToLower(text), nil
	case "StripAccents":
		return dropMarks(text), nil
	case "BertNormalizer":
		return bertNormalize(n, text), nil
	case "Sequence":
		list, _ := n["normalizers"].([]any)
		for i, x := range list {
			if depth > maxDepth || i > maxList || len(text) > maxLength {
				return "", errUnknownStep
			}
			var err error
			if text, err = normalize(x, text, depth+1); err != nil {
				return "", err
			}
		}
		return text, nil
	}
	return "", fmt.Errorf("%w: %v", errUnknownStep, n["type"])
}

func dropMarks(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.Is(unicode.Mn, r) {
			return -1
		}
		return r
	}, text)
}

func bertNormalize(n map[string]any, text string) string {
	lower := n["lowercase"] != false
	strip := lower
	if b, ok := n["strip_accents"].(bool); ok {
		strip = b
	}
	var b strings.Builder
	for _, r := range text {
		switch {
		case n["clean_text"] != false && unicode.IsSpace(r):
			b.WriteByte(' ')
		case n["clean_text"] != false && (r == 0 || r == 0xfffd || unicode.Is(unicode.C, r)):
		case n["handle_chinese_chars"] != false && isIdeograph(r):
			b.WriteString(" " + string(r) + " ")
		default:
			b.WriteRune(r)
		}
	}
	text = b.String()
	if strip {
		text = dropMarks(text)
	}
	if lower {
		text = strings.ToLower(text)
	}
	return text
}

// isIdeograph reports whether BERT sets a character apart as a word: the CJK ideographs, no kana.
func isIdeograph(r rune) bool {
	for _, x := range [][2]rune{
		{0x4e00, 0x9fff}, {0x3400, 0x4dbf}, {0x20000, 0x2a6df}, {0x2a700, 0x2b73f}, {0x2b740, 0x2b81f},
		{0x2b820, 0x2ceaf}, {0xf900, 0xfaff}, {0x2f800, 0x2fa1f},
	} {
		if x[0] <= r && r <= x[1] {
			return true
		}
	}
	return false
}
