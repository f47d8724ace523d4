// Package nemo reads LoRA adapters of NVIDIA's Megatron world: .nemo archives of NeMo 1, and safetensors
// files in the names of NeMo 2 and Megatron-Bridge.
//
// linear_in is A and linear_out is B. The fused query-key-value projection keeps, for each key-value head,
// its query heads, then the key, then the value; the first layer of the MLP keeps gate and up one after
// the other. Both become one update for each of Hugging Face's modules, with A shared.
package nemo

import (
	"archive/tar"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/evidence"
	"github.com/loratool/loratool/adapter/geometry"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/formats/torch"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// Detect knows archives by their ending, and other files by their tensor names.
func Detect(s *evidence.Subject) string {
	if s.Format == "nemo" {
		return "the ending .nemo"
	}
	if s.Format != "safetensors" && s.Format != "torch" {
		return ""
	}
	return s.Naming("tensor names of Megatron adapters", func(name string) bool {
		_, _, _, ok := parse(name)
		return ok
	})
}

// A part says which of Hugging Face's modules a Megatron module holds.
type part struct {
	modules []string // below the layer
	fused   string   // "", "qkv", "gate_up"
}

var parts = map[string]part{
	"linear_qkv":   {[]string{"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}, "qkv"},
	"linear_proj":  {[]string{"self_attn.o_proj"}, ""},
	"linear_fc1":   {[]string{"mlp.gate_proj", "mlp.up_proj"}, "gate_up"},
	"linear_fc2":   {[]string{"mlp.down_proj"}, ""},
	"adapter_q":    {[]string{"self_attn.q_proj"}, ""},
	"adapter_k":    {[]string{"self_attn.k_proj"}, ""},
	"adapter_v":    {[]string{"self_attn.v_proj"}, ""},
	"adapter_gate": {[]string{"mlp.gate_proj"}, ""},
	"adapter_up":   {[]string{"mlp.up_proj"}, ""},

	"lora_kqv_adapter":             {[]string{"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}, "qkv"},
	"lora_dense_attention_adapter": {[]string{"self_attn.o_proj"}, ""},
	"lora_hto4h_adapter":           {[]string{"mlp.gate_proj", "mlp.up_proj"}, "gate_up"},
	"lora_4htoh_adapter":           {[]string{"mlp.down_proj"}, ""},
}

var name = regexp.MustCompile(`^(?:.*\.)?layers\.([0-9]{1,6})\.(?:self_attention|mlp)\.(?:([a-z0-9_]+)\.)?(?:adapter_layer\.|adapter\.)?([a-zA-Z0-9_]+\.)?(linear_in|linear_out)\.weight$`)

// parse takes a tensor name apart: the layer, what the module holds, and whether it is B.
func parse(s string) (layer string, p part, b, ok bool) {
	m := name.FindStringSubmatch(strings.ReplaceAll(s, ".to_wrap.", "."))
	if m == nil {
		return "", part{}, false, false
	}
	p, ok = parts[cmp.Or(strings.TrimSuffix(m[3], "."), m[2])]
	if !ok && m[3] == "adapter." {
		p, ok = parts[m[2]]
	}
	return m[1], p, m[4] == "linear_out", ok
}

// A source is an opened adapter: its tensors and what is known beside them.
type source struct {
	file    string
	tensors []tensor.Tensor
	alpha   *float64 // nil: not stated
	rank    bool     // the alpha is stated as the rank itself
	geo     *geometry.Geometry
}

// Open reads an adapter. base gives the geometry of the base and is called only where the file does not say
// how fused projections are laid out. Factors are read when they are loaded; Close the adapter after that.
func Open(p string, base func() (*geometry.Geometry, error)) (*adapter.Adapter, error) {
	s := evidence.Look(p)
	if s.File == "" {
		return nil, finding.Errorf("adapter.missing_file", p, "there is no Megatron adapter here")
	}
	var src *source
	var closer io.Closer
	var err error
	if s.Format == "nemo" {
		src, closer, err = openArchive(s.File)
	} else {
		src, closer, err = openFile(s)
	}
	if err != nil {
		return nil, err
	}
	a := &adapter.Adapter{Path: p, Dialect: "nemo", Space: naming.HF}
	if err := src.decode(a, base); err != nil {
		closer.Close()
		return nil, err
	}
	a.OnClose(closer.Close)
	return a, nil
}

// openFile opens a state dict, whose alpha stands in its metadata or in adapter_config.json beside it.
func openFile(s *evidence.Subject) (*source, io.Closer, error) {
	m, err := formats.Open(s.File)
	if err != nil {
		return nil, nil, err
	}
	src := &source{file: s.File, tensors: m.Tensors()}
	if st, ok := m.(*safetensors.Model); ok {
		for _, kv := range st.Metadata() {
			if x, err := strconv.ParseFloat(kv[1], 64); err == nil && (kv[0] == "alpha" || kv[0] == "lora_alpha") {
				src.alpha = &x
			}
		}
	}
	if s.Config != "" && src.alpha == nil {
		var c struct {
			Alpha     *float64 `json:"alpha"`
			LoraAlpha *float64 `json:"lora_alpha"`
		}
		b, err := os.ReadFile(s.Config)
		if err == nil {
			err = json.Unmarshal(b, &c)
		}
		if err != nil {
			m.Close()
			return nil, nil, finding.Errorf("adapter.bad_json", s.Config, "%v", err)
		}
		src.alpha = cmp.Or(c.LoraAlpha, c.Alpha)
	}
	if src.alpha == nil {
		m.Close()
		return nil, nil, finding.Errorf("adapter.missing_alpha", s.File, "the alpha is not stated").
			Hinted(`write {"lora_alpha": …} into adapter_config.json beside the file; Megatron keeps it in the run's configuration`)
	}
	return src, m, nil
}

// mostHeads bounds the heads that a configuration may ask for.
const mostHeads = 1 << 16

// maxConfig bounds the size of model_config.yaml.
const maxConfig = 4 << 20

// openArchive opens a .nemo archive, an uncompressed tar file.
func openArchive(file string) (*source, io.Closer, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, nil, finding.Errorf("files.unreadable", file, "%v", err)
	}
	src, err := readArchive(file, f)
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return src, f, nil
}

func readArchive(file string, f *os.File) (*source, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, finding.Errorf("files.unreadable", file, "%v", err)
	}
	head := make([]byte, 2)
	if _, err := f.ReadAt(head, 0); err == nil && head[0] == 0x1f && head[1] == 0x8b {
		return nil, finding.Errorf("container.unsupported", file, "the archive is compressed as a whole").Hinted("unpack it with gzip -d first, so that weights can be read in place")
	}
	src := &source{file: file}
	var config []byte
	r := tar.NewReader(f)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, finding.Errorf("container.bad_archive", file, "%v", err)
		}
		switch path.Base(h.Name) {
		case "model_config.yaml":
			if config, err = io.ReadAll(io.LimitReader(r, maxConfig)); err != nil {
				return nil, finding.Errorf("container.bad_archive", file, "%v", err)
			}
		case "model_weights.ckpt":
			at, err := f.Seek(0, io.SeekCurrent)
			if err != nil || h.Size < 0 || h.Size > st.Size()-at {
				return nil, finding.Errorf("container.truncated", file, "model_weights.ckpt does not end within the archive")
			}
			m, err := torch.OpenAt(file, io.NewSectionReader(f, at, h.Size), h.Size)
			if err != nil {
				return nil, err
			}
			src.tensors = m.Tensors()
		}
	}
	if src.tensors == nil || config == nil {
		return nil, finding.Errorf("container.bad_archive", file, "the archive lacks model_weights.ckpt or model_config.yaml").Hinted("sharded checkpoints of NeMo are exported with its own scripts first")
	}
	src.configure(scalars(config))
	if src.alpha == nil && !src.rank {
		return nil, finding.Errorf("adapter.missing_alpha", file, "model_config.yaml does not state peft.lora_tuning.alpha")
	}
	return src, nil
}

// configure takes alpha and geometry from model_config.yaml.
func (s *source) configure(c map[string]string) {
	number := func(key string) int64 {
		n, _ := strconv.ParseInt(c[key], 10, 32)
		return max(n, 0)
	}
	for _, key := range []string{"peft.lora_tuning.alpha", "lora_tuning.alpha"} {
		if v, ok := c[key]; ok {
			if x, err := strconv.ParseFloat(v, 64); err == nil {
				s.alpha = &x
			}
			s.rank = s.alpha == nil
		}
	}
	g := &geometry.Geometry{Hidden: number("hidden_size"), FFN: number("ffn_hidden_size")}
	g.HP.Heads, g.HP.KVHeads, g.HP.HeadDim = number("num_attention_heads"), number("num_query_groups"), number("kv_channels")
	if g.HP.Heads == 0 {
		return
	}
	if g.HP.KVHeads == 0 {
		g.HP.KVHeads = g.HP.Heads
	}
	if g.HP.HeadDim == 0 {
		g.HP.HeadDim = g.Hidden / g.HP.Heads
	}
	s.geo = g
}

// scalars reads the scalar values of a YAML mapping by their dotted paths. Lists and everything fancier are
// passed over: the configuration is a dump of plain nested mappings.
func scalars(b []byte) map[string]string {
	type level struct {
		indent int
		prefix string
	}
	out := map[string]string{}
	stack := []level{{-1, ""}}
	for line := range strings.SplitSeq(string(b), "\n") {
		text := strings.TrimLeft(line, " ")
		indent := len(line) - len(text)
		key, value, ok := strings.Cut(text, ":")
		if !ok || strings.HasPrefix(text, "#") || strings.HasPrefix(text, "-") {
			continue
		}
		for len(stack) > 1 && stack[len(stack)-1].indent >= indent {
			stack = stack[:len(stack)-1]
		}
		full := stack[len(stack)-1].prefix + strings.Trim(key, `"'`)
		if value, _, _ = strings.Cut(value, " #"); strings.TrimSpace(value) == "" {
			stack = append(stack, level{indent, full + "."})
			continue
		}
		out[full] = strings.Trim(strings.TrimSpace(value), `"'`)
	}
	return out
}

func (s *source) decode(a *adapter.Adapter, base func() (*geometry.Geometry, error)) error {
	type group struct {
		layer string
		part  part
		a, b  *tensor.Tensor
	}
	groups := map[string]*group{}
	var order []string
	for i := range s.tensors {
		t := &s.tensors[i]
		layer, p, isB, ok := parse(t.Name)
		if !ok {
			return finding.Errorf("adapter.unexpected_tensor", s.file, "not a factor of a Megatron module that this program knows").In(t.Name)
		}
		k := layer + "." + strings.Join(p.modules, ",")
		g := groups[k]
		if g == nil {
			g = &group{layer: layer, part: p}
			groups[k] = g
			order = append(order, k)
		}
		at := &g.a
		if isB {
			at = &g.b
		}
		if *at != nil {
			return finding.Errorf("adapter.duplicate_target", s.file, "names the same factor as %q", (*at).Name).In(t.Name)
		}
		*at = t
	}
	for _, k := range order {
		g := groups[k]
		u, err := adapter.PairOf(s.file, "model.layers."+g.layer+"."+g.part.modules[0], g.a, g.b)
		if err != nil {
			return err
		}
		if s.alpha != nil {
			u.Scale = adapter.AlphaScale(*s.alpha, u.Rank, "alpha")
		} else {
			u.Scale = adapter.AlphaScale(float64(u.Rank), u.Rank, "alpha not set: the rank")
		}
		ups, err := s.split(u, g.layer, g.part, base)
		if err != nil {
			return err
		}
		a.Updates = append(a.Updates, ups...)
	}
	if len(a.Updates) == 0 {
		return finding.Errorf("adapter.empty_adapter", s.file, "the file holds no update")
	}
	return nil
}

// split makes the updates of Hugging Face's modules from one of a fused module.
func (s *source) split(u adapter.Update, layer string, p part, base func() (*geometry.Geometry, error)) ([]adapter.Update, error) {
	var ups []adapter.Update
	emit := func(i int, b adapter.Factor) {
		v := u
		v.Module, v.B = "model.layers."+layer+"."+p.modules[i], b
		ups = append(ups, v)
	}
	bad := func(want string) error {
		return finding.Errorf("adapter.shape_mismatch", s.file, "factor B of a fused projection has not the rows of its parts").In(u.Tensors[1]).
			Expected(fmt.Sprintf("%d rows", u.B.Rows), want).Hinted("the base given is not the one the adapter was made for")
	}
	switch p.fused {
	case "gate_up":
		if s.geo != nil && s.geo.FFN == u.B.Rows { // a layer without a gate
			emit(1, u.B)
			break
		}
		if u.B.Rows%2 != 0 {
			return nil, bad("an even number")
		}
		n := u.B.Rows / 2
		emit(0, u.B.SliceRows(0, n))
		emit(1, u.B.SliceRows(n, n))
	case "qkv":
		if s.geo == nil {
			var err error
			if s.geo, err = base(); err != nil {
				return nil, err
			}
		}
		hp := s.geo.HP
		heads, groups, dim := hp.Heads, hp.KVHeads, hp.HeadDim
		if heads <= 0 || groups <= 0 || dim <= 0 || max(heads, groups) > mostHeads || heads%groups != 0 {
			return nil, finding.Errorf("base.unsupported", s.file, "the base's heads are not known: %d in %d groups of size %d", heads, groups, dim)
		}
		if u.B.Rows != (heads+2*groups)*dim {
			return nil, bad(fmt.Sprintf("(%d + 2 × %d) × %d", heads, groups, dim))
		}
		for i, n := range []int64{heads, groups, groups} {
			emit(i, u.B.GatherRows(n*dim, geometry.GroupedQKV(i, heads, groups, dim)))
		}
	default:
		emit(0, u.B)
	}
	return ups, nil
}
