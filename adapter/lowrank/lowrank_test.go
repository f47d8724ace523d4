package lowrank

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

func random(seed uint64, rows, cols int64) adapter.Factor {
	r := rand.New(rand.NewPCG(seed, 1))
	v := make([]float32, rows*cols)
	for i := range v {
		v[i] = float32(r.NormFloat64())
	}
	return adapter.FromValues(rows, cols, v)
}

func load(t *testing.T, f adapter.Factor) []float32 {
	t.Helper()
	v, err := f.Load()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// values is the update's matrix with its scale.
func values(t *testing.T, u *adapter.Update) []float64 {
	t.Helper()
	d, err := difference(u)
	if err != nil {
		t.Fatal(err)
	}
	out := widen(d.v)
	for i := range out {
		out[i] *= u.Scale.Value
	}
	return out
}

// off is ‖x − y‖² / ‖x‖².
func off(x, y []float64) float64 {
	var diff, whole float64
	for i := range x {
		diff += (x[i] - y[i]) * (x[i] - y[i])
		whole += x[i] * x[i]
	}
	return diff / whole
}

func lowRank(seed uint64, out, in, r int64) *adapter.Update {
	return &adapter.Update{Kind: adapter.LowRank, Layer: adapter.Linear, A: random(seed, r, in), B: random(seed+1, out, r), Rank: int(r), Scale: adapter.Scale{Value: 0.5}}
}

func loha(out, in, r int64) *adapter.Update {
	u := lowRank(3, out, in, r)
	u.Kind, u.A2, u.B2 = adapter.LoHa, random(5, r, in), random(6, out, r)
	return u
}

func full(out, in int64) *adapter.Update {
	return &adapter.Update{Kind: adapter.Full, Layer: adapter.Linear, Value: random(9, out, in), Scale: adapter.Scale{Value: 2}}
}

// TestExact checks the conversions that lose nothing.
func TestExact(t *testing.T) {
	kron := &adapter.Update{Kind: adapter.LoKr, Scale: adapter.Scale{Value: 0.25},
		Kron: [2]adapter.Side{{Full: random(1, 3, 4)}, {A: random(2, 2, 10), B: random(3, 5, 2)}}}
	for name, c := range map[string]struct {
		u    *adapter.Update
		rank int
		want int
	}{
		"low rank as it is":      {lowRank(1, 20, 30, 4), 0, 4},
		"a larger limit":         {lowRank(1, 20, 30, 4), 8, 4},
		"Kronecker":              {kron, 0, 6},
		"LoHa at the square":     {loha(20, 30, 3), 9, 9},
		"dense at its full rank": {full(12, 7), 7, 7},
		"dense beyond":           {full(7, 12), 100, 7},
		"low rank with zero rows": {func() *adapter.Update {
			u := lowRank(1, 20, 30, 4)
			u.B = u.B.Transpose().Padded(6).Transpose()
			u.A = u.A.Padded(6)
			u.Rank = 6
			return u
		}(), 5, 4},
	} {
		t.Run(name, func(t *testing.T) {
			v, loss, err := ToLowRank(c.u, Limits{Rank: c.rank})
			if err != nil {
				t.Fatal(err)
			}
			if v.Kind != adapter.LowRank || v.Rank != c.want || int(v.A.Rows) != c.want || loss > 1e-12 {
				t.Errorf("%s of rank %d (A %d), loss %g, expected rank %d", v.Kind, v.Rank, v.A.Rows, loss, c.want)
			}
			if d := off(values(t, c.u), values(t, &v)); d > 1e-12 {
				t.Errorf("the difference changed by %g", d)
			}
		})
	}
}

// TestLoss compares the loss that is told with the real one, for factors and for dense matrices of which the
// range finder sees only a part.
func TestLoss(t *testing.T) {
	for name, c := range map[string]struct {
		u      *adapter.Update
		rank   int
		energy float64
	}{
		"factors to 3":       {lowRank(1, 40, 50, 8), 3, 0},
		"factors by energy":  {lowRank(1, 40, 50, 8), 0, 0.8},
		"LoHa to 4":          {loha(40, 50, 3), 4, 0},
		"dense to 5":         {full(60, 70), 5, 0},
		"dense by energy":    {full(90, 120), 0, 0.5},
		"both":               {full(60, 70), 10, 0.9},
		"decaying, to 6":     {decaying(80, 100), 6, 0},
		"decaying by energy": {decaying(80, 100), 0, 0.999},
	} {
		t.Run(name, func(t *testing.T) {
			v, loss, err := ToLowRank(c.u, Limits{Rank: c.rank, Energy: c.energy})
			if err != nil {
				t.Fatal(err)
			}
			if real := off(values(t, c.u), values(t, &v)); math.Abs(real-loss) > 1e-5 {
				t.Errorf("told a loss of %g, it is %g", loss, real)
			}
			if c.energy > 0 && c.rank == 0 && loss > 1-c.energy {
				t.Errorf("lost %g, allowed %g", loss, 1-c.energy)
			}
			if c.rank > 0 && v.Rank > c.rank {
				t.Errorf("rank %d", v.Rank)
			}
			again, _, err := ToLowRank(c.u, Limits{Rank: c.rank, Energy: c.energy})
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(load(t, v.A), load(t, again.A)) || !slices.Equal(load(t, v.B), load(t, again.B)) {
				t.Error("another result the second time")
			}
		})
	}
}

// TestLimits has singular values of 1, 1/2, 1/4, …: a limit keeps as few as it says and not one more, as the
// scripts of sd-scripts do (ratio 4: 3, norm 0.9: 3).
func TestLimits(t *testing.T) {
	for _, c := range []struct {
		limits Limits
		want   int
	}{
		{Limits{Ratio: 4}, 2}, {Limits{Ratio: 4.1}, 3}, {Limits{Ratio: 1.5}, 1}, {Limits{Energy: 0.9 * 0.9}, 2}, {Limits{Energy: 0.7}, 1},
		{Limits{Energy: 0.99}, 4}, {Limits{Ratio: 100, Rank: 3}, 3}, {Limits{Ratio: 3, Energy: 0.999}, 2},
	} {
		v, _, err := ToLowRank(decaying(80, 100), c.limits)
		if err != nil || v.Rank != c.want {
			t.Errorf("%+v: rank %d, want %d (%v)", c.limits, v.Rank, c.want, err)
		}
	}
}

// decaying is a full difference whose singular values are 1, 1/2, 1/4, …
func decaying(out, in int64) *adapter.Update {
	q, _ := orthonormal(matrix{int(out), int(out), widen(mustLoad(random(1, out, out)))})
	p, _ := orthonormal(matrix{int(out), int(in), widen(mustLoad(random(2, out, in)))})
	for i := range p.rows {
		for j := range p.row(i) {
			p.row(i)[j] *= math.Ldexp(1, -i)
		}
	}
	u := full(out, in)
	u.Value = adapter.FromValues(out, in, narrow(q.transpose().times(p).v))
	return u
}

func mustLoad(f adapter.Factor) []float32 {
	v, _ := f.Load()
	return v
}

// TestSpectrum checks the decomposition of a matrix with known singular values.
func TestSpectrum(t *testing.T) {
	u := decaying(40, 64)
	for _, s := range []spectrum{
		dense{40, 64, mustLoad(u.Value)}.exact(),
		dense{40, 64, mustLoad(u.Value)}.leading(6),
		dense{64, 40, mustLoad(u.Value.Transpose())}.leading(6),
	} {
		for i := range 6 {
			if want := math.Ldexp(1, -i); math.Abs(s.s[i]-want) > 1e-6 {
				t.Errorf("value %d is %g, expected %g", i, s.s[i], want)
			}
			for j := range 6 {
				want := 0.0
				if i == j {
					want = 1
				}
				for _, m := range []matrix{s.u, s.v} {
					if d := dot(m.row(i), m.row(j)); math.Abs(d-want) > 1e-10 {
						t.Errorf("vectors %d and %d: %g", i, j, d)
					}
				}
			}
			if slices.Max(s.u.row(i)) < -slices.Min(s.u.row(i)) {
				t.Errorf("vector %d has its largest component below zero", i)
			}
		}
	}
}

// TestRefused checks updates that have no low-rank form, and those that need none.
func TestRefused(t *testing.T) {
	ia3 := &adapter.Update{Kind: adapter.IA3, Value: random(1, 1, 4)}
	dora := loha(8, 8, 2)
	dora.Magnitude = random(1, 1, 8)
	broken := lowRank(1, 8, 8, 4)
	broken.A = adapter.FromValues(4, 8, slices.Repeat([]float32{float32(math.NaN())}, 32))
	bomb := &adapter.Update{Kind: adapter.LoHa, Layer: adapter.Linear, Rank: 1000, A: random(1, 1000, 1), B: random(1, 1, 1000), A2: random(1, 1000, 1), B2: random(1, 1, 1000)}
	for _, f := range []*adapter.Factor{&bomb.A, &bomb.A2} {
		f.Cols = 1 << 40
	}
	for name, c := range map[string]struct {
		u    *adapter.Update
		rank int
		code string
	}{
		"a matrix that fills the memory": {bomb, 4, "adapter.shape_mismatch"},
		"(IA)³":                          {ia3, 4, "adapter.unsupported_feature"},
		"DoRA over a LoHa":               {dora, 4, "adapter.unsupported_feature"},
		"dense, no limit":                {full(8, 8), 0, "adapter.needs_rank"},
		"NaN":                            {broken, 2, "adapter.non_finite"},
	} {
		if _, _, err := ToLowRank(c.u, Limits{Rank: c.rank}); finding.Of(err) == nil || finding.Of(err).Code != c.code {
			t.Errorf("%s: %v, expected %s", name, err, c.code)
		}
	}
	bias := &adapter.Update{Kind: adapter.Bias, Value: random(1, 1, 4), Scale: adapter.Scale{Value: 3}}
	if v, loss, err := ToLowRank(bias, Limits{Rank: 1}); err != nil || loss != 0 || v.Kind != adapter.Bias {
		t.Errorf("a bias became %+v, %v", v, err)
	}
}

// TestKernel checks that a convolution keeps its kernel through the decomposition.
func TestKernel(t *testing.T) {
	u := full(8, 18)
	u.Layer, u.Kernel = adapter.Conv, tensor.Shape{3, 3}
	v, _, err := ToLowRank(u, Limits{Rank: 4})
	if err != nil {
		t.Fatal(err)
	}
	if got := v.ConvShape(); !got.Equal(tensor.Shape{4, 2, 3, 3}) {
		t.Errorf("A has the shape %v", got)
	}
}

// TestConvert checks that only what is not low-rank changes, and that the losses name it.
func TestConvert(t *testing.T) {
	a := &adapter.Adapter{Path: "p", Updates: []adapter.Update{*lowRank(1, 20, 30, 4), *full(20, 30), {Kind: adapter.Bias, Value: random(1, 1, 20)}}}
	a.Updates[1].Target = adapter.Target{Module: "m", Param: "weight"}
	low, losses, err := Convert(t.Context(), a, Options{Limits: Limits{Rank: 6}, Jobs: 3})
	if err != nil {
		t.Fatal(err)
	}
	if len(losses) != 1 || losses[0].Module != "m" || losses[0].Kind != adapter.Full || losses[0].Rank != 6 || losses[0].Lost <= 0.1 || losses[0].Lost >= 0.9 {
		t.Errorf("losses %v", losses)
	}
	if low.Updates[1].Kind != adapter.LowRank || a.Updates[1].Kind != adapter.Full || low.Updates[0].Rank != 4 || low.Updates[2].Kind != adapter.Bias {
		t.Errorf("updates %+v", low.Updates)
	}
	a.Updates[1] = adapter.Update{Kind: adapter.IA3, Value: random(1, 1, 4)}
	if _, _, err := Convert(t.Context(), a, Options{Limits: Limits{Rank: 6}}); finding.Of(err) == nil || finding.Of(err).File != "p" {
		t.Errorf("an update that depends on the base: %v", err)
	}
}

func BenchmarkDense(b *testing.B) {
	u := full(4096, 4096)
	for b.Loop() {
		if _, _, err := ToLowRank(u, Limits{Rank: 64}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFactors(b *testing.B) {
	u := lowRank(1, 4096, 4096, 64)
	for b.Loop() {
		if _, _, err := ToLowRank(u, Limits{Rank: 32}); err != nil {
			b.Fatal(err)
		}
	}
}
