package tokenizer

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
)

func TestPattern(t *testing.T) {
	for _, c := range []struct{ pattern, text, want string }{
		{`\s+(?!\S)|\s+`, "a   b  ", "  | |  "},
		{`(?i:'s|'RE)`, "it's we'Re 'RE", "'s|'Re|'RE"},
		{`\p{N}{1,3}`, "1234567", "123|456|7"},
		{`\d{2,}?`, "12345", "12|34"},
		{`[^\r\n\p{L}\p{N}]?\p{L}+`, "«été» à", "«été| à"},
		{`a?+a`, "aa", "aa"},
		{`a++a`, "aaa", ""},
		{`(?:ab)++c`, "ababc", "ababc"},
		{`(?=b)b|a(?=b)`, "abb", "a|b|b"},
		{`[a-c\-\]]+`, "ab-]d", "ab-]"},
		{`[[ab]c]+`, "abcd", "abc"},
		{`[^(\s|[.,])]+`, "ab|c.d(e", "ab|c|d|e"},
		{`\p{Lu}\P{Lu}*`, "AbcDe", "Abc|De"},
		{`\s+$`, "a  \nb ", "  | "},
		{`^a|b$`, "aab", "a|b"},
		{`x*`, "axxb", "xx"},
		{`(a|ab)(c|bcd)`, "abcd", "abcd"},
		{`(?:a|b)*?c`, "abac", "abac"},
	} {
		p, err := compile(c.pattern)
		if err != nil {
			t.Errorf("%s: %v", c.pattern, err)
			continue
		}
		if got := strings.Join(found(t, p, c.text), "|"); got != c.want {
			t.Errorf("%s in %q: got %q, want %q", c.pattern, c.text, got, c.want)
		}
	}
}

func found(t testing.TB, p *pattern, text string) []string {
	t.Helper()
	steps := maxSteps
	runes := []rune(text)
	ranges, err := p.find(runes, &steps)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, r := range ranges {
		out = append(out, string(runes[r[0]:r[1]]))
	}
	return out
}

// Where package regexp knows a pattern, both find the same.
func TestPatternAgainstRegexp(t *testing.T) {
	for _, text := range []string{
		`\p{L}+|\p{N}+`, ` ?[^\s\p{L}\p{N}]+[\r\n]*`, `\s*[\r\n]+`, `(?:[a-zа-я]+?)(?:ich|at)`, `(?:3|33)+\.`, `[0-9][0-9][0-9]`, `(?i:d|RE|m)`,
		`(?:\p{Lu}|\p{Ll})*\p{Ll}`, `'(?:[sdmt]|ll|ve|re)`,
	} {
		p, err := compile(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		got, want := found(t, p, checkText), regexp.MustCompile(text).FindAllString(checkText, -1)
		if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
		if len(got) == 0 {
			t.Errorf("%s finds nothing", text)
		}
	}
}

func TestPatternRefused(t *testing.T) {
	for _, text := range []string{
		`(`, `)`, `[a`, `[`, `a{2`, `a{x}`, `a{3,2}`, `a{1,99999}`, `*`, `+a`, `(?<a>b)`, `(?P<a>b)`, `\`, `\q`, `\p{`, `\p{Nope}`, `[b-a]`, `[a&&b]`, `(?#x)`,
		strings.Repeat("(", 100) + strings.Repeat(")", 100), strings.Repeat("[", 100) + strings.Repeat("]", 100),
	} {
		if _, err := compile(text); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

// A pattern that would try for ever runs out of steps.
func TestPatternSteps(t *testing.T) {
	p, err := compile(`(?:a*)*(?:a*)*(?:a*)*b`)
	if err != nil {
		t.Fatal(err)
	}
	steps := maxSteps
	if _, err := p.find([]rune(strings.Repeat("a", 100)), &steps); err == nil {
		t.Error("no error")
	}
}

func FuzzPattern(f *testing.F) {
	f.Add(`(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s+(?!\S)|\s+`, "It's 3333  times")
	f.Add(`(?:a|b)*?c|[[ab]\]]++`, "abac]]")
	f.Fuzz(func(t *testing.T, text, in string) {
		p, err := compile(text)
		if err != nil || len(in) > 200 {
			return
		}
		steps := 100_000
		ranges, err := p.find([]rune(in), &steps)
		if err != nil {
			return
		}
		last := 0
		for _, r := range ranges {
			if r[0] < last || r[1] <= r[0] || r[1] > len([]rune(in)) {
				t.Fatalf("%q in %q: ranges %v", text, in, ranges)
			}
			last = r[1]
		}
	})
}
