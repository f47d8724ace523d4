package scheme

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/loratool/loratool/tensor"
)

// matchPacked reads integers of compressed-tensors ("pack-quantized"):
//
//	X.weight_packed      I32 [out, ⌈in·b/32⌉], dense, each code with 2^(b-1) added
//	X.weight_shape       I64 [2]: out, in
//	X.weight_scale       [out, groups] or one
//	X.weight_zero_point  I32 [⌈out·b/32⌉, groups], packed along out (optional)
//	X.weight_g_idx       I32 [in], the group of each input (optional)
//
// W = (code − zero) · scale.
func matchPacked(m *model, t *tensor.Tensor) (*weight, error) {
	x, ok := strings.CutSuffix(t.Name, "weight_packed")
	if !ok || t.DType == tensor.U8 {
		return nil, nil
	}
	if err := m.check(t, words, -1, -1); err != nil {
		return nil, err
	}
	shape, err := m.readShape(x + "weight_shape")
	if err != nil {
		return nil, err
	}
	if len(shape) != 2 || shape[0] != t.Shape[0] || shape[0] <= 0 || shape[1] <= 0 {
		return nil, m.fault("bad_shape", t.Name, "the packed weight does not fit weight_shape").Expected(t.Shape, fmt.Sprintf("a packing of %v", shape))
	}
	scale := m.byName[x+"weight_scale"]
	if scale == nil {
		return m.missing(x + "weight_scale")
	}
	d := &packed{m: m, words: t, scale: scale, out: shape[0], in: shape[1]}
	w := &weight{name: x + "weight", shape: shape, parts: []string{t.Name, x + "weight_shape", scale.Name}, decode: d.rows}
	if d.bits, err = d.width(); err != nil {
		return nil, err
	}
	if err := d.groupsOf(x, w); err != nil {
		return nil, err
	}
	w.scheme = fmt.Sprintf("compressed-tensors int%d", d.bits)
	w.dtype = scale.DType // the library's choice
	return w, nil
}

func (m *model) missing(name string) (*weight, error) {
	_, err := m.part(name, floats)
	return nil, err
}

type packed struct {
	m                  *model
	words, scale, zero *tensor.Tensor
	index              *tensor.Tensor
	bits               int
	in, out            int64
	groups, scaleRows  int64 // scaleRows: out, or 1 where one scale serves all
	size               int64 // inputs a group, without index
	group              func() ([]int32, error)
}

// width is the number of bits that make the packed width.
func (d *packed) width() (int, error) {
	width := 0
	configured, _ := d.m.config.number("num_bits")
	for bits := 1; bits <= 8; bits++ {
		if d.in <= 1<<50 && ceil(d.in*int64(bits), 32) == d.words.Shape[1] && (width == 0 || int64(bits) == configured) {
			width = bits
		}
	}
	if width == 0 {
		return 0, d.m.fault("bad_shape", d.words.Name, "no width of 1 to 8 bits packs rows of %d to this", d.in).Expected(d.words.Shape, fmt.Sprintf("[%d, ⌈%d·bits/32⌉]", d.out, d.in))
	}
	if configured > 0 && configured != int64(width) {
		d.m.mismatch("num_bits", configured, width)
	}
	return width, nil
}

func (d *packed) groupsOf(x string, w *weight) error {
	m := d.m
	if n, err := d.scale.Shape.Elements(); err == nil && n == 1 {
		d.groups, d.scaleRows = 1, 1
		if err := m.check(d.scale, floats, d.scale.Shape...); err != nil {
			return err
		}
	} else {
		if err := m.check(d.scale, floats, d.out, -1); err != nil {
			return err
		}
		d.groups, d.scaleRows = d.scale.Shape[1], d.out
	}
	if d.groups <= 0 || d.groups > d.in {
		return m.fault("bad_shape", d.scale.Name, "the number of groups makes no sense").Expected(d.groups, fmt.Sprintf("1 to %d", d.in))
	}
	if z := x + "weight_zero_point"; m.byName[z] != nil {
		var err error
		if d.zero, err = m.part(z, words, ceil(d.out*int64(d.bits), 32), d.groups); err != nil {
			return err
		}
		w.parts = append(w.parts, z)
	}
	configured, ok := m.config.number("group_size")
	switch {
	case ok && ceil(d.in, configured) == d.groups:
		d.size = configured
	case d.in%d.groups == 0:
		d.size = d.in / d.groups
	default:
		return m.fault("bad_shape", d.scale.Name, "%d groups do not divide %d inputs, and nothing says how long they are", d.groups, d.in)
	}
	d.group = once(func() ([]int32, error) { return nil, nil })
	if name := x + "weight_g_idx"; m.byName[name] != nil {
		var err error
		if d.index, err = m.part(name, words, d.in); err != nil {
			return err
		}
		w.parts = append(w.parts, name)
		d.group = once(d.readIndex)
	}
	return nil
}

// readIndex reads the group of each input; nil where -1 says that there is no order.
func (d *packed) readIndex() ([]int32, error) {
	b, err := d.index.Read()
	if err != nil {
		return nil, err
	}
	group := make([]int32, d.in)
	unset := true
	for i := range group {
		group[i] = int32(binary.LittleEndian.Uint32(b[4*i:]))
		unset = unset && group[i] == -1
	}
	if unset {
		return nil, nil
	}
	for i, g := range group {
		if g < 0 || int64(g) >= d.groups {
			return nil, d.m.fault("bad_index", d.index.Name, "input %d is in a group that does not exist", i).Expected(g, fmt.Sprintf("0 to %d", d.groups-1))
		}
	}
	return group, nil
}

func (d *packed) rows(dst []float32, first int64) error {
	n, rowBytes := int64(len(dst))/d.in, 4*d.words.Shape[1]
	if n == 0 {
		return nil
	}
	group, err := d.group()
	if err != nil {
		return err
	}
	b := make([]byte, n*rowBytes)
	if _, err := d.words.ReadAt(b, first*rowBytes); err != nil {
		return err
	}
	from, rows := first, n
	if d.scaleRows == 1 {
		from, rows = 0, 1
	}
	scales, err := readFloats(d.scale, from*d.groups, rows*d.groups)
	if err != nil {
		return err
	}
	zeros, err := d.zeros(first, n)
	if err != nil {
		return err
	}
	for r := range n {
		row, words, s := dst[r*d.in:][:d.in], b[r*rowBytes:][:rowBytes], scales
		if d.scaleRows > 1 {
			s = scales[r*d.groups:]
		}
		z := zeros[r*d.groups:]
		if group == nil && d.bits == 4 && d.size%2 == 0 {
			d.nibbles(row, words, s, z)
			continue
		}
		for i := range row {
			g := int64(i) / d.size
			if group != nil {
				g = int64(group[i])
			}
			row[i] = float32(int(bitsAt(words, int64(i*d.bits), d.bits))-int(z[g])) * s[g]
		}
	}
	return nil
}

// nibbles decodes a row of four-bit codes whose groups follow one another.
func (d *packed) nibbles(row []float32, b []byte, scales []float32, zeros []uint8) {
	var table [16]float32
	for g := int64(0); g*d.size < d.in; g++ {
		for c := range table {
			table[c] = float32(c-int(zeros[g])) * scales[g]
		}
		part, b := row[g*d.size:min(d.in, (g+1)*d.size)], b[g*d.size/2:]
		for i := range part {
			part[i] = table[b[i/2]>>(4*(uint(i)&1))&15]
		}
	}
}

// zeros are the codes of zero of n rows, [n, groups].
func (d *packed) zeros(first, n int64) ([]uint8, error) {
	zeros := make([]uint8, n*d.groups)
	if d.zero == nil {
		for i := range zeros {
			zeros[i] = 1 << (d.bits - 1)
		}
		return zeros, nil
	}
	bits := int64(d.bits)
	from := first * bits / 32
	rows := ceil((first+n)*bits, 32) - from
	b := make([]byte, 4*rows*d.groups)
	if _, err := d.zero.ReadAt(b, 4*from*d.groups); err != nil {
		return nil, err
	}
	for r := range n {
		at := (first+r)*bits - from*32
		for g := range d.groups {
			v := uint64(word(b, at/32*d.groups+g))
			if at/32+1 < rows {
				v |= uint64(word(b, (at/32+1)*d.groups+g)) << 32
			}
			zeros[r*d.groups+g] = uint8(v >> (at % 32) & (1<<bits - 1))
		}
	}
	return zeros, nil
}
