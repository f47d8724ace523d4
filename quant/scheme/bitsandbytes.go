package scheme

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"

	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// A quantState is the JSON that bitsandbytes stores beside a four-bit weight.
type quantState struct {
	QuantType       string   `json:"quant_type"`
	Blocksize       int64    `json:"blocksize"`
	DType           string   `json:"dtype"`
	Shape           []int64  `json:"shape"`
	NestedBlocksize int64    `json:"nested_blocksize"`
	NestedDType     string   `json:"nested_dtype"`
	NestedOffset    *float64 `json:"nested_offset"`
}

const maxState = 64 << 10 // bytes of a quantState; real ones take 200

// matchNF4 reads four-bit weights of bitsandbytes, NF4 and FP4:
//
//	N                                    ⌈n/2⌉ bytes, the first of two elements in the high half
//	N.quant_state.bitsandbytes__nf4      JSON: type, block, shape
//	N.quant_map                          F32 [16], value of a code
//	N.absmax                             F32, or U8 where it is quantized again: one a block
//	N.nested_absmax, N.nested_quant_map  F32, one a block of absmax, and F32 [256]
//
// W = quant_map[code] · absmax, with absmax = nested_quant_map[q] · nested_absmax + nested_offset.
func matchNF4(m *model, t *tensor.Tensor) (*weight, error) {
	name := t.Name
	var state *tensor.Tensor
	for _, kind := range []string{"nf4", "fp4"} {
		if s := m.byName[name+".quant_state.bitsandbytes__"+kind]; s != nil {
			state = s
		}
	}
	if state == nil {
		if m.byName[name+".absmax"] != nil {
			_, err := m.part(name+".quant_state.bitsandbytes__nf4", bytes8)
			return nil, err
		}
		return nil, nil
	}
	q, n, err := m.readState(state)
	if err != nil {
		return nil, err
	}
	if stored := int64(t.DType.BlockBytes()); stored == 0 || t.Size != ceil(ceil(n, 2), stored)*stored {
		return nil, m.fault("bad_shape", name, "the packed weight does not have the size that its quant_state says").
			Expected(fmt.Sprintf("%d bytes", t.Size), fmt.Sprintf("%d for %v", ceil(n, 2), q.Shape))
	}
	blocks := ceil(n, q.Blocksize)
	w := &weight{name: name, shape: q.Shape, dtype: floatType(q.DType), scheme: "bitsandbytes " + strings.ToUpper(q.QuantType)}
	w.parts = []string{name, state.Name, name + ".absmax", name + ".quant_map"}
	quantMap, err := m.part(name+".quant_map", float32s, 16)
	if err != nil {
		return nil, err
	}
	d := &nf4{packed: t, n: n, cols: q.Shape[len(q.Shape)-1], block: q.Blocksize}
	d.codes = once(func() ([]float32, error) { return readFloats(quantMap, 0, 16) })
	w.decode = d.rows
	if len(q.Shape) > 1 && d.cols%2 == 0 && t.Size == n/2 {
		w.codes = &keptScales{cols: d.cols, highFirst: true, values: d.codes, scales: d.steps}
		w.encoding = w.codes
	}
	if q.NestedBlocksize == 0 && q.NestedOffset == nil {
		d.absmax, err = m.vector(name+".absmax", floats, blocks)
		return w, err
	}
	if q.NestedBlocksize <= 0 || q.NestedOffset == nil || floatType(q.NestedDType) != tensor.F32 {
		return nil, m.fault("bad_state", state.Name, "the nested quantization is described in part, or in a type other than float32")
	}
	w.scheme += " double-quantized"
	w.parts = append(w.parts, name+".nested_absmax", name+".nested_quant_map")
	if d.absmax, err = m.vector(name+".absmax", bytes8, blocks); err != nil {
		return nil, err
	}
	if d.nested, err = m.vector(name+".nested_absmax", float32s, ceil(blocks, q.NestedBlocksize)); err != nil {
		return nil, err
	}
	nestedMap, err := m.part(name+".nested_quant_map", float32s, 256)
	if err != nil {
		return nil, err
	}
	d.nestedBlock, d.offset = q.NestedBlocksize, float32(*q.NestedOffset)
	d.nestedCodes = once(func() ([]float32, error) { return readFloats(nestedMap, 0, 256) })
	return w, nil
}

// readState reads and checks a quantState, and returns the number of elements of its shape.
func (m *model) readState(t *tensor.Tensor) (q quantState, n int64, err error) {
	bad := func(format string, a ...any) (quantState, int64, error) {
		return q, 0, m.fault("bad_state", t.Name, format, a...)
	}
	if err := m.check(t, bytes8, -1); err != nil {
		return q, 0, err
	}
	if t.Size > maxState {
		return bad("the description of %d bytes is longer than any real one", t.Size)
	}
	b, err := t.Read()
	if err != nil {
		return q, 0, err
	}
	if err := json.Unmarshal(b, &q); err != nil {
		return bad("the description is not the JSON it should be: %v", err)
	}
	if q.QuantType != "nf4" && q.QuantType != "fp4" || !strings.HasSuffix(t.Name, "__"+q.QuantType) {
		return bad("quant_type %q does not fit the tensor's name", q.QuantType)
	}
	if q.Blocksize <= 0 || len(q.Shape) == 0 {
		return bad("blocksize %d or shape %v makes no sense", q.Blocksize, q.Shape)
	}
	if floatType(q.DType) == tensor.Invalid {
		return bad("dtype %q is not float16, bfloat16 or float32", q.DType)
	}
	if q.NestedOffset != nil && math.IsInf(float64(float32(*q.NestedOffset)), 0) {
		return bad("nested_offset %g does not fit float32", *q.NestedOffset)
	}
	if n, err = tensor.Shape(q.Shape).Elements(); err != nil {
		return bad("%v", err)
	}
	return q, n, nil
}

type nf4 struct {
	packed, absmax, nested *tensor.Tensor // nested is nil unless absmax is quantized
	n, cols                int64
	block, nestedBlock     int64
	offset                 float32
	codes, nestedCodes     func() ([]float32, error)
}

func (d *nf4) rows(dst []float32, first int64) error {
	e := first * d.cols
	if len(dst) == 0 {
		return nil
	}
	end := e + int64(len(dst))
	codes, err := d.codes()
	if err != nil {
		return err
	}
	b := make([]byte, ceil(end, 2)-e/2)
	if _, err := d.packed.ReadAt(b, e/2); err != nil {
		return err
	}
	from := e / d.block
	scales, err := d.scales(from, ceil(end, d.block)-from)
	if err != nil {
		return err
	}
	var table [16]float32
	for at := e; at < end; {
		block := at / d.block
		stop := min(end, d.block*(block+1))
		scale := scales[block-from]
		for c := range table {
			table[c] = codes[c] * scale
		}
		part := dst[at-e : stop-e]
		if at%2 == 1 {
			part[0] = table[b[at/2-e/2]&15]
			part = part[1:]
			at++
		}
		pairs := b[at/2-e/2:]
		for i := range part {
			part[i] = table[pairs[i/2]>>(4*(^uint(i)&1))&15]
		}
		at = stop
	}
	return nil
}

// scales are the absmax of n blocks.
func (d *nf4) scales(from, n int64) ([]float32, error) {
	if d.nested == nil {
		return readFloats(d.absmax, from, n)
	}
	codes, err := d.nestedCodes()
	if err != nil {
		return nil, err
	}
	q := make([]byte, n)
	if _, err := d.absmax.ReadAt(q, from); err != nil {
		return nil, err
	}
	outer := from / d.nestedBlock
	nested, err := readFloats(d.nested, outer, ceil(from+n, d.nestedBlock)-outer)
	if err != nil {
		return nil, err
	}
	out := make([]float32, n)
	for i := range out {
		scaled := float32(codes[q[i]] * nested[(from+int64(i))/d.nestedBlock-outer])
		out[i] = scaled + d.offset
	}
	return out, nil
}

// steps are the absmax of elements from one on.
func (d *nf4) steps(step []float32, first int64) error {
	from := first / d.block
	scales, err := d.scales(from, ceil(first+int64(len(step)), d.block)-from)
	if err != nil {
		return err
	}
	for k := range step {
		step[k] = scales[(first+int64(k))/d.block-from]
	}
	return nil
}

// matchInt8 reads eight-bit weights of bitsandbytes: X.weight I8 [out, in], X.SCB F32 [out], the largest
// magnitude of each row, and X.weight_format U8, 0 for rows.
func matchInt8(m *model, t *tensor.Tensor) (*weight, error) {
	x, ok := strings.CutSuffix(t.Name, "weight")
	if !ok || t.DType != tensor.I8 || m.byName[x+"SCB"] == nil {
		return nil, nil
	}
	if err := m.check(t, []tensor.DType{tensor.I8}, -1, -1); err != nil {
		return nil, err
	}
	scb, err := m.vector(x+"SCB", floats, t.Shape[0])
	if err != nil {
		return nil, err
	}
	w := &weight{name: t.Name, shape: t.Shape, dtype: m.config.or(tensor.F16), scheme: "bitsandbytes int8", parts: []string{t.Name, scb.Name}}
	if f := m.byName[x+"weight_format"]; f != nil {
		if _, err := m.vector(f.Name, bytes8, 1); err != nil {
			return nil, err
		}
		b, err := f.Read()
		if err != nil {
			return nil, err
		}
		if b[0] != 0 {
			return nil, m.fault("unsupported", f.Name, "the int8 weight is laid out for one kind of GPU").Expected(fmt.Sprintf("weight_format %d", b[0]), "0, rows").
				Hinted("save the model again with a current bitsandbytes")
		}
		w.parts = append(w.parts, f.Name)
	}
	d := &int8Rows{packed: t, scb: scb, cols: t.Shape[1]}
	d.scale, _ = quant.Of(scb.DType)
	w.decode, w.encoding = d.rows, d
	return w, nil
}
