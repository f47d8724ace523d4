package gguflora

import (
	"cmp"
	"errors"
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

// Options are what a GGUF adapter needs to know beside the adapter itself.
type Options struct {
	// Arch and HP are llama.cpp's name of the base's architecture and the base's geometry.
	Arch string
	HP   naming.HyperParameters
	// Tied: the base shares its input and output embeddings, so a GGUF of it has no output matrix.
	Tied bool
	// SkipTied leaves the update of a tied output matrix out, with a warning, instead of refusing it.
	SkipTied bool
	// DType is the type of the factors: F32 (also for Invalid), F16, BF16 or Q8_0.
	DType tensor.DType
	// General are general.* keys. Without any, those of the adapter's own metadata are written, or Name as
	// general.name; see NameOf.
	General gguf.KVs
	Name    string
}

// A File is a GGUF adapter ready to be written with gguf.NewLayout.
type File struct {
	Header   gguf.Header
	Weights  []adapter.Weight // in file order
	Findings []finding.Finding
}

// Encode translates a PEFT-like adapter to llama.cpp's names, row order and single alpha. Key-values and
// tensors are in the order of llama.cpp's own converter. No weight is read. The scale of each module is
// kept: what one alpha cannot say goes into the module's lora_b.
func Encode(a *adapter.Adapter, opt Options) (*File, error) {
	e := &encoder{a: a, opt: opt, byName: map[string]*output{}}
	if opt.DType == tensor.Invalid {
		e.opt.DType = tensor.F32
	}
	if e.opt.Arch == "" {
		e.opt.Arch = a.Arch
	}
	for i := range a.Updates {
		if err := e.update(i, &a.Updates[i]); err != nil {
			return nil, err
		}
	}
	if len(e.outputs)+len(e.file.Weights) == 0 {
		return nil, finding.Errorf("adapter.empty_adapter", a.Path, "no update is left to write")
	}
	e.chooseAlpha()
	for _, o := range e.ordered() {
		if err := e.write(o); err != nil {
			return nil, err
		}
	}
	if err := e.keys(); err != nil {
		return nil, err
	}
	return &e.file, nil
}

// NameOf is the general.name that llama.cpp derives from the name of an adapter's folder: words are
// separated by blanks, and all-lower-case ones get a capital.
func NameOf(folder string) string {
	words := strings.Fields(strings.ReplaceAll(folder, "-", " "))
	for i, w := range words {
		version := len(w) > 1 && w[0] == 'v' && w[1] >= '0' && w[1] <= '9' && strings.Trim(w[1:], "0123456789.") == ""
		if w == strings.ToLower(w) && w != strings.ToUpper(w) && !version && (w[0] < '0' || w[0] > '9') {
			words[i] = title(w)
		}
	}
	return strings.Join(words, " ")
}

// title gives a capital to every letter that follows no letter.
func title(w string) string {
	b := []byte(w)
	for i, c := range b {
		if letter := c >= 'a' && c <= 'z'; letter && (i == 0 || b[i-1]|0x20 < 'a' || b[i-1]|0x20 > 'z') {
			b[i] = c - 'a' + 'A'
		}
	}
	return string(b)
}

type encoder struct {
	a       *adapter.Adapter
	opt     Options
	file    File
	alpha   float64
	outputs []*output
	byName  map[string]*output
}

// An output is one pair to be written.
type output struct {
	tensor  string
	experts int64 // 0: a plain matrix
	parts   []part
	last    int    // index of the last update that contributes
	leaf    string // last component of the module, by which stacks of a block are ordered
}

// A part is one update's contribution to a pair.
type part struct {
	u      *adapter.Update
	place  naming.Place
	expert int64
}

func (e *encoder) refuse(u *adapter.Update, format string, a ...any) *finding.Finding {
	f := finding.Errorf("adapter.unsupported_feature", e.a.Path, format, a...)
	f.Module = u.Module
	if len(u.Tensors) > 0 {
		f.Tensor = u.Tensors[0]
	}
	return f
}

const mergeInstead = "merge the adapter into the base instead"

func (e *encoder) update(i int, u *adapter.Update) error {
	switch u.Kind {
	case adapter.LowRank:
	case adapter.Replace:
		return e.replace(u)
	case adapter.DoRA:
		return e.refuse(u, "a GGUF LoRA cannot carry DoRA magnitudes").Hinted(mergeInstead)
	case adapter.Bias:
		return e.refuse(u, "a GGUF LoRA cannot carry a bias of lora_B").Hinted(mergeInstead)
	case adapter.Rows:
		return e.refuse(u, "a GGUF LoRA cannot carry trained token rows").Hinted(mergeInstead)
	default:
		return e.refuse(u, "a GGUF LoRA cannot carry an update of kind %q", u.Kind).Hinted(mergeInstead)
	}
	if u.Layer == adapter.Conv {
		return e.refuse(u, "a GGUF LoRA cannot carry a convolution").Hinted(mergeInstead)
	}
	places, err := e.places(u)
	if err != nil {
		return err
	}
	for _, p := range places {
		if p.Tensor == "output.weight" && e.opt.Tied {
			return e.tied(u)
		}
		pt := part{u: u, place: p, expert: p.Expert}
		experts := p.Experts
		if u.Experts > 0 && experts == 0 {
			pt.expert, experts = int64(u.Expert), int64(u.Experts)
		}
		o := e.byName[p.Tensor]
		if o == nil {
			o = &output{tensor: p.Tensor, experts: experts, leaf: u.Module[strings.LastIndexByte(u.Module, '.')+1:]}
			e.byName[p.Tensor] = o
			e.outputs = append(e.outputs, o)
		}
		if o.experts != experts {
			return e.refuse(u, "some updates of %q are for experts and others are not", p.Tensor)
		}
		o.parts, o.last = append(o.parts, pt), i
	}
	return nil
}

// places asks the architecture's table where the update's parameter is stored.
func (e *encoder) places(u *adapter.Update) ([]naming.Place, error) {
	ps, err := naming.ToGGUF(e.opt.Arch, e.opt.HP, u.Module, u.Param)
	if missing := (*naming.NotFound)(nil); errors.As(err, &missing) {
		f := e.refuse(u, "llama.cpp's %s has no tensor for %q", e.opt.Arch, u.Target)
		f.Code = "match.unmatched_target"
		if missing.Reason != "" {
			f.Message += ": " + missing.Reason
		}
		if len(missing.Nearest) > 0 {
			f.Want = "one of " + strings.Join(missing.Nearest, ", ")
		}
		return nil, f
	} else if err != nil {
		return nil, e.refuse(u, "%v", err)
	}
	return ps, nil
}

func (e *encoder) tied(u *adapter.Update) error {
	const why = "the base ties its output matrix to the token embedding, so its GGUF has no output.weight for the update of %q (lm_head)"
	if !e.opt.SkipTied {
		return e.refuse(u, why, u.Module).Hinted("leave the module out, or merge into a base with an output matrix of its own (tie_word_embeddings false)")
	}
	f := finding.Warnf("adapter.tied_embedding", e.a.Path, why+"; it is left out", u.Module)
	e.file.Findings = append(e.file.Findings, *f)
	return nil
}

// replace writes norm vectors, as llama.cpp's converter does, and drops the copy of a base embedding that
// PEFT saves beside its factors.
func (e *encoder) replace(u *adapter.Update) error {
	if slices.ContainsFunc(e.a.Updates, func(v adapter.Update) bool { return v.Kind == adapter.LowRank && v.Target == u.Target }) {
		f := finding.Warnf("adapter.base_copy", e.a.Path, "the adapter's copy of the base's %q is not written; the adapter needs a base with these very rows", u.Target)
		e.file.Findings = append(e.file.Findings, *f)
		return nil
	}
	if u.Value.Rows != 1 || !strings.Contains(u.Module, "norm") || u.Param != "weight" {
		return e.refuse(u, "a GGUF LoRA cannot carry a replaced parameter (%q)", u.Target).Hinted(mergeInstead)
	}
	places, err := e.places(u)
	if err != nil {
		return err
	}
	if len(places) != 1 || places[0].Heads > 0 || places[0].Rows > 0 {
		return e.refuse(u, "the vector %q has no single place in a GGUF", u.Target)
	}
	v := u.Value
	if slices.Contains(normPlusOne, e.opt.Arch) && e.a.Space == naming.HF {
		v = v.Map(func(x float32) float32 { return x + 1 })
	}
	f := finding.Warnf("adapter.peer_ignores", e.a.Path, "the norm vector is written, but llama.cpp ignores it").In(places[0].Tensor)
	e.file.Findings = append(e.file.Findings, *f)
	e.file.Weights = append(e.file.Weights, adapter.Weight{Spec: tensor.Spec{Name: places[0].Tensor, DType: tensor.F32, Shape: tensor.Shape{v.Cols}}, Values: v})
	return nil
}

// normPlusOne are architectures whose GGUF norms are 1 more than Hugging Face's.
var normPlusOne = []string{"gemma", "gemma2", "gemma3", "nemotron"}

// chooseAlpha takes the most frequent scale × rank as the file's alpha, the first of several.
func (e *encoder) chooseAlpha() {
	count := map[float64]int{}
	for _, o := range e.outputs {
		for _, p := range o.parts {
			count[alphaOf(p.u)]++
		}
	}
	for _, o := range e.outputs {
		for _, p := range o.parts {
			// An alpha of 0 would be read as "scale 1", and one that float32 cannot hold not at all.
			a := alphaOf(p.u)
			if f := float32(a); f != 0 && !math.IsInf(float64(f), 0) && count[a] > count[e.alpha] {
				e.alpha = a
			}
		}
	}
	if e.alpha == 0 {
		e.alpha = 1
	}
}

// alphaOf is the alpha that gives the update's scale as alpha / rank.
func alphaOf(u *adapter.Update) float64 {
	r := float64(u.Rank)
	if u.Scale.Value == u.Scale.Alpha/r {
		return u.Scale.Alpha
	}
	if u.Scale.Value == u.Scale.Alpha/math.Sqrt(r) {
		return u.Scale.Alpha * math.Sqrt(r) // not (alpha/√r)·r, which rounds twice
	}
	return u.Scale.Value * r
}

// ordered is the order in which llama.cpp's converter writes: a pair where its update stands, but all
// stacks of a block together, where the last expert of the block stands, by the names of the modules.
func (e *encoder) ordered() []*output {
	last := map[string]int{}
	block := func(o *output) string {
		name := strings.SplitN(o.tensor, ".", 3)
		return strings.Join(name[:min(2, len(name))], ".")
	}
	for _, o := range e.outputs {
		if o.experts > 0 {
			last[block(o)] = max(last[block(o)], o.last)
		}
	}
	at := func(o *output) int {
		if o.experts > 0 {
			return last[block(o)]
		}
		return o.last
	}
	slices.SortStableFunc(e.outputs, func(x, y *output) int {
		if c := cmp.Compare(at(x), at(y)); c != 0 || x.experts == 0 || y.experts == 0 {
			return c
		}
		return cmp.Compare(x.leaf, y.leaf)
	})
	return e.outputs
}

func (e *encoder) keys() error {
	kvs := gguf.KVs{
		{Key: keyArch, Value: gguf.Of(e.opt.Arch)},
		{Key: keyType, Value: gguf.Of("adapter")},
		{Key: keyKind, Value: gguf.Of("lora")},
	}
	general := e.opt.General
	if len(general) == 0 {
		general = generalKeys(e.a)
	}
	if len(general) == 0 && e.opt.Name != "" {
		general.Set(keyName, gguf.Of(e.opt.Name))
	}
	kvs = append(kvs, general...)
	kvs.Set(keyAlpha, gguf.Of(float32(e.alpha)))
	for _, m := range e.a.Metadata {
		if m[0] != adapter.InvocationTokens {
			continue
		}
		var ids []uint32
		for s := range strings.SplitSeq(m[1], ",") {
			id, err := strconv.ParseUint(s, 10, 32)
			if err != nil {
				return finding.Errorf("adapter.bad_alora", e.a.Path, "an invocation token is not a token id").Expected(fmt.Sprintf("%q", s), "a number")
			}
			ids = append(ids, uint32(id))
		}
		kvs.Set(keyTokens, gguf.ArrayOf(ids))
	}
	kvs.Set(keyVersion, gguf.Of(uint32(2)))
	e.file.Header = gguf.Header{KVs: kvs, KeepDims: true}
	return nil
}
