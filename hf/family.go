package hf

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
)

// A family is how the key-values of an architecture become a config.json.
type family struct {
	class, modelType string
	keys             []familyKey
	fixed            []fixedKey
}

type familyKey struct {
	gguf   string // without the architecture's prefix
	config []string
}

type fixedKey struct {
	config string
	value  json.RawMessage
}

//go:embed families.txt
var familySource string

// families is the embedded table. A malformed one is a defect of the program and panics at its first use,
// which the tests of this package are.
var families = sync.OnceValue(func() map[string]*family {
	all := map[string]*family{}
	var f *family
	for n, line := range strings.Split(familySource, "\n") {
		w := strings.Fields(line)
		if len(w) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		key, value, fixed := strings.Cut(line, " = ")
		switch {
		case w[0] == "family" && len(w) == 4:
			f = &family{class: w[2], modelType: w[3]}
			all[w[1]] = f
		case w[0] == "use" && len(w) == 2 && all[w[1]] != nil:
			f.keys = append(f.keys, all[w[1]].keys...)
			f.fixed = append(f.fixed, all[w[1]].fixed...)
		case fixed && json.Valid([]byte(value)):
			f.fixed = append(f.fixed, fixedKey{key, json.RawMessage(value)})
		case !fixed:
			f.set(w[0], w[1:])
		default:
			panic(fmt.Sprintf("families.txt:%d: %q", n+1, line))
		}
	}
	return all
})

func (f *family) set(gguf string, config []string) {
	for i := range f.keys {
		if f.keys[i].gguf == gguf {
			f.keys[i].config = config
			return
		}
	}
	f.keys = append(f.keys, familyKey{gguf, config})
}
