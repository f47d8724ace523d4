package peft

import (
	"slices"
	"testing"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/internal/corpus"
)

// needBase lists the cases of the corpus whose verdict depends on the base model or on the values: they
// must decode here without an error.
var needBase = []string{
	"nan_in_a", "inf_in_b", "delta_norm_outlier", "zero_b", "subnormal_only", "out_features_mismatch", "square_ambiguous_fan_in",
	"unknown_target", "all_targets_unmatched", "modules_to_save_wrong_vocab", "tokenizer_bigger_than_vocab", "base_name_mismatch",
}

// TestBadInputs checks verdict and code of every hostile PEFT folder, as far as the folder alone decides.
func TestBadInputs(t *testing.T) {
	var m struct {
		Cases []struct{ File, Expect, Reason string }
	}
	corpus.ReadJSON(t, corpus.Path(t, "badinputs", "adapter", "manifest.json"), &m)
	for _, c := range m.Cases {
		if c.File == "base_ok" {
			continue
		}
		t.Run(c.File, func(t *testing.T) {
			a, err := Open(corpus.Path(t, "badinputs", "adapter", c.File), Options{})
			if err != nil {
				f := finding.Of(err)
				if f == nil || c.Expect != "reject" || f.Code != "adapter."+c.Reason {
					t.Fatalf("got %v (%+v), expected %s %s", err, f, c.Expect, c.Reason)
				}
				return
			}
			defer a.Close()
			if slices.Contains(needBase, c.File) {
				return
			}
			has := slices.ContainsFunc(a.Findings, func(f finding.Finding) bool {
				return f.Level == finding.Warning && f.Code == "adapter."+c.Reason
			})
			if c.Expect == "reject" || has != (c.Expect == "warn") {
				t.Fatalf("findings %+v, expected %s %s", a.Findings, c.Expect, c.Reason)
			}
		})
	}
}
