package geometry

import (
	"os"
	"path/filepath"
	"testing"
)

func TestRead(t *testing.T) {
	dir := "../../testdata/tiny-llama"
	for _, path := range []string{"base", "base/config.json", "base-f16.gguf"} {
		g, err := Read(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		if g.Arch != "llama" || g.HP.Heads != 4 || g.HP.KVHeads != 2 || g.HP.HeadDim != 16 || g.Hidden != 64 || g.FFN != 128 || g.Tied {
			t.Errorf("%s is %+v", path, *g)
		}
	}
	none := t.TempDir()
	if _, err := Read(none); err == nil {
		t.Error("a folder without config.json has a geometry")
	}
	if err := os.WriteFile(filepath.Join(none, "config.json"), []byte(`{"architectures": ["MysteryForCausalLM"]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(none); err == nil {
		t.Error("an unknown architecture has a geometry")
	}
}

// TestOrders checks the row orders against the written-out reshapes of torchtune and Megatron.
func TestOrders(t *testing.T) {
	const heads, d = 3, 4
	inter, halves := Interleaved(heads*d, heads), Halves(heads*d, heads)
	// view(heads, 2, d/2).transpose(1, 2): head 0 is rows 0 2 1 3 of the half-by-half order.
	for i, want := range []int64{0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11} {
		if got := inter(int64(i)); got != want {
			t.Errorf("row %d is %d, expected %d", i, got, want)
		}
	}
	for i := range int64(heads * d) {
		if inter(halves(i)) != i || halves(inter(i)) != i {
			t.Errorf("row %d does not come back", i)
		}
	}
	// 4 heads in 2 groups of dimension 1: fused is q0 q1 k0 v0 q2 q3 k1 v1.
	for part, want := range [][]int64{{0, 1, 4, 5}, {2, 6}, {3, 7}} {
		at := GroupedQKV(part, 4, 2, 1)
		for i, w := range want {
			if got := at(int64(i)); got != w {
				t.Errorf("part %d row %d is %d, expected %d", part, i, got, w)
			}
		}
	}
}
