package verify

import (
	"fmt"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/tensor"
)

// tooLarge is the ‖Δ‖/‖W‖ above which an update is reported: trained adapters stay well below 1, and what
// replaces a weight several times over is a wrong scale or a broken file.
const tooLarge = 4

// Effects says which updates of a merge are suspiciously large or vanish, from what the merge measured.
func Effects(plan *merge.Plan, stats []merge.Stats) []finding.Finding {
	from := map[string]string{}
	for i := range plan.Tensors {
		if ups := plan.Tensors[i].Updates; len(ups) > 0 {
			from[plan.Tensors[i].Name] = ups[0].Adapter
		}
	}
	var out []finding.Finding
	for _, s := range stats {
		if s.Ratio == 0 && !s.NoEffect {
			continue // replaced as a whole, or added to a zero weight
		}
		t, _ := tensor.ParseDType(s.Type)
		if f := effect(s.Ratio, t); f != nil {
			f.File, f.Tensor, f.Module = from[s.Tensor], s.Tensor, s.Module
			out = append(out, *f)
		}
	}
	return out
}

// effect judges the size of an update against a weight of type t, nil when it is ordinary.
func effect(ratio float64, t tensor.DType) *finding.Finding {
	switch {
	case ratio == 0:
		return finding.Warnf("adapter.no_effect", "", "the update is zero: the adapter is untrained, or its scale is 0")
	case ratio < smallest(t):
		return finding.Warnf("adapter.no_effect", "", "the update is %.1e of the weight, less than a rounding of %s", ratio, t)
	case ratio > tooLarge:
		return finding.Warnf("adapter.magnitude", "", "the update is %s times as large as the weight", short(ratio)).
			Hinted("check the scale, and that the adapter was trained on this base")
	}
	return nil
}

// short prints a positive number with three digits and no exponent below a million.
func short(x float64) string {
	if x >= 1e6 {
		return fmt.Sprintf("%.2e", x)
	}
	if x >= 100 {
		return fmt.Sprintf("%.0f", x)
	}
	return fmt.Sprintf("%.3g", x)
}

// smallest is the relative size below which an update vanishes in a rounding of the type.
func smallest(t tensor.DType) float64 {
	switch t {
	case tensor.F32, tensor.F64:
		return 0x1p-26
	case tensor.F16:
		return 0x1p-16
	}
	return 0x1p-13
}
