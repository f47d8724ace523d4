// Package gguflora reads and writes llama.cpp's LoRA adapters: GGUF files whose general.type is
// "adapter" and whose tensors come in pairs NAME.lora_a, NAME.lora_b.
//
// Rows of a pair are in the order of the GGUF base, whose heads llama.cpp reorders for some
// architectures; module names are GGUF tensor names without ".weight". The rules are those of llama.cpp
// v0.5.0, where it is right.
package gguflora

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// The keys of an adapter file.
const (
	keyArch    = "general.architecture"
	keyType    = "general.type"
	keyName    = "general.name"
	keyKind    = "adapter.type"
	keyAlpha   = "adapter.lora.alpha"
	keyTokens  = "adapter.alora.invocation_tokens"
	keyVersion = "general.quantization_version"
)

// The suffixes of a pair's tensors.
const (
	suffixA = ".lora_a"
	suffixB = ".lora_b"
)

// embedding is the one tensor whose pair is stored the other way round: lora_a holds a row a token.
const embedding = "token_embd.weight"

// mostExperts bounds the experts of a stack, each of which becomes an update.
const mostExperts = 1 << 16

// Detect reports whether a file is a GGUF adapter.
func Detect(path string) bool {
	m, err := gguf.Open(path)
	if err != nil {
		return false
	}
	defer m.Close()
	t, _ := m.KVs().Text(keyType)
	_, kind := m.Get(keyKind)
	return t == "adapter" || kind
}

// Open reads an adapter file. Its factors are read when they are loaded; Close the adapter after that.
func Open(path string) (*adapter.Adapter, error) {
	m, err := gguf.Open(path)
	if err != nil {
		return nil, err
	}
	a, err := Decode(m)
	if err != nil {
		m.Close()
		return nil, err
	}
	a.OnClose(m.Close)
	return a, nil
}

// Decode makes an adapter of an open GGUF file, which must stay open while factors are loaded.
func Decode(m *gguf.Model) (*adapter.Adapter, error) {
	d := &decoder{file: m.Path(), kvs: m.KVs(), a: &adapter.Adapter{
		Path: m.Path(), Dialect: "gguf", Space: naming.GGUF, Arch: m.Arch(), Findings: slices.Clone(m.Findings()),
	}}
	for _, step := range []func() error{d.kind, d.alpha, d.tokens, d.general, func() error { return d.tensors(m.Tensors()) }} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return d.a, nil
}

type decoder struct {
	a    *adapter.Adapter
	file string
	kvs  gguf.KVs

	alphaValue float64
	alphaSet   bool // alpha counts; otherwise the scale is 1
	alphaText  string
}

func (d *decoder) warn(reason, format string, a ...any) *finding.Finding {
	d.a.Findings = append(d.a.Findings, *finding.Warnf("adapter."+reason, d.file, format, a...))
	return &d.a.Findings[len(d.a.Findings)-1]
}

func (d *decoder) kind() error {
	if t, ok := d.kvs.Text(keyType); t != "adapter" {
		if !ok {
			t = "nothing"
		}
		return finding.Errorf("adapter.not_an_adapter", d.file, "%s does not say that the file is an adapter", keyType).Expected(t, "adapter")
	}
	if t, ok := d.kvs.Text(keyKind); t != "lora" {
		if !ok {
			t = "nothing"
		}
		return finding.Errorf("adapter.unsupported_adapter", d.file, "%s is not a kind of adapter this program knows", keyKind).Expected(t, "lora")
	}
	return nil
}

// alpha reads the one alpha of the file. llama.cpp takes 0, and a missing key, as "scale 1".
func (d *decoder) alpha() error {
	v, ok := d.kvs.Get(keyAlpha)
	if !ok {
		d.warn("missing_alpha", "%s is missing: llama.cpp then scales by 1, and so does this program", keyAlpha)
		d.alphaText = "no " + keyAlpha
		return nil
	}
	f, isFloat := v.Float()
	if !isFloat || v.Type() != gguf.Float32 || math.IsNaN(f) || math.IsInf(f, 0) {
		return finding.Errorf("adapter.bad_alpha", d.file, "%s must be a finite number", keyAlpha).Expected(v.String()+" of type "+v.Type().String(), "a finite f32")
	}
	d.alphaValue = f
	d.alphaText = keyAlpha + " " + strconv.FormatFloat(f, 'g', -1, 32)
	switch {
	case f == 0:
		d.warn("alpha_zero", "%s is 0: llama.cpp then scales by 1, and so does this program", keyAlpha)
		return nil
	case f < 0:
		d.warn("alpha_negative", "%s is negative: the update is subtracted", keyAlpha)
	}
	d.alphaSet = true
	return nil
}

func (d *decoder) scale(rank int64) adapter.Scale {
	s := adapter.Scale{Value: 1, Alpha: d.alphaValue, Rank: int(rank), Source: d.alphaText + ": 1, as llama.cpp takes it"}
	if d.alphaSet {
		s.Value = d.alphaValue / float64(rank)
		s.Source = fmt.Sprintf("%s / rank %d", d.alphaText, rank)
	}
	return s
}

// tokens reads the invocation tokens of an activated LoRA.
func (d *decoder) tokens() error {
	v, ok := d.kvs.Get(keyTokens)
	if !ok {
		return nil
	}
	ids, isList := v.Any().([]uint32)
	if !isList || len(ids) == 0 {
		return finding.Errorf("adapter.bad_alora", d.file, "%s must be a list of token ids", keyTokens).Expected(v.String(), "an array of u32")
	}
	text := strings.ReplaceAll(strings.Trim(fmt.Sprint(ids), "[]"), " ", ",")
	d.a.Metadata = append(d.a.Metadata, [2]string{adapter.InvocationTokens, text})
	d.a.NoMerge = finding.Errorf("adapter.unsupported_feature", d.file, "an aLoRA acts only after its invocation tokens, so no fixed weight equals it").
		Hinted("let llama.cpp apply it at run time")
	return nil
}

// tensors pairs the factors up, in file order.
func (d *decoder) tensors(ts []tensor.Tensor) error {
	byName := map[string]*tensor.Tensor{}
	for i := range ts {
		byName[ts[i].Name] = &ts[i]
	}
	for i := range ts {
		t := &ts[i]
		base, isA := strings.CutSuffix(t.Name, suffixA)
		other, isB := strings.CutSuffix(t.Name, suffixB)
		switch {
		case isA && byName[base+suffixB] == nil, isB && byName[other+suffixA] == nil:
			return d.errorf("missing_pair", t.Name, "the other factor of the pair is missing")
		case isA:
			if err := d.pair(base, t, byName[base+suffixB]); err != nil {
				return err
			}
		case isB:
		case strings.HasSuffix(t.Name, "_norm.weight") && len(t.Shape) == 1:
			d.norm(t)
		default:
			return d.errorf("unexpected_tensor", t.Name, "neither a factor (%s, %s) nor a norm vector", suffixA, suffixB)
		}
	}
	if len(d.a.Updates) == 0 {
		return finding.Errorf("adapter.empty_adapter", d.file, "the file holds no update")
	}
	return nil
}

func (d *decoder) errorf(reason, tensor, format string, a ...any) *finding.Finding {
	return finding.Errorf("adapter."+reason, d.file, format, a...).In(tensor)
}

func (d *decoder) norm(t *tensor.Tensor) {
	d.warn("peer_ignores", "a whole norm vector: it replaces the base's here, while llama.cpp ignores it").In(t.Name)
	d.a.Updates = append(d.a.Updates, adapter.Update{
		Target: target(t.Name), Kind: adapter.Replace, Scale: adapter.Scale{Value: 1, Source: "replacement"}, Value: adapter.FromTensor(*t, 1, t.Shape[0], adapter.ReadFloats), Tensors: []string{t.Name},
	})
}

// target splits a GGUF tensor name into module and parameter.
func target(name string) adapter.Target {
	i := strings.LastIndexByte(name, '.')
	if i < 0 {
		return adapter.Target{Module: name}
	}
	return adapter.Target{Module: name[:i], Param: name[i+1:]}
}

// pair makes the updates of one base tensor: one, or one an expert of a stack.
func (d *decoder) pair(base string, ta, tb *tensor.Tensor) error {
	for _, t := range []*tensor.Tensor{ta, tb} {
		if !t.DType.IsFloat() && !t.DType.IsBlock() {
			return d.errorf("bad_dtype", t.Name, "a factor cannot be of type %s", t.DType).Expected(t.DType, "a floating-point or quantized type")
		}
		if len(t.Shape) > 3 {
			return d.errorf("shape_mismatch", t.Name, "a factor has too many dimensions").Expected(t.Shape, "[r, in] or [experts, r, in]")
		}
	}
	a, b := stackOf(ta), stackOf(tb)
	u := adapter.Update{Target: target(base), Kind: adapter.LowRank, Layer: adapter.Linear, Tensors: []string{ta.Name, tb.Name}}
	rank := a.rows
	if base == embedding {
		u.Layer, rank = adapter.Embedding, a.cols
	}
	switch {
	case rank == 0 || b.cols == 0:
		return d.errorf("rank_zero", ta.Name, "the rank is 0").Expected(ta.Shape, "[r, in] with r > 0")
	case rank != b.cols:
		return d.errorf("rank_mismatch", ta.Name, "the factors have different ranks").
			Expected(fmt.Sprintf("lora_a %v, lora_b %v", ta.Shape, tb.Shape), "lora_a [r, in], lora_b [out, r]").
			Hinted("adapters of llama.cpp's old finetune example store lora_a transposed and are no longer supported")
	case a.n != b.n, a.n == 0, b.rows == 0, a.rows == 0, a.cols == 0:
		return d.errorf("shape_mismatch", ta.Name, "the factors do not fit each other").
			Expected(fmt.Sprintf("lora_a %v, lora_b %v", ta.Shape, tb.Shape), "the same number of experts and no empty dimension")
	}
	u.Rank, u.Scale = int(rank), d.scale(rank)
	if len(ta.Shape) < 3 && len(tb.Shape) < 3 {
		u.A, u.B = a.at(0), b.at(0)
		if base == embedding {
			u.A = u.A.Transpose()
		}
		d.a.Updates = append(d.a.Updates, u)
		return nil
	}
	if base == embedding || a.n > mostExperts {
		return d.errorf("shape_mismatch", ta.Name, "a stack of factors is not expected here").Expected(ta.Shape, "[vocab, r]")
	}
	for e := range a.n {
		v := u
		v.A, v.B, v.Expert, v.Experts = a.at(e), b.at(e), int(e), int(a.n)
		d.a.Updates = append(d.a.Updates, v)
	}
	return nil
}

// A stack is a tensor seen as n matrices.
type stack struct {
	t             *tensor.Tensor
	n, rows, cols int64
}

func stackOf(t *tensor.Tensor) stack {
	s := stack{t: t, n: 1, rows: 1, cols: 1}
	dims := []*int64{&s.cols, &s.rows, &s.n}
	for i := range t.Shape {
		*dims[i] = t.Shape[len(t.Shape)-1-i]
	}
	return s
}

// at is matrix i of the stack.
func (s stack) at(i int64) adapter.Factor {
	part := *s.t
	part.Shape = tensor.Shape{s.rows, s.cols}
	part.Size = s.t.Size / s.n
	part.Off += i * part.Size
	return adapter.FromTensor(part, s.rows, s.cols, adapter.ReadFloats)
}
