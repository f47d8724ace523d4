package verify

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/tensor"
)

// Belongs says what speaks against an adapter having been made for a base although its tensors may fit:
// another base's name, another base's size, a tokenizer with tokens the base has no embedding for. All
// of it is hearsay, so the findings are warnings, and a name that says nothing gives none.
func Belongs(base formats.Model, a *adapter.Adapter) []finding.Finding {
	var out []finding.Finding
	if f := otherBase(a.BaseModel, base); f != nil {
		f.File = a.Path
		out = append(out, *f)
	}
	if f := moreTokens(a.Path, base); f != nil {
		out = append(out, *f)
	}
	return out
}

// otherBase compares the base an adapter names with what the base says of itself. A path on another
// machine says nothing.
func otherBase(named string, base formats.Model) *finding.Finding {
	if named == "" || strings.HasPrefix(named, ".") || filepath.IsAbs(named) || strings.ContainsAny(named, `\~`) {
		return nil
	}
	if want, ok := statedSize(named); ok && !sparse.MatchString(named) {
		// Names round, or leave embeddings out: a factor of 3 is none of that.
		if n := parameters(base); n > 0 && (n > 3*want || n < want/3) {
			return finding.Warnf("adapter.base_mismatch", "", "the adapter was made for a base of another size").
				Expected(count(n)+" parameters", named)
		}
	}
	name, other := names(base.Path())
	if name == "" || related(named, name) || other != "" && related(named, other) {
		return nil
	}
	return finding.Warnf("adapter.base_mismatch", "", "the adapter names another base").Expected(name, named)
}

// parameters counts a base's parameters, 0 where weights may be packed into integers.
func parameters(base formats.Model) float64 {
	var n float64
	for _, t := range base.Tensors() {
		switch {
		case t.DType.IsFloat(), t.DType.IsBlock():
			e, _ := t.Shape.Elements()
			n += float64(e)
		case len(t.Shape) > 1:
			return 0
		}
	}
	return n
}

var size = regexp.MustCompile(`(?i)(?:^|[-_.])(\d+(?:\.\d+)?)([mb])(?:$|[-_.])`)

// sparse finds names whose size may be that of one expert or of the active ones.
var sparse = regexp.MustCompile(`(?i)\d+x\d|\d+e\b|-a\d|moe|mixtral`)

// statedSize is the number of parameters in a model's name: 7e9 for "llama-2-7b-hf".
func statedSize(name string) (float64, bool) {
	m := size.FindStringSubmatch(last(name))
	if m == nil {
		return 0, false
	}
	x, err := strconv.ParseFloat(m[1], 64)
	factor := 1e9
	if strings.EqualFold(m[2], "m") {
		factor = 1e6
	}
	return x * factor, err == nil && x > 0
}

func count(n float64) string {
	switch {
	case n >= 1e9:
		return strconv.FormatFloat(n/1e9, 'f', 1, 64) + "b"
	case n >= 1e6:
		return strconv.FormatFloat(n/1e6, 'f', 1, 64) + "m"
	}
	return strconv.FormatFloat(n, 'f', 0, 64)
}

func last(name string) string { return name[strings.LastIndexByte(name, '/')+1:] }

// names are what a base is called: the repository of a Hugging Face cache folder, or a folder name that has
// a size in it; "" for any other folder. other is the _name_or_path of its config.json, which may
// be the model it was trained from, and so can clear an adapter but not convict it.
func names(path string) (name, other string) {
	path = folder(path)
	var config struct {
		Name string `json:"_name_or_path"`
	}
	if b := smallFile(filepath.Join(path, "config.json"), 1<<20); b != nil && json.Unmarshal(b, &config) == nil {
		other = config.Name
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", other
	}
	for _, part := range strings.Split(filepath.ToSlash(abs), "/") {
		if repo, ok := strings.CutPrefix(part, "models--"); ok {
			return strings.ReplaceAll(repo, "--", "/"), other
		}
	}
	if _, ok := statedSize(filepath.Base(abs)); ok {
		name = filepath.Base(abs)
	}
	return name, other
}

// folder is a path, or the folder of a file.
func folder(path string) string {
	if st, err := os.Stat(path); err == nil && !st.IsDir() {
		return filepath.Dir(path)
	}
	return path
}

// related reports whether two names may be of one model: they share a word, or one
// has none.
func related(a, b string) bool {
	wa, wb := words(strings.ToLower(last(a))), words(strings.ToLower(last(b)))
	for _, x := range wa {
		if slices.ContainsFunc(wb, func(y string) bool { return strings.Contains(x, y) || strings.Contains(y, x) }) {
			return true
		}
	}
	return len(wa) == 0 || len(wb) == 0
}

// words are the parts of a name that tell models apart: letters only, no shorter than three, and none of
// those that any model may have.
func words(name string) []string {
	common := []string{"base", "model", "instruct", "chat", "hf", "bnb", "bit", "gguf", "fp", "bf", "int", "awq", "gptq", "it", "pt", "merged"}
	return slices.DeleteFunc(strings.FieldsFunc(name, func(r rune) bool { return !unicode.IsLetter(r) }), func(w string) bool {
		return len(w) < 3 || slices.Contains(common, w)
	})
}

// moreTokens compares the tokenizer an adapter's folder holds with the base's embedding.
func moreTokens(dir string, base formats.Model) *finding.Finding {
	if st, err := os.Stat(dir); err == nil && !st.IsDir() {
		return nil
	}
	rows := embeddingRows(base.Tensors())
	file, id := lastToken(dir)
	if rows == 0 || id < rows {
		return nil
	}
	if _, own := lastToken(folder(base.Path())); own >= id {
		return nil // some models ship with tokens they have no row for
	}
	return finding.Warnf("adapter.vocab_mismatch", file, "the adapter's tokenizer has tokens that the base has no embedding for").
		Expected("token id "+strconv.FormatInt(id, 10), "ids below "+strconv.FormatInt(rows, 10)).
		Hinted("the adapter was trained with added tokens; without their embeddings, do not use its tokenizer")
}

// embeddingRows is the number of rows of the token embedding, 0 when no tensor has a name of one.
func embeddingRows(tensors []tensor.Tensor) int64 {
	for _, name := range []string{"embed_tokens.weight", "token_embd.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "tok_embeddings.weight"} {
		for _, t := range tensors {
			if (t.Name == name || strings.HasSuffix(t.Name, "."+name)) && len(t.Shape) == 2 {
				return t.Shape[0]
			}
		}
	}
	return 0
}

// lastToken is the highest id of the added tokens of a folder's tokenizer, and the file that says so; -1
// without any. The vocabulary itself comes with the base, and is not read.
func lastToken(dir string) (file string, id int64) {
	id = -1
	file = filepath.Join(dir, "added_tokens.json")
	var added map[string]int64
	if b := smallFile(file, 16<<20); b != nil && json.Unmarshal(b, &added) == nil {
		for _, n := range added {
			id = max(id, n)
		}
	}
	path := filepath.Join(dir, "tokenizer.json")
	for _, n := range addedTokens(path) {
		if n > id {
			file, id = path, n
		}
	}
	return file, id
}

// addedTokens reads the ids of tokenizer.json's added_tokens, which stand before the vocabulary.
func addedTokens(path string) []int64 {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	d := json.NewDecoder(io.LimitReader(f, 16<<20))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil
	}
	for d.More() {
		key, err := d.Token()
		if err != nil || key == "model" {
			return nil
		}
		if key != "added_tokens" {
			var skipped json.RawMessage
			if d.Decode(&skipped) != nil {
				return nil
			}
			continue
		}
		var tokens []struct{ ID int64 }
		if d.Decode(&tokens) != nil {
			return nil
		}
		ids := make([]int64, len(tokens))
		for i, t := range tokens {
			ids[i] = t.ID
		}
		return ids
	}
	return nil
}

// smallFile reads a small file, nil when it is not there, not regular or larger than limit.
func smallFile(path string, limit int64) []byte {
	st, err := os.Stat(path)
	if err != nil || !st.Mode().IsRegular() || st.Size() > limit {
		return nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return b
}
