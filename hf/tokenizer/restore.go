package tokenizer

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/gguf"
)

// Restore makes a folder's tokenizer files (name → content) of the tokenizer.* key-values of a GGUF file.
// What the file does not hold is not made up: where a tokenizer cannot be written, its files are left out
// and a warning says why (tokenizer.not_restored).
func Restore(kvs gguf.KVs) (map[string][]byte, []finding.Finding, error) {
	r := &restorer{kvs: kvs, files: map[string][]byte{}}
	r.tokens, _ = kvs.Strings("tokenizer.ggml.tokens")
	r.kinds, _ = values[int32](kvs, "tokenizer.ggml.token_type")
	r.scores, _ = values[float32](kvs, "tokenizer.ggml.scores")
	if len(r.kinds) != len(r.tokens) {
		r.kinds = slices.Repeat([]int32{normal}, len(r.tokens))
	}
	var err error
	switch model, _ := kvs.Text("tokenizer.ggml.model"); {
	case len(r.tokens) == 0:
		r.lost("the file lists no tokens")
	case model == "llama":
		r.sentencePiece()
	case model == "gpt2":
		err = r.bpe()
	case model == "bert":
		err = r.wordPiece()
	default:
		r.lost("tokenizers of the kind \"" + model + "\" cannot be written")
	}
	if err == nil {
		err = r.configuration()
	}
	return r.files, r.notes, err
}

// values is an array of a key.
func values[T any](kvs gguf.KVs, key string) ([]T, bool) {
	v, ok := kvs.Get(key)
	if !ok {
		return nil, false
	}
	xs, ok := v.Any().([]T)
	return xs, ok
}

type restorer struct {
	kvs    gguf.KVs
	tokens []string
	kinds  []int32
	scores []float32
	files  map[string][]byte
	notes  []finding.Finding
}

func (r *restorer) lost(why string) {
	r.notes = append(r.notes, *finding.Warnf("tokenizer.not_restored", "", "no tokenizer is written: %s", why).
		Hinted("take the tokenizer files of the model that the GGUF was made from"))
}

// overlaid is the score of tokens that were added beside a SentencePiece model.
const overlaid = -1000

// sentencePiece writes tokenizer.model.
func (r *restorer) sentencePiece() {
	if len(r.scores) != len(r.tokens) {
		r.lost("the tokens have no scores")
		return
	}
	if !slices.ContainsFunc(r.scores, func(s float32) bool { return s != overlaid }) {
		r.lost("the order of merges was lost when the GGUF was made")
		return
	}
	unk := 0
	m := &spModel{modelType: 2, addDummyPrefix: true}
	if add, ok := r.kvs.Bool("tokenizer.ggml.add_space_prefix"); ok {
		m.addDummyPrefix = add
	}
	for i, text := range r.tokens {
		if r.kinds[i] == unknown {
			unk = i
		}
		m.pieces = append(m.pieces, piece{text, r.scores[i], r.kinds[i]})
	}
	r.files["tokenizer.model"] = m.encode(unk)
}

// added lists the tokens that stand beside the vocabulary.
func (r *restorer) added(kinds ...int32) []addedToken {
	var out []addedToken
	plain := false
	for i, text := range r.tokens {
		if slices.Contains(kinds, r.kinds[i]) {
			out = append(out, addedToken{ID: int64(i), Content: text, Normalized: &plain, Special: r.kinds[i] == control})
		}
	}
	return out
}

// bpe writes tokenizer.json of a byte-level BPE.
func (r *restorer) bpe() error {
	pre, _ := r.kvs.Text("tokenizer.ggml.pre")
	steps, normalizer, ok := preTokenizerOf(pre)
	if !ok {
		r.lost("how text is split before the merges is known to llama.cpp by the name \"" + pre + "\" only")
		return nil
	}
	merges, _ := r.kvs.Strings("tokenizer.ggml.merges")
	model := object{
		{"type", "BPE"}, {"dropout", nil}, {"unk_token", nil}, {"continuing_subword_prefix", nil}, {"end_of_word_suffix", nil},
		{"fuse_unk", false}, {"byte_fallback", false}, {"ignore_merges", slices.Contains(ignoringMerges, pre)},
		{"vocab", r.vocabulary(normal, nil)}, {"merges", merges},
	}
	var form any
	if normalizer != "" {
		form = object{{"type", normalizer}}
	}
	level := object{{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}}
	return r.fast(form, steps, level, model, r.added(control, userDefined))
}

// wordPiece writes tokenizer.json of a BERT tokenizer: tokens that begin a word lose the space mark, and the
// others get theirs.
func (r *restorer) wordPiece() error {
	unk, _ := r.token("unknown")
	if unk == "" {
		unk = "[UNK]"
	}
	model := object{
		{"type", "WordPiece"}, {"unk_token", unk}, {"continuing_subword_prefix", "##"}, {"max_input_chars_per_word", 100},
		{"vocab", r.vocabulary(normal, func(text string) string {
			if bare, begins := strings.CutPrefix(text, "▁"); begins {
				return bare
			}
			return "##" + text
		})},
	}
	lower, known := r.kvs.Bool("tokenizer.ggml.normalizer.lowercase")
	normalizer := object{{"type", "BertNormalizer"}, {"clean_text", true}, {"handle_chinese_chars", true}, {"strip_accents", nil}, {"lowercase", lower || !known}}
	if strip, ok := r.kvs.Bool("tokenizer.ggml.normalizer.strip_accents"); ok {
		normalizer[3].value = strip
	}
	return r.fast(normalizer, object{{"type", "BertPreTokenizer"}}, object{{"type", "WordPiece"}, {"prefix", "##"}, {"cleanup", true}}, model, r.added(control))
}

// vocabulary is text → id of the tokens of a kind, in the order of the ids.
func (r *restorer) vocabulary(kind int32, spell func(string) string) object {
	var out object
	for i, text := range r.tokens {
		if r.kinds[i] != kind {
			continue
		}
		if spell != nil {
			text = spell(text)
		}
		out = append(out, member{text, i})
	}
	return out
}

// fast writes tokenizer.json.
func (r *restorer) fast(normalizer, steps, decoder any, model object, added []addedToken) error {
	if added == nil {
		added = []addedToken{}
	}
	doc := object{
		{"version", "1.0"}, {"truncation", nil}, {"padding", nil}, {"added_tokens", added}, {"normalizer", normalizer},
		{"pre_tokenizer", steps}, {"post_processor", r.template()}, {"decoder", decoder}, {"model", model},
	}
	b, err := document(doc)
	r.files["tokenizer.json"] = b
	return err
}

// token is the text of a special token, "" if there is none.
func (r *restorer) token(key string) (string, uint64) {
	id, ok := r.kvs.Uint("tokenizer.ggml." + key + "_token_id")
	if !ok || id >= uint64(len(r.tokens)) {
		return "", 0
	}
	return r.tokens[id], id
}

// template puts special tokens around a text, as the add_… flags say and BERT's model does anyway.
func (r *restorer) template() any {
	adds := func(key string) bool { b, _ := r.kvs.Bool("tokenizer.ggml.add_" + key + "_token"); return b }
	first, firstID := r.token("bos")
	last, lastID := r.token("eos")
	sep := adds("sep")
	if model, _ := r.kvs.Text("tokenizer.ggml.model"); model == "bert" {
		sep = true
	} else {
		if !adds("bos") {
			first = ""
		}
		if !adds("eos") {
			last = ""
		}
	}
	if first == "" && last == "" {
		return nil
	}
	special := func(text string, segment int) object {
		return object{{"SpecialToken", object{{"id", text}, {"type_id", segment}}}}
	}
	sequence := func(id string, segment int) object {
		return object{{"Sequence", object{{"id", id}, {"type_id", segment}}}}
	}
	var single, pair []object
	var tokens object
	declare := func(text string, id uint64) {
		tokens = append(tokens, member{text, object{{"id", text}, {"ids", []uint64{id}}, {"tokens", []string{text}}}})
	}
	if first != "" {
		single, pair = append(single, special(first, 0)), append(pair, special(first, 0))
		declare(first, firstID)
	}
	single, pair = append(single, sequence("A", 0)), append(pair, sequence("A", 0))
	switch {
	case sep && last != "":
		pair = append(pair, special(last, 0))
	case first != "":
		pair = append(pair, special(first, 1))
	}
	pair = append(pair, sequence("B", 1))
	if last != "" {
		single, pair = append(single, special(last, 0)), append(pair, special(last, 1))
		if last != first {
			declare(last, lastID)
		}
	}
	return object{{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", tokens}}
}

// configuration writes tokenizer_config.json.
func (r *restorer) configuration() error {
	if len(r.files) == 0 {
		return nil
	}
	class := "PreTrainedTokenizerFast"
	switch arch, _ := r.kvs.Text("general.architecture"); {
	case r.files["tokenizer.model"] != nil:
		class = "LlamaTokenizer"
	case arch == "phi3":
		class = "GPT2Tokenizer" // the others of this family have a SentencePiece model
	}
	var doc object
	for _, flag := range []string{"bos", "eos", "sep"} {
		if b, ok := r.kvs.Bool("tokenizer.ggml.add_" + flag + "_token"); ok {
			doc = append(doc, member{"add_" + flag + "_token", b})
		}
	}
	if b, ok := r.kvs.Bool("tokenizer.ggml.add_space_prefix"); ok {
		doc = append(doc, member{"add_prefix_space", b})
	}
	var decoder object
	for _, a := range r.added(control, userDefined) {
		if class == "LlamaTokenizer" && r.scores[a.ID] != overlaid {
			continue
		}
		entry := object{{"content", a.Content}, {"lstrip", false}, {"normalized", false}, {"rstrip", false}, {"single_word", false}, {"special", a.Special}}
		decoder = append(decoder, member{decimal(int(a.ID)), entry})
	}
	if decoder != nil {
		doc = append(doc, member{"added_tokens_decoder", decoder})
	}
	for _, role := range roles {
		key := roleKeys[role]
		if text, _ := r.token(key); key != "" && text != "" {
			doc = append(doc, member{role + "_token", text})
		}
	}
	if t := r.chatTemplate(); t != nil {
		doc = append(doc, member{"chat_template", t})
	}
	b, err := document(append(doc, member{"tokenizer_class", class}))
	r.files["tokenizer_config.json"] = b
	return err
}

// chatTemplate is the template, or the list of all where there are several.
func (r *restorer) chatTemplate() any {
	const key = "tokenizer.chat_template"
	main, ok := r.kvs.Text(key)
	names, _ := r.kvs.Strings("tokenizer.chat_templates")
	if len(names) == 0 {
		if !ok {
			return nil
		}
		return main
	}
	var list []object
	if ok {
		list = append(list, object{{"name", "default"}, {"template", main}})
	}
	for _, name := range names {
		if text, ok := r.kvs.Text(key + "." + strings.Map(nameRune, name)); ok {
			list = append(list, object{{"name", name}, {"template", text}})
		}
	}
	return list
}

// object is a JSON object whose members keep their order.
type object []member

type member struct {
	key   string
	value any
}

func (f object) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	for i, x := range f {
		if i > 0 {
			b = append(b, ',')
		}
		for j, part := range []any{x.key, x.value} {
			p, err := compact(part)
			if err != nil {
				return nil, err
			}
			b = append(b, p...)
			if j == 0 {
				b = append(b, ':')
			}
		}
	}
	return append(b, '}'), nil
}

// compact is JSON in one line, with < and > as they are.
func compact(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimRight(b.Bytes(), "\n"), err
}

// document is a JSON document with an indent of two.
func document(v any) ([]byte, error) {
	flat, err := compact(v)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := json.Indent(&b, flat, "", "  "); err != nil {
		return nil, err
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}
