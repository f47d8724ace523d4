package merge_test

import (
	"context"
	"math"
	"sync"
	"testing"

	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// memory is a merge.Writer that keeps the tensors.
type memory struct {
	mu    sync.Mutex
	items [][]byte
}

func (m *memory) WriteAt(item int, p []byte, off int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.items[item][off:], p)
	return nil
}

// merged plans and runs a merge in memory and returns the tensors by name.
func merged(t testing.TB, base formats.Model, inputs []merge.Input, opt merge.Options, run merge.RunOptions) (map[string]tensor.Spec, map[string][]byte, []merge.Stats) {
	t.Helper()
	if opt.Resolve == nil {
		opt.Resolve = merge.Resolvers(base)
	}
	plan, err := merge.NewPlan(base, inputs, opt)
	if err != nil {
		t.Fatalf("plan: %v", err)
	}
	w, l := &memory{}, &layout.Layout{}
	specs, data := map[string]tensor.Spec{}, map[string][]byte{}
	for i := range plan.Tensors {
		s := plan.Tensors[i].Spec()
		n, err := s.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		w.items = append(w.items, make([]byte, n))
		l.Items = append(l.Items, layout.Place{Size: n})
		specs[s.Name], data[s.Name] = s, w.items[i]
	}
	stats, err := merge.Run(context.Background(), plan, l, w, run)
	if err != nil {
		t.Fatalf("run: %v", err)
	}
	return specs, data, stats
}

func open(t testing.TB, path string) formats.Model {
	t.Helper()
	m, err := formats.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func input(t testing.TB, path string, scale float64, opt dialect.Options) merge.Input {
	t.Helper()
	a, err := dialect.Open(path, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return merge.Input{Adapter: a, Scale: scale}
}

// floats decodes a tensor's bytes.
func floats(t testing.TB, d tensor.DType, b []byte) []float32 {
	t.Helper()
	c, ok := quant.Of(d)
	if !ok {
		t.Fatalf("type %s has no codec", d)
	}
	v := make([]float32, int64(len(b))/int64(d.BlockBytes())*int64(d.BlockLen()))
	c.Decode(v, b)
	return v
}

// worst is the largest |x−ref|/(1+|ref|).
func worst(x, ref []float32) float64 {
	var w float64
	for i := range ref {
		d := math.Abs(float64(x[i]) - float64(ref[i]))
		if !(d <= math.MaxFloat64) {
			return math.Inf(1)
		}
		w = max(w, d/(1+math.Abs(float64(ref[i]))))
	}
	return w
}
