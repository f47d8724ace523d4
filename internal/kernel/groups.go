package kernel

import "math"

// Lanes is 256 values in two or one sets of eight groups, transposed so that what happens to eight
// groups at once is one vector operation: value i of group j lies at 8·(i + size·(j/8)) + j%8, where
// size is 16 or 32.
type Lanes [256]float32

// Groups is a super-block of 256 values, divided into 16 groups of 16 or 8 groups of 32, and how
// much each value matters. The block types of ggml find a scale for each group by trying several;
// the searches are methods. All values and weights must be finite: nothing is checked here.
type Groups struct {
	Values, Weights Lanes
	size            int
}

// PerGroup holds a number for each group; with groups of 32 only the first eight count.
type PerGroup [16]float32

// Load takes 256 values in groups of size, 16 or 32.
func (g *Groups) Load(x []float32, size int) {
	g.size = size
	transpose(&g.Values, (*[256]float32)(x), size)
}

// Count is the number of groups.
func (g *Groups) Count() int { return 256 / g.size }

// at is the place of the first value of group j; the others follow eight apart.
func (g *Groups) at(j int) int { return j/8*8*g.size + j%8 }

// group copies a group and its weights out.
func (g *Groups) group(j int, x, w *[32]float32) ([]float32, []float32) {
	for i, at := 0, g.at(j); i < g.size; i, at = i+1, at+8 {
		x[i], w[i] = g.Values[at], g.Weights[at]
	}
	return x[:g.size], w[:g.size]
}

// Squares is the sum of squares of each group, in order.
func (g *Groups) Squares() (sums PerGroup) {
	squares(&sums, g)
	return sums
}

// WeightSums is the sum of the weights of each group, in order.
func (g *Groups) WeightSums() (sums PerGroup) {
	weightSums(&sums, g)
	return sums
}

// WeighSquares gives each value its square as weight.
func (g *Groups) WeighSquares() { weighSquares(g) }

// WeighMagnitudes gives each value the weight offset + |value|, with an offset a group.
func (g *Groups) WeighMagnitudes(offsets *PerGroup) { weighMagnitudes(g, offsets) }

// WeighImportance gives each value the weight importance · √(spread + value²), with a spread a group.
// importance is in the order of the values given to Load.
func (g *Groups) WeighImportance(importance []float32, spreads *PerGroup) {
	transpose(&g.Weights, (*[256]float32)(importance), g.size)
	weighImportance(g, spreads)
}

// WeighPlain takes the importance itself as weight.
func (g *Groups) WeighPlain(importance []float32) {
	transpose(&g.Weights, (*[256]float32)(importance), g.size)
}

// Quantize gives each of 256 values the code of the nearest multiple of its group's step, counted from
// -offset and limited to low…high: code = limited((x+offset)/step) - low. Codes of groups whose step is
// zero mean nothing.
func Quantize(codes *[256]byte, x []float32, size int, steps, offsets *PerGroup, low, high int) {
	quantize(codes, (*[256]float32)(x), size, steps, offsets, int32(low), int32(high))
}

// Near rounds to the nearest integer, halves to even, as the reference does: by the bits of a sum. The
// result means nothing when |f| is above 4194303, but is always the same.
func Near(f float32) int32 {
	const big = 3 << 22
	return int32(math.Float32bits(f+big)&0x7fffff) - 0x400000
}

// Magnitude is the largest magnitude of the values. Infinities count as they are, and NaN as more.
func Magnitude(x []float32) float32 { return math.Float32frombits(magnitudeBits(x)) }

func sqrt(f float32) float32 { return float32(math.Sqrt(float64(f))) }

func abs(f float32) float32 { return math.Float32frombits(math.Float32bits(f) &^ (1 << 31)) }

func magnitudeGo(x []float32) (top uint32) {
	for _, v := range x {
		top = max(top, math.Float32bits(v)&^(1<<31))
	}
	return top
}

func transposeGo(dst *Lanes, src *[256]float32, size int) {
	for j := range 256 / size {
		at := j/8*8*size + j%8
		for _, v := range src[j*size:][:size] {
			dst[at] = v
			at += 8
		}
	}
}

func squaresGo(sums *PerGroup, g *Groups) {
	for i, v := range g.Values {
		sums[g.groupAt(i)] += float32(v * v)
	}
}

func weightSumsGo(sums *PerGroup, g *Groups) {
	for i, w := range g.Weights {
		sums[g.groupAt(i)] += w
	}
}

// groupAt is the group of the value at place i.
func (g *Groups) groupAt(i int) int { return i/(8*g.size)*8 + i%8 }

func weighSquaresGo(g *Groups) {
	for i, v := range g.Values {
		g.Weights[i] = v * v
	}
}

func weighMagnitudesGo(g *Groups, offsets *PerGroup) {
	for i, v := range g.Values {
		g.Weights[i] = offsets[g.groupAt(i)] + abs(v)
	}
}

func weighImportanceGo(g *Groups, spreads *PerGroup) {
	for i, v := range g.Values {
		g.Weights[i] *= sqrt(spreads[g.groupAt(i)] + float32(v*v))
	}
}

func quantizeGo(codes *[256]byte, x *[256]float32, size int, steps, offsets *PerGroup, low, high int32) {
	for j := range 256 / size {
		step, offset := steps[j], offsets[j]
		if step == 0 {
			continue
		}
		for i := j * size; i < (j+1)*size; i++ {
			codes[i] = byte(max(low, min(high, Near((x[i]+offset)/step))) - low)
		}
	}
}
