package tokenizer

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/hf/config"
)

//go:embed hashes.txt
var hashesText string

//go:embed structures.txt
var structuresText string

//go:embed names.txt
var namesText string

// checkText is what the reference encodes to recognise a tokenizer.
const checkText = "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫\ufe0f (multiple " +
	"emojis concatenated) ✅ 🦙🦙 3 33 333 3333 33333 333333 3333333 " +
	"33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ " +
	"------======= нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? " +
	"I've been 'told he's there, 'RE you sure? 'M not sure I'll make " +
	"it, 'D you like some tea? We'Ve a'lL"

func dataLines(text string) []string {
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSuffix(line, "\n"); line != "" && !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	return lines
}

var hashes = sync.OnceValue(func() map[string]string {
	m := map[string]string{}
	for _, line := range dataLines(hashesText) {
		hash, name, _ := strings.Cut(line, " ")
		m[hash] = name
	}
	return m
})

// A structure is a pre-tokenizer as tokenizer.json has it.
type structure struct{ name, parts string }

var structures = sync.OnceValue(func() []structure {
	var all []structure
	for _, line := range dataLines(structuresText) {
		name, parts, _ := strings.Cut(line, "\t")
		all = append(all, structure{name, parts})
	}
	return all
})

// structureName is the name of a structure of the table, "" for another.
func structureName(parts string) string {
	for _, s := range structures() {
		if s.parts == parts {
			return s.name
		}
	}
	return ""
}

func knownParts() []string {
	var all []string
	for _, s := range structures() {
		all = append(all, s.parts)
	}
	return all
}

// preTokenizer finds the name of a tokenizer's pre-tokenizer: the one asked for, else by the ids of the
// check text, else by the structure of tokenizer.json.
func (r *reader) preTokenizer(f *fastFile) (name, rule string, err error) {
	if want := r.opt.Pre; want != "" {
		names := dataLines(namesText)
		if !slices.Contains(names, want) {
			return "", "", finding.Errorf("tokenizer.unknown_pre", f.file, "llama.cpp knows no pre-tokenizer of the name %q", want).
				Hinted("did you mean " + config.Nearest(want, names) + "?")
		}
		return want, "option", nil
	}
	if hash, err := checkHash(f); err == nil {
		if name := hashes()[hash]; name != "" {
			return name, "hash", nil
		}
	}
	if name := r.byStructure(f); name != "" {
		return name, "structure", nil
	}
	parts := partsText(f.PreTokenizer)
	best := structureName(config.Nearest(parts, knownParts()))
	return "", "", finding.Errorf("tokenizer.unknown_pre", f.file, "the pre-tokenizer is none of those llama.cpp has a name for").
		Expected(shown(parts), "a known structure").
		Hinted("the nearest is " + best + "; if it splits text in the same way, give --pre " + best)
}

// checkHash is the SHA-256 of the ids of the check text, written as a Python list.
func checkHash(f *fastFile) (string, error) {
	e, err := newEncoder(f)
	if err != nil {
		return "", err
	}
	ids, err := e.encode(checkText)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(strings.ReplaceAll(fmt.Sprint(ids), " ", ", ")))
	return hex.EncodeToString(sum[:]), nil
}

// byStructure names the pre-tokenizer by the steps of tokenizer.json. Names whose rules for splitting are
// the same go by what else the tokenizer has, then by the architecture whose models have it.
func (r *reader) byStructure(f *fastFile) string {
	parts := partsText(f.PreTokenizer)
	name := structureName(parts)
	composed := hasType(f.Normalizer, "NFC", 0)
	switch name {
	case "gpt-2":
		switch {
		case hasType(f.PostProcessor, "RobertaProcessing", 0):
			return "roberta-bpe"
		case composed:
			return "olmo"
		case r.opt.Arch == "phi2":
			return "phi-2"
		}
	case "llama-bpe":
		if !f.Model.IgnoreMerges && !startsSpecial(f.PostProcessor, 0) {
			if r.opt.Arch == "glm4" || r.opt.Arch == "chatglm" {
				return "glm4"
			}
			return "dbrx"
		}
	case "qwen2":
		if r.opt.Arch == "stablelm" {
			return "stablelm2"
		}
	case "starcoder":
		if composed {
			return "command-r"
		}
	}
	return name
}

// hasType reports whether an object or one of the list it holds is of a type.
func hasType(v any, kind string, depth int) bool {
	m, _ := v.(map[string]any)
	if m["type"] == kind {
		return true
	}
	for _, key := range []string{"normalizers", "processors"} {
		list, _ := m[key].([]any)
		for _, x := range list {
			if depth < maxDepth && hasType(x, kind, depth+1) {
				return true
			}
		}
	}
	return false
}

// startsSpecial reports whether the post-processor puts a special token before the text.
func startsSpecial(v any, depth int) bool {
	m, _ := v.(map[string]any)
	if single, _ := m["single"].([]any); len(single) > 1 && element(single[0]) != "" {
		return true
	}
	list, _ := m["processors"].([]any)
	for _, x := range list {
		if depth < maxDepth && startsSpecial(x, depth+1) {
			return true
		}
	}
	return false
}

// partsText writes the steps of a pre-tokenizer in the form of the table, between tabs.
func partsText(v any) string { return strings.Join(partsOf(v, nil, 0), "\t") }

func partsOf(v any, parts []string, depth int) []string {
	m, _ := v.(map[string]any)
	kind, _ := m["type"].(string)
	switch kind {
	case "Sequence":
		list, _ := m["pretokenizers"].([]any)
		for _, x := range list {
			if depth < maxDepth && len(parts) < 64 {
				parts = partsOf(x, parts, depth+1)
			}
		}
		return parts
	case "ByteLevel":
		if m["use_regex"] != false {
			kind += "(regex)"
		}
	case "Digits":
		if m["individual_digits"] == true {
			kind += "(each)"
		}
	case "Punctuation":
		behavior, _ := m["behavior"].(string)
		kind += "(" + behavior + ")"
	case "Split":
		kind += "(" + splitText(m) + ")"
	case "":
		kind = "none"
	}
	return append(parts, kind)
}

// splitText is the pattern of a Split step. The long lists of letters and of punctuation that DeepSeek's
// tokenizers have are known by how they begin.
func splitText(m map[string]any) string {
	p, _ := m["pattern"].(map[string]any)
	text, ok := p["Regex"].(string)
	if !ok {
		text, _ = p["String"].(string)
		return "text " + text
	}
	if b, _ := m["behavior"].(string); b != "Isolated" || m["invert"] == true {
		return b + " " + text
	}
	for _, begin := range []string{`\s?[A-Za-z`, `\s?[!-/:-~`} {
		if strings.HasPrefix(text, begin) {
			return begin + "…]+"
		}
	}
	return strings.NewReplacer("\r", `\r`, "\n", `\n`, "\t", `\t`, `\"`, `"`).Replace(text)
}

func shown(parts string) string {
	r := []rune(strings.ReplaceAll(parts, "\t", " "))
	if len(r) > 120 {
		return string(r[:120]) + "…"
	}
	return string(r)
}
