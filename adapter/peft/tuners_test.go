package peft

import (
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/internal/corpus"
)

// goldens is how many cases of each tuner the corpus has. A tuner of the table without one is not tested.
var goldens = map[string]int{
	"LOHA": 14, "LOKR": 15, "IA3": 15, "OFT": 12, "BOFT": 8, "HRA": 3, "ADALORA": 3, "HIRA": 9, "DELORA": 4,
	"VERA": 4, "C3A": 4, "LN_TUNING": 4, "TRAINABLE_TOKENS": 1, "BEFT": 3,
}

// TestOtherTuners decodes every case of the tuners that are read and compares with what PEFT merged, within
// the tolerance of the corpus.
func TestOtherTuners(t *testing.T) {
	for name := range tuners {
		if goldens[name] == 0 {
			t.Errorf("%s has no golden cases", name)
		}
	}
	merged := map[string]int{}
	for _, c := range goldenCases(t) {
		if tuners[c.Type] == nil || !c.Reference {
			continue
		}
		t.Run(c.ID, func(t *testing.T) {
			dir := corpus.Path(t, "peft", c.Dir)
			a, err := Open(dir, Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			got := apply(t, filepath.Join(dir, "base.safetensors"), a)
			compare(t, &c, got, filepath.Join(dir, "merged.safetensors"))
			merged[c.Type]++
		})
	}
	for name, n := range goldens {
		if merged[name] < n {
			t.Errorf("%s: %d of %d cases were compared", name, merged[name], n)
		}
	}
}
