package diffusion

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/internal/applied"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// memory puts weights into tensors of one file.
func memory(t *testing.T, weights []adapter.Weight) []tensor.Tensor {
	t.Helper()
	return applied.Stored(t, weights)
}

// weight is a tensor of distinct values with few bits.
func weight(r *rand.Rand, name string, shape ...int64) adapter.Weight {
	n, cols := int64(1), int64(1)
	for i, d := range shape {
		n *= d
		if i > 0 {
			cols *= d
		}
	}
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(r.IntN(2001)-1000) / 1024
	}
	return adapter.Weight{Spec: tensor.Spec{Name: name, DType: tensor.F32, Shape: shape}, Values: adapter.FromValues(shape[0], cols, v)}
}

func alphaTensor(name string, v float32) adapter.Weight {
	return adapter.Weight{Spec: tensor.Spec{Name: name, DType: tensor.F32, Shape: tensor.Shape{}}, Values: adapter.FromValues(1, 1, []float32{v})}
}

// deltas are the updates as dense matrices, by target.
func deltas(t *testing.T, a *adapter.Adapter) map[string][]float64 {
	t.Helper()
	out := map[string][]float64{}
	for _, u := range a.Updates {
		if out[u.Target.String()] != nil {
			t.Fatalf("%s comes twice", u.Target)
		}
		out[u.Target.String()] = delta(t, &u)
	}
	return out
}

func delta(t *testing.T, u *adapter.Update) []float64 {
	t.Helper()
	if u.Kind != adapter.LowRank {
		v, err := u.Value.Load()
		if err != nil {
			t.Fatal(err)
		}
		d := make([]float64, len(v))
		for i, x := range v {
			d[i] = float64(x) * u.Scale.Value
		}
		return d
	}
	a, err := u.A.Load()
	if err != nil {
		t.Fatal(err)
	}
	b, err := u.B.Load()
	if err != nil {
		t.Fatal(err)
	}
	return product(b, a, int(u.B.Rows), int(u.A.Rows), int(u.A.Cols), u.Scale.Value)
}

func product(b, a []float32, n, r, m int, s float64) []float64 {
	d := make([]float64, n*m)
	for i := range n {
		for k := range r {
			for j := range m {
				d[i*m+j] += float64(b[i*r+k]) * float64(a[k*m+j])
			}
		}
	}
	for i := range d {
		d[i] *= s
	}
	return d
}

// same compares updates. Those of zeros, as a part of a fused module may have, are none. Rounding is the error relative to each factor that folding a scale may leave.
func same(t *testing.T, got, want map[string][]float64, rounding float64) {
	t.Helper()
	for target, g := range got {
		if want[target] == nil && slices.ContainsFunc(g, func(x float64) bool { return x != 0 }) {
			t.Errorf("%s is changed", target)
		}
	}
	for target, w := range want {
		g := got[target]
		if len(g) != len(w) {
			t.Fatalf("%s: %d values, expected %d", target, len(g), len(w))
		}
		for i := range w {
			if math.Abs(g[i]-w[i]) > rounding {
				t.Fatalf("%s: value %d is %v, expected %v", target, i, g[i], w[i])
			}
		}
	}
}

// units is a module's size in a model so small that each part has two rows a share.
func units(m *naming.DiffusionModule) (rows []int64, in int64) {
	total := int64(0)
	for _, p := range m.Parts {
		total += p.Rows
	}
	for p := range m.Parts {
		whole := total
		for whole%2 == 0 { // the fewest rows that still divide, but an even number
			if _, _, ok := m.Slice(p, whole/2); !ok {
				break
			}
			whole /= 2
		}
		_, n, _ := m.Slice(p, 2*whole)
		rows = append(rows, n)
	}
	return rows, 3
}

// synthetic is an adapter of a family, one update for every module of diffusers. shared gives the parts of
// fused modules one A.
func synthetic(family *naming.DiffusionFamily, scale adapter.Scale, shared bool) *adapter.Adapter {
	r := rand.New(rand.NewPCG(1, 2))
	a := &adapter.Adapter{Path: "synthetic", Space: naming.Diffusers, Arch: family.Name}
	for _, c := range family.Components {
		last := 0
		for _, m := range c.Modules {
			last = max(last, blockOf(m.Original))
		}
		for i := range c.Modules {
			m := &c.Modules[i]
			// Of many equal blocks the first two and the last are enough, of text encoders one.
			if b := blockOf(m.Original); m.Kind == "norm" || b > 0 && c != family.Denoiser() || last > 12 && b > 1 && b < last {
				continue
			}
			rows, in := units(m)
			layer := adapter.Linear
			for _, k := range m.Shape[2:] {
				in *= k
				layer = adapter.Conv
			}
			first := weight(r, "", 2, in).Values
			for p, part := range m.Parts {
				f := first
				if !shared && p > 0 {
					f = weight(r, "", 2, in).Values
				}
				a.Updates = append(a.Updates, adapter.Update{
					Target: adapter.Target{Module: c.Folder + "." + part.Module, Param: "weight"}, Kind: adapter.LowRank, Layer: layer,
					Rank: 2, Scale: scale, A: f, B: weight(r, "", rows[p], 2).Values,
				})
			}
		}
	}
	return a
}

// blockOf is the first number in a path.
func blockOf(path string) (n int) {
	for c := range strings.SplitSeq(path, ".") {
		if _, err := fmt.Sscan(c, &n); err == nil {
			return n
		}
	}
	return 0
}

// holders are the dialects that have names for all modules of a kind: "everything", the "denoiser" of a pipeline, or
// the "attention" that x-flux adapts.
func holders(family, modules string) []string {
	out := []string{"kohya", "diffusers", "comfyui", "ai-toolkit", "onetrainer"}
	if slices.Contains([]string{"sd15", "sd2", "sdxl", "sdxl-refiner"}, family) {
		out = append(out, "diffusers-old")
	}
	if modules != "everything" {
		out = append(out, "lycoris")
		if family == "flux1" {
			out = append(out, "bfl-control")
		}
	}
	if modules == "attention" {
		out = append(out, "xlabs")
	}
	return out
}

// restrict keeps the updates of modules of a kind.
func restrict(a *adapter.Adapter, modules string) *adapter.Adapter {
	out := *a
	out.Updates = slices.DeleteFunc(slices.Clone(a.Updates), func(u adapter.Update) bool {
		switch modules {
		case "denoiser":
			return strings.HasPrefix(u.Module, "text_encoder")
		case "attention":
			return !strings.Contains(u.Module, ".attn.") && !(strings.Contains(u.Module, ".single_transformer_blocks.") && strings.HasSuffix(u.Module, ".proj_out"))
		}
		return false
	})
	return &out
}

// readAs is the dialect that a file of a dialect is taken for: what OneTrainer writes of a unet is a kohya file in
// the names of diffusers.
func readAs(dialect, family string) string {
	if dialect == "onetrainer" && slices.Contains(holders(family, "everything"), "diffusers-old") {
		return "kohya"
	}
	return dialect
}

// pass encodes an adapter and decodes the file.
func pass(t *testing.T, a *adapter.Adapter, to string) (*adapter.Adapter, []tensor.Tensor) {
	t.Helper()
	files, err := Encode(a, to, EncodeOptions{})
	if err != nil {
		t.Fatalf("%s: %v", to, err)
	}
	tensors := memory(t, files.Weights)
	b, err := Decode("file", "file", tensors, files.Metadata, Options{})
	if err != nil {
		t.Fatalf("%s: %v", to, err)
	}
	if want := readAs(to, a.Arch); b.Dialect != want {
		t.Errorf("%s is read as %s", to, b.Dialect)
	}
	return b, tensors
}

// TestPairs sends synthetic adapters of every family through every ordered pair of dialects, and back. ΔW stays
// exact where scales are powers of two, and within a rounding of float32 where another one is folded into a
// factor.
func TestPairs(t *testing.T) {
	half := adapter.Scale{Value: 0.5, Alpha: 1, Rank: 2}
	third := adapter.Scale{Value: 1.0 / 3, Alpha: 2.0 / 3, Rank: 2}
	for _, f := range naming.DiffusionFamilies() {
		typical := slices.Contains([]string{"flux1", "sdxl", "sd3.5-medium", "z-image"}, f.Name)
		for _, c := range []struct {
			name     string
			scale    adapter.Scale
			shared   bool
			rounding float64
		}{{"exact", half, false, 0}, {"shared", half, true, 0}, {"folded", third, false, 1e-6}} {
			if c.name != "exact" && !typical {
				continue // the others have nothing that these have not
			}
			for _, modules := range []string{"everything", "denoiser", "attention"} {
				if f.Name != "flux1" && (modules == "attention" || modules == "denoiser" && c.name != "exact") {
					continue
				}
				t.Run(f.Name+"/"+c.name+"/"+modules, func(t *testing.T) {
					t.Parallel()
					a := restrict(synthetic(f, c.scale, c.shared), modules)
					want := deltas(t, a)
					dialects := holders(f.Name, modules)
					known := holders(f.Name, map[string]string{"denoiser": "everything", "attention": "denoiser"}[modules])
					for i, x := range dialects {
						from, before := pass(t, a, x)
						same(t, deltas(t, from), want, c.rounding)
						for j, y := range dialects {
							if x == y || !typical && j < i || // the way back of a pair before
								modules != "everything" && slices.Contains(known, x) && slices.Contains(known, y) {
								continue // with more modules
							}
							to, _ := pass(t, from, y)
							same(t, deltas(t, to), want, c.rounding)
							back, after := pass(t, to, x)
							same(t, deltas(t, back), want, c.rounding)
							if names(before) != names(after) && y != "xlabs" { // which fills ranks and blocks up

								t.Errorf("%s, %s and back: other tensors than before", x, y)
							}
						}
					}
				})
			}
		}
	}
}

// names are the names and shapes of tensors, sorted.
func names(tensors []tensor.Tensor) string {
	var out []string
	for _, x := range tensors {
		out = append(out, fmt.Sprint(x.Name, x.Shape))
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}
