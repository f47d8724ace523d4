package model

import (
	"fmt"
	"math"
	"slices"

	"github.com/loratool/loratool/onnxruntime"
	"github.com/loratool/loratool/tensor"
	"github.com/loratool/loratool/verify"
)

// What one product of a merged layer differs by from base and branch, measured with ONNX Runtime on layers of 4096
// inputs: float32 by the order of its sums, the others by their one rounding.
const (
	noiseF32  = 3e-7
	noiseF16  = 3e-4
	noiseBF16 = 2.4e-3
	// noiseInt8 is that of operators which round their activations to 8 bits.
	noiseInt8 = 4e-3
)

// A tolerance is what rounding alone may make of an output.
type tolerance struct {
	noise float64 // expected relative error
	limit float64 // four times that, and not less than the type's own
	typ   string  // the coarsest type, for messages
}

// tolerate adds the noise of the merged layers up: errors of different layers are independent, so their squares add.
// activations counts the operators that round to 8 bits.
func tolerate(modules []verify.Module, compute []tensor.DType, activations int) tolerance {
	t := tolerance{typ: tensor.F32.String()}
	sum, worst, floor := 0.0, 0.0, 1e-5
	add := func(typ string, noise, least float64) {
		sum += float64(noise * noise)
		floor = max(floor, least)
		if noise > worst {
			worst, t.typ = noise, typ
		}
	}
	for _, m := range modules {
		switch m.Type {
		case tensor.F32.String(), tensor.F64.String():
			add(m.Type, noiseF32, 0)
		case tensor.F16.String():
			add(m.Type, noiseF16, 5e-3)
		case tensor.BF16.String():
			add(m.Type, noiseBF16, 5e-2)
		default:
			add(m.Type, max(m.RelError, noiseF32), 0)
		}
	}
	for _, d := range compute { // the layers' own arithmetic
		switch d {
		case tensor.F16:
			add("F16", noiseF16, 5e-3)
		case tensor.BF16:
			add("BF16", noiseBF16, 5e-2)
		}
	}
	for range activations {
		add("8-bit activations", noiseInt8, 0)
	}
	t.noise = math.Sqrt(sum)
	t.limit = min(0.5, max(floor, 4*t.noise))
	return t
}

// The verdicts on an output that are no failures but prove nothing.
const (
	noEffect     = "the adapter does not change this output"
	inconclusive = "rounding is too coarse beside the adapter's effect to tell"
)

// compare judges an output: merged, base with adapters, base alone.
func compare(name string, dtype tensor.DType, merged, with, base onnxruntime.Value, t tolerance) verify.ModelOutput {
	o := verify.ModelOutput{Name: name, DType: dtype.String(), Shape: slices.Clone([]int64(with.Shape)), Limit: t.limit}
	if o.Shape == nil {
		o.Shape = []int64{}
	}
	fail := func(format string, a ...any) verify.ModelOutput {
		o.Pass, o.Why = false, fmt.Sprintf(format, a...)
		return o
	}
	if !slices.Equal([]int64(merged.Shape), []int64(with.Shape)) {
		return fail("the merged model's output has shape %v, the base's %v", merged.Shape, with.Shape)
	}
	if with.F32 == nil {
		o.Limit = 0.01
		o.RelError, o.Effect = differing(merged.I64, with.I64), differing(with.I64, base.I64)
		o.Pass = o.RelError <= o.Limit
		switch {
		case !o.Pass:
			o.Why = fmt.Sprintf("%.1f %% of the values differ", 100*o.RelError)
		case o.Effect == 0:
			o.Why = noEffect
		}
		return o
	}
	var zz, yy, yz, ee, bb, dd, dm float64
	for i, z32 := range with.F32 {
		y, z, b := float64(merged.F32[i]), float64(z32), float64(base.F32[i])
		if v := y + z + b; v-v != 0 {
			return fail("element %d is %v in the merged model, %v in the base with its adapters and %v in the base", i, merged.F32[i], z32, base.F32[i])
		}
		e, d := y-z, z-b
		zz, yy, yz = zz+float64(z*z), yy+float64(y*y), yz+float64(y*z)
		ee, bb, dd, dm = ee+float64(e*e), bb+float64(b*b), dd+float64(d*d), dm+float64((y-b)*d)
	}
	o.RelError, o.Effect = share(ee, zz), share(dd, bb)
	cosine := 1.0
	if zz > 0 && yy > 0 {
		cosine = yz / math.Sqrt(zz) / math.Sqrt(yy)
	} else if zz != yy {
		cosine = 0
	}
	o.Cosine = &cosine
	if a, ok := agreement(merged, with); ok {
		o.Argmax = &a
	}
	if dd == 0 {
		if o.RelError > t.limit {
			return fail("the adapter does not change this output, but the merged model's differs by %.1e", o.RelError)
		}
		o.Pass, o.Why = true, noEffect
		return o
	}
	alpha := dm / dd
	o.Retention = &alpha
	// Outputs depend on one another, so no more of them count than a thousand.
	slack := 0.05 + 3*t.noise/o.Effect/math.Sqrt(float64(min(len(with.F32), 1024)))
	off := math.Abs(alpha - 1)
	switch {
	case slack > 0.5 && off <= slack && o.RelError <= t.limit:
		o.Pass, o.Why = true, inconclusive
		return o
	case off > slack:
		return fail("retention %.3f: %s", alpha, factor(alpha, ee/dd))
	case o.RelError > t.limit:
		return fail("the output differs by %.1e from base and adapters, expected at most %.1e for %s", o.RelError, t.limit, t.typ)
	case cosine < min(0.999, 1-float64(t.limit*t.limit)):
		return fail("the cosine of both outputs is %.6f", cosine)
	}
	o.Pass = true
	return o
}

// factor says what a retention other than 1 means; residual is ‖Y−Z‖²/‖Z−Y0‖².
func factor(alpha, residual float64) string {
	switch off := alpha - 1; {
	case math.Abs(alpha) <= 0.05 && residual < 1.2:
		return "the adapter's effect is not there"
	case residual > float64(off*off)+0.5:
		return "something else was merged, as if transposed or into the wrong module"
	case alpha < 0:
		return "the adapter's effect has the wrong sign"
	case alpha > 1:
		return "the adapter's effect is too strong, as if it was merged twice or with another scale"
	}
	return "the adapter's effect is too weak, as if it was merged with another scale or lost to rounding"
}

func differing(a, b []int64) float64 {
	n := 0
	for i := range a {
		if a[i] != b[i] {
			n++
		}
	}
	return float64(n) / float64(max(1, len(a)))
}

// share is √(a/b), with 0/0 = 0 and a/0 = 1.
func share(a, b float64) float64 {
	switch {
	case b > 0:
		return math.Sqrt(a / b)
	case a > 0:
		return 1
	}
	return 0
}

// agreement is the share of rows whose largest element is at the same place.
func agreement(a, b onnxruntime.Value) (float64, bool) {
	if len(b.Shape) == 0 || b.Shape[len(b.Shape)-1] < 2 || len(b.F32) == 0 {
		return 0, false
	}
	n := int(b.Shape[len(b.Shape)-1])
	rows, same := len(b.F32)/n, 0
	for i := range rows {
		if largest(a.F32[i*n:(i+1)*n]) == largest(b.F32[i*n:(i+1)*n]) {
			same++
		}
	}
	return float64(same) / float64(rows), true
}

func largest(v []float32) (at int) {
	for i, x := range v {
		if x > v[at] {
			at = i
		}
	}
	return at
}
