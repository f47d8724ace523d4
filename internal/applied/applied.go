// Package applied makes of a base of random weights what an adapter of a diffusion pipeline changes it to, so that
// adapters of different algorithms and spellings can be compared by their effect; and the product of a low-rank
// update. Only tests import it.
package applied

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// A Base is the tensors of a checkpoint by name, with their shapes.
type Base map[string]tensor.Shape

// To applies all updates of an adapter in naming.Diffusers to the base and returns its tensors. The weights are the
// same each time.
func To(t testing.TB, a *adapter.Adapter, base Base) map[string][]float64 {
	t.Helper()
	var names []string
	out := map[string][]float64{}
	for name := range base {
		names = append(names, name)
	}
	slices.Sort(names)
	r := rand.New(rand.NewPCG(7, 8))
	for _, name := range names {
		n, err := base[name].Elements()
		if err != nil {
			t.Fatal(err)
		}
		for range n {
			out[name] = append(out[name], float64(float32(r.NormFloat64())))
		}
	}
	resolver := naming.NewDiffusion(naming.DiffusionFamilyNamed(a.Arch), names, func(name string) []int64 { return base[name] }, "")
	for i := range a.Updates {
		u := &a.Updates[i]
		places, err := resolver.Find(u.Module, u.Param)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range places {
			apply(t, u, p, base[p.Tensor], out[p.Tensor])
		}
	}
	return out
}

// apply changes the values of one tensor.
func apply(t testing.TB, u *adapter.Update, p naming.Place, shape tensor.Shape, values []float64) {
	t.Helper()
	frame, err := adapter.FrameOf(shape, u.LayerIn(p, shape))
	if err != nil {
		t.Fatal(err)
	}
	op, err := adapter.Bind(u, p, tensor.Spec{Name: p.Tensor, DType: tensor.F32, Shape: shape}, frame, adapter.Rounding{})
	if err != nil {
		t.Fatal(err)
	}
	if err := op.Load(); err != nil {
		t.Fatal(err)
	}
	if op.Columns() {
		rows := make([]float32, len(values))
		for i, x := range values {
			rows[i] = float32(x)
		}
		err := op.Prepare(func() ([]float32, int64, error) {
			all := rows
			rows = nil
			return all, 0, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	op.Exact(values, 0)
}

// File makes tensors of distinct values with few bits, as those of a file in memory, from names with shapes
// ("a.lora_A.weight [2 3]"), with one number ("a.alpha =0.5"), or with the alpha 4 ("a.alpha").
func File(t testing.TB, specs ...string) []tensor.Tensor {
	t.Helper()
	r := rand.New(rand.NewPCG(5, 6))
	return file(t, specs, func() float32 { return float32(r.IntN(2001)-1000) / 1024 })
}

// Precise is File with values whose products are rounded.
func Precise(t testing.TB, specs ...string) []tensor.Tensor {
	t.Helper()
	r := rand.New(rand.NewPCG(7, 8))
	return file(t, specs, func() float32 { return float32(r.NormFloat64()) / 2 })
}

func file(t testing.TB, specs []string, value func() float32) []tensor.Tensor {
	t.Helper()
	var data []byte
	var out []tensor.Tensor
	for _, s := range specs {
		name, dims, _ := strings.Cut(s, " ")
		shape, values := tensor.Shape{}, []float32{4}
		switch number, ok := strings.CutPrefix(dims, "="); {
		case ok:
			x, err := strconv.ParseFloat(number, 32)
			if err != nil {
				t.Fatal(err)
			}
			values[0] = float32(x)
		case dims != "":
			n := int64(1)
			for _, d := range strings.Fields(strings.Trim(dims, "[]")) {
				k, err := strconv.ParseInt(d, 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				shape, n = append(shape, k), n*k
			}
			values = make([]float32, n)
			for i := range values {
				values[i] = value()
			}
		}
		x := tensor.Tensor{Spec: tensor.Spec{Name: name, DType: tensor.F32, Shape: shape}, Off: int64(len(data)), Size: int64(4 * len(values))}
		for _, v := range values {
			data = binary.LittleEndian.AppendUint32(data, math.Float32bits(v))
		}
		out = append(out, x)
	}
	src := bytes.NewReader(data)
	for i := range out {
		out[i].Src = src
	}
	return out
}

// Stored puts weights into tensors of one file in memory.
func Stored(t testing.TB, weights []adapter.Weight) []tensor.Tensor {
	t.Helper()
	var data []byte
	out := make([]tensor.Tensor, len(weights))
	for i, w := range weights {
		b, err := w.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		out[i] = tensor.Tensor{Spec: w.Spec, Off: int64(len(data)), Size: int64(len(b))}
		data = append(data, b...)
	}
	src := bytes.NewReader(data)
	for i := range out {
		out[i].Src = src
	}
	return out
}

// Modules of Flux and SDXL in flattened files. QKV, Final (whose halves diffusers swaps) and Proj have 12, 8 and 4
// outputs of 4 inputs; Part is the beginning of to_q, to_k and to_v, the parts of QKV in OneTrainer's files.
const (
	Proj  = "lora_unet_double_blocks_0_img_attn_proj"
	QKV   = "lora_unet_double_blocks_0_img_attn_qkv"
	Final = "lora_unet_final_layer_adaLN_modulation_1"
	Part  = "lora_transformer_transformer_blocks_0_attn_to_"
	Conv  = "lora_unet_input_blocks_1_0_in_layers_2" // 4 × 2 × 3 × 3
	Norm  = "lora_unet_input_blocks_1_0_in_layers_0" // 6
)

// Flux is a part of Flux.1, and SDXL one of a unet.
var (
	Flux = Base{
		"double_blocks.0.img_attn.qkv.weight": {12, 4}, "double_blocks.0.img_attn.qkv.bias": {12}, "double_blocks.0.img_attn.proj.weight": {4, 4}, "double_blocks.0.img_attn.proj.bias": {4},
		"double_blocks.0.txt_attn.qkv.weight": {12, 4}, "double_blocks.0.txt_attn.proj.weight": {4, 4},
		"final_layer.adaLN_modulation.1.weight": {8, 4}, "double_blocks.0.img_attn.norm.query_norm.scale": {4},
	}
	SDXL = Base{
		"model.diffusion_model.input_blocks.1.0.in_layers.2.weight": {4, 2, 3, 3}, "model.diffusion_model.input_blocks.1.0.in_layers.0.weight": {6}, "model.diffusion_model.input_blocks.1.0.in_layers.0.bias": {6},
		"model.diffusion_model.input_blocks.4.1.proj_in.weight": {4, 4}, "model.diffusion_model.input_blocks.4.0.skip_connection.weight": {4, 6, 1, 1},
	}
)

// Product is s·B·A of a low-rank update, [out, in], in float64.
func Product(t testing.TB, u *adapter.Update) []float64 {
	t.Helper()
	a, err := u.A.Load()
	if err != nil {
		t.Fatal(err)
	}
	b, err := u.B.Load()
	if err != nil {
		t.Fatal(err)
	}
	out := make([]float64, u.B.Rows*u.A.Cols)
	for i := range u.B.Rows {
		row := out[i*u.A.Cols:][:u.A.Cols]
		for k := range u.A.Rows {
			x := u.Scale.Value * float64(b[i*u.B.Cols+k])
			for j := range row {
				row[j] += x * float64(a[k*u.A.Cols+int64(j)])
			}
		}
	}
	return out
}
