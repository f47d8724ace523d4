package adapter

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

func gauss(seed uint64, rows, cols int64) Factor {
	r := rand.New(rand.NewPCG(seed, 7))
	v := make([]float32, rows*cols)
	for i := range v {
		v[i] = float32(r.NormFloat64())
	}
	return FromValues(rows, cols, v)
}

func wide(f Factor) []float64 {
	v, err := f.Load()
	if err != nil {
		panic(err)
	}
	return widened(v)
}

// rotations are n/b blocks of rotations in the plane of each pair of neighbours.
func planes(n int64, angle float64) Factor {
	v := make([]float32, n*2)
	for i := int64(0); i < n; i += 2 {
		a := angle * float64(1+i)
		c, s := float32(math.Cos(a)), float32(math.Sin(a))
		copy(v[i*2:], []float32{c, s, -s, c})
	}
	return FromValues(n, 2, v)
}

const (
	outs, ins = 6, 4
	taps      = 3
)

// plain writes what an update does to a canonical [outs, ins·k] weight, straight from its definition.
type plain func(w []float64) []float64

func each(w []float64, cols int64, f func(i, j int64, x float64) float64) []float64 {
	out := make([]float64, len(w))
	for k, x := range w {
		out[k] = f(int64(k)/cols, int64(k)%cols, x)
	}
	return out
}

// cases are one update of every kind for a linear layer, with what it means.
func cases() map[string]struct {
	u Update
	f plain
} {
	a, b, a2, b2 := gauss(1, 2, ins), gauss(2, outs, 2), gauss(3, 2, ins), gauss(4, outs, 2)
	ab, ab2 := multiply(wide(b), wide(a), outs, 2, ins), multiply(wide(b2), wide(a2), outs, 2, ins)
	half := Scale{Value: 0.5}
	k1, k2 := gauss(5, 3, 2), gauss(6, 2, 2)
	kron := make([]float64, outs*ins)
	for i := range int64(outs) {
		for j := range int64(ins) {
			kron[i*ins+j] = wide(k1)[i/2*2+j/2] * wide(k2)[i%2*2+j%2]
		}
	}
	value, l := gauss(7, outs, ins), gauss(8, 1, outs)
	lin := gauss(9, 1, ins)
	in2 := gauss(10, ins, 2)
	square := multiply(wide(in2), wide(a2), ins, 2, ins)
	v := gauss(11, ins, 2)
	r, ro := wide(planes(ins, 0.3)), wide(planes(outs, 0.2))
	magnitude, across := gauss(12, 1, outs), gauss(13, 1, ins)
	base := func(k Kind) Update {
		return Update{Target: Target{Module: "m", Param: "weight"}, Kind: k, Layer: Linear, Scale: half}
	}
	pair := func(k Kind) Update {
		u := base(k)
		u.A, u.B, u.Rank = a, b, 2
		return u
	}
	loha := pair(LoHa)
	loha.A2, loha.B2 = a2, b2
	lokr := base(LoKr)
	lokr.Kron = [2]Side{{Full: k1}, {Full: k2}}
	products := base(LoKr)
	products.Kron = [2]Side{{A: gauss(20, 1, 2), B: gauss(21, 3, 1)}, {A: gauss(22, 1, 2), B: gauss(23, 2, 1)}}
	p1, p2 := multiply(wide(products.Kron[0].B), wide(products.Kron[0].A), 3, 1, 2), multiply(wide(products.Kron[1].B), wide(products.Kron[1].A), 2, 1, 2)
	fullUpdate := base(Full)
	fullUpdate.Value = value
	ia3out, ia3in := base(IA3), base(IA3)
	ia3out.Value, ia3in.Value, ia3in.Input = l, lin, true
	glora := pair(GLoRA)
	glora.A2, glora.B2 = a2, in2
	hra := base(HRA)
	hra.Value, hra.Input = v, true
	oft, oftOut := base(OFT), base(OFT)
	oft.Value, oft.Input, oft.Turn = planes(ins, 0.3), true, &Turn{Block: 2, Stages: [][]int64{nil}}
	oftOut.Value, oftOut.Turn, oftOut.Magnitude = planes(outs, 0.2), &Turn{Block: 2, Stages: [][]int64{nil}}, magnitude
	doraOut, doraIn := pair(DoRA), pair(DoRA)
	doraOut.Magnitude = magnitude
	doraIn.Magnitude, doraIn.Input = across, true
	dense := loha
	dense.Magnitude, dense.Input = across, true
	vera := pair(VeRA)
	vera.A = gauss(1, 2, ins) // the same values with two columns more
	vera.A = Stacked(a.Transpose(), gauss(30, 2, 2)).Transpose()
	norm := func(v []float64, m []float64, input bool) []float64 {
		var sums [outs]float64
		for k, x := range v {
			if input {
				sums[k%ins] += x * x
			} else {
				sums[k/ins] += x * x
			}
		}
		return each(v, ins, func(i, j int64, x float64) float64 {
			if input {
				i = j
			}
			return x * m[i] / math.Sqrt(sums[i])
		})
	}
	plus := func(w, d []float64, s float64) []float64 {
		return each(w, ins, func(i, j int64, x float64) float64 { return x + s*d[i*ins+j] })
	}
	return map[string]struct {
		u Update
		f plain
	}{
		"LoHa": {loha, func(w []float64) []float64 {
			return each(w, ins, func(i, j int64, x float64) float64 { return x + 0.5*ab[i*ins+j]*ab2[i*ins+j] })
		}},
		"LoKr": {lokr, func(w []float64) []float64 { return plus(w, kron, 0.5) }},
		"LoKr of products": {products, func(w []float64) []float64 {
			return each(w, ins, func(i, j int64, x float64) float64 { return x + 0.5*p1[i/2*2+j/2]*p2[i%2*2+j%2] })
		}},
		"full": {fullUpdate, func(w []float64) []float64 { return plus(w, wide(value), 0.5) }},
		"VeRA": {vera, func(w []float64) []float64 { return plus(w, ab, 0.5) }},
		"HiRA": {pair(HiRA), func(w []float64) []float64 {
			return each(w, ins, func(i, j int64, x float64) float64 { return x + 0.5*x*ab[i*ins+j] })
		}},
		"GLoRA": {glora, func(w []float64) []float64 {
			return plus(plus(w, ab, 0.5), multiply(w, square, outs, ins, ins), 0.5)
		}},
		"(IA)³ of outputs": {ia3out, func(w []float64) []float64 {
			return each(w, ins, func(i, j int64, x float64) float64 { return x + 0.5*x*(wide(l)[i]-1) })
		}},
		"(IA)³ of inputs": {ia3in, func(w []float64) []float64 {
			return each(w, ins, func(i, j int64, x float64) float64 { return x + 0.5*x*(wide(lin)[j]-1) })
		}},
		"HRA": {hra, func(w []float64) []float64 {
			turned := w
			for k := range int64(2) {
				h := make([]float64, ins*ins)
				size := 0.0
				for i := range int64(ins) {
					size += wide(v)[i*2+k] * wide(v)[i*2+k]
				}
				for i := range int64(ins) {
					h[i*ins+i] = 1
					for j := range int64(ins) {
						h[i*ins+j] -= 2 * wide(v)[i*2+k] * wide(v)[j*2+k] / size
					}
				}
				turned = multiply(turned, h, outs, ins, ins)
			}
			return plus(w, plus(turned, w, -1), 0.5)
		}},
		"OFT of inputs": {oft, func(w []float64) []float64 {
			turned := each(w, ins, func(i, j int64, _ float64) float64 {
				at := j / 2 * 2
				return w[i*ins+at]*r[at*2+j%2] + w[i*ins+at+1]*r[(at+1)*2+j%2]
			})
			return plus(w, plus(turned, w, -1), 0.5)
		}},
		"OFT of outputs, rescaled": {oftOut, func(w []float64) []float64 {
			turned := each(w, ins, func(i, j int64, _ float64) float64 {
				at := i / 2 * 2
				return wide(magnitude)[i] * (w[at*ins+j]*ro[at*2+i%2] + w[(at+1)*ins+j]*ro[(at+1)*2+i%2])
			})
			return plus(w, plus(turned, w, -1), 0.5)
		}},
		"DoRA by output": {doraOut, func(w []float64) []float64 { return norm(plus(w, ab, 0.5), wide(magnitude), false) }},
		"DoRA by input":  {doraIn, func(w []float64) []float64 { return norm(plus(w, ab, 0.5), wide(across), true) }},
		"DoRA by input over LoHa": {dense, func(w []float64) []float64 {
			return norm(each(w, ins, func(i, j int64, x float64) float64 { return x + 0.5*ab[i*ins+j]*ab2[i*ins+j] }), wide(across), true)
		}},
	}
}

// An arrangement is a way in which a base keeps the canonical weight: rows of the tensor, from a first row or column
// on, perhaps turned.
type arrangement struct {
	name  string
	place naming.Place
	frame Frame
	at    func(i, j int64) int64 // where canonical row i, column j lies
}

func layouts() []arrangement {
	rope := func(i int64) int64 { return naming.RotaryRow(i, outs, 1) }
	return []arrangement{
		{"as it is", naming.Place{}, Frame{outs, ins}, func(i, j int64) int64 { return i*ins + j }},
		{"transposed", naming.Place{Transposed: true}, Frame{ins, outs}, func(i, j int64) int64 { return j*outs + i }},
		{"rows of a fused tensor", naming.Place{RowOffset: 2, Rows: outs}, Frame{outs + 5, ins}, func(i, j int64) int64 { return (i+2)*ins + j }},
		{"columns of a fused transposed tensor", naming.Place{RowOffset: 2, Rows: outs, Transposed: true}, Frame{ins, outs + 5}, func(i, j int64) int64 { return j*(outs+5) + i + 2 }},
		{"an expert", naming.Place{Expert: 1, Experts: 2}, Frame{2 * outs, ins}, func(i, j int64) int64 { return (i+outs)*ins + j }},
		{"reordered rows", naming.Place{Heads: 1}, Frame{outs, ins}, func(i, j int64) int64 { return rope(i)*ins + j }},
		{"reordered columns", naming.Place{Heads: 1, Transposed: true}, Frame{ins, outs}, func(i, j int64) int64 { return j*outs + rope(i) }},
	}
}

// bound binds an update and lets it prepare over w, slab rows at a time.
func bound(t *testing.T, u Update, s arrangement, w []float32, slab int64) Op {
	t.Helper()
	shape := tensor.Shape{s.frame.Rows, s.frame.Cols}
	if s.place.Experts > 0 {
		shape = tensor.Shape{s.place.Experts, s.frame.Rows / s.place.Experts, s.frame.Cols}
	}
	op, err := Bind(&u, s.place, tensor.Spec{Name: "w", DType: tensor.F32, Shape: shape}, s.frame, Rounding{})
	if err != nil {
		t.Fatal(err)
	}
	if err := op.Load(); err != nil {
		t.Fatal(err)
	}
	if op.Columns() {
		first := int64(0)
		err := op.Prepare(func() ([]float32, int64, error) {
			n := min(slab, s.frame.Rows-first)
			rows := slices.Clone(w[first*s.frame.Cols : (first+n)*s.frame.Cols])
			first += n
			return rows, first - n, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return op
}

// TestKinds applies every kind of update in every layout, compares Exact with the definition and Apply with
// Exact, and checks that slabs do not change a bit and that nothing beside the module's block is touched.
func TestKinds(t *testing.T) {
	for name, c := range cases() {
		for _, s := range layouts() {
			t.Run(name+", "+s.name, func(t *testing.T) {
				n := s.frame.Rows * s.frame.Cols
				w, err := gauss(99, s.frame.Rows, s.frame.Cols).Load()
				if err != nil {
					t.Fatal(err)
				}
				canonical := make([]float64, outs*ins)
				for k := range canonical {
					canonical[k] = float64(w[s.at(int64(k)/ins, int64(k)%ins)])
				}
				want := widened(w)
				for k, x := range c.f(canonical) {
					want[s.at(int64(k)/ins, int64(k)%ins)] = x
				}
				op := bound(t, c.u, s, w, s.frame.Rows)
				exact := widened(w)
				op.Exact(exact, 0)
				got := slices.Clone(w)
				op.Apply(got, 0)
				for k := range n {
					if d := math.Abs(exact[k] - want[k]); d > 2e-6*(1+math.Abs(want[k])) {
						t.Fatalf("value %d is %g, by definition %g", k, exact[k], want[k])
					}
					if d := math.Abs(float64(got[k]) - exact[k]); d > 2e-5*(1+math.Abs(exact[k])) {
						t.Fatalf("Apply makes value %d %g, Exact %g", k, got[k], exact[k])
					}
					if want[k] == float64(w[k]) && got[k] != w[k] {
						t.Fatalf("value %d does not belong to the module and changed", k)
					}
				}
				for slab := int64(1); slab < s.frame.Rows; slab++ {
					op := bound(t, c.u, s, w, slab)
					cut := slices.Clone(w)
					for first := int64(0); first < s.frame.Rows; first += slab {
						op.Apply(cut[first*s.frame.Cols:min(first+slab, s.frame.Rows)*s.frame.Cols], first)
					}
					if !slices.Equal(cut, got) {
						t.Fatalf("slabs of %d rows give other values", slab)
					}
				}
			})
		}
	}
}

// TestStrength checks that 0 times an adapter is the base, for DoRA too, and that half of it is half of the
// way.
func TestStrength(t *testing.T) {
	s := layouts()[0]
	w, _ := gauss(99, outs, ins).Load()
	for name, c := range cases() {
		whole := c.u
		change := func(user float64) []float64 {
			u := whole
			u.Scale = u.Scale.Times(user)
			got := widened(w)
			bound(t, u, s, w, outs).Exact(got, 0)
			for i := range got {
				got[i] -= float64(w[i])
			}
			return got
		}
		none, half, all := change(0), change(0.5), change(1)
		for i := range none {
			if none[i] != 0 || math.Abs(half[i]-all[i]/2) > 1e-6 {
				t.Fatalf("%s: value %d changes by %g, %g and %g", name, i, none[i], half[i], all[i])
			}
		}
	}
}

// TestFactored checks the exact low-rank forms of products of both kinds.
func TestFactored(t *testing.T) {
	for name, rank := range map[string]int{"LoKr": 4, "LoKr of products": 1, "LoHa": 4} {
		c := cases()[name]
		v, ok := c.u.Factored()
		if !ok || v.Kind != LowRank || v.Rank != rank || v.A.Rows != int64(rank) {
			t.Fatalf("%s: rank %d (A %d), expected %d", name, v.Rank, v.A.Rows, rank)
		}
		got := multiply(wide(v.B), wide(v.A), outs, int64(rank), ins)
		for i, want := range c.f(make([]float64, outs*ins)) {
			if math.Abs(0.5*got[i]-want) > 1e-5 {
				t.Fatalf("%s: value %d is %g, expected %g", name, i, 0.5*got[i], want)
			}
		}
	}
}

// TestGatherOutputs cuts every update to some of its rows and compares with those rows of the whole.
func TestGatherOutputs(t *testing.T) {
	rows := []int64{4, 1, 2}
	w, _ := gauss(99, outs, ins).Load()
	var part []float32
	for _, r := range rows {
		part = append(part, w[r*ins:(r+1)*ins]...)
	}
	for name, c := range cases() {
		v, ok := c.u.GatherOutputs(3, func(i int64) int64 { return rows[i] })
		apart := name != "OFT of outputs, rescaled" && name != "DoRA by input" && name != "DoRA by input over LoHa"
		if ok != apart {
			t.Errorf("%s: %v", name, ok)
		}
		if !ok {
			continue
		}
		got := widened(part)
		bound(t, v, arrangement{frame: Frame{3, ins}}, part, 3).Exact(got, 0)
		want := c.f(widened(w))
		for i := range got {
			if x := want[rows[i/ins]*ins+int64(i%ins)]; math.Abs(got[i]-x) > 1e-5 {
				t.Errorf("%s: value %d is %g, in the whole %g", name, i, got[i], x)
				break
			}
		}
	}
}

// TestConvolution checks the kinds that act on channels where a kernel has several taps.
func TestConvolution(t *testing.T) {
	spec := tensor.Spec{Name: "w", DType: tensor.F32, Shape: tensor.Shape{outs, ins, taps}}
	w, _ := gauss(99, outs, ins*taps).Load()
	for name, c := range cases() {
		if !slices.Contains([]string{"(IA)³ of inputs", "(IA)³ of outputs", "OFT of outputs, rescaled"}, name) {
			continue
		}
		if l := c.u.LayerIn(naming.Place{}, spec.Shape); l != Conv {
			t.Fatalf("layer %q", l)
		}
		op, err := Bind(&c.u, naming.Place{}, spec, Frame{outs, ins * taps}, Rounding{})
		if err != nil {
			t.Fatal(err)
		}
		if err := op.Load(); err != nil {
			t.Fatal(err)
		}
		if op.Columns() {
			done := false
			if err := op.Prepare(func() ([]float32, int64, error) {
				if done {
					return nil, 0, nil
				}
				done = true
				return w, 0, nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		got := widened(w)
		op.Exact(got, 0)
		for tap := range taps { // each tap is a weight of its own
			one := make([]float64, outs*ins)
			for i := range one {
				one[i] = float64(w[i*taps+tap])
			}
			for i, x := range c.f(one) {
				if math.Abs(got[i*taps+tap]-x) > 1e-6 {
					t.Fatalf("%s: value %d of tap %d is %g, expected %g", name, i, tap, got[i*taps+tap], x)
				}
			}
		}
	}
}

// TestMisfits checks that an update for another size is an error that names both.
func TestMisfits(t *testing.T) {
	for name, c := range cases() {
		for _, f := range []Frame{{outs + 2, ins + 2}, {outs + 1, ins}, {outs, ins + 1}} {
			spec := tensor.Spec{Name: "w", DType: tensor.F32, Shape: tensor.Shape{f.Rows, f.Cols}}
			_, err := Bind(&c.u, naming.Place{}, spec, f, Rounding{})
			free := f.Rows != outs && c.u.Input && (c.u.Kind == IA3 || c.u.Kind == OFT || c.u.Kind == HRA) && f.Cols == ins ||
				f.Cols != ins && f.Rows == outs && !c.u.Input && (c.u.Kind == IA3 || c.u.Kind == OFT) ||
				c.u.Kind == VeRA && f.Rows == outs && f.Cols <= ins+2
			if got := finding.Of(err); free != (err == nil) || err != nil && got.Code != "adapter.shape_mismatch" {
				t.Errorf("%s in %v: %v", name, f, err)
			}
		}
	}
}
