package report

import (
	"sort"
	"strconv"

	"github.com/loratool/loratool/verify"
)

// spread is the largest singular value, and how many as large as it would have the same sum of squares: near 1 an
// update that has one direction, near its rank one that uses all of them alike.
func spread(s []float32) (largest, rank float64) {
	if len(s) == 0 || s[0] <= 0 {
		return 0, 0
	}
	largest = float64(s[0])
	for _, x := range s {
		r := float64(x) / largest
		rank += float64(r * r)
	}
	return largest, rank
}

// spectra draws how singular values fall, relative to the largest of their module: the middle one, and the tenth and
// ninetieth of a hundred modules.
func spectra(modules []Module) (chart, bool) {
	var at [][]float64
	for _, m := range modules {
		largest, _ := spread(m.Singular)
		if largest == 0 {
			continue
		}
		for k, x := range m.Singular {
			if k == len(at) {
				at = append(at, nil)
			}
			at[k] = append(at[k], float64(x)/largest)
		}
	}
	if len(at) < 2 {
		return chart{}, false
	}
	var x, low, middle, high []float64
	for k, v := range at {
		sort.Float64s(v)
		x = append(x, float64(k+1))
		low, middle, high = append(low, v[len(v)/10]), append(middle, v[len(v)/2]), append(high, v[len(v)-1-len(v)/10])
	}
	return chart{
		Title: "Singular values of ΔW, relative to the largest", X: "number", Y: "σ/σ₁", Series: []string{"median", "90 %", "10 %"}, Whole: true,
		Data: [][]*float64{pointers(x), pointers(middle), pointers(high), pointers(low)},
	}, true
}

// elementErrors adds the histograms of the modules up that count in a unit.
func elementErrors(modules []Module, unit verify.ErrorUnit) (chart, bool) {
	var counts []int64
	var width float64
	total := int64(0)
	for _, m := range modules {
		if m.Errors == nil || m.Errors.Unit != unit {
			continue
		}
		width = m.Errors.Width
		for i, n := range m.Errors.Counts {
			if i == len(counts) {
				counts = append(counts, 0)
			}
			counts[i] += n
			total += n
		}
	}
	if total == 0 {
		return chart{}, false
	}
	var x, share []float64
	for i, n := range counts {
		x, share = append(x, (float64(i)+0.5)*width), append(share, 100*float64(n)/float64(total))
	}
	c := chart{
		Title: "Error of the stored elements, in steps of their type (up to ½: one rounding; the last bar: more)", X: "|S−(W+ΔW)| / step", Y: "% of elements",
		Series: []string{"% of elements"}, Bars: true, Data: [][]*float64{pointers(x), pointers(share)},
	}
	if unit == verify.RMSNoise {
		c.Title, c.X = "Error of the stored elements, beside what their type's rounding makes (the last bar: more)", "|S−(W+ΔW)| / root mean square of the rounding"
	}
	return c, true
}

// A number that JSON shows with four digits.
type short float64

func (x short) MarshalJSON() ([]byte, error) {
	return strconv.AppendFloat(nil, float64(x), 'g', 4, 64), nil
}

// details are the figures that the page draws of a single module.
type details struct {
	Singular []short `json:"s,omitempty"`
	Errors   []int64 `json:"e,omitempty"`
	Unit     string  `json:"u,omitempty"`
	Width    float64 `json:"w,omitempty"`
}

func detailsOf(modules []Module) []details {
	all := make([]details, len(modules))
	for i, m := range modules {
		for _, x := range m.Singular {
			if x-x == 0 {
				all[i].Singular = append(all[i].Singular, short(x))
			}
		}
		if m.Errors != nil {
			all[i].Errors, all[i].Unit, all[i].Width = m.Errors.Counts, string(m.Errors.Unit), m.Errors.Width
		}
	}
	return all
}
