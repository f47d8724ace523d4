package tokenizer

import (
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"math"
	"slices"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/hf/config"
)

func decimal(n int) string { return strconv.Itoa(n) }

// A piece is a token of a SentencePiece model.
type piece struct {
	text  string
	score float32
	kind  int32 // NORMAL 1, UNKNOWN 2, CONTROL 3, USER_DEFINED 4, UNUSED 5, BYTE 6
}

// A spModel is what is used of a SentencePiece model: sentencepiece_model.proto's ModelProto.
type spModel struct {
	pieces []piece
	// unigram is the trainer's model type, 1 where it is absent.
	modelType uint64
	// addDummyPrefix and removeExtraSpaces are the normalizer's, true where absent.
	addDummyPrefix, removeExtraSpaces bool
	charsmap                          []byte
}

// parseSP reads the protobuf of a SentencePiece model. Lengths are checked against the bytes there are.
func parseSP(file string, data []byte) (*spModel, error) {
	m := &spModel{modelType: 1, addDummyPrefix: true, removeExtraSpaces: true}
	err := fields(data, func(num protowire.Number, v value) error {
		switch {
		case num == 1 && v.kind == protowire.BytesType:
			p, err := parsePiece(v.bytes)
			if err != nil {
				return err
			}
			if len(m.pieces) >= maxTokens {
				return errors.New("too many pieces")
			}
			m.pieces = append(m.pieces, p)
		case num == 2 && v.kind == protowire.BytesType:
			return fields(v.bytes, func(num protowire.Number, v value) error {
				if num == 3 && v.kind == protowire.VarintType {
					m.modelType = v.number
				}
				return nil
			})
		case num == 3 && v.kind == protowire.BytesType:
			return fields(v.bytes, func(num protowire.Number, v value) error {
				switch {
				case num == 2 && v.kind == protowire.BytesType:
					m.charsmap = v.bytes
				case num == 3 && v.kind == protowire.VarintType:
					m.addDummyPrefix = v.number != 0
				case num == 4 && v.kind == protowire.VarintType:
					m.removeExtraSpaces = v.number != 0
				}
				return nil
			})
		}
		return nil
	})
	if err != nil {
		return nil, finding.Errorf("tokenizer.bad_protobuf", file, "the file is not a SentencePiece model: %v", err)
	}
	if len(m.pieces) == 0 {
		return nil, finding.Errorf("tokenizer.bad_protobuf", file, "the SentencePiece model has no pieces")
	}
	return m, nil
}

func parsePiece(data []byte) (piece, error) {
	p := piece{kind: normal}
	err := fields(data, func(num protowire.Number, v value) error {
		switch {
		case num == 1 && v.kind == protowire.BytesType:
			p.text = string(v.bytes)
		case num == 2 && v.kind == protowire.Fixed32Type:
			p.score = math.Float32frombits(uint32(v.number))
		case num == 3 && v.kind == protowire.VarintType:
			if v.number < 1 || v.number > 6 {
				return errors.New("unknown type of piece")
			}
			p.kind = int32(v.number)
		}
		return nil
	})
	return p, err
}

// A value is a protobuf field's: bytes or a number.
type value struct {
	kind   protowire.Type
	number uint64
	bytes  []byte
}

// fields calls f with each field of a message.
func fields(data []byte, f func(protowire.Number, value) error) error {
	for len(data) > 0 {
		num, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return protowire.ParseError(n)
		}
		data = data[n:]
		v := value{kind: kind}
		switch kind {
		case protowire.VarintType:
			v.number, n = protowire.ConsumeVarint(data)
		case protowire.Fixed32Type:
			var x uint32
			x, n = protowire.ConsumeFixed32(data)
			v.number = uint64(x)
		case protowire.Fixed64Type:
			v.number, n = protowire.ConsumeFixed64(data)
		case protowire.BytesType:
			v.bytes, n = protowire.ConsumeBytes(data)
		default:
			n = protowire.ConsumeFieldValue(num, kind, data)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		data = data[n:]
		if err := f(num, v); err != nil {
			return err
		}
	}
	return nil
}

func (r *reader) spModel(name string) (*spModel, error) {
	file := r.path(name)
	data, err := config.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, finding.Errorf("tokenizer.missing", file, "models of this architecture have a SentencePiece tokenizer, which the folder lacks").
			Hinted("copy " + name + " from the model's original folder")
	}
	if err != nil {
		return nil, err
	}
	return parseSP(file, data)
}

// pieces is the vocabulary of tokenizer.model without what other files add. User-defined pieces become
// normal ones.
func (r *reader) pieces(least int) (*vocabulary, error) {
	m, err := r.spModel("tokenizer.model")
	if err != nil {
		return nil, err
	}
	return r.fillPieces(m, least)
}

func (r *reader) fillPieces(m *spModel, least int) (*vocabulary, error) {
	size, err := r.size(len(m.pieces))
	if err != nil {
		return nil, err
	}
	v := newVocabulary(max(size, least))
	for i, p := range m.pieces {
		kind := p.kind
		if kind == userDefined {
			kind = normal
		}
		v.put(int64(i), p.text, p.score, kind)
	}
	return v, nil
}

// addedTokens lays the tokens of added_tokens.json over the vocabulary.
func (v *vocabulary) addedTokens(r *reader) error {
	var added map[string]json.Number
	if ok, err := config.ReadJSON(r.path("added_tokens.json"), &added); !ok || err != nil {
		return err
	}
	for _, text := range slices.Sorted(maps.Keys(added)) {
		id, err := added[text].Int64()
		if err != nil {
			return finding.Errorf("tokenizer.bad_id", r.path("added_tokens.json"), "the id of a token is no whole number").
				Expected(added[text], "a whole number")
		}
		v.put(id, text, -1000, userDefined)
	}
	return nil
}

// addedDecoder lays the tokens of tokenizer_config.json's added_tokens_decoder over the vocabulary. With
// looks, tokens also count as special by their looks, and others show their blanks.
func (v *vocabulary) addedDecoder(r *reader, tc map[string]any, looks bool) error {
	decoder, _ := tc["added_tokens_decoder"].(map[string]any)
	for key, x := range decoder {
		id, err := strconv.ParseInt(key, 10, 64)
		entry, ok := x.(map[string]any)
		text, ok2 := entry["content"].(string)
		if err != nil || !ok || !ok2 {
			return finding.Errorf("tokenizer.bad_added_token", r.path("tokenizer_config.json"),
				"an entry of added_tokens_decoder cannot be used").Expected(key+": "+config.Show(x), "an id and an object with a content")
		}
		kind := control
		switch {
		case config.Truthy(entry["special"]) || looks && looksSpecial(text):
		case looks:
			kind, text = userDefined, blanks(text)
		default:
			kind = userDefined
		}
		v.put(id, text, -1000, kind)
	}
	return nil
}

// sentencePiece writes the vocabulary of tokenizer.model with what the other files add.
func (r *reader) sentencePiece() error {
	v, err := r.pieces(0)
	if err != nil {
		return err
	}
	if err := v.addedTokens(r); err != nil {
		return err
	}
	tc, err := r.tokenizerConfig()
	if err != nil {
		return err
	}
	if err := v.addedDecoder(r, tc, true); err != nil {
		return err
	}
	return r.finishSPM(v)
}

// finishSPM writes a vocabulary of the SentencePiece kind and its special tokens.
func (r *reader) finishSPM(v *vocabulary) error {
	r.set("ggml.model", gguf.Of("llama"))
	r.setPre("default", "fixed")
	r.setTokens(v, true)
	return r.specials(len(v.tokens), false)
}

func (r *reader) setPre(name, rule string) {
	r.out.Pre, r.out.Rule = name, rule
	r.set("ggml.pre", gguf.Of(name))
}

func (r *reader) setTokens(v *vocabulary, scores bool) {
	r.out.Count = len(v.tokens)
	if r.out.BaseCount == 0 {
		r.out.BaseCount = len(v.tokens)
	}
	r.set("ggml.tokens", gguf.ArrayOf(v.tokens))
	if scores {
		r.set("ggml.scores", gguf.ArrayOf(v.scores))
	}
	r.set("ggml.token_type", gguf.ArrayOf(v.kinds))
}
