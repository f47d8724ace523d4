package adapter

import (
	"fmt"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// A Decomposed kernel is a factor [r, in·k…] in two parts: a core [r, q, k…], of shape Shape, which is
// multiplied with Down [q, in] on its second axis.
type Decomposed struct {
	Core, Down Factor
	Shape      tensor.Shape
}

// Tucker is the factor [r, in·k…] of a convolution whose kernel is decomposed as well: core, of shape
// [r, q, k…], times down [q, in] on its second axis. It serves LoCon (lora_mid and lora_down), LoHa and
// LoKr (t and w_b).
func Tucker(core *tensor.Tensor, down Factor) (Factor, error) {
	if len(core.Shape) < 3 || core.Shape[1] != down.Rows {
		return Factor{}, finding.Errorf("adapter.shape_mismatch", "", "the core of a decomposed convolution does not fit its factor").In(core.Name).
			Expected(core.Shape, fmt.Sprintf("[r, %d, kernel…]", down.Rows))
	}
	taps, err := core.Shape[2:].Elements()
	if err != nil {
		return Factor{}, err
	}
	r, q, in := core.Shape[0], core.Shape[1], down.Cols
	if _, err := (tensor.Shape{r, in, taps}).Elements(); err != nil {
		return Factor{}, err
	}
	c := FromTensor(*core, r*q, taps, ReadFloats)
	f := FromFunc(r, in*taps, func() ([]float32, error) {
		t, err := load(c)
		if err != nil {
			return nil, err
		}
		d, err := load(down)
		if err != nil {
			return nil, err
		}
		out, sums := make([]float32, r*in*taps), make([]float64, in*taps)
		for p := range r {
			clear(sums)
			for n := range q {
				tap := t[(p*q+n)*taps:][:taps]
				for i, x := range d[n*in:][:in] {
					part := sums[int64(i)*taps:][:taps]
					for k, y := range tap {
						part[k] += float64(float64(x) * float64(y))
					}
				}
			}
			for i, x := range sums {
				out[p*in*taps+int64(i)] = float32(x)
			}
		}
		return out, nil
	})
	f.Kernel = &Decomposed{c, down, core.Shape}
	return f, nil
}
