package merge_test

import (
	"bytes"
	"os"
	"testing"

	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/internal/trained"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/tensor"
)

// lossWith is the trained model's loss with matrices as they are stored.
func lossWith(t *testing.T, specs map[string]tensor.Spec, data map[string][]byte, text []byte) float64 {
	t.Helper()
	var all []tensor.Tensor
	for name, s := range specs {
		all = append(all, tensor.Tensor{Spec: s, Src: bytes.NewReader(data[name]), Size: int64(len(data[name]))})
	}
	return trained.NewLlama(trained.With(t, all)).Loss(text, 256, 1)
}

// TestMatchLoss lets the trained model read Python, which its adapter has learned: of what the adapter does for the
// loss beside the quantized base, matched rounding keeps all but 3 %.
func TestMatchLoss(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long with the race detector or an emulator")
	}
	text, err := os.ReadFile(corpus.Path(t, "trained", "eval", "python.bin"))
	if err != nil {
		t.Fatal(err)
	}
	text = text[:5*256]
	in := []merge.Input{input(t, trained.Adapter(t), 1, dialect.Options{})}
	floats := trained.GGUF(t)
	for _, c := range []struct {
		recipe  string
		nearest float64 // what rounding to the nearest keeps at most
	}{{"Q4_0", 0.6}, {"Q4_K", 0.75}, {"Q3_K", 0.4}, {"IQ4_NL", 0.7}} {
		base := quantizedTo(t, floats, c.recipe)
		loss := func(opt merge.Options) float64 {
			specs, data, _ := merged(t, base, in, opt, merge.RunOptions{})
			return lossWith(t, specs, data, text)
		}
		without := trained.NewLlama(trained.With(t, base.Tensors())).Loss(text, 256, 1)
		beside, matched, nearest := loss(merge.Options{DType: tensor.F32}), loss(merge.Options{}), loss(merge.Options{Requant: merge.RequantNearest})
		kept, lost := (without-matched)/(without-beside), (without-nearest)/(without-beside)
		t.Logf("%s: loss %.4f, with the adapter beside it %.4f, matched %.4f (%.1f %%), nearest %.4f (%.1f %%)", c.recipe, without, beside, matched, 100*kept, nearest, 100*lost)
		if without-beside < 0.2 {
			t.Fatalf("%s: the adapter does nothing", c.recipe)
		}
		if kept < 0.97 || lost > c.nearest {
			t.Errorf("%s: matched rounding keeps %.3f of what the adapter does, the nearest codes %.3f", c.recipe, kept, lost)
		}
	}
}
