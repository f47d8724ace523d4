package tokenizer

import (
	"math"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// sameSteps are the names whose tokenizers split text as another name's do.
var sameSteps = map[string]string{
	"phi-2": "gpt-2", "jina-es": "gpt-2", "jina-de": "gpt-2", "jina-v2-es": "gpt-2", "jina-v2-de": "gpt-2", "roberta-bpe": "gpt-2",
	"exaone4": "gpt-2", "a.x-4.0": "gpt-2", "mellum": "gpt-2", "modern-bert": "gpt-2", "gigachat": "gpt-2",
	"olmo": "gpt-2", "mpt": "gpt-2", "jais": "gpt-2", "trillion": "gpt-2", "granite-docling": "gpt-2",
	"falcon3": "llama-bpe", "pixtral": "llama-bpe", "lfm2": "llama-bpe", "midm-2.0": "llama-bpe", "falcon-h1": "llama-bpe", "jina-v5-nano": "llama-bpe",
	"llama3": "llama-bpe", "llama-v3": "llama-bpe", "dbrx": "llama-bpe", "smaug-bpe": "llama-bpe", "glm4": "llama-bpe", "chatglm-bpe": "llama-bpe",
	"stablelm2": "qwen2", "deepseek-r1-qwen": "qwen2", "megrez": "qwen2", "kormo": "qwen2", "hunyuan": "qwen2", "solar-open": "qwen2", "grok-2": "qwen2",
	"refact": "starcoder", "smollm": "starcoder", "codeshell": "starcoder", "exaone": "starcoder", "minerva-7b": "starcoder", "mellum2": "starcoder",
	"command-r": "starcoder", "llama4": "gpt-4o", "kanana2": "gpt-4o", "minimax-m2": "gpt-4o", "hunyuan-dense": "deepseek-v3", "joyai-llm": "deepseek-v3",
}

// composing are the names whose tokenizers bring text into NFC first.
var composing = map[string]bool{
	"olmo": true, "mpt": true, "qwen2": true, "qwen35": true, "command-r": true, "deepseek-r1-qwen": true, "stablelm2": true,
}

// ignoringMerges are the names whose tokenizers take a word that is a token as it is.
var ignoringMerges = []string{
	"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano", "tekken", "minicpm5", "youtu",
}

// preTokenizerOf is the pre_tokenizer of tokenizer.json for a name, and the type of its normalizer, "" for
// none. It is false where the name does not tell the steps.
func preTokenizerOf(name string) (steps any, normalizer string, ok bool) {
	like := name
	if same := sameSteps[name]; same != "" {
		like = same
	}
	for _, s := range structures() {
		if s.name != like {
			continue
		}
		var list []object
		for part := range strings.SplitSeq(s.parts, "\t") {
			step := stepOf(part)
			if step == nil {
				return nil, "", false
			}
			list = append(list, step)
		}
		if composing[name] {
			normalizer = "NFC"
		}
		if len(list) == 1 {
			return list[0], normalizer, true
		}
		return object{{"type", "Sequence"}, {"pretokenizers", list}}, normalizer, true
	}
	return nil, "", false
}

// whole are the patterns that the table knows by their beginnings.
var whole = map[string]string{
	`\s?[A-Za-z…]+`: `\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+`,
	`\s?[!-/:-~…]+`: `\s?[!-/:-~！-／：-～‘-‟　-。]+`,
}

// stepOf is the inverse of what partsOf writes for a step; nil where that is not the whole step.
func stepOf(part string) object {
	kind, value, _ := strings.Cut(strings.TrimSuffix(part, ")"), "(")
	switch kind {
	case "ByteLevel":
		return object{{"type", kind}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", value == "regex"}}
	case "Digits":
		return object{{"type", kind}, {"individual_digits", value == "each"}}
	case "Punctuation":
		return object{{"type", kind}, {"behavior", value}}
	case "Split":
		if w := whole[value]; w != "" {
			value = w
		}
		return object{{"type", kind}, {"pattern", object{{"Regex", value}}}, {"behavior", "Isolated"}, {"invert", false}}
	}
	return nil
}

// encode writes a SentencePiece model of byte-fallback BPE with the pieces as they are.
func (m *spModel) encode(unk int) []byte {
	var b []byte
	for _, p := range m.pieces {
		var x []byte
		x = protowire.AppendTag(x, 1, protowire.BytesType)
		x = protowire.AppendString(x, p.text)
		x = protowire.AppendTag(x, 2, protowire.Fixed32Type)
		x = protowire.AppendFixed32(x, math.Float32bits(p.score))
		if p.kind != normal {
			x = protowire.AppendTag(x, 3, protowire.VarintType)
			x = protowire.AppendVarint(x, uint64(p.kind))
		}
		b = protowire.AppendTag(b, 1, protowire.BytesType)
		b = protowire.AppendBytes(b, x)
	}
	number := func(x []byte, field protowire.Number, v uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(x, field, protowire.VarintType), v)
	}
	trainer := number(nil, 3, m.modelType)
	trainer = number(trainer, 4, uint64(len(m.pieces))) // vocab_size
	if slices.ContainsFunc(m.pieces, func(p piece) bool { return p.kind == byteToken }) {
		trainer = number(trainer, 35, 1) // byte_fallback
	}
	trainer = number(trainer, 40, uint64(unk)) // unk_id
	b = protowire.AppendTag(b, 2, protowire.BytesType)
	b = protowire.AppendBytes(b, trainer)
	flag := map[bool]uint64{true: 1}
	normalizer := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "identity")
	normalizer = number(normalizer, 3, flag[m.addDummyPrefix])
	normalizer = number(normalizer, 4, flag[m.removeExtraSpaces])
	normalizer = number(normalizer, 5, 1) // escape_whitespaces
	b = protowire.AppendTag(b, 3, protowire.BytesType)
	return protowire.AppendBytes(b, normalizer)
}
