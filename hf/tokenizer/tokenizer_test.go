package tokenizer

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/hf/config"
)

// spFile writes a SentencePiece model of the pieces. A score of 0 and a type of 1 are left out, as
// encoders do.
func spFile(pieces ...piece) []byte {
	var b []byte
	for _, p := range pieces {
		var m []byte
		m = protowire.AppendTag(m, 1, protowire.BytesType)
		m = protowire.AppendString(m, p.text)
		if p.score != 0 {
			m = protowire.AppendTag(m, 2, protowire.Fixed32Type)
			m = protowire.AppendFixed32(m, math.Float32bits(p.score))
		}
		if p.kind != 1 {
			m = protowire.AppendTag(m, 3, protowire.VarintType)
			m = protowire.AppendVarint(m, uint64(p.kind))
		}
		b = protowire.AppendTag(b, 1, protowire.BytesType)
		b = protowire.AppendBytes(b, m)
	}
	trainer := protowire.AppendTag(nil, 3, protowire.VarintType)
	trainer = protowire.AppendVarint(trainer, 1)
	b = protowire.AppendTag(b, 2, protowire.BytesType)
	b = protowire.AppendBytes(b, trainer)
	normalizer := protowire.AppendTag(nil, 2, protowire.BytesType)
	normalizer = protowire.AppendBytes(normalizer, []byte{1, 2})
	normalizer = protowire.AppendTag(normalizer, 3, protowire.VarintType)
	normalizer = protowire.AppendVarint(normalizer, 0)
	b = protowire.AppendTag(b, 3, protowire.BytesType)
	return protowire.AppendBytes(b, normalizer)
}

var smallSP = spFile(
	piece{"<unk>", 0, 2}, piece{"<s>", 0, 3}, piece{"</s>", 0, 3}, piece{"<0x0A>", 0, 6},
	piece{"▁a", -1.5, 1}, piece{"user", -2, 4}, piece{"old", -3, 5},
)

// folder writes files to a folder of the test. Values that are not text are written as JSON.
func folder(t testing.TB, files map[string]any) string {
	t.Helper()
	dir := t.TempDir()
	for name, v := range files {
		var data []byte
		switch v := v.(type) {
		case string:
			data = []byte(v)
		case []byte:
			data = v
		default:
			var err error
			if data, err = json.Marshal(v); err != nil {
				t.Fatal(err)
			}
		}
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func read(t testing.TB, arch, pre string, files map[string]any) (*Tokenizer, error) {
	t.Helper()
	all := map[string]any{"config.json": "{}"}
	maps.Copy(all, files)
	dir := folder(t, all)
	cfg, err := config.Read(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	return Read(dir, cfg, Options{Arch: arch, Pre: pre})
}

// lines are the key-values as text, with what stands in front of every key removed.
func lines(k *Tokenizer) []string {
	var out []string
	for _, kv := range k.KVs {
		out = append(out, strings.TrimPrefix(strings.TrimPrefix(kv.Key, "tokenizer."), "ggml.")+" "+fmt.Sprint(kv.Value.Any()))
	}
	return out
}

type obj = map[string]any

func added(id int, text string, special bool) obj {
	return obj{"id": id, "content": text, "special": special, "normalized": false}
}

func tokenizerJSON(kind string, vocab any, more obj, tokens ...obj) obj {
	model := obj{"type": kind, "vocab": vocab}
	f := obj{"model": model, "added_tokens": tokens, "pre_tokenizer": obj{"type": "ByteLevel", "add_prefix_space": false}}
	for k, v := range more {
		if rest, ok := strings.CutPrefix(k, "model."); ok {
			model[rest] = v
		} else {
			f[k] = v
		}
	}
	return f
}

func TestRead(t *testing.T) {
	letters := obj{"a": 0, "b": 1, "ab": 2}
	for _, c := range []struct {
		name, arch string
		files      map[string]any
		want       []string
	}{
		{"sentencepiece with overlays", "llama", obj{
			"config.json":       obj{"vocab_size": 11, "eos_token_id": 2, "bos_token_id": []int{1}, "pad_token_id": 99},
			"tokenizer.model":   smallSP,
			"added_tokens.json": obj{"more": 7, "beyond": 500},
			"tokenizer_config.json": obj{"add_prefix_space": false, "add_bos_token": true, "added_tokens_decoder": obj{
				"1": obj{"content": "<s>", "special": true}, "8": obj{"content": "x▁y", "special": false}, "9": obj{"content": "<|z|>", "special": false},
			}},
		}, []string{
			"add_space_prefix false", "model llama", "pre default",
			"tokens [<unk> <s> </s> <0x0A> ▁a user old more x y <|z|> [PAD10]]",
			"scores [0 -1000 0 0 -1.5 -2 -3 -1000 -1000 -1000 -10000]",
			"token_type [2 3 3 6 1 1 5 4 4 3 5]",
			"eos_token_id 2", "add_bos_token true",
		}},
		{"code llama's end of turn", "llama", obj{
			"config.json": obj{"vocab_size": 32016}, "tokenizer.model": smallSP, "tokenizer_config.json": obj{"chat_template": "T"},
		}, []string{"model llama", "pre default", "chat_template T", "eot_token_id 32010"}},
		{"gemma without space prefix", "gemma", obj{
			"tokenizer.model": smallSP, "tokenizer_config.json": obj{"chat_template": "T"},
		}, []string{"model llama", "pre default", "tokens [<unk> <s> </s> <0x0A> ▁a user old]", "scores [0 0 0 0 -1.5 -2 -3]",
			"token_type [2 3 3 6 1 1 5]", "chat_template T", "eot_token_id 107", "add_space_prefix false"}},
		{"phi3 takes tokens as they are", "phi3", obj{
			"tokenizer.model": smallSP,
			"tokenizer_config.json": obj{"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": obj{
				"4": obj{"content": "<|x▁|>", "special": false}, "5": obj{"content": "y", "special": true},
			}},
			"tokenizer.json": tokenizerJSON("BPE", obj{}, nil, added(6, "z", true)),
		}, []string{"model llama", "pre default", "tokens [<unk> <s> </s> <0x0A> <|x▁|> y z]", "scores [0 0 0 0 -1000 -1000 -1000]",
			"token_type [2 3 3 6 4 3 3]"}},
		{"byte-level bpe", "qwen2", obj{
			"config.json": obj{"vocab_size": 7},
			"tokenizer.json": tokenizerJSON("BPE", letters, obj{"model.merges": [][]string{{"a", "b"}, {" ", "a"}}},
				added(3, "<|x|>", false), added(4, "w▁w", false), added(5, "!", true)),
			"tokenizer_config.json": obj{"eos_token": obj{"content": "!"}, "pad_token": "?"},
		}, []string{"model gpt2", "pre gpt-2", "tokens [a b ab <|x|> w w ! [PAD6]]", "token_type [1 1 1 3 4 3 5]", "merges [a b Ġ a]", "eos_token_id 5"}},
		{"merges.txt", "gpt2", obj{
			"tokenizer.json": tokenizerJSON("BPE", letters, nil),
			"merges.txt":     "#version: 0.2\r\na b\r\n\r\nnot a merge\r\n#  b\r\n",
		}, []string{"model gpt2", "pre gpt-2", "tokens [a b ab]", "token_type [1 1 1]", "merges [a b # b]"}},
		{"byte fallback", "llama", obj{
			"tokenizer.json": tokenizerJSON("BPE", obj{"<unk>": 0, "<0x41>": 1, "a": 2}, obj{"model.byte_fallback": true, "decoder": obj{"type": "Sequence"}},
				added(0, "<unk>", true), added(4, "late", false), added(3, "<x>", true)),
			"tokenizer_config.json": obj{"unk_token": "<unk>", "additional_special_tokens": []any{obj{"content": "<x>"}}},
		}, []string{"model llama", "pre default", "tokens [<unk> <0x41> a <x> late]", "scores [-1000 -1000 -1000 -1000 -1000]",
			"token_type [3 6 1 3 4]", "unknown_token_id 0"}},
		{"wordpiece", "bert", obj{
			"config.json": obj{"vocab_size": 5, "type_vocab_size": 2},
			"tokenizer.json": tokenizerJSON("WordPiece", obj{"[UNK]": 0, "x": 1, "##y": 2, "[unused1]": 3},
				obj{"pre_tokenizer": obj{"type": "BertPreTokenizer"}, "normalizer": obj{"type": "BertNormalizer", "lowercase": true, "strip_accents": nil}},
				added(0, "[UNK]", true)),
		}, []string{"token_type_count 2", "model bert", "pre jina-v2-en", "tokens [[UNK] ▁x y ▁[unused1] ▁[PAD4]]", "token_type [3 1 1 1 5]",
			"normalizer.lowercase true"}},
		{"unigram model", "bert", obj{
			"config.json": obj{"vocab_size": 8}, "sentencepiece.bpe.model": smallSP,
		}, []string{"model t5", "pre default", "tokens [<s> <pad> </s> <unk> <0x0A> ▁a user old]", "scores [0 0 0 0 0 -1.5 -2 -3]",
			"token_type [3 3 3 2 6 1 1 5]", "add_space_prefix false", "token_type_count 1", "remove_extra_whitespaces true", "precompiled_charsmap [1 2]"}},
		{"unigram in tokenizer.json", "bert", obj{
			"tokenizer.json": tokenizerJSON("Unigram", []any{[]any{"<s>", 0}, []any{"<unk>", 0}, []any{"▁a", -1.5}},
				obj{"model.unk_id": 1, "normalizer": obj{"type": "Sequence", "normalizers": []any{obj{"type": "Precompiled", "precompiled_charsmap": "AQI="}}},
					"pre_tokenizer": obj{"type": "Metaspace", "add_prefix_space": true}}),
			"tokenizer_config.json": obj{"bos_token": "<s>"},
		}, []string{"model t5", "pre default", "tokens [<s> <unk> ▁a]", "scores [0 0 -1.5]", "token_type [3 2 1]", "add_space_prefix true",
			"token_type_count 1", "remove_extra_whitespaces true", "precompiled_charsmap [1 2]"}},
		{"templates of files", "llama", obj{
			"tokenizer.model": smallSP, "tokenizer_config.json": obj{"bos_token": "<s>"},
			"chat_template.jinja": "a\r\nb", "additional_chat_templates/rag-2.jinja": "R", "additional_chat_templates/notes.txt": "N",
		}, []string{"model llama", "pre default", "tokens [<unk> <s> </s> <0x0A> ▁a user old]", "scores [0 0 0 0 -1.5 -2 -3]",
			"token_type [2 3 3 6 1 1 5]", "chat_template.rag_2 R", "chat_templates [rag_2]", "chat_template a\nb"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			k, err := read(t, c.arch, "", c.files)
			if err != nil {
				t.Fatal(err)
			}
			got := lines(k)
			if k.Count == 32016 {
				got = got[:2:2]
				for _, s := range lines(k) {
					if strings.HasPrefix(s, "chat") || strings.HasPrefix(s, "eot") {
						got = append(got, s)
					}
				}
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	letters := obj{"a": 0, "b": 1}
	for _, c := range []struct {
		name, arch, pre string
		files           map[string]any
		code, text      string
	}{
		{"no tokenizer", "qwen2", "", nil, "tokenizer.missing", "tokenizer.json"},
		{"no sentencepiece", "gemma", "", nil, "tokenizer.missing", "tokenizer.model"},
		{"mistral's own file", "llama", "", obj{"tekken.json": "{}"}, "tokenizer.unsupported", "tekken.json"},
		{"not a protobuf", "llama", "", obj{"tokenizer.model": "PK\x03\x04"}, "tokenizer.bad_protobuf", ""},
		{"truncated protobuf", "llama", "", obj{"tokenizer.model": smallSP[:len(smallSP)-1]}, "tokenizer.bad_protobuf", ""},
		{"length beyond the end", "llama", "", obj{"tokenizer.model": []byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f}}, "tokenizer.bad_protobuf", ""},
		{"no pieces", "llama", "", obj{"tokenizer.model": ""}, "tokenizer.bad_protobuf", "no pieces"},
		{"unknown type of piece", "llama", "", obj{"tokenizer.model": spFile(piece{"a", 0, 7})}, "tokenizer.bad_protobuf", "type of piece"},
		{"huge vocab_size", "llama", "", obj{"config.json": obj{"vocab_size": 1 << 40}, "tokenizer.model": smallSP}, "config.bad_value", "vocab_size"},
		{"negative vocab_size", "llama", "", obj{"config.json": obj{"vocab_size": -1}, "tokenizer.model": smallSP}, "config.bad_value", "vocab_size"},
		{"text vocab_size", "llama", "", obj{"config.json": obj{"vocab_size": "7"}, "tokenizer.model": smallSP}, "config.bad_value", "vocab_size"},
		{"bad json", "gpt2", "", obj{"tokenizer.json": `{"model": `}, "config.bad_json", ""},
		{"tokens beyond vocab_size", "gpt2", "", obj{"config.json": obj{"vocab_size": 1}, "tokenizer.json": tokenizerJSON("BPE", letters, nil)}, "tokenizer.vocab_size", "1"},
		{"id out of range", "gpt2", "", obj{"tokenizer.json": tokenizerJSON("BPE", obj{"a": 1 << 30}, nil)}, "tokenizer.bad_id", ""},
		{"negative id", "gpt2", "", obj{"tokenizer.json": tokenizerJSON("BPE", letters, nil, added(-1, "x", true))}, "tokenizer.bad_id", ""},
		{"merge of three", "gpt2", "", obj{"tokenizer.json": tokenizerJSON("BPE", letters, obj{"model.merges": [][]string{{"a", "b", "c"}}})}, "tokenizer.bad_merges", ""},
		{"gaps", "llama", "", obj{"tokenizer.json": tokenizerJSON("BPE", obj{"a": 0, "b": 5}, obj{"model.byte_fallback": true, "decoder": obj{"type": "Sequence"}})},
			"tokenizer.bad_vocabulary", "gaps"},
		{"id twice", "llama", "", obj{"tokenizer.json": tokenizerJSON("BPE", obj{"a": 0, "b": 0}, obj{"model.byte_fallback": true, "decoder": obj{"type": "Sequence"}})},
			"tokenizer.bad_vocabulary", "gaps"},
		{"name unknown", "gpt2", "llama3-bpe", obj{"tokenizer.json": tokenizerJSON("BPE", letters, nil)}, "tokenizer.unknown_pre", "llama-bpe"},
		{"structure unknown", "gpt2", "", obj{"tokenizer.json": tokenizerJSON("BPE", letters, obj{"pre_tokenizer": obj{"type": "Sequence", "pretokenizers": []any{
			obj{"type": "Digits", "individual_digits": false}, obj{"type": "ByteLevel"},
		}}})}, "tokenizer.unknown_pre", "--pre starcoder"},
		{"no pre-tokenizer", "gpt2", "", obj{"tokenizer.json": tokenizerJSON("BPE", letters, obj{"pre_tokenizer": nil})}, "tokenizer.unknown_pre", "none"},
		{"piece without a score", "bert", "", obj{"tokenizer.json": tokenizerJSON("Unigram", []any{[]any{"a"}}, nil)}, "tokenizer.bad_vocabulary", ""},
		{"charsmap not base64", "bert", "", obj{"tokenizer.json": tokenizerJSON("Unigram", []any{[]any{"a", 0}}, obj{"normalizer": obj{"type": "Precompiled", "precompiled_charsmap": "?"}})},
			"tokenizer.bad_charsmap", ""},
		{"added token without content", "llama", "", obj{"tokenizer.model": smallSP, "tokenizer_config.json": obj{"added_tokens_decoder": obj{"1": obj{}}}},
			"tokenizer.bad_added_token", ""},
		{"added token's id not a number", "llama", "", obj{"tokenizer.model": smallSP, "added_tokens.json": obj{"x": 1.5}}, "tokenizer.bad_id", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := read(t, c.arch, c.pre, c.files)
			f := finding.Of(err)
			if f == nil || f.Code != c.code || !strings.Contains(err.Error()+f.Hint, c.text) {
				t.Fatalf("got %v (%+v), want %s with %q", err, f, c.code, c.text)
			}
		})
	}
}

// A name that is asked for is taken whatever the structure is.
func TestPreOption(t *testing.T) {
	files := obj{"tokenizer.json": tokenizerJSON("BPE", obj{"a": 0}, obj{"pre_tokenizer": nil})}
	k, err := read(t, "gpt2", "qwen2", files)
	if err != nil {
		t.Fatal(err)
	}
	if k.Pre != "qwen2" || k.Rule != "option" {
		t.Errorf("got %s by %s", k.Pre, k.Rule)
	}
}

// Special tokens that the vocabulary lacks are left out with a warning.
func TestWarnings(t *testing.T) {
	k, err := read(t, "llama", "", obj{
		"config.json": obj{"pad_token_id": -1, "eos_token_id": 7}, "tokenizer.model": smallSP, "tokenizer_config.json": obj{"chat_template": 5},
	})
	if err != nil {
		t.Fatal(err)
	}
	var codes []string
	for _, f := range k.Findings {
		if f.Level != finding.Warning {
			t.Errorf("%s is of level %s", f.Code, f.Level)
		}
		codes = append(codes, f.Code)
	}
	if d := cmp.Diff([]string{"tokenizer.bad_chat_template", "tokenizer.bad_id", "tokenizer.bad_id"}, codes); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	for _, kv := range k.KVs {
		if strings.HasSuffix(kv.Key, "_token_id") {
			t.Errorf("%s is written", kv.Key)
		}
	}
}

func FuzzSentencePiece(f *testing.F) {
	f.Add(smallSP)
	f.Add(smallSP[:len(smallSP)-3])
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := parseSP("tokenizer.model", data)
		if err != nil {
			if finding.Of(err) == nil {
				t.Fatalf("not a finding: %v", err)
			}
			return
		}
		size := 0
		for _, p := range m.pieces {
			size += len(p.text)
		}
		if size+len(m.charsmap) > len(data) {
			t.Fatalf("%d bytes of text from %d bytes", size, len(data))
		}
	})
}

func FuzzTokenizerJSON(f *testing.F) {
	for _, x := range []obj{
		tokenizerJSON("BPE", obj{"a": 0, "b": 1, "ab": 2}, obj{"model.merges": []string{"a b"}}, added(3, "<|x|>", false)),
		tokenizerJSON("WordPiece", obj{"[UNK]": 0, "x": 1}, obj{"pre_tokenizer": obj{"type": "BertPreTokenizer"}, "normalizer": obj{"type": "BertNormalizer"},
			"post_processor": obj{"type": "TemplateProcessing", "single": []any{obj{"SpecialToken": obj{"id": "x"}}, obj{"Sequence": obj{"id": "A"}}},
				"special_tokens": obj{"x": obj{"ids": []int{1}}}}}),
		tokenizerJSON("BPE", obj{"a": 0}, obj{"pre_tokenizer": obj{"type": "Sequence", "pretokenizers": []any{
			obj{"type": "Split", "behavior": "Isolated", "pattern": obj{"Regex": `(?i:'s)|\s+(?!\S)|[^\s\p{L}]++`}},
			obj{"type": "Digits", "individual_digits": true}, obj{"type": "Punctuation", "behavior": "Contiguous"}, obj{"type": "ByteLevel"},
		}}}),
	} {
		data, err := json.Marshal(x)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := parseFast("tokenizer.json", data)
		if err != nil {
			if finding.Of(err) == nil {
				t.Fatalf("not a finding: %v", err)
			}
			return
		}
		cfg, err := config.Parse("config.json", []byte("{}"))
		if err != nil {
			t.Fatal(err)
		}
		r := &reader{cfg: cfg, out: &Tokenizer{}, fastFile: file, fastRead: true}
		if _, err := r.listed(file); err != nil && finding.Of(err) == nil {
			t.Fatalf("not a finding: %v", err)
		}
		if name, _, err := r.preTokenizer(file); err == nil && !slices.Contains(dataLines(namesText), name) {
			t.Fatalf("pre-tokenizer %q has no such name", name)
		}
		if hash, err := checkHash(file); err == nil && len(hash) != 64 {
			t.Fatalf("hash %q", hash)
		}
		s := newSpecials(r, roles, 0)
		(&templateReader{s: s, tc: obj{"bos_token": "x"}}).read(file.PostProcessor)
		s.normalizer(file.Normalizer, 0)
		s.write()
	})
}
