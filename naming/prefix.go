package naming

import "strings"

// drifting are the leading components that come and go between versions of a model, its wrappers and
// the files they write, without changing which module is meant.
var drifting = map[string]bool{
	"base_model": true, "model": true, "module": true, "_orig_mod": true, "backbone": true,
	"language_model": true, "text_model": true, "transformer": true, "llm": true, "unet": true,
	"bert": true, "roberta": true, "distilbert": true, "gpt_neox": true,
}

// split cuts name into its drifting leading components (with the dot that follows them) and the rest,
// which keeps at least keep components.
func split(name string, keep int) (prefix, tail string) {
	cut, dots := 0, strings.Count(name, ".")
	for dots >= keep {
		n := strings.IndexByte(name[cut:], '.')
		if !drifting[name[cut:cut+n]] {
			break
		}
		cut += n + 1
		dots--
	}
	return name[:cut], name[cut:]
}

// first is the leading component of a dotted name.
func first(name string) string {
	c, _, _ := strings.Cut(name, ".")
	return c
}

// leaf cuts a dotted name before its last component.
func leaf(name string) (parent, last string) {
	i := strings.LastIndexByte(name, '.')
	if i < 0 {
		return "", name
	}
	return name[:i], name[i+1:]
}

func join(module, param string) string {
	switch {
	case module == "":
		return param
	case param == "":
		return module
	}
	return module + "." + param
}

// number reads a component made of decimal digits. It must be written as Go prints it and be small
// enough for a layer or an expert.
func number(s string) (int64, bool) {
	if s == "" || len(s) > 6 || len(s) > 1 && s[0] == '0' {
		return 0, false
	}
	n := int64(0)
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = 10*n + int64(s[i]-'0')
	}
	return n, true
}
