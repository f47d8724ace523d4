// Package trtllm reads and writes adapters for TensorRT-LLM's C++ runtime: a folder with
// model.lora_weights.npy [1, modules, length], whose rows are A [r, in], then B [out, r] times the scale,
// then zeros, and model.lora_config.npy [1, modules, 4]: module id, layer, rank, and 1 for DoRA.
//
// The rules are those of examples/hf_lora_convert.py and lora_manager.py of TensorRT-LLM 1.0.
package trtllm

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/evidence"
	"github.com/loratool/loratool/adapter/geometry"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/npy"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// The names of the files in a folder.
const (
	WeightsName = "model.lora_weights.npy"
	ConfigName  = "model.lora_config.npy"
)

// A module is one that the runtime knows.
type module struct {
	id   int32
	path string // below a layer, as Hugging Face names it; the first of an id is the one that is read
	size func(g *geometry.Geometry) (in, out int64)
}

func query(g *geometry.Geometry) int64 { return g.HP.Heads * g.HP.HeadDim }
func keys(g *geometry.Geometry) int64  { return g.HP.KVHeads * g.HP.HeadDim }

var modules = []module{
	{0, "self_attn.qkv_proj", func(g *geometry.Geometry) (in, out int64) { return g.Hidden, query(g) + 2*keys(g) }},
	{1, "self_attn.q_proj", func(g *geometry.Geometry) (in, out int64) { return g.Hidden, query(g) }},
	{2, "self_attn.k_proj", func(g *geometry.Geometry) (in, out int64) { return g.Hidden, keys(g) }},
	{3, "self_attn.v_proj", func(g *geometry.Geometry) (in, out int64) { return g.Hidden, keys(g) }},
	{4, "self_attn.o_proj", func(g *geometry.Geometry) (in, out int64) { return query(g), g.Hidden }},
	{5, "mlp.gate_proj", func(g *geometry.Geometry) (in, out int64) { return g.Hidden, g.FFN }},
	{6, "mlp.down_proj", func(g *geometry.Geometry) (in, out int64) { return g.FFN, g.Hidden }},
	{7, "mlp.up_proj", func(g *geometry.Geometry) (in, out int64) { return g.Hidden, g.FFN }},
	{gateUp, "mlp.gate_up_proj", func(g *geometry.Geometry) (in, out int64) { return g.Hidden, 2 * g.FFN }},
}

// gateUp is the fused projection, whose halves TensorRT-LLM keeps the other way round.
const gateUp = 18

// Detect finds the pair of files.
func Detect(s *evidence.Subject) string {
	if s.Format != "npy" || filepath.Base(s.File) != WeightsName {
		return ""
	}
	if st, err := os.Stat(filepath.Join(filepath.Dir(s.File), ConfigName)); err != nil || !st.Mode().IsRegular() {
		return ""
	}
	return WeightsName + " and " + ConfigName
}

// Open reads an adapter folder. base gives the geometry of the base, without which the rows cannot be taken
// apart. Factors are read when they are loaded; Close the adapter after that.
func Open(path string, base func() (*geometry.Geometry, error)) (*adapter.Adapter, error) {
	folder := path
	if filepath.Base(path) == WeightsName {
		folder = filepath.Dir(path)
	}
	config, err := readConfig(filepath.Join(folder, ConfigName))
	if err != nil {
		return nil, err
	}
	file := filepath.Join(folder, WeightsName)
	w, err := npy.Open(file)
	if err != nil {
		return nil, err
	}
	a := &adapter.Adapter{Path: path, Dialect: "trtllm", Space: naming.HF}
	g, err := base()
	if err == nil {
		err = decode(a, file, config, w.Array(), g)
	}
	if err != nil {
		w.Close()
		return nil, err
	}
	a.OnClose(w.Close)
	return a, nil
}

// mostModules bounds the rows of the configuration.
const mostModules = 1 << 20

// readConfig reads the rows of the configuration, each of 3 or 4 numbers.
func readConfig(file string) ([][]int32, error) {
	f, err := npy.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	t := f.Array()
	s := t.Shape
	if len(s) == 3 && s[0] == 1 {
		s = s[1:]
	}
	if t.DType != tensor.I32 || len(s) != 2 || s[1] != 3 && s[1] != 4 || s[0] < 1 || s[0] > mostModules {
		return nil, finding.Errorf("adapter.bad_config", file, "not the configuration of a TensorRT-LLM adapter").Expected(fmt.Sprintf("%s %v", t.DType, t.Shape), "I32 [1, modules, 4]")
	}
	b, err := t.Read()
	if err != nil {
		return nil, err
	}
	rows := make([][]int32, s[0])
	for i := range rows {
		for range s[1] {
			rows[i] = append(rows[i], int32(binary.LittleEndian.Uint32(b)))
			b = b[4:]
		}
	}
	return rows, nil
}

func decode(a *adapter.Adapter, file string, config [][]int32, t tensor.Tensor, g *geometry.Geometry) error {
	s := t.Shape
	if len(s) == 3 && s[0] == 1 {
		s = s[1:]
	}
	if len(s) != 2 || s[0] != int64(len(config)) || !t.DType.IsFloat() {
		return finding.Errorf("adapter.shape_mismatch", file, "the weights do not fit the configuration").
			Expected(fmt.Sprintf("%s %v", t.DType, t.Shape), fmt.Sprintf("floats [1, %d, length]", len(config)))
	}
	seen := map[string]bool{}
	for i, c := range config {
		at := slices.IndexFunc(modules, func(m module) bool { return m.id == c[0] })
		if at < 0 {
			return finding.Errorf("adapter.unsupported_feature", file, "row %d is for module id %d, which is not supported", i, c[0])
		}
		m := modules[at]
		if len(c) == 4 && c[3] != 0 {
			return finding.Errorf("adapter.unsupported_feature", file, "row %d is DoRA, whose magnitudes TensorRT-LLM stores divided by norms of the base", i)
		}
		in, out := m.size(g)
		r := int64(c[2])
		if in <= 0 || out <= 0 {
			return finding.Errorf("base.unsupported", file, "the base's configuration lacks the sizes of %q", m.path)
		}
		if c[1] < 0 || r < 1 || r > s[1] || (in+out)*r > s[1] {
			return finding.Errorf("adapter.shape_mismatch", file, "row %d does not hold the factors of %q in layer %d", i, m.path, c[1]).
				Expected(fmt.Sprintf("%d values", s[1]), fmt.Sprintf("%d × (%d + %d)", r, in, out)).Hinted("the base given is not the one the adapter was made for")
		}
		name := fmt.Sprintf("model.layers.%d.%s", c[1], m.path)
		if seen[name] {
			return finding.Errorf("adapter.duplicate_target", file, "two rows are for %q", name)
		}
		seen[name] = true
		size := t.Size / s[0] / s[1]
		part := func(first, rows, cols int64) adapter.Factor {
			p := tensor.Tensor{Spec: tensor.Spec{Name: name, DType: t.DType, Shape: tensor.Shape{rows, cols}}, Src: t.Src, Off: t.Off + (int64(i)*s[1]+first)*size, Size: rows * cols * size}
			return adapter.FromTensor(p, rows, cols, adapter.ReadFloats)
		}
		u := adapter.Update{Target: adapter.Target{Module: name, Param: "weight"}, Kind: adapter.LowRank, Layer: adapter.Linear, Rank: int(r),
			A: part(0, r, in), B: part(r*in, out, r), Tensors: []string{fmt.Sprintf("row %d", i)}}
		if m.id == gateUp {
			u.B = swapped(u.B)
		}
		u.Scale = adapter.Scale{Value: 1, Alpha: float64(r), Rank: int(r), Source: "1: the scale is in the factors"}
		a.Updates = append(a.Updates, u)
	}
	return nil
}

// swapped exchanges the halves of a factor's rows.
func swapped(f adapter.Factor) adapter.Factor {
	return f.GatherRows(f.Rows, func(i int64) int64 { return (i + f.Rows/2) % f.Rows })
}

// Files are the two arrays of a folder: their layout, and the rows of weights that fill it.
type Files struct {
	Layout  *layout.Layout
	Weights []adapter.Weight
}

var layerPath = regexp.MustCompile(`(?:^|\.)layers\.([0-9]{1,6})\.(.+)$`)

// Encode lays an adapter in Hugging Face names out as the pair of arrays. dtype is F16 (also for Invalid)
// or F32. No weight is read.
func Encode(a *adapter.Adapter, dtype tensor.DType) (*Files, error) {
	if err := a.Within(adapter.Limits{Title: "a TensorRT-LLM adapter"}); err != nil {
		return nil, err
	}
	switch dtype {
	case tensor.Invalid:
		dtype = tensor.F16
	case tensor.F16, tensor.F32:
	default:
		return nil, finding.Errorf("convert.bad_dtype", a.Path, "NumPy files hold no such type").Expected(dtype, "f16 or f32")
	}
	type row struct {
		u         *adapter.Update
		id, layer int32
	}
	var rows []row
	longest := int64(0)
	for i := range a.Updates {
		u := &a.Updates[i]
		m := layerPath.FindStringSubmatch(u.Module)
		at := -1
		if m != nil {
			at = slices.IndexFunc(modules, func(x module) bool { return x.path == m[2] })
		}
		if at < 0 {
			f := a.Refuse(u, "TensorRT-LLM has no module for %q", u.Module)
			f.Code, f.Want = "match.unmatched_target", "one of "+known()
			return nil, f
		}
		if modules[at].id == gateUp && u.B.Rows%2 != 0 {
			return nil, a.Refuse(u, "the fused projection %q has an odd number of rows", u.Module)
		}
		layer, err := strconv.ParseInt(m[1], 10, 32)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(rows, func(r row) bool { return r.id == modules[at].id && r.layer == int32(layer) }) {
			return nil, a.Refuse(u, "two modules are number %d of layer %d", modules[at].id, layer)
		}
		rows = append(rows, row{u, modules[at].id, int32(layer)})
		longest = max(longest, u.A.Rows*u.A.Cols+u.B.Rows*u.B.Cols)
	}
	if len(rows) == 0 {
		return nil, finding.Errorf("adapter.empty_adapter", a.Path, "no update is left to write")
	}
	slices.SortStableFunc(rows, func(x, y row) int {
		if x.layer != y.layer {
			return int(x.layer - y.layer)
		}
		return int(x.id - y.id)
	})
	n := int64(len(rows))
	config, err := npy.Header(tensor.I32, tensor.Shape{1, n, 4})
	if err != nil {
		return nil, err
	}
	header, err := npy.Header(dtype, tensor.Shape{1, n, longest})
	if err != nil {
		return nil, err
	}
	spec := tensor.Spec{DType: dtype, Shape: tensor.Shape{longest}}
	size, err := spec.Bytes()
	if err != nil {
		return nil, err
	}
	f := &Files{Layout: &layout.Layout{Dir: true}}
	for i, r := range rows {
		for _, x := range []int32{r.id, r.layer, int32(r.u.Rank), 0} {
			config = binary.LittleEndian.AppendUint32(config, uint32(x))
		}
		spec.Name = r.u.Module
		f.Weights = append(f.Weights, adapter.Weight{Spec: spec, Values: flat(r.u, r.id, longest)})
		f.Layout.Items = append(f.Layout.Items, layout.Place{File: 1, Off: int64(len(header)) + int64(i)*size, Size: size})
	}
	f.Layout.Files = []layout.File{
		{Name: ConfigName, Size: int64(len(config)), Spans: []layout.Span{layout.Bytes(0, config)}},
		{Name: WeightsName, Size: int64(len(header)) + n*size, Spans: []layout.Span{layout.Bytes(0, header)}},
	}
	return f, nil
}

// Knows reports whether the runtime has a module for the path of one in Hugging Face's names.
func Knows(path string) bool {
	m := layerPath.FindStringSubmatch(path)
	return m != nil && slices.ContainsFunc(modules, func(x module) bool { return x.path == m[2] })
}

func known() string {
	var out []string
	for _, m := range modules {
		out = append(out, m.path)
	}
	return strings.Join(out, ", ")
}

// flat is a row: A, B times the scale, zeros.
func flat(u *adapter.Update, id int32, length int64) adapter.Factor {
	b := u.B
	if id == gateUp {
		b = swapped(b)
	}
	b = b.Scaled(u.Scale.Value)
	return adapter.FromFunc(1, length, func() ([]float32, error) {
		v := make([]float32, 0, length)
		for _, f := range []adapter.Factor{u.A, b} {
			x, err := f.Load()
			if err != nil {
				return nil, err
			}
			v = append(v, x...)
		}
		return v[:length], nil
	})
}
