package trained

import (
	"encoding/binary"
	"math"
	"os"
	"testing"

	"github.com/loratool/loratool/internal/corpus"
)

// TestLogits compares the forward pass with one in float64 that others wrote.
func TestLogits(t *testing.T) {
	var facts struct {
		Prompts map[string]string
	}
	corpus.ReadJSON(t, Path(t, "losses.json"), &facts)
	m := NewLlama(Weights(t))
	for domain, prompt := range facts.Prompts {
		b, err := os.ReadFile(corpus.Path(t, "trained", "logits", "base."+domain+".f32"))
		if err != nil {
			t.Fatal(err)
		}
		got := m.Logits([]byte(prompt), len(prompt))
		if len(b) != 4*len(got) {
			t.Fatalf("%d logits, want %d", len(got), len(b)/4)
		}
		var worst float64
		for i, x := range got {
			want := math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
			worst = max(worst, math.Abs(float64(x)-float64(want)))
		}
		t.Logf("%s: the farthest of %d logits is %.1e away", domain, len(got), worst)
		if worst > 1e-4 {
			t.Errorf("%s: a logit is %g away", domain, worst)
		}
	}
}

// TestLoss compares with the perplexity that llama-perplexity finds, which counts what follows the first half of a
// window.
func TestLoss(t *testing.T) {
	text, err := os.ReadFile(corpus.Path(t, "trained", "eval", "python.bin"))
	if err != nil {
		t.Fatal(err)
	}
	m := NewLlama(Weights(t))
	if got := math.Exp(m.Loss(text[:20480], 256, 129)); math.Abs(got-8.30798) > 1e-3 {
		t.Errorf("perplexity %.5f, want 8.30798", got)
	}
}
