// Package dialect knows every ecosystem whose adapters this program reads or writes.
package dialect

import (
	"os"
	"slices"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/evidence"
	"github.com/loratool/loratool/adapter/geometry"
	"github.com/loratool/loratool/adapter/peft"
	"github.com/loratool/loratool/finding"
)

// Options are what the dialects' files cannot say for themselves.
type Options struct {
	PEFT peft.Options
	// Base is the path of the base model, as geometry.Read takes it, for the dialects that store rows in an
	// order of their own; "" if it is not at hand.
	Base string
	// AllowUnmatched leaves out, with a warning, modules that no table knows.
	AllowUnmatched bool
}

// geometry reads the geometry of the base.
func (o Options) geometry(path string) (*geometry.Geometry, error) {
	if o.Base == "" {
		return nil, needsBase(path)
	}
	return geometry.Read(o.Base)
}

// A Dialect is one ecosystem's form of an adapter.
type Dialect struct {
	Name string
	// Title is what messages call such an adapter: "a PEFT folder".
	Title string
	// Detect says what at a path speaks for the dialect, "" if nothing does. Nil where the dialect's files
	// look like those of another one, which then reads them.
	Detect func(s *evidence.Subject) string
	// Open decodes an adapter. Nil where the dialect is only written.
	Open func(path string, opt Options) (*adapter.Adapter, error)
	// Encode lays an adapter out in the dialect. Nil where it is only read.
	Encode func(a *adapter.Adapter, t Target) (*Output, error)
}

// All lists the dialects, in the order in which they are looked for.
func All() []Dialect { return table() }

// A claim is a dialect and what speaks for it.
type claim struct {
	Dialect
	evidence string
}

// claims asks every dialect. Where none has evidence, a PEFT folder or file is known by its file names
// alone, so that its decoder can say what is wrong with it.
func claims(path string) []claim {
	var out []claim
	s := evidence.Look(path)
	all := table()
	for _, d := range all {
		if d.Detect == nil || d.Open == nil {
			continue
		}
		if e := d.Detect(s); e != "" {
			out = append(out, claim{d, e})
		}
	}
	if len(out) == 0 && peft.Detect(path) {
		i := slices.IndexFunc(all, func(d Dialect) bool { return d.Name == "peft" })
		out = append(out, claim{all[i], "its file names"})
	}
	return out
}

// Detect names the dialect of a path, or "". Where the evidence is for several, it is the first of them,
// and Open says so.
func Detect(path string) string {
	if c := claims(path); len(c) > 0 {
		return c[0].Name
	}
	return ""
}

// Open detects the dialect of a path and decodes it. Factors are read when they are loaded; Close the
// adapter after that.
func Open(path string, opt Options) (*adapter.Adapter, error) {
	c := claims(path)
	switch len(c) {
	case 1:
		return c[0].Open(path, opt)
	case 0:
		if _, err := os.Stat(path); err != nil {
			return nil, finding.Errorf("files.missing", path, "there is no such adapter")
		}
		return nil, finding.Errorf("adapter.unknown_dialect", path, "not an adapter this program reads").
			Expected("no evidence for any dialect", titles()).
			Hinted("a .safetensors file alone needs its adapter_config.json beside it, where its dialect has one: name the folder")
	}
	var found []string
	for _, x := range c {
		found = append(found, x.Name+": "+x.evidence)
	}
	return nil, finding.Errorf("adapter.ambiguous_dialect", path, "the files speak for several dialects").
		Expected(strings.Join(found, "; "), "evidence for one of them").
		Hinted("split the file, or remove the tensors that do not belong to the adapter")
}

func titles() string {
	var out []string
	for _, d := range table() {
		if d.Open != nil {
			out = append(out, d.Title)
		}
	}
	return "one of: " + strings.Join(out, ", ")
}
