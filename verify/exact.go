package verify

import (
	"fmt"
	"math"

	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// exact compares rows of an updated tensor, as stored, with W + ΔW in float64.
type exact struct {
	ref    *merge.Reference
	stored tensor.Tensor
	codec  quant.Codec
	shares bool // stored elements share scales, so the type's own rounding is what they are measured by
	// The type is the base's, so the rows may have been matched to the update; matched says that some seem to be.
	matches, matched bool
	cols             int64
	row              int64 // bytes

	unknownImatrix bool // the rows were stored by an importance matrix that is not here

	in  []byte // buffers of rows
	got []float32

	unit                   float64 // of the histogram, for the rows at hand
	res                    Exact
	dot, delta, base       float64
	noise, want, ownNoise  float64
	grain                  float64 // what one rounding of a float type makes of noise
	ownDot                 float64 // ⟨own rounding − W, Δ⟩
	finer                  bool    // not every element is W + Δ rounded to bfloat16
	nonFinite, equalToBase bool
}

// rows checks n rows from first.
func (e *exact) rows(first, n int64) error {
	base, merged, want, err := e.ref.Rows(first, n)
	if err != nil {
		return err
	}
	if int64(len(e.in)) < n*e.row {
		e.in, e.got = make([]byte, n*e.row), make([]float32, n*e.cols)
	}
	in, got := e.in[:n*e.row], e.got[:n*e.cols]
	if _, err := e.stored.ReadAt(in, first*e.row); err != nil {
		return err
	}
	e.codec.Decode(got, in)
	e.res.Rows += n
	e.res.Elements += int64(len(got))
	if e.shares {
		if err := e.ownRounding(base, merged, want, got, first); err != nil {
			return err
		}
	}
	for i := range n {
		a, z := i*e.cols, (i+1)*e.cols
		e.compare(base[a:z], want[a:z], got[a:z])
	}
	return nil
}

// compare adds one row to the sums. The bound on a float type is half a step of the type, and what a
// float32 accumulation of the update may differ from the exact sum by: its terms are of the size of
// the row's update, its result of the size of the weight.
func (e *exact) compare(base []float32, want []float64, got []float32) {
	var d2 float64
	for i, w := range base {
		d := want[i] - float64(w)
		d2 += float64(d * d)
	}
	rms := math.Sqrt(d2 / float64(len(base)))
	g := gridOf(e.codec.DType())
	errors := e.res.Errors
	counts, perUnit := errors.Counts, 1/errors.Width
	if e.shares && e.unit > 0 {
		perUnit /= e.unit
	}
	// The sums of the row, which stay in registers.
	var dot, delta, norm, noise, whole, grain, maxSteps float64
	var rounded, far int64
	equal, finer := e.equalToBase, e.finer || g == bfloat16
	for i, v := range got {
		w, x, s := float64(base[i]), want[i], float64(v)
		d, off := x-w, s-x
		if off-off != 0 {
			e.nonFinite = true
			continue
		}
		dot += float64((s - w) * d)
		delta += float64(d * d)
		norm += float64(w * w)
		noise += float64(off * off)
		whole += float64(x * x)
		equal = equal && s == w
		off = math.Abs(off)
		if e.shares {
			if e.unit > 0 {
				counts[bin(off*perUnit)]++
			}
			continue
		}
		step, inverse := g.step(x)
		slack := 0x1p-21*(math.Abs(w)+math.Abs(x)+8*rms) + subnormal
		grain += float64(step * step)
		finer = finer || math.Float32bits(v)&0xffff != 0 || bfloat16.beyond(x, off, slack)
		if off <= step/2 {
			rounded++
		} else if off > step/2+slack {
			far++
		}
		steps := off * inverse
		if steps > maxSteps {
			maxSteps = steps
		}
		counts[bin(steps*perUnit)]++
	}
	e.dot, e.delta, e.base, e.noise, e.want = e.dot+dot, e.delta+delta, e.base+norm, e.noise+noise, e.want+whole
	e.grain += grain / 12
	e.res.Rounded, e.res.Off, e.res.MaxSteps = e.res.Rounded+rounded, e.res.Off+far, max(e.res.MaxSteps, maxSteps)
	e.equalToBase, e.finer = equal, finer
}

// bin is the place of a size, which is not negative, in a histogram. Whatever a size that no int holds is converted
// to, as an unsigned number it is large.
func bin(size float64) int { return int(min(uint(int(size)), errorBins)) }

// subnormal is what the roundings of an accumulation can add up to where float32 no longer has a relative
// precision.
const subnormal = 16 * 0x1p-149

// ownRounding measures the error that this program's own encoder makes, which a correct merge by any other
// encoder should not exceed by much. Rows that are further off than the nearest codes may have been matched to
// the update, which costs some error, so they are compared with that.
func (e *exact) ownRounding(base, merged []float32, want []float64, got []float32, first int64) error {
	own, ok, err := e.ref.Rounded(e.codec.DType(), merged, first)
	if err != nil || !ok {
		return err
	}
	noise := squaredDistance(own, want)
	if squaredDistance(got, want) > noise && e.matches {
		matched, ok, err := e.ref.Matched(merged, first)
		if err != nil {
			return err
		}
		if e.matched = e.matched || ok; ok {
			own, noise = matched, max(noise, squaredDistance(matched, want))
		}
	}
	for i, w := range base {
		e.ownDot += float64((float64(own[i]) - float64(w)) * (want[i] - float64(w)))
	}
	e.ownNoise += noise
	e.unit = math.Sqrt(noise / float64(len(want)))
	return nil
}

func squaredDistance(got []float32, want []float64) (sum float64) {
	for i, x := range want {
		d := float64(got[i]) - x
		sum += float64(d * d)
	}
	return sum
}

// A grid is the spacing of a float type's values.
type grid struct {
	mantissa, low int
	unit, perUnit float64 // 2^-mantissa, 2^mantissa
}

// bfloat16 is the type that merges most often go through although they are stored in a finer one.
var bfloat16 = gridOf(tensor.BF16)

// gridOf is the grid of a float type: the bits of its mantissa and its smallest normal exponent.
func gridOf(t tensor.DType) grid {
	g := mantissaOf(t)
	g.unit, g.perUnit = math.Ldexp(1, -g.mantissa), math.Ldexp(1, g.mantissa)
	return g
}

func mantissaOf(t tensor.DType) grid {
	switch t {
	case tensor.F64:
		return grid{mantissa: 52, low: -1022}
	case tensor.F16:
		return grid{mantissa: 10, low: -14}
	case tensor.BF16:
		return grid{mantissa: 7, low: -126}
	case tensor.F8E4M3:
		return grid{mantissa: 3, low: -6}
	case tensor.F8E4M3FNUZ:
		return grid{mantissa: 3, low: -7}
	case tensor.F8E5M2:
		return grid{mantissa: 2, low: -14}
	case tensor.F8E5M2FNUZ:
		return grid{mantissa: 2, low: -15}
	}
	return grid{mantissa: 23, low: -126}
}

// step is the distance between neighbouring values around x, a power of two, and its inverse.
func (g grid) step(x float64) (step, inverse float64) {
	bits := math.Float64bits(x) & (0x7ff << 52)
	e := int(bits>>52) - 1023 // of a subnormal x too small, which low corrects
	if e < g.low || e > 1000 || e < -1000 {
		step = math.Ldexp(1, max(e, g.low)-g.mantissa)
		return step, 1 / step
	}
	return math.Float64frombits(bits) * g.unit, math.Float64frombits((2046<<52)-bits) * g.perUnit
}

// beyond reports whether x, rounded to the type, cannot be off away, give or take a slack.
func (g grid) beyond(x, off, slack float64) bool {
	step, _ := g.step(x)
	return off > step/2+slack
}

// far reports whether rounding alone does not explain what is stored.
func (e *exact) far() bool {
	limit := 1.21
	if e.unknownImatrix {
		limit = imatrixNoise
	}
	return e.res.Off > 0 || e.shares && e.ownNoise > 0 && e.noise > limit*e.ownNoise
}

func (e *exact) retention() float64 {
	if e.delta == 0 {
		return 1
	}
	return e.dot / e.delta
}

// strays reports whether elements that share scales hold another share of the adapter than the type's own rounding
// leaves of it, and not all of it, as an encoder that takes care may. Beside coarse types the error of a wrong merge
// can be as small as that of a right one; its part along the adapter is not.
func (e *exact) strays() bool {
	if !e.shares || e.delta == 0 || e.ownNoise == 0 || e.unknownImatrix {
		return false
	}
	// Rounding is independent of the adapter, so its part along it is that of one direction of all.
	slack := 0.1 + 6*math.Sqrt(max(e.noise, e.ownNoise)/e.delta/float64(e.res.Elements))
	alpha := e.retention()
	return math.Abs(alpha-e.ownDot/e.delta) > slack && math.Abs(alpha-1) > slack
}

// explain says what a stored weight that is not W + Δ looks like: Δ with another factor, or something else. It parts
// the difference S−W into α·Δ and what is left, which rounding explains as far as it reaches; a weight that was
// merged and stored twice was rounded twice.
func (e *exact) explain() string {
	alpha := e.retention()
	off := float64((alpha-1)*(alpha-1)) * e.delta
	rest := e.noise - off - 6*max(e.ownNoise, e.grain)
	said := fmt.Sprintf("retention %.2f", alpha)
	switch {
	case math.Abs(alpha-1) <= 0.05 || e.delta == 0:
		return said
	case e.equalToBase:
		return said + ": the adapter is not in it"
	case math.Abs(alpha) < 0.1 || rest > off/2:
		return said + ": something else was added, as if transposed or into the wrong module"
	case alpha < 0:
		return said + ": merged with the wrong sign"
	case math.Abs(alpha-2) < 0.1:
		return said + ": merged twice, or with twice the scale"
	}
	return fmt.Sprintf("%s: merged with %.2f times the scale", said, alpha)
}

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return math.Sqrt(a / b)
}
