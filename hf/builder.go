package hf

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/hf/config"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// A builder turns a folder's tensors into GGUF tensors, one after the other.
type builder struct {
	dir    string
	arch   string
	hp     naming.HyperParameters
	config *config.Config
	tokens int64 // of the tokenizer, 0 if unknown

	out    []tensor.Tensor
	made   map[string]string           // GGUF tensor → the folder's tensor it was made of
	stacks map[string]map[string]stack // block of experts → GGUF tensor → what has arrived
}

// A stack is the matrices of a block's experts that have been met so far.
type stack struct {
	leaf    string // last name of the module, which orders the stacks of a block
	experts []*source
	found   int
}

// build lists the GGUF tensors of a folder in the converter's order: first those that no tensor of the
// folder is the counterpart of, then as the folder's tensors come.
func (b *builder) build(folder []*tensor.Tensor) error {
	b.made, b.stacks = map[string]string{}, map[string]map[string]stack{}
	if err := b.ropeFactors(); err != nil {
		return err
	}
	packed, err := b.packedExperts(folder)
	if err != nil {
		return err
	}
	for _, t := range folder {
		if packed[t.Name] || left(b.arch, t.Name) {
			continue
		}
		if err := b.add(t); err != nil {
			f := finding.Of(err)
			if f == nil {
				f = finding.Errorf("base.unsupported", b.dir, "%v", err)
			}
			return f.In(t.Name)
		}
	}
	for _, block := range slices.Sorted(maps.Keys(b.stacks)) {
		found, all := 0, 0
		for _, s := range b.stacks[block] {
			found += s.found
			all = expertMatrices * len(s.experts)
		}
		return finding.Errorf("base.missing_tensor", b.dir, "not all matrices that belong together are there").In(block).Expected(found, all)
	}
	return nil
}

// add maps one tensor.
func (b *builder) add(t *tensor.Tensor) error {
	if err := positive(t.Shape); err != nil {
		return err
	}
	name := renamed(b.arch, t.Name)
	if b.arch == "bert" && b.labelled() {
		name = strings.Replace(name, "classifier.weight", "classifier.out_proj.weight", 1)
		name = strings.Replace(name, "classifier.bias", "classifier.out_proj.bias", 1)
	}
	module, param := name, ""
	if i := strings.LastIndexByte(name, '.'); i >= 0 {
		module, param = name[:i], name[i+1:]
	}
	if b.dropsHead() && (module == "lm_head" || strings.HasSuffix(module, ".lm_head")) {
		return nil
	}
	if b.arch == "deepseek2" && b.hp.Layers > 0 && layerOf(name) >= b.hp.Layers {
		return nil // layers that predict further tokens
	}
	places, err := b.places(module, param)
	if p, ok := b.headNorm(module); ok {
		places, err = []naming.Place{p}, nil
	}
	if err != nil {
		return err
	}
	s, ok := asSource(t)
	if !ok {
		return finding.Errorf("base.unsupported", b.dir, "type %s holds no numbers that GGUF can take", t.DType)
	}
	if b.arch == "cohere2" && param == "bias" {
		return b.zeroBias(s)
	}
	if strings.HasPrefix(b.arch, "gemma") && strings.HasSuffix(name, "norm.weight") {
		s = shifted(s, 1)
	}
	if s, err = b.rows(s, places[0].Tensor); err != nil {
		return err
	}
	return b.place(t.Name, module, param, s, places)
}

// places are where a parameter goes.
func (b *builder) places(module, param string) ([]naming.Place, error) {
	places, err := naming.ToGGUF(b.arch, b.hp, module, param)
	var missing *naming.NotFound
	if errors.As(err, &missing) {
		return nil, finding.Errorf("base.unknown_tensor", b.dir, "%s models have no place for this tensor in llama.cpp", b.arch).
			Hinted("the folder may hold more than the model, or config.json another architecture than the weights")
	}
	if err != nil {
		return nil, err
	}
	return places, nil
}

// place makes the GGUF tensors that a source goes to.
func (b *builder) place(name, module, param string, s source, places []naming.Place) error {
	for len(places) > 0 {
		n := 1
		for n < len(places) && places[n].Tensor == places[0].Tensor {
			n++
		}
		group := places[:n]
		places = places[n:]
		if p := group[0]; p.Experts > 0 && p.Run == 0 {
			if err := b.expert(module, s, p); err != nil {
				return err
			}
			continue
		}
		out, err := b.reordered(s, group, b.storedTransposed(module, param))
		if err != nil {
			return err
		}
		if err := b.emit(name, group[0].Tensor, out); err != nil {
			return err
		}
	}
	return nil
}

// emit appends a tensor.
func (b *builder) emit(from, name string, s source) error {
	if other, ok := b.made[name]; ok {
		return finding.Errorf("base.duplicate_tensor", b.dir, "this tensor and %q are both %q in GGUF", other, name)
	}
	b.made[name] = from
	if stays32(name, s.shape) && s.dtype != tensor.MXFP4 {
		s, _ = widened(s)
	}
	spec := tensor.Spec{Name: name, DType: s.dtype, Shape: s.shape}
	size, err := spec.Bytes()
	if err != nil {
		return err
	}
	t := tensor.Tensor{Spec: spec, Src: s.ReaderAt, Size: size}
	if stored, ok := s.ReaderAt.(*tensor.Tensor); ok {
		t.Src, t.Off = stored.Src, stored.Off
	}
	b.out = append(b.out, t)
	return nil
}

// expert collects a matrix of a stack. When a block has all of its matrices, its stacks are appended.
func (b *builder) expert(module string, s source, p naming.Place) error {
	i := strings.LastIndex(module, ".experts.")
	block, leaf := p.Tensor, ""
	if i >= 0 {
		block, leaf = module[:i], module[strings.LastIndexByte(module, '.')+1:]
	}
	if b.stacks[block] == nil {
		b.stacks[block] = map[string]stack{}
	}
	st := b.stacks[block][p.Tensor]
	if st.experts == nil {
		st = stack{leaf: leaf, experts: make([]*source, p.Experts)}
	}
	if st.experts[p.Expert] != nil {
		return finding.Errorf("base.duplicate_tensor", b.dir, "expert %d is there twice", p.Expert)
	}
	st.experts[p.Expert] = &s
	st.found++
	b.stacks[block][p.Tensor] = st
	found := 0
	for _, st := range b.stacks[block] {
		found += st.found
	}
	all := expertMatrices * p.Experts
	if p.Rule == headNormRule {
		all = p.Experts
	}
	if int64(found) < all {
		return nil
	}
	names := make([]string, 0, expertMatrices)
	for name := range b.stacks[block] {
		names = append(names, name)
	}
	slices.SortFunc(names, func(x, y string) int {
		return strings.Compare(b.stacks[block][x].leaf, b.stacks[block][y].leaf)
	})
	for _, name := range names {
		out, err := stacked(b.stacks[block][name].experts)
		if err != nil {
			return err
		}
		if err := b.emit(module, name, out); err != nil {
			return err
		}
	}
	delete(b.stacks, block)
	return nil
}

// expertMatrices is how many matrices an expert has: gate, up and down.
const expertMatrices = 3

// stacked joins the matrices of all experts.
func stacked(experts []*source) (source, error) {
	var sections []section
	first := experts[0]
	size, err := tensor.Spec{DType: first.dtype, Shape: first.shape}.Bytes()
	if err != nil {
		return source{}, err
	}
	for i, s := range experts {
		if s.dtype != first.dtype || !slices.Equal(s.shape, first.shape) {
			return source{}, fmt.Errorf("expert %d is %s%v, but expert 0 is %s%v", i, s.dtype, s.shape, first.dtype, first.shape)
		}
		sections = append(sections, whole{s.ReaderAt, 0, size})
	}
	shape := append(tensor.Shape{int64(len(experts))}, first.shape...)
	return source{newView(sections), first.dtype, shape}, nil
}

// headNormRule is the Rule of the places of headNorm.
const headNormRule = "head norm"

// headNorm is the place of one head's query or key norm, which the largest StableLM stores apart:
// self_attn.q_layernorm.norms.H. llama.cpp stacks them.
func (b *builder) headNorm(module string) (naming.Place, bool) {
	head, number, ok := strings.Cut(module, "_layernorm.norms.")
	if b.arch != "stablelm" || !ok {
		return naming.Place{}, false
	}
	p := naming.Place{Rule: headNormRule, Expert: layerOf(number)}
	kind := head[strings.LastIndexByte(head, '.')+1:]
	switch kind {
	case "q":
		p.Experts = b.hp.Heads
	case "k":
		p.Experts = b.hp.KVHeads
	}
	if p.Expert < 0 || p.Expert >= p.Experts {
		return p, false
	}
	p.Tensor = fmt.Sprintf("blk.%d.attn_%s_norm.weight", layerOf(head), kind)
	return p, true
}

// labelled reports whether a classifier's outputs have names. The pair that configuration classes make up
// does not count.
func (b *builder) labelled() bool {
	ids, _ := b.config.Get("id2label").(map[string]any)
	return len(ids) > 0 && !(len(ids) == 2 && ids["0"] == "LABEL_0" && ids["1"] == "LABEL_1")
}

// positive refuses a tensor without dimensions or elements.
func positive(shape tensor.Shape) error {
	if len(shape) == 0 || slices.Min(shape) <= 0 {
		return fmt.Errorf("a tensor of shape %v has no place in a model", shape)
	}
	return nil
}

// storedTransposed reports whether the folder stores a parameter as [in, out].
func (b *builder) storedTransposed(module, param string) bool {
	switch b.arch {
	case "gpt2":
		return param == "weight" && naming.IsConv1D(module)
	case "gpt-oss":
		return param == "gate_up_proj" || param == "down_proj"
	}
	return false
}

// dropsHead reports whether the output layer is left out because it is the token embedding.
func (b *builder) dropsHead() bool {
	return naming.DropsHead(b.arch) || b.arch == "deepseek2" && b.config.Get("tie_word_embeddings") == true
}

// zeroBias lets a bias pass that adds nothing; llama.cpp has no place for another.
func (b *builder) zeroBias(s source) error {
	size, err := tensor.Spec{DType: s.dtype, Shape: s.shape}.Bytes()
	if err != nil || size > span {
		return finding.Errorf("base.unsupported", b.dir, "a bias of this size is not expected here")
	}
	data := make([]byte, size)
	if err := full(s, data, 0); err != nil {
		return err
	}
	for _, x := range data {
		if x&0x7f != 0 {
			return finding.Errorf("base.unsupported", b.dir, "llama.cpp has no place for this bias, and it is not zero")
		}
	}
	return nil
}

// rows cuts rows off that the GGUF does not store: padding of the vocabulary that the tokenizer knows
// nothing of (Gemma 3), and the positions before the first token (RoBERTa).
func (b *builder) rows(s source, name string) (source, error) {
	if len(s.shape) != 2 {
		return s, nil
	}
	from, to := int64(0), s.shape[0]
	switch {
	case name == "token_embd.weight" && strings.HasPrefix(b.arch, "gemma3") && b.tokens > 0:
		to = min(to, b.tokens)
	case name == "position_embd.weight" && b.arch == "bert" && strings.Contains(b.config.Class(), "oberta"):
		if pad, ok := config.Int(b.config.Get("pad_token_id")); ok && pad >= 0 {
			from = pad + 1
		}
	}
	if from == 0 && to == s.shape[0] {
		return s, nil
	}
	if from >= to {
		return s, fmt.Errorf("%d rows are too few for the first %d to be left out", s.shape[0], from)
	}
	width, err := s.dtype.Bytes(s.shape[1])
	if err != nil {
		return s, err
	}
	return source{newView([]section{whole{s.ReaderAt, from * width, (to - from) * width}}), s.dtype, tensor.Shape{to - from, s.shape[1]}}, nil
}

// layerOf is the first number in a name, -1 without one.
func layerOf(name string) int64 {
	for c := range strings.SplitSeq(name, ".") {
		n := int64(0)
		digits := c != "" && len(c) < 7
		for i := 0; i < len(c) && digits; i++ {
			digits = c[i] >= '0' && c[i] <= '9'
			n = 10*n + int64(c[i]-'0')
		}
		if digits {
			return n
		}
	}
	return -1
}
