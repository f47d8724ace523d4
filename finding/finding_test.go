package finding

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode"
)

func TestError(t *testing.T) {
	f := Errorf("container.size_mismatch", "model.safetensors", "tensor has %d bytes", 4).In("x").Expected(4, 8).Hinted("fetch it again")
	if got, want := f.Error(), "model.safetensors: x: tensor has 4 bytes (found 4, expected 8)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if Of(fmt.Errorf("while reading: %w", f)) != f || Of(errors.New("other")) != nil || Of(nil) != nil {
		t.Error("Of does not find the finding, or finds another")
	}
}

func FuzzEscape(f *testing.F) {
	for _, s := range []string{"plain", "ä", "\x1b[31m", "a\nb", "::error::x", "\xff\xfe", "\u202e", "\ufffd", "a\x00b", "\u2028"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := Escape(s)
		for _, r := range got {
			if !unicode.IsPrint(r) && r != unicode.ReplacementChar {
				t.Fatalf("%q becomes %q, which holds %U", s, got, r)
			}
		}
		if strings.ContainsAny(got, "\n\r\x1b") {
			t.Fatalf("%q becomes %q", s, got)
		}
	})
}
