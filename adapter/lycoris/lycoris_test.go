package lycoris

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// random is a tensor of normal values.
func random(seed uint64, shape ...int64) *tensor.Tensor {
	n, _ := tensor.Shape(shape).Elements()
	r := rand.New(rand.NewPCG(seed, 3))
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(r.NormFloat64())
	}
	return of(v, shape...)
}

func of(v []float32, shape ...int64) *tensor.Tensor {
	var b []byte
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
	}
	return &tensor.Tensor{Spec: tensor.Spec{Name: "t", DType: tensor.F32, Shape: shape}, Src: bytes.NewReader(b), Size: int64(len(b))}
}

func one(x float32) *tensor.Tensor { return of([]float32{x}) }

func read(t *tensor.Tensor) []float64 {
	v, err := adapter.ReadFloats(t)
	if err != nil {
		panic(err)
	}
	out := make([]float64, len(v))
	for i, x := range v {
		out[i] = float64(x)
	}
	return out
}

// index is the value of a tensor at a place.
func index(t *tensor.Tensor) func(at ...int64) float64 {
	v := read(t)
	return func(at ...int64) float64 {
		k := int64(0)
		for i, x := range at {
			k = k*t.Shape[i] + x
		}
		return v[k]
	}
}

type tensors map[string]*tensor.Tensor

func decode(t *testing.T, ts tensors) []adapter.Update {
	t.Helper()
	for name, x := range ts {
		x.Name = "m." + name
	}
	us, err := Decode(Module{Name: "m", File: "f", Tensors: ts})
	if err != nil {
		t.Fatal(err)
	}
	return us
}

// change is what updates do to a weight of rows × cols.
func change(t *testing.T, us []adapter.Update, shape tensor.Shape, w []float64) []float64 {
	t.Helper()
	out := slices.Clone(w)
	rows, cols, _ := shape.Matrix()
	for i := range us {
		op, err := adapter.Bind(&us[i], naming.Place{}, tensor.Spec{Name: "w", DType: tensor.F32, Shape: shape}, adapter.Frame{Rows: rows, Cols: cols}, adapter.Rounding{})
		if err != nil {
			t.Fatal(err)
		}
		if err := op.Load(); err != nil {
			t.Fatal(err)
		}
		if op.Columns() {
			v := make([]float32, len(out))
			for i, x := range out {
				v[i] = float32(x)
			}
			left := v
			if err := op.Prepare(func() ([]float32, int64, error) {
				rows := left
				left = nil
				return rows, 0, nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		op.Exact(out, 0)
	}
	return out
}

func same(t *testing.T, what string, got, want []float64) {
	t.Helper()
	for i := range want {
		if !(math.Abs(got[i]-want[i]) <= 1e-5*(1+math.Abs(want[i]))) {
			t.Fatalf("%s: value %d is %g, expected %g", what, i, got[i], want[i])
		}
	}
}

// fill makes the values of a weight [out, in, k] from a formula.
func fill(out, in, k int64, f func(o, i, k int64) float64) []float64 {
	var v []float64
	for o := range out {
		for i := range in {
			for x := range k {
				v = append(v, f(o, i, x))
			}
		}
	}
	return v
}

// TestDifferences checks the algorithms that add to the weight, against their formulas summed index by index.
func TestDifferences(t *testing.T) {
	const out, in, k, r = 6, 4, 3, 2
	sum := func(f func(p, q int64) float64) (s float64) {
		for p := range int64(r) {
			for q := range int64(r) {
				s += f(p, q)
			}
		}
		return s
	}
	up, down, mid := random(1, out, r, 1), random(2, r, in, 1), random(3, r, r, k)
	t1, t2 := random(4, r, r, k), random(5, r, r, k)
	wa1, wb1, wa2, wb2 := random(6, r, out), random(7, r, in), random(8, r, out), random(9, r, in)
	u, d, m := index(up), index(down), index(mid)
	tucker := func(core, a, b *tensor.Tensor) func(o, i, k int64) float64 {
		t, wa, wb := index(core), index(a), index(b)
		return func(o, i, k int64) float64 {
			return sum(func(p, q int64) float64 { return t(p, q, k) * wa(p, o) * wb(q, i) })
		}
	}
	k1, k2 := random(10, 3, 2), random(11, 2, 2, k)
	ka, kb := random(12, r, 2), random(13, r, 2)
	core := random(14, r, r, k)
	line := random(15, 2, r)
	lineB := random(16, r, 2)
	one1, one2 := random(17, 3, 1), random(18, 1, 2)
	large, inf := float32(1e10), float32(math.Inf(1))
	kron := func(w2 func(o, i, k int64) float64, s float64) []float64 {
		w1 := index(k1)
		return fill(out, in, k, func(o, i, x int64) float64 { return s * w1(o/2, i/2) * w2(o%2, i%2, x) })
	}
	whole := func(o, i, x int64) float64 { return index(k2)(o, i, x) }
	diff := random(19, out, in, k)
	for name, c := range map[string]struct {
		ts   tensors
		want []float64
		k    int64
	}{
		"LoCon": {tensors{"lora_up.weight": up, "lora_down.weight": random(20, r, in, k), "alpha": one(1)},
			fill(out, in, k, func(o, i, x int64) float64 {
				return 0.5 * (u(o, 0, 0)*index(random(20, r, in, k))(0, i, x) + u(o, 1, 0)*index(random(20, r, in, k))(1, i, x))
			}), k},
		// sd-scripts adds up·down to every tap and leaves the core out.
		"LoCon with a core": {tensors{"lora_up.weight": up, "lora_down.weight": down, "lora_mid.weight": mid, "alpha": one(1)},
			fill(out, in, k, func(o, i, x int64) float64 {
				return 0.5 * sum(func(p, q int64) float64 { return u(o, p, 0) * m(p, q, x) * d(q, i, 0) })
			}), k},
		// LyCORIS's own merge takes the scale twice.
		"LoHa with cores": {tensors{"hada_w1_a": wa1, "hada_w1_b": wb1, "hada_w2_a": wa2, "hada_w2_b": wb2, "hada_t1": t1, "hada_t2": t2, "alpha": one(1)},
			fill(out, in, k, func(o, i, x int64) float64 {
				return 0.5 * tucker(t1, wa1, wb1)(o, i, x) * tucker(t2, wa2, wb2)(o, i, x)
			}), k},
		"LoHa without alpha": {tensors{"hada_w1_a": random(21, out, r), "hada_w1_b": wb1, "hada_w2_a": random(22, out, r), "hada_w2_b": wb2},
			fill(out, in, 1, func(o, i, _ int64) float64 {
				x, y := index(random(21, out, r)), index(random(22, out, r))
				a, b := index(wb1), index(wb2)
				return (x(o, 0)*a(0, i) + x(o, 1)*a(1, i)) * (y(o, 0)*b(0, i) + y(o, 1)*b(1, i))
			}), 1},
		"LoKr of whole matrices":             {tensors{"lokr_w1": k1, "lokr_w2": k2, "alpha": one(4)}, kron(whole, 1), k},
		"LoKr with ai-toolkit's alpha":       {tensors{"lokr_w1": k1, "lokr_w2": k2, "alpha": one(large)}, kron(whole, 1), k},
		"LoKr with that alpha in float16":    {tensors{"lokr_w1": k1, "lokr_w2": k2, "alpha": one(inf)}, kron(whole, 1), k},
		"LoKr with a core":                   {tensors{"lokr_w1": k1, "lokr_w2_a": ka, "lokr_w2_b": kb, "lokr_t2": core, "alpha": one(1)}, kron(tucker(core, ka, kb), 0.5), k},
		"LoKr of a product, rank of its own": {tensors{"lokr_w1": k1, "lokr_w2_a": line, "lokr_w2_b": lineB, "alpha": one(1)}, kron1(k1, line, lineB, 0.5), 1},
		// stable-diffusion.cpp takes 1 for alpha / rank where the rank is 1.
		"LoKr of rank 1": {tensors{"lokr_w1_a": one1, "lokr_w1_b": one2, "lokr_w2": random(23, 2, 2), "alpha": one(0.25)},
			fill(out, in, 1, func(o, i, _ int64) float64 {
				return 0.25 * index(one1)(o/2, 0) * index(one2)(0, i/2) * index(random(23, 2, 2))(o%2, i%2)
			}), 1},
		"full": {tensors{"diff": diff}, read(diff), k},
	} {
		t.Run(name, func(t *testing.T) {
			us := decode(t, c.ts)
			if len(us) != 1 || us[0].Target != (adapter.Target{Module: "m", Param: "weight"}) {
				t.Fatalf("%d updates, %v", len(us), us)
			}
			shape := tensor.Shape{out, in, c.k}
			same(t, name, change(t, us, shape, make([]float64, len(c.want))), c.want)
			if len(us[0].Tensors) < len(c.ts)-1 {
				t.Errorf("made of %v", us[0].Tensors)
			}
			if v, ok := us[0].Factored(); ok {
				if s := v.ConvShape(); c.k > 1 && (len(s) != 3 || s[1] != in || s[2] != c.k) {
					t.Errorf("its A has the shape %v", s)
				}
				same(t, "factored", change(t, []adapter.Update{v}, shape, make([]float64, len(c.want))), c.want)
			}
		})
	}
}

func kron1(k1, a, b *tensor.Tensor, s float64) []float64 {
	w1, x, y := index(k1), index(a), index(b)
	return fill(6, 4, 1, func(o, i, _ int64) float64 {
		return s * w1(o/2, i/2) * (x(o%2, 0)*y(0, i%2) + x(o%2, 1)*y(1, i%2))
	})
}

// TestGLoRA checks both layouts of the files.
func TestGLoRA(t *testing.T) {
	const out, in, r = 5, 4, 2
	a1, a2, b1, b2 := random(1, in, r), random(2, r, in), random(3, out, r), random(4, r, in)
	w := random(5, out, in)
	x, p, q, b, c := index(w), index(a1), index(a2), index(b1), index(b2)
	want := fill(out, in, 1, func(o, i, _ int64) float64 {
		s := 0.0
		for k := range int64(r) {
			s += b(o, k) * c(k, i)
			for j := range int64(in) {
				s += x(o, j) * p(j, k) * q(k, i)
			}
		}
		return x(o, i) + 1.5*s
	})
	for name, ts := range map[string]tensors{
		"new": {"a1.weight": a1, "a2.weight": a2, "b1.weight": b1, "b2.weight": b2, "alpha": one(3)},
		"old": {"a1.weight": a2, "a2.weight": a1, "b1.weight": b2, "b2.weight": b1, "alpha": one(3)},
	} {
		same(t, name, change(t, decode(t, ts), tensor.Shape{out, in}, read(w)), want)
	}
}

// gram are the products of a weight's columns, which no rotation of outputs changes.
func gram(w []float64, out, in int) []float64 {
	g := make([]float64, in*in)
	for i := range in {
		for j := range in {
			for o := range out {
				g[i*in+j] += w[o*in+i] * w[o*in+j]
			}
		}
	}
	return g
}

// TestRotations checks OFT and BOFT: rotations keep all products of columns, a small block has its angle in
// closed form, a bound holds for all blocks together, and rescale comes last.
func TestRotations(t *testing.T) {
	const out, in = 8, 3
	shape, w := tensor.Shape{out, in}, random(1, out, in)
	base := read(w)
	for name, ts := range map[string]tensors{
		"OFT":         {"oft_blocks": random(2, 2, 4, 4)},
		"OFT, bound":  {"oft_blocks": random(2, 2, 4, 4), "alpha": one(0.01)},
		"old name":    {"oft_diag": random(2, 4, 2, 2)},
		"BOFT":        {"oft_blocks": random(3, 3, 4, 2, 2)},
		"BOFT, bound": {"oft_blocks": random(3, 2, 2, 4, 4), "alpha": one(0.05)},
	} {
		got := change(t, decode(t, ts), shape, base)
		same(t, name, gram(got, out, in), gram(base, out, in))
		if slices.Equal(got, base) {
			t.Errorf("%s: nothing changed", name)
		}
	}
	// A block of 2 × 2 with the skew part [0 q; −q 0] turns by 2·arctan q.
	turn := func(q float64, rescale float64) []float64 {
		c, s := math.Cos(2*math.Atan(q)), math.Sin(2*math.Atan(q))
		return fill(2, in, 1, func(o, i, _ int64) float64 {
			x, y := base[i], base[in+i]
			if o == 0 { // R = [c s; −s c], and rows become Rᵀ·W
				return rescale * (c*x - s*y)
			}
			return rescale * (s*x + c*y)
		})
	}
	block := of([]float32{0, 0.3, -0.2, 0}, 1, 2, 2)
	two := tensor.Shape{2, in}
	same(t, "angle", change(t, decode(t, tensors{"oft_blocks": block}), two, base[:2*in]), turn(0.5, 1))
	same(t, "rescaled", change(t, decode(t, tensors{"oft_blocks": block, "rescale": of([]float32{2, 2}, 2, 1)}), two, base[:2*in]), turn(0.5, 2))
	// The norm of the skew part is q·√2, the bound alpha times the outputs: ComfyUI leaves the outputs out.
	same(t, "bound", change(t, decode(t, tensors{"oft_blocks": block, "alpha": one(0.1)}), two, base[:2*in]), turn(0.2/math.Sqrt2, 1))
	same(t, "alpha 0 is no bound", change(t, decode(t, tensors{"oft_blocks": block, "alpha": one(0)}), two, base[:2*in]), turn(0.5, 1))
	half := decode(t, tensors{"oft_blocks": block})
	half[0].Scale = half[0].Scale.Times(0.5)
	want := turn(0.5, 1)
	for i := range want { // ComfyUI squares the strength
		want[i] = base[i] + 0.5*(want[i]-base[i])
	}
	same(t, "half the strength", change(t, half, two, base[:2*in]), want)
}

// TestMagnitudes checks that the axis of dora_scale is the one its shape says.
func TestMagnitudes(t *testing.T) {
	const out, in = 4, 4
	w, up, down := random(1, out, in), random(2, out, 2), random(3, 2, in)
	m := random(4, out)
	v := change(t, decode(t, tensors{"lora_up.weight": up, "lora_down.weight": down}), tensor.Shape{out, in}, read(w))
	scaled := func(input bool) []float64 {
		return fill(out, in, 1, func(o, i, _ int64) float64 {
			sum, at := 0.0, o
			for k := range int64(4) {
				if input {
					sum += v[k*in+i] * v[k*in+i]
				} else {
					sum += v[o*in+k] * v[o*in+k]
				}
			}
			if input {
				at = i
			}
			return index(m)(at) * v[o*in+i] / math.Sqrt(sum)
		})
	}
	values, _ := adapter.ReadFloats(m)
	for name, c := range map[string]struct {
		scale *tensor.Tensor
		want  []float64
	}{
		"[out, 1]": {of(values, out, 1), scaled(false)},
		"[1, in]":  {of(values, 1, in), scaled(true)},
		"[out]":    {of(values, out), scaled(false)},
	} {
		us := decode(t, tensors{"lora_up.weight": up, "lora_down.weight": down, "dora_scale": c.scale})
		same(t, name, change(t, us, tensor.Shape{out, in}, read(w)), c.want)
		if us[0].Form() != adapter.OnBase {
			t.Errorf("%s: form %s", name, us[0].Form())
		}
	}
	full := decode(t, tensors{"diff": random(7, out, in), "dora_scale": of(values, 1, in)})
	if full[0].Form() != adapter.OnBase || !full[0].Input || !full[0].Magnitude.Present() {
		t.Error("the magnitudes of a full difference are gone")
	}
}

// TestVectors checks (IA)³, norms and biases.
func TestVectors(t *testing.T) {
	const out, in = 3, 2
	w, l := random(1, out, in), random(2, in)
	flag := &tensor.Tensor{Spec: tensor.Spec{DType: tensor.Bool, Shape: tensor.Shape{}}, Src: bytes.NewReader([]byte{1}), Size: 1}
	x, y := index(w), index(l)
	got := change(t, decode(t, tensors{"weight": l, "on_input": flag}), tensor.Shape{out, in}, read(w))
	same(t, "(IA)³", got, fill(out, in, 1, func(o, i, _ int64) float64 { return x(o, i) * (1 + y(i)) }))

	us := decode(t, tensors{"w_norm": random(3, 4), "b_norm": random(4, 4)})
	if len(us) != 2 || us[0].Param != "weight" || us[1].Param != "bias" || us[0].Kind != adapter.Bias || us[1].Scale.Value != 1 {
		t.Errorf("norms became %+v", us)
	}
	us = decode(t, tensors{"lora_up.weight": random(5, 4, 2), "lora_down.weight": random(6, 2, 4), "diff_b": random(7, 4), "alpha": one(8)})
	if len(us) != 2 || us[0].Scale.Value != 4 || us[1].Kind != adapter.Bias || us[1].Scale.Value != 1 {
		t.Errorf("a LoRA with a bias became %+v", us)
	}
	us = decode(t, tensors{"diff": random(8, 5), "diff_b": random(9, 5)})
	if len(us) != 2 || us[0].Kind != adapter.Bias || us[0].Value.Cols != 5 {
		t.Errorf("the difference of a norm became %+v", us)
	}
}

// TestBroken checks the errors for modules that are incomplete, do not fit together or hold more than is
// understood.
func TestBroken(t *testing.T) {
	int8s := func(shape ...int64) *tensor.Tensor {
		return &tensor.Tensor{Spec: tensor.Spec{DType: tensor.I8, Shape: shape}, Src: bytes.NewReader(make([]byte, 64)), Size: 64}
	}
	for name, c := range map[string]struct {
		ts   tensors
		code string
	}{
		"half a pair":            {tensors{"lora_up.weight": random(1, 4, 2)}, "adapter.missing_pair"},
		"half of LoHa":           {tensors{"hada_w1_a": random(1, 4, 2), "hada_w1_b": random(1, 2, 4)}, "adapter.missing_pair"},
		"LoKr without w2":        {tensors{"lokr_w1": random(1, 4, 2)}, "adapter.missing_pair"},
		"ranks differ":           {tensors{"lora_up.weight": random(1, 4, 2), "lora_down.weight": random(1, 3, 4)}, "adapter.rank_mismatch"},
		"LoHa of two sizes":      {tensors{"hada_w1_a": random(1, 4, 2), "hada_w1_b": random(1, 2, 4), "hada_w2_a": random(1, 4, 2), "hada_w2_b": random(1, 2, 5)}, "adapter.shape_mismatch"},
		"a core that misfits":    {tensors{"lora_up.weight": random(1, 4, 2), "lora_down.weight": random(1, 3, 4), "lora_mid.weight": random(1, 2, 2, 3)}, "adapter.shape_mismatch"},
		"GLoRA misfit":           {tensors{"a1.weight": random(1, 4, 2), "a2.weight": random(1, 3, 4), "b1.weight": random(1, 4, 2), "b2.weight": random(1, 2, 4)}, "adapter.rank_mismatch"},
		"blocks not square":      {tensors{"oft_blocks": random(1, 2, 3, 4)}, "adapter.shape_mismatch"},
		"too many stages":        {tensors{"oft_blocks": random(1, 3, 2, 2, 2)}, "adapter.shape_mismatch"},
		"magnitudes of no axis":  {tensors{"diff": random(1, 4, 4), "dora_scale": random(1, 3, 1)}, "adapter.shape_mismatch"},
		"magnitudes of a turn":   {tensors{"oft_blocks": random(1, 2, 2, 2), "dora_scale": random(1, 4, 1)}, "adapter.unsupported_feature"},
		"alpha is a vector":      {tensors{"lora_up.weight": random(1, 4, 2), "lora_down.weight": random(1, 2, 4), "alpha": random(1, 2)}, "adapter.bad_alpha"},
		"alpha is infinite":      {tensors{"lora_up.weight": random(1, 4, 2), "lora_down.weight": random(1, 2, 4), "alpha": one(float32(math.Inf(1)))}, "adapter.bad_alpha"},
		"integers":               {tensors{"diff": int8s(4, 4)}, "adapter.bad_dtype"},
		"an alpha alone":         {tensors{"alpha": one(1)}, "adapter.unsupported_feature"},
		"something else with it": {tensors{"diff": random(1, 4, 4), "diff_m": random(1, 4, 4)}, "adapter.unsupported_feature"},
		"an empty difference":    {tensors{"diff": random(1, 0, 4)}, "adapter.shape_mismatch"},
	} {
		for n, x := range c.ts {
			x.Name = n
		}
		_, err := Decode(Module{Name: "m", File: "f", Tensors: c.ts})
		if f := finding.Of(err); f == nil || f.Code != c.code || f.Tensor == "" && f.Module == "" {
			t.Errorf("%s: %v, expected %s", name, err, c.code)
		}
	}
}

// TestInputRotations checks OneTrainer's OFT with blocks of 2 × 2, whose polynomial of five terms is
// R = (1 − 2q² + q⁴)·I + (2 − 2q²)·Q for Q = [0 q; −q 0]: a linear layer's input x becomes x·R, and a convolution's weight
// W·R.
func TestInputRotations(t *testing.T) {
	const out, in = 3, 4
	w := random(1, out, in)
	base := read(w)
	want := func(by, side float64) []float64 {
		return fill(out, in, 1, func(o, i, _ int64) float64 {
			q := []float64{0.5, -0.25}[i/2] * by
			c, s := 1-2*q*q+q*q*q*q, (2*q-2*q*q*q)*side
			x, y := base[o*in+i/2*2], base[o*in+i/2*2+1]
			if i%2 == 0 {
				return x*c + y*s
			}
			return y*c - x*s
		})
	}
	packed := of([]float32{0.5, -0.25}, 2, 1)
	same(t, "linear", change(t, decode(t, tensors{"oft_R.weight": packed}), tensor.Shape{out, in}, base), want(1, 1))
	same(t, "scaled", change(t, decode(t, tensors{"oft_R.weight": packed, "oft_R.scaled_oft": one(1)}), tensor.Shape{out, in}, base), want(0.5, 1))
	us, err := Decode(Module{Name: "m", File: "f", Conv: true, Tensors: tensors{"oft_R.weight": packed}})
	if err != nil {
		t.Fatal(err)
	}
	same(t, "convolution", change(t, us, tensor.Shape{out, in, 1, 1}, base), want(1, -1))
	// Three values are a block of three, and two no triangle.
	if us := decode(t, tensors{"oft_R.weight": random(2, 2, 3)}); us[0].Turn.Block != 3 || us[0].Value.Rows != 6 {
		t.Errorf("%+v", us[0].Turn)
	}
	if _, err := Decode(Module{Name: "m", File: "f", Tensors: tensors{"oft_R.weight": random(2, 2, 2)}}); finding.Of(err) == nil || finding.Of(err).Code != "adapter.shape_mismatch" {
		t.Errorf("no triangle: got %v", err)
	}
}

// TestSquareGLoRA tells files of the new order from those of the old one where the layer is square: the rank is the
// smaller side.
func TestSquareGLoRA(t *testing.T) {
	const n, r = 4, 2
	a1, a2, b1, b2 := random(1, n, r), random(2, r, n), random(3, n, r), random(4, r, n)
	w := random(5, n, n)
	current := change(t, decode(t, tensors{"a1.weight": a1, "a2.weight": a2, "b1.weight": b1, "b2.weight": b2}), w.Shape, read(w))
	old := change(t, decode(t, tensors{"a2.weight": a1, "a1.weight": a2, "b2.weight": b1, "b1.weight": b2}), w.Shape, read(w))
	same(t, "old", old, current)
}
