package merge

import (
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/npy"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// A Calibration is what inputs modules had when a model was run, by the module's Hugging Face name. Retentions are
// weighed with it; it changes no byte of a merge.
type Calibration map[string]*Inputs

// Inputs are those of one module: samples of them, or the mean square of each.
type Inputs struct {
	n       int       // inputs
	squares bool      // values are mean squares
	values  []float32 // [samples, n], or [n]
}

// largestCalibration is how many bytes a file of them may have.
const largestCalibration = 4 << 30

// ReadCalibration reads an .npz file with an array for each module: activations [samples, in], or mean squares [in].
func ReadCalibration(path string) (Calibration, error) {
	arrays, err := npy.ReadArchive(path, largestCalibration)
	if err != nil {
		return nil, err
	}
	c := Calibration{}
	for _, a := range arrays {
		codec, ok := quant.Of(a.DType)
		if !ok || !a.DType.IsFloat() {
			return nil, finding.Errorf("calibration.bad_dtype", path, "inputs are floats").In(a.Name).Expected(a.DType, "float16, float32 or float64")
		}
		n := len(a.Shape)
		if n < 1 || n > 2 || a.Shape[n-1] == 0 || a.Shape[0] == 0 {
			return nil, finding.Errorf("calibration.bad_shape", path, "an array holds activations [samples, in] or mean squares [in]").In(a.Name).Expected(a.Shape, "one or two dimensions")
		}
		in := &Inputs{n: int(a.Shape[n-1]), squares: n == 1, values: make([]float32, len(a.Data)/a.DType.BlockBytes())}
		codec.Decode(in.values, a.Data)
		for i, v := range in.values {
			if v-v != 0 || in.squares && v < 0 {
				return nil, finding.Errorf("calibration.bad_value", path, "value %d is %v", i, v).In(a.Name)
			}
		}
		c[a.Name] = in
	}
	return c, nil
}

// check says what does not fit between inputs and a block of a stored matrix.
func (c Calibration) check(module string, inputs int64, stored tensor.Spec) *finding.Finding {
	if in := c[module]; in != nil && int64(in.n) != inputs {
		f := finding.Errorf("calibration.bad_shape", "", "the calibration has another number of inputs than the module").In(stored.Name).Expected(in.n, inputs)
		f.Module = module
		return f
	}
	return nil
}

// products are ⟨Hd, e⟩ and ⟨Hd, d⟩, where H are the second moments of the inputs.
func (in *Inputs) products(d, e []float64) (de, dd float64) {
	if in.squares {
		for k, m := range in.values {
			x := float64(float64(m) * d[k])
			de += float64(x * e[k])
			dd += float64(x * d[k])
		}
		return de, dd
	}
	for at := 0; at < len(in.values); at += in.n {
		var y, z float64
		for k, x := range in.values[at:][:in.n] {
			y += float64(float64(x) * d[k])
			z += float64(float64(x) * e[k])
		}
		de += float64(y * z)
		dd += float64(y * y)
	}
	return de, dd
}

// measureCalibrated adds a sampled row to the sums that inputs weigh: base is the row, w what it is to be, back what
// is stored. Rows that hold inputs of all outputs are left out.
func (t *task) measureCalibrated(base, w, back []float32, row int64, b *buffers, s *sums) {
	for i := range t.out.ops {
		in := t.out.calibration[t.out.bound[i].Module]
		at := t.out.area(i)
		if in == nil || at.Transposed || row < at.RowOff || row >= at.RowOff+at.Rows || int64(in.n) != at.Cols {
			continue
		}
		d, e := grow(&b.change, at.Cols), grow(&b.kept, at.Cols)
		for k := range d {
			x := float64(base[at.ColOff+int64(k)])
			d[k], e[k] = float64(w[at.ColOff+int64(k)])-x, float64(back[at.ColOff+int64(k)])-x
		}
		de, dd := in.products(d, e)
		s.calibratedDot += de
		s.calibratedSize += dd
		return
	}
}
