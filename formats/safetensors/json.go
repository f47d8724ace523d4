package safetensors

import (
	"strconv"
	"unicode/utf8"

	"github.com/loratool/loratool/finding"
)

// maxDepth is how deep JSON may nest.
const maxDepth = 128

// A scanner reads strict JSON (RFC 8259, no duplicates where the caller checks, no lone surrogates)
// from text that is valid UTF-8. Strings without escapes are sections of the text.
type scanner struct {
	file  string // for messages
	text  string
	pos   int
	depth int
}

// fail makes an error finding that says where in the text it is.
func (s *scanner) fail(reason, format string, a ...any) *finding.Finding {
	f := finding.Errorf("container."+reason, s.file, format, a...)
	f.Message += " at byte " + strconv.Itoa(s.pos) + " of the JSON text"
	return f
}

func (s *scanner) unexpected(want string) *finding.Finding {
	if s.pos >= len(s.text) {
		return s.fail("bad_json", "the JSON text ends, expected %s,", want)
	}
	r, _ := utf8.DecodeRuneInString(s.text[s.pos:])
	return s.fail("bad_json", "%q is not %s,", r, want)
}

// peek skips white space and returns the next byte, 0 at the end.
func (s *scanner) peek() byte {
	for ; s.pos < len(s.text); s.pos++ {
		switch c := s.text[s.pos]; c {
		case ' ', '\t', '\n', '\r':
		default:
			return c
		}
	}
	return 0
}

// next consumes c if it is the next byte.
func (s *scanner) next(c byte) bool {
	if s.peek() != c || s.pos >= len(s.text) {
		return false
	}
	s.pos++
	return true
}

func (s *scanner) enter() error {
	if s.depth++; s.depth > maxDepth {
		return s.fail("bad_json", "JSON nests deeper than %d levels", maxDepth)
	}
	return nil
}

// object calls member for every key; member consumes the value.
func (s *scanner) object(member func(key string) error) error {
	if !s.next('{') {
		return s.unexpected("the '{' of an object")
	}
	if err := s.enter(); err != nil {
		return err
	}
	for first := true; !s.next('}'); first = false {
		if !first && !s.next(',') {
			return s.unexpected("a ',' or '}'")
		}
		if s.peek() != '"' {
			return s.unexpected("a key in double quotes")
		}
		key, err := s.str()
		if err != nil {
			return err
		}
		if !s.next(':') {
			return s.unexpected("a ':'")
		}
		if err := member(key); err != nil {
			return err
		}
	}
	s.depth--
	return nil
}

// array calls element for every element; element consumes it.
func (s *scanner) array(element func() error) error {
	if !s.next('[') {
		return s.unexpected("the '[' of an array")
	}
	if err := s.enter(); err != nil {
		return err
	}
	for first := true; !s.next(']'); first = false {
		if !first && !s.next(',') {
			return s.unexpected("a ',' or ']'")
		}
		if s.peek() == ']' {
			return s.unexpected("a value")
		}
		if err := element(); err != nil {
			return err
		}
	}
	s.depth--
	return nil
}

// str reads a string.
func (s *scanner) str() (string, error) {
	if !s.next('"') {
		return "", s.unexpected("a string")
	}
	start := s.pos
	for ; s.pos < len(s.text); s.pos++ {
		switch c := s.text[s.pos]; {
		case c == '"':
			s.pos++
			return s.text[start : s.pos-1], nil
		case c == '\\':
			return s.escaped(start)
		case c < 0x20:
			return "", s.unexpected("allowed in a string without an escape")
		}
	}
	return "", s.unexpected("a closing '\"'")
}

// escaped reads the rest of a string from its first backslash on.
func (s *scanner) escaped(start int) (string, error) {
	out := append(make([]byte, 0, s.pos-start+16), s.text[start:s.pos]...)
	for s.pos < len(s.text) {
		c := s.text[s.pos]
		switch {
		case c == '"':
			s.pos++
			return string(out), nil
		case c < 0x20:
			return "", s.unexpected("allowed in a string without an escape")
		case c != '\\':
			out = append(out, c)
			s.pos++
			continue
		}
		if s.pos++; s.pos >= len(s.text) {
			break
		}
		c = s.text[s.pos]
		s.pos++
		switch c {
		case '"', '\\', '/':
			out = append(out, c)
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			r, err := s.unicode()
			if err != nil {
				return "", err
			}
			out = utf8.AppendRune(out, r)
		default:
			s.pos--
			return "", s.unexpected("an escape that JSON knows")
		}
	}
	return "", s.unexpected("a closing '\"'")
}

// unicode reads the digits of a \u escape, and the second half of a surrogate pair.
func (s *scanner) unicode() (rune, error) {
	r, err := s.hex()
	switch {
	case err != nil || r < 0xD800 || r > 0xDFFF:
		return r, err
	case r < 0xDC00 && s.pos+1 < len(s.text) && s.text[s.pos:s.pos+2] == `\u`:
		s.pos += 2
		low, err := s.hex()
		if err != nil {
			return 0, err
		}
		if low >= 0xDC00 && low <= 0xDFFF {
			return (r-0xD800)<<10 + (low - 0xDC00) + 0x10000, nil
		}
	}
	return 0, s.fail("bad_json", "half of a surrogate pair")
}

func (s *scanner) hex() (rune, error) {
	if s.pos+4 > len(s.text) {
		s.pos = len(s.text)
		return 0, s.unexpected("four hexadecimal digits")
	}
	var r rune
	for range 4 {
		c := s.text[s.pos]
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, s.unexpected("a hexadecimal digit")
		}
		r = r<<4 | rune(c)
		s.pos++
	}
	return r, nil
}

// uint reads an unsigned integer of 64 bits written as plain digits. Where ok is false, something
// else stands there and nothing is consumed.
func (s *scanner) uint() (n uint64, ok bool) {
	s.peek()
	end := s.pos
	for end < len(s.text) && '0' <= s.text[end] && s.text[end] <= '9' {
		end++
	}
	if end < len(s.text) {
		switch c := s.text[end]; c {
		case ' ', '\t', '\n', '\r', ',', ']', '}':
		default:
			return 0, false
		}
	}
	word := s.text[s.pos:end]
	if len(word) > 1 && word[0] == '0' {
		return 0, false
	}
	n, err := strconv.ParseUint(word, 10, 64)
	if err != nil {
		return 0, false
	}
	s.pos = end
	return n, true
}

// literal consumes a word such as null.
func (s *scanner) literal(word string) bool {
	s.peek()
	if len(s.text)-s.pos < len(word) || s.text[s.pos:s.pos+len(word)] != word {
		return false
	}
	s.pos += len(word)
	return true
}

// number consumes a number of any kind and returns its text.
func (s *scanner) number() (string, error) {
	s.peek()
	start := s.pos
	digits := func() bool {
		from := s.pos
		for s.pos < len(s.text) && '0' <= s.text[s.pos] && s.text[s.pos] <= '9' {
			s.pos++
		}
		return s.pos > from
	}
	one := func(set string) bool {
		for i := range len(set) {
			if s.pos < len(s.text) && s.text[s.pos] == set[i] {
				s.pos++
				return true
			}
		}
		return false
	}
	one("-")
	if !one("0") && !digits() {
		return "", s.unexpected("a value")
	}
	if one(".") && !digits() {
		return "", s.unexpected("a digit")
	}
	if one("eE") {
		one("+-")
		if !digits() {
			return "", s.unexpected("a digit")
		}
	}
	return s.text[start:s.pos], nil
}

// skip consumes a value of any kind.
func (s *scanner) skip() error {
	switch s.peek() {
	case '{':
		return s.object(func(string) error { return s.skip() })
	case '[':
		return s.array(s.skip)
	case '"':
		_, err := s.str()
		return err
	}
	if s.literal("null") || s.literal("true") || s.literal("false") {
		return nil
	}
	_, err := s.number()
	return err
}

// end makes sure that nothing but white space is left.
func (s *scanner) end() error {
	if s.peek(); s.pos < len(s.text) {
		return s.unexpected("the end of the JSON text")
	}
	return nil
}

// appendString writes a string as the reference's JSON writer does: only what must be escaped is,
// everything else stays UTF-8.
func appendString(b []byte, s string) []byte {
	const digits = "0123456789abcdef"
	b = append(b, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c >= 0x20:
			b = append(b, c)
		case c == '\b':
			b = append(b, `\b`...)
		case c == '\f':
			b = append(b, `\f`...)
		case c == '\n':
			b = append(b, `\n`...)
		case c == '\r':
			b = append(b, `\r`...)
		case c == '\t':
			b = append(b, `\t`...)
		default:
			b = append(b, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		}
	}
	return append(b, '"')
}

// appendASCII writes a string as Python's json.dumps does: everything outside ASCII is escaped, as
// surrogate pairs where necessary. DEL stays.
func appendASCII(b []byte, s string) []byte {
	const digits = "0123456789abcdef"
	unit := func(u uint32) {
		b = append(b, '\\', 'u', digits[u>>12&15], digits[u>>8&15], digits[u>>4&15], digits[u&15])
	}
	quoted := appendString(nil, s)
	for _, r := range string(quoted) {
		switch {
		case r < 0x80:
			b = append(b, byte(r))
		case r < 0x10000:
			unit(uint32(r))
		default:
			r -= 0x10000
			unit(0xD800 + uint32(r>>10))
			unit(0xDC00 + uint32(r&0x3FF))
		}
	}
	return b
}
