package safetensors

import (
	"fmt"
	"strings"
	"unicode"

	"github.com/loratool/loratool/finding"
)

// warnings collects warnings about a file, one a code: a file with a thousand odd names gets one
// warning that names the first and counts the others.
type warnings struct {
	file  string
	list  []finding.Finding
	count []int
}

func (w *warnings) add(reason, tensor, message string) {
	code := "container." + reason
	for i := range w.list {
		if w.list[i].Code == code {
			w.count[i]++
			return
		}
	}
	w.list = append(w.list, *finding.Warnf(code, w.file, "%s", message).In(tensor))
	w.count = append(w.count, 1)
}

func (w *warnings) all() []finding.Finding {
	for i, n := range w.count {
		if n > 1 {
			w.list[i].Message += fmt.Sprintf(" (and %d more like it)", n-1)
		}
	}
	return w.list
}

// checkNames warns of names that are legal but may hurt whoever handles them carelessly.
func (p *parser) checkNames() {
	marked := false
	for _, t := range p.h.tensors {
		if t.Name == "" {
			p.warn.add("empty_name", "", "a tensor has an empty name")
			continue
		}
		if why := suspicious(t.Name); why != "" {
			p.warn.add("suspicious_name", t.Name, "the tensor's name "+why)
		}
		marked = marked || hasMark(t.Name)
	}
	if !marked {
		return
	}
	seen := map[string]string{}
	for _, t := range p.h.tensors {
		if isASCII(t.Name) {
			continue
		}
		key := skeleton(t.Name)
		if other, ok := seen[key]; ok {
			p.warn.add("suspicious_name", t.Name, fmt.Sprintf("the tensor's name differs from %q only in how an accented letter is encoded", other))
		}
		seen[key] = t.Name
	}
}

// suspicious says what is odd about a name, "" if nothing is.
func suspicious(name string) string {
	for i := range len(name) {
		if c := name[i]; c < 0x20 || c == 0x7F {
			return "holds control characters"
		}
	}
	switch {
	case strings.HasPrefix(name, "/") || strings.Contains(name, `\`) || (len(name) > 2 && name[1] == ':' && name[2] == '/'):
		return "looks like a path"
	case strings.HasPrefix(name, "::") || strings.HasPrefix(name, "##["):
		return "looks like a command of a build service"
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "looks like a path"
		}
	}
	if !isASCII(name) {
		for _, r := range name {
			if !unicode.IsPrint(r) {
				return "holds invisible characters"
			}
		}
	}
	return ""
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

func hasMark(s string) bool {
	return !isASCII(s) && strings.ContainsFunc(s, unicode.IsMark)
}

// skeleton writes both encodings of an accented letter, one code point or a letter and its marks, as
// the same placeholder. It is coarser than Unicode normalisation, which is enough for a warning.
func skeleton(s string) string {
	out := make([]rune, 0, len(s))
	for _, r := range s {
		switch {
		case unicode.IsMark(r) && len(out) > 0:
			out[len(out)-1] = unicode.ReplacementChar
		case r >= 0x80 && unicode.IsLetter(r):
			out = append(out, unicode.ReplacementChar)
		default:
			out = append(out, r)
		}
	}
	return string(out)
}
