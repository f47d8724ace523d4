package scheme

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/loratool/loratool/tensor"
)

// matchGroups reads weights of GPTQ and AWQ, which share their names and the transposed orientation, and
// differ in the direction of packing:
//
//	X.qweight  I32  GPTQ [in·b/32, out], along in, dense; AWQ [in, out/8], along out, nibbles in the order 0 2 4 6 1 3 5 7
//	X.qzeros   I32  [groups, out·b/32], packed along out in either way
//	X.scales   F16  [groups, out]
//	X.g_idx    I32  [in], the group of each input (GPTQ only; without it groups follow one another)
//
// W[o, i] = scales[g, o] · (q[i, o] − zero[g, o]). The first checkpoint format of GPTQ stores zero − 1.
func matchGroups(m *model, t *tensor.Tensor) (*weight, error) {
	x, ok := strings.CutSuffix(t.Name, ".qweight")
	if !ok {
		return nil, nil
	}
	if err := m.check(t, words, -1, -1); err != nil {
		return nil, err
	}
	scales, err := m.part(x+".scales", floats, -1, -1)
	if err != nil {
		return nil, err
	}
	groups, out := scales.Shape[0], scales.Shape[1]
	zeros, err := m.part(x+".qzeros", words, groups, -1)
	if err != nil {
		return nil, err
	}
	d := &grouped{m: m, qweight: t, qzeros: zeros, scales: scales, groups: groups, out: out, zeroWords: zeros.Shape[1]}
	w := &weight{name: x + ".weight", dtype: halfOr(scales.DType, m.config.or(tensor.F32)), parts: []string{t.Name, zeros.Name, scales.Name}}
	if out == 0 || groups == 0 {
		return nil, m.fault("bad_shape", scales.Name, "the scales are empty").Expected(scales.Shape, "[groups, out]")
	}
	switch cols := t.Shape[1]; {
	case cols == out:
		err = d.gptq(w, x)
	case out%8 == 0 && cols == out/8 && zeros.Shape[1] == cols:
		d.awq, d.bits, d.in = true, 4, t.Shape[0]
		w.scheme = "AWQ 4-bit"
		err = d.sequential()
	default:
		err = m.fault("bad_shape", t.Name, "the packed weight has neither the shape of GPTQ nor that of AWQ (gemm)").
			Expected(t.Shape, fmt.Sprintf("[in·bits/32, %d] or [in, %d/8]", out, out))
	}
	if err != nil {
		return nil, err
	}
	if bits, ok := m.config.number("bits", "w_bit"); ok && bits != int64(d.bits) {
		m.mismatch("bits", bits, d.bits)
	}
	w.shape = tensor.Shape{out, d.in}
	w.decode = d.rows
	return w, nil
}

type grouped struct {
	m                       *model
	qweight, qzeros, scales *tensor.Tensor
	index                   *tensor.Tensor
	awq                     bool
	bits                    int
	zero                    int // added to stored zeros
	in, out                 int64
	groups, size            int64 // size: inputs a group, where there is no index
	zeroWords               int64
	group                   func() ([]int32, error) // of each input
}

// gptq finds bits and groups. The width of the zeros gives the bits, the height of the weight the inputs.
func (d *grouped) gptq(w *weight, x string) error {
	configured, _ := d.m.config.number("bits")
	for _, bits := range []int{2, 3, 4, 8} {
		// Only fewer than 32 outputs leave a choice.
		if d.zeroWords == ceil(d.out*int64(bits), 32) && (d.bits == 0 || int64(bits) == configured) {
			d.bits = bits
		}
	}
	if d.bits == 0 {
		return d.m.fault("bad_shape", d.qzeros.Name, "no width of 2, 3, 4 or 8 bits gives zeros of this shape").
			Expected(d.qzeros.Shape, fmt.Sprintf("[%d, %d·bits/32]", d.groups, d.out))
	}
	if n := d.qweight.Shape[0]; n == 0 || n > 1<<40 || n*32%int64(d.bits) != 0 {
		return d.m.fault("bad_shape", d.qweight.Name, "the packed rows do not hold whole inputs of %d bits", d.bits).Expected(d.qweight.Shape, "[in·bits/32, out]")
	}
	d.in = d.qweight.Shape[0] * 32 / int64(d.bits)
	w.scheme = fmt.Sprintf("GPTQ %d-bit", d.bits)
	d.zero = 1
	if strings.HasSuffix(firstText(d.m.config.quant, "checkpoint_format"), "_v2") {
		d.zero = 0
		w.scheme += " v2"
	}
	name := x + ".g_idx"
	if d.m.byName[name] == nil {
		return d.sequential()
	}
	var err error
	if d.index, err = d.m.part(name, words, d.in); err != nil {
		return err
	}
	w.parts = append(w.parts, name)
	d.group = once(d.readIndex)
	return nil
}

// sequential lets groups follow one another.
func (d *grouped) sequential() error {
	size, ok := d.m.config.number("group_size", "q_group_size")
	switch {
	case ok && ceil(d.in, size) == d.groups:
	case d.in%d.groups == 0:
		if size = d.in / d.groups; ok {
			configured, _ := d.m.config.number("group_size", "q_group_size")
			d.m.mismatch("group_size", configured, size)
		}
	default:
		return d.m.fault("bad_shape", d.scales.Name, "%d groups do not divide %d inputs, and nothing says how long they are", d.groups, d.in)
	}
	d.size = size
	d.group = once(func() ([]int32, error) {
		group := make([]int32, d.in)
		for i := range group {
			group[i] = int32(int64(i) / d.size)
		}
		return group, nil
	})
	return nil
}

// readIndex reads the group of each input.
func (d *grouped) readIndex() ([]int32, error) {
	b, err := d.index.Read()
	if err != nil {
		return nil, err
	}
	group := make([]int32, d.in)
	for i := range group {
		group[i] = int32(binary.LittleEndian.Uint32(b[4*i:]))
		if group[i] < 0 || int64(group[i]) >= d.groups {
			return nil, d.m.fault("bad_index", d.index.Name, "input %d is in a group that does not exist", i).Expected(group[i], fmt.Sprintf("0 to %d", d.groups-1))
		}
	}
	return group, nil
}

// rows decodes whole rows of W, which are columns of everything stored.
func (d *grouped) rows(dst []float32, first int64) error {
	n := int64(len(dst)) / d.in
	if n == 0 {
		return nil
	}
	group, err := d.group()
	if err != nil {
		return err
	}
	scales, err := readFloatRect(d.scales, d.out, 0, d.groups, first, n)
	if err != nil {
		return err
	}
	zeros, err := d.zeros(first, n)
	if err != nil {
		return err
	}
	switch {
	case d.awq:
		return d.awqRows(dst, first, n, scales, zeros, group)
	case 32%d.bits == 0:
		return d.wordRows(dst, first, n, scales, zeros, group)
	}
	return d.denseRows(dst, first, n, scales, zeros, group)
}

// lane is the number of rows of W written side by side. Rows lie a power of two apart more often than
// not, and caches hold eight such lines.
const lane = 8

// wordRows decodes GPTQ's words, each of which holds whole codes of one output. Zeros and scales are [groups, n].
func (d *grouped) wordRows(dst []float32, first, n int64, scales, zeros []float32, group []int32) error {
	b, err := readRect(d.qweight, 4*d.out, 0, d.qweight.Shape[0], 4*first, 4*n)
	if err != nil {
		return err
	}
	per := int64(32 / d.bits)
	mask := uint32(1)<<d.bits - 1
	var tables [lane]levels
	for lo := int64(0); lo < n; lo += lane {
		hi := min(n, lo+lane)
		known := int32(-1) // the group of the tables
		for i := int64(0); i < d.in; i += per {
			line := b[i/per*4*n:][:4*n]
			in := group[i : i+per]
			if d.bits == 4 && same(in) {
				if known != in[0] {
					known = in[0]
					for o := lo; o < hi; o++ {
						at := int64(known)*n + o
						tables[o-lo].fill(scales[at], zeros[at])
					}
				}
				for o := lo; o < hi; o++ {
					tables[o-lo].word((*[8]float32)(dst[o*d.in+i:]), word(line, o))
				}
				continue
			}
			for o := lo; o < hi; o++ {
				w, row := word(line, o), dst[o*d.in+i:][:per]
				for k := range row {
					at := int64(in[k])*n + o
					row[k] = scales[at] * (float32(w&mask) - zeros[at])
					w >>= d.bits
				}
			}
		}
	}
	return nil
}

// levels are the values of a group's four-bit codes.
type levels [16]float32

func (t *levels) fill(scale, zero float32) {
	for c := range t {
		t[c] = scale * (float32(c) - zero)
	}
}

// word decodes eight codes, the first in the lowest bits.
func (t *levels) word(to *[8]float32, w uint32) {
	to[0], to[1], to[2], to[3] = t[w&15], t[w>>4&15], t[w>>8&15], t[w>>12&15]
	to[4], to[5], to[6], to[7] = t[w>>16&15], t[w>>20&15], t[w>>24&15], t[w>>28]
}

func same(group []int32) bool {
	for _, g := range group {
		if g != group[0] {
			return false
		}
	}
	return true
}

// denseRows decodes GPTQ's codes that straddle words: 32 inputs take as many words as a code has bits.
func (d *grouped) denseRows(dst []float32, first, n int64, scales, zeros []float32, group []int32) error {
	b, err := readRect(d.qweight, 4*d.out, 0, d.qweight.Shape[0], 4*first, 4*n)
	if err != nil {
		return err
	}
	bits := int64(d.bits)
	mask := uint64(1)<<bits - 1
	for lo := int64(0); lo < n; lo += lane {
		hi := min(n, lo+lane)
		for i := range d.in {
			at, g := i*bits, int64(group[i])
			low := b[at/32*n*4:][:n*4]
			high := low
			if (at+bits-1)/32 > at/32 {
				high = b[(at/32+1)*n*4:][:n*4]
			}
			for o := lo; o < hi; o++ {
				v := uint64(word(low, o)) | uint64(word(high, o))<<32
				dst[o*d.in+i] = scales[g*n+o] * (float32(v>>(at%32)&mask) - zeros[g*n+o])
			}
		}
	}
	return nil
}

// awqOrder is the nibble of a word that holds each of eight outputs.
var awqOrder = [8]int{0, 4, 1, 5, 2, 6, 3, 7}

// awqRows decodes AWQ's words, each of which holds eight outputs of one input.
func (d *grouped) awqRows(dst []float32, first, n int64, scales, zeros []float32, group []int32) error {
	from, to := first/8, ceil(first+n, 8)
	width := to - from
	b, err := readRect(d.qweight, d.out/2, 0, d.in, 4*from, 4*width)
	if err != nil {
		return err
	}
	for c := range width {
		lo, hi := max(first, 8*(from+c))-first, min(first+n, 8*(from+c+1))-first
		if hi-lo == 8 {
			d.awqWords(dst[lo*d.in:hi*d.in], b[4*c:], width, scales[lo:], zeros[lo:], n, group)
			continue
		}
		for i, g := range group {
			w := word(b, int64(i)*width+c)
			s, z := scales[int64(g)*n:][:n], zeros[int64(g)*n:][:n]
			for o := lo; o < hi; o++ {
				code := w >> (4 * awqOrder[(first+o)%8]) & 15
				dst[o*d.in+int64(i)] = s[o] * (float32(code) - z[o])
			}
		}
	}
	return nil
}

// awqWords decodes the eight outputs of a column of words, which lie width words apart. Scales and zeros of a
// group lie n apart. A tile is filled first: eight rows a power of two apart would push each other out of the cache.
func (d *grouped) awqWords(dst []float32, b []byte, width int64, scales, zeros []float32, n int64, group []int32) {
	const inputs = 64
	var t [8]levels
	var tile [8][inputs]float32
	known := int32(-1) // the group of the tables
	for from := 0; from < len(group); from += inputs {
		part := group[from:min(from+inputs, len(group))]
		for i, g := range part {
			if g != known {
				known = g
				for k := range t {
					t[k].fill(scales[int64(g)*n+int64(k)], zeros[int64(g)*n+int64(k)])
				}
			}
			w, i := word(b, int64(from+i)*width), i%inputs
			tile[0][i], tile[2][i], tile[4][i], tile[6][i] = t[0][w&15], t[2][w>>4&15], t[4][w>>8&15], t[6][w>>12&15]
			tile[1][i], tile[3][i], tile[5][i], tile[7][i] = t[1][w>>16&15], t[3][w>>20&15], t[5][w>>24&15], t[7][w>>28]
		}
		for k := range tile {
			copy(dst[k*len(group)+from:][:len(part)], tile[k][:])
		}
	}
}

// zeros are those of n outputs from first, [groups, n]. The difference of a code and a zero is exact in float32.
func (d *grouped) zeros(first, n int64) ([]float32, error) {
	codes := make([]uint8, d.groups*n)
	var err error
	if d.awq {
		var b []byte
		from, to := first/8, ceil(first+n, 8)
		if b, err = readRect(d.qzeros, d.out/2, 0, d.groups, 4*from, 4*(to-from)); err == nil {
			for g := range d.groups {
				for i := range n {
					o := first + i
					codes[g*n+i] = uint8(word(b, g*(to-from)+o/8-from) >> (4 * awqOrder[o%8]) & 15)
				}
			}
		}
	} else {
		// The words that hold the bits of the first to the last output, of every group.
		bits := int64(d.bits)
		from, to := first*bits/32, ceil((first+n)*bits, 32)
		var b []byte
		if b, err = readRect(d.qzeros, 4*d.zeroWords, 0, d.groups, 4*from, 4*(to-from)); err == nil {
			skip := first*bits - from*32
			for g := range d.groups {
				row := b[g*4*(to-from):][:4*(to-from)]
				for i := range n {
					at := skip + i*bits
					codes[g*n+i] = bitsAt(row, at, d.bits)
				}
			}
		}
	}
	if err != nil {
		return nil, err
	}
	zeros := make([]float32, len(codes))
	for i, c := range codes {
		zeros[i] = float32(int(c) + d.zero)
	}
	return zeros, nil
}
