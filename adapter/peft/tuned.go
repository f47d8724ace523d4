package peft

import (
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/lycoris"
)

// alphaByRank is alpha / r, both from the configuration.
func (d *decoder) alphaByRank(s *site) (adapter.Scale, error) {
	alpha, source := d.alphaOf(s.path)
	ranks := d.ranksOf(s.path)
	if len(ranks) == 0 || d.alphaText == "" {
		return adapter.Scale{}, d.errorf("missing_alpha", s.first, "the configuration states no r or no alpha, which the scale of module %q needs", s.module)
	}
	r := float64(ranks[0])
	return adapter.Scale{Value: alpha / r, Alpha: alpha, Rank: int(r), Source: fmt.Sprintf("%s / r %g", source, r)}, nil
}

// lycoris decodes a module by the rules that PEFT took over from LyCORIS.
func (d *decoder) lycoris(s *site) ([]adapter.Update, error) {
	scale, err := d.alphaByRank(s)
	if err != nil {
		return nil, err
	}
	return lycoris.Decode(lycoris.Module{
		Name: s.module, File: d.file, Tensors: s.parts, FullAlpha: true,
		Scale: func(int) (adapter.Scale, error) { return scale, nil },
	})
}

func (d *decoder) loha(s *site) ([]adapter.Update, error) { return d.lycoris(s) }

// lokr is LyCORIS's with alpha / r even where both matrices are whole. PEFT lays a whole kernel of a
// one-dimensional convolution out in another order.
func (d *decoder) lokr(s *site) ([]adapter.Update, error) {
	w2 := s.parts["lokr_w2"]
	if w2 == nil || len(w2.Shape) != 3 {
		return d.lycoris(s)
	}
	u := s.begin("weight", adapter.Full, "")
	var err error
	if u.Scale, err = d.alphaByRank(s); err != nil {
		return nil, err
	}
	if err := d.only(s, "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2"); err != nil {
		return nil, err
	}
	side := adapter.Side{}
	if s.parts["lokr_w1"] != nil {
		side.Full, err = d.take(s, &u, "lokr_w1")
	} else {
		err = d.product(s, &u, "lokr_w1_b", "lokr_w1_a")
		side.A, side.B = u.A, u.B
		u.A, u.B = adapter.Factor{}, adapter.Factor{}
	}
	if err != nil {
		return nil, err
	}
	kernel, err := d.see(&u, w2)
	if err != nil {
		return nil, err
	}
	r1, c1 := side.Shape()
	o2, i2, k := w2.Shape[0], w2.Shape[1], w2.Shape[2]
	if r1 > math.MaxInt32 || c1 > math.MaxInt32 || o2*i2*k > math.MaxInt32 {
		return nil, d.errorf("shape_mismatch", w2.Name, "larger than any convolution")
	}
	u.Layer, u.Kernel = adapter.Conv, w2.Shape[2:]
	u.Value = adapter.FromFunc(r1*o2, c1*i2*k, func() ([]float32, error) {
		x, err := side.Dense()
		if err != nil {
			return nil, err
		}
		y, err := kernel.Load()
		if err != nil {
			return nil, err
		}
		out := make([]float32, 0, r1*o2*c1*i2*k)
		for a := range o2 {
			for b := range r1 * i2 {
				for c := range c1 * k {
					out = append(out, float32(x[b/i2*c1+c/k]*float64(y[(a*i2+b%i2)*k+c%k])))
				}
			}
		}
		return out, nil
	})
	return []adapter.Update{u}, nil
}

// ia3 multiplies inputs of feed-forward modules, and outputs of others together with their bias.
func (d *decoder) ia3(s *site) ([]adapter.Update, error) {
	u := s.begin("weight", adapter.IA3, "(IA)³")
	if err := d.only(s, "ia3_l"); err != nil {
		return nil, err
	}
	v, err := d.take(s, &u, "ia3_l")
	if err != nil {
		return nil, err
	}
	v.Rows, v.Cols = 1, v.Rows*v.Cols
	u.Value = v
	shape := s.parts["ia3_l"].Shape
	switch {
	case len(shape) > 2:
		u.Layer, u.Input = adapter.Conv, d.feedforward(s.path)
	case v.Cols == 1 || len(shape) < 2:
		u.Input = d.feedforward(s.path)
	default:
		u.Input = shape[0] == 1
	}
	if u.Input {
		return []adapter.Update{u}, nil
	}
	b := u
	b.Param, b.Layer, b.Optional = "bias", "", true
	return []adapter.Update{u, b}, nil
}

// feedforward reports whether feedforward_modules names the module.
func (d *decoder) feedforward(module string) bool {
	switch v := d.stated.vals["feedforward_modules"].(type) {
	case string:
		r := reader{config: d.config}
		re := r.compile("feedforward_modules", v, `^(?:`+v+`)$`)
		return re != nil && re.MatchString(module)
	case []any:
		return slices.ContainsFunc(v, func(x any) bool {
			name, ok := x.(string)
			return ok && endsWith(module, name)
		})
	}
	return false
}

// adalora is B·(A⊙E)·alpha/(init_r + 1e-5).
func (d *decoder) adalora(s *site) ([]adapter.Update, error) {
	u := s.begin("weight", adapter.LowRank, "")
	if err := d.only(s, "lora_A", "lora_B", "lora_E"); err != nil {
		return nil, err
	}
	if err := d.product(s, &u, "lora_A", "lora_B"); err != nil {
		return nil, err
	}
	e, err := d.take(s, &u, "lora_E")
	if err != nil {
		return nil, err
	}
	if e.Rows*e.Cols != u.A.Rows {
		return nil, d.errorf("shape_mismatch", s.parts["lora_E"].Name, "one value a rank is needed").Expected(s.parts["lora_E"].Shape, fmt.Sprintf("[%d, 1]", u.A.Rows))
	}
	u.A = scaledRows(u.A, e)
	r, alpha := d.float("init_r", 12), d.alpha
	if d.alphaText == "" {
		return nil, d.errorf("missing_alpha", s.first, "lora_alpha is not stated")
	}
	if alpha <= 0 {
		alpha = r
	}
	u.Scale = adapter.Scale{Value: alpha / (r + 1e-5), Alpha: alpha, Rank: u.Rank, Source: fmt.Sprintf("lora_alpha %g / (init_r %g + 1e-5)", alpha, r)}
	return []adapter.Update{u}, nil
}

// scaledRows multiplies each row of f by a value of v, in float64.
func scaledRows(f, v adapter.Factor) adapter.Factor {
	return adapter.FromFunc(f.Rows, f.Cols, func() ([]float32, error) {
		x, err := f.Load()
		if err != nil {
			return nil, err
		}
		s, err := v.Load()
		if err != nil {
			return nil, err
		}
		out := make([]float32, len(x))
		for i := range x {
			out[i] = float32(float64(x[i]) * float64(s[int64(i)/f.Cols]))
		}
		return out, nil
	})
}

// hira is W + W∘(B·A).
func (d *decoder) hira(s *site) ([]adapter.Update, error) {
	u := s.begin("weight", adapter.HiRA, "HiRA has no scale")
	a, b := "hira_A", "hira_B"
	if s.parts["hira_embedding_A"] != nil {
		a, b = "hira_embedding_A", "hira_embedding_B"
	}
	if err := d.only(s, a, b); err != nil {
		return nil, err
	}
	if err := d.product(s, &u, a, b); err != nil {
		return nil, err
	}
	if a == "hira_embedding_A" {
		u.Layer = adapter.Embedding
	}
	return []adapter.Update{u}, nil
}

// delora is B·diag(λ/(r·‖Aᵢ‖·‖Bᵢ‖))·A with the columns times w_norm.
func (d *decoder) delora(s *site) ([]adapter.Update, error) {
	u := s.begin("weight", adapter.LowRank, "delora_lambda")
	if err := d.only(s, "delora_A", "delora_B", "delora_lambda", "delora_w_norm"); err != nil {
		return nil, err
	}
	if err := d.product(s, &u, "delora_A", "delora_B"); err != nil {
		return nil, err
	}
	lambda, err := d.take(s, &u, "delora_lambda")
	if err != nil {
		return nil, err
	}
	norm, err := d.take(s, &u, "delora_w_norm")
	if err != nil {
		return nil, err
	}
	if lambda.Rows*lambda.Cols != 1 || norm.Rows*norm.Cols != u.A.Cols {
		return nil, d.errorf("shape_mismatch", s.first, "module %q needs one lambda and a norm an input", s.module)
	}
	fa, fb := u.A, u.B
	u.A = adapter.FromFunc(fa.Rows, fa.Cols, func() ([]float32, error) {
		var v [4][]float32
		for i, f := range []adapter.Factor{fa, fb, lambda, norm} {
			x, err := f.Load()
			if err != nil {
				return nil, err
			}
			v[i] = x
		}
		out := make([]float32, len(v[0]))
		for k := range fa.Rows {
			row := v[0][k*fa.Cols:][:fa.Cols]
			var na, nb float64
			for _, x := range row {
				na += float64(float64(x) * float64(x))
			}
			for i := range fb.Rows {
				x := float64(v[1][i*fb.Cols+k])
				nb += float64(x * x)
			}
			f := float64(v[2][0]) / (float64(fa.Rows) * max(math.Sqrt(na), 1e-4) * max(math.Sqrt(nb), 1e-4))
			for j, x := range row {
				out[k*fa.Cols+int64(j)] = float32(f * float64(x) * float64(v[3][j]))
			}
		}
		return out, nil
	})
	return []adapter.Update{u}, nil
}

// vera is (λb⊙B)·(λd⊙A) with projections that all modules share and use the first rows and columns of.
func (d *decoder) vera(s *site) ([]adapter.Update, error) {
	u := s.begin("weight", adapter.VeRA, "VeRA has no scale")
	if err := d.only(s, "vera_lambda_b", "vera_lambda_d"); err != nil {
		return nil, err
	}
	a, b := d.shared["vera_A"], d.shared["vera_B"]
	if a == nil || b == nil {
		return nil, d.errorf("unsupported_feature", s.first, "the file has no projections vera_A and vera_B").
			Hinted("save the adapter with save_projection, which is PEFT's default")
	}
	lb, err := d.take(s, &u, "vera_lambda_b")
	if err != nil {
		return nil, err
	}
	ld, err := d.take(s, &u, "vera_lambda_d")
	if err != nil {
		return nil, err
	}
	fa, err := d.see(&u, a)
	if err != nil {
		return nil, err
	}
	fb, err := d.see(&u, b)
	if err != nil {
		return nil, err
	}
	out, r := lb.Rows*lb.Cols, ld.Rows*ld.Cols
	if fa.Rows != r || fb.Cols != r || fb.Rows < out {
		return nil, d.errorf("rank_mismatch", s.first, "the vectors of module %q do not fit the projections", s.module).
			Expected(fmt.Sprintf("%d outputs, rank %d", out, r), fmt.Sprintf("A %v, B %v", a.Shape, b.Shape))
	}
	u.A, u.B, u.Rank = scaledRows(fa, ld), scaledRows(fb.SliceRows(0, out), lb), int(r)
	return []adapter.Update{u}, nil
}

// c3a is a matrix of circulant blocks by the number of inputs.
func (d *decoder) c3a(s *site) ([]adapter.Update, error) {
	u := s.begin("weight", adapter.Full, "1 / in")
	if err := d.only(s, "c3a_kernel"); err != nil {
		return nil, err
	}
	t := s.parts["c3a_kernel"]
	if t == nil || len(t.Shape) != 3 {
		return nil, d.errorf("shape_mismatch", s.first, "not kernels of circulant blocks").Expected("another shape", "[rows, columns, block]")
	}
	w, err := d.see(&u, t)
	if err != nil {
		return nil, err
	}
	m, n, b := t.Shape[0], t.Shape[1], t.Shape[2]
	if b > 1<<20 || m*n > 1<<40/b/b {
		return nil, d.errorf("shape_mismatch", t.Name, "larger than any layer")
	}
	u.Value = adapter.FromFunc(m*b, n*b, func() ([]float32, error) {
		v, err := w.Load()
		if err != nil {
			return nil, err
		}
		out := make([]float32, 0, m*n*b*b)
		for i := range m * b {
			for j := range n * b {
				x := v[(i/b*n+j/b)*b+(j%b-i%b+b)%b]
				out = append(out, float32(float64(x)/float64(n*b)))
			}
		}
		return out, nil
	})
	return []adapter.Update{u}, nil
}

// replaced are the parameters that LN tuning trained as a whole.
func (d *decoder) replaced(s *site) ([]adapter.Update, error) {
	var ups []adapter.Update
	for _, param := range []string{"weight", "bias"} {
		t := s.parts["ln_tuning_layers."+param]
		if t == nil {
			continue
		}
		u := s.begin(param, adapter.Replace, "")
		u.Scale, u.Layer = replacement, ""
		var err error
		if u.Value, err = d.see(&u, t); err != nil {
			return nil, err
		}
		if len(t.Shape) == 2 {
			u.Layer = adapter.Linear
		} else if len(t.Shape) > 2 {
			u.Layer = adapter.Conv
		}
		ups = append(ups, u)
	}
	return ups, d.only(s, "ln_tuning_layers.weight", "ln_tuning_layers.bias")
}

// rows are trained rows of an embedding.
func (d *decoder) rows(s *site) ([]adapter.Update, error) {
	r := reader{config: d.config}
	ids := r.ints("token_indices", d.stated.vals["token_indices"])
	if r.err != nil {
		return nil, r.err
	}
	u := s.begin("weight", adapter.Rows, "")
	if err := d.only(s, "trainable_tokens_delta"); err != nil {
		return nil, err
	}
	v, err := d.take(s, &u, "trainable_tokens_delta")
	if err != nil {
		return nil, err
	}
	if v.Rows != int64(len(ids)) {
		return nil, d.errorf("shape_mismatch", s.first, "one row a trained token is needed").Expected(strconv.FormatInt(v.Rows, 10), fmt.Sprintf("[%d, dim]", len(ids)))
	}
	u.Layer, u.Scale, u.Value, u.Index = adapter.Embedding, replacement, v, ids
	return []adapter.Update{u}, nil
}

// beft is what is added to a bias.
func (d *decoder) beft(s *site) ([]adapter.Update, error) {
	u := s.begin("bias", adapter.Bias, "BEFT has no scale")
	if err := d.only(s, "beft_bias"); err != nil {
		return nil, err
	}
	v, err := d.take(s, &u, "beft_bias")
	v.Rows, v.Cols = 1, v.Rows*v.Cols
	u.Value, u.Layer = v, ""
	return []adapter.Update{u}, err
}
