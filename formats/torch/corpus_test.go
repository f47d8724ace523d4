package torch

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/internal/corpus"
)

// result is what opening a file and reading all of it came to.
type result struct {
	model *Model
	err   error
}

func openAndRead(path string) result {
	m, err := Open(path)
	if err != nil {
		return result{err: err}
	}
	defer m.Close()
	for _, t := range m.Tensors() {
		if _, err := t.Read(); err != nil {
			return result{m, err}
		}
	}
	return result{m, m.CheckData()}
}

// TestHostileFiles runs the corpus of bad and odd checkpoints: verdict, reason and named global of
// each, within a second and with memory bounded by the size of the file.
func TestHostileFiles(t *testing.T) {
	root := corpus.Path(t, "badinputs", "pickle")
	data, err := os.ReadFile(filepath.Join(root, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var manifest struct {
		Cases []struct {
			File, Expect, Reason, Global string
			Size                         uint64
		}
	}
	if err := json.Unmarshal(data, &manifest); err != nil {
		t.Fatal(err)
	}
	counts := map[string]int{}
	for _, c := range manifest.Cases {
		t.Run(c.File, func(t *testing.T) {
			counts[c.Expect]++
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			done := make(chan result, 1)
			go func() { done <- openAndRead(filepath.Join(root, c.File)) }()
			var r result
			select {
			case r = <-done:
			case <-time.After(time.Second):
				t.Fatal("takes more than a second")
			}
			runtime.ReadMemStats(&after)
			if used, most := after.TotalAlloc-before.TotalAlloc, 64*c.Size+128<<10; used > most {
				t.Errorf("%d bytes were allocated for a file of %d", used, c.Size)
			}
			checkVerdict(t, r, c.Expect, c.Reason, c.Global)
		})
	}
	if len(manifest.Cases) != 126 {
		t.Errorf("%d cases, want 126", len(manifest.Cases))
	}
	t.Log(counts)
}

func checkVerdict(t *testing.T, r result, expect, reason, global string) {
	t.Helper()
	text := ""
	switch expect {
	case "reject":
		f := finding.Of(r.err)
		if f == nil {
			t.Fatalf("the error is %v, want container.%s", r.err, reason)
		}
		if f.Code != "container."+reason {
			t.Fatalf("the error is %s (%v), want container.%s", f.Code, r.err, reason)
		}
		text = f.Error()
	default:
		if r.err != nil {
			t.Fatalf("refused: %v", r.err)
		}
		if len(r.model.Tensors()) == 0 {
			t.Error("no tensors")
		}
		found := false
		for _, f := range r.model.Findings() {
			if f.Level == finding.Warning {
				text += f.Error()
				found = found || f.Code == "container."+reason
			}
		}
		if found != (expect == "warn") {
			t.Errorf("warnings are %q, want one of %q", text, reason)
		}
	}
	if global != "" && !strings.Contains(text, finding.Escape(global)) {
		t.Errorf("%q does not name %q", text, global)
	}
	if strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		t.Errorf("%q has unprintable characters", text)
	}
}
