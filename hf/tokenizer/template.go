package tokenizer

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/hf/config"
)

// maxTemplates bounds the number of files of additional chat templates.
const maxTemplates = 256

// chatTemplates finds the chat template: a text, a list of objects with name and template, or nil.
func (r *reader) chatTemplates(tc map[string]any) (any, error) {
	v, ok := tc["chat_template"]
	if !ok {
		var err error
		if v, err = r.templateFiles(); err != nil {
			return nil, err
		}
	}
	switch v.(type) {
	case nil, string, []any:
		return v, nil
	}
	r.warn("tokenizer_config.json", "tokenizer.bad_chat_template", "the chat template is neither a text nor a list")
	return nil, nil
}

func (r *reader) templateFiles() (any, error) {
	text, err := r.templateFile("chat_template.jinja")
	if errors.Is(err, fs.ErrNotExist) {
		var c map[string]any
		_, err := config.ReadJSON(r.path("chat_template.json"), &c)
		return c["chat_template"], err
	}
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(r.path("additional_chat_templates"))
	if errors.Is(err, fs.ErrNotExist) {
		return text, nil
	}
	if err != nil {
		return nil, err
	}
	list := []any{map[string]any{"name": "default", "template": text}}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".jinja")
		if !ok || e.IsDir() {
			continue
		}
		if len(list) > maxTemplates {
			return nil, finding.Errorf("tokenizer.bad_chat_template", r.path("additional_chat_templates"), "there are too many chat templates")
		}
		more, err := r.templateFile("additional_chat_templates/" + e.Name())
		if err != nil {
			return nil, err
		}
		list = append(list, map[string]any{"name": name, "template": more})
	}
	if len(list) == 1 {
		return text, nil
	}
	return list, nil
}

// templateFile reads a text file, with single line feeds.
func (r *reader) templateFile(name string) (string, error) {
	data, err := config.ReadFile(r.path(name))
	return strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(string(data)), err
}

// writeTemplates writes the named templates in their order, the list of their names, and the default one.
// The reference takes the names from a set, so that with two or more their order there is by chance.
func (r *reader) writeTemplates(v any) {
	if s, ok := v.(string); ok {
		r.set("chat_template", gguf.Of(s))
		return
	}
	list, _ := v.([]any)
	var names []string
	normal := ""
	for _, x := range list {
		m, _ := x.(map[string]any)
		name, _ := m["name"].(string)
		text, ok := m["template"].(string)
		name = strings.Map(nameRune, name)
		switch {
		case name == "" || !ok:
		case name == "default":
			normal = text
		default:
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
			r.set("chat_template."+name, gguf.Of(text))
		}
	}
	r.set("chat_templates", gguf.ArrayOf(names))
	r.set("chat_template", gguf.Of(normal))
}

func nameRune(c rune) rune {
	if c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' {
		return c
	}
	return '_'
}
