// Package finding is how every part of the program says that something is wrong or odd: a stable
// code, a level, and what was found where. A Finding of level Error is also the Go error that
// readers return, so a failed open and a failed check are reported alike.
package finding

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// A Level is how bad a finding is.
type Level string

// The levels.
const (
	Error   Level = "error"
	Warning Level = "warning"
	Info    Level = "info"
)

// A Finding is one result of a check. Code is dotted, area.reason: "container.bad_version",
// "match.unmatched_target". Names that come from files are stored as they are and escaped when printed.
type Finding struct {
	Code    string `json:"code"`
	Level   Level  `json:"level"`
	Message string `json:"message"`
	File    string `json:"file,omitempty"`
	Tensor  string `json:"tensor,omitempty"`
	Module  string `json:"module,omitempty"`
	Got     string `json:"got,omitempty"`
	Want    string `json:"want,omitempty"`
	Hint    string `json:"hint,omitempty"`
}

// Errorf makes a finding of level Error about a file.
func Errorf(code, file, format string, a ...any) *Finding {
	return &Finding{Code: code, Level: Error, File: file, Message: fmt.Sprintf(format, a...)}
}

// Warnf makes a finding of level Warning about a file.
func Warnf(code, file, format string, a ...any) *Finding {
	return &Finding{Code: code, Level: Warning, File: file, Message: fmt.Sprintf(format, a...)}
}

// In names the tensor a finding is about.
func (f *Finding) In(tensor string) *Finding { f.Tensor = tensor; return f }

// Expected records what was found and what was expected, which the text then carries.
func (f *Finding) Expected(got, want any) *Finding {
	f.Got, f.Want = fmt.Sprint(got), fmt.Sprint(want)
	return f
}

// Hinted adds what to do about it.
func (f *Finding) Hinted(hint string) *Finding { f.Hint = hint; return f }

// Error prints the finding as one line: file: tensor: message (found …, expected …).
func (f *Finding) Error() string {
	var b strings.Builder
	for _, s := range []string{f.File, f.Tensor} {
		if s != "" {
			b.WriteString(Escape(s))
			b.WriteString(": ")
		}
	}
	b.WriteString(Escape(f.Message))
	switch {
	case f.Got != "" && f.Want != "":
		fmt.Fprintf(&b, " (found %s, expected %s)", Escape(f.Got), Escape(f.Want))
	case f.Got != "":
		fmt.Fprintf(&b, " (found %s)", Escape(f.Got))
	case f.Want != "":
		fmt.Fprintf(&b, " (expected %s)", Escape(f.Want))
	}
	return b.String()
}

// Of returns the finding an error carries, or nil.
func Of(err error) *Finding {
	var f *Finding
	if errors.As(err, &f) {
		return f
	}
	return nil
}

// Escape makes text from a file safe to print on one line: control characters, invalid UTF-8 and
// invisible formatting characters become escapes; everything else stays.
func Escape(s string) string {
	clean := true
	for _, r := range s {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == unicode.ReplacementChar && !strings.HasPrefix(s[i:], "\uFFFD"):
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r < 0x100:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}
