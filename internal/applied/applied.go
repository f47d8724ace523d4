// Package applied makes of a base of random weights what an adapter of a diffusion pipeline changes it to, so that
// adapters of different algorithms and spellings can be compared by their effect. Only tests import it.
package applied

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// A Base is the tensors of a checkpoint by name, with their shapes.
type Base map[string]tensor.Shape

// To applies all updates of an adapter in naming.Diffusers to the base and returns its tensors. The weights are the
// same each time.
func To(t testing.TB, a *adapter.Adapter, base Base) map[string][]float64 {
	t.Helper()
	var names []string
	out := map[string][]float64{}
	for name := range base {
		names = append(names, name)
	}
	slices.Sort(names)
	r := rand.New(rand.NewPCG(7, 8))
	for _, name := range names {
		n, err := base[name].Elements()
		if err != nil {
			t.Fatal(err)
		}
		for range n {
			out[name] = append(out[name], float64(float32(r.NormFloat64())))
		}
	}
	resolver := naming.NewDiffusion(naming.DiffusionFamilyNamed(a.Arch), names, func(name string) []int64 { return base[name] }, "")
	for i := range a.Updates {
		u := &a.Updates[i]
		places, err := resolver.Find(u.Module, u.Param)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range places {
			apply(t, u, p, base[p.Tensor], out[p.Tensor])
		}
	}
	return out
}

// apply changes the values of one tensor.
func apply(t testing.TB, u *adapter.Update, p naming.Place, shape tensor.Shape, values []float64) {
	t.Helper()
	frame, err := adapter.FrameOf(shape, u.LayerIn(p, shape))
	if err != nil {
		t.Fatal(err)
	}
	op, err := adapter.Bind(u, p, tensor.Spec{Name: p.Tensor, DType: tensor.F32, Shape: shape}, frame, adapter.Rounding{})
	if err != nil {
		t.Fatal(err)
	}
	if err := op.Load(); err != nil {
		t.Fatal(err)
	}
	if op.Columns() {
		rows := make([]float32, len(values))
		for i, x := range values {
			rows[i] = float32(x)
		}
		err := op.Prepare(func() ([]float32, int64, error) {
			all := rows
			rows = nil
			return all, 0, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	op.Exact(values, 0)
}
