package onnxquant

import (
	"math"

	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// A rounding is how ONNX Runtime's quantizers (1.32) find scales, zero points and codes. In all of them 0 is
// counted among the values of a range with zero points, and codes are clamped.
type rounding int

const (
	// inBlob is that of MatMulNBits (mlas, quantizeAndTranspose), in float32:
	//
	//	without zero points  s = −m/2^(bits−1), where m is the value of the largest magnitude
	//	with zero points     s = (max−min)/(2^bits−1), z = round(−min/s)
	//	codes                round(x·(1/s) + z), by the scale as it is stored; half away from zero
	inBlob rounding = iota
	// inBlocks is that of DequantizeLinear in blocks (mlas, BlockwiseQDQQuantizer): the same with codes
	// round(x·(1/s)) + z.
	inBlocks
	// inRows is that of GatherBlockQuantized (quantize_ndarray): the same scales, codes round(x/s + z), half
	// to even, every operation rounded to the type of the scales.
	inRows
	// bySlice is that of one scale for a tensor or for a place on an axis (quantize_data), in float64:
	//
	//	zero points 0  s = max|x|/(2^(bits−1)−1)
	//	otherwise      s = (max−min)/(2^bits−1), z = round(least code − min/s), half to even
	//	codes          round(x/s) + z in float32, by the scale as it is stored; half to even
	//
	// Where s would be nothing it is 1.
	bySlice
)

// scaleOf is the scale of a range, before it is rounded to its type, and its zero point.
func (e *Encoding) scaleOf(x extremes) (scale, zero float32) {
	w := e.w
	low, high := w.coding.limits()
	if w.rounding == bySlice {
		return e.sliceScale(x, float64(low), float64(high))
	}
	narrow := e.narrow()
	if e.symmetric {
		m := x.most
		if -x.least >= x.most {
			m = x.least
		}
		return narrow(-m / float32(int32(1)<<(w.coding.bits-1))), float32(w.zeros.constant)
	}
	s := narrow(narrow(x.most-x.least) / float32(high-low))
	switch {
	case s == 0 && w.rounding == inRows:
		return 0, float32(int32(1)<<(w.coding.bits-1)) + float32(low)
	case s == 0:
		return 0, float32(max(low, 0))
	case w.zeros.floats:
		return s, -x.least / s
	case w.rounding == inRows:
		return s, clamp(roundEven(narrow(float32(low)-narrow(x.least/s))), low, high)
	}
	return s, clamp(roundAway(float32(low)-x.least/s), low, high)
}

func (e *Encoding) sliceScale(x extremes, low, high float64) (scale, zero float32) {
	least, most := float64(x.least), float64(x.most)
	if e.symmetric {
		most = max(most, -least)
		least, low = -most, -high
	}
	s := (most - least) / (high - low)
	tiny := 0x1p-126
	if e.scale.DType() == tensor.F16 {
		tiny = 0x1p-25 // becomes 0 as float16; from the next number on it becomes 2⁻²⁴
		s = oddFloat32(s)
		if s <= tiny {
			return 1, 0
		}
	} else if s < tiny {
		return 1, 0
	}
	if e.symmetric {
		return float32(s), 0
	}
	return float32(s), float32(max(low, min(high, math.RoundToEven(low-(least/((most-least)/(high-low)))))))
}

// oddFloat32 cuts a positive number to float32 so that a further rounding, to fewer bits, is that of the
// number itself: what is cut off stays as an odd last bit.
func oddFloat32(x float64) float64 {
	f := float32(x)
	if float64(f) == x {
		return x
	}
	if float64(f) > x {
		f = math.Nextafter32(f, 0)
	}
	return float64(math.Float32frombits(math.Float32bits(f) | 1))
}

func clamp(v float32, low, high int32) float32 { return max(float32(low), min(float32(high), v)) }

// narrow rounds to the type that an operation works in.
func (e *Encoding) narrow() func(float32) float32 {
	if e.w.rounding != inRows || e.scale.DType() == tensor.F32 {
		return func(v float32) float32 { return v }
	}
	codec, _ := quant.Of(e.scale.DType())
	return func(v float32) float32 {
		var b [2]byte
		one := [1]float32{v}
		if codec.Encode(b[:], one[:]) == nil {
			codec.Decode(one[:], b[:])
		}
		return one[0]
	}
}

// A coder gives values under a scale and a zero point their codes.
type coder struct {
	rounding  rounding
	s, z      float32
	inverse   float32 // of the scale, in blocks
	low, high float32
	narrow    func(float32) float32 // of inRows
}

// coder returns the coder for all but the scale and the zero point.
func (e *Encoding) coder() coder {
	low, high := e.w.coding.limits()
	c := coder{rounding: e.w.rounding, low: float32(low), high: float32(high)}
	switch c.rounding {
	case bySlice:
		if e.symmetric {
			c.low = -c.high
		}
	case inRows:
		c.narrow = e.narrow()
	}
	return c
}

func (c *coder) under(s, z float32) {
	c.s, c.z, c.inverse = s, z, 0
	if s != 0 && c.rounding <= inBlocks {
		c.inverse = max(-math.MaxFloat32, min(math.MaxFloat32, 1/s))
	}
}

func (c *coder) code(v float32) int32 {
	var q float32
	switch c.rounding {
	case inBlob:
		q = roundAway(float32(v*c.inverse) + c.z)
	case inBlocks:
		q = roundAway(v*c.inverse) + c.z
	case bySlice:
		q = roundEven(v/c.s) + c.z
	default:
		if c.s == 0 {
			return int32(c.z)
		}
		q = roundEven(c.narrow(c.narrow(v/c.s) + c.z))
	}
	if q > c.high {
		return int32(c.high)
	}
	if q >= c.low {
		return int32(q)
	}
	return int32(c.low)
}

// exact is the magnitude from which float32 numbers are whole.
const exact = 1 << 23

// roundAway rounds to a whole number, half away from zero: what is left when the number below ½ is added to the
// magnitude. A sum that reaches the next whole number by its own rounding comes from a half.
func roundAway(v float32) float32 {
	const belowHalf = 0x3effffff
	if v > -exact && v < exact {
		return float32(int32(v + math.Float32frombits(belowHalf|math.Float32bits(v)&(1<<31))))
	}
	return v
}

// roundEven rounds to a whole number, half to even.
func roundEven(v float32) float32 { return float32(math.RoundToEven(float64(v))) }
