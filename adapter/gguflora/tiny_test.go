package gguflora

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/peft"
	"github.com/loratool/loratool/internal/applied"
	"github.com/loratool/loratool/naming"
)

const tiny = "../../testdata/tiny-llama"

// TestTinyConversion converts a small adapter to the bytes that the gguf package wrote for it, and an
// rsLoRA one to a file whose products are the same.
func TestTinyConversion(t *testing.T) {
	opt := optionsFor(t, filepath.Join(tiny, "base", "config.json"))
	a := openAdapter(t, filepath.Join(tiny, "adapter"))
	f, err := Encode(a, opt)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(filepath.Join(tiny, "adapter.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	if got := bytesOf(t, f); !bytes.Equal(got, want) {
		t.Errorf("%d bytes differ from the %d of the golden file", len(got), len(want))
	}

	for _, name := range []string{"rslora", "patterns", "embedding"} {
		a := openAdapter(t, filepath.Join(tiny, "adapters", name))
		f, err := Encode(a, opt)
		if err != nil {
			t.Fatal(err)
		}
		again := write(t, f)
		if len(again.Updates) != len(a.Updates) {
			t.Fatalf("%s: %d of %d updates", name, len(again.Updates), len(a.Updates))
		}
		for i := range a.Updates {
			u := a.Updates[i]
			if u.Layer == adapter.Linear {
				u.B = u.B.GatherRows(u.B.Rows, stored(t, opt, &u))
			}
			near(t, name+" "+u.Module, applied.Product(t, &again.Updates[i]), applied.Product(t, &u), 1e-7)
		}
	}
}

// stored is the order of an update's rows in a GGUF, by the architecture's table.
func stored(t *testing.T, opt Options, u *adapter.Update) func(int64) int64 {
	t.Helper()
	p, err := naming.ToGGUF(opt.Arch, opt.HP, u.Module, u.Param)
	if err != nil || len(p) != 1 {
		t.Fatal(p, err)
	}
	return func(i int64) int64 { return p[0].Canonical(i, u.B.Rows) }
}

// TestDoRAIsRefused checks a real DoRA adapter.
func TestDoRAIsRefused(t *testing.T) {
	a, err := peft.Open(filepath.Join(tiny, "adapters", "dora"), peft.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if _, err := Encode(a, optionsFor(t, filepath.Join(tiny, "base", "config.json"))); err == nil {
		t.Error("accepted")
	}
}
