package verify

import (
	"math"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// sameRounding checks a tensor without ops that the base holds as floats and the merged model packed: on some or
// all rows it is no further from its source than this program's own rounding, by the same scheme, brings it.
func (c *mergeCheck) sameRounding(w *work) error {
	ref, err := w.out.Reference()
	if err != nil {
		return err
	}
	defer ref.Close()
	_, frame := w.out.Ops()
	codec, _ := quant.Of(tensor.F32)
	block := ref.Block()
	step := max(1, (256<<10)/frame.Cols/block) * block
	var noise, own float64
	for _, first := range c.stretches(w, frame.Rows, step) {
		first -= first % block
		n := min(step, frame.Rows-first)
		source, _, exact, err := ref.Rows(first, n)
		if err != nil {
			return err
		}
		b := make([]byte, 4*len(source))
		if _, err := w.stored.ReadAt(b, 4*first*frame.Cols); err != nil {
			c.fail(w, "merge.equivalence", "%v", err)
			return nil
		}
		got := make([]float32, len(source))
		codec.Decode(got, b)
		rounded, ok, err := ref.Rounded(tensor.F32, source, first)
		if err != nil || !ok {
			return err
		}
		noise += squaredDistance(got, exact)
		own += squaredDistance(rounded, exact)
		w.bytes += int64(len(b))
	}
	if (noise > 0 && own == 0) || noise > ownNoise*own || noise-noise != 0 {
		w.findings = append(w.findings, *finding.Errorf("merge.equivalence", c.merged.Path(), "the adapters do not touch this tensor, but what is stored is %.3g times as far from its source as rounding makes it", math.Sqrt(noise/own)).
			In(w.out.Name).Expected(w.packed.Scheme, w.out.Source().Name))
	}
	return nil
}

// ownNoise bounds the squared error of what another encoder stored by that of this program's.
const ownNoise = 1.21
