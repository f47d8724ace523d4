package merge_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/tensor"
)

const tiny = "../testdata/tiny-llama"

// tiedBase is the tiny llama without its output matrix, whose configuration ties it to the embedding.
func tiedBase(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "base")
	src := open(t, filepath.Join(tiny, "base"))
	var specs []tensor.Spec
	var from []tensor.Tensor
	for _, x := range src.Tensors() {
		if x.Name != "lm_head.weight" {
			specs, from = append(specs, x.Spec), append(from, x)
		}
	}
	config, err := os.ReadFile(filepath.Join(tiny, "base", "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	config = bytes.Replace(config, []byte(`"tie_word_embeddings": false`), []byte(`"tie_word_embeddings": true`), 1)
	if !bytes.Contains(config, []byte(`"tie_word_embeddings": true`)) {
		t.Fatal("the base's config.json says nothing of tied embeddings")
	}
	l, err := safetensors.NewLayout(specs, safetensors.Output{Dir: true, Extra: []layout.File{safetensors.NewFile("config.json", config)}}, layout.Options{Name: "base"})
	if err != nil {
		t.Fatal(err)
	}
	w, err := layout.Create(dir, l, false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for i, x := range from {
		b, err := x.Read()
		if err != nil {
			t.Fatal(err)
		}
		if err := w.WriteAt(i, b, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestTiedPolicies merges an adapter of embedding and output layer into a base that ties them.
func TestTiedPolicies(t *testing.T) {
	dir := tiedBase(t)
	base := open(t, dir)
	in := input(t, filepath.Join(tiny, "adapters", "embedding"), 1, dialect.Options{})
	_, err := merge.NewPlan(base, []merge.Input{in}, merge.Options{Resolve: merge.Resolvers(base)})
	if f := finding.Of(err); f == nil || f.Code != "match.tied_embeddings" {
		t.Errorf("without a policy: got %v, want match.tied_embeddings", err)
	}

	plan, err := merge.NewPlan(base, []merge.Input{in}, merge.Options{Resolve: merge.Resolvers(base), Tied: merge.TiedUntie})
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out")
	writePlan(t, plan, base.(formats.Writable), out)
	config, err := os.ReadFile(filepath.Join(out, "config.json"))
	if err != nil || !strings.Contains(string(config), `"tie_word_embeddings": false`) {
		t.Errorf("config.json still ties the embeddings: %v", err)
	}
	// The head starts from the embedding, and each gets its own update.
	_, untied, _ := merged(t, base, []merge.Input{in}, merge.Options{Tied: merge.TiedUntie}, merge.RunOptions{})
	for _, x := range open(t, out).Tensors() {
		b, err := x.Read()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b, untied[x.Name]) {
			t.Errorf("%s: the written bytes are not the run's", x.Name)
		}
	}
	if bytes.Equal(untied["lm_head.weight"], untied["model.embed_tokens.weight"]) {
		t.Error("head and embedding are equal after different updates")
	}

	_, both, _ := merged(t, base, []merge.Input{in}, merge.Options{Tied: merge.TiedBoth}, merge.RunOptions{})
	if _, ok := both["lm_head.weight"]; ok {
		t.Error("a shared matrix was stored twice")
	}
	if bytes.Equal(both["model.embed_tokens.weight"], untied["model.embed_tokens.weight"]) {
		t.Error("the shared matrix lacks the head's update")
	}
}

// writePlan runs a plan into a file or folder.
func writePlan(t *testing.T, plan *merge.Plan, base formats.Writable, out string) []merge.Stats {
	t.Helper()
	l, err := plan.Layout(base, out, layout.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := layout.Create(out, l, false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	stats, err := merge.Run(context.Background(), plan, l, w, merge.RunOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	return stats
}
