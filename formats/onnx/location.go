package onnx

import (
	"path"
	"strings"
	"unicode/utf8"
)

// A location is the file name in external_data, which comes from the file and is not trusted.
type location struct {
	clean string // relative, with slashes, without dot segments
	odd   bool   // legal, but read differently by different programs
}

// readLocation checks a location by its text alone. The reason is "" for one that may be opened below
// the model's folder.
func readLocation(s string) (l location, reason, why string) {
	switch {
	case s == "":
		return l, "no_location", "empty"
	case !utf8.ValidString(s):
		return l, "bad_utf8", "not UTF-8"
	case strings.ContainsRune(s, 0):
		return l, "path_escape", "with a NUL byte"
	case strings.Contains(s, "_ORT_MEM_ADDR_"):
		return l, "path_escape", "ONNX Runtime's marker for memory"
	case strings.Contains(s, `\`):
		return l, "path_escape", "with a backslash"
	case strings.HasPrefix(s, "/"):
		return l, "path_escape", "absolute"
	case len(s) >= 2 && s[1] == ':' && isLetter(s[0]):
		return l, "path_escape", "with a drive"
	case strings.Contains(s, "://") || hasPrefixFold(s, "file:"):
		return l, "path_escape", "a URL"
	case strings.HasSuffix(s, "/"):
		return l, "path_escape", "a folder"
	}
	depth := 0
	for e := range strings.SplitSeq(s, "/") {
		switch {
		case e == "" || e == ".":
			l.odd = true
		case e == "..":
			l.odd = true
			if depth--; depth < 0 {
				return l, "path_escape", "outside the model's folder"
			}
		case reserved(e):
			return l, "path_escape", "a device name on Windows"
		default:
			depth++
		}
	}
	l.odd = l.odd || strings.Contains(s, ":")
	if l.clean = path.Clean(s); l.clean == "." {
		return l, "not_regular_file", "the folder itself"
	}
	return l, "", ""
}

// reserved reports whether Windows takes a file name for a device, whatever follows the first dot.
func reserved(name string) bool {
	base, _, _ := strings.Cut(name, ".")
	base, _, _ = strings.Cut(base, ":")
	base = strings.ToUpper(strings.TrimRight(base, " "))
	switch base {
	case "CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$":
		return true
	}
	if p, ok := strings.CutPrefix(base, "COM"); ok || strings.HasPrefix(base, "LPT") {
		if !ok {
			p = base[3:]
		}
		return len(p) == 1 && p[0] >= '1' && p[0] <= '9' || p == "¹" || p == "²" || p == "³"
	}
	return false
}

func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }

func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}
