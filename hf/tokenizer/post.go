package tokenizer

import (
	"slices"

	"github.com/loratool/loratool/hf/config"
)

// A templateReader finds out from a tokenizer's post-processor which special tokens are added to a text.
// It works on a copy of tokenizer_config.json, whose roles it completes.
type templateReader struct {
	s                  *specials
	tc                 map[string]any
	bos, cls, eos, sep any
}

// read reads tokenizer.json's post_processor. Special tokens are compared as tokenizer_config.json has them,
// so that an object never equals a text: the reference's flags depend on that.
func (t *templateReader) read(post any) {
	known := len(t.tc) > 0
	t.bos, t.cls, t.eos, t.sep = t.tc["bos_token"], t.tc["cls_token"], t.tc["eos_token"], t.tc["sep_token"]
	if !config.Truthy(t.bos) && config.Truthy(t.cls) && known {
		t.bos = t.cls
		t.tc["bos_token"] = t.cls
	}
	if !config.Truthy(t.eos) && config.Truthy(t.sep) && known {
		t.eos = t.sep
		t.tc["eos_token"] = t.sep
	}
	p, _ := post.(map[string]any)
	if p == nil {
		return
	}
	list, ok := p["processors"].([]any)
	if !ok {
		list = []any{p}
	}
	for _, x := range list {
		p, _ := x.(map[string]any)
		switch p["type"] {
		case "RobertaProcessing":
			t.roberta(p)
		case "TemplateProcessing":
			t.template(p)
		}
	}
}

func (t *templateReader) roberta(p map[string]any) {
	for _, role := range []string{"bos", "eos", "sep"} {
		t.s.flag(role, true)
	}
	first := func(key string, other any) any {
		if list, ok := p[key].([]any); ok && len(list) > 0 {
			return list[0]
		}
		return other
	}
	if known := len(t.tc) > 0; known && !config.Truthy(t.cls) {
		t.cls = first("cls", t.bos)
		t.tc["cls_token"] = t.cls
	}
	if known := len(t.tc) > 0; known && !config.Truthy(t.sep) {
		t.sep = first("sep", t.eos)
		t.tc["sep_token"] = t.sep
	}
}

// element is the text of a special token in a template, or "".
func element(x any) string {
	m, _ := x.(map[string]any)
	m, _ = m["SpecialToken"].(map[string]any)
	s, _ := m["id"].(string)
	return s
}

// sequence is the name of a text in a template, or "".
func sequence(x any) string {
	m, _ := x.(map[string]any)
	m, _ = m["Sequence"].(map[string]any)
	s, _ := m["id"].(string)
	return s
}

func is(v any, text string) bool { s, ok := v.(string); return ok && s == text }

func (t *templateReader) template(p map[string]any) {
	known := len(t.tc) > 0
	first, last := "", ""
	if single, _ := p["single"].([]any); len(single) > 1 {
		if first = element(single[0]); first != "" {
			switch {
			case !known:
				t.bos = first
			case is(t.bos, first) || is(t.cls, first):
			case !config.Truthy(t.bos):
				t.bos = first
				t.tc["bos_token"] = first
			case !config.Truthy(t.cls):
				t.cls = first
				t.tc["cls_token"] = first
			}
			t.s.flag("bos", is(t.bos, first) || is(t.cls, first))
		}
		if last = element(single[len(single)-1]); last != "" {
			switch {
			case !known:
				t.eos = last
			case !is(t.eos, last):
				t.replaceEOS(last)
			}
			t.s.flag("eos", true)
		}
	}
	pair, _ := p["pair"].([]any)
	if len(pair) > 0 && first != "" && element(pair[0]) == first {
		pair = pair[1:]
	}
	if len(pair) > 0 && last != "" && element(pair[len(pair)-1]) == last {
		pair = pair[:len(pair)-1]
	}
	if len(pair) < 3 || sequence(pair[0]) != "A" || sequence(pair[len(pair)-1]) != "B" {
		return
	}
	between := pair[1 : len(pair)-1]
	separates := func(x any) bool {
		s := element(x)
		return s != "" && (is(t.sep, s) || is(t.eos, s))
	}
	add := separates(between[0]) && last == "" || len(between) == 2 && separates(between[1])
	t.s.flag("sep", add)
	if add && !config.Truthy(t.sep) && known {
		t.tc["sep_token"] = t.eos
	}
}

// replaceEOS makes the token that a template ends with the end of sequence; the one that was becomes the
// end of turn, or of message.
func (t *templateReader) replaceEOS(last string) {
	for _, role := range []string{"eot", "eom"} {
		if !slices.Contains(t.s.roles, role) {
			t.s.roles = append(t.s.roles, role)
			t.tc[role+"_token"] = t.eos
			break
		}
	}
	t.eos = last
	t.tc["eos_token"] = last
}
