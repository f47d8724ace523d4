package report

import (
	"math"
	"sort"

	"github.com/loratool/loratool/verify"
)

// A chart is one figure of the page: Data holds the x values and then one list for each series.
type chart struct {
	Title  string       `json:"-"`
	X      string       `json:"x"`
	Y      string       `json:"y"`
	Series []string     `json:"series"`
	Data   [][]*float64 `json:"data"` // null where a series has no value
	Log    bool         `json:"log,omitempty"`
	Bars   bool         `json:"bars,omitempty"`
	Whole  bool         `json:"whole,omitempty"` // x counts
}

// charts are the figures that the modules give; of an adapter that was only held to its base, the size of its
// updates.
func charts(modules, fits []Module) []chart {
	var out []chart
	if len(modules) > 0 {
		out = append(out, sortedRetention(modules))
	} else {
		modules = fits
	}
	if c, ok := ratioByLayer(modules); ok {
		out = append(out, c)
	}
	if c, ok := spectra(modules); ok {
		out = append(out, c)
	}
	for _, unit := range []verify.ErrorUnit{verify.Steps, verify.RMSNoise} {
		if c, ok := elementErrors(modules, unit); ok {
			out = append(out, c)
		}
	}
	if c, ok := errorHistogram(modules); ok {
		out = append(out, c)
	}
	return out
}

// sortedRetention draws the modules' retention in ascending order.
func sortedRetention(modules []Module) chart {
	values := make([]float64, len(modules))
	for i, m := range modules {
		values[i] = m.Retention
	}
	sort.Float64s(values)
	x := make([]float64, len(values))
	for i := range x {
		x[i] = float64(i + 1)
	}
	return chart{
		Title: "Retention, modules in ascending order", X: "module", Y: "retention", Series: []string{"retention"}, Whole: true,
		Data: [][]*float64{pointers(x), pointers(values)},
	}
}

// ratioByLayer draws the least, middle and largest ‖ΔW‖/‖W‖ of each layer of the stack with most modules.
func ratioByLayer(modules []Module) (chart, bool) {
	stacks := map[string]map[int][]float64{}
	size := map[string]int{}
	largest := ""
	for _, m := range modules {
		prefix, layer, _ := place(m.Module)
		if prefix == "" || m.Ratio <= 0 {
			continue
		}
		if stacks[prefix] == nil {
			stacks[prefix] = map[int][]float64{}
		}
		stacks[prefix][layer] = append(stacks[prefix][layer], m.Ratio)
		size[prefix]++
	}
	for _, m := range modules { // in order, so that the choice does not depend on the map's
		if prefix, _, _ := place(m.Module); size[prefix] > size[largest] {
			largest = prefix
		}
	}
	layers := make([]int, 0, len(stacks[largest]))
	for l := range stacks[largest] {
		layers = append(layers, l)
	}
	if len(layers) == 0 {
		return chart{}, false
	}
	sort.Ints(layers)
	var x, low, middle, high []float64
	for _, l := range layers {
		v := stacks[largest][l]
		sort.Float64s(v)
		x = append(x, float64(l))
		low, middle, high = append(low, v[0]), append(middle, v[len(v)/2]), append(high, v[len(v)-1])
	}
	return chart{
		Title: "‖ΔW‖/‖W‖ by layer of " + largest, X: "layer", Y: "‖ΔW‖/‖W‖", Series: []string{"median", "largest", "least"}, Log: true, Whole: true,
		Data: [][]*float64{pointers(x), pointers(middle), pointers(high), pointers(low)},
	}, true
}

// errorHistogram counts modules by the decimal logarithm of their relative error, in steps of a quarter.
func errorHistogram(modules []Module) (chart, bool) {
	const step, lowest = 0.25, -20.0
	counts := map[int]float64{}
	for _, m := range modules {
		if m.Checked && m.RelError > 0 && !math.IsInf(m.RelError, 0) {
			counts[int(math.Floor(max(lowest, math.Log10(m.RelError))/step))]++
		}
	}
	if len(counts) == 0 {
		return chart{}, false
	}
	first, last := math.MaxInt, math.MinInt
	for b := range counts {
		first, last = min(first, b), max(last, b)
	}
	var x, n []float64
	for b := first - 1; b <= last+1; b++ {
		x, n = append(x, (float64(b)+0.5)*step), append(n, counts[b])
	}
	return chart{
		Title: "Relative error of the stored weights", X: "log₁₀ ‖S−(W+ΔW)‖/‖W+ΔW‖", Y: "modules", Series: []string{"modules"}, Bars: true,
		Data: [][]*float64{pointers(x), pointers(n)},
	}, true
}

// pointers makes null of what JSON has no number for.
func pointers(v []float64) []*float64 {
	out := make([]*float64, len(v))
	for i := range v {
		if !math.IsNaN(v[i]) && !math.IsInf(v[i], 0) {
			out[i] = &v[i]
		}
	}
	return out
}
