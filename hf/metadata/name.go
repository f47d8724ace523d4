package metadata

import (
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// A nameParts is what a model's id says about it. A nil part is not known.
type nameParts struct {
	name, organization, basename, finetune, version, size *string
}

var (
	versionPart  = regexp.MustCompile(`(?i)^(v|iter)?\d+([.]\d+)*$`)
	typePart     = regexp.MustCompile(`(?i)^(i?q\d(_\w)*|b?fp?(16|32))$`)
	sizePart     = regexp.MustCompile(`(?i)^((([A]|\d+[x])?\d+([._]\d+)?[KMBT][\d]?)|small|mini|medium|large|x?xl)$`)
	finetunePart = regexp.MustCompile(`(?i)^(chat|instruct|vision|lora)$`)
	untitled     = regexp.MustCompile(`^(v\d+(\.\d+)*|\d.*)$`)
)

// splitName reads a model id or folder name (organization/Base-7B-finetune-v1). A size that does not go
// with the number of parameters is taken for something else, such as a context length. parameters is 0
// where it is not known, and negative for an adapter, whose base may have any greater size.
func splitName(id string, parameters int64) nameParts {
	if id == "" {
		return nameParts{}
	}
	if strings.Contains(id, " ") {
		return nameParts{name: &id}
	}
	var p nameParts
	full := id
	if org, rest, ok := strings.Cut(id, "/"); ok {
		full = rest
		if !strings.HasPrefix(org, ".") {
			p.organization = &org
		}
	}
	p.name = &full
	var parts []namePart
	for _, text := range strings.Split(full, "-") {
		if text != "" {
			parts = append(parts, namePart{text: text})
		}
	}
	for i := range parts {
		parts[i].classify(i == 0, parameters)
	}
	dropWordSizes(parts)
	findBase(parts)
	p.basename = joinParts(parts, func(q namePart) bool { return q.base })
	p.version = joinParts(parts, func(q namePart) bool { return q.version && !q.base })
	p.finetune = joinParts(parts, func(q namePart) bool { return q.finetune })
	var sizes []string
	for _, q := range parts {
		if q.size && !slices.Contains(sizes, q.text) {
			sizes = append(sizes, q.text)
		}
	}
	if len(sizes) > 0 {
		s := strings.Join(sizes, "-")
		p.size = &s
	}
	if p.size == nil && p.finetune == nil && p.version == nil {
		p.basename = nil
	}
	return p
}

// A namePart is one part of a name between hyphens, with what it may be.
type namePart struct {
	text                                string
	version, kind, size, finetune, base bool
}

func (q namePart) known() bool { return q.version || q.kind || q.size || q.finetune }

func (q *namePart) classify(first bool, parameters int64) {
	switch {
	case versionPart.MatchString(q.text):
		q.version = true
	case typePart.MatchString(q.text):
		q.kind = true
		q.text = strings.ToUpper(q.text)
	case !first && sizePart.MatchString(q.text):
		q.classifySize(parameters)
	case !first && finetunePart.MatchString(q.text):
		// An adapter's name needs not say that it is one.
		q.kind = parameters < 0 && strings.EqualFold(q.text, "lora")
		q.finetune = !q.kind
	}
}

func (q *namePart) classifySize(parameters int64) {
	s := strings.ReplaceAll(q.text, "_", ".")
	last := len(s) - 1
	if isDigit(s[last]) { // 7b1 is 7.1b
		s = s[:last-1] + "." + s[last:] + s[last-1:last]
		last = len(s) - 1
	}
	if last > 0 && isDigit(s[last-1]) && strings.IndexByte("kmbt", s[last]) >= 0 {
		s = s[:last] + strings.ToUpper(s[last:])
	}
	if parameters != 0 {
		if x, err := strconv.ParseFloat(s[:last], 64); err == nil {
			// A letter that is no unit counts as a thousandth, as where its place is looked up and not found.
			label := x * math.Pow(1000, float64(strings.IndexByte(" KMBT", s[last])))
			n := float64(parameters)
			if n < 0 && label < math.Floor(-n/8) || n > 0 && math.Abs(label-n) > math.Floor(7*n/8) {
				q.finetune = true
				s = s[:last] + strings.ToLower(s[last:])
			}
		}
	}
	q.size = !q.finetune
	q.text = s
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// dropWordSizes takes "small" and the like for no sizes where another size is a number.
func dropWordSizes(parts []namePart) {
	if !slices.ContainsFunc(parts, func(q namePart) bool { return q.size && strings.ContainsAny(q.text, "0123456789") }) {
		return
	}
	for i, q := range parts {
		if q.size && strings.IndexFunc(q.text, func(r rune) bool { return !unicode.IsLetter(r) }) < 0 {
			parts[i].size = false
		}
	}
}

func findBase(parts []namePart) {
	start := true
	for i := range parts {
		q := &parts[i]
		if start && (!q.known() && unicode.IsLetter([]rune(q.text)[0]) || q.version) {
			q.base = true
			continue
		}
		start = false
		if !q.known() {
			q.finetune = true
		}
	}
	for i := len(parts) - 1; i >= 0; i-- {
		if !parts[i].base || !parts[i].known() {
			break
		}
		parts[i].base = false
	}
}

func joinParts(parts []namePart, with func(namePart) bool) *string {
	var texts []string
	for _, q := range parts {
		if with(q) {
			texts = append(texts, q.text)
		}
	}
	if len(texts) == 0 {
		return nil
	}
	s := strings.Join(texts, "-")
	return &s
}

// title is a name in title form: hyphens become blanks, words that are all lower case are capitalised
// unless they look like a version or start with a digit.
func title(name string) string {
	words := strings.Fields(strings.ReplaceAll(strings.TrimSpace(name), "-", " "))
	for i, w := range words {
		if isLower(w) && !untitled.MatchString(w) {
			words[i] = titleWord(w)
		}
	}
	return strings.Join(words, " ")
}

func isLower(w string) bool {
	lower := false
	for _, r := range w {
		if unicode.IsUpper(r) || unicode.IsTitle(r) {
			return false
		}
		lower = lower || unicode.IsLower(r)
	}
	return lower
}

// titleWord makes every letter that follows none upper case.
func titleWord(w string) string {
	letter := false
	return strings.Map(func(r rune) rune {
		after := letter
		letter = unicode.IsUpper(r) || unicode.IsLower(r) || unicode.IsTitle(r)
		if after {
			return unicode.ToLower(r)
		}
		return unicode.ToTitle(r)
	}, w)
}
