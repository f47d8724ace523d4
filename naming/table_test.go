package naming

import (
	"reflect"
	"slices"
	"testing"
)

// TestTableRoundTrip takes every row of every architecture from Hugging Face to GGUF and back.
func TestTableRoundTrip(t *testing.T) {
	hp := HyperParameters{Layers: 3, Heads: 8, KVHeads: 4, HeadDim: 6, Experts: 5, ExpertWidth: 7, NopeDim: 3, ValueDim: 2}
	rows, places := 0, 0
	for name, a := range architectures().archs {
		for i, r := range a.rows {
			rows++
			params := []string{r.param}
			if r.param == "" {
				params = []string{"weight", "bias"}
			}
			for _, param := range params {
				module := specific(r.module, 2, 4)
				to, err := ToGGUF(name, hp, module, param)
				if err != nil {
					t.Fatalf("%s %s: %v", name, module, err)
				}
				for _, p := range to {
					places++
					if _, last := leaf(p.Tensor); last != "weight" && last != "bias" {
						t.Errorf("%s %s: tensor %q has no suffix", name, module, p.Tensor)
					}
					back, err := FromGGUF(name, hp, p.Tensor)
					if err != nil {
						t.Fatalf("%s %s: %v", name, p.Tensor, err)
					}
					same := func(s Source) bool { return reflect.DeepEqual(s, Source{module, param, p}) }
					// A tensor's first row is its way back; later ones are other spellings.
					if a.firstRow(p.Tensor) == i && !slices.ContainsFunc(back, same) {
						t.Errorf("%s: %s of %s comes back as %+v", name, p.Tensor, module, back)
					}
					if len(back) == 0 {
						t.Errorf("%s: nothing comes back from %s", name, p.Tensor)
					}
				}
			}
		}
	}
	if rows < 400 {
		t.Errorf("only %d rows", rows)
	}
	t.Logf("%d architectures, %d rows, %d places", len(architectures().names), rows, places)
}

// firstRow is the first row that gives the tensor.
func (a *architecture) firstRow(tensor string) int {
	name, _, _ := generic(tensor)
	base, _ := leaf(name)
	return slices.Min(append(slices.Clone(a.tensors[name]), a.tensors[base]...))
}

// TestPlacesCoverOnce checks that the places of a parameter take each canonical row once, and that the
// places of a tensor fill each of its rows once.
func TestPlacesCoverOnce(t *testing.T) {
	hp := HyperParameters{Layers: 1, Heads: 8, KVHeads: 4, HeadDim: 6, Experts: 5, ExpertWidth: 7, NopeDim: 3, ValueDim: 2}
	for _, tt := range []struct {
		arch, module, param string
		rows                int64
	}{
		{"gptneox", "layers.0.attention.query_key_value", "weight", 3 * 8 * 6},
		{"falcon", "h.0.self_attention.query_key_value", "bias", (8 + 2*4) * 6},
		{"deepseek2", "layers.0.self_attn.kv_b_proj", "weight", 4 * (3 + 2)},
		{"gpt-oss", "layers.0.mlp.experts", "gate_up_proj", 14},
		{"qwen3moe", "layers.0.mlp.experts", "gate_up_proj", 14},
	} {
		places, err := ToGGUF(tt.arch, hp, tt.module, tt.param)
		if err != nil {
			t.Fatal(err)
		}
		taken := make([]int, tt.rows)
		type at struct {
			tensor      string
			expert, row int64
		}
		filled := map[at]bool{}
		for _, p := range places {
			for i := range p.Rows {
				taken[p.Canonical(i, p.Rows)]++
				to := at{p.Tensor, p.Expert, p.RowOffset + i}
				if filled[to] {
					t.Errorf("%s: %v is filled twice", tt.arch, to)
				}
				filled[to] = true
			}
		}
		for row, n := range taken {
			if n != 1 {
				t.Errorf("%s: canonical row %d is taken %d times", tt.arch, row, n)
			}
		}
	}
}

// TestCanonicalInvertsRotaryRow ties the two directions of the rotary order together.
func TestCanonicalInvertsRotaryRow(t *testing.T) {
	for _, n := range []struct{ rows, heads int64 }{{64, 4}, {24, 4}, {2, 1}, {32, 16}} {
		p := Place{Heads: n.heads}
		for i := range n.rows {
			if back := p.Canonical(RotaryRow(i, n.rows, n.heads), n.rows); back != i {
				t.Errorf("%d rows, %d heads: row %d comes back as %d", n.rows, n.heads, i, back)
			}
		}
	}
	// The first head of dimension 4: halves 0 1 | 2 3 are stored interleaved.
	for i, want := range []int64{0, 2, 1, 3} {
		if got := (Place{Heads: 2}).Canonical(int64(i), 8); got != want {
			t.Errorf("stored row %d holds canonical row %d, expected %d", i, got, want)
		}
	}
}
