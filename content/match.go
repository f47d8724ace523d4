// Package content finds the weights of a model in an ONNX graph by their values, where the exporter left no names.
package content

import (
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// Match tells a graph (see onnx.Model.SetKnown) which of its float initializers hold the weights of a model that
// names its modules as Hugging Face does: X.weight is that of module X. A weight is in an initializer where all its
// values are there, in either orientation, as a whole or as some of the outputs of a packed projection; they may
// have been rounded to 16 bits once. Scales that an exporter has folded into a weight make it another one.
//
// A few elements of each tensor are compared first, and whole tensors only where these agree, some rows at a time.
func Match(m *onnx.Model, weights merge.Base) error {
	g := &graph{by: map[[2]int64][]*matrix{}}
	for i, t := range m.Tensors() {
		g.tensor(i, t)
	}
	for _, w := range merge.ONNXNames(m).Weights() {
		g.add(w.Tensor, w.Transposed)
	}
	var modules []source
	for _, t := range weights.Tensors() {
		module, ok := strings.CutSuffix(t.Name, ".weight")
		if ok && readable(t) {
			modules = append(modules, source{module, forms(t)})
		}
	}
	if len(modules) == 0 {
		return finding.Errorf("base.unsupported", weights.Path(), "the model holds no weights under names of modules, MODULE.weight").
			Expected(weights.Format(), "a Hugging Face folder")
	}
	known := map[int][]onnx.Known{}
	whole := map[int]bool{} // initializers that are one weight
	var rest []source
	for _, s := range modules {
		found := 0
		for _, f := range s.forms {
			for _, x := range g.by[[2]int64{f.rows, f.cols}] {
				same, err := f.equals(x, 0)
				if err != nil {
					return err
				}
				if same && !slices.Contains(known[x.index], onnx.Known{Module: s.module}) {
					known[x.index] = append(known[x.index], onnx.Known{Module: s.module})
					whole[x.index] = true
					found++
				}
			}
		}
		if found == 0 {
			rest = append(rest, s)
		}
	}
	for _, s := range rest {
		for _, f := range s.forms {
			for _, x := range g.all {
				if whole[x.index] || x.cols != f.cols || x.rows <= f.rows {
					continue
				}
				at, err := f.within(x)
				if err != nil {
					return err
				}
				for _, row := range at {
					known[x.index] = append(known[x.index], onnx.Known{Module: s.module, RowOffset: row, Rows: f.rows})
				}
			}
		}
	}
	for _, k := range known {
		slices.SortStableFunc(k, func(a, b onnx.Known) int { return int(a.RowOffset - b.RowOffset) })
	}
	m.SetKnown(known)
	return nil
}

// A source is a module's weight, in the orientations that it may have.
type source struct {
	module string
	forms  []*matrix
}

// readable reports whether a tensor is a matrix, or a kernel, of floats that can be compared.
func readable(t tensor.Tensor) bool {
	n, err := t.Shape.Elements()
	return err == nil && n > 0 && len(t.Shape) >= 2 && (t.DType == tensor.F32 || t.DType == tensor.F16 || t.DType == tensor.BF16)
}

// forms are a weight as it is, and with its dimensions exchanged (Conv1D).
func forms(t tensor.Tensor) []*matrix {
	as := []*matrix{newMatrix(t, false)}
	if len(t.Shape) == 2 {
		as = append(as, newMatrix(t, true))
	}
	return as
}

// A graph is the initializers that weights are looked for in.
type graph struct {
	tensors map[string]*matrix
	all     []*matrix
	by      map[[2]int64][]*matrix
}

func (g *graph) tensor(i int, t tensor.Tensor) {
	if g.tensors == nil {
		g.tensors = map[string]*matrix{}
	}
	if readable(t) {
		g.tensors[t.Name] = &matrix{index: i, t: t}
	}
}

func (g *graph) add(name string, turned bool) {
	x := g.tensors[name]
	if x == nil || turned && len(x.t.Shape) != 2 {
		return
	}
	index := x.index
	x = newMatrix(x.t, turned)
	x.index = index
	g.all = append(g.all, x)
	g.by[[2]int64{x.rows, x.cols}] = append(g.by[[2]int64{x.rows, x.cols}], x)
}

// A matrix is a tensor seen with a row for each output.
type matrix struct {
	index      int // in the graph
	t          tensor.Tensor
	turned     bool // it is stored the other way
	rows, cols int64
	codec      quant.Codec

	columns [][]float32 // the values of a few columns, once asked for
}

func newMatrix(t tensor.Tensor, turned bool) *matrix {
	x := &matrix{t: t, turned: turned}
	x.rows, x.cols, _ = t.Shape.Matrix()
	if turned {
		x.rows, x.cols = x.cols, x.rows
	}
	x.codec, _ = quant.Of(t.DType)
	return x
}

// at reads the element in a row and a column.
func (x *matrix) at(row, col int64) (float32, error) {
	i := row*x.cols + col
	if x.turned {
		i = col*x.rows + row
	}
	size := int64(x.t.DType.BlockBytes())
	var b [4]byte
	var v [1]float32
	if _, err := x.t.ReadAt(b[:size], i*size); err != nil {
		return 0, err
	}
	x.codec.Decode(v[:], b[:size])
	return v[0], nil
}

// read reads n rows.
func (x *matrix) read(first, n int64) ([]float32, error) {
	t := x.t
	if x.turned {
		var err error
		if t, err = tensor.Turned(t); err != nil {
			return nil, err
		}
	}
	size := int64(t.DType.BlockBytes())
	b := make([]byte, n*x.cols*size)
	if _, err := t.ReadAt(b, first*x.cols*size); err != nil {
		return nil, err
	}
	v := make([]float32, n*x.cols)
	x.codec.Decode(v, b)
	return v, nil
}

// casts are the types that exporters round weights to on the way, Invalid for none.
var casts = []tensor.DType{tensor.Invalid, tensor.F16, tensor.BF16}

// cast rounds values to a type.
func cast(v []float32, d tensor.DType) ([]float32, error) {
	if d == tensor.Invalid {
		return v, nil
	}
	codec, _ := quant.Of(d)
	b := make([]byte, len(v)*d.BlockBytes())
	if err := codec.Encode(b, v); err != nil {
		return nil, err
	}
	w := make([]float32, len(v))
	codec.Decode(w, b)
	return w, nil
}

// samples is how many elements are compared first.
const samples = 48

// equals reports whether the rows of x from a row on are those of the weight, after one of the casts.
func (f *matrix) equals(x *matrix, row int64) (bool, error) {
	r := rand.New(rand.NewPCG(uint64(f.rows), uint64(f.cols)))
	alike := slices.Clone(casts) // those that the samples so far bear
	for k := 0; k < samples && len(alike) > 0; k++ {
		i, j := r.Int64N(f.rows), r.Int64N(f.cols)
		v, err := f.at(i, j)
		if err != nil {
			return false, err
		}
		w, err := x.at(row+i, j)
		if err != nil {
			return false, err
		}
		alike = slices.DeleteFunc(alike, func(d tensor.DType) bool {
			rounded, err := cast([]float32{v}, d)
			return err != nil || rounded[0] != w
		})
	}
	for _, d := range alike {
		same, err := f.same(x, row, d)
		if same || err != nil {
			return same, err
		}
	}
	return false, nil
}

// compared is how many elements are compared at a time.
const compared = 1 << 20

// same compares all rows.
func (f *matrix) same(x *matrix, row int64, d tensor.DType) (bool, error) {
	step := max(1, compared/f.cols)
	for first := int64(0); first < f.rows; first += step {
		n := min(step, f.rows-first)
		mine, err := f.read(first, n)
		if err != nil {
			return false, err
		}
		other, err := x.read(row+first, n)
		if err != nil {
			return false, err
		}
		if mine, err = cast(mine, d); err != nil || !slices.Equal(mine, other) {
			return false, nil
		}
	}
	return true, nil
}

// probes is how many columns of a packed weight are searched for the first row of a part.
const probes = 8

// within finds the rows of x at which the weight begins.
func (f *matrix) within(x *matrix) (at []int64, err error) {
	r := rand.New(rand.NewPCG(uint64(f.cols), 1))
	var first []float32
	var cols []int64
	for range probes {
		j := r.Int64N(f.cols)
		v, err := f.at(0, j)
		if err != nil {
			return nil, err
		}
		first, cols = append(first, v), append(cols, j)
	}
	if x.columns == nil {
		for _, j := range cols {
			column := make([]float32, x.rows)
			if x.turned { // a column lies together
				size := int64(x.t.DType.BlockBytes())
				b := make([]byte, x.rows*size)
				if _, err := x.t.ReadAt(b, j*x.rows*size); err != nil {
					return nil, err
				}
				x.codec.Decode(column, b)
			} else {
				for i := range column {
					if column[i], err = x.at(int64(i), j); err != nil {
						return nil, err
					}
				}
			}
			x.columns = append(x.columns, column)
		}
	}
	for _, d := range casts {
		want, err := cast(first, d)
		if err != nil {
			continue
		}
		for row := int64(0); row+f.rows <= x.rows; row++ {
			hit := true
			for k := range want {
				hit = hit && x.columns[k][row] == want[k]
			}
			if !hit || slices.Contains(at, row) {
				continue
			}
			same, err := f.equals(x, row)
			if err != nil {
				return nil, err
			}
			if same {
				at = append(at, row)
			}
		}
	}
	return at, nil
}
