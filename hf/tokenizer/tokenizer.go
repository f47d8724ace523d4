// Package tokenizer turns the tokenizer files of a Hugging Face model folder into the tokenizer.* key-values
// of a GGUF file, as llama.cpp's convert_hf_to_gguf.py writes them: SentencePiece models, byte-level BPE,
// WordPiece, Unigram, special tokens, the pre-tokenizer's name and chat templates.
package tokenizer

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/hf/config"
)

// Options are the choices in reading a tokenizer.
type Options struct {
	// Arch is the GGUF architecture, which decides between the ways to read a vocabulary.
	Arch string
	// Pre is the pre-tokenizer's name (tokenizer.ggml.pre); "" finds it out.
	Pre string
}

// A Tokenizer is a vocabulary and what belongs to it, as key-values.
type Tokenizer struct {
	// Count is the number of tokens listed, fillers included.
	Count int
	// BaseCount is the number of tokens that tokenizer.json itself has (its vocabulary and its added
	// tokens), and Count where the vocabulary comes from another file.
	BaseCount int
	// Pre is the pre-tokenizer's name and Rule how it was found: "hash", "structure", "option" or "fixed".
	Pre, Rule string
	// KVs are the key-values in the reference's order.
	KVs gguf.KVs
	// Findings are warnings.
	Findings []finding.Finding
}

// Token types of GGUF.
const (
	normal int32 = iota + 1
	unknown
	control
	userDefined
	unused
	byteToken
)

// maxTokens bounds the size of a vocabulary. It is far above any known, and a list of as many fillers is
// still small.
const maxTokens = 1 << 22

// Read reads a folder's tokenizer. Errors are findings with codes tokenizer.… (the files) and config.…
// (config.json): a folder without a tokenizer is tokenizer.missing, a pre-tokenizer that is not known
// tokenizer.unknown_pre, which names the nearest.
func Read(dir string, cfg *config.Config, opt Options) (*Tokenizer, error) {
	r := &reader{dir: dir, cfg: cfg, opt: opt, out: &Tokenizer{}}
	if err := r.read(); err != nil {
		return nil, err
	}
	return r.out, nil
}

// A reader reads one folder.
type reader struct {
	dir string
	cfg *config.Config
	opt Options
	out *Tokenizer

	// fastFile is tokenizer.json once it has been read, nil if there is none.
	fastFile *fastFile
	fastRead bool
}

func (r *reader) path(name string) string { return filepath.Join(r.dir, name) }

func (r *reader) has(name string) bool {
	info, err := os.Stat(r.path(name))
	return err == nil && info.Mode().IsRegular()
}

func (r *reader) warn(file, code, format string, a ...any) {
	r.out.Findings = append(r.out.Findings, *finding.Warnf(code, r.path(file), format, a...))
}

// set writes a key-value where the key stands; empty strings and arrays are never written.
func (r *reader) set(key string, v gguf.Value) {
	if s, ok := v.Text(); ok && s == "" || v.Type() == gguf.Array && v.Len() == 0 {
		return
	}
	r.out.KVs.Set("tokenizer."+key, v)
}

func (r *reader) read() error {
	switch r.opt.Arch {
	case "llama", "smollm3", "arcee", "mistral3", "granite", "granitemoe":
		return r.llama()
	case "qwen2", "qwen2moe", "qwen3", "qwen3moe", "deepseek":
		if r.has("tokenizer.model") {
			return r.sentencePiece()
		}
		return r.bpe()
	case "gemma":
		return r.gemma()
	case "gemma2":
		if err := r.sentencePiece(); err != nil {
			return err
		}
		r.set("ggml.add_space_prefix", gguf.Of(false))
		return nil
	case "gemma3", "gemma-embedding":
		if !r.has("tokenizer.model") {
			return r.bpe()
		}
		if err := r.sentencePiece(); err != nil {
			return err
		}
		r.set("ggml.add_space_prefix", gguf.Of(false))
		return nil
	case "phi3", "phimoe":
		return r.phi3()
	case "bert", "nomic-bert":
		return r.bert()
	}
	return r.bpe()
}

// llama tries the three kinds of vocabulary that this family has had.
func (r *reader) llama() error {
	if r.has("tekken.json") && !r.has("tokenizer.json") {
		return finding.Errorf("tokenizer.unsupported", r.path("tekken.json"), "Mistral's own tokenizer file is not read").
			Hinted("take the folder's version with a tokenizer.json")
	}
	tc, err := r.tokenizerConfig()
	if err != nil {
		return err
	}
	if add, ok := tc["add_prefix_space"].(bool); ok {
		r.set("ggml.add_space_prefix", gguf.Of(add))
	}
	if r.has("tokenizer.model") {
		err = r.sentencePiece()
	} else {
		err = r.fallbackBPE()
	}
	if err != nil {
		return err
	}
	size, _ := config.Int(r.cfg.Get("vocab_size"))
	switch size {
	case 32016: // CodeLlama
		s := newSpecials(r, []string{"prefix", "suffix", "middle", "eot"}, 0)
		if err := s.load(); err != nil {
			return err
		}
		s.id("eot", 32010)
		s.write()
	case 49152: // small Granite models
		r.set("ggml.add_bos_token", gguf.Of(false))
	}
	return nil
}

// gemma has a SentencePiece model and, for CodeGemma, one more token.
func (r *reader) gemma() error {
	if err := r.sentencePiece(); err != nil {
		return err
	}
	s := newSpecials(r, []string{"prefix", "suffix", "middle", "fsep", "eot"}, 0)
	if err := s.load(); err != nil {
		return err
	}
	s.id("eot", 107)
	s.templates = nil
	s.write()
	r.set("ggml.add_space_prefix", gguf.Of(false))
	return nil
}

// phi3 has a SentencePiece model, or byte-level BPE from Phi-4 on.
func (r *reader) phi3() error {
	tc, err := r.tokenizerConfig()
	if err != nil {
		return err
	}
	if tc["tokenizer_class"] == "GPT2Tokenizer" {
		return r.bpe()
	}
	v, err := r.pieces(0)
	if err != nil {
		return err
	}
	if err := v.addedTokens(r); err != nil {
		return err
	}
	if err := v.addedDecoder(r, tc, false); err != nil {
		return err
	}
	f, err := r.fast()
	if err != nil {
		return err
	}
	if f != nil {
		for _, a := range f.AddedTokens {
			kind := userDefined
			if a.Special {
				kind = control
			}
			v.put(a.ID, a.Content, -1000, kind)
		}
	}
	return r.finishSPM(v)
}

// A vocabulary is a list of tokens with their scores and types.
type vocabulary struct {
	tokens []string
	scores []float32
	kinds  []int32
}

// newVocabulary is a list of fillers.
func newVocabulary(size int) *vocabulary {
	v := &vocabulary{make([]string, size), make([]float32, size), make([]int32, size)}
	for i := range size {
		v.tokens[i], v.scores[i], v.kinds[i] = filler(i), -10000, unused
	}
	return v
}

func filler(i int) string { return "[PAD" + decimal(i) + "]" }

// put replaces a token; ids outside the list are ignored.
func (v *vocabulary) put(id int64, text string, score float32, kind int32) {
	if id >= 0 && id < int64(len(v.tokens)) {
		v.tokens[id], v.scores[id], v.kinds[id] = text, score, kind
	}
}

// looksSpecial reports whether a token that no file calls special is one by its looks.
func looksSpecial(text string) bool {
	return slices.Contains([]string{"<pad>", "<mask>", "<2mass>", "[@BOS@]"}, text) ||
		strings.HasPrefix(text, "<|") && strings.HasSuffix(text, "|>") ||
		strings.HasPrefix(text, "<｜") && strings.HasSuffix(text, "｜>") ||
		strings.HasPrefix(text, "<unused") && strings.HasSuffix(text, ">")
}

// blanks shows the space mark of SentencePiece as a blank.
func blanks(text string) string { return strings.ReplaceAll(text, "▁", " ") }

// size is the length of the token list: vocab_size of the configuration, or another number without it.
func (r *reader) size(other int) (int, error) {
	if r.cfg.Get("vocab_size") == nil {
		return other, nil
	}
	n, err := r.cfg.Int("vocab_size")
	if err == nil && (n < 0 || n > maxTokens) {
		err = r.cfg.Bad("vocab_size", n, "a number up to "+decimal(maxTokens))
	}
	return int(n), err
}

// tokenizerConfig is tokenizer_config.json, nil without it.
func (r *reader) tokenizerConfig() (map[string]any, error) {
	var tc map[string]any
	_, err := config.ReadJSON(r.path("tokenizer_config.json"), &tc)
	return tc, err
}
