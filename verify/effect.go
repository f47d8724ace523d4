package verify

import (
	"fmt"
	"math"
	"slices"

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

// How far a module's update may stand out among those of its adapter: so many robust standard deviations of the
// logarithms (1.4826 times the median distance from the median), and so many times the middle one.
const (
	standsOut   = 8
	timesMedian = 16
	fewModules  = 8 // of fewer there is no telling
)

// outliers are the modules whose update is far larger, beside its weight, than those of the others: a wrong scale of one
// module, or a damaged factor.
func outliers(adapter string, fits []Fit) (found []finding.Finding) {
	var logs []float64
	for _, f := range fits {
		if f.Ratio > 0 {
			logs = append(logs, math.Log(f.Ratio))
		}
	}
	if len(logs) < fewModules {
		return nil
	}
	middle := medianOf(logs)
	away := make([]float64, len(logs))
	for i, x := range logs {
		away[i] = math.Abs(x - middle)
	}
	deviation := 1.4826 * medianOf(away)
	for _, f := range fits {
		if f.Ratio <= 0 {
			continue
		}
		if d := math.Log(f.Ratio) - middle; d > math.Log(timesMedian) && d > standsOut*deviation {
			w := finding.Warnf("numeric.delta_outlier", adapter, "the update is %s of its weight, %s times as much as that of the middle module", short(f.Ratio), short(math.Exp(d))).In(f.Tensor)
			w.Module = f.Module
			found = append(found, *w.Hinted("look at the module's alpha and factors (inspect --tensors)"))
		}
	}
	return found
}

func medianOf(v []float64) float64 {
	s := slices.Clone(v)
	slices.Sort(s)
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}
