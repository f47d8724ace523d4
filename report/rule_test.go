package report

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestCodes holds the codes that are described here and in docs/verify.md to those that the program has: a code stands
// in its source as a whole, or as area and reason apart.
func TestCodes(t *testing.T) {
	var source strings.Builder
	err := filepath.WalkDir("..", func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || filepath.Ext(p) != ".go" || strings.HasSuffix(p, "_test.go") || filepath.Base(p) == "rule.go" {
			return err
		}
		b, err := os.ReadFile(p)
		source.Write(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	docs, err := os.ReadFile("../docs/verify.md")
	if err != nil {
		t.Fatal(err)
	}
	all := source.String()
	check := func(code, where string) {
		area, reason, _ := strings.Cut(code, ".")
		if _, ok := areas[area]; !ok {
			t.Errorf("%s: nothing says what the area of %s is about", where, code)
		}
		whole := strings.Contains(all, `"`+code+`"`)
		apart := strings.Contains(all, `"`+area+`."`) && strings.Contains(all, `"`+reason+`"`)
		if !whole && !apart {
			t.Errorf("%s: the program has no code %s", where, code)
		}
	}
	for code := range rules {
		check(code, "rule.go")
	}
	n := 0
	for _, m := range regexp.MustCompile("`([a-z]+\\.[a-z_]+)`").FindAllStringSubmatch(string(docs), -1) {
		if _, ok := areas[strings.Split(m[1], ".")[0]]; ok {
			check(m[1], "docs/verify.md")
			n++
		}
	}
	if n < 40 {
		t.Errorf("docs/verify.md names %d codes", n)
	}
}
