package onnxruntime

import (
	"encoding/json"
	"math"
	"testing"
)

// outputs adds n elements whose base, merged and wanted change f gives, and samples each with reference.
func outputs(n int, f func(i int) (y0, y1, d, reference float64)) sums {
	var s sums
	for i := range n {
		y0, y1, d, reference := f(i)
		s.add(y0, y1, d)
		s.compare(y1, reference)
	}
	return s
}

// alternate is a pattern without correlation to a constant or to its double frequency.
func alternate(i, period int) float64 { return float64(1 - 2*(i/period%2)) }

func TestJudge(t *testing.T) {
	const n = 4096
	bf16 := storage{typ: "BF16", noise: 0x1p-8, inner: 1024, locked: true}
	free := bf16
	free.locked = false
	f32 := storage{typ: "F32", noise: 0x1p-24, inner: 1024, locked: true}
	for _, tt := range []struct {
		name string
		w    storage
		// merged = base + kept·change + other, where other is uncorrelated with the change.
		effect, kept, other float64
		off                 float64 // relative error of the provider against the reference
		verdict             Verdict
	}{
		{"right", f32, 1e-2, 1, 0, 0, OK},
		{"right within noise", bf16, 1e-2, 1, 2e-3, 0, OK},
		{"provider is off", f32, 1e-2, 1, 0, 1e-4, Miscomputed},
		{"half lost on the same grid", bf16, 1e-3, 0.5, 1e-3, 0, Rounded},
		{"all lost on the same grid", bf16, 5e-4, 0.01, 1e-4, 0, Rounded},
		{"absent on another grid", free, 5e-4, 0.01, 1e-4, 0, NotMerged},
		{"half merged", f32, 1e-2, 0.5, 0, 0, Scaled},
		{"absent", bf16, 1e-1, 0, 1e-3, 0, NotMerged},
		{"foreign", bf16, 1e-1, 0, 1e-1, 0, Foreign},
		{"partly foreign", bf16, 1e-1, 0.5, 2e-1, 0, Foreign},
		{"right and more", f32, 1e-2, 1, 1e-3, 0, Inaccurate},
		{"drowned", bf16, 1e-4, 0, 1e-3, 0, Inconclusive},
		{"no change wanted, none made", f32, 0, 0, 0, 0, NoEffect},
		{"no change wanted, one made", f32, 0, 0, 1e-2, 0, Foreign},
	} {
		s := outputs(n, func(i int) (y0, y1, d, reference float64) {
			y0, d = alternate(i, 1), tt.effect*alternate(i, 2)
			reference = y0 + tt.kept*d + tt.other*alternate(i, 4)
			return y0, reference * (1 + tt.off), d, reference
		})
		r := s.judge(Result{Provider: CPU}, tt.w)
		if r.Verdict != tt.verdict {
			t.Errorf("%s: verdict %s (%s), expected %s; slack %.3f", tt.name, r.Verdict, r.Why, tt.verdict, r.RetentionSlack)
		}
		if tt.effect > 0 && tt.off == 0 && math.Abs(r.Retention-tt.kept) > 1e-9 {
			t.Errorf("%s: retention %g, expected %g", tt.name, r.Retention, tt.kept)
		}
	}
}

// Results go into JSON, which knows neither NaN nor infinity.
func TestResultsAreFinite(t *testing.T) {
	for name, f := range map[string]func(i int) (y0, y1, d, reference float64){
		"zeros":    func(int) (float64, float64, float64, float64) { return 0, 0, 0, 0 },
		"NaN":      func(int) (float64, float64, float64, float64) { return 1, math.NaN(), 1, 1 },
		"infinity": func(int) (float64, float64, float64, float64) { return math.Inf(1), 1, 1, 1 },
		"tiny":     func(int) (float64, float64, float64, float64) { return 1, 1, 1e-45, 1 },
		"no base":  func(int) (float64, float64, float64, float64) { return 0, 1, 1, 1 },
	} {
		r := outputs(8, f).judge(Result{Provider: CPU}, storage{typ: "F16", noise: 0x1p-11, floor: 0x1p-25, inner: 8})
		if _, err := json.Marshal(r); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
