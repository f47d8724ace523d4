package scheme

import (
	"fmt"
	"strings"

	"github.com/loratool/loratool/tensor"
)

// matchFloat4 reads four-bit floats (E2M1) in rows, the first of two in the low half of a byte:
//
//	compressed-tensors NVFP4  X.weight_packed U8, X.weight_scale F8_E4M3 a group of 16, X.weight_global_scale F32: scale / global
//	compressed-tensors MXFP4  X.weight_packed U8, X.weight_scale U8 exponents, a group of 32
//	ModelOpt NVFP4            X.weight U8, X.weight_scale F8_E4M3 a group of 16, X.weight_scale_2 F32: scale · scale_2
//
// W = value · scale.
func matchFloat4(m *model, t *tensor.Tensor) (*weight, error) {
	x, compressed := strings.CutSuffix(t.Name, "weight_packed")
	if !compressed {
		var ok bool
		if x, ok = strings.CutSuffix(t.Name, "weight"); !ok || m.byName[x+"weight_scale_2"] == nil {
			return nil, nil
		}
	}
	if t.DType != tensor.U8 {
		return nil, nil
	}
	if len(t.Shape) < 2 {
		return nil, m.fault("bad_shape", t.Name, "packed four-bit floats are rows of a matrix").Expected(t.Shape, "[out, in/2]")
	}
	if err := m.check(t, bytes8, t.Shape...); err != nil {
		return nil, err
	}
	half := t.Shape[len(t.Shape)-1]
	if half <= 0 || half > 1<<60 {
		return nil, m.fault("bad_shape", t.Name, "the rows are empty").Expected(t.Shape, "[out, in/2]")
	}
	w := &weight{name: x + "weight", shape: append(append(tensor.Shape{}, t.Shape[:len(t.Shape)-1]...), 2*half), dtype: m.config.or(tensor.BF16)}
	want := append(append([]int64{}, t.Shape[:len(t.Shape)-1]...), -1)
	scale, err := m.part(x+"weight_scale", []tensor.DType{tensor.F8E4M3, tensor.U8, tensor.F8E8M0}, want...)
	if err != nil {
		return nil, err
	}
	groups := scale.Shape[len(scale.Shape)-1]
	d := &float4{packed: t, scale: scale, cols: 2 * half, groups: groups, divide: compressed}
	size := int64(32)
	w.scheme, w.parts, w.decode = "MXFP4", []string{t.Name, scale.Name}, d.rows
	if scale.DType == tensor.F8E4M3 {
		size, w.scheme = 16, "NVFP4"
		global := x + "weight_global_scale"
		if !compressed {
			global = x + "weight_scale_2"
		}
		if d.global, err = m.vector(global, float32s, 1); err != nil {
			return nil, err
		}
		w.parts = append(w.parts, global)
	}
	if groups <= 0 || ceil(d.cols, size) != groups {
		return nil, m.fault("bad_shape", scale.Name, "the scales do not fit the weight").Expected(scale.Shape, fmt.Sprintf("one for %d of %v", size, w.shape))
	}
	d.size = size
	switch {
	case d.global != nil:
		w.codes = &keptScales{cols: d.cols, values: func() ([]float32, error) { return e2m1[:], nil }, scales: d.steps}
	case d.cols%mxfp4Len == 0:
		w.codes = microscaling{cols: d.cols}
	}
	w.encoding = w.codes
	return w, nil
}

type float4 struct {
	packed, scale, global *tensor.Tensor // global is nil for MXFP4
	cols, groups, size    int64
	divide                bool
}

func (d *float4) rows(dst []float32, first int64) error {
	n := int64(len(dst)) / d.cols
	b := make([]byte, len(dst)/2)
	if _, err := d.packed.ReadAt(b, first*d.cols/2); err != nil {
		return err
	}
	scales, err := d.scales(first, n)
	if err != nil {
		return err
	}
	for r := range n {
		row, codes, s := dst[r*d.cols:][:d.cols], b[r*d.cols/2:][:d.cols/2], scales[r*d.groups:][:d.groups]
		for i, c := range codes {
			scale := s[int64(2*i)/d.size]
			row[2*i] = e2m1[c&15] * scale
			row[2*i+1] = e2m1[c>>4] * scale
		}
	}
	return nil
}

// scales are those of n rows.
func (d *float4) scales(first, n int64) ([]float32, error) {
	scales, err := readFloats(d.scale, first*d.groups, n*d.groups)
	if err != nil || d.global == nil {
		return scales, err
	}
	global, err := readFloats(d.global, 0, 1)
	if err != nil {
		return nil, err
	}
	for i := range scales {
		if d.divide {
			scales[i] /= global[0]
		} else {
			scales[i] *= global[0]
		}
	}
	return scales, nil
}

// steps are the scales of the elements of a row, the first of which is an element.
func (d *float4) steps(step []float32, first int64) error {
	scales, err := d.scales(first/d.cols, 1)
	if err != nil {
		return err
	}
	for k := range step {
		step[k] = scales[int64(k)/d.size]
	}
	return nil
}

// matchBlocks reads the experts of gpt-oss in MXFP4:
//
//	N_blocks  U8 [experts, out, in/32, 16], the first of two codes in the low half
//	N_scales  U8 [experts, out, in/32], exponents
//
// W [experts, in, out], since the model's class multiplies from the left, has the value
// code · 2^(scale − 127) transposed.
func matchBlocks(m *model, t *tensor.Tensor) (*weight, error) {
	x, ok := strings.CutSuffix(t.Name, "_blocks")
	if !ok || t.DType != tensor.U8 || len(t.Shape) != 4 {
		return nil, nil
	}
	if err := m.check(t, bytes8, t.Shape[0], t.Shape[1], t.Shape[2], 16); err != nil {
		return nil, err
	}
	scale, err := m.part(x+"_scales", []tensor.DType{tensor.U8, tensor.F8E8M0}, t.Shape[:3]...)
	if err != nil {
		return nil, err
	}
	d := &blocks{packed: t, scale: scale, out: t.Shape[1], groups: t.Shape[2]}
	straight := &float4{packed: t, scale: scale, cols: mxfp4Len * d.groups, groups: d.groups, size: mxfp4Len}
	if n, err := t.Shape.Elements(); err != nil || n <= 0 || n > 1<<60 {
		return nil, m.fault("bad_shape", t.Name, "the experts are empty").Expected(t.Shape, "[experts, out, in/32, 16]")
	}
	return &weight{
		name: x, shape: tensor.Shape{t.Shape[0], 32 * d.groups, d.out}, dtype: m.config.or(tensor.BF16), scheme: "MXFP4",
		parts: []string{t.Name, scale.Name}, decode: d.rows, straight: straight.rows, encoding: microscaling{cols: straight.cols}, codes: microscaling{cols: straight.cols},
	}, nil
}

type blocks struct {
	packed, scale *tensor.Tensor
	out, groups   int64
}

// rows decodes whole rows, one input of one expert each, which are single elements of the stored rows.
func (d *blocks) rows(dst []float32, first int64) error {
	in := 32 * d.groups
	for len(dst) > 0 {
		expert, i := first/in, first%in
		n := min(int64(len(dst))/d.out, in-i)
		if err := d.columns(dst[:n*d.out], expert, i, n); err != nil {
			return err
		}
		dst, first = dst[n*d.out:], first+n
	}
	return nil
}

// columns decodes n inputs of an expert from input i.
func (d *blocks) columns(dst []float32, expert, i, n int64) error {
	from := i / 32
	width := ceil(i+n, 32) - from
	b, err := readRect(d.packed, 16*d.groups, expert*d.out, d.out, 16*from, 16*width)
	if err != nil {
		return err
	}
	exponents, err := readRect(d.scale, d.groups, expert*d.out, d.out, from, width)
	if err != nil {
		return err
	}
	// A tile of some outputs and one block of inputs is turned round in place, so that what is written to
	// the far-apart rows of W are whole stretches.
	const outs = 16
	var tile [32][outs]float32
	for g := range width {
		lo, hi := max(i, 32*(from+g)), min(i+n, 32*(from+g+1)) // inputs of the expert
		for o := int64(0); o < d.out; o += outs {
			m := min(outs, d.out-o)
			for k := range m {
				codes, scale := b[((o+k)*width+g)*16:][:16], powers[exponents[(o+k)*width+g]]
				for j, c := range codes {
					tile[2*j][k] = e2m1[c&15] * scale
					tile[2*j+1][k] = e2m1[c>>4] * scale
				}
			}
			for in := lo; in < hi; in++ {
				copy(dst[(in-i)*d.out+o:][:m], tile[in%32][:m])
			}
		}
	}
	return nil
}
