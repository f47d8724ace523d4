package verify_test

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/internal/oracle"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/onnxruntime"
	"github.com/loratool/loratool/tensor"
	"github.com/loratool/loratool/verify"
)

const tiny = "../testdata/tiny-llama"

func open(t testing.TB, path string) formats.Writable {
	t.Helper()
	m, err := formats.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m.(formats.Writable)
}

// planOf plans base + scale·adapter.
func planOf(t testing.TB, base formats.Writable, adapter string, scale float64) *merge.Plan {
	t.Helper()
	a, err := dialect.Open(filepath.Join(tiny, adapter), dialect.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	plan, err := merge.NewPlan(base, []merge.Input{{Adapter: a, Scale: scale}}, merge.Options{Resolve: merge.Resolvers(base)})
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

// write merges base + scale·adapter into a new file or folder.
func write(t testing.TB, base formats.Writable, adapter string, scale float64) string {
	t.Helper()
	return carryOut(t, base, planOf(t, base, adapter, scale))
}

func check(t testing.TB, plan *merge.Plan, path string, rt *onnxruntime.Runtime) *verify.Report {
	t.Helper()
	r, err := verify.Merge(context.Background(), plan, open(t, path), verify.MergeOptions{All: true, Runtime: rt, NoRuntime: "not wanted"})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// codes are the distinct codes of the report's findings that are not informational.
func codes(r *verify.Report) string {
	seen := map[string]bool{}
	var all []string
	for _, f := range r.Findings {
		if f.Level != finding.Info && !seen[f.Code] {
			seen[f.Code] = true
			all = append(all, f.Code)
		}
	}
	return strings.Join(all, " ")
}

// TestMergeAccepts checks right merges of every kind of storage, by this program and by PEFT.
func TestMergeAccepts(t *testing.T) {
	rt := oracle.Try(t)
	for _, c := range []struct {
		base, adapter string
		retention     float64 // distance from 1 that the stored type explains
	}{
		{"base", "adapter", 2e-3}, {"base", "adapters/dora", 2e-3}, {"base", "adapters/embedding-saved", 2e-3}, {"base", "adapters/trainable-tokens", 2e-3},
		{"base-f16.gguf", "adapter", 2e-4}, {"base-q8_0.gguf", "adapter", 1e-2}, {"base.onnx", "adapter", 1e-6}, {"base-dynamo.onnx", "adapters/rslora", 1e-6},
	} {
		t.Run(c.base+"+"+filepath.Base(c.adapter), func(t *testing.T) {
			base := open(t, filepath.Join(tiny, c.base))
			r := check(t, planOf(t, base, c.adapter, 1), write(t, base, c.adapter, 1), rt)
			if r.Verdict != verify.Accept {
				t.Errorf("verdict %s: %s", r.Verdict, codes(r))
			}
			if math.Abs(r.Retention.Min-1) > c.retention || math.Abs(r.Retention.Median-1) > c.retention {
				t.Errorf("retention %+v", r.Retention)
			}
			if rt != nil && (r.Runtime.Modules == 0 || r.Runtime.Provider != "cpu") {
				t.Errorf("runtime use %+v", r.Runtime)
			}
			for _, m := range r.Modules {
				if m.Exact.Rows != m.Exact.Total {
					t.Errorf("%s: %d of %d rows were checked", m.Module, m.Exact.Rows, m.Exact.Total)
				}
			}
		})
	}
	t.Run("PEFT's own merge", func(t *testing.T) {
		base := open(t, filepath.Join(tiny, "base"))
		r := check(t, planOf(t, base, "adapter", 1), filepath.Join(tiny, "merged"), rt)
		if r.Verdict != verify.Accept {
			t.Errorf("verdict %s: %s", r.Verdict, codes(r))
		}
	})
}

// TestMergeRejects checks merges that are wrong, each with the retention that tells how.
func TestMergeRejects(t *testing.T) {
	for _, baseName := range []string{"base", "base-f16.gguf", "base-q8_0.gguf", "base.onnx"} {
		base := open(t, filepath.Join(tiny, baseName))
		plan := planOf(t, base, "adapter", 1)
		for _, c := range []struct {
			what      string
			path      string
			retention float64
		}{
			{"not merged", filepath.Join(tiny, baseName), 0},
			{"twice", write(t, base, "adapter", 2), 2},
			{"half", write(t, base, "adapter", 0.5), 0.5},
			{"subtracted", write(t, base, "adapter", -1), -1},
		} {
			t.Run(baseName+" "+c.what, func(t *testing.T) {
				r := check(t, plan, c.path, nil)
				if r.Verdict != verify.Reject {
					t.Fatalf("verdict %s", r.Verdict)
				}
				if math.Abs(r.Retention.Median-c.retention) > 0.02 {
					t.Errorf("median retention %g, want %g", r.Retention.Median, c.retention)
				}
				for _, m := range r.Modules {
					if m.Pass {
						t.Errorf("%s passes", m.Module)
					}
				}
			})
		}
	}
}

// TestMergeRuntimeRejects checks that ONNX Runtime alone tells a wrong merge: its answer is compared, not the
// exact check's.
func TestMergeRuntimeRejects(t *testing.T) {
	rt := oracle.Try(t)
	if rt == nil {
		t.Skip("needs the ONNX Runtime library (loratool runtime install)")
	}
	base := open(t, filepath.Join(tiny, "base"))
	r := check(t, planOf(t, base, "adapter", 1), write(t, base, "adapter", 2), rt)
	for _, m := range r.Modules {
		if m.Runtime == nil || m.Runtime.Pass || math.Abs(m.Runtime.Retention-2) > 0.05 {
			t.Errorf("%s: runtime says %+v", m.Module, m.Runtime)
		}
	}
}

// TestMergeFindsDamage flips one bit at a time in a merged file: in an updated tensor, and in an untouched one.
func TestMergeFindsDamage(t *testing.T) {
	base := open(t, filepath.Join(tiny, "base-f16.gguf"))
	plan := planOf(t, base, "adapter", 1)
	for _, name := range []string{"blk.1.attn_q.weight", "blk.0.attn_norm.weight", "token_embd.weight"} {
		path := write(t, base, "adapter", 1)
		var x tensor.Tensor
		for _, y := range open(t, path).Tensors() {
			if y.Name == name {
				x = y
			}
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		at := x.Off + x.Size/2 | 1 // the byte with sign and exponent
		b := make([]byte, 1)
		if _, err := f.ReadAt(b, at); err != nil {
			t.Fatal(err)
		}
		b[0] ^= 0x40
		if _, err := f.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
		f.Close()
		r := check(t, plan, path, nil)
		found := false
		for _, f := range r.Findings {
			found = found || f.Level == finding.Error && f.Tensor == name
		}
		if r.Verdict != verify.Reject || !found {
			t.Errorf("%s: verdict %s, findings %s", name, r.Verdict, codes(r))
		}
	}
}

// TestMergeCompleteness compares with a model of other tensors.
func TestMergeCompleteness(t *testing.T) {
	base := open(t, filepath.Join(tiny, "base"))
	r := check(t, planOf(t, base, "adapter", 1), filepath.Join(tiny, "adapters", "dora", "merged.safetensors"), nil)
	if r.Verdict != verify.Reject || codes(r) == "" || !strings.Contains(codes(r), "merge.completeness") {
		t.Errorf("verdict %s: %s", r.Verdict, codes(r))
	}
}
