package merge_test

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
	"github.com/loratool/loratool/verify"
)

// A packing is a scheme written down again for these tests, as a plain search for the nearest values.
type packing struct {
	name   string
	config string
	// pack stores a matrix in parts, under the names of the scheme, and returns what they decode to.
	pack func(t *testing.T, f *folder, stem string, w []float32, out, in int64) []float32
	// drift is how many units in the last place a float32 scale may move when nothing is updated.
	drift  uint32
	powers bool // scales are powers of two
	// retention of the adapter of the tiny llama, at least and at most.
	least, most float64
}

func packings() []packing {
	return []packing{
		{name: "FP8 blocks", config: `"quant_method": "fp8", "weight_block_size": [32, 48]`, pack: packFP8(tensor.F32, "_scale_inv", 32, 48, false), drift: 1, least: .9, most: 1.1},
		{name: "FP8 blocks that do not divide", config: `"quant_method": "fp8", "weight_block_size": [48, 40]`, pack: packFP8(tensor.F32, "_scale_inv", 48, 40, false), drift: 1, least: .9, most: 1.1},
		{name: "FP8 blocks of powers", config: `"quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [32, 32]`, pack: packFP8(tensor.F32, "_scale_inv", 32, 32, true), powers: true, least: .9, most: 1.1},
		{name: "FP8 rows", config: `"quant_method": "compressed-tensors"`, pack: packFP8(tensor.BF16, "_scale", 1, 0, false), least: .9, most: 1.1},
		{name: "FP8 tensor", config: `"quant_method": "compressed-tensors"`, pack: packFP8(tensor.F32, "_scale", 0, 0, false), drift: 1, least: .9, most: 1.1},
		{name: "int8", config: `"quant_method": "bitsandbytes", "load_in_8bit": true`, pack: packInt8, drift: 3, least: .9, most: 1.1},
		{name: "MXFP4", config: `"quant_method": "compressed-tensors"`, pack: packMXFP4, least: .1, most: 1.1},
	}
}

// nearest is the number of the value, of some in ascending order, that is nearest to a magnitude; of equally
// near ones the even one, or the first.
func nearest(values []float32, v float32, even bool) int {
	high := min(sort.Search(len(values), func(i int) bool { return values[i] >= v }), len(values)-1)
	low := max(0, high-1)
	below, above := float64(v)-float64(values[low]), float64(values[high])-float64(v)
	if below < above || below == above && (!even || low%2 == 0) {
		return low
	}
	return high
}

// packFP8 packs under scales of some rows and columns, 0 for all.
func packFP8(scaleType tensor.DType, end string, height, width int64, power bool) func(*testing.T, *folder, string, []float32, int64, int64) []float32 {
	return func(t *testing.T, f *folder, stem string, w []float32, out, in int64) []float32 {
		all := make([]byte, 256)
		for i := range all {
			all[i] = byte(i)
		}
		values := floats(t, tensor.F8E4M3, all)
		h, wd := height, width
		if h == 0 {
			h = out
		}
		if wd == 0 {
			wd = in
		}
		rows, cols := (out+h-1)/h, (in+wd-1)/wd
		at := func(i int) int64 { return int64(i)/in/h*cols + int64(i)%in/wd }
		scales := make([]float32, rows*cols)
		for i, v := range w {
			scales[at(i)] = max(scales[at(i)], float32(math.Abs(float64(v))))
		}
		for i, top := range scales {
			s := top / 448
			if m, e := math.Frexp(float64(s)); power && m != .5 {
				s = float32(math.Ldexp(1, e))
			}
			scales[i] = s
		}
		scaleBytes := encode(t, scaleType, scales)
		scales = floats(t, scaleType, scaleBytes)
		codes, decoded := make([]byte, len(w)), make([]float32, len(w))
		for i, v := range w {
			q := v / scales[at(i)]
			code := byte(nearest(values[:127], float32(math.Abs(float64(q))), true))
			if math.Signbit(float64(q)) {
				code |= 0x80
			}
			codes[i], decoded[i] = code, values[code]*scales[at(i)]
		}
		f.add(stem+"weight", tensor.F8E4M3, codes, out, in)
		f.add(stem+"weight"+end, scaleType, scaleBytes, rows, cols)
		return decoded
	}
}

func packInt8(t *testing.T, f *folder, stem string, w []float32, out, in int64) []float32 {
	codes, scb, decoded := make([]byte, len(w)), make([]float32, out), make([]float32, len(w))
	for r := range out {
		row := w[r*in:][:in]
		for _, v := range row {
			scb[r] = max(scb[r], float32(math.Abs(float64(v))))
		}
		inverse := 127 / scb[r]
		for i, v := range row {
			q := math.RoundToEven(float64(float32(v * inverse)))
			codes[r*in+int64(i)] = byte(int8(q))
			decoded[r*in+int64(i)] = float32(float32(q)*scb[r]) * float32(1./127)
		}
	}
	f.add(stem+"weight", tensor.I8, codes, out, in)
	f.add(stem+"SCB", tensor.F32, encode(t, tensor.F32, scb), out)
	f.add(stem+"weight_format", tensor.U8, []byte{0})
	return decoded
}

// mxfp4 packs rows into codes and exponents.
func mxfp4(w []float32) (codes, exponents []byte, decoded []float32) {
	values := []float32{0, .5, 1, 1.5, 2, 3, 4, 6}
	for at := 0; at < len(w); at += 32 {
		var top float64
		for _, v := range w[at : at+32] {
			top = max(top, math.Abs(float64(v)))
		}
		_, e := math.Frexp(top) // top is in [½, 1) · 2^e
		e -= 3
		exponents = append(exponents, byte(e+127))
		for i, v := range w[at : at+32] {
			c := byte(nearest(values, float32(math.Ldexp(math.Abs(float64(v)), -e)), false))
			x := float32(math.Ldexp(float64(values[c]), e))
			if v < 0 && c > 0 {
				c, x = c|8, -x
			}
			if i%2 == 0 {
				codes = append(codes, c)
			} else {
				codes[len(codes)-1] |= c << 4
			}
			decoded = append(decoded, x)
		}
	}
	return codes, exponents, decoded
}

func packMXFP4(_ *testing.T, f *folder, stem string, w []float32, out, in int64) []float32 {
	codes, exponents, decoded := mxfp4(w)
	f.add(stem+"weight_packed", tensor.U8, codes, out, in/2)
	f.add(stem+"weight_scale", tensor.U8, exponents, out, in/32)
	return decoded
}

// write writes the tiny llama.
func (p packing) write(t *testing.T) (quantized, float string) {
	t.Helper()
	return p.writeOf(t, filepath.Join(tiny, "base"))
}

// writeOf writes a model packed, and its decoded twin in float32. A runtime scale is beside the weights.
func (p packing) writeOf(t *testing.T, model string) (quantized, float string) {
	t.Helper()
	var q, f folder
	for _, x := range open(t, model).Tensors() {
		b, err := x.Read()
		if err != nil {
			t.Fatal(err)
		}
		if stem, ok := strings.CutSuffix(x.Name, "proj.weight"); ok {
			w := p.pack(t, &q, stem+"proj.", floats(t, x.DType, b), x.Shape[0], x.Shape[1])
			f.add(x.Name, tensor.F32, encode(t, tensor.F32, w), x.Shape...)
			continue
		}
		q.add(x.Name, x.DType, b, x.Shape...)
		f.add(x.Name, x.DType, b, x.Shape...)
	}
	q.add("model.layers.0.self_attn.k_scale", tensor.F32, encode(t, tensor.F32, []float32{.5}))
	config, err := os.ReadFile(filepath.Join(model, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	plain := string(config)
	conf := strings.Replace(plain, `"head_dim"`, `"quantization_config": {`+p.config+`}, "head_dim"`, 1)
	return q.write(t, map[string]string{"config.json": conf}), f.write(t, map[string]string{"config.json": plain})
}

func packedModel(t *testing.T, path string) *formats.Packed { return decode(t, path).Packed() }

// keep merges into a new folder, to the nearest codes.
func keep(t *testing.T, base *formats.Packed, in []merge.Input, run merge.RunOptions) (out string, plan *merge.Plan, stats []merge.Stats) {
	t.Helper()
	return keepBy(t, base, in, merge.RequantNearest, run)
}

func keepBy(t *testing.T, base *formats.Packed, in []merge.Input, how merge.Requant, run merge.RunOptions) (out string, plan *merge.Plan, stats []merge.Stats) {
	t.Helper()
	plan, err := merge.NewPlan(base, in, merge.Options{Resolve: merge.Resolvers(base), Requant: how})
	if err != nil {
		t.Fatal(err)
	}
	out = filepath.Join(t.TempDir(), "merged")
	l, err := plan.Layout(base, out, layout.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := layout.Create(out, l, false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if stats, err = merge.Run(context.Background(), plan, l, w, run); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	return out, plan, stats
}

// contents are the bytes of a model's stored tensors.
func contents(t *testing.T, path string) (map[string]tensor.Spec, map[string][]byte) {
	t.Helper()
	specs, data := map[string]tensor.Spec{}, map[string][]byte{}
	for _, x := range open(t, path).Tensors() {
		b, err := x.Read()
		if err != nil {
			t.Fatal(err)
		}
		specs[x.Name], data[x.Name] = x.Spec, b
	}
	return specs, data
}

// TestPacked merges into packed bases: what is stored is the packing, done here, of the merge in float32 with
// the decoded base. Neither workers nor slabs matter.
func TestPacked(t *testing.T) {
	for _, p := range packings() {
		t.Run(p.name, func(t *testing.T) {
			quantized, float := p.write(t)
			in := []merge.Input{input(t, filepath.Join(tiny, "adapter"), 1, dialect.Options{})}
			specs, sums, _ := merged(t, open(t, float), in, merge.Options{}, merge.RunOptions{})
			var want folder
			for _, x := range open(t, float).Tensors() {
				if stem, ok := strings.CutSuffix(x.Name, "proj.weight"); ok {
					p.pack(t, &want, stem+"proj.", floats(t, tensor.F32, sums[x.Name]), x.Shape[0], x.Shape[1])
				} else {
					want.add(x.Name, specs[x.Name].DType, sums[x.Name], x.Shape...)
				}
			}
			want.add("model.layers.0.self_attn.k_scale", tensor.F32, encode(t, tensor.F32, []float32{.5}))
			for _, run := range []merge.RunOptions{{Jobs: 1}, {Jobs: 4, MaxMemory: 1}} {
				out, _, stats := keep(t, packedModel(t, quantized), in, run)
				got, data := contents(t, out)
				if len(got) != len(want.specs) || len(stats) != 14 {
					t.Fatalf("%d tensors, want %d; %d modules", len(got), len(want.specs), len(stats))
				}
				for i, s := range want.specs {
					if g := got[s.Name]; g.DType != s.DType || !g.Shape.Equal(s.Shape) {
						t.Errorf("%s: %s%v, want %s%v", s.Name, g.DType, g.Shape, s.DType, s.Shape)
					} else if !bytes.Equal(data[s.Name], want.data[i]) {
						t.Errorf("%s: differs", s.Name)
					}
				}
				low, high := math.Inf(1), math.Inf(-1)
				for _, s := range stats {
					low, high = min(low, s.Retention), max(high, s.Retention)
				}
				if low < p.least || high > p.most {
					t.Errorf("retention from %.3f to %.3f", low, high)
				}
				t.Logf("%s: retention from %.4f to %.4f", stats[0].Type, low, high)
				a, _ := os.ReadFile(filepath.Join(quantized, "config.json"))
				if b, err := os.ReadFile(filepath.Join(out, "config.json")); err != nil || !bytes.Equal(a, b) {
					t.Errorf("config.json changed (%v)", err)
				}
			}
		})
	}
}

// TestPackedUnchanged merges with scale 0. The packed data is the base's, but for the sign of zeros, and so are
// the scales, but for what float32 scales drift by where they are computed from values that were rounded. Where
// scales are powers of two, a block may come back with half the scale and twice the codes: the same values.
func TestPackedUnchanged(t *testing.T) {
	for _, p := range packings() {
		quantized, _ := p.write(t)
		in := []merge.Input{input(t, filepath.Join(tiny, "adapter"), 0, dialect.Options{})}
		base := packedModel(t, quantized)
		out, _, _ := keep(t, base, in, merge.RunOptions{})
		if p.powers {
			after := packedModel(t, out)
			for _, x := range base.Tensors() {
				if w := base.Weight(x.Name); w != nil && !bytes.Equal(unsigned(t, w.Exact), unsigned(t, after.Weight(x.Name).Exact)) {
					t.Errorf("%s: %s changed", p.name, x.Name)
				}
			}
			continue
		}
		_, want := contents(t, quantized)
		specs, got := contents(t, out)
		for name, w := range want {
			g := got[name]
			if specs[name].DType == tensor.F8E4M3 {
				w = bytes.ReplaceAll(w, []byte{0x80}, []byte{0})
			}
			if bytes.Equal(g, w) {
				continue
			}
			if specs[name].DType != tensor.F32 || p.drift == 0 {
				t.Errorf("%s: %s changed", p.name, name)
				continue
			}
			a, b := floats(t, tensor.F32, g), floats(t, tensor.F32, w)
			for i := range b {
				if d := math.Float32bits(a[i]) - math.Float32bits(b[i]); d+p.drift > 2*p.drift {
					t.Errorf("%s: scale %d of %s moved from %g to %g", p.name, i, name, b[i], a[i])
				}
			}
		}
	}
}

// unsigned are the bytes of a float32 tensor with all zeros positive.
func unsigned(t *testing.T, x tensor.Tensor) []byte {
	t.Helper()
	b, err := x.Read()
	if err != nil {
		t.Fatal(err)
	}
	v := floats(t, tensor.F32, b)
	for i := range v {
		v[i] += 0
	}
	return encode(t, tensor.F32, v)
}

// TestPackedVerify lets verify judge right and wrong merges.
func TestPackedVerify(t *testing.T) {
	for _, p := range packings() {
		quantized, _ := p.write(t)
		base := packedModel(t, quantized)
		in := []merge.Input{input(t, filepath.Join(tiny, "adapter"), 1, dialect.Options{})}
		right, _, _ := keep(t, base, in, merge.RunOptions{})
		twice, _, _ := keep(t, base, []merge.Input{input(t, filepath.Join(tiny, "adapter"), 2, dialect.Options{})}, merge.RunOptions{})
		plan, err := merge.NewPlan(base, in, merge.Options{Resolve: merge.Resolvers(base), CheckOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, all := range []bool{false, true} {
			for path, code := range map[string]string{right: "", quantized: "merge.not_merged", twice: "merge.equivalence", damaged(t, right): "merge.equivalence"} {
				r, err := verify.Merge(context.Background(), plan, packedModel(t, path), verify.MergeOptions{All: all, AnyRetention: true})
				if err != nil {
					t.Fatal(err)
				}
				got := ""
				for _, f := range r.Findings {
					if f.Level == finding.Error {
						got = f.Code
					}
				}
				if got != code {
					t.Errorf("%s, all %v: %s gives %q, want %q", p.name, all, filepath.Base(path), got, code)
				}
				if code == "" && (len(r.Modules) != 14 || r.Unchanged.Tensors < 6) {
					t.Errorf("%s: %d modules and %d untouched tensors were checked", p.name, len(r.Modules), r.Unchanged.Tensors)
				}
			}
		}
	}
}

// damaged is a copy of a model in which the runtime scale that nothing touches is another one.
func damaged(t *testing.T, path string) string {
	t.Helper()
	var f folder
	for _, x := range open(t, path).Tensors() {
		b, err := x.Read()
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(x.Name, "k_scale") {
			b = encode(t, tensor.F32, []float32{.25})
		}
		f.add(x.Name, x.DType, b, x.Shape...)
	}
	config, err := os.ReadFile(filepath.Join(path, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	return f.write(t, map[string]string{"config.json": string(config)})
}

// TestPackedExperts merges into experts as gpt-oss stores them, turned: of one shape that is square, and one
// that is not.
func TestPackedExperts(t *testing.T) {
	const experts, wide, narrow = 3, 64, 32
	rng := rand.New(rand.NewPCG(5, 6))
	normal := func(n int64, scale float64) []float32 {
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(scale * rng.NormFloat64())
		}
		return v
	}
	turn := func(w []float32, rows, cols int64) []float32 { // every expert's matrix
		out := make([]float32, len(w))
		for i := range out {
			e, r, c := int64(i)/(rows*cols), int64(i)%(rows*cols)/cols, int64(i)%cols
			out[e*rows*cols+c*rows+r] = w[i]
		}
		return out
	}
	var q, f folder
	updates := []adapter.Update{}
	for _, m := range []struct {
		param   string
		in, out int64
	}{{"gate_up_proj", narrow, wide}, {"down_proj", wide, wide}} {
		const block = "model.layers.0.mlp.experts"
		codes, exponents, w := mxfp4(normal(experts*m.in*m.out, .1))
		q.add(block+"."+m.param+"_blocks", tensor.U8, codes, experts, m.out, m.in/32, 16)
		q.add(block+"."+m.param+"_scales", tensor.U8, exponents, experts, m.out, m.in/32)
		f.add(block+"."+m.param, tensor.F32, encode(t, tensor.F32, turn(w, m.out, m.in)), experts, m.in, m.out)
		for e := range experts - 1 { // the last expert is not touched
			updates = append(updates, adapter.Update{
				Target: adapter.Target{Module: block, Param: m.param}, Kind: adapter.LowRank, Layer: adapter.Linear, Rank: 2,
				A: adapter.FromValues(2, m.in, normal(2*m.in, .2)), B: adapter.FromValues(m.out, 2, normal(2*m.out, .2)),
				Scale: adapter.Scale{Value: 1}, Expert: e, Experts: experts, Swapped: true,
			})
		}
	}
	a := &adapter.Adapter{Path: "adapter", Space: naming.HF, Updates: updates}
	in := []merge.Input{{Adapter: a, Scale: 1}}
	quantized, float := q.write(t, nil), f.write(t, nil)
	_, sums, _ := merged(t, open(t, float), in, merge.Options{}, merge.RunOptions{})
	out, plan, stats := keep(t, packedModel(t, quantized), in, merge.RunOptions{})
	_, got := contents(t, out)
	_, base := contents(t, quantized)
	for i, s := range f.specs {
		codes, exponents, _ := mxfp4(turn(floats(t, tensor.F32, sums[s.Name]), s.Shape[1], s.Shape[2]))
		if !bytes.Equal(got[s.Name+"_blocks"], codes) || !bytes.Equal(got[s.Name+"_scales"], exponents) {
			t.Errorf("%s differs", s.Name)
		}
		if n := len(codes) * 2 / experts; bytes.Equal(codes[:n], base[s.Name+"_blocks"][:n]) {
			t.Errorf("%s: nothing was merged", s.Name)
		}
		if stats[i].Retention < .5 {
			t.Errorf("%s: retention %g", s.Name, stats[i].Retention)
		}
	}
	r, err := verify.Merge(context.Background(), plan, packedModel(t, out), verify.MergeOptions{All: true})
	if err != nil || r.Verdict == verify.Reject {
		t.Errorf("%v: %v", err, fmt.Sprint(r.Findings))
	}
}

// TestPackedRefused checks that schemes that are not written are refused by name, once, and only where they
// are updated.
func TestPackedRefused(t *testing.T) {
	quantized, _ := twins(t)
	base := packedModel(t, quantized)
	in := []merge.Input{input(t, filepath.Join(tiny, "adapter"), 1, dialect.Options{})}
	plan, err := merge.NewPlan(base, in, merge.Options{Resolve: merge.Resolvers(base)})
	f := finding.Of(err)
	if f == nil || f.Code != "merge.unsupported_type" || !strings.Contains(f.Hint, "--dtype bf16") || !strings.Contains(f.Message, "GPTQ 4-bit") {
		t.Errorf("error %v", err)
	}
	n := 0
	for _, f := range plan.Findings {
		if f.Level == finding.Error {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d errors", n)
	}
	// An adapter of the FP8 part alone leaves the GPTQ part as it is.
	ups := in[0].Adapter.Updates[:0:0]
	for _, u := range in[0].Adapter.Updates {
		if strings.Contains(u.Module, "mlp") {
			ups = append(ups, u)
		}
	}
	in[0].Adapter.Updates = ups
	out, _, stats := keep(t, base, in, merge.RunOptions{})
	_, want := contents(t, quantized)
	_, got := contents(t, out)
	if len(ups) == 0 || len(stats) != len(ups) || len(got) != len(want) {
		t.Fatalf("%d updates, %d modules, %d tensors of %d", len(ups), len(stats), len(got), len(want))
	}
	for name := range want {
		if same := bytes.Equal(got[name], want[name]); same == strings.Contains(name, "mlp.") {
			t.Errorf("%s: the same %v", name, same)
		}
	}
	for name, opt := range map[string]merge.Options{"refuse": {RefuseRequant: true}, "match": {Requant: merge.RequantMatch}} {
		opt.Resolve = merge.Resolvers(base)
		if _, err := merge.NewPlan(base, in, opt); finding.Of(err) == nil || finding.Of(err).Code != "merge.requantize" {
			t.Errorf("%s: %v", name, err)
		}
	}
}
