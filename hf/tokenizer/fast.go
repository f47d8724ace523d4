package tokenizer

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/hf/config"
)

// A fastFile is a tokenizer.json.
type fastFile struct {
	AddedTokens   []addedToken    `json:"added_tokens"`
	Normalizer    any             `json:"normalizer"`
	PreTokenizer  any             `json:"pre_tokenizer"`
	PostProcessor any             `json:"post_processor"`
	Decoder       any             `json:"decoder"`
	RawModel      json.RawMessage `json:"model"`

	Model fastModel `json:"-"`
	file  string
}

type addedToken struct {
	ID         int64  `json:"id"`
	Content    string `json:"content"`
	SingleWord bool   `json:"single_word"`
	LStrip     bool   `json:"lstrip"`
	RStrip     bool   `json:"rstrip"`
	Normalized *bool  `json:"normalized"`
	Special    bool   `json:"special"`
}

// A fastModel is the model of a tokenizer.json: BPE, WordPiece or WordLevel with Vocab, Unigram with Pieces.
type fastModel struct {
	Type         string          `json:"type"`
	RawVocab     json.RawMessage `json:"vocab"`
	RawMerges    json.RawMessage `json:"merges"`
	ByteFallback bool            `json:"byte_fallback"`
	IgnoreMerges bool            `json:"ignore_merges"`
	UnkToken     *string         `json:"unk_token"`
	UnkID        *int64          `json:"unk_id"`
	Prefix       *string         `json:"continuing_subword_prefix"`
	MaxChars     int64           `json:"max_input_chars_per_word"`

	Vocab  map[string]int64 `json:"-"`
	Pieces []piece          `json:"-"`
	Merges []string         `json:"-"` // two parts with one blank between
	pairs  [][2]string
}

// fast reads tokenizer.json; it is nil if there is none.
func (r *reader) fast() (*fastFile, error) {
	if r.fastRead {
		return r.fastFile, nil
	}
	file := r.path("tokenizer.json")
	data, err := config.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		r.fastRead = true
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f, err := parseFast(file, data)
	if err != nil {
		return nil, err
	}
	r.fastFile, r.fastRead = f, true
	return f, nil
}

// needFast is fast for a folder that must have the file.
func (r *reader) needFast() (*fastFile, error) {
	f, err := r.fast()
	if f == nil && err == nil {
		hint := "copy tokenizer.json from the model's original folder"
		if r.has("tokenizer.model") {
			hint = "models of this architecture have no SentencePiece tokenizer; " + hint
		}
		return nil, finding.Errorf("tokenizer.missing", r.path("tokenizer.json"), "the folder has no tokenizer.json").Hinted(hint)
	}
	return f, err
}

func parseFast(file string, data []byte) (*fastFile, error) {
	f := &fastFile{file: file}
	if err := config.Unmarshal(file, data, f); err != nil {
		return nil, err
	}
	if len(f.RawModel) > 0 {
		if err := config.Unmarshal(file, f.RawModel, &f.Model); err != nil {
			return nil, err
		}
	}
	f.RawModel = nil
	m := &f.Model
	if err := m.vocabulary(file); err != nil {
		return nil, err
	}
	if err := m.merges(file); err != nil {
		return nil, err
	}
	for _, a := range f.AddedTokens {
		if a.ID < 0 || a.ID >= maxTokens {
			return nil, badID(file, a.ID)
		}
	}
	return f, nil
}

func badID(file string, id int64) error {
	return finding.Errorf("tokenizer.bad_id", file, "a token's id is out of range").Expected(id, "a number from 0 to "+decimal(maxTokens-1))
}

func (m *fastModel) vocabulary(file string) error {
	raw := m.RawVocab
	m.RawVocab = nil
	if len(raw) == 0 || string(raw) == "null" {
		return nil
	}
	if raw[0] == '[' {
		var list [][]any
		if err := config.Unmarshal(file, raw, &list); err != nil {
			return err
		}
		if len(list) > maxTokens {
			return badID(file, int64(len(list)))
		}
		for _, x := range list {
			if len(x) != 2 {
				return finding.Errorf("tokenizer.bad_vocabulary", file, "a piece is not a text and a score").Expected(config.Show(x), "[text, score]")
			}
			text, ok := x[0].(string)
			score, ok2 := config.Float(x[1])
			if !ok || !ok2 {
				return finding.Errorf("tokenizer.bad_vocabulary", file, "a piece is not a text and a score").Expected(config.Show(x), "[text, score]")
			}
			m.Pieces = append(m.Pieces, piece{text: text, score: float32(score), kind: normal})
		}
		return nil
	}
	if err := config.Unmarshal(file, raw, &m.Vocab); err != nil {
		return err
	}
	for _, id := range m.Vocab {
		if id < 0 || id >= maxTokens {
			return badID(file, id)
		}
	}
	return nil
}

// merges reads both forms of the list: "a b" and ["a", "b"]. Blanks inside a part are written as the
// byte-level alphabet does.
func (m *fastModel) merges(file string) error {
	raw := m.RawMerges
	m.RawMerges = nil
	if len(raw) == 0 || string(raw) == "null" {
		return nil
	}
	if first := bytes.TrimLeft(raw[1:], " \t\r\n"); len(first) == 0 || first[0] != '[' {
		return config.Unmarshal(file, raw, &m.Merges)
	}
	var pairs [][]string
	if err := config.Unmarshal(file, raw, &pairs); err != nil {
		return err
	}
	m.Merges = make([]string, len(pairs))
	m.pairs = make([][2]string, len(pairs))
	for i, p := range pairs {
		if len(p) != 2 {
			return finding.Errorf("tokenizer.bad_merges", file, "a merge does not have two parts").Expected(len(p), 2)
		}
		m.pairs[i] = [2]string(p)
		m.Merges[i] = byteBlanks(p[0]) + " " + byteBlanks(p[1])
	}
	return nil
}

// added maps the ids of the added tokens to them; a later one wins.
func (f *fastFile) added() map[int64]addedToken {
	m := make(map[int64]addedToken, len(f.AddedTokens))
	for _, a := range f.AddedTokens {
		m[a.ID] = a
	}
	return m
}
