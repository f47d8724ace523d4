package tokenizer

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
)

// A pattern is a regular expression of the kind that tokenizers use: alternatives are tried in order,
// quantifiers are greedy, lazy or possessive, and there is lookahead. Package regexp has none of these
// orders with lookahead.
type pattern struct{ root node }

// A matcher matches one text, within a budget of steps: patterns come from files.
type matcher struct {
	text  []rune
	steps *int // steps left
}

var errSteps = errors.New("the pattern takes too long")

// maxSteps is the budget for the check text. Real tokenizers take some thousands of steps.
const maxSteps = 4_000_000

type node interface {
	// match calls next with every place where the node can end when it starts at i, in the order of
	// preference, until next returns true.
	match(m *matcher, i int, next func(int) bool) bool
}

type (
	runeNode struct{ in func(rune) bool }
	seqNode  []node
	altNode  []node
	lookNode struct {
		n   node
		not bool
	}
	lineEnd    struct{}
	textStart  struct{}
	repeatNode struct {
		n                node
		min, max         int // max < 0: no limit
		lazy, possessive bool
	}
)

func (m *matcher) step() bool { *m.steps--; return *m.steps >= 0 }

func (n runeNode) match(m *matcher, i int, next func(int) bool) bool {
	return m.step() && i < len(m.text) && n.in(m.text[i]) && next(i+1)
}

func (n seqNode) match(m *matcher, i int, next func(int) bool) bool {
	if len(n) == 0 {
		return next(i)
	}
	return m.step() && n[0].match(m, i, func(j int) bool { return n[1:].match(m, j, next) })
}

func (n altNode) match(m *matcher, i int, next func(int) bool) bool {
	for _, x := range n {
		if m.step() && x.match(m, i, next) {
			return true
		}
	}
	return false
}

func (n lookNode) match(m *matcher, i int, next func(int) bool) bool {
	found := m.step() && n.n.match(m, i, func(int) bool { return true })
	return found != n.not && next(i)
}

func (lineEnd) match(m *matcher, i int, next func(int) bool) bool {
	return (i == len(m.text) || m.text[i] == '\n') && next(i)
}

func (textStart) match(m *matcher, i int, next func(int) bool) bool {
	return (i == 0 || m.text[i-1] == '\n') && next(i)
}

func (n repeatNode) match(m *matcher, i int, next func(int) bool) bool {
	if one, ok := n.n.(runeNode); ok && !n.lazy {
		end := i
		for end < len(m.text) && (n.max < 0 || end-i < n.max) && m.step() && one.in(m.text[end]) {
			end++
		}
		if n.possessive {
			return end-i >= n.min && next(end)
		}
		for ; end-i >= n.min && m.step(); end-- {
			if next(end) {
				return true
			}
		}
		return false
	}
	if n.possessive {
		end := -1
		if !(repeatNode{n: n.n, min: n.min, max: n.max}).match(m, i, func(j int) bool { end = j; return true }) {
			return false
		}
		return next(end)
	}
	return n.times(m, i, 0, next)
}

func (n repeatNode) times(m *matcher, i, done int, next func(int) bool) bool {
	if !m.step() {
		return false
	}
	again := func() bool {
		return (n.max < 0 || done < n.max) && n.n.match(m, i, func(j int) bool {
			return (j > i || done < n.min) && n.times(m, j, done+1, next)
		})
	}
	if n.lazy {
		return done >= n.min && next(i) || again()
	}
	return again() || done >= n.min && next(i)
}

// find returns the ranges of the text's matches, leftmost first, none empty. It takes its steps from those
// left.
func (p *pattern) find(text []rune, steps *int) ([][2]int, error) {
	m := &matcher{text, steps}
	var found [][2]int
	for i := 0; i < len(text); {
		end := -1
		p.root.match(m, i, func(j int) bool {
			end = j
			return j > i
		})
		if *steps < 0 {
			return nil, errSteps
		}
		if end <= i {
			i++
			continue
		}
		found = append(found, [2]int{i, end})
		i = end
	}
	return found, nil
}

// compile reads a pattern. What it does not know is an error.
func compile(text string) (*pattern, error) {
	p := &patternParser{text: []rune(text)}
	n, err := p.alternatives(0)
	if err == nil && p.i < len(p.text) {
		err = p.bad("unpaired parenthesis")
	}
	if err != nil {
		return nil, err
	}
	return &pattern{n}, nil
}

type patternParser struct {
	text []rune
	i    int
	fold bool
}

func (p *patternParser) bad(what string) error {
	return fmt.Errorf("pattern: %s at character %d", what, p.i)
}

func (p *patternParser) peek(s string) bool {
	return strings.HasPrefix(string(p.text[p.i:min(len(p.text), p.i+4)]), s)
}

func (p *patternParser) more() bool { return p.i < len(p.text) }

func (p *patternParser) alternatives(depth int) (node, error) {
	if depth > maxDepth {
		return nil, p.bad("nested too deeply")
	}
	var alt altNode
	for {
		var seq seqNode
		for p.more() && !p.peek("|") && !p.peek(")") {
			n, err := p.quantified(depth)
			if err != nil {
				return nil, err
			}
			seq = append(seq, n)
		}
		alt = append(alt, seq)
		if !p.peek("|") {
			break
		}
		p.i++
	}
	if len(alt) == 1 {
		return alt[0], nil
	}
	return alt, nil
}

func (p *patternParser) quantified(depth int) (node, error) {
	n, err := p.atom(depth)
	if err != nil {
		return nil, err
	}
	for p.more() {
		r := repeatNode{n: n, max: -1}
		switch p.text[p.i] {
		case '*':
		case '+':
			r.min = 1
		case '?':
			r.max = 1
		case '{':
			if r.min, r.max, err = p.bounds(); err != nil {
				return nil, err
			}
			p.i-- // on the closing brace
		default:
			return n, nil
		}
		p.i++
		switch {
		case p.peek("?"):
			r.lazy = true
			p.i++
		case p.peek("+"):
			r.possessive = true
			p.i++
		}
		n = r
	}
	return n, nil
}

// bounds reads {n}, {n,} and {n,m}.
func (p *patternParser) bounds() (least, most int, err error) {
	start := p.i + 1
	for p.more() && p.text[p.i] != '}' {
		p.i++
	}
	if !p.more() {
		return 0, 0, p.bad("open brace")
	}
	a, b, two := strings.Cut(string(p.text[start:p.i]), ",")
	p.i++
	if least, err = strconv.Atoi(a); err != nil {
		return 0, 0, p.bad("bad count")
	}
	most = least
	if two {
		most = -1
		if b != "" {
			if most, err = strconv.Atoi(b); err != nil {
				return 0, 0, p.bad("bad count")
			}
		}
	}
	if least < 0 || least > 1000 || most > 1000 || most >= 0 && most < least {
		return 0, 0, p.bad("bad count")
	}
	return least, most, nil
}

func (p *patternParser) atom(depth int) (node, error) {
	c := p.text[p.i]
	p.i++
	switch c {
	case '(':
		return p.group(depth)
	case '[':
		in, err := p.class(depth)
		return runeNode{in}, err
	case '.':
		return runeNode{func(r rune) bool { return r != '\n' }}, nil
	case '^':
		return textStart{}, nil
	case '$':
		return lineEnd{}, nil
	case '\\':
		in, err := p.escape()
		return runeNode{in}, err
	case '*', '+', '?', '{':
		return nil, p.bad("quantifier of nothing")
	}
	return runeNode{p.only(c)}, nil
}

// only matches one character.
func (p *patternParser) only(c rune) func(rune) bool {
	if !p.fold {
		return func(r rune) bool { return r == c }
	}
	return func(r rune) bool {
		for f := unicode.SimpleFold(c); ; f = unicode.SimpleFold(f) {
			if f == r {
				return true
			}
			if f == c {
				return false
			}
		}
	}
}

func (p *patternParser) group(depth int) (node, error) {
	fold := p.fold
	defer func() { p.fold = fold }()
	look, not := false, false
	switch {
	case p.peek("?:"):
		p.i += 2
	case p.peek("?i:"):
		p.fold = true
		p.i += 3
	case p.peek("?="), p.peek("?!"):
		look, not = true, p.peek("?!")
		p.i += 2
	case p.peek("?"):
		return nil, p.bad("unknown group")
	}
	n, err := p.alternatives(depth + 1)
	if err != nil {
		return nil, err
	}
	if !p.peek(")") {
		return nil, p.bad("open group")
	}
	p.i++
	if look {
		return lookNode{n, not}, nil
	}
	return n, nil
}

// escape reads what follows a backslash: a class or a character.
func (p *patternParser) escape() (func(rune) bool, error) {
	if !p.more() {
		return nil, p.bad("nothing after a backslash")
	}
	c := p.text[p.i]
	p.i++
	switch c {
	case 's':
		return unicode.IsSpace, nil
	case 'S':
		return func(r rune) bool { return !unicode.IsSpace(r) }, nil
	case 'd':
		return unicode.IsDigit, nil
	case 'D':
		return func(r rune) bool { return !unicode.IsDigit(r) }, nil
	case 'p', 'P':
		return p.property(c == 'P')
	}
	r, err := p.char(c)
	if err != nil {
		return nil, err
	}
	return p.only(r), nil
}

// char is the character that an escape stands for.
func (p *patternParser) char(c rune) (rune, error) {
	switch c {
	case 'n':
		return '\n', nil
	case 'r':
		return '\r', nil
	case 't':
		return '\t', nil
	case 'f':
		return '\f', nil
	case 'v':
		return '\v', nil
	}
	if c < 0x80 && (unicode.IsLetter(c) || unicode.IsDigit(c)) {
		return 0, p.bad("unknown escape")
	}
	return c, nil
}

func (p *patternParser) property(not bool) (func(rune) bool, error) {
	name := ""
	if p.peek("{") {
		start := p.i + 1
		for p.more() && p.text[p.i] != '}' {
			p.i++
		}
		if !p.more() {
			return nil, p.bad("open brace")
		}
		name = string(p.text[start:p.i])
		p.i++
	} else if p.more() {
		name = string(p.text[p.i])
		p.i++
	}
	if rest, ok := strings.CutPrefix(name, "^"); ok {
		name, not = rest, !not
	}
	table := unicode.Categories[name]
	if table == nil {
		table = unicode.Scripts[name]
	}
	if table == nil {
		return nil, p.bad("unknown property")
	}
	return func(r rune) bool { return unicode.Is(table, r) != not }, nil
}

// class reads a bracket expression behind its opening bracket; classes inside it are joined to it.
func (p *patternParser) class(depth int) (func(rune) bool, error) {
	if depth > maxDepth {
		return nil, p.bad("nested too deeply")
	}
	not := false
	if p.peek("^") {
		not = true
		p.i++
	}
	var parts []func(rune) bool
	for first := true; ; first = false {
		if !p.more() {
			return nil, p.bad("open class")
		}
		if p.peek("&&") {
			return nil, p.bad("intersection")
		}
		c := p.text[p.i]
		p.i++
		switch {
		case c == ']' && !first:
			return func(r rune) bool {
				for _, in := range parts {
					if in(r) {
						return !not
					}
				}
				return not
			}, nil
		case c == '[':
			in, err := p.class(depth + 1)
			if err != nil {
				return nil, err
			}
			parts = append(parts, in)
			continue
		case c == '\\' && p.more() && strings.ContainsRune("sSdDpP", p.text[p.i]):
			in, err := p.escape()
			if err != nil {
				return nil, err
			}
			parts = append(parts, in)
			continue
		case c == '\\':
			var err error
			if c, err = p.escaped(); err != nil {
				return nil, err
			}
		}
		if p.i+1 < len(p.text) && p.text[p.i] == '-' && p.text[p.i+1] != ']' {
			p.i++
			last := p.text[p.i]
			p.i++
			if last == '\\' {
				var err error
				if last, err = p.escaped(); err != nil {
					return nil, err
				}
			}
			if last < c {
				return nil, p.bad("range out of order")
			}
			parts = append(parts, func(r rune) bool { return c <= r && r <= last })
			continue
		}
		parts = append(parts, p.only(c))
	}
}

// escaped reads the character behind a backslash in a class.
func (p *patternParser) escaped() (rune, error) {
	if !p.more() {
		return 0, p.bad("nothing after a backslash")
	}
	c := p.text[p.i]
	p.i++
	return p.char(c)
}
