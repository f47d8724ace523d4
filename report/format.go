package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Endings lists the file name endings that reports can be written by.
const Endings = ".json, .xml (JUnit), .sarif or .html"

// A Format is one of the forms of a report.
type Format string

// The formats of report files.
const (
	JSON  Format = "json"
	JUnit Format = "junit"
	SARIF Format = "sarif"
	HTML  Format = "html"
)

// ByEnding is the format that a file name asks for.
func ByEnding(name string) (Format, bool) {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".json":
		return JSON, true
	case ".xml":
		return JUnit, true
	case ".sarif":
		return SARIF, true
	case ".html":
		return HTML, true
	}
	return "", false
}

// Render returns the bytes of a report file.
func Render(f Format, d *Document) ([]byte, error) {
	var b bytes.Buffer
	var err error
	switch f {
	case JSON:
		err = WriteJSON(&b, d.JSON)
	case JUnit:
		err = writeJUnit(&b, d.escaped())
	case SARIF:
		err = writeSARIF(&b, d)
	case HTML:
		err = writeHTML(&b, d.escaped())
	default:
		err = fmt.Errorf("there is no report format %q", f)
	}
	return b.Bytes(), err
}

// WriteJSON writes v as indented JSON. Characters that do not print are escaped, also those that JSON allows.
func WriteJSON(w io.Writer, v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return err
	}
	_, err := w.Write(escapeJSON(b.Bytes()))
	return err
}

// escapeJSON escapes what does not print. Outside of strings there are only line feeds, which stay.
func escapeJSON(b []byte) []byte {
	hidden := func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }
	if bytes.IndexFunc(b, hidden) < 0 {
		return b
	}
	out := make([]byte, 0, len(b)+64)
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		switch {
		case !hidden(r):
			out = append(out, b[:n]...)
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, hi, lo)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		b = b[n:]
	}
	return out
}
