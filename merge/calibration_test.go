package merge_test

import (
	"archive/zip"
	"bytes"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/npy"
	"github.com/loratool/loratool/internal/trained"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/tensor"
)

// npzFile writes arrays as numpy.savez does.
func npzFile(t *testing.T, arrays map[string][]float32, shapes map[string]tensor.Shape) string {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, v := range arrays {
		h, err := npy.Header(tensor.F32, shapes[name])
		if err != nil {
			t.Fatal(err)
		}
		w, err := z.Create(name + ".npy")
		if err == nil {
			_, err = w.Write(append(h, bits(v)...))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "inputs.npz")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestCalibration weighs retentions: with equal inputs they are what they were; of inputs in the adapter's own
// directions matched rounding keeps all; no byte changes.
func TestCalibration(t *testing.T) {
	in := input(t, trained.Adapter(t), 1, dialect.Options{})
	inputs := []merge.Input{in}
	base := quantizedTo(t, trained.GGUF(t), "Q4_0")
	arrays, shapes := map[string][]float32{}, map[string]tensor.Shape{}
	for i, u := range in.Adapter.Updates {
		if i%2 == 0 {
			v := make([]float32, u.A.Cols)
			for k := range v {
				v[k] = 2
			}
			arrays[u.Module], shapes[u.Module] = v, tensor.Shape{u.A.Cols}
			continue
		}
		a, err := u.A.Load()
		if err != nil {
			t.Fatal(err)
		}
		arrays[u.Module], shapes[u.Module] = a, tensor.Shape{u.A.Rows, u.A.Cols}
	}
	c, err := merge.ReadCalibration(npzFile(t, arrays, shapes))
	if err != nil {
		t.Fatal(err)
	}
	_, plain, _ := merged(t, base, inputs, merge.Options{}, merge.RunOptions{})
	_, data, stats := merged(t, base, inputs, merge.Options{Calibration: c}, merge.RunOptions{})
	_, _, nearest := merged(t, base, inputs, merge.Options{Calibration: c, Requant: merge.RequantNearest}, merge.RunOptions{})
	for name, b := range plain {
		if !bytes.Equal(b, data[name]) {
			t.Errorf("%s: a calibration changes bytes", name)
		}
	}
	for i, s := range stats {
		switch got, near := s.Calibrated, nearest[i].Calibrated; {
		case got == nil || near == nil:
			t.Errorf("%s: no calibrated retention", s.Module)
		case len(shapes[s.Module]) == 1 && math.Abs(*got-s.Retention) > 1e-9:
			t.Errorf("%s: equal inputs weigh %.6f, want %.6f", s.Module, *got, s.Retention)
		case len(shapes[s.Module]) == 2 && (math.Abs(*got-1) > 0.01 || *near > 0.7):
			t.Errorf("%s: along the adapter %.4f is kept, of the nearest codes %.4f", s.Module, *got, *near)
		}
	}
	module := in.Adapter.Updates[0].Module
	for code, of := range map[string]struct {
		values []float32
		shape  tensor.Shape
	}{
		"calibration.bad_shape": {make([]float32, 8), tensor.Shape{2, 2, 2}},
		"calibration.bad_value": {[]float32{1, -1}, tensor.Shape{2}},
	} {
		_, err := merge.ReadCalibration(npzFile(t, map[string][]float32{module: of.values}, map[string]tensor.Shape{module: of.shape}))
		if f := finding.Of(err); f == nil || f.Code != code {
			t.Errorf("%v, want %s", err, code)
		}
	}
	short, err := merge.ReadCalibration(npzFile(t, map[string][]float32{module: {1, 2}}, map[string]tensor.Shape{module: {2}}))
	if err != nil {
		t.Fatal(err)
	}
	_, err = merge.NewPlan(base, inputs, merge.Options{Resolve: merge.Resolvers(base), Calibration: short})
	if f := finding.Of(err); f == nil || f.Code != "calibration.bad_shape" || f.Module != module {
		t.Errorf("inputs of another number: %v", err)
	}
}
