package tokenizer

import (
	"bufio"
	"bytes"
	"errors"
	"io/fs"
	"slices"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/hf/config"
)

// roles are the special tokens that are looked for.
var roles = []string{"bos", "eos", "unk", "sep", "pad", "cls", "mask"}

// roleKeys are the keys of the special tokens that GGUF has one for, "seperator" as the format spells it.
var roleKeys = map[string]string{
	"bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "mask": "mask", "eot": "eot", "eom": "eom",
}

// A specials collects special tokens, the flags that add them, chat templates and the normalizer's flags.
// Ids and flags keep the order in which they were first found.
type specials struct {
	r     *reader
	roles []string
	limit int // ids from here on are ignored; 0 means none

	merges                  []string
	ids                     []roleID
	flags                   []roleFlag
	templates               any
	lowercase, stripAccents *bool
	err                     error
}

type roleID struct {
	role string
	id   uint32
}

type roleFlag struct {
	role string
	add  bool
}

func newSpecials(r *reader, roles []string, limit int) *specials {
	return &specials{r: r, roles: slices.Clone(roles), limit: limit}
}

// specials writes what follows the token list. Ids of limit or more are ignored; 0 means no limit.
func (r *reader) specials(limit int, merges bool) error {
	f, err := r.fast()
	if err != nil {
		return err
	}
	return r.specialsOf(f, limit, merges)
}

func (r *reader) specialsOf(f *fastFile, limit int, merges bool) error {
	s := newSpecials(r, roles, limit)
	if merges {
		if s.merges = f.Model.Merges; len(s.merges) == 0 {
			if err := s.mergesText(); err != nil {
				return err
			}
		}
	}
	if err := s.loadWith(f); err != nil {
		return err
	}
	s.write()
	return nil
}

// load reads the folder's files for special tokens.
func (s *specials) load() error {
	f, err := s.r.fast()
	if err != nil {
		return err
	}
	return s.loadWith(f)
}

func (s *specials) loadWith(f *fastFile) error {
	tc, err := s.r.tokenizerConfig()
	if err != nil {
		return err
	}
	if f != nil {
		s.normalizer(f.Normalizer, 0)
		t := &templateReader{s: s, tc: tc}
		t.read(f.PostProcessor)
	}
	// An empty tokenizer_config.json counts as none.
	if len(tc) > 0 {
		if s.templates, err = s.r.chatTemplates(tc); err != nil {
			return err
		}
		for _, role := range s.roles {
			s.fromTokenizerConfig(role, tc, f)
		}
	}
	s.fromConfig()
	return s.err
}

func (s *specials) fromTokenizerConfig(role string, tc map[string]any, f *fastFile) {
	if add, ok := tc["add_"+role+"_token"].(bool); ok {
		s.flag(role, add)
	}
	text, ok := tokenText(tc[role+"_token"])
	if !ok || f == nil {
		return
	}
	for _, a := range f.AddedTokens {
		if a.Content == text {
			s.id(role, a.ID)
			return
		}
	}
}

func (s *specials) fromConfig() {
	root := s.r.cfg.Root
	text, _ := root["text_config"].(map[string]any)
	for _, role := range s.roles {
		v := root[role+"_token_id"]
		if v == nil {
			v = text[role+"_token_id"]
		}
		if id, ok := config.Int(v); ok {
			s.id(role, id)
		}
	}
}

// id gives a role its token unless it has one.
func (s *specials) id(role string, id int64) {
	if id < 0 {
		s.r.warn("config.json", "tokenizer.bad_id", "%s_token_id is %d, which is no token", role, id)
		return
	}
	if s.limit > 0 && id >= int64(s.limit) || id >= maxTokens {
		s.r.warn("config.json", "tokenizer.bad_id", "%s_token_id is %d, beyond the last token", role, id)
		return
	}
	if !slices.ContainsFunc(s.ids, func(x roleID) bool { return x.role == role }) {
		s.ids = append(s.ids, roleID{role, uint32(id)})
	}
}

func (s *specials) flag(role string, add bool) {
	for i := range s.flags {
		if s.flags[i].role == role {
			s.flags[i].add = add
			return
		}
	}
	s.flags = append(s.flags, roleFlag{role, add})
}

// maxDepth bounds how deep normalizers and templates are nested.
const maxDepth = 32

func (s *specials) normalizer(v any, depth int) {
	n, _ := v.(map[string]any)
	yes := true
	switch n["type"] {
	case "Lowercase":
		s.lowercase = &yes
	case "StripAccents":
		s.stripAccents = &yes
	case "BertNormalizer":
		if b, ok := n["lowercase"].(bool); ok {
			s.lowercase = &b
		}
		if b, ok := n["strip_accents"].(bool); ok {
			s.stripAccents = &b
		}
	case "Sequence":
		list, _ := n["normalizers"].([]any)
		for _, x := range list {
			if depth < maxDepth {
				s.normalizer(x, depth+1)
			}
		}
	}
}

// mergesText reads merges.txt: a merge a line, after a first line that may be a comment.
func (s *specials) mergesText() error {
	data, err := config.ReadFile(s.r.path("merges.txt"))
	if errors.Is(err, fs.ErrNotExist) {
		s.r.warn("tokenizer.json", "tokenizer.no_merges", "there are no merges, neither here nor in merges.txt")
		return nil
	}
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, 1<<20)
	for n := 0; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || n == 0 && strings.HasPrefix(line, "#") {
			continue
		}
		parts := strings.Fields(line)
		if len(parts) != 2 {
			s.r.warn("merges.txt", "tokenizer.bad_merges", "line %d is not a merge", n+1)
			continue
		}
		s.merges = append(s.merges, parts[0]+" "+parts[1])
	}
	if err := lines.Err(); err != nil {
		return finding.Errorf("tokenizer.bad_merges", s.r.path("merges.txt"), "a line cannot be read: %v", err)
	}
	return nil
}

// write writes merges, ids, flags, templates and the normalizer's flags.
func (s *specials) write() {
	r := s.r
	r.set("ggml.merges", gguf.ArrayOf(s.merges))
	for _, x := range s.ids {
		if key := roleKeys[x.role]; key != "" {
			r.set("ggml."+key+"_token_id", gguf.Of(x.id))
		}
	}
	for _, x := range s.flags {
		switch x.role {
		case "bos", "eos", "sep":
			r.set("ggml.add_"+x.role+"_token", gguf.Of(x.add))
		}
	}
	r.writeTemplates(s.templates)
	if s.lowercase != nil {
		r.set("ggml.normalizer.lowercase", gguf.Of(*s.lowercase))
	}
	if s.stripAccents != nil {
		r.set("ggml.normalizer.strip_accents", gguf.Of(*s.stripAccents))
	}
}
