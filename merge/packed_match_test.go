package merge_test

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/internal/trained"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/tensor"
	"github.com/loratool/loratool/verify"
)

// The values of bitsandbytes' codes, in their order.
var bnbValues = map[string][]float32{
	"nf4": {-1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0,
		0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1},
	"fp4": {0, 5.208333333e-03, 0.66666667, 1, 0.33333333, 0.5, 0.16666667, 0.25, 0, -5.208333333e-03, -0.66666667, -1, -0.33333333, -0.5, -0.16666667, -0.25},
}

// closest is the first of the values that is nearest.
func closest(values []float32, x float32) (at byte) {
	for i, v := range values {
		if math.Abs(float64(v-x)) < math.Abs(float64(values[at]-x)) {
			at = byte(i)
		}
	}
	return at
}

// packBnb packs in blocks of 64, whose scales are quantized again where double is set.
func packBnb(kind string, double bool) func(*testing.T, *folder, string, []float32, int64, int64) []float32 {
	return func(t *testing.T, f *folder, stem string, w []float32, out, in int64) []float32 {
		const block, nested = 64, 256
		scales := make([]float32, len(w)/block)
		for i, v := range w {
			scales[i/block] = max(scales[i/block], max(v, -v))
		}
		name, n := stem+"weight", int64(len(scales))
		state := fmt.Sprintf(`"quant_type": "%s", "blocksize": %d, "dtype": "bfloat16", "shape": [%d, %d]`, kind, block, out, in)
		if double {
			var mean float32
			for _, s := range scales {
				mean += s / float32(n)
			}
			codes, outer, steps := make([]byte, n), make([]float32, (n+nested-1)/nested), make([]float32, 256)
			for i := range steps {
				steps[i] = float32(i-128) / 127
			}
			for i, s := range scales {
				outer[i/nested] = max(outer[i/nested], max(s-mean, mean-s))
			}
			for i, s := range scales {
				codes[i] = closest(steps, (s-mean)/outer[i/nested])
				scales[i] = float32(steps[codes[i]]*outer[i/nested]) + mean
			}
			state += fmt.Sprintf(`, "nested_blocksize": %d, "nested_dtype": "float32", "nested_offset": %g`, nested, mean)
			f.add(name+".absmax", tensor.U8, codes, n)
			f.add(name+".nested_absmax", tensor.F32, bits(outer), int64(len(outer)))
			f.add(name+".nested_quant_map", tensor.F32, bits(steps), 256)
		} else {
			f.add(name+".absmax", tensor.F32, bits(scales), n)
		}
		values := bnbValues[kind]
		packed, decoded := make([]byte, len(w)/2), make([]float32, len(w))
		for i, v := range w {
			c := closest(values, v/scales[i/block])
			packed[i/2] |= c << (4 * (^i & 1))
			decoded[i] = values[c] * scales[i/block]
		}
		f.add(name, tensor.U8, packed, int64(len(packed)), 1)
		f.add(name+".quant_map", tensor.F32, bits(values), 16)
		f.add(name+".quant_state.bitsandbytes__"+kind, tensor.U8, []byte("{"+state+"}"), int64(len(state)+2))
		return decoded
	}
}

// packNVFP4 packs as ModelOpt does.
func packNVFP4(t *testing.T, f *folder, stem string, w []float32, out, in int64) []float32 {
	values := []float32{0, .5, 1, 1.5, 2, 3, 4, 6, 0, -.5, -1, -1.5, -2, -3, -4, -6}
	var top float32
	scales := make([]float32, len(w)/16)
	for i, v := range w {
		scales[i/16] = max(scales[i/16], max(v, -v))
		top = max(top, scales[i/16])
	}
	global := top / (6 * 448)
	for i := range scales {
		scales[i] /= 6 * global
	}
	stored := encode(t, tensor.F8E4M3, scales)
	scales = floats(t, tensor.F8E4M3, stored)
	packed, decoded := make([]byte, len(w)/2), make([]float32, len(w))
	for i, v := range w {
		s := scales[i/16] * global
		c := closest(values, v/s)
		packed[i/2] |= c << (4 * (i & 1))
		decoded[i] = values[c] * s
	}
	f.add(stem+"weight", tensor.U8, packed, out, in/2)
	f.add(stem+"weight_scale", tensor.F8E4M3, stored, out, in/16)
	f.add(stem+"weight_scale_2", tensor.F32, bits([]float32{global}), 1)
	return decoded
}

// TestMatchPacked merges a trained adapter into four-bit bases of its model and keeps their packing: the adapter
// survives, and of bitsandbytes and NVFP4 nothing but codes changes.
func TestMatchPacked(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long with the race detector or an emulator")
	}
	in := []merge.Input{input(t, trained.Adapter(t), 1, dialect.Options{})}
	for _, c := range []struct {
		packing
		nearest float64 // what the nearest codes keep at most
		codes   string  // ending of the tensors that change
	}{
		{packing{name: "NF4", config: `"quant_method": "bitsandbytes", "load_in_4bit": true`, pack: packBnb("nf4", false)}, 0.3, "proj.weight"},
		{packing{name: "NF4, double-quantized", config: `"quant_method": "bitsandbytes", "load_in_4bit": true`, pack: packBnb("nf4", true)}, 0.3, "proj.weight"},
		{packing{name: "FP4", config: `"quant_method": "bitsandbytes", "load_in_4bit": true`, pack: packBnb("fp4", true)}, 0.3, "proj.weight"},
		{packing{name: "NVFP4", config: `"quant_method": "modelopt", "quant_algo": "NVFP4"`, pack: packNVFP4}, 0.4, "proj.weight"},
		{packing{name: "MXFP4", config: `"quant_method": "compressed-tensors"`, pack: packMXFP4}, 0.4, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			quantized, float := c.writeOf(t, trained.Path(t, "base"))
			base := packedModel(t, quantized)
			for _, x := range open(t, float).Tensors() {
				if w := base.Weight(x.Name); w != nil {
					want, err := x.Read()
					if got, e := w.Exact.Read(); err != nil || e != nil || !bytes.Equal(got, want) {
						t.Fatalf("%s is packed wrongly in this test: %v, %v", x.Name, err, e)
					}
				}
			}
			out, plan, stats := keepBy(t, base, in, merge.RequantMatch, merge.RunOptions{Jobs: 2})
			mean, worst, nearest := 0.0, 1.0, 0.0
			for _, s := range stats {
				mean += s.Retention / 28
				nearest += s.Nearest.Retention / 28
				worst = min(worst, s.Retention)
			}
			t.Logf("%s: α %.4f, worst %.4f; nearest %.4f", stats[0].Type, mean, worst, nearest)
			if len(stats) != 28 || math.Abs(mean-1) > 0.02 || worst < 0.9 || nearest > c.nearest {
				t.Errorf("%d modules, α %.4f, worst %.4f, nearest %.4f", len(stats), mean, worst, nearest)
			}
			specs, want := contents(t, quantized)
			_, got := contents(t, out)
			changed := 0
			for name := range specs {
				same := bytes.Equal(got[name], want[name])
				if !same {
					changed++
				}
				if c.codes != "" && same == strings.HasSuffix(name, c.codes) {
					t.Errorf("%s: the same %v", name, same)
				}
			}
			if changed < 28 || len(got) != len(want) {
				t.Errorf("%d of %d tensors changed, of %d", changed, len(got), len(want))
			}
			before, _ := os.ReadFile(filepath.Join(quantized, "config.json"))
			if after, err := os.ReadFile(filepath.Join(out, "config.json")); err != nil || !bytes.Equal(before, after) {
				t.Errorf("config.json changed (%v)", err)
			}
			slabs, _, _ := keepBy(t, base, in, merge.RequantMatch, merge.RunOptions{Jobs: 3, MaxMemory: 1})
			_, again := contents(t, slabs)
			for name, b := range got {
				if !bytes.Equal(again[name], b) {
					t.Fatalf("%s depends on slabs and workers", name)
				}
			}
			none := in[0]
			none.Scale = 0
			untouched, _, _ := keepBy(t, base, []merge.Input{none}, merge.RequantMatch, merge.RunOptions{})
			_, again = contents(t, untouched)
			for name, b := range want {
				if !bytes.Equal(again[name], b) {
					t.Fatalf("%s changed although nothing is added", name)
				}
			}
			r, err := verify.Merge(context.Background(), plan, packedModel(t, out), verify.MergeOptions{})
			if err != nil || r.Verdict == verify.Reject {
				t.Errorf("%v: %v", err, fmt.Sprint(r.Findings))
			}
		})
	}
}
