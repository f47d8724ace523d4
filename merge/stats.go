package merge

import (
	"math"
	"slices"

	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/tensor"
)

// Stats are what a run measured of one updated tensor. W is the base, Δ the update, S the stored result.
type Stats struct {
	Tensor    string  `json:"tensor"`
	Module    string  `json:"module"`
	Type      string  `json:"type"`
	Retention float64 `json:"retention"` // ⟨S−W, Δ⟩/⟨Δ, Δ⟩: 1 = the adapter is all there, 0 = rounding ate it
	Ratio     float64 `json:"ratio"`     // ‖Δ‖/‖W‖
	Noise     float64 `json:"noise"`     // ‖S−(W+Δ)‖/‖Δ‖
	Changed   float64 `json:"changed"`   // share of elements whose stored value differs from the base
	NoEffect  bool    `json:"no_effect"` // Δ is zero

	// Calibrated is the retention weighed with the inputs that a calibration has of the module.
	Calibrated *float64 `json:"retention_calibrated,omitempty"`

	// Of tensors stored by matched rounding: what rounding to the nearest would have made of them.
	Nearest *Nearest `json:"nearest,omitempty"`
}

// Nearest is what rounding to the nearest code makes of an update.
type Nearest struct {
	Retention float64 `json:"retention"`
	Noise     float64 `json:"noise"`
}

// sums are the partial sums of Stats over some rows.
type sums struct {
	dot, delta, base, noise, whole float64
	changed, n                     int64

	nearestDot, nearestNoise float64 // of matched tensors

	calibratedDot, calibratedSize float64
}

// add counts rows: w0 is the base, w1 the updated weight, back what the stored bytes decode to.
func (s *sums) add(w0, w1, back []float32) {
	w1, back = w1[:len(w0)], back[:len(w0)]
	var dot, delta, base, noise, whole float64
	var changed int64
	for i, w := range w0 {
		x := float64(w1[i])
		d, e := x-float64(w), float64(back[i])-float64(w)
		whole += float64(x * x)
		dot += float64(d * e)
		delta += float64(d * d)
		base += float64(float64(w) * float64(w))
		noise += float64((e - d) * (e - d))
		if e != 0 {
			changed++
		}
	}
	s.dot += dot
	s.delta += delta
	s.base += base
	s.noise += noise
	s.whole += whole
	s.changed += changed
	s.n += int64(len(w0))
}

// addNearest counts a row that was stored otherwise: back is what its nearest codes decode to.
func (s *sums) addNearest(w0, w1, back []float32) {
	var dot, noise float64
	for i, w := range w0 {
		d, e := float64(w1[i])-float64(w), float64(back[i])-float64(w)
		dot += float64(d * e)
		noise += float64((e - d) * (e - d))
	}
	s.nearestDot += dot
	s.nearestNoise += noise
}

// Stored says how a tensor of the output came out.
type Stored struct {
	Tensor     string   `json:"tensor"`
	SourceType string   `json:"source_type"`
	Type       string   `json:"type"`
	Bytes      int64    `json:"bytes"`
	RMSE       float64  `json:"rmse"`                // ‖S−X‖/‖X‖, where S is stored of X; measured on a part of large tensors
	Retention  *float64 `json:"retention,omitempty"` // of the adapters, where they change the tensor
}

// addRounding counts rows without an update: back is what the bytes stored of w decode to.
func (s *sums) addRounding(w, back []float32) {
	back = back[:len(w)]
	var noise, whole float64
	for i, x := range w {
		d := float64(back[i]) - float64(x)
		noise += float64(d * d)
		whole += float64(float64(x) * float64(x))
	}
	s.noise += noise
	s.whole += whole
	s.n += int64(len(w))
}

// total adds the slabs up in order.
func (t *task) total() (all sums) {
	for _, s := range t.sums {
		all.dot += s.dot
		all.delta += s.delta
		all.base += s.base
		all.noise += s.noise
		all.whole += s.whole
		all.changed += s.changed
		all.n += s.n
		all.nearestDot += s.nearestDot
		all.nearestNoise += s.nearestNoise
		all.calibratedDot += s.calibratedDot
		all.calibratedSize += s.calibratedSize
	}
	return all
}

func (t *task) stored() Stored {
	r := Stored{Tensor: t.out.Name, SourceType: tensor.DType(t.out.SourceType).String(), Type: t.out.stored(), Bytes: t.size}
	if t.out.weight != nil && t.out.weight.Stored() {
		r.SourceType = r.Type
	}
	all := t.total()
	if all.whole > 0 {
		r.RMSE = math.Sqrt(all.noise / all.whole)
	}
	if len(t.out.Updates) > 0 {
		retention := t.stats().Retention
		r.Retention = &retention
	}
	return r
}

// stats sums a task's measurements of its update up.
func (t *task) stats() Stats {
	all := t.total()
	r := Stats{Tensor: t.out.Name, Module: t.out.Updates[0].Module, Type: t.out.stored(), Retention: 1}
	switch {
	case len(t.out.ops) == 0: // replaced as a whole
	case all.delta == 0:
		r.NoEffect = true
	default:
		r.Retention = all.dot / all.delta
		if all.base > 0 { // a zero weight has no size to compare with
			r.Ratio = math.Sqrt(all.delta / all.base)
		}
		r.Noise = math.Sqrt(all.noise / all.delta)
		r.Changed = float64(all.changed) / float64(all.n)
		if all.calibratedSize > 0 {
			x := all.calibratedDot / all.calibratedSize
			r.Calibrated = &x
		}
		if t.out.Requant == RequantMatch {
			r.Nearest = &Nearest{Retention: all.nearestDot / all.delta, Noise: math.Sqrt(all.nearestNoise / all.delta)}
		}
	}
	return r
}

// notFinite is the index of the first value that is NaN or infinite, or -1.
func notFinite(w []float32) int {
	if kernel.MagnitudeBits(w) < infinite {
		return -1
	}
	return slices.IndexFunc(w, func(f float32) bool { return f-f != 0 })
}

// limit is the bits of the smallest magnitude that does not fit how the output is stored: that no longer
// rounds to its type's largest value. What shares scales takes any, so only infinities and NaN do not fit.
func (o *Output) limit() uint32 {
	if o.shares() {
		return infinite
	}
	switch tensor.DType(o.Type) {
	case tensor.F16:
		return math.Float32bits(65520)
	case tensor.BF16:
		return 0x7f7f8000
	case tensor.F8E4M3:
		return math.Float32bits(464) + 1 // the tie rounds down to 448
	case tensor.F8E4M3FNUZ:
		return math.Float32bits(248)
	case tensor.F8E5M2, tensor.F8E5M2FNUZ:
		return math.Float32bits(61440)
	}
	return infinite
}

// infinite is the bits of an infinity.
const infinite = 0x7f800000

// overflow returns the index of a value from a limit on although the base's was finite, else -1.
func overflow(base, w []float32, limit uint32) int {
	for i, f := range w {
		if math.Float32bits(f)&0x7fffffff >= limit && math.Float32bits(base[i])&0x7fffffff < infinite {
			return i
		}
	}
	return -1
}
