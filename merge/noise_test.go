package merge_test

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/internal/trained"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// leastNoise is a lower bound of ‖S−(W+Δ)‖² over all codes S, on the base's scales or, by blocks, on those of the type's
// own encoder, that keep a share of the update: ⟨S−W, Δ⟩ ≥ share·‖Δ‖². For a multiplier of the condition the problem
// falls apart into elements, and each multiplier gives a bound; the best is within one element's part of the optimum.
func leastNoise(t *testing.T, d tensor.DType, base []byte, w, sum []float32, cols int, share float64) float64 {
	t.Helper()
	codec, _ := quant.Of(d)
	fresh := make([]byte, len(base))
	if err := codec.Encode(fresh, sum); err != nil {
		t.Fatal(err)
	}
	var kept, made quant.Grid
	codes, other := make([]int16, cols), make([]int16, cols)
	row, block := len(base)/(len(w)/cols), d.BlockLen()
	var size float64
	for i := range w {
		size += float64(sum[i]-w[i]) * float64(sum[i]-w[i])
	}
	bound := func(multiplier float64) (value, dot float64) {
		for i := 0; i < len(w)/cols; i++ {
			codec.ReadGrid(&kept, codes, base[i*row:][:row])
			codec.ReadGrid(&made, other, fresh[i*row:][:row])
			w, sum := w[i*cols:][:cols], sum[i*cols:][:cols]
			of := func(g *quant.Grid, old []int16, lo int) (value, dot float64) {
				for k := lo; k < lo+block; k++ {
					x := float64(sum[k]) - float64(w[k])
					// The nearest to w + (1 + multiplier/2)·Δ makes (S−W−Δ)² − multiplier·(S−W)·Δ least.
					s := float64(g.Value(k, g.Nearest(k, float32(float64(w[k])+(1+multiplier/2)*x), old[k]))) - float64(w[k])
					value += (s-x)*(s-x) - multiplier*s*x
					dot += s * x
				}
				return value, dot
			}
			for lo := 0; lo < cols; lo += block {
				v, p := of(&kept, codes, lo)
				if v2, p2 := of(&made, other, lo); v2 < v {
					v, p = v2, p2
				}
				value, dot = value+v, dot+p
			}
		}
		return value + multiplier*share*size, dot
	}
	best, lo, hi := 0.0, 0.0, 1.0
	for range 6 { // until the condition holds
		v, dot := bound(hi)
		best = max(best, v)
		if dot >= share*size {
			break
		}
		lo, hi = hi, 4*hi
	}
	for range 8 {
		at := (lo + hi) / 2
		v, dot := bound(at)
		best = max(best, v)
		if dot < share*size {
			lo = at
		} else {
			hi = at
		}
	}
	return best
}

// TestMatchNoise compares the error of matched rounding, from the float model's merge, with the least that any codes can
// have that keep 98 % of the update, and with the error of quantizing the float model's merge. But for three bits, where
// it is close, the least is more than 1.1 times the latter: the base's own error and what codes must move by are not
// correlated, and their squares add up.
func TestMatchNoise(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long with the race detector or an emulator")
	}
	in := []merge.Input{input(t, trained.Adapter(t), 1, dialect.Options{})}
	model := trained.GGUF(t)
	part := func(name string) bool { return strings.HasPrefix(name, "blk.0.attn_") }
	_, want, _ := merged(t, model, in, merge.Options{}, merge.RunOptions{})
	for _, c := range []struct {
		recipe      string
		ratio, over float64 // of the error to that from floats, and of the distance from base + Δ to the least one, at most
		least       float64 // of the least error to that from floats, at least
	}{{"Q4_0", 1.28, 1.4, 1.1}, {"Q4_K", 1.37, 1.4, 1.1}, {"Q3_K", 1.2, 1.45, 1.05}, {"IQ4_NL", 1.31, 1.4, 1.1}, {"Q6_K", 1.54, 1.25, 1.1}} {
		base := quantizedTo(t, model, c.recipe)
		specs, data, stats := merged(t, base, in, merge.Options{}, merge.RunOptions{})
		_, sums, _ := merged(t, base, in, merge.Options{DType: tensor.F32}, merge.RunOptions{})
		fspecs, fresh, _ := merged(t, model, in, merge.Options{Quantize: pure(t, c.recipe)}, merge.RunOptions{})
		exact := map[string]tensor.Tensor{}
		for _, x := range model.Tensors() {
			exact[x.Name] = x
		}
		stats = slices.DeleteFunc(stats, func(s merge.Stats) bool { return !part(s.Tensor) })
		var own, least, cross, moved, whole float64
		for _, x := range base.Tensors() {
			if !part(x.Name) {
				continue
			}
			b, err := x.Read()
			if err != nil {
				t.Fatal(err)
			}
			w, sum, stored := floats(t, x.DType, b), floats(t, tensor.F32, sums[x.Name]), floats(t, specs[x.Name].DType, data[x.Name])
			least += leastNoise(t, x.DType, b, w, sum, int(x.Shape[1]), 0.98)
			for i, f := range trained.Floats(t, exact[x.Name]) {
				e, d := float64(w[i])-float64(f), float64(stored[i])-float64(sum[i])
				own, cross, moved = own+e*e, cross+e*d, moved+d*d
			}
			for _, f := range floats(t, tensor.F32, want[x.Name]) {
				whole += float64(f) * float64(f)
			}
		}
		got, plain := relative(t, specs, data, want, stats), relative(t, fspecs, fresh, want, stats)
		bound, over, correlation := math.Sqrt((own+least)/whole), math.Sqrt(moved/least), cross/math.Sqrt(own*moved)
		t.Logf("%s: error %.4f, least %.4f, from floats %.4f: ratios %.3f and %.3f; %.3f of the least distance; correlation %.4f", c.recipe, got, bound, plain, got/plain, bound/plain, over, correlation)
		if got > c.ratio*plain || over > c.over || over < 1 || bound < c.least*plain || math.Abs(correlation) > 0.02 {
			t.Errorf("%s: the error is %.3f of that from floats, the least %.3f; correlation %.4f", c.recipe, got/plain, bound/plain, correlation)
		}
	}
}
