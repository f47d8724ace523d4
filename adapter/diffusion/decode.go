// Package diffusion reads and writes the adapters of diffusion pipelines, whatever tool wrote them.
//
// A file's form has five dimensions, and each is handled in one place: the prefix and the suffixes of names
// (keys.go), the spelling of modules and the family they belong to (site.go and package naming), fused or
// split projections (geometry.go), and where alpha stands (alpha.go). A dialect is a row of values for
// them (dialects.go).
package diffusion

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// Options say what a file cannot.
type Options struct {
	// Base lists the base's module names: of a family without a table here they explain flattened names. It is
	// asked when they are needed, and nil where there is no base at hand.
	Base func() ([]string, error)
	// AllowUnmatched turns modules that the family does not know into a warning.
	AllowUnmatched bool
}

// Open reads an adapter file. Its factors are read when they are loaded; Close the adapter after that.
func Open(path, file string, opt Options) (*adapter.Adapter, error) {
	m, err := formats.Open(file)
	if err != nil {
		return nil, err
	}
	var metadata [][2]string
	if s, ok := m.(*safetensors.Model); ok {
		metadata = s.Metadata()
	}
	a, err := Decode(path, file, m.Tensors(), metadata, opt)
	if err != nil {
		m.Close()
		return nil, err
	}
	a.Findings = append(a.Findings, m.Findings()...)
	a.OnClose(m.Close)
	return a, nil
}

type decoder struct {
	file     string
	opt      Options
	sites    []*site
	family   *naming.DiffusionFamily
	stated   stated
	findings []finding.Finding
}

// Decode makes an adapter from the tensors and the metadata of a file. path names the adapter in findings.
// Modules are named in naming.Diffusers: fused projections become one update a part, which share A. An
// adapter that only the base's own names explain is in naming.HF. Of the data only alphas are read.
func Decode(path, file string, tensors []tensor.Tensor, metadata [][2]string, opt Options) (*adapter.Adapter, error) {
	d := &decoder{file: file, opt: opt}
	sites, rest, err := collect(file, tensors)
	if err != nil {
		return nil, err
	}
	if err := d.rest(rest); err != nil {
		return nil, err
	}
	if d.sites = sites; len(sites) == 0 {
		return nil, finding.Errorf("adapter.empty_adapter", file, "the file holds no update")
	}
	if err := d.resolve(); err != nil {
		return nil, err
	}
	if d.stated, err = readStated(file, metadata); err != nil {
		return nil, err
	}
	names := make([]string, len(tensors))
	for i := range tensors {
		names[i] = tensors[i].Name
	}
	seen := featuresOf(names, metadata)
	d.mixed(seen)
	a := &adapter.Adapter{Path: path, Dialect: seen.dialect, Space: naming.Diffusers}
	if d.family == nil {
		a.Space = naming.HF
	} else {
		a.Arch = d.family.Name
	}
	for _, s := range d.sites {
		us, err := d.updates(s)
		if err != nil {
			return nil, err
		}
		a.Updates = append(a.Updates, us...)
	}
	if a.Updates, err = d.single(a.Updates); err != nil {
		return nil, err
	}
	for _, m := range metadata {
		if m[0] != "format" {
			a.Metadata = append(a.Metadata, m)
		}
	}
	a.Findings = d.findings
	return a, nil
}

// rest deals with tensors that are no part of an adapter: what tools leave beside one is not used, and anything else
// is an error, or with AllowUnmatched a warning.
func (d *decoder) rest(names []string) error {
	var strange []string
	for _, name := range names {
		if ignored(name) {
			d.findings = append(d.findings, *finding.Warnf("adapter.unexpected_tensor", d.file, "no part of the weights' change, not used").In(name))
			continue
		}
		strange = append(strange, name)
	}
	if len(strange) == 0 {
		return nil
	}
	f := finding.Errorf("adapter.unexpected_tensor", d.file, "%d tensors are not a part of an adapter this program knows", len(strange)).In(strange[0])
	if len(strange) == 1 {
		f.Message = "not a part of an adapter this program knows"
	}
	var quoted []string
	for _, name := range strange[:min(listed, len(strange))] {
		quoted = append(quoted, strconv.Quote(name))
	}
	if more := len(strange) - listed; more > 0 {
		quoted = append(quoted, fmt.Sprintf("and %d more", more))
	}
	f.Expected(strings.Join(quoted, ", "), "names that end in a suffix such as .lora_down.weight, .lora_A.weight, .lokr_w1 or .diff").
		Hinted("remove the tensors if they belong to something else; --allow-unmatched leaves them out")
	if !d.opt.AllowUnmatched {
		return f
	}
	f.Level = finding.Warning
	d.findings = append(d.findings, *f)
	return nil
}

// ignored are tensors that tools leave beside an adapter: trained embeddings and sliders' own state.
func ignored(name string) bool {
	return strings.HasPrefix(name, "bundle_emb.") || strings.HasPrefix(name, "_aux.") || name == "lora_controlnet"
}

// mixed says so where names of several dialects stand in one file, with the evidence for each. Every name is read as
// what it is.
func (d *decoder) mixed(seen features) {
	var found []string
	for _, v := range seen.voices {
		found = append(found, fmt.Sprintf("%s: %d names (%q)", v.of, v.count, v.first))
	}
	if len(found) > 1 {
		d.findings = append(d.findings, finding.Finding{
			Code: "adapter.ambiguous_dialect", Level: finding.Info, File: d.file,
			Message: fmt.Sprintf("the names speak for several dialects, each is read as it is written; the file counts as %s", seen.dialect),
			Got:     strings.Join(found, "; "), Want: "names of one dialect",
		})
	}
}

func (d *decoder) errorf(reason string, t *tensor.Tensor, format string, args ...any) *finding.Finding {
	return finding.Errorf("adapter."+reason, d.file, format, args...).In(t.Name)
}

// plain are the roles of an ordinary LoRA, and flags those that need no numbers of a floating type.
var (
	plain = []role{roleA, roleB, roleBias, roleAlpha, roleScale, roleReshape}
	flags = []role{"bias_indices", "bias_size", "on_input", "oft_R.scaled_oft", roleReshape}
)

func (d *decoder) updates(s *site) ([]adapter.Update, error) {
	for r, t := range s.role {
		if !t.DType.IsFloat() && !slices.Contains(flags, r) {
			return nil, d.errorf("bad_dtype", t, "a weight cannot be of type %s", t.DType)
		}
	}
	if t := s.role[roleSet]; t != nil || s.role[roleScale] != nil && len(s.role) == 1 && s.alone == "" && s.name.Module.Kind == "norm" {
		return d.replacement(s)
	}
	if s.role[roleA] == nil && s.role[roleB] == nil && len(s.role) == 1 && s.role[roleAlpha] != nil {
		return nil, d.errorf("unexpected_tensor", s.role[roleAlpha], "an alpha of a module without factors")
	}
	for r := range s.role {
		if !slices.Contains(plain, r) {
			return d.algorithm(s)
		}
	}
	return d.lowRank(s)
}

// target is the module that an update of a site names.
func (s *site) target(param string) adapter.Target {
	if s.alone != "" {
		return adapter.Target{Module: s.alone, Param: param}
	}
	return adapter.Target{Module: s.name.Path(), Param: param}
}

// replacement is a whole parameter in the place of the base's.
func (d *decoder) replacement(s *site) ([]adapter.Update, error) {
	t := s.role[roleSet]
	if t == nil {
		t = s.role[roleScale]
	}
	if len(s.role) > 1 {
		return nil, d.errorf("unexpected_tensor", t, "replaces a module that other tensors change")
	}
	rows, cols, err := t.Shape.Matrix()
	if err != nil {
		return nil, d.errorf("shape_mismatch", t, "%v", err)
	}
	u := adapter.Update{Target: s.target("weight"), Kind: adapter.Replace, Scale: adapter.Scale{Value: 1, Source: "replacement"}, Tensors: s.names}
	switch len(t.Shape) {
	case 0, 1:
	case 2:
		u.Layer = adapter.Linear
	default:
		u.Layer = adapter.Conv
	}
	u.Value = adapter.FromTensor(*t, rows, cols, adapter.ReadFloats)
	return d.canonical(s, t, u)
}

// lowRank is an ordinary LoRA with its bias, if it has one.
func (d *decoder) lowRank(s *site) ([]adapter.Update, error) {
	ta, tb := s.role[roleA], s.role[roleB]
	if ta == nil || tb == nil {
		f := finding.Errorf("adapter.missing_pair", d.file, "one of the two factors is missing").In(s.first)
		return nil, f.Hinted("the file is incomplete")
	}
	if len(ta.Shape) < 2 || len(tb.Shape) < 2 {
		return nil, d.errorf("shape_mismatch", ta, "the factors are no matrices").Expected(fmt.Sprintf("%v and %v", ta.Shape, tb.Shape), "[r, in…] and [out, r]")
	}
	rank, in, errA := ta.Shape.Matrix()
	out, r, errB := tb.Shape.Matrix()
	switch {
	case errA != nil || errB != nil || in == 0 || out == 0:
		return nil, d.errorf("shape_mismatch", ta, "a factor is empty")
	case rank == 0:
		return nil, d.errorf("rank_zero", ta, "the rank is 0")
	case rank != r:
		return nil, d.errorf("rank_mismatch", ta, "the factors have different ranks").Expected(fmt.Sprintf("%v and %v", ta.Shape, tb.Shape), "[r, in…] and [out, r]")
	}
	if t := s.role[roleReshape]; t != nil {
		if err := d.reshaped(t, out, in); err != nil {
			return nil, err
		}
	}
	scale, err := d.scale(s, int(rank))
	if err != nil {
		return nil, err
	}
	u := adapter.Update{
		Target: s.target("weight"), Kind: adapter.LowRank, Layer: s.layer(), Rank: int(rank), Scale: scale, Tensors: s.names,
		A: adapter.FromTensor(*ta, rank, in, adapter.ReadFloats), B: adapter.FromTensor(*tb, out, rank, adapter.ReadFloats),
	}
	us, err := d.canonical(s, tb, u)
	if err != nil || s.role[roleBias] == nil {
		return us, err
	}
	t := s.role[roleBias]
	n, err := t.Shape.Elements()
	if err != nil || n != out {
		return nil, d.errorf("shape_mismatch", t, "the bias has another length than the module's output").Expected(t.Shape, fmt.Sprintf("[%d]", out))
	}
	bias := adapter.Update{Target: s.target("bias"), Kind: adapter.Bias, Scale: scale, Tensors: s.names, Value: adapter.FromTensor(*t, 1, n, adapter.ReadFloats)}
	more, err := d.canonical(s, t, bias)
	return append(us, more...), err
}

// reshaped checks that the shape which the base is to be filled up to is that of the factors' product.
func (d *decoder) reshaped(t *tensor.Tensor, out, in int64) error {
	b, err := t.Read()
	if err != nil {
		return err
	}
	if t.DType == tensor.I64 && len(b) == 16 && int64(binary.LittleEndian.Uint64(b)) == out && int64(binary.LittleEndian.Uint64(b[8:])) == in {
		return nil
	}
	return d.errorf("shape_mismatch", t, "the weight is given another shape than that of the factors").
		Expected(fmt.Sprintf("%s %v", t.DType, t.Shape), fmt.Sprintf("I64 [2] of %d and %d", out, in))
}

// layer is how the module multiplies. A 1×1 convolution's factors may be stored as matrices, and a linear
// layer's as kernels; the convolution's frame fits both.
func (s *site) layer() adapter.Layer {
	if s.alone == "" && (s.name.Module.Kind == "conv" || strings.HasSuffix(s.name.Module.Original, "proj_in") || strings.HasSuffix(s.name.Module.Original, "proj_out")) {
		return adapter.Conv
	}
	if t := s.role[roleA]; t != nil && len(t.Shape) > 2 {
		return adapter.Conv
	}
	return adapter.Linear
}

// canonical brings an update of a module as the file has it into the names and the rows of diffusers.
func (d *decoder) canonical(s *site, t *tensor.Tensor, u adapter.Update) ([]adapter.Update, error) {
	if s.alone != "" {
		return []adapter.Update{u}, nil
	}
	us, ok := split(u, s.name, s.parts, s.spelled() == naming.Original)
	if !ok {
		return nil, d.errorf("shape_mismatch", t, "the rows of a fused module do not divide into its parts").
			Expected(t.Shape, fmt.Sprintf("rows for %d parts, as in %v", len(s.name.Module.Parts), s.name.Module.Shape))
	}
	return us, nil
}

// spelled says whether a site's rows are in the original checkpoint's order or in that of diffusers.
func (s *site) spelled() naming.Body {
	body := s.name.Module.Parts[max(0, s.name.Part)].Module
	if s.flat {
		body = naming.Flatten(body)
	}
	if s.body == body {
		return naming.Renamed
	}
	return naming.Original
}

// single drops what a file says twice, as some tools write a fused projection beside its parts. Two
// different updates of one module are an error.
func (d *decoder) single(us []adapter.Update) ([]adapter.Update, error) {
	at := map[adapter.Target]int{}
	var out []adapter.Update
	for _, u := range us {
		i, twice := at[u.Target]
		if !twice || u.Kind != out[i].Kind {
			at[u.Target] = len(out)
			out = append(out, u)
			continue
		}
		same, err := equal(&out[i], &u)
		if err != nil {
			return nil, err
		}
		if !same {
			return nil, finding.Errorf("adapter.duplicate_target", d.file, "changes the same module as %q, in another way", out[i].Tensors[0]).In(u.Tensors[0])
		}
		f := finding.Warnf("adapter.duplicate_target", d.file, "says the same as %q; it is applied once", out[i].Tensors[0]).In(u.Tensors[0])
		d.findings = append(d.findings, *f)
	}
	return out, nil
}

func equal(x, y *adapter.Update) (bool, error) {
	if x.Scale.Value != y.Scale.Value {
		return false, nil
	}
	factors := [][2]adapter.Factor{{x.A, y.A}, {x.B, y.B}, {x.A2, y.A2}, {x.B2, y.B2}, {x.Value, y.Value}, {x.Magnitude, y.Magnitude}}
	for i := range x.Kron {
		k, l := x.Kron[i], y.Kron[i]
		factors = append(factors, [2]adapter.Factor{k.Full, l.Full}, [2]adapter.Factor{k.A, l.A}, [2]adapter.Factor{k.B, l.B})
	}
	for _, p := range factors {
		if same, err := p[0].Same(p[1]); !same || err != nil {
			return false, err
		}
	}
	return true, nil
}
