package onnxruntime

import (
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/x448/float16"
	"golang.org/x/sync/errgroup"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// A layer is a random linear layer with an adapter, in float32 and in its stored type.
type layer struct {
	out, in, rank int
	transposed    bool
	dtype         tensor.DType
	base          []float32 // as stored, so already rounded; [out, in]
	a, b          []float32
	scale         float32
}

// newLayer makes weights of standard deviation 0.02 and an adapter whose change is effect times as large.
func newLayer(out, in, rank int, effect float64, dtype tensor.DType) layer {
	g := rand.New(rand.NewPCG(7, uint64(out*in)))
	l := layer{out: out, in: in, rank: rank, dtype: dtype, a: normal(g, rank*in), b: normal(g, out*rank)}
	l.base = normal(g, out*in)
	for i, v := range l.base {
		l.base[i] = round(0.02*v, dtype)
	}
	l.scale = float32(effect * 0.02 / math.Sqrt(float64(rank)))
	return l
}

// merged is base + times·scale·B·A, not yet rounded; transposeDelta adds the transpose of the change.
func (l layer) merged(times float64, transposeDelta bool) []float32 {
	w := slices.Clone(l.base)
	for o := range l.out {
		for i := range l.in {
			var sum float64
			for r := range l.rank {
				sum += float64(l.b[o*l.rank+r]) * float64(l.a[r*l.in+i])
			}
			at := o*l.in + i
			if transposeDelta {
				at = i*l.in + o
			}
			w[at] += float32(times * float64(l.scale) * sum)
		}
	}
	return w
}

func round(v float32, d tensor.DType) float32 {
	switch d {
	case tensor.F16:
		return float16.Fromfloat32(v).Float32()
	case tensor.BF16:
		u := math.Float32bits(v)
		return math.Float32frombits((u + 0x7fff + u>>16&1) &^ 0xffff)
	}
	return v
}

// stored encodes an [out, in] matrix in the layer's type and orientation.
func (l layer) stored(w []float32) Weights {
	if l.transposed {
		t := make([]float32, len(w))
		for o := range l.out {
			for i := range l.in {
				t[i*l.out+o] = w[o*l.in+i]
			}
		}
		w = t
	}
	var raw []byte
	for _, v := range w {
		switch l.dtype {
		case tensor.F16:
			raw = binary.LittleEndian.AppendUint16(raw, float16.Fromfloat32(v).Bits())
		case tensor.BF16:
			raw = binary.LittleEndian.AppendUint16(raw, uint16(math.Float32bits(round(v, l.dtype))>>16))
		default:
			raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(v))
		}
	}
	return Weights{DType: l.dtype, Raw: raw}
}

func (l layer) module() Module {
	return Module{
		Name: "model.layers.0.self_attn.q_proj", Out: l.out, In: l.in, Transposed: l.transposed,
		Terms: []Term{{Rank: l.rank, A: l.a, B: l.b, Scale: l.scale}},
	}
}

// block is the whole module with the given merged weights.
func (l layer) block(merged []float32) Block {
	rows, _ := l.module().stored()
	return Block{Rows: rows, Base: l.stored(l.base), Merged: l.stored(merged)}
}

func check(t *testing.T, c *Checker, m Module, b Block) Result {
	t.Helper()
	r, err := c.Check(t.Context(), m, b)
	if err != nil {
		t.Fatal(err)
	}
	if r.Pass != (r.Verdict == OK) || (r.Why == "") != r.Pass {
		t.Errorf("pass %v, verdict %s, why %q do not agree", r.Pass, r.Verdict, r.Why)
	}
	return r
}

func near(t *testing.T, what string, got, want, tol float64) {
	t.Helper()
	if !(math.Abs(got-want) <= tol) {
		t.Errorf("%s is %.4g, expected %.4g ± %.2g", what, got, want, tol)
	}
}

func TestCheckTellsMergesApart(t *testing.T) {
	run := need(t)
	c := run.NewChecker(CheckOptions{})
	defer c.Close()
	for _, dtype := range []tensor.DType{tensor.F32, tensor.F16, tensor.BF16} {
		for _, transposed := range []bool{false, true} {
			l := newLayer(192, 192, 4, 0.03, dtype)
			l.transposed = transposed
			for _, tt := range []struct {
				name           string
				times          float64
				transposeDelta bool
				verdict        Verdict
				alpha, tol     float64
				residual       float64
			}{
				{"right", 1, false, OK, 1, 0.01, 0},
				{"missing", 0, false, Unchanged, 0, 1e-9, 1},
				{"twice", 2, false, Scaled, 2, 0.01, 1},
				{"wrong sign", -1, false, Scaled, -1, 0.01, 2},
				{"half", 0.5, false, Scaled, 0.5, 0.01, 0.5},
				{"transposed", 1, true, Foreign, 0, 0.1, math.Sqrt2},
			} {
				t.Run(dtype.String()+" "+tt.name, func(t *testing.T) {
					r := check(t, c, l.module(), l.block(l.merged(tt.times, tt.transposeDelta)))
					if r.Verdict != tt.verdict {
						t.Errorf("verdict %s (%s), expected %s", r.Verdict, r.Why, tt.verdict)
					}
					near(t, "retention", r.Retention, tt.alpha, tt.tol)
					near(t, "residual", r.Residual, tt.residual, 0.13)
					near(t, "effect", r.Effect, 0.03, 0.01)
					if r.ComputeError > 1e-6 {
						t.Errorf("compute error %.1e", r.ComputeError)
					}
					if r.Provider != CPU || r.Rows != 8 {
						t.Errorf("provider %s, %d rows", r.Provider, r.Rows)
					}
				})
			}
		}
	}
}

func TestCheckFindsMissingMergeOnOtherGrid(t *testing.T) {
	run := need(t)
	c := run.NewChecker(CheckOptions{})
	defer c.Close()
	l := newLayer(256, 256, 4, 0.03, tensor.F32)
	b := l.block(l.base)
	l.dtype = tensor.BF16
	b.Merged = l.stored(l.base)
	r := check(t, c, l.module(), b)
	if r.Verdict != NotMerged {
		t.Errorf("verdict %s (%s)", r.Verdict, r.Why)
	}
	near(t, "retention", r.Retention, 0, 0.02)

	b.Merged = l.stored(l.merged(1, false))
	if r = check(t, c, l.module(), b); r.Verdict != OK {
		t.Errorf("merged while narrowing: verdict %s (%s)", r.Verdict, r.Why)
	}
}

// A change of a thousandth of the weights is half lost in bfloat16 and whole in float16. The plain
// relative error cannot see the loss.
func TestCheckReportsRounding(t *testing.T) {
	run := need(t)
	c := run.NewChecker(CheckOptions{})
	defer c.Close()
	for dtype, want := range map[tensor.DType]struct {
		verdict  Verdict
		low, top float64
	}{tensor.BF16: {Rounded, 0.45, 0.65}, tensor.F16: {OK, 0.98, 1.02}} {
		l := newLayer(512, 512, 8, 1e-3, dtype)
		r := check(t, c, l.module(), l.block(l.merged(1, false)))
		if r.Verdict != want.verdict || r.Retention < want.low || r.Retention > want.top {
			t.Errorf("%s: verdict %s, retention %.3f (%s)", dtype, r.Verdict, r.Retention, r.Why)
		}
		if r.RelError > r.ErrorLimit {
			t.Errorf("%s: relative error %.1e is above %.1e", dtype, r.RelError, r.ErrorLimit)
		}
	}
}

func TestCheckInBlocksEqualsWhole(t *testing.T) {
	run := need(t)
	whole := run.NewChecker(CheckOptions{})
	defer whole.Close()
	for _, transposed := range []bool{false, true} {
		l := newLayer(150, 90, 3, 0.05, tensor.BF16)
		l.transposed = transposed
		b := l.block(l.merged(1, false))
		rows, cols := l.module().stored()
		want := check(t, whole, l.module(), b)
		if want.Verdict != OK {
			t.Fatalf("verdict %s (%s)", want.Verdict, want.Why)
		}

		byParts := run.NewChecker(CheckOptions{RunBytes: 8 * cols * 7})
		defer byParts.Close()
		same(t, check(t, byParts, l.module(), b), want)

		acc, err := whole.Start(l.module())
		if err != nil {
			t.Fatal(err)
		}
		for _, cut := range [][2]int{{40, rows}, {0, 11}, {11, 40}} {
			if err := acc.Add(t.Context(), b.slice(cut[0], cut[1]-cut[0], cols)); err != nil {
				t.Fatal(err)
			}
			if cut[1] == 11 {
				if _, err := acc.Result(); finding.Of(err) == nil {
					t.Error("a result without all rows")
				}
			}
		}
		got, err := acc.Result()
		if err != nil {
			t.Fatal(err)
		}
		same(t, got, want)
	}
}

func same(t *testing.T, got, want Result) {
	t.Helper()
	near(t, "retention", got.Retention, want.Retention, 1e-5)
	near(t, "residual", got.Residual, want.Residual, 1e-5)
	near(t, "relative error", got.RelError, want.RelError, 1e-7)
	near(t, "effect", got.Effect, want.Effect, 1e-7)
	near(t, "slack", got.RetentionSlack, want.RetentionSlack, 1e-7)
	if got.Verdict != want.Verdict || got.Seed != want.Seed {
		t.Errorf("verdict %s, expected %s", got.Verdict, want.Verdict)
	}
}

// One graph serves one term, several terms, a dense change and expected weights.
func TestCheckForms(t *testing.T) {
	run := need(t)
	c := run.NewChecker(CheckOptions{})
	defer c.Close()
	for _, transposed := range []bool{false, true} {
		l := newLayer(64, 96, 6, 0.05, tensor.F16)
		l.transposed = transposed
		merged := l.merged(1, false)
		b := l.block(merged)
		want := check(t, c, l.module(), b)

		split := l.module()
		first, second := Term{Rank: 2, A: l.a[:2*l.in], Scale: l.scale}, Term{Rank: 4, A: l.a[2*l.in:], Scale: l.scale / 2}
		for o := range l.out {
			row := l.b[o*6 : (o+1)*6]
			first.B = append(first.B, row[:2]...)
			for _, v := range row[2:] {
				second.B = append(second.B, 2*v)
			}
		}
		split.Terms = []Term{first, second}

		exact := l
		exact.dtype = tensor.F32
		we := decode(exact.stored(merged), l.out*l.in)
		delta := slices.Clone(we)
		for i, v := range decode(exact.stored(l.base), l.out*l.in) {
			delta[i] -= v
		}
		dense, values := l.module(), b
		dense.Terms = nil
		withExpected, withDelta := b, b
		withExpected.Expected, withDelta.Delta = we, delta
		values.Base = Weights{DType: l.dtype, Values: decode(b.Base, l.out*l.in)}
		values.Merged = Weights{DType: l.dtype, Values: decode(b.Merged, l.out*l.in)}

		for name, r := range map[string]Result{
			"two terms": check(t, c, split, b),
			"expected":  check(t, c, dense, withExpected),
			"delta":     check(t, c, dense, withDelta),
			"decoded":   check(t, c, l.module(), values),
		} {
			if r.Verdict != OK {
				t.Errorf("%s: verdict %s (%s)", name, r.Verdict, r.Why)
			}
			near(t, name+": retention", r.Retention, want.Retention, 1e-4)
			near(t, name+": relative error", r.RelError, want.RelError, 1e-6)
		}
	}
}

func decode(w Weights, n int) []float32 {
	v := make([]float32, n)
	for i := range v {
		v[i] = w.at(i)
	}
	return v
}

func TestCheckOddModules(t *testing.T) {
	run := need(t)
	c := run.NewChecker(CheckOptions{})
	defer c.Close()
	l := newLayer(80, 64, 2, 0.05, tensor.F32)
	right := l.merged(1, false)

	spoiled := slices.Clone(right)
	spoiled[100] = float32(math.Inf(1))
	if r := check(t, c, l.module(), l.block(spoiled)); r.Verdict != NonFinite {
		t.Errorf("infinity: verdict %s", r.Verdict)
	}
	spoiled[100] = float32(math.NaN())
	if r := check(t, c, l.module(), l.block(spoiled)); r.Verdict != NonFinite {
		t.Errorf("NaN: verdict %s", r.Verdict)
	}

	none := l
	none.b = make([]float32, len(l.b))
	if r := check(t, c, none.module(), l.block(l.base)); r.Verdict != NoEffect {
		t.Errorf("empty adapter: verdict %s", r.Verdict)
	}
	if r := check(t, c, none.module(), l.block(right)); r.Verdict != Foreign {
		t.Errorf("empty adapter but changed weights: verdict %s", r.Verdict)
	}

	zero := l
	zero.base = make([]float32, len(l.base))
	if r := check(t, c, zero.module(), zero.block(zero.merged(1, false))); r.Verdict != OK {
		t.Errorf("base of zeros: verdict %s (%s)", r.Verdict, r.Why)
	}

	// One output of 80 is wrong by a twentieth of its size: far above float32 arithmetic, far below what
	// moves the retention.
	inaccurate := slices.Clone(right)
	for i := range l.in {
		inaccurate[17*l.in+i] *= 1.001
	}
	if r := check(t, c, l.module(), l.block(inaccurate)); r.Verdict != Inaccurate {
		t.Errorf("one row scaled: verdict %s (%s)", r.Verdict, r.Why)
	}

	noisy := l.module()
	noisy.Noise = 5
	if r := check(t, c, noisy, l.block(right)); r.Verdict != Inconclusive {
		t.Errorf("noise far above the effect: verdict %s", r.Verdict)
	}
}

// Weights of subnormal float16 size are rounded to a fixed step, which is more than the type's relative error.
func TestCheckSubnormalHalf(t *testing.T) {
	run := need(t)
	c := run.NewChecker(CheckOptions{})
	defer c.Close()
	l := newLayer(256, 128, 4, 0.3, tensor.F32)
	for i := range l.base {
		l.base[i] = round(l.base[i]*5e-5, tensor.F16)
	}
	l.scale *= 5e-5
	l.dtype = tensor.F16
	if r := check(t, c, l.module(), l.block(l.merged(1, false))); r.Verdict != OK || r.RelError < 4*0x1p-11 {
		t.Errorf("verdict %s (%s), relative error %.1e", r.Verdict, r.Why, r.RelError)
	}
}

func TestCheckLongRows(t *testing.T) {
	run := need(t)
	c := run.NewChecker(CheckOptions{})
	defer c.Close()
	for _, transposed := range []bool{false, true} {
		l := newLayer(16, 32768, 2, 0.05, tensor.F32)
		l.transposed = transposed
		r := check(t, c, l.module(), l.block(l.merged(1, false)))
		if r.Verdict != OK || r.ComputeError > 1e-5 || r.RelError > 1e-5 {
			t.Errorf("verdict %s (%s), compute error %.1e, relative error %.1e", r.Verdict, r.Why, r.ComputeError, r.RelError)
		}
		near(t, "compute limit", r.ComputeLimit, 4*0x1p-24*math.Sqrt(32768), 1e-12)
	}
}

func TestCheckConcurrently(t *testing.T) {
	run := need(t)
	c := run.NewChecker(CheckOptions{RunBytes: 64 << 10})
	defer c.Close()
	var group errgroup.Group
	for i := range 8 {
		group.Go(func() error {
			l := newLayer(100+i, 120, 4, 0.05, []tensor.DType{tensor.F16, tensor.BF16}[i%2])
			r, err := c.Check(t.Context(), l.module(), l.block(l.merged(1, false)))
			if err == nil && r.Verdict != OK {
				err = errors.New(r.Why)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

func TestCheckRefusesWrongSizes(t *testing.T) {
	run := need(t)
	c := run.NewChecker(CheckOptions{})
	defer c.Close()
	l := newLayer(8, 16, 2, 0.05, tensor.BF16)
	good := l.block(l.merged(1, false))
	for name, spoil := range map[string]func(m *Module, b *Block){
		"no rows":           func(m *Module, b *Block) { m.Out = 0 },
		"short A":           func(m *Module, b *Block) { m.Terms[0].A = l.a[1:] },
		"rank 0":            func(m *Module, b *Block) { m.Terms[0].Rank = 0 },
		"short base":        func(m *Module, b *Block) { b.Base.Raw = b.Base.Raw[2:] },
		"short values":      func(m *Module, b *Block) { b.Merged.Values = make([]float32, 3) },
		"rows past the end": func(m *Module, b *Block) { b.First = 1 },
		"negative rows":     func(m *Module, b *Block) { b.Rows = -1 },
		"packed type":       func(m *Module, b *Block) { b.Merged.DType = tensor.Q4_K },
		"no noise":          func(m *Module, b *Block) { b.Merged = Weights{DType: tensor.Q8_0, Values: decode(b.Merged, 128)} },
		"no change":         func(m *Module, b *Block) { m.Terms = nil },
		"two changes":       func(m *Module, b *Block) { b.Delta = make([]float32, 128) },
	} {
		m, b := l.module(), good
		spoil(&m, &b)
		if _, err := c.Check(t.Context(), m, b); finding.Of(err) == nil || finding.Of(err).Code != "runtime.bad_module" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestInputsDependOnNameAndSeed(t *testing.T) {
	c := (&Runtime{provider: CPU}).NewChecker(CheckOptions{Seed: 1})
	d := (&Runtime{provider: CPU}).NewChecker(CheckOptions{Seed: 2})
	m := newLayer(4, 6, 1, 1, tensor.F32).module()
	x := func(c *Checker, name string) []float32 {
		m.Name = name
		a, err := c.Start(m)
		if err != nil {
			t.Fatal(err)
		}
		return a.x
	}
	if !slices.Equal(x(c, "a"), x(c, "a")) {
		t.Error("inputs are not reproducible")
	}
	if slices.Equal(x(c, "a"), x(c, "b")) || slices.Equal(x(c, "a"), x(d, "a")) {
		t.Error("inputs do not depend on name and seed")
	}
}

func BenchmarkCheck4096(b *testing.B) {
	run := need(b)
	c := run.NewChecker(CheckOptions{})
	defer c.Close()
	for _, dtype := range []tensor.DType{tensor.F32, tensor.F16, tensor.BF16} {
		l := newLayer(4096, 4096, 16, 0.03, dtype)
		block := l.block(l.merged(1, false))
		b.Run(dtype.String(), func(b *testing.B) {
			for b.Loop() {
				if r, err := c.Check(b.Context(), l.module(), block); err != nil || !r.Pass {
					b.Fatal(r, err)
				}
			}
		})
	}
}
